//! The test's own line to a guest's QEMU. Independent of the product's QMP client, which it helps to judge.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use crate::wait::wait_for;

/// Longest wait for one answer; commands that take long are jobs, which answer at once.
const ANSWER_BOUND: Duration = Duration::from_secs(30);

/// A connected monitor.
#[derive(Debug)]
pub struct Qmp {
    lines: BufReader<UnixStream>,
    /// Events seen while waiting for answers, oldest first.
    pub events: Vec<Value>,
}

impl Qmp {
    /// Connects to a monitor's socket and says hello. A monitor serves one client at a time.
    pub fn connect(socket: &Path, bound: Duration) -> Result<Self> {
        let what = format!("the monitor {}", socket.display());
        let stream = wait_for(&what, bound, || Ok(UnixStream::connect(socket).ok()))?;
        stream.set_read_timeout(Some(ANSWER_BOUND))?;
        let mut qmp = Qmp { lines: BufReader::new(stream), events: Vec::new() };
        let greeting = qmp.read()?;
        if greeting.get("QMP").is_none() {
            bail!("the monitor greeted with {greeting}");
        }
        qmp.execute("qmp_capabilities", json!({}))?;
        Ok(qmp)
    }

    /// Runs a command and gives what it returned.
    pub fn execute(&mut self, command: &str, arguments: Value) -> Result<Value> {
        let request = json!({ "execute": command, "arguments": arguments });
        let stream = self.lines.get_mut();
        stream.write_all(format!("{request}\n").as_bytes()).with_context(|| format!("cannot send {command}"))?;
        loop {
            let mut answer = self.read().with_context(|| format!("no answer to {command}"))?;
            if let Some(error) = answer.get("error") {
                bail!("{command} was refused: {}", error["desc"].as_str().unwrap_or_default());
            }
            if let Some(value) = answer.get_mut("return") {
                return Ok(value.take());
            }
            self.events.push(answer);
        }
    }

    fn read(&mut self) -> Result<Value> {
        let mut line = String::new();
        if self.lines.read_line(&mut line)? == 0 {
            bail!("the monitor has closed");
        }
        serde_json::from_str(&line).with_context(|| format!("the monitor said {line}"))
    }
}
