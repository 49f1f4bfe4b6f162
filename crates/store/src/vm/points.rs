//! Recovery points: which cuts can be opened, and which are kept. Whether a cut is worth keeping is decided elsewhere.

use std::path::PathBuf;
use std::sync::Arc;

use understudy_model::{Cut, CutDigest, DiskId, ErrorKind, PointId};

use super::{Space, VmStore};
use crate::error::ChangeError;
use crate::manifest::{Below, Height, Manifest};
use crate::paths;

/// A cut that can be opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PointReport {
    /// The cut.
    pub cut: Cut,
    /// It was kept as a recovery point.
    pub kept: bool,
    /// It may not be dropped.
    pub locked: bool,
    /// It is the newest state.
    pub newest: bool,
    /// A failover or test stands on it.
    pub in_use: bool,
    /// Its disks and their sizes.
    pub disks: Vec<(DiskId, u64)>,
    /// What is known to be damaged beneath it; such a point is not served.
    pub damaged: Option<String>,
    /// Whether it has a definition of the VM.
    pub has_definition: bool,
    /// Bytes of the runs that lead to it from the cut below; 0 for the one that is the base.
    pub stored: u64,
}

/// One file of a chain, as outsiders find it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChainFile {
    /// Where it is.
    pub path: PathBuf,
    /// Whether it is a raw image; all others are qcow2.
    pub is_raw: bool,
}

/// The files of one disk, the uppermost first, the raw base last.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskChain {
    /// The disk.
    pub disk: DiskId,
    /// Its size.
    pub size: u64,
    /// Its files.
    pub files: Vec<ChainFile>,
}

/// Why a point cannot be used, kept or dropped.
#[derive(Debug, thiserror::Error)]
pub enum PointError {
    /// There is none of this name.
    #[error("there is no recovery point {point}")]
    Unknown {
        /// What was asked for.
        point: PointId,
    },
    /// Nothing can be opened before the base was imported.
    #[error("the replica awaits the import of its initial replication")]
    AwaitsImport,
    /// Something it needs is damaged.
    #[error("recovery point {point} is damaged: {object}: {what}")]
    Damaged {
        /// The point.
        point: PointId,
        /// What is damaged.
        object: String,
        /// How.
        what: String,
    },
    /// It could not be recorded.
    #[error("cannot change recovery points")]
    Change(#[from] ChangeError),
}

impl PointError {
    /// What the caller does next.
    pub fn kind(&self) -> ErrorKind {
        match self {
            PointError::Unknown { .. } | PointError::AwaitsImport => ErrorKind::Refused,
            PointError::Damaged { .. } => ErrorKind::Corrupt,
            PointError::Change(err) => err.kind(),
        }
    }
}

impl VmStore {
    /// Every cut that can be opened, oldest first: recovery points, the newest state, and what failovers stand on.
    pub fn points(&self) -> Vec<PointReport> {
        let manifest = self.manifest();
        manifest.heights().filter(|h| manifest.is_open(*h)).filter_map(|h| report(&manifest, h)).collect()
    }

    /// The newest cut.
    pub fn newest(&self) -> Option<Cut> {
        self.manifest().newest().map(|r| r.cut.clone())
    }

    /// Every cut that a delta could begin at, oldest first. Those that are no points may be gone at the next look.
    pub fn cuts(&self) -> Vec<Cut> {
        let manifest = self.manifest();
        manifest.heights().filter_map(|h| manifest.record(h)).map(|r| r.cut.clone()).collect()
    }

    /// Sets which cuts are recovery points: those listed, and those that are locked. The newest state stays without
    /// being listed, and so does a cut that a failover stands on. Dropping only marks; [`VmStore::upkeep`] gives the
    /// space back.
    ///
    /// A listed cut that is not there, or can no longer be opened, refuses the whole.
    pub fn retain(&self, points: &[PointId]) -> Result<(), PointError> {
        self.change(Space::Reserved, |m| {
            for point in points {
                find_open(m, *point)?;
            }
            for height in m.heights().collect::<Vec<_>>() {
                let record = m.record_mut(height).expect("a height of the chain has a record");
                record.kept = record.locked || points.contains(&record.cut.point());
            }
            drop_closed_definitions(m);
            Ok(())
        })
    }

    /// Makes cuts recovery points no longer, as [`VmStore::retain`] does, but only those listed: a point that was sealed
    /// since the caller looked is not touched. Locked ones stay, and what is gone already is passed over.
    pub fn drop_points(&self, points: &[PointId]) -> Result<(), PointError> {
        self.change(Space::Reserved, |m| {
            for height in m.heights().collect::<Vec<_>>() {
                let record = m.record_mut(height).expect("a height of the chain has a record");
                record.kept &= record.locked || !points.contains(&record.cut.point());
            }
            drop_closed_definitions(m);
            Ok(())
        })
    }

    /// Locks a point against being dropped, or ends its lock. Whether a lock's time is over is decided elsewhere.
    pub fn set_locked(&self, point: PointId, locked: bool) -> Result<(), PointError> {
        self.change(Space::Reserved, |m| {
            let height = find_open(m, point)?;
            let record = m.record_mut(height).expect("a height of the chain has a record");
            record.locked = locked;
            record.kept |= locked;
            Ok(())
        })
    }

    /// Where the files of a point are, disk by disk. They stay as they are only while the point is in use.
    pub fn chain(&self, point: PointId) -> Result<Vec<DiskChain>, PointError> {
        let manifest = self.manifest();
        let height = find_served(&manifest, point)?;
        let record = manifest.record(height).expect("a height of the chain has a record");
        Ok(record.sizes.iter().map(|(disk, size)| self.disk_chain(&manifest, *disk, *size, height)).collect())
    }

    pub(crate) fn disk_chain(&self, manifest: &Manifest, disk: DiskId, size: u64, height: Height) -> DiskChain {
        let mut files = Vec::new();
        let mut next = manifest.top_file(disk, height);
        while let Below::Run(number) = next {
            files.push(ChainFile { path: self.place.outside(&paths::run(disk, number)), is_raw: false });
            next = below(manifest, disk, number);
        }
        files.push(ChainFile { path: self.place.outside(&paths::base(disk)), is_raw: true });
        DiskChain { disk, size, files }
    }
}

/// What a run's, or stub's, header names.
fn below(manifest: &Manifest, disk: DiskId, number: crate::FileNumber) -> Below {
    let mut runs = manifest.links.iter().filter_map(|l| l.run(disk)?.file);
    runs.find(|f| f.number == number).map_or(Below::Base, |f| f.below)
}

fn report(manifest: &Manifest, height: Height) -> Option<PointReport> {
    let record = manifest.record(height)?;
    Some(PointReport {
        cut: record.cut.clone(),
        kept: record.kept,
        locked: record.locked,
        newest: manifest.top() == Some(height),
        in_use: manifest.failover_on(record.digest()),
        disks: record.sizes.clone(),
        damaged: manifest.damage_below(height).map(|d| format!("{}: {}", d.object, d.what)),
        has_definition: record.definition.is_some(),
        stored: height.checked_sub(1).map_or(0, |link| manifest.links[link].len()),
    })
}

/// The height of a point that may be opened.
pub(crate) fn find_open(manifest: &Manifest, point: PointId) -> Result<Height, PointError> {
    if manifest.waiting.is_some() {
        return Err(PointError::AwaitsImport);
    }
    let is = |height: &Height| manifest.record(*height).is_some_and(|r| r.cut.point() == point);
    manifest.heights().find(|h| is(h) && manifest.is_open(*h)).ok_or(PointError::Unknown { point })
}

/// The height of a point that may be opened and of which nothing is known to be damaged.
pub(crate) fn find_served(manifest: &Manifest, point: PointId) -> Result<Height, PointError> {
    let height = find_open(manifest, point)?;
    match manifest.damage_below(height) {
        None => Ok(height),
        Some(d) => Err(PointError::Damaged { point, object: d.object.to_string(), what: d.what.clone() }),
    }
}

/// Cuts that cannot be opened any more need no definition.
pub(crate) fn drop_closed_definitions(m: &mut Manifest) {
    for height in m.heights().collect::<Vec<_>>() {
        if !m.is_open(height) {
            m.record_mut(height).expect("a height of the chain has a record").definition = None;
        }
    }
    m.drop_unused_definitions();
}

/// A cut that nothing at or below may be changed while somebody reads it.
pub(crate) struct Pin {
    vm: Arc<VmStore>,
    pub(crate) manifest: Arc<Manifest>,
    pub(crate) height: Height,
    cut: CutDigest,
}

impl Pin {
    /// Pins a point that may be served.
    pub(crate) fn point(vm: &Arc<VmStore>, point: PointId) -> Result<Self, PointError> {
        let mut writer = vm.lock();
        vm.check_going()?;
        let manifest = vm.manifest();
        let height = find_served(&manifest, point)?;
        let cut = manifest.record(height).expect("a height of the chain has a record").digest();
        writer.pin(cut);
        Ok(Self { vm: vm.clone(), manifest, height, cut })
    }

    /// Pins a cut if it is the newest, whether or not it can be served.
    pub(crate) fn newest(vm: &Arc<VmStore>, cut: CutDigest) -> Result<Option<Self>, ChangeError> {
        let mut writer = vm.lock();
        vm.check_going()?;
        let manifest = vm.manifest();
        let height = manifest.top().filter(|top| manifest.record(*top).is_some_and(|r| r.digest() == cut));
        Ok(height.map(|height| {
            writer.pin(cut);
            Self { vm: vm.clone(), manifest, height, cut }
        }))
    }

    pub(crate) fn vm(&self) -> &Arc<VmStore> {
        &self.vm
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        self.vm.lock().unpin(self.cut);
    }
}
