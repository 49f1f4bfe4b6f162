//! What goes wrong between us and a VM, sorted by what the caller does next.

use std::error::Error as StdError;

use understudy_model::{ErrorKind, Extent};

use super::map::LostTracking;

/// The result of a driver's call.
pub type Result<T, E = Error> = std::result::Result<T, E>;

type Source = Box<dyn StdError + Send + Sync>;

/// Why a driver could not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The hypervisor cannot be reached, or went away during the call.
    #[error("cannot talk to the hypervisor: {what}")]
    Unreachable {
        /// What was being done.
        what: String,
        /// Why it failed.
        #[source]
        source: Source,
    },
    /// Something of somebody else's is in the way now: a job, a migration, another cut, another user of the monitor.
    #[error("{0}")]
    Busy(String),
    /// The hypervisor refused a step it should carry out.
    #[error("the hypervisor refused to {what}")]
    Step {
        /// The step.
        what: String,
        /// Its answer.
        #[source]
        source: Source,
    },
    /// What is known of the guest's writes no longer covers them all.
    #[error("tracking of disk {disk} is lost")]
    Tracking {
        /// The disk's durable key.
        disk: String,
        /// In which way.
        #[source]
        lost: LostTracking,
    },
    /// The disk is not the size it was registered with.
    #[error("disk {disk} has {found} bytes and was registered with {expected}")]
    Resized {
        /// The disk's durable key.
        disk: String,
        /// The size in the [`understudy_model::DiskSpec`].
        expected: u64,
        /// The size now.
        found: u64,
    },
    /// The VM no longer has the disk, or has it twice.
    #[error("the VM has no disk {disk} that can be replicated: {why}")]
    DiskMissing {
        /// The disk's durable key.
        disk: String,
        /// Why not.
        why: String,
    },
    /// This VM cannot be replicated as it is.
    #[error("{what}; {remedy}")]
    Unsupported {
        /// What is in the way.
        what: String,
        /// What somebody can do about it.
        remedy: String,
    },
    /// The frozen image ended before it was read: the guest's writes came first. The cycle is to be given up.
    #[error("the cut ended early: {0}")]
    CutEnded(String),
    /// A part of a disk cannot be read.
    #[error("cannot read disk {disk} at {}+{}", extent.offset, extent.len)]
    Read {
        /// The disk's durable key.
        disk: String,
        /// Which part.
        extent: Extent,
        /// Why.
        #[source]
        source: Source,
    },
    /// Something on the host is missing, full or forbidden.
    #[error("cannot {what}")]
    Host {
        /// What was being done.
        what: String,
        /// What the system said.
        #[source]
        source: Source,
    },
    /// We were asked for something that makes no sense.
    #[error("bad request: {0}")]
    Misuse(String),
}

impl Error {
    /// What the caller does next.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Error::Unreachable { .. } | Error::Busy(_) | Error::Step { .. } | Error::CutEnded(_) => ErrorKind::Retry,
            Error::Read { .. } => ErrorKind::Retry,
            Error::Tracking { .. } | Error::Resized { .. } => ErrorKind::Resync,
            Error::DiskMissing { .. } | Error::Unsupported { .. } | Error::Host { .. } => ErrorKind::Operator,
            Error::Misuse(_) => ErrorKind::Bug,
        }
    }

    /// An error of the host's system.
    pub fn host(what: impl Into<String>, source: impl Into<Source>) -> Self {
        Error::Host { what: what.into(), source: source.into() }
    }

    /// Tracking of `disk` is lost.
    pub fn tracking(disk: impl Into<String>, lost: LostTracking) -> Self {
        Error::Tracking { disk: disk.into(), lost }
    }
}
