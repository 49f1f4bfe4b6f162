//! The audit log: who did what to what, from where, with which outcome; append-only lines, each naming the one before
//! it by its hash.
//!
//! An act that matters for security (trust, failover, removal) is written and synced *before* it is carried out, as
//! `begun`; a second line says how it ended. If the first cannot be written, the act is refused.
//!
//! ```text
//! {"seq":7,"at":"2026-11-22T14:03:05.120Z","by":"uid 0","act":"peer-remove","object":"...","detail":"...",
//!  "phase":"begun","of":7,"prev":"<hash of line 6>","hash":"<blake3 of prev's bytes and this line without hash>"}
//! ```
//!
//! Invariant: the lines up to the last synced one are never changed by us. A line that a crash left half-written is cut
//! off when the log is opened, for nothing was done on its strength.

mod chain;
#[cfg(test)]
mod tests;

use std::fs::{File, OpenOptions};
use std::io::{self, BufReader, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use understudy_model::{ErrorKind, Refusal, ReturnCode};

use crate::clock::Clock;
use chain::{Body, Line};
pub use chain::{Summary, VerifyError};

/// Largest log: some hundred thousand acts. Then acts are refused until an administrator has moved it away.
const SIZE_MAX: u64 = 256 << 20;

/// Longest text of one field, in characters.
const TEXT_MAX: usize = 1000;

/// The open log. Cheap to clone.
#[derive(Clone)]
pub struct Audit {
    log: Arc<Mutex<Log>>,
    clock: Arc<dyn Clock>,
}

struct Log {
    path: PathBuf,
    file: File,
    /// Length up to which every line is whole and synced.
    len: u64,
    last_seq: u64,
    last_hash: String,
    /// Set once it is no longer known what the file holds.
    is_broken: bool,
}

/// Something that matters for security.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Act {
    /// Who asks: a local user or a peer.
    pub by: String,
    /// What is asked for: a word.
    pub act: &'static str,
    /// On what.
    pub object: String,
    /// Anything else worth keeping. Never a secret.
    pub detail: String,
}

/// An act that was written as begun, and whose outcome is to be written.
#[must_use = "the outcome of an act belongs into the log"]
pub struct BegunAct {
    audit: Audit,
    act: Act,
    seq: u64,
}

/// Why the log cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum AuditError {
    /// The file cannot be read or written.
    #[error("cannot {doing} the audit log {path}")]
    Io {
        /// What was being done.
        doing: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        err: io::Error,
    },
    /// It has reached its largest size.
    #[error("the audit log {path} is full")]
    Full {
        /// The file.
        path: PathBuf,
    },
    /// An earlier write failed, and what the file holds is only known after a restart.
    #[error("the audit log {path} could not be written before, and is used again after a restart only")]
    Broken {
        /// The file.
        path: PathBuf,
    },
}

impl AuditError {
    /// What the caller does next.
    pub fn kind(&self) -> ErrorKind {
        ErrorKind::Operator
    }

    fn refusal(&self) -> Refusal {
        let reason = format!("refused because it cannot be recorded: {}", crate::chain(self));
        let hint = match self {
            AuditError::Full { .. } => "move the audit log to a safe place and restart the service",
            _ => "put the audit log's place right and restart the service",
        };
        Refusal::new(ReturnCode::Failed, reason).hint(hint)
    }
}

impl Audit {
    /// Opens the log, or makes it; checks the whole chain, and cuts a half-written last line off. A chain that does not
    /// hold is told in the summary and goes on: whoever altered it must not be able to stop a failover too.
    pub fn open(path: &Path, clock: Arc<dyn Clock>) -> Result<(Self, Summary), AuditError> {
        let failed = |doing| move |err| AuditError::Io { doing, path: path.to_owned(), err };
        let mut options = OpenOptions::new();
        let file = options.read(true).append(true).create(true).mode(0o600).open(path).map_err(failed("open"))?;
        let summary = chain::read(BufReader::new(&file)).map_err(failed("read"))?;
        if summary.torn > 0 {
            tracing::warn!(bytes = summary.torn, "half-written line at the end of the audit log is cut off");
            file.set_len(summary.whole).map_err(failed("mend"))?;
        }
        file.sync_all().map_err(failed("sync"))?;
        let (last_seq, last_hash) = (summary.lines, summary.last_hash.clone());
        let log = Log { path: path.to_owned(), file, len: summary.whole, last_seq, last_hash, is_broken: false };
        Ok((Self { log: Arc::new(Mutex::new(log)), clock }, summary))
    }

    /// Writes that an act begins. Refused if that cannot be made durable.
    pub async fn begin(&self, act: Act) -> Result<BegunAct, Refusal> {
        let seq = self.write(act.clone(), Phase::Begun).await.map_err(|err| {
            tracing::error!(act = act.act, err = %crate::chain(&err), "act refused because it cannot be recorded");
            err.refusal()
        })?;
        Ok(BegunAct { audit: self.clone(), act, seq })
    }

    /// Writes something that happened by itself or was refused; a failure is logged, since there is nothing to refuse.
    pub async fn note(&self, act: Act, outcome: &str) {
        let (word, phase) = (act.act, Phase::Noted(outcome.to_owned()));
        if let Err(err) = self.write(act, phase).await {
            tracing::error!(act = word, err = %crate::chain(&err), "note for the audit log is lost");
        }
    }

    async fn write(&self, act: Act, phase: Phase) -> Result<u64, AuditError> {
        let (log, now) = (self.log.clone(), self.clock.wall());
        let written = tokio::task::spawn_blocking(move || {
            let mut log = log.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
            log.append(now, act, phase)
        });
        written.await.expect("writing a line does not panic")
    }
}

impl BegunAct {
    /// Writes that it was carried out.
    pub async fn done(self) {
        self.end("done".to_owned()).await;
    }

    /// Writes that it was not carried out, and why.
    pub async fn refused(self, refusal: &Refusal) {
        self.end(format!("refused: {refusal}")).await;
    }

    /// Writes how it ended.
    pub async fn end(self, outcome: String) {
        let (act, phase) = (self.act, Phase::Ended(self.seq, outcome));
        let word = act.act;
        if let Err(err) = self.audit.write(act, phase).await {
            tracing::error!(act = word, err = %crate::chain(&err), "outcome of an act cannot be recorded");
        }
    }
}

enum Phase {
    Begun,
    Ended(u64, String),
    Noted(String),
}

impl Log {
    fn append(&mut self, now: understudy_model::Timestamp, act: Act, phase: Phase) -> Result<u64, AuditError> {
        if self.is_broken {
            return Err(AuditError::Broken { path: self.path.clone() });
        }
        let seq = self.last_seq + 1;
        let (of, phase, outcome) = match phase {
            Phase::Begun => (seq, "begun", String::new()),
            Phase::Ended(of, outcome) => (of, "ended", outcome),
            Phase::Noted(outcome) => (seq, "noted", outcome),
        };
        let cut = |text: &str| text.chars().take(TEXT_MAX).collect::<String>();
        let body = Body {
            seq,
            at: crate::clock::label(now),
            by: cut(&act.by),
            act: act.act.to_owned(),
            object: cut(&act.object),
            detail: cut(&act.detail),
            phase: phase.to_owned(),
            of,
            outcome: cut(&outcome),
            prev: self.last_hash.clone(),
        };
        let line = Line::seal(body);
        self.put(&line)?;
        self.last_seq = seq;
        self.last_hash = line.hash;
        Ok(seq)
    }

    fn put(&mut self, line: &Line) -> Result<(), AuditError> {
        let bytes = line.to_bytes();
        if self.len + bytes.len() as u64 > SIZE_MAX {
            return Err(AuditError::Full { path: self.path.clone() });
        }
        if let Err(err) = self.file.write_all(&bytes) {
            // Takes the part of a line away again; if even that fails, nobody knows where the next would begin.
            self.is_broken = self.file.set_len(self.len).is_err();
            return Err(self.failed("write", err));
        }
        if let Err(err) = self.file.sync_data() {
            // After a sync that failed nothing is known of what it should have written.
            self.is_broken = true;
            return Err(self.failed("sync", err));
        }
        self.len += bytes.len() as u64;
        Ok(())
    }

    fn failed(&self, doing: &'static str, err: io::Error) -> AuditError {
        AuditError::Io { doing, path: self.path.clone(), err }
    }
}

/// Checks a log as it lies on the disk.
pub fn verify(path: &Path) -> io::Result<Summary> {
    chain::read(BufReader::new(File::open(path)?))
}
