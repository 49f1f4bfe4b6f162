//! A process held by a handle, so that its id cannot come to mean another one.
//!
//! A file says "process 4711", and ids are reused. So the process is held first (a pidfd), and only then asked whether it
//! was started with that very file. From then on the answer stays true.
//!
//! Invariant: a signal goes through the handle only, so never to a stranger.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::Arguments;

/// Longest content of a file with a process id.
const PID_FILE_MAX: usize = 32;

/// A process that was started with a file for its id.
#[derive(Debug)]
pub(crate) struct Held {
    pid: u32,
    handle: Arc<OwnedFd>,
}

impl Held {
    /// The process whose id is in `file`, if it runs and was started with `-pidfile` (or `--pidfile`) and this file.
    pub fn by_file(file: &Path) -> io::Result<Option<Self>> {
        let Some(pid) = read_pid(file)? else { return Ok(None) };
        let handle = match pidfd_open(pid, PidfdFlags::empty()) {
            Ok(handle) => Arc::new(handle),
            Err(Errno::SRCH | Errno::INVAL) => return Ok(None),
            Err(err) => return Err(err.into()),
        };
        let held = Self { pid: pid.as_raw_pid().unsigned_abs(), handle };
        let is_ours = match Arguments::of(held.pid) {
            Ok(arguments) => file.to_str().is_some_and(|file| arguments.has("pidfile", file)),
            // It ended meanwhile.
            Err(err) if matches!(Errno::from_io_error(&err), Some(Errno::NOENT | Errno::SRCH)) => false,
            Err(err) => return Err(err),
        };
        Ok((is_ours && !held.has_ended()).then_some(held))
    }

    /// Its id.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Whether it has ended, be it that nobody has waited for it yet.
    pub fn has_ended(&self) -> bool {
        ends_within(&self.handle, Duration::ZERO)
    }

    /// Waits until it has ended; false if it still runs when the time is over.
    pub async fn ended(&self, patience: Duration) -> bool {
        let handle = self.handle.clone();
        // A thread waits, for its handle cannot be watched by the runtime without unsafe code. It ends with the patience.
        tokio::task::spawn_blocking(move || ends_within(&handle, patience)).await.unwrap_or(false)
    }

    /// Kills it, if it has not ended.
    pub fn kill(&self) -> io::Result<()> {
        match pidfd_send_signal(&*self.handle, Signal::KILL) {
            Ok(()) | Err(Errno::SRCH) => Ok(()),
            Err(err) => Err(err.into()),
        }
    }
}

/// Waits for the end of a process. Blocking.
fn ends_within(handle: &OwnedFd, patience: Duration) -> bool {
    let deadline = Instant::now() + patience;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let left = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() };
        match poll(&mut [PollFd::new(handle, PollFlags::IN)], Some(&left)) {
            Ok(ready) => return ready > 0,
            Err(Errno::INTR) => {}
            Err(_) => return false,
        }
    }
}

fn read_pid(file: &Path) -> io::Result<Option<Pid>> {
    let text = match std::fs::read(file) {
        Ok(text) if text.len() <= PID_FILE_MAX => text,
        Ok(_) => return Ok(None),
        Err(err) if err.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(err) => return Err(err),
    };
    let number = std::str::from_utf8(&text).ok().and_then(|text| text.trim().parse().ok());
    // Below 2 there is only the process that started the system.
    Ok(number.filter(|number| *number > 1).and_then(Pid::from_raw))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Stdio;

    #[test]
    fn only_a_process_started_with_the_file_is_held() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("pid");
        assert!(Held::by_file(&file).unwrap().is_none());
        // A shell stands for QEMU: what matters is that its command line has the option and the file.
        // It waits for a line that never comes.
        let script = "echo $$ > \"$1\"; read line";
        for (option, is_ours) in [("-pidfile", true), ("--pidfile", true), ("-file", false)] {
            let _ = std::fs::remove_file(&file);
            let mut shell = std::process::Command::new("sh");
            let mut child = shell.args(["-c", script, option]).arg(&file).stdin(Stdio::piped()).spawn().unwrap();
            let deadline = Instant::now() + Duration::from_secs(20);
            while read_pid(&file).ok().flatten().is_none() && Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(5));
            }
            let held = Held::by_file(&file).unwrap();
            assert_eq!(held.is_some(), is_ours, "{option}");
            match held {
                Some(held) => held.kill().unwrap(),
                None => child.kill().unwrap(),
            }
            child.wait().unwrap();
            assert!(Held::by_file(&file).unwrap().is_none());
        }
    }
}
