//! The test's own line to the guest agent, for freezing file systems without the product's help.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use crate::wait::wait_for;

/// Freezing under load took 0.2 s; an emulated guest on a busy machine may need ten times that and more.
const ANSWER_BOUND: Duration = Duration::from_secs(30);
/// How long the agent may take to come up behind the guest.
const AGENT_BOUND: Duration = Duration::from_secs(60);
/// Precedes the answer to a delimited sync; what came before it belongs to somebody else's question.
const DELIMITER: u8 = 0xff;

/// A connected agent. It serves one client at a time, so this must be dropped before the product may speak to it.
#[derive(Debug)]
pub struct Agent {
    lines: BufReader<UnixStream>,
}

impl Agent {
    /// Connects, and waits until the agent in the guest answers.
    pub fn connect(socket: &Path) -> Result<Self> {
        let stream = UnixStream::connect(socket).with_context(|| format!("cannot connect to {}", socket.display()))?;
        stream.set_read_timeout(Some(ANSWER_BOUND))?;
        let mut agent = Agent { lines: BufReader::new(stream) };
        wait_for("the guest agent", AGENT_BOUND, || agent.sync())?;
        Ok(agent)
    }

    /// Runs a command and gives what it returned.
    pub fn execute(&mut self, command: &str) -> Result<Value> {
        self.send(&json!({ "execute": command }))?;
        let mut answer = self.read().with_context(|| format!("no answer to {command}"))?;
        if let Some(error) = answer.get("error") {
            bail!("{command} was refused: {error}");
        }
        Ok(answer["return"].take())
    }

    /// Skips what is left of earlier talk; none when the agent is not there yet.
    fn sync(&mut self) -> Result<Option<()>> {
        const ID: u64 = 20_777; // any number that is not in an old answer
        self.send(&json!({ "execute": "guest-sync-delimited", "arguments": { "id": ID } }))?;
        self.lines.get_ref().set_read_timeout(Some(Duration::from_secs(1)))?;
        let found = self.lines.read_until(DELIMITER, &mut Vec::new());
        self.lines.get_ref().set_read_timeout(Some(ANSWER_BOUND))?;
        match found {
            Ok(0) => bail!("the agent's socket has closed"),
            Ok(_) => Ok((self.read()?["return"] == ID).then_some(())),
            Err(_) => Ok(None),
        }
    }

    fn send(&mut self, request: &Value) -> Result<()> {
        let stream = self.lines.get_mut();
        stream.write_all(format!("{request}\n").as_bytes()).context("cannot write to the guest agent")
    }

    fn read(&mut self) -> Result<Value> {
        let mut line = Vec::new();
        self.lines.read_until(b'\n', &mut line)?;
        let text: Vec<u8> = line.into_iter().filter(|&byte| byte != DELIMITER).collect();
        serde_json::from_slice(&text).with_context(|| format!("the agent said {}", String::from_utf8_lossy(&text)))
    }
}
