//! Why the catalogue did not do what was asked.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rusqlite::ErrorCode;
use understudy_model::{ErrorKind, Refusal, RelationshipId, ReturnCode};

/// See the module's description.
#[derive(Debug, Clone, thiserror::Error)]
pub enum CatalogueError {
    /// The file cannot be opened.
    #[error("cannot open the catalogue {path}")]
    Open {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        err: Arc<rusqlite::Error>,
    },
    /// The file belongs to a later build.
    #[error(
        "the catalogue {path} has version {found}; this program knows versions up to {known} and left it untouched"
    )]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: i32,
        /// What this build knows.
        known: i32,
    },
    /// The file belongs to another program.
    #[error("{path} is not a catalogue of this program and was left untouched")]
    Foreign {
        /// The file.
        path: PathBuf,
    },
    /// The file is damaged.
    #[error("the catalogue {path} is damaged ({verdict}) and was left untouched")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What the check found first.
        verdict: String,
    },
    /// The file's permissions cannot be set.
    #[error("cannot close the catalogue {path} to other users")]
    Mode {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        err: Arc<std::io::Error>,
    },
    /// No thread could be started.
    #[error("cannot start a thread for the catalogue")]
    Thread(#[source] Arc<std::io::Error>),
    /// A statement failed.
    #[error("cannot {doing} in the catalogue")]
    Statement {
        /// What was being done.
        doing: &'static str,
        /// Why it failed.
        #[source]
        err: Arc<rusqlite::Error>,
    },
    /// The changes could not be made durable; none of them remained.
    #[error("cannot make changes of the catalogue durable")]
    Commit(#[source] Arc<rusqlite::Error>),
    /// A row holds what no version of this program wrote.
    #[error("the catalogue holds a {what} that cannot be read: {value:?}")]
    Row {
        /// Which thing.
        what: &'static str,
        /// What was found, shortened.
        value: String,
    },
    /// Something of that name or identity is there already.
    #[error("{what} is already there")]
    Taken {
        /// Which thing.
        what: String,
    },
    /// The relationship is not there.
    #[error("there is no relationship {0}")]
    NoRelationship(RelationshipId),
    /// The catalogue is being closed.
    #[error("the catalogue is closed")]
    Closed,
    /// A call into the catalogue panicked; its changes were undone.
    #[error("a call into the catalogue failed by a fault of this program")]
    Panicked,
}

impl CatalogueError {
    /// What the caller does next.
    pub fn kind(&self) -> ErrorKind {
        match self {
            CatalogueError::Taken { .. } | CatalogueError::NoRelationship(_) => ErrorKind::Refused,
            CatalogueError::Damaged { .. } | CatalogueError::Row { .. } => ErrorKind::Corrupt,
            CatalogueError::Panicked => ErrorKind::Bug,
            CatalogueError::Closed => ErrorKind::Retry,
            _ => ErrorKind::Operator,
        }
    }

    /// For the API. The whole chain goes into the reason: there is nobody further up who would print it.
    pub fn refusal(&self) -> Refusal {
        let code = match self {
            CatalogueError::Taken { .. } | CatalogueError::NoRelationship(_) => ReturnCode::InvalidParameter,
            CatalogueError::Closed => ReturnCode::NotAvailable,
            _ => ReturnCode::Failed,
        };
        let hint = if is_full(self) { "free space in the state directory" } else { "" };
        Refusal::new(code, crate::chain(self)).hint(hint)
    }

    pub(super) fn open(path: &Path) -> impl Fn(rusqlite::Error) -> Self + Copy {
        move |err| {
            let path = path.to_owned();
            match err.sqlite_error_code() {
                Some(ErrorCode::NotADatabase) => CatalogueError::Foreign { path },
                Some(ErrorCode::DatabaseCorrupt) => CatalogueError::Damaged { path, verdict: err.to_string() },
                _ => CatalogueError::Open { path, err: Arc::new(err) },
            }
        }
    }

    pub(super) fn doing(doing: &'static str) -> impl Fn(rusqlite::Error) -> Self + Copy {
        move |err| CatalogueError::Statement { doing, err: Arc::new(err) }
    }

    pub(super) fn row(what: &'static str, value: impl std::fmt::Debug) -> Self {
        CatalogueError::Row { what, value: format!("{value:?}").chars().take(80).collect() }
    }
}

/// Whether the statement broke a rule that something is there once only.
pub(super) fn is_taken(err: &rusqlite::Error) -> bool {
    err.sqlite_error_code() == Some(ErrorCode::ConstraintViolation)
}

fn is_full(err: &CatalogueError) -> bool {
    let full = |err: &rusqlite::Error| err.sqlite_error_code() == Some(ErrorCode::DiskFull);
    match err {
        CatalogueError::Statement { err, .. } | CatalogueError::Commit(err) => full(err),
        _ => false,
    }
}
