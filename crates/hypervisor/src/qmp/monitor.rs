//! One connection to a QEMU monitor.

use std::collections::VecDeque;
use std::io;
use std::path::Path;
use std::time::Duration;

use serde_json::Value;
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::time::{Instant, timeout_at};

use super::line::{Lines, parse};
use super::{Command, Patience, QmpError, Refused, printable};

/// Events kept; older ones are dropped. They are hints.
const EVENTS_MAX: usize = 64;

/// QEMU's version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version {
    /// As in **7**.2.22.
    pub major: u32,
    /// As in 7.**2**.22.
    pub minor: u32,
    /// As in 7.2.**22**.
    pub patch: u32,
}

impl Version {
    /// A version to compare with.
    pub const fn new(major: u32, minor: u32) -> Self {
        Self { major, minor, patch: 0 }
    }
}

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.patch)
    }
}

/// Who listens at the other end, as the kernel knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer {
    /// Process, where it is visible from here.
    pub pid: Option<u32>,
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

/// Something QEMU told without being asked.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    /// Its name, also one that was not known when this was written.
    pub name: String,
    /// Its data; `Null` if it has none.
    pub data: Value,
    /// When it happened, in microseconds since 1970 by QEMU's clock; 0 if it did not say.
    pub at_us: u64,
}

/// A connection to a monitor, past its greeting. Commands go one after the other; dropping it hangs up.
#[derive(Debug)]
pub struct Monitor {
    lines: Lines<OwnedReadHalf>,
    output: OwnedWriteHalf,
    peer: Peer,
    version: Version,
    patience: Patience,
    last_id: u64,
    events: VecDeque<Event>,
}

impl Monitor {
    /// Connects, waits for its turn and the greeting, and leaves negotiation mode.
    pub async fn connect(path: &Path, patience: Patience) -> Result<Self, QmpError> {
        let deadline = Instant::now() + patience.connect;
        let stream = match timeout_at(deadline, UnixStream::connect(path)).await {
            Ok(result) => result.map_err(|err| connect_error(path, err))?,
            Err(_) => return Err(QmpError::Busy { path: path.into(), waited: patience.connect }),
        };
        let cred = stream.peer_cred().map_err(|err| QmpError::Connect { path: path.into(), err })?;
        let peer = Peer { pid: cred.pid().and_then(|p| u32::try_from(p).ok()), uid: cred.uid(), gid: cred.gid() };
        let (input, output) = stream.into_split();
        let mut lines = Lines::new(input);
        let greeting = match timeout_at(deadline, lines.next("the greeting")).await {
            Ok(line) => line?.ok_or(QmpError::Closed { during: "the greeting" })?,
            Err(_) => return Err(QmpError::Busy { path: path.into(), waited: patience.connect }),
        };
        let version = greeting_version(&parse(&greeting)?)?;
        let mut monitor = Self { lines, output, peer, version, patience, last_id: 0, events: VecDeque::new() };
        monitor.execute(Command::bare("qmp_capabilities")).await?;
        Ok(monitor)
    }

    /// QEMU's version, from its greeting.
    pub fn version(&self) -> Version {
        self.version
    }

    /// Who listens at the other end.
    pub fn peer(&self) -> Peer {
        self.peer
    }

    /// The events seen so far, oldest first; forgets them.
    pub fn take_events(&mut self) -> Vec<Event> {
        self.events.drain(..).collect()
    }

    /// Sends one command and waits for its answer.
    pub async fn execute(&mut self, command: Command) -> Result<Value, QmpError> {
        let mut answers = self.pipeline(&[command]).await?;
        Ok(answers.pop().expect("one answer a command")?)
    }

    /// Sends several commands in one write, which QEMU carries out one after the other, and waits for all answers. A
    /// refused one does not keep the later ones from being tried.
    pub async fn pipeline(&mut self, commands: &[Command]) -> Result<Vec<Result<Value, Refused>>, QmpError> {
        let Some(last) = commands.last() else { return Ok(Vec::new()) };
        let deadline = Instant::now() + self.patience.command;
        let first_id = self.last_id + 1;
        let mut text = Vec::new();
        for command in commands {
            self.last_id += 1;
            text.extend(command.encode(Some(self.last_id)));
        }
        let late = QmpError::Timeout { command: last.name, waited: self.patience.command };
        match timeout_at(deadline, self.output.write_all(&text)).await {
            Ok(result) => result.map_err(|err| broken(last.name, err))?,
            Err(_) => return Err(late),
        }
        self.answers(commands, first_id, deadline).await
    }

    /// Takes in answers until every command has one. Answers to earlier commands that came too late are dropped.
    async fn answers(
        &mut self,
        commands: &[Command],
        first_id: u64,
        deadline: Instant,
    ) -> Result<Vec<Result<Value, Refused>>, QmpError> {
        let mut answers: Vec<Option<Result<Value, Refused>>> = vec![None; commands.len()];
        while let Some(open) = answers.iter().position(Option::is_none) {
            let name = commands[open].name;
            let late = QmpError::Timeout { command: name, waited: self.patience.command };
            // A flood of events that never lets the reading wait must not get past the deadline either.
            if Instant::now() >= deadline {
                return Err(late);
            }
            let Ok(line) = timeout_at(deadline, self.lines.next(name)).await else { return Err(late) };
            let message = parse(&line?.ok_or(QmpError::Closed { during: name })?)?;
            if let Some(event) = event(&message) {
                self.keep(event);
                continue;
            }
            let id = message.get("id").and_then(Value::as_u64);
            let Some(slot) = slot(id, first_id, &message, commands, open) else { continue };
            answers[slot].get_or_insert(answer(commands[slot].name, message)?);
        }
        Ok(answers.into_iter().map(|a| a.expect("the loop ends when none is open")).collect())
    }

    fn keep(&mut self, event: Event) {
        if self.events.len() == EVENTS_MAX {
            self.events.pop_front();
        }
        self.events.push_back(event);
    }

    /// Waits a little for the next event, or for nothing: a way to sleep that ends early when something happens. The
    /// caller looks at the state afterwards in either case.
    pub async fn pause(&mut self, longest: Duration) -> Result<(), QmpError> {
        match timeout_at(Instant::now() + longest, self.lines.next("waiting")).await {
            Err(_) => Ok(()),
            Ok(line) => {
                let message = parse(&line?.ok_or(QmpError::Closed { during: "waiting" })?)?;
                if let Some(event) = event(&message) {
                    self.keep(event);
                }
                Ok(())
            }
        }
    }
}

/// Which command a message answers. QEMU answers a line it could not parse without an id: that can only be the oldest
/// open one.
fn slot(id: Option<u64>, first_id: u64, message: &Value, commands: &[Command], open: usize) -> Option<usize> {
    match id {
        Some(id) => usize::try_from(id.checked_sub(first_id)?).ok().filter(|slot| *slot < commands.len()),
        None => message.get("error").is_some().then_some(open),
    }
}

fn answer(command: &'static str, mut message: Value) -> Result<Result<Value, Refused>, QmpError> {
    if let Some(value) = message.get_mut("return") {
        return Ok(Ok(value.take()));
    }
    match message.get("error") {
        Some(error) => Ok(Err(Refused::from_value(command, error))),
        None => Err(QmpError::Protocol("an answer that neither returns nor refuses")),
    }
}

fn event(message: &Value) -> Option<Event> {
    let name = printable(message.get("event")?.as_str()?);
    let part = |key: &str| message.get("timestamp").and_then(|t| t.get(key)).and_then(Value::as_u64).unwrap_or(0);
    let at_us = part("seconds").saturating_mul(1_000_000).saturating_add(part("microseconds"));
    Some(Event { name, data: message.get("data").cloned().unwrap_or(Value::Null), at_us })
}

fn greeting_version(greeting: &Value) -> Result<Version, QmpError> {
    let qemu = greeting.pointer("/QMP/version/qemu").ok_or(QmpError::Protocol("no QMP greeting"))?;
    let part = |key: &str| qemu.get(key).and_then(Value::as_u64).and_then(|n| u32::try_from(n).ok());
    match (part("major"), part("minor"), part("micro")) {
        (Some(major), Some(minor), Some(patch)) => Ok(Version { major, minor, patch }),
        _ => Err(QmpError::Protocol("a QMP greeting without a version")),
    }
}

pub(super) fn connect_error(path: &Path, err: io::Error) -> QmpError {
    let path = path.to_path_buf();
    match err.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => QmpError::Absent { path, err },
        _ => QmpError::Connect { path, err },
    }
}

fn broken(during: &'static str, err: io::Error) -> QmpError {
    match err.kind() {
        io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => QmpError::Closed { during },
        _ => QmpError::Io { during, err },
    }
}
