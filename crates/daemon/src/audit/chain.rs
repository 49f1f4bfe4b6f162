//! The lines of the audit log, and the check that none was altered, dropped or put in between.

use std::io::{self, BufRead, Read};

use serde::{Deserialize, Serialize};

/// Longest line: five fields of bounded text, each character escaped at worst.
const LINE_MAX: u64 = 64 << 10;

/// What a line says. The order of the fields is the order in the file and part of what is hashed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Body {
    pub(super) seq: u64,
    pub(super) at: String,
    pub(super) by: String,
    pub(super) act: String,
    pub(super) object: String,
    pub(super) detail: String,
    pub(super) phase: String,
    /// Sequence number of the line that began the act.
    pub(super) of: u64,
    pub(super) outcome: String,
    /// Hash of the line before; empty for the first.
    pub(super) prev: String,
}

/// A line: what it says, and its hash.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Line {
    pub(super) body: Body,
    pub(super) hash: String,
}

impl Line {
    pub(super) fn seal(body: Body) -> Self {
        let hash = blake3::hash(&json(&body)).to_hex().to_string();
        Self { body, hash }
    }

    pub(super) fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = json(&self.body);
        // Written by hand so that the hash stands last and the rest is byte for byte what was hashed.
        bytes.pop();
        bytes.extend_from_slice(format!(",\"hash\":\"{}\"}}\n", self.hash).as_bytes());
        bytes
    }

    /// Reads a line back; only one that is byte for byte what we would write is taken.
    fn read(bytes: &[u8]) -> Option<Self> {
        let mut value: serde_json::Map<String, serde_json::Value> = serde_json::from_slice(bytes).ok()?;
        let hash = value.remove("hash")?.as_str()?.to_owned();
        let body: Body = serde_json::from_value(value.into()).ok()?;
        let line = Self::seal(body);
        (line.hash == hash && line.to_bytes() == bytes).then_some(line)
    }
}

fn json(body: &Body) -> Vec<u8> {
    serde_json::to_vec(body).expect("texts and numbers can always be written as JSON")
}

/// What a check of the log found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Summary {
    /// Lines found.
    pub lines: u64,
    /// Hash of the last one; empty if there is none.
    pub last_hash: String,
    /// The first fault of the chain.
    pub fault: Option<VerifyError>,
    /// Bytes up to the end of the last whole line.
    pub(super) whole: u64,
    /// Bytes after it: half a line.
    pub(super) torn: u64,
}

/// A fault of the chain.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VerifyError {
    /// A line was altered, or is none of ours.
    #[error("line {line} of the audit log was altered")]
    Altered {
        /// Counted from 1.
        line: u64,
    },
    /// A line does not follow the one before it.
    #[error("before line {line} of the audit log lines are missing or were put in")]
    Broken {
        /// Counted from 1.
        line: u64,
    },
}

/// Reads a whole log. Memory stays that of one line.
pub(super) fn read(mut log: impl BufRead) -> io::Result<Summary> {
    let mut summary = Summary { lines: 0, last_hash: String::new(), fault: None, whole: 0, torn: 0 };
    let mut bytes = Vec::new();
    loop {
        bytes.clear();
        let len = log.by_ref().take(LINE_MAX).read_until(b'\n', &mut bytes)? as u64;
        if len == 0 {
            return Ok(summary);
        }
        if bytes.last() != Some(&b'\n') && len < LINE_MAX {
            summary.torn = len;
            return Ok(summary);
        }
        summary.whole += len;
        summary.take(&bytes);
    }
}

impl Summary {
    fn take(&mut self, bytes: &[u8]) {
        self.lines += 1;
        let line = self.lines;
        let fault = match Line::read(bytes) {
            None => Some(VerifyError::Altered { line }),
            Some(read) => {
                let follows = read.body.seq == line && read.body.prev == self.last_hash;
                self.last_hash = read.hash;
                (!follows).then_some(VerifyError::Broken { line })
            }
        };
        self.fault = self.fault.take().or(fault);
    }
}
