//! Images of a VM that is off: what is known of them, and cuts of them without a QEMU of the VM's.
//!
//! A VM that is off does not write, so there is nothing to freeze; what must be shown is that nobody else wrote either.
//!
//! | known of the image | then |
//! |---|---|
//! | its stamp at the base, and that is its stamp now | nothing changed |
//! | its stamp at the base, and it has another now; it is a qcow2 whose maps hold all they held then | the VM was on in between: what the maps hold changed |
//! | its stamp at the base, and it has another now; anything else | somebody changed it: resynchronisation |
//! | nothing, for the VM was on at the base; it is a qcow2 whose maps cover the base | what the maps hold changed |
//! | nothing, and no maps, or older ones than had begun at the base | resynchronisation |
//!
//! What somebody writes past the maps between the last cut of a VM that is off and its start is not seen, unless it makes
//! the image another file or takes something out of its maps.
//!
//! Why maps that hold all they held show that an image is no earlier state: say it is one, of the time t before the base.
//! What the VM wrote between t and the base is in the maps as they were at the base, hence in those of now, hence sent
//! again. What was written after t in the history that this image has is in its maps anyway.
//!
//! Maps are not rotated meanwhile. They go on holding what they held when the VM is started again, which is too much and
//! never too little.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use async_trait::async_trait;
use tokio::sync::OwnedMutexGuard;
use understudy_model::{Consistency, CutNumber, DiskId, DiskSpec, Extent, ExtentSet, Timestamp};

use super::Shared;
use super::capture::now;
use super::idle::Idle;
use crate::driver::{
    CutRequest, DiskInfo, DiskMaps, DiskReader, Error, FrozenCut, ImageFormat, ImageRecord, LostTracking, MapInfo,
    MapOwner, Result,
};
use crate::offline::{ImageFacts, OfflineError, StoppedDisk, StoppedDisks, StoppedReader, inspect};

/// Where distributions put the storage daemon; it belongs to the QEMU tools.
const STORAGE_DAEMONS: &[&str] = &["/usr/bin/qemu-storage-daemon", "/usr/local/bin/qemu-storage-daemon"];

/// The records of disks of a VM that is on: where their images lie. Stamps mean nothing then.
pub fn records(disks: Vec<(DiskId, DiskInfo, Option<CutNumber>)>) -> Vec<ImageRecord> {
    let record = |(disk, info, map): (DiskId, DiskInfo, Option<CutNumber>)| {
        Some(ImageRecord { disk, path: info.path?, format: info.format, stamp: None, map, held: None })
    };
    disks.into_iter().filter_map(record).collect()
}

/// A cut of a VM that no QEMU runs.
pub async fn cut(shared: &Shared, request: CutRequest, slot: OwnedMutexGuard<()>) -> Result<Box<dyn FrozenCut>> {
    if request.disks.is_empty() {
        return Err(Error::Misuse("a cut of no disk".into()));
    }
    let looks = request.disks.iter().map(|spec| look(spec, &request)).collect::<Result<Vec<_>>>()?;
    let taken_at = now();
    let judged = tokio::task::spawn_blocking(move || looks.into_iter().map(Look::judge).collect::<Result<Vec<_>>>());
    let judged = judged.await.unwrap_or_else(|err| std::panic::resume_unwind(err.into_panic()))?;
    let (consistency, shortfall) = reached(request.consistency);
    if judged.iter().all(|known| known.is_unchanged) && !request.has_more() {
        let images = judged.into_iter().map(|known| known.record(None)).collect();
        return Ok(Box::new(Idle::of(&request.disks, taken_at, consistency, shortfall, images, slot)));
    }
    sweep(shared)?;
    let directory = shared.config.runtime_dir.join("stopped");
    let stopped: Vec<StoppedDisk> = judged.iter().map(|known| known.disk.clone()).collect();
    let disks = StoppedDisks::open(storage_daemon()?, &directory, &stopped).await?;
    if let Err(err) = check(&disks, &request.disks, &judged) {
        disks.close().await;
        return Err(err);
    }
    let images = judged.into_iter().map(|known| known.record(Some(&disks))).collect();
    let due = request.disks.iter().map(|spec| (spec.id, due(&disks, spec.id, &request))).collect();
    Ok(Box::new(StoppedCut { disks, due, taken_at, consistency, shortfall, images, _slot: slot }))
}

fn due(disks: &StoppedDisks, disk: DiskId, request: &CutRequest) -> ExtentSet {
    let mut due = disks.dirty(disk).cloned().unwrap_or_default();
    request.also(disk).into_iter().for_each(|also| due.union(also));
    due
}

/// A VM that ended in the middle of a cut, and our own end with it, leaves that cut's scratch files.
fn sweep(shared: &Shared) -> Result<()> {
    let scratch = &shared.config.scratch_dir;
    if let Err(err) = super::scratch::sweep(scratch) {
        tracing::warn!(directory = %scratch.display(), %err, "scratch space of an earlier cut is still taken");
    }
    // Where it lies may have been cleared, with the host's start, since the VM was last on.
    std::fs::create_dir_all(&shared.config.runtime_dir)
        .map_err(|err| Error::host(format!("make {}", shared.config.runtime_dir.display()), err))
}

/// Whether the disks have the sizes they had, and their maps hold what they held.
fn check(disks: &StoppedDisks, specs: &[DiskSpec], judged: &[Known]) -> Result<()> {
    for (spec, known) in specs.iter().zip(judged) {
        let found = disks.reader(spec.id).map_or(0, DiskReader::size);
        if found != spec.size {
            return Err(Error::Resized { disk: spec.key.clone(), expected: spec.size, found });
        }
        if !known.is_unchanged && !holds(disks.dirty(spec.id), known.held.as_ref()) {
            return Err(Error::tracking(&spec.key, LostTracking::ChangedWhileOff));
        }
    }
    Ok(())
}

/// Whether maps hold all that they held at the base, if that is known to matter.
pub fn holds(now: Option<&ExtentSet>, then: Option<&ExtentSet>) -> bool {
    let Some(then) = then else { return true };
    now.is_some_and(|now| then.iter().all(|extent| now.contains(extent)))
}

/// A guest that is off cannot freeze its file systems. If it was shut down it has put them in order itself, but nobody
/// knows whether it was.
fn reached(asked: Consistency) -> (Consistency, Option<String>) {
    match asked {
        Consistency::Application => (Consistency::Standard, Some("the VM is off".into())),
        asked => (asked, None),
    }
}

fn storage_daemon() -> Result<&'static Path> {
    let found = STORAGE_DAEMONS.iter().map(Path::new).find(|path| path.exists());
    found.ok_or_else(|| Error::Unsupported {
        what: "the VM is off, and qemu-storage-daemon, which reads its images, is not installed".into(),
        remedy: "install the QEMU tools (Debian: qemu-utils or qemu-system-common)".into(),
    })
}

/// One image to be looked at.
struct Look {
    spec: DiskSpec,
    record: ImageRecord,
    owner: MapOwner,
    base: CutNumber,
}

fn look(spec: &DiskSpec, request: &CutRequest) -> Result<Look> {
    let record = request.images.iter().find(|image| image.disk == spec.id);
    let record = record.cloned().ok_or_else(|| Error::DiskMissing {
        disk: spec.key.clone(),
        why: "the VM is off, and no cut has told where its image lies".into(),
    })?;
    Ok(Look { spec: spec.clone(), record, owner: request.owner, base: request.base })
}

/// What is known of an image before it is opened.
struct Known {
    disk: StoppedDisk,
    /// Its youngest map.
    map: Option<CutNumber>,
    /// What its maps must hold at least, to be a later state than at the base.
    held: Option<ExtentSet>,
    is_unchanged: bool,
}

impl Known {
    /// What is to be remembered, if the disks were opened, or without that if none has changed.
    fn record(self, opened: Option<&StoppedDisks>) -> ImageRecord {
        let Known { disk, map, held, is_unchanged } = self;
        let (stamp, held) = match opened {
            Some(disks) if !is_unchanged => (disks.stamp(disk.disk), disks.dirty(disk.disk).cloned()),
            _ => (disk.unchanged_at, held),
        };
        let held = held.filter(|held| held.count() <= ImageRecord::HELD_MAX);
        ImageRecord { disk: disk.disk, path: disk.path, format: disk.format, stamp, map, held }
    }
}

impl Look {
    /// Decides from where the changes of this disk are to be known. Blocking.
    fn judge(self) -> Result<Known> {
        let Look { spec, record, owner, base } = self;
        if is_locked(&record.path) {
            let path = record.path.display();
            return Err(Error::Busy(format!("some process uses {path}, but no QEMU answers at the monitor")));
        }
        let facts = inspect(&record.path, record.format)
            .map_err(|err| Error::from(OfflineError::Image { key: spec.key.clone(), err }))?;
        let mut disk = StoppedDisk {
            disk: spec.id,
            key: spec.key.clone(),
            path: record.path,
            format: record.format,
            maps: Vec::new(),
            unchanged_at: record.stamp,
        };
        let held = record.held;
        if record.stamp == Some(facts.stamp) {
            return Ok(Known { disk, map: record.map, held, is_unchanged: true });
        }
        let tells = record.format == ImageFormat::Qcow2 && (record.stamp.is_none() || held.is_some());
        if !tells {
            return Err(Error::tracking(&spec.key, LostTracking::ChangedWhileOff));
        }
        let lost = |lost| Error::tracking(&spec.key, lost);
        let (maps, names) = maps_of(&spec, &facts, &owner);
        maps.covers(base).map_err(lost)?;
        maps.reaches(record.map).map_err(lost)?;
        disk.maps = names;
        // It has another stamp than it had, so the maps are to be looked at.
        disk.unchanged_at = None;
        Ok(Known { disk, map: maps.youngest(), held, is_unchanged: false })
    }
}

/// The owner's maps in the image, and their names.
fn maps_of(spec: &DiskSpec, facts: &ImageFacts, owner: &MapOwner) -> (DiskMaps, Vec<String>) {
    let mut maps = DiskMaps { key: spec.key.clone(), size: spec.size, ..DiskMaps::default() };
    let mut names = Vec::new();
    for stored in &facts.bitmaps {
        let Some((_, number)) = MapOwner::parse(&stored.name).filter(|(other, _)| other == owner) else { continue };
        names.push(stored.name.clone());
        maps.maps.push(MapInfo {
            number,
            recording: stored.recording,
            inconsistent: stored.inconsistent,
            persistent: true,
            busy: false,
            granularity: stored.granularity,
            dirty: 0,
        });
    }
    maps.maps.sort_by_key(|map| map.number);
    (maps, names)
}

/// Whether some process holds a lock on the file, as every QEMU does on the images it uses. Where the kernel's table
/// names the file system differently than the file does, the answer is no; then the stamps must tell.
fn is_locked(path: &Path) -> bool {
    let Ok(found) = std::fs::metadata(path) else { return false };
    let device = found.dev();
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    let file = format!(" {major:02x}:{minor:02x}:{} ", found.ino());
    let table = std::fs::read_to_string("/proc/locks").unwrap_or_default();
    table.lines().any(|line| line.contains("OFDLCK") && line.contains(&file))
}

/// Whether the image of a VM that is on is another file than at the base, when it was off. Its stamp tells nothing more
/// once the VM writes to it. A path that is another one was changed by QEMU's own means, and those keep the maps or do
/// not.
pub fn is_exchanged(known: &ImageRecord, now: &DiskInfo) -> bool {
    let Some((stamp, path)) = known.stamp.zip(now.path.as_ref()).filter(|(_, path)| **path == known.path) else {
        return false;
    };
    let found = std::fs::metadata(path).map(|found| (found.dev(), found.ino()));
    found.is_ok_and(|found| found != (stamp.device, stamp.inode))
}

/// An open cut of a VM that is off.
struct StoppedCut {
    disks: StoppedDisks,
    due: BTreeMap<DiskId, ExtentSet>,
    taken_at: Timestamp,
    consistency: Consistency,
    shortfall: Option<String>,
    images: Vec<ImageRecord>,
    _slot: OwnedMutexGuard<()>,
}

#[async_trait]
impl FrozenCut for StoppedCut {
    fn taken_at(&self) -> Timestamp {
        self.taken_at
    }

    fn consistency(&self) -> Consistency {
        self.consistency
    }

    fn shortfall(&self) -> Option<&str> {
        self.shortfall.as_deref()
    }

    fn dirty(&self, disk: DiskId) -> Option<&ExtentSet> {
        self.due.get(&disk)
    }

    fn reader(&self, disk: DiskId) -> Option<&dyn DiskReader> {
        self.disks.reader(disk).map(|reader: &StoppedReader| reader as &dyn DiskReader)
    }

    async fn done_with(&self, _disk: DiskId, _extent: Extent) {}

    async fn ensure_intact(&self) -> Result<()> {
        Ok(self.disks.ensure_unchanged().await?)
    }

    fn images(&self) -> &[ImageRecord] {
        &self.images
    }

    async fn release(self: Box<Self>) -> Result<()> {
        self.disks.close().await;
        Ok(())
    }
}
