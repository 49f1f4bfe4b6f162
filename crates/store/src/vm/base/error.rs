//! Why an initial copy does not go on, and what its sender does next.

use understudy_model::{DiskId, ErrorKind};

use crate::SessionError;
use crate::error::{ChangeError, FileError};

/// Why an initial copy does not go on.
#[derive(Debug, thiserror::Error)]
pub enum BaseError {
    /// The session does not count.
    #[error("cannot take an initial copy in this session")]
    Session(#[from] SessionError),
    /// There is a base already.
    #[error("the initial copy is done")]
    Published,
    /// Somebody else is receiving in this session.
    #[error("another transfer to this replica is under way")]
    Busy,
    /// It was begun with empty disks: there is nothing to compare with.
    #[error("this initial copy does not compare")]
    NotComparing,
    /// Claims are made of whole blocks, and of a bounded number of them at once.
    #[error("{count} claims from {offset} on make no sense")]
    Claims {
        /// Where they begin.
        offset: u64,
        /// How many they are.
        count: usize,
    },
    /// The VM has no such disk.
    #[error("{disk} is none of the VM's disks")]
    UnknownDisk {
        /// What was asked for.
        disk: DiskId,
    },
    /// Pieces consist of whole blocks of [`crate::BASE_BLOCK`] bytes, save at the disk's end.
    #[error("the piece of {len} bytes at {offset} is not of whole blocks of 64 KiB")]
    Unaligned {
        /// Its offset.
        offset: u64,
        /// Its length.
        len: u64,
    },
    /// The piece lies beyond the disk's end.
    #[error("the piece of {len} bytes at {offset} lies outside a disk of {size}")]
    OutOfRange {
        /// Its offset.
        offset: u64,
        /// Its length.
        len: u64,
        /// The disk's size.
        size: u64,
    },
    /// Pieces came so scattered that keeping account of them is no longer bounded.
    #[error("too many scattered pieces since the last sync")]
    Scattered,
    /// What is left of the disk is kept for upkeep and failover.
    #[error("no space left for replication: {free} bytes are free, {floor} are kept")]
    NoSpace {
        /// Bytes free.
        free: u64,
        /// Bytes that receiving leaves alone.
        floor: u64,
    },
    /// A file could not be used.
    #[error("cannot take a piece of an initial copy")]
    File(#[from] FileError),
    /// Positions could not be recorded.
    #[error("cannot record how far an initial copy got")]
    Change(#[from] ChangeError),
}

impl BaseError {
    /// What the caller does next.
    pub fn kind(&self) -> ErrorKind {
        match self {
            BaseError::Session(err) => err.kind(),
            BaseError::Busy => ErrorKind::Retry,
            BaseError::NoSpace { .. } => ErrorKind::Operator,
            BaseError::File(err) => err.kind(),
            BaseError::Change(err) => err.kind(),
            _ => ErrorKind::Refused,
        }
    }
}
