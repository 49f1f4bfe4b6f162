//! The daemon's end of the guard: starts it, hands it duties, starts it again should it end.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::{self, Read, Write};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::retry_on_intr;

use super::{Duty, Message, READY};

/// How long a guard may take to start.
const START_TIMEOUT: Duration = Duration::from_secs(10);

/// Why there is no guard.
#[derive(Debug, thiserror::Error)]
pub enum GuardError {
    /// It cannot be started.
    #[error("cannot start the guard {program}")]
    Start {
        /// Its program.
        program: PathBuf,
        /// What the system said.
        #[source]
        err: io::Error,
    },
    /// It was started and did not say that it is ready.
    #[error("{program} started and did not become a guard")]
    NotReady {
        /// Its program.
        program: PathBuf,
        /// What went wrong.
        #[source]
        err: io::Error,
    },
    /// It does not take orders.
    #[error("the guard takes no orders")]
    Tell(#[source] io::Error),
}

/// Starts a guard when it is first needed and keeps one running. One is enough for any number of VMs.
#[derive(Debug, Clone)]
pub struct GuardClient(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    program: PathBuf,
    args: Vec<OsString>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    running: Option<Running>,
    /// What the guard was told and not called off: told again to the next guard, should this one end.
    armed: BTreeMap<u64, Duty>,
    last_id: u64,
}

#[derive(Debug)]
struct Running {
    /// There until the end.
    child: Option<Child>,
    /// There until the end. Not blocking: a guard that stands still must not make us stand still.
    input: Option<ChildStdin>,
}

impl GuardClient {
    /// A guard that is `program` started with `args`. Starts nothing yet.
    pub fn new(program: impl Into<PathBuf>, args: impl IntoIterator<Item = impl Into<OsString>>) -> Self {
        let args = args.into_iter().map(Into::into).collect();
        Self(Arc::new(Shared { program: program.into(), args, state: Mutex::default() }))
    }

    /// Hands over a duty, and starts a guard if none runs. When this has returned, the duty will be carried out should
    /// we die, until [`Watch::done`].
    pub async fn arm(&self, duty: Duty) -> Result<Watch, GuardError> {
        let shared = self.0.clone();
        let task = tokio::task::spawn_blocking(move || shared.arm(duty).map(|id| Watch { shared, id: Some(id) }));
        task.await.expect("arming does not panic")
    }

    /// The guard's process, if one runs.
    pub fn pid(&self) -> Option<u32> {
        self.0.lock().running.as_ref().and_then(|r| r.child.as_ref()).map(Child::id)
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn arm(&self, duty: Duty) -> Result<u64, GuardError> {
        let mut state = self.lock();
        state.last_id += 1;
        let id = state.last_id;
        let message = Message::Arm { id, duty: duty.clone() };
        // A guard that ended is noticed when it is told something: once more with a new one.
        if state.running.is_none() || state.tell(&message).is_err() {
            state.start(&self.program, &self.args)?;
            state.tell(&message).map_err(GuardError::Tell)?;
        }
        state.armed.insert(id, duty);
        Ok(id)
    }

    /// Calls a duty off, or has it done now.
    fn settle(self: &Arc<Self>, id: u64, message: Message) {
        let mut state = self.lock();
        let told = state.tell(&message);
        let is_called_off = matches!(message, Message::Done { .. });
        if is_called_off || told.is_ok() {
            state.armed.remove(&id);
        }
        if let Err(err) = told {
            tracing::warn!(%err, "the guard ended; starting another");
            let shared = self.clone();
            // Starting takes a while, and this may be called where nothing may wait.
            std::thread::spawn(move || shared.replace((!is_called_off).then_some(id)));
        }
    }

    /// Starts another guard with the duties that are open, of which it carries out `act` at once.
    fn replace(&self, act: Option<u64>) {
        let mut state = self.lock();
        let started = state.start(&self.program, &self.args).and_then(|()| match act {
            Some(id) => state.tell(&Message::Act { id }).map_err(GuardError::Tell),
            None => Ok(()),
        });
        match (started, act) {
            (Ok(()), Some(id)) => drop(state.armed.remove(&id)),
            (Ok(()), None) => {}
            (Err(err), _) => tracing::error!(%err, "there is no guard, and a VM may stand still"),
        }
    }
}

impl State {
    fn tell(&mut self, message: &Message) -> io::Result<()> {
        let input = self.running.as_mut().and_then(|r| r.input.as_mut()).ok_or(io::ErrorKind::NotConnected)?;
        let mut line = serde_json::to_vec(message).map_err(io::Error::other)?;
        line.push(b'\n');
        // Shorter than a pipe's buffer: taken whole or not at all.
        match input.write(&line)? {
            n if n == line.len() => Ok(()),
            _ => Err(io::ErrorKind::WriteZero.into()),
        }
    }

    /// Starts a guard and tells it what its predecessor knew.
    fn start(&mut self, program: &PathBuf, args: &[OsString]) -> Result<(), GuardError> {
        if let Some(old) = self.running.take() {
            old.kill();
        }
        let start = |err| GuardError::Start { program: program.clone(), err };
        let mut child = Command::new(program)
            .args(args)
            .env_clear()
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .process_group(0)
            .spawn()
            .map_err(start)?;
        let input = child.stdin.take().expect("its input is a pipe");
        let ready = nonblocking(&input).and_then(|()| await_ready(&mut child));
        let running = Running { child: Some(child), input: Some(input) };
        if let Err(err) = ready {
            running.kill();
            return Err(GuardError::NotReady { program: program.clone(), err });
        }
        self.running = Some(running);
        let known: Vec<_> = self.armed.iter().map(|(id, duty)| (*id, duty.clone())).collect();
        known.into_iter().try_for_each(|(id, duty)| self.tell(&Message::Arm { id, duty })).map_err(GuardError::Tell)
    }
}

fn nonblocking(input: &ChildStdin) -> io::Result<()> {
    let flags = fcntl_getfl(input)?;
    Ok(fcntl_setfl(input, flags | OFlags::NONBLOCK)?)
}

fn await_ready(child: &mut Child) -> io::Result<()> {
    let mut output = child.stdout.take().expect("its output is a pipe");
    let deadline = Instant::now() + START_TIMEOUT;
    let mut said = Vec::new();
    while said.len() < READY.len() {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() };
        if retry_on_intr(|| poll(&mut [PollFd::new(&output, PollFlags::IN)], Some(&timeout)))? == 0 {
            return Err(io::ErrorKind::TimedOut.into());
        }
        let mut part = [0; 64];
        match output.read(&mut part)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            n => said.extend_from_slice(&part[..n]),
        }
    }
    if said == READY.as_bytes() { Ok(()) } else { Err(io::ErrorKind::InvalidData.into()) }
}

impl Running {
    /// For a guard that is being replaced: the new one is told all it knew, and two of them must not act.
    fn kill(mut self) {
        if let Some(child) = &mut self.child {
            // An error means that it ended by itself.
            let _ = child.kill();
        }
    }
}

impl Drop for Running {
    /// Closing its input is what ends a guard, once it has done what was left to do. A thread waits for that instead
    /// of us.
    fn drop(&mut self) {
        self.input = None;
        if let Some(mut child) = self.child.take() {
            std::thread::spawn(move || child.wait());
        }
    }
}

/// A duty handed over. Dropped without [`Watch::done`], it is carried out at once.
#[derive(Debug)]
#[must_use = "a watch that is dropped has its duty carried out"]
pub struct Watch {
    shared: Arc<Shared>,
    id: Option<u64>,
}

impl Watch {
    /// Calls the duty off.
    pub fn done(mut self) {
        if let Some(id) = self.id.take() {
            self.shared.settle(id, Message::Done { id });
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        if let Some(id) = self.id.take() {
            self.shared.settle(id, Message::Act { id });
        }
    }
}
