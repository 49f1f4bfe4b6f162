//! What every part of the store can fail with: a call on a file, and a change that could not be recorded.

use std::io;

use understudy_model::{ErrorKind, VmId};

use crate::files::is_no_space;

/// A call on a file of the store failed.
#[derive(Debug, thiserror::Error)]
#[error("cannot {what} {path}")]
pub struct FileError {
    /// What was being done.
    pub what: &'static str,
    /// To what, relative to the store.
    pub path: String,
    /// What the file system answered.
    #[source]
    pub err: io::Error,
}

impl FileError {
    pub(crate) fn new(what: &'static str, path: impl Into<String>, err: io::Error) -> Self {
        Self { what, path: path.into(), err }
    }

    /// What the caller does next.
    pub fn kind(&self) -> ErrorKind {
        match self.err.kind() {
            io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => ErrorKind::Retry,
            io::ErrorKind::NotFound | io::ErrorKind::UnexpectedEof => ErrorKind::Corrupt,
            _ => ErrorKind::Operator,
        }
    }

    /// Whether it failed for want of space.
    pub fn is_no_space(&self) -> bool {
        is_no_space(&self.err)
    }
}

pub(crate) trait At<T> {
    /// Says what was being done to which file.
    fn at(self, what: &'static str, path: &str) -> Result<T, FileError>;
}

impl<T> At<T> for io::Result<T> {
    fn at(self, what: &'static str, path: &str) -> Result<T, FileError> {
        self.map_err(|err| FileError::new(what, path, err))
    }
}

/// A change of a VM's replica could not be recorded. It did not happen, unless the VM says that it stopped: then
/// what is durable shows after reopening.
#[derive(Debug, thiserror::Error)]
pub enum ChangeError {
    /// An earlier failure left unknown what is durable; nothing is written until the VM was reopened and checked.
    #[error("the replica of {vm} stopped and must be reopened: {cause}")]
    Stopped {
        /// The VM.
        vm: VmId,
        /// The failure that stopped it.
        cause: String,
    },
    /// The VM was removed meanwhile.
    #[error("the replica of {vm} was removed")]
    Removed {
        /// The VM.
        vm: VmId,
    },
    /// A file could not be written.
    #[error("cannot record a change")]
    File(#[from] FileError),
}

impl ChangeError {
    /// What the caller does next.
    pub fn kind(&self) -> ErrorKind {
        match self {
            ChangeError::Stopped { .. } => ErrorKind::Operator,
            ChangeError::Removed { .. } => ErrorKind::Refused,
            ChangeError::File(err) => err.kind(),
        }
    }
}

/// The whole chain of an error's causes in one line, for where only text can be kept.
pub(crate) fn chain_of(err: &(dyn std::error::Error + 'static)) -> String {
    let mut text = err.to_string();
    let mut cause = err.source();
    while let Some(err) = cause {
        text.push_str(": ");
        text.push_str(&err.to_string());
        cause = err.source();
    }
    text
}
