//! Failovers and tests: writable overlays on the runs of a chosen cut.
//!
//! ```text
//!            begin                 commit
//! (nothing) ──────► active ──────────────────► committed
//!            begin       │ revert   (the overlays are the VM's disks, nothing above the cut is left)
//! (nothing) ──────► test ┴──────► (nothing)
//! ```
//!
//! Beginning: the overlays are made and synced under names that nothing refers to, then one change of the manifest
//! records the failover and, unless it is a test, the raised generation. So before that change nothing has happened,
//! and after it every lower generation is refused. Only then may the caller start anything.
//!
//! The runs and the base are never written by a failover: reverting throws the overlays away, and everything is as it
//! was, but for the generation, which never falls. Committing records that the overlays are the disks for good and
//! drops what lies above the cut; it copies nothing, and there is no way back.

use std::path::PathBuf;
use std::sync::Arc;

use understudy_model::{CutDigest, DiskId, ErrorKind, Generation, PointId, SessionNumber};
use understudy_run::overlay::{self, OverlayError};
use understudy_run::{Backing, BackingFormat};

use super::points::{Pin, PointError};
use super::{Marks, Space, VmStore};
use crate::FailoverStage;
use crate::adapt::FileSink;
use crate::checkpoints::CrashPoint;
use crate::error::{ChangeError, FileError};
use crate::manifest::{Below, FAILOVERS_MAX, FailoverRecord, Manifest};
use crate::paths::{self, FileNumber};

/// Names a failover or test of one VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FailoverId(pub u64);

impl std::fmt::Display for FailoverId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        FileNumber(self.0).fmt(f)
    }
}

/// What is begun.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FailoverPurpose {
    /// A throw-away copy, beside replication.
    Test,
    /// Taking over, in this generation, which is above every one before.
    TakeOver {
        /// The new generation.
        generation: Generation,
    },
}

/// A failover as it is recorded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FailoverReport {
    /// Its name.
    pub id: FailoverId,
    /// The cut it stands on.
    pub cut: CutDigest,
    /// How far it is.
    pub stage: FailoverStage,
}

/// Why a failover is not begun, reverted or committed.
#[derive(Debug, thiserror::Error)]
pub enum FailoverError {
    /// The point is not served.
    #[error("cannot fail over to the recovery point")]
    Point(#[from] PointError),
    /// Another failover is in force.
    #[error("failover {id} is in force")]
    InForce {
        /// The other one.
        id: FailoverId,
    },
    /// Too many tests at once.
    #[error("there are {FAILOVERS_MAX} failovers and tests already")]
    TooMany,
    /// The generation is not above every one before.
    #[error("generation {given} is not above {held}")]
    Generation {
        /// What was given.
        given: Generation,
        /// The highest seen.
        held: Generation,
    },
    /// There is no failover of this name.
    #[error("there is no failover {id}")]
    Unknown {
        /// What was asked for.
        id: FailoverId,
    },
    /// The failover is at another stage.
    #[error("failover {id} cannot be {what}")]
    Stage {
        /// The failover.
        id: FailoverId,
        /// What was asked for.
        what: &'static str,
    },
    /// A test stands on a cut that committing would drop.
    #[error("test {id} stands on a newer recovery point")]
    TestAbove {
        /// The test.
        id: FailoverId,
    },
    /// A point that committing would drop is locked.
    #[error("recovery point {point} is newer and locked")]
    LockedAbove {
        /// The point.
        point: PointId,
    },
    /// An overlay could not be made.
    #[error("cannot make an overlay for {disk}")]
    Overlay {
        /// The disk.
        disk: DiskId,
        /// Why.
        #[source]
        err: OverlayError,
    },
    /// A file could not be used.
    #[error("cannot carry out a failover")]
    File(#[from] FileError),
    /// It could not be recorded.
    #[error("cannot record a failover")]
    Change(#[from] ChangeError),
}

impl FailoverError {
    /// What the caller does next.
    pub fn kind(&self) -> ErrorKind {
        match self {
            FailoverError::Point(err) => err.kind(),
            FailoverError::Overlay { err, .. } => err.kind(),
            FailoverError::File(err) => err.kind(),
            FailoverError::Change(err) => err.kind(),
            _ => ErrorKind::Refused,
        }
    }

    fn is_no_space(&self) -> bool {
        match self {
            FailoverError::Overlay { err: OverlayError::Write(err), .. } => crate::files::is_no_space(err),
            FailoverError::File(err) | FailoverError::Change(ChangeError::File(err)) => err.is_no_space(),
            _ => false,
        }
    }
}

impl VmStore {
    /// Begins a failover or test on a point. When this returns, overlays, record and raised generation are durable.
    pub fn begin_failover(
        self: &Arc<Self>,
        point: PointId,
        purpose: FailoverPurpose,
    ) -> Result<FailoverId, FailoverError> {
        self.check_going()?;
        let pin = Pin::point(self, point)?;
        check_begin(&pin.manifest, purpose)?;
        let number = self.next_number();
        let mut begun = self.begin_pinned(&pin, number, purpose);
        if begun.as_ref().is_err_and(FailoverError::is_no_space) && self.shared.reserve.release() {
            self.drop_overlays(number);
            begun = self.begin_pinned(&pin, number, purpose);
        }
        if begun.is_err() && self.stopped().is_none() {
            self.drop_overlays(number);
        }
        begun.map(|()| FailoverId(number.0))
    }

    fn begin_pinned(&self, pin: &Pin, number: FileNumber, purpose: FailoverPurpose) -> Result<(), FailoverError> {
        let manifest = &pin.manifest;
        let record = manifest.record(pin.height).expect("a pinned cut is in its manifest");
        self.reached(CrashPoint::FailoverBeforeOverlay)?;
        self.place.ensure_dir(&paths::failover_dir(number))?;
        for (disk, size) in &record.sizes {
            self.make_overlay(number, *disk, *size, manifest.top_file(*disk, pin.height))?;
        }
        for dir in [&paths::failover_dir(number), paths::FAILOVER] {
            self.place.sync_dir(dir).map_err(|err| self.judge(err))?;
        }
        self.reached(CrashPoint::FailoverOverlay)?;
        let marks = Marks {
            before: Some(CrashPoint::FailoverBeforeGeneration),
            swapped: Some(CrashPoint::FailoverGenerationSynced),
            ..Marks::default()
        };
        let cut = record.digest();
        let mut writer = self.lock();
        self.change_marked(&mut writer, Space::Reserved, &marks, |m| {
            check_begin(m, purpose)?;
            let stage = match purpose {
                FailoverPurpose::Test => FailoverStage::Test,
                FailoverPurpose::TakeOver { generation } => {
                    (m.generation, m.session) = (generation, SessionNumber(0));
                    FailoverStage::Active
                }
            };
            m.failovers.push(FailoverRecord { number, cut, stage });
            Ok(())
        })
    }

    fn make_overlay(&self, number: FileNumber, disk: DiskId, size: u64, below: Below) -> Result<(), FailoverError> {
        let path = paths::overlay(number, disk);
        let file = self.place.create_anew(&path)?;
        let (name, format) = match below {
            Below::Base => (paths::base(disk), BackingFormat::Raw),
            Below::Run(run) => (paths::run(disk, run), BackingFormat::Qcow2),
        };
        let backing = Backing::new(format!("../../{name}"), format).expect("the names we make are plain");
        let written = overlay::write_empty(FileSink(file.clone()), size, overlay::OVERLAY_CLUSTER_BITS, Some(&backing));
        written.map_err(|err| FailoverError::Overlay { disk, err })?;
        Ok(self.place.sync(&file, &path).map_err(|err| self.judge(err))?)
    }

    /// Undoes a failover or ends a test: its overlays are thrown away, and everything is as it was before.
    pub fn revert_failover(&self, id: FailoverId) -> Result<(), FailoverError> {
        let marks = Marks { swapped: Some(CrashPoint::FailoverRevertMid), ..Marks::default() };
        self.change_marked(&mut self.lock(), Space::Reserved, &marks, |m| {
            let index = find(m, id)?;
            if m.failovers[index].stage == FailoverStage::Committed {
                return Err(FailoverError::Stage { id, what: "reverted: it is final" });
            }
            m.failovers.remove(index);
            super::points::drop_closed_definitions(m);
            Ok(())
        })?;
        self.drop_overlays(FileNumber(id.0));
        Ok(())
    }

    /// Makes a failover final: its overlays are the VM's disks from now on, cuts above its own are gone, and nothing
    /// is received any more. There is no way back.
    pub fn commit_failover(&self, id: FailoverId) -> Result<(), FailoverError> {
        self.reached(CrashPoint::FailoverCommitBegin)?;
        let marks = Marks { swapped: Some(CrashPoint::FailoverCommitMid), ..Marks::default() };
        self.change_marked(&mut self.lock(), Space::Reserved, &marks, |m| commit(m, id))?;
        Ok(self.reached(CrashPoint::FailoverCommitDone)?)
    }

    /// Where an outsider finds the overlays of a failover.
    pub fn overlay_paths(&self, id: FailoverId) -> Result<Vec<(DiskId, PathBuf)>, FailoverError> {
        let manifest = self.manifest();
        let failover = &manifest.failovers[find(&manifest, id)?];
        Ok(overlays(&manifest, failover)
            .into_iter()
            .map(|disk| (disk, self.place.outside(&paths::overlay(failover.number, disk))))
            .collect())
    }

    /// All failovers and tests.
    pub fn failovers(&self) -> Vec<FailoverReport> {
        let report = |f: &FailoverRecord| FailoverReport { id: FailoverId(f.number.0), cut: f.cut, stage: f.stage };
        self.manifest().failovers.iter().map(report).collect()
    }

    /// Overlays that nothing refers to. What cannot be unlinked now goes at the next opening.
    fn drop_overlays(&self, number: FileNumber) {
        if let Err(err) = remove_overlays(&self.place, number) {
            tracing::warn!(vm = %self.vm, error = %crate::error::chain_of(&err), "a leftover stays until the next opening");
        }
    }
}

/// Unlinks a failover's directory with everything in it.
pub(crate) fn remove_overlays(place: &crate::place::Place, number: FileNumber) -> Result<(), FileError> {
    let dir = paths::failover_dir(number);
    for entry in place.list_if_there(&dir)? {
        place.unlink_if_there(&format!("{dir}/{}", entry.name))?;
    }
    match place.remove_dir(&dir) {
        Err(err) if err.err.kind() == std::io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// The disks that a failover has overlays for.
pub(crate) fn overlays(manifest: &Manifest, failover: &FailoverRecord) -> Vec<DiskId> {
    let height = manifest.height_of(failover.cut).expect("a failover's cut stays while the failover does");
    let record = manifest.record(height).expect("a height of the chain has a record");
    record.sizes.iter().map(|(disk, _)| *disk).collect()
}

fn check_begin(m: &Manifest, purpose: FailoverPurpose) -> Result<(), FailoverError> {
    if m.failovers.len() >= FAILOVERS_MAX {
        return Err(FailoverError::TooMany);
    }
    let FailoverPurpose::TakeOver { generation } = purpose else { return Ok(()) };
    if let Some(other) = m.active().or(m.committed()) {
        return Err(FailoverError::InForce { id: FailoverId(other.number.0) });
    }
    if generation <= m.generation {
        return Err(FailoverError::Generation { given: generation, held: m.generation });
    }
    Ok(())
}

fn find(m: &Manifest, id: FailoverId) -> Result<usize, FailoverError> {
    m.failovers.iter().position(|f| f.number.0 == id.0).ok_or(FailoverError::Unknown { id })
}

fn commit(m: &mut Manifest, id: FailoverId) -> Result<(), FailoverError> {
    let index = find(m, id)?;
    if m.failovers[index].stage != FailoverStage::Active {
        return Err(FailoverError::Stage { id, what: "committed" });
    }
    let height = m.height_of(m.failovers[index].cut).expect("a failover's cut stays while the failover does");
    let above = |cut: CutDigest| m.height_of(cut).is_some_and(|h| h > height);
    if let Some(test) = m.failovers.iter().find(|f| above(f.cut)) {
        return Err(FailoverError::TestAbove { id: FailoverId(test.number.0) });
    }
    if let Some(locked) = m.links[height..].iter().find(|l| l.record.locked) {
        return Err(FailoverError::LockedAbove { point: locked.record.cut.point() });
    }
    m.links.truncate(height);
    m.failovers[index].stage = FailoverStage::Committed;
    // Disks of dropped cuts keep their bases only if a cut that stays has them.
    let base = m.base.as_mut().expect("a chain has a base");
    let sizes = base.record.iter().chain(m.links.iter().map(|l| &l.record)).flat_map(|r| &r.sizes);
    let stay: Vec<DiskId> = sizes.map(|(disk, _)| *disk).collect();
    base.files.retain(|f| stay.contains(&f.disk));
    let newest = m.newest().expect("the failover's cut is left").clone();
    for disk in &mut m.disks {
        disk.removed = newest.size(disk.spec.id).is_none();
        disk.spec.size = newest.size(disk.spec.id).unwrap_or(disk.spec.size);
    }
    super::points::drop_closed_definitions(m);
    Ok(())
}
