//! Talking to QEMU's monitor (QMP) and to the guest agent (QGA): newline-separated JSON over a unix socket.
//!
//! Both ends of this conversation may be odd. QEMU gains fields, events and error classes with every version, so an
//! answer is a [`Value`] from which callers take what they need, and an unknown event is just a name. The agent runs
//! inside the guest and may answer anything at all; lines are bounded in length, depth and number of values before they
//! are parsed.
//!
//! A monitor serves one client at a time, and other tools want it too: connect, exchange, hang up. Events are kept for
//! callers that like a hint, but nothing may rest on having seen one, since those sent while nobody was connected are
//! gone.

mod agent;
mod line;
mod monitor;

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Map, Value};
use understudy_model::ErrorKind;

pub use agent::Agent;
pub use monitor::{Event, Monitor, Peer, Version};

/// One command with its arguments.
#[derive(Debug, Clone, PartialEq)]
pub struct Command {
    /// The command's name in QEMU's schema.
    pub name: &'static str,
    /// Its arguments: an object, or nothing.
    pub arguments: Option<Value>,
}

impl Command {
    /// A command without arguments.
    pub const fn bare(name: &'static str) -> Self {
        Self { name, arguments: None }
    }

    /// A command with arguments, an object.
    pub const fn new(name: &'static str, arguments: Value) -> Self {
        Self { name, arguments: Some(arguments) }
    }

    /// The line to send. Written without spaces: QEMU reads its monitor byte by byte, some 3 µs each, and within a cut
    /// the guest waits for that.
    fn encode(&self, id: Option<u64>) -> Vec<u8> {
        let mut object = Map::new();
        object.insert("execute".into(), self.name.into());
        if let Some(arguments) = &self.arguments {
            object.insert("arguments".into(), arguments.clone());
        }
        if let Some(id) = id {
            object.insert("id".into(), id.into());
        }
        let mut line = Value::Object(object).to_string().into_bytes();
        line.push(b'\n');
        line
    }
}

/// QEMU's or the agent's answer "no" to one command. The connection stays good.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{command}: {text}")]
pub struct Refused {
    /// The command.
    pub command: &'static str,
    /// QEMU's class of errors: nearly always `GenericError`.
    pub class: String,
    /// QEMU's words: printable, cut to [`Refused::TEXT_MAX`] characters.
    pub text: String,
}

impl Refused {
    /// Longest text kept: a sentence or two for a log.
    pub const TEXT_MAX: usize = 512;

    fn from_value(command: &'static str, error: &Value) -> Self {
        let word = |key: &str| printable(error.get(key).and_then(Value::as_str).unwrap_or_default());
        Self { command, class: word("class"), text: word("desc") }
    }
}

/// Foreign text for our logs: without control characters and of bounded length.
pub(crate) fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(Refused::TEXT_MAX).collect()
}

/// Why an exchange failed.
#[derive(Debug, thiserror::Error)]
pub enum QmpError {
    /// Nothing listens there: no process, or not this socket.
    #[error("nothing listens at {path}")]
    Absent {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        #[source]
        err: io::Error,
    },
    /// Connecting failed in another way.
    #[error("cannot connect to {path}")]
    Connect {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        #[source]
        err: io::Error,
    },
    /// The socket took us in, but nobody greeted: such a socket serves one client at a time.
    #[error("{path} gave no greeting within {waited:?}: another client holds it, or QEMU hangs")]
    Busy {
        /// The socket.
        path: PathBuf,
        /// How long we waited.
        waited: Duration,
    },
    /// The other side hung up.
    #[error("the connection was closed during {during}")]
    Closed {
        /// What was being done.
        during: &'static str,
    },
    /// The connection broke.
    #[error("the connection broke during {during}")]
    Io {
        /// What was being done.
        during: &'static str,
        /// What the system said.
        #[source]
        err: io::Error,
    },
    /// No answer in time. Whether the command was carried out is not known.
    #[error("no answer to {command} within {waited:?}")]
    Timeout {
        /// The command.
        command: &'static str,
        /// How long we waited.
        waited: Duration,
    },
    /// The other side does not speak the protocol.
    #[error("not the protocol expected: {0}")]
    Protocol(&'static str),
    /// The command was refused.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// An answer lacks something that every known version of QEMU sends.
    #[error("the answer to {command} lacks {what}")]
    Unexpected {
        /// The command.
        command: &'static str,
        /// What is missing or of another type.
        what: &'static str,
    },
}

impl QmpError {
    /// What the caller does next.
    pub fn kind(&self) -> ErrorKind {
        match self {
            QmpError::Protocol(_) | QmpError::Unexpected { .. } => ErrorKind::Operator,
            _ => ErrorKind::Retry,
        }
    }

    /// Whether the connection is still good.
    pub fn leaves_connection_usable(&self) -> bool {
        matches!(self, QmpError::Refused(_) | QmpError::Unexpected { .. })
    }
}

/// How long to wait for what.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// For the connection and the greeting together. Other tools hold a monitor for a few exchanges.
    pub connect: Duration,
    /// For the answer to one command. QEMU answers in milliseconds unless its storage hangs.
    pub command: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self { connect: Duration::from_secs(5), command: Duration::from_secs(10) }
    }
}
