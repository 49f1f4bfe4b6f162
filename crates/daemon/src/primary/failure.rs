//! Other crates' errors as the engine's failures.

use std::error::Error;

use understudy_engine::primary::Failure;
use understudy_model::{ErrorKind, ReturnCode};

pub use crate::chain;

/// A failure of this kind, with its chain of causes.
pub fn failure(kind: ErrorKind, err: &dyn Error) -> Failure {
    let code = match kind {
        ErrorKind::Retry => ReturnCode::NotAvailable,
        ErrorKind::Refused => ReturnCode::InvalidState,
        _ => ReturnCode::Failed,
    };
    Failure::new(kind, code, chain(err))
}

/// A driver's failure.
pub fn driver(err: &understudy_hypervisor::driver::Error) -> Failure {
    failure(err.kind(), err)
}

/// A mistake of our own, named.
pub fn bug(what: &str) -> Failure {
    Failure::new(ErrorKind::Bug, ReturnCode::Failed, what)
}
