//! Why a cycle is not taken, and what its sender does next.

use understudy_model::{CutDigest, CutNumber, DiskId, ErrorKind, Generation};
use understudy_run::BuildError;
use understudy_run::geometry::GeometryError;

use super::super::definition::DefinitionError;
use super::super::session::SessionError;
use crate::error::{ChangeError, FileError};

/// Why a cycle is not taken. Nothing has changed, unless the replica stopped.
#[derive(Debug, thiserror::Error)]
pub enum CycleError {
    /// The session does not count.
    #[error("cannot take a cycle in this session")]
    Session(#[from] SessionError),
    /// The cut claims a generation above its session's.
    #[error("a cut of generation {given} in a session of generation {session}")]
    FutureGeneration {
        /// The cut's.
        given: Generation,
        /// The session's.
        session: Generation,
    },
    /// Somebody else is receiving in this session.
    #[error("another transfer to this replica is under way")]
    Busy,
    /// A failover is in force: what the old primary sends no longer counts.
    #[error("the VM has failed over to this replica")]
    FailedOver,
    /// The initial copy is not done.
    #[error("the initial copy is not complete: {disk} is at {position} of {size}")]
    BaseIncomplete {
        /// The first disk that lacks something.
        disk: DiskId,
        /// How far it is.
        position: u64,
        /// Its size.
        size: u64,
    },
    /// The cycle follows a cut that is not here.
    #[error("the cycle follows cut {parent}, which this replica does not have")]
    UnknownParent {
        /// What it follows.
        parent: CutDigest,
    },
    /// The cycle follows a cut that is here but not the newest: a repeat, or another history.
    #[error("the cycle follows cut {parent}, but the newest here is {newest}")]
    ParentNotNewest {
        /// What it follows.
        parent: CutDigest,
        /// Our newest.
        newest: CutDigest,
    },
    /// Its number was used before.
    #[error("cut {number} of generation {generation} does not come after the newest one")]
    NumberReused {
        /// The cut's generation.
        generation: Generation,
        /// The cut's number.
        number: CutNumber,
    },
    /// The newest state is damaged; a delta onto it would be lost on it.
    #[error("the newest state is damaged: {object}: {what}")]
    Damaged {
        /// What is damaged.
        object: String,
        /// How.
        what: String,
    },
    /// The list of disks makes no sense.
    #[error("cannot take a cycle with these disks: {what}")]
    Disks {
        /// What is wrong.
        what: &'static str,
    },
    /// A disk has shrunk or was exchanged: what the delta does not carry is not what is here.
    #[error("{disk} is not the disk it was: {what}")]
    DiskChanged {
        /// The disk.
        disk: DiskId,
        /// How it changed.
        what: &'static str,
    },
    /// A disk's size and cluster size do not go together.
    #[error("cannot build a run for {disk}")]
    Geometry {
        /// The disk.
        disk: DiskId,
        /// Why.
        #[source]
        err: GeometryError,
    },
    /// The chain is too long until upkeep has caught up.
    #[error("the chain of runs is too long; upkeep must catch up")]
    ChainTooLong,
    /// What is left of the disk is kept for upkeep and failover.
    #[error("no space left for replication: {free} bytes are free, {floor} are kept")]
    NoSpace {
        /// Bytes free.
        free: u64,
        /// Bytes that receiving leaves alone.
        floor: u64,
    },
    /// What arrived is no part of a run, or could not be written.
    #[error("cannot take data of {disk}")]
    Data {
        /// The disk.
        disk: DiskId,
        /// Why.
        #[source]
        err: BuildError,
    },
    /// An earlier batch failed; the cycle must be given up.
    #[error("the cycle failed earlier")]
    Failed,
    /// What arrived is not what was sent.
    #[error("the received data makes cut {computed}, the sender says {expected}")]
    DigestMismatch {
        /// What we computed.
        computed: CutDigest,
        /// What the sender says.
        expected: CutDigest,
    },
    /// The definition is not taken.
    #[error("cannot take the VM's definition")]
    Definition(#[from] DefinitionError),
    /// A file could not be used.
    #[error("cannot write a cycle")]
    File(#[from] FileError),
    /// The cycle could not be recorded.
    #[error("cannot record a cycle")]
    Change(#[from] ChangeError),
}

impl CycleError {
    /// What the sender does next. What arrived damaged was dropped, and sending it again may cure it.
    pub fn kind(&self) -> ErrorKind {
        match self {
            CycleError::Session(err) => err.kind(),
            CycleError::UnknownParent { .. } | CycleError::DiskChanged { .. } => ErrorKind::Resync,
            CycleError::Damaged { .. } => ErrorKind::Corrupt,
            CycleError::Data { err: BuildError::Write(err), .. } if crate::files::is_no_space(err) => {
                ErrorKind::Operator
            }
            CycleError::Data { err, .. } if err.kind() == ErrorKind::Corrupt => ErrorKind::Retry,
            CycleError::Data { err, .. } => err.kind(),
            CycleError::DigestMismatch { .. } | CycleError::Failed => ErrorKind::Retry,
            CycleError::Busy | CycleError::ChainTooLong => ErrorKind::Retry,
            CycleError::NoSpace { .. } => ErrorKind::Operator,
            CycleError::Definition(err) => err.kind(),
            CycleError::File(err) => err.kind(),
            CycleError::Change(err) => err.kind(),
            _ => ErrorKind::Refused,
        }
    }
}
