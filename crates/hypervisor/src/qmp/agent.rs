//! One connection to the guest agent: freezing and thawing the guest's file systems.
//!
//! The agent is guest software behind a serial line. It gives no greeting, its answers carry no ids, and whatever was
//! asked before may still be on its way; so each use begins with a numbered synchronisation, and what comes before the
//! answer to that is dropped.

use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::time::{Instant, timeout_at};

use super::line::{Lines, RESET, parse};
use super::monitor::connect_error;
use super::{Command, QmpError, Refused};

/// A connection to an agent that was heard to answer.
#[derive(Debug)]
pub struct Agent {
    lines: Lines<OwnedReadHalf>,
    output: OwnedWriteHalf,
}

impl Agent {
    /// Connects and synchronises, all within `patience`. `token` is any number not used shortly before.
    pub async fn connect(path: &Path, token: u64, patience: Duration) -> Result<Self, QmpError> {
        let deadline = Instant::now() + patience;
        let late = QmpError::Timeout { command: "guest-sync-delimited", waited: patience };
        let Ok(stream) = timeout_at(deadline, UnixStream::connect(path)).await else { return Err(late) };
        let (input, output) = stream.map_err(|err| connect_error(path, err))?.into_split();
        let mut agent = Self { lines: Lines::new(input), output };
        match timeout_at(deadline, agent.synchronise(token)).await {
            Ok(result) => result.map(|()| agent),
            Err(_) => Err(late),
        }
    }

    /// The reset byte ends whatever half a command a client before us left in the agent's parser.
    async fn synchronise(&mut self, token: u64) -> Result<(), QmpError> {
        // The agent reads the number as a signed one.
        let token = token & (i64::MAX as u64);
        let command = Command::new("guest-sync-delimited", json!({ "id": token }));
        let mut text = vec![RESET];
        text.extend(command.encode(None));
        self.send(command.name, &text).await?;
        loop {
            let line = self.lines.next(command.name).await?.ok_or(QmpError::Closed { during: command.name })?;
            // Old answers and noise end at the last reset byte of the line.
            let start = line.iter().rposition(|b| *b == RESET).map_or(0, |at| at + 1);
            let Ok(message) = parse(&line[start..]) else { continue };
            if message.get("return").and_then(Value::as_u64) == Some(token) {
                return Ok(());
            }
        }
    }

    async fn send(&mut self, during: &'static str, text: &[u8]) -> Result<(), QmpError> {
        self.output.write_all(text).await.map_err(|err| QmpError::Io { during, err })
    }

    /// Sends one command and waits for its answer.
    async fn execute(&mut self, name: &'static str, patience: Duration) -> Result<Value, QmpError> {
        let exchange = async {
            self.send(name, &Command::bare(name).encode(None)).await?;
            loop {
                let line = self.lines.next(name).await?.ok_or(QmpError::Closed { during: name })?;
                let mut message = parse(&line)?;
                if let Some(value) = message.get_mut("return") {
                    return Ok(value.take());
                }
                if let Some(error) = message.get("error") {
                    return Err(Refused::from_value(name, error).into());
                }
            }
        };
        match timeout_at(Instant::now() + patience, exchange).await {
            Ok(result) => result,
            Err(_) => Err(QmpError::Timeout { command: name, waited: patience }),
        }
    }

    /// Freezes the guest's file systems; answers how many. On any error they may be frozen all the same: thaw.
    pub async fn freeze(&mut self, patience: Duration) -> Result<u64, QmpError> {
        let count = self.execute("guest-fsfreeze-freeze", patience).await?;
        count.as_u64().ok_or(QmpError::Unexpected { command: "guest-fsfreeze-freeze", what: "a number" })
    }

    /// Thaws them; answers how many were frozen. Harmless when none is.
    pub async fn thaw(&mut self, patience: Duration) -> Result<u64, QmpError> {
        let count = self.execute("guest-fsfreeze-thaw", patience).await?;
        count.as_u64().ok_or(QmpError::Unexpected { command: "guest-fsfreeze-thaw", what: "a number" })
    }

    /// Whether the agent holds file systems frozen. While it does, it refuses nearly every other command.
    pub async fn is_frozen(&mut self, patience: Duration) -> Result<bool, QmpError> {
        let status = self.execute("guest-fsfreeze-status", patience).await?;
        Ok(status.as_str() == Some("frozen"))
    }
}
