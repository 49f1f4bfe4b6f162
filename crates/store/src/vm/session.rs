//! Who may write: generations and sessions, both durable, both only ever rising.

use understudy_model::{ErrorKind, Generation, SessionNumber};

use super::{Space, VmStore};
use crate::error::ChangeError;
use crate::manifest::Manifest;

/// An admitted session. What comes with an older one is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Session {
    /// Its generation.
    pub generation: Generation,
    /// Its number in the generation.
    pub number: SessionNumber,
}

/// Why a session is not admitted, or no longer counts.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// A higher generation was seen: somebody else is primary now.
    #[error("generation {given} is over; the replica is at generation {held}")]
    StaleGeneration {
        /// What was asked for.
        given: Generation,
        /// The highest seen.
        held: Generation,
    },
    /// A session of this number or a higher one was admitted.
    #[error("session {given} is over; the replica is at session {held}")]
    StaleSession {
        /// What was asked for.
        given: SessionNumber,
        /// The highest admitted in this generation.
        held: SessionNumber,
    },
    /// The relationship was removed here; the points were kept.
    #[error("the relationship was removed on this side")]
    Detached,
    /// It could not be recorded.
    #[error("cannot admit a session")]
    Change(#[from] ChangeError),
}

impl SessionError {
    /// What the caller does next.
    pub fn kind(&self) -> ErrorKind {
        match self {
            SessionError::Change(err) => err.kind(),
            _ => ErrorKind::Refused,
        }
    }
}

impl VmStore {
    /// Admits a session if it is newer than every one before, and makes that durable. Receivers of older sessions
    /// are refused from then on.
    pub fn admit_session(&self, generation: Generation, number: SessionNumber) -> Result<Session, SessionError> {
        self.change(Space::Spare, |m| {
            if m.detached {
                return Err(SessionError::Detached);
            }
            if generation < m.generation {
                return Err(SessionError::StaleGeneration { given: generation, held: m.generation });
            }
            if generation == m.generation && number <= m.session {
                return Err(SessionError::StaleSession { given: number, held: m.session });
            }
            (m.generation, m.session) = (generation, number);
            Ok(Session { generation, number })
        })
    }

    /// Whether the session is the newest.
    pub fn is_current(&self, session: Session) -> bool {
        check(&self.manifest(), session).is_ok()
    }
}

/// Refuses what does not come with the newest session.
pub(crate) fn check(manifest: &Manifest, session: Session) -> Result<(), SessionError> {
    if session.generation != manifest.generation {
        return Err(SessionError::StaleGeneration { given: session.generation, held: manifest.generation });
    }
    if session.number != manifest.session {
        return Err(SessionError::StaleSession { given: session.number, held: manifest.session });
    }
    if manifest.detached { Err(SessionError::Detached) } else { Ok(()) }
}
