//! Processes that end with their owner: dropped, panicked or killed.
//!
//! A test that is killed runs no destructor, so children also ask the kernel to be killed when their parent goes (`setpriv --pdeathsig`,
//! which replaces itself by the program, so the process id is the program's). The kernel means the parent *thread*; therefore
//! one thread that lives as long as the process does all the starting.
//!
//! Invariant: signals go to the ids of children that have not been waited for yet, so never to a stranger.

use std::ffi::OsStr;
use std::io;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::OnceLock;
use std::sync::mpsc::{Sender, channel};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

use crate::wait::wait_for;

type Request = (Command, Sender<io::Result<Child>>);

/// A child process that is killed when this is dropped.
#[derive(Debug)]
pub struct Owned {
    child: Child,
    name: String,
    ended: Option<ExitStatus>,
}

impl Owned {
    /// Starts a program with these arguments; standard input is empty unless `prepare` says otherwise.
    pub fn start(
        program: impl AsRef<OsStr>,
        arguments: impl IntoIterator<Item = impl AsRef<OsStr>>,
        prepare: impl FnOnce(&mut Command),
    ) -> Result<Self> {
        let program = program.as_ref();
        let name = Path::new(program).file_name().unwrap_or(program).to_string_lossy().into_owned();
        let mut command = bound_to_us(program);
        command.args(arguments).stdin(Stdio::null());
        prepare(&mut command);
        let child = spawn(command).with_context(|| format!("cannot start {}", program.display()))?;
        Ok(Owned { child, name, ended: None })
    }

    /// The process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// The child's pipes, to take what was asked for with [`Stdio::piped`].
    pub fn child(&mut self) -> &mut Child {
        &mut self.child
    }

    /// How it ended, if it has.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        if self.ended.is_none() {
            self.ended = self.child.try_wait().with_context(|| format!("cannot wait for {}", self.name))?;
        }
        Ok(self.ended)
    }

    /// Waits until it has ended by itself.
    pub fn wait(&mut self, bound: Duration) -> Result<ExitStatus> {
        let what = format!("{} (process {}) to end", self.name, self.id());
        wait_for(&what, bound, || self.ended())
    }

    /// Sends a signal, unless it has ended already.
    pub fn signal(&mut self, signal: Signal) -> Result<()> {
        if self.ended()?.is_some() {
            return Ok(());
        }
        let id = i32::try_from(self.id()).ok().and_then(Pid::from_raw).context("no process id")?;
        kill_process(id, signal).with_context(|| format!("cannot signal {}", self.name))
    }

    /// SIGKILL, and waits until it is gone.
    pub fn kill(&mut self) -> Result<()> {
        self.signal(Signal::KILL)?;
        self.wait(KILL_BOUND).map(drop)
    }
}

/// A killed process goes once its last system call returns; disks of busy machines take their time.
const KILL_BOUND: Duration = Duration::from_secs(20);

impl Drop for Owned {
    fn drop(&mut self) {
        if let Err(err) = self.kill() {
            eprintln!("{}: {err:#}", self.name);
        }
    }
}

/// Runs a tool to its end and gives its standard output; failure carries what it said.
pub fn run(program: impl AsRef<OsStr>, arguments: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Result<String> {
    let mut command = Command::new(program);
    command.args(arguments);
    run_command(command)
}

/// As [`run`], for a command with more to it than arguments.
pub fn run_command(mut command: Command) -> Result<String> {
    let output = output_of(&mut command)?;
    if !output.status.success() {
        let said = [output.stdout, output.stderr].concat();
        bail!("{} failed ({}): {}", describe(&command), output.status, String::from_utf8_lossy(&said).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Runs a tool to its end, whatever that is.
pub fn output_of(command: &mut Command) -> Result<Output> {
    command.stdin(Stdio::null()).output().with_context(|| format!("cannot run {}", describe(command)))
}

/// True when a program of this name is in the search path.
pub fn is_installed(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    // Tools of root are not in everyone's path, but can be run for a look by everyone.
    let dirs = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]);
    dirs.into_iter().any(|dir| dir.join(program).is_file())
}

fn describe(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(OsStr::to_string_lossy).collect::<Vec<_>>().join(" ")
}

fn bound_to_us(program: &OsStr) -> Command {
    static HAVE_SETPRIV: OnceLock<bool> = OnceLock::new();
    if !HAVE_SETPRIV.get_or_init(|| is_installed("setpriv")) {
        return Command::new(program);
    }
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "--"]).arg(program);
    command
}

fn spawn(command: Command) -> io::Result<Child> {
    static STARTER: OnceLock<Sender<Request>> = OnceLock::new();
    let starter = STARTER.get_or_init(|| {
        let (sender, requests) = channel::<Request>();
        std::thread::spawn(move || {
            for (mut command, answer) in requests {
                // Who asked may be gone; then the child is dropped unowned, and ends with this process.
                let _ = answer.send(command.spawn());
            }
        });
        sender
    });
    let (answer, child) = channel();
    starter.send((command, answer)).map_err(io::Error::other)?;
    child.recv().map_err(io::Error::other)?
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_alive(id: u32) -> bool {
        let stat = std::fs::read_to_string(format!("/proc/{id}/stat")).unwrap_or_default();
        !stat.is_empty() && !stat.contains(") Z ")
    }

    #[test]
    fn a_dropped_owner_takes_its_process_along() {
        let owned = Owned::start("sleep", ["1000"], |_| {}).unwrap();
        let id = owned.id();
        assert!(is_alive(id));
        drop(owned);
        assert!(!is_alive(id));
    }

    #[test]
    fn a_child_outlives_the_thread_that_asked_for_it() {
        let mut owned = std::thread::spawn(|| Owned::start("sleep", ["1000"], |_| {}).unwrap()).join().unwrap();
        assert!(owned.wait(Duration::from_millis(200)).is_err());
        owned.kill().unwrap();
        assert!(!owned.ended().unwrap().unwrap().success());
        owned.kill().unwrap(); // what has ended is left alone
    }

    #[test]
    fn a_killed_process_takes_its_children_along() {
        // The shell stands for a killed test; its child was started as ours are.
        let script = "setpriv --pdeathsig KILL -- sleep 1000 & echo $!; wait";
        let mut shell = Owned::start("sh", ["-c", script], |c| {
            c.stdout(Stdio::piped());
        })
        .unwrap();
        let mut line = String::new();
        let stdout = shell.child().stdout.take().unwrap();
        io::BufRead::read_line(&mut io::BufReader::new(stdout), &mut line).unwrap();
        let grandchild: u32 = line.trim().parse().unwrap();
        crate::wait::wait_until("the grandchild to be asleep", Duration::from_secs(10), || {
            std::fs::read_to_string(format!("/proc/{grandchild}/comm")).is_ok_and(|name| name.trim() == "sleep")
        });
        shell.kill().unwrap();
        crate::wait::wait_until("the grandchild to go", Duration::from_secs(10), || !is_alive(grandchild));
    }

    #[test]
    fn a_failing_tool_says_what_it_said() {
        let err = run("sh", ["-c", "echo on the wall >&2; exit 3"]).unwrap_err().to_string();
        assert!(err.contains("on the wall") && err.contains('3'), "{err}");
        assert_eq!(run("echo", ["fine"]).unwrap(), "fine\n");
        assert!(!is_installed("no-such-program-anywhere"));
    }
}
