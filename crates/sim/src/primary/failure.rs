//! Other crates' errors as the engine's failures, as the daemon makes them.

use std::error::Error;

use understudy_engine::primary::Failure;
use understudy_model::{ErrorKind, Generation, ReturnCode, SessionNumber};
use understudy_wire::Message;
use understudy_wire::message::Refused;

/// The whole chain of causes in one line.
pub fn chain(err: &dyn Error) -> String {
    let mut text = err.to_string();
    let mut next = err.source();
    while let Some(cause) = next {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        next = cause.source();
    }
    text
}

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

/// The connection is of no use any more.
pub fn gone() -> Failure {
    let reason = "the connection to the replica was lost";
    Failure::new(ErrorKind::Retry, ReturnCode::NotAvailable, reason).with_link_lost()
}

/// An answer that does not fit its question.
pub fn unexpected(message: &Message) -> Failure {
    bug(&format!("the peer answered with {:?} out of place", message.name()))
}

/// A refusal as the engine's failure.
pub fn refusal(refused: &Refused) -> Failure {
    Failure {
        kind: refused.error_kind(),
        refusal: refused.refusal(),
        generation: refused.generation.map(Generation),
        is_handed_back: refused.handed_back,
        session: refused.session.map(SessionNumber),
        is_link_lost: false,
    }
}

/// Passing trouble.
pub fn retry(what: &str) -> Failure {
    Failure::new(ErrorKind::Retry, ReturnCode::SystemInUse, what)
}

/// Asking again changes nothing.
pub fn refused(what: &str) -> Failure {
    Failure::new(ErrorKind::Refused, ReturnCode::InvalidState, what)
}
