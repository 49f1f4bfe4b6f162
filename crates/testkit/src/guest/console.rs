//! The guest's serial console: everything it ever said, waiting for a word, and commands with their answers.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::report::{Ack, Report, Verdict};
use crate::wait::wait_for;

/// The guest's terminal takes lines of 4,095 characters at most; longer commands must go in pieces.
const COMMAND_MAX: usize = 2900;
/// How much of the console a failure shows.
const SHOWN_MAX: usize = 4000;

/// What has been said so far.
#[derive(Debug, Default)]
struct Said {
    text: String,
    /// The other end is gone: nothing more will come.
    closed: bool,
    acked: Option<Ack>,
}

/// A connected console. The transcript grows on in the background.
#[derive(Debug)]
pub struct Console {
    stream: UnixStream,
    shared: Arc<(Mutex<Said>, Condvar)>,
    commands: u32,
}

/// How a command ended and what it printed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// Exit status.
    pub status: i32,
    /// Its output, without announcements of a journal running beside it.
    pub text: String,
}

impl Console {
    /// Connects to the socket of a guest's serial port.
    pub fn connect(socket: &Path, bound: Duration) -> Result<Self> {
        let what = format!("the console {}", socket.display());
        let stream = wait_for(&what, bound, || Ok(UnixStream::connect(socket).ok()))?;
        let shared = Arc::<(Mutex<Said>, Condvar)>::default();
        let (reader, theirs) = (stream.try_clone()?, Arc::clone(&shared));
        std::thread::spawn(move || listen(reader, &theirs));
        Ok(Console { stream, shared, commands: 0 })
    }

    /// Everything said so far.
    pub fn text(&self) -> String {
        self.said().text.clone()
    }

    /// The newest record a journal has announced as durable.
    pub fn acked(&self) -> Option<Ack> {
        self.said().acked
    }

    /// Waits until a word has been said, counting from the beginning.
    pub fn wait_for(&self, word: &str, bound: Duration) -> Result<()> {
        self.wait_from(0, word, bound, |text| text.contains(word).then_some(()))
    }

    /// Waits until the other end has gone and all it said has been read.
    pub fn wait_closed(&self, bound: Duration) -> Result<()> {
        wait_for("the console to close", bound, || Ok(self.said().closed.then_some(())))
    }

    /// Sends one line.
    pub fn send(&mut self, line: &str) -> Result<()> {
        self.stream.write_all(format!("{line}\n").as_bytes()).context("cannot write to the console")
    }

    /// Runs a shell script in the guest and waits for its end.
    pub fn run(&mut self, script: &str, bound: Duration) -> Result<Answer> {
        if script.len() > COMMAND_MAX {
            bail!("a command of {} bytes is too long for a console line", script.len());
        }
        let from = self.said().text.len();
        self.commands += 1;
        let id = self.commands;
        self.send(&format!("r {id} {}", super::base64(script.as_bytes())))?;
        let what = format!("the end of {script:?}");
        self.wait_from(from, &what, bound, |text| find_answer(text, id))
    }

    /// Lets the guest read a journal back from these disks or files. Also for guests that somebody else started.
    pub fn verify(&mut self, disks: &str, bound: Duration) -> Result<Verdict> {
        let answer = self.run(&format!("guest-io verify {disks}"), bound)?;
        let report = Report::last_in(&answer.text).with_context(|| format!("no report in: {}", answer.text))?;
        Verdict::from_report(&report).with_context(|| answer.text)
    }

    fn wait_from<T>(&self, from: usize, what: &str, bound: Duration, look: impl Fn(&str) -> Option<T>) -> Result<T> {
        let until = Instant::now() + bound;
        let mut said = self.said();
        loop {
            if let Some(found) = look(&said.text[from..]) {
                return Ok(found);
            }
            let left = until.saturating_duration_since(Instant::now());
            if said.closed || left.is_zero() {
                let why = if said.closed { "the console closed" } else { "in vain" };
                bail!("waited up to {bound:?} for {what}: {why}; the console's end:\n{}", tail(&said.text));
            }
            said = self.shared.1.wait_timeout(said, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn said(&self) -> MutexGuard<'_, Said> {
        lock(&self.shared.0)
    }
}

fn lock(said: &Mutex<Said>) -> MutexGuard<'_, Said> {
    said.lock().unwrap_or_else(PoisonError::into_inner)
}

fn listen(mut reader: UnixStream, shared: &(Mutex<Said>, Condvar)) {
    let mut buffer = [0u8; 4096];
    loop {
        let count = reader.read(&mut buffer).unwrap_or(0);
        let mut said = lock(&shared.0);
        said.closed = count == 0;
        // The guest speaks ASCII; what a dying one garbles must not end the transcript.
        let from = said.text.rfind('\n').map_or(0, |at| at + 1);
        said.text.extend(buffer[..count].iter().filter(|&&byte| byte != b'\r').map(|&byte| char::from(byte & 0x7f)));
        if let Some(ack) = last_ack(&said.text[from..]) {
            said.acked = Some(ack);
        }
        shared.1.notify_all();
        if count == 0 {
            return;
        }
    }
}

/// The last whole line that announces a record.
fn last_ack(text: &str) -> Option<Ack> {
    let whole = &text[..text.rfind('\n')?];
    whole.lines().rev().find_map(Ack::parse)
}

/// What stands between the two marks of a command, once both are there.
fn find_answer(text: &str, id: u32) -> Option<Answer> {
    let begin = format!("GUEST-BEGIN {id}\n");
    let (_, rest) = text.split_once(&begin)?;
    let (output, rest) = rest.split_once(&format!("GUEST-END {id} "))?;
    let (status, _) = rest.split_once('\n')?;
    let lines = output.lines().filter(|line| Ack::parse(line).is_none());
    Some(Answer { status: status.trim().parse().ok()?, text: lines.collect::<Vec<_>>().join("\n") })
}

fn tail(text: &str) -> &str {
    &text[text.len().saturating_sub(SHOWN_MAX)..]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_what_stands_between_its_marks() {
        let text = "noise\nGUEST-BEGIN 3\none\nACK 7 99\ntwoGUEST-END 3 1\nGUEST-BEGIN 4\n";
        assert_eq!(find_answer(text, 3), Some(Answer { status: 1, text: "one\ntwo".into() }));
        assert_eq!(find_answer(text, 4), None);
        assert_eq!(find_answer(&text[..text.len() - 20], 3), None);
    }

    #[test]
    fn only_whole_announcements_count() {
        assert_eq!(last_ack("ACK 1 5\nACK 2 6\nACK 3"), Some(Ack { number: 2, time_ns: 6 }));
        assert_eq!(last_ack("ACK 1"), None);
    }
}
