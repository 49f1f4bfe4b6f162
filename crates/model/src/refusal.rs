//! How things go wrong, sorted by what the caller does next.

use std::fmt;

use crate::code::ReturnCode;

/// What the caller of a failed step should do. Code branches on this, never on text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// Passing trouble: try again later, with back-off.
    Retry,
    /// What is known of changes no longer covers them all: both sides must be compared.
    Resync,
    /// The other side, or a rule, says no; asking again changes nothing.
    Refused,
    /// Data is damaged: never use it, say which.
    Corrupt,
    /// Somebody must act: no space, no permission, a missing file.
    Operator,
    /// Our own mistake.
    Bug,
}

impl ErrorKind {
    /// The word for logs and the wire.
    pub const fn name(self) -> &'static str {
        match self {
            ErrorKind::Retry => "retry",
            ErrorKind::Resync => "resync",
            ErrorKind::Refused => "refused",
            ErrorKind::Corrupt => "corrupt",
            ErrorKind::Operator => "operator",
            ErrorKind::Bug => "bug",
        }
    }

    /// The kind with this word.
    pub fn from_name(name: &str) -> Option<Self> {
        use ErrorKind::*;
        [Retry, Resync, Refused, Corrupt, Operator, Bug].into_iter().find(|k| k.name() == name)
    }
}

/// A call that is not carried out, or a job that failed: the code for the API, the cause in words, what to do next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// What the API answers.
    pub code: ReturnCode,
    /// What was wrong, naming the thing it was wrong with. Lower case, no full stop.
    pub reason: String,
    /// What the reader can do about it; empty when the reason says it already.
    pub hint: String,
}

impl Refusal {
    /// A refusal without a hint.
    pub fn new(code: ReturnCode, reason: impl Into<String>) -> Self {
        Self { code, reason: reason.into(), hint: String::new() }
    }

    /// Adds what the reader can do next.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = hint.into();
        self
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.reason)
    }
}

impl std::error::Error for Refusal {}
