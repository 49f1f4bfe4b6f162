//! Awaiting an import: the initial replication travels on a medium, and cycles that follow it arrive before it does.
//!
//! They are received, sealed and acknowledged as always, but the chain they make has no bottom. So none of it can be
//! seen: no point, no newest cut, nothing to fail over to. [`super::adopt`] puts the bottom in.

use std::sync::Arc;

use understudy_model::{Cut, CutDigest, CutRef, DiskSpec, ErrorKind, Generation};

use super::session::{self, Session, SessionError};
use super::{Space, Transfer, VmStore};
use crate::error::{ChangeError, FileError};
use crate::manifest::{CutRecord, Manifest, Waiting};
use crate::paths;

/// Why a replica does not begin to await an import.
#[derive(Debug, thiserror::Error)]
pub enum AwaitError {
    /// The session does not count.
    #[error("cannot await an import in this session")]
    Session(#[from] SessionError),
    /// The cut claims a generation above its session's.
    #[error("a cut of generation {given} in a session of generation {session}")]
    FutureGeneration {
        /// The cut's.
        given: Generation,
        /// The session's.
        session: Generation,
    },
    /// There is a base already.
    #[error("the initial replication is done")]
    Published,
    /// Somebody else is receiving in this session.
    #[error("another transfer to this replica is under way")]
    Busy,
    /// The disks of the export are not those that the replica was made for.
    #[error("cannot await an import of these disks: {what}")]
    Disks {
        /// What is wrong with them.
        what: &'static str,
    },
    /// A file could not be used.
    #[error("cannot prepare for an import")]
    File(#[from] FileError),
    /// It could not be recorded.
    #[error("cannot record that an import is awaited")]
    Change(#[from] ChangeError),
}

impl AwaitError {
    /// What the caller does next.
    pub fn kind(&self) -> ErrorKind {
        match self {
            AwaitError::Session(err) => err.kind(),
            AwaitError::Busy => ErrorKind::Retry,
            AwaitError::File(err) => err.kind(),
            AwaitError::Change(err) => err.kind(),
            _ => ErrorKind::Refused,
        }
    }
}

impl VmStore {
    /// The base will come with an export of this cut. From now on cycles are received on top of it. What lies in staging
    /// is dropped, and so is what was received on top of the cut of another export; of the same one it stays. When this
    /// returns, it is durable.
    pub fn await_base(self: &Arc<Self>, session: Session, cut: &Cut, disks: &[DiskSpec]) -> Result<(), AwaitError> {
        check(&self.manifest(), session, cut, disks)?;
        self.check_going()?;
        let claim = self.claim_receiving(session, Transfer::Base).ok_or(AwaitError::Busy)?;
        // What a superseded receiver is writing at this moment ends before its files go.
        drop(self.base_io.write().expect("nothing panics while a base is changed"));
        let begun = self.begin_waiting(session, cut, disks);
        self.end_receiving(claim);
        begun
    }

    fn begin_waiting(&self, session: Session, cut: &Cut, disks: &[DiskSpec]) -> Result<(), AwaitError> {
        if self.manifest().waiting.as_ref().is_some_and(|w| w.record.cut == *cut) {
            return Ok(());
        }
        self.change(Space::Spare, |m| {
            check(m, session, cut, disks)?;
            m.drop_waiting();
            (m.initial, m.seeds) = (None, Vec::new());
            for known in &mut m.disks {
                known.removed = disks.iter().all(|d| d.id != known.spec.id);
                known.spec.size = disks.iter().find(|d| d.id == known.spec.id).map_or(known.spec.size, |d| d.size);
            }
            m.waiting = Some(Waiting { record: record(cut, disks), links: Vec::new() });
            Ok::<_, AwaitError>(())
        })?;
        let staged = disks.iter().flat_map(|d| [paths::staged_base(d.id), paths::staged_base_sums(d.id)]);
        self.discard(&staged.collect::<Vec<_>>());
        Ok(())
    }

    /// The newest cut received while an import is awaited, or the cut of the export itself: what the next cycle must
    /// follow. None if no import is awaited.
    pub fn awaited_newest(&self) -> Option<CutRef> {
        self.manifest().waiting.as_ref().map(|w| w.newest().cut.id)
    }

    /// The cut of the export whose import is awaited.
    pub fn awaited_import(&self) -> Option<Cut> {
        self.manifest().waiting.as_ref().map(|w| w.record.cut.clone())
    }
}

/// The record of a cut that is the bottom of a chain.
pub(crate) fn record(cut: &Cut, disks: &[DiskSpec]) -> CutRecord {
    let mut sizes: Vec<_> = disks.iter().map(|d| (d.id, d.size)).collect();
    sizes.sort_by_key(|(disk, _)| *disk);
    CutRecord { cut: cut.clone(), follows: CutDigest::ZERO, kept: true, locked: false, definition: None, sizes }
}

fn check(m: &Manifest, session: Session, cut: &Cut, disks: &[DiskSpec]) -> Result<(), AwaitError> {
    session::check(m, session)?;
    if cut.id.generation > session.generation {
        return Err(AwaitError::FutureGeneration { given: cut.id.generation, session: session.generation });
    }
    if m.base.is_some() {
        return Err(AwaitError::Published);
    }
    check_disks(m, disks).map_or(Ok(()), |what| Err(AwaitError::Disks { what }))
}

/// What is wrong with disks that are to become the replica's.
pub(crate) fn check_disks(m: &Manifest, disks: &[DiskSpec]) -> Option<&'static str> {
    let mut ids: Vec<_> = disks.iter().map(|d| d.id).collect();
    ids.sort();
    if ids.is_empty() || ids.windows(2).any(|w| w[0] == w[1]) {
        return Some("one is listed twice, or none at all");
    }
    for disk in disks {
        let Some(known) = m.disks.iter().find(|d| d.spec.id == disk.id) else { return Some("one is not known here") };
        if known.spec.key != disk.key {
            return Some("one is another than the one known here");
        }
        if disk.size > DiskSpec::SIZE_MAX || disk.size == 0 || !disk.size.is_multiple_of(512) {
            return Some("one has an impossible size");
        }
    }
    None
}
