//! Images of a VM that is off: what is known of them, and cuts of them without a QEMU of the VM's.
//!
//! A VM that is off does not write, so there is nothing to freeze; what must be shown is that nobody else wrote either.
//!
//! | known of the image | then |
//! |---|---|
//! | its stamp at the base, and that is its stamp now | nothing changed |
//! | its stamp at the base, and it has another now | somebody changed it: resynchronisation |
//! | nothing, for the VM was on at the base; it is a qcow2 whose maps cover the base | what the maps hold changed |
//! | nothing, and no maps, or older ones than had begun at the base | resynchronisation |
//!
//! What somebody writes between the last cut of a VM that is off and its start is not seen, unless it makes the image
//! another file.
//!
//! Maps are not rotated meanwhile. They go on holding what they held when the VM is started again, which is too much and
//! never too little.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use async_trait::async_trait;
use tokio::sync::OwnedMutexGuard;
use understudy_model::{Consistency, CutNumber, DiskId, DiskSpec, Extent, ExtentSet, Timestamp};

use super::Shared;
use super::capture::now;
use super::idle::Idle;
use crate::driver::{
    CutRequest, DiskInfo, DiskMaps, DiskReader, Error, FrozenCut, ImageFormat, ImageRecord, ImageStamp, LostTracking,
    MapInfo, MapOwner, Result,
};
use crate::offline::{ImageFacts, OfflineError, StoppedDisk, StoppedDisks, StoppedReader, inspect};

/// Where distributions put the storage daemon; it belongs to the QEMU tools.
const STORAGE_DAEMONS: &[&str] = &["/usr/bin/qemu-storage-daemon", "/usr/local/bin/qemu-storage-daemon"];

/// The records of disks of a VM that is on: where their images lie. Stamps mean nothing then.
pub fn records(disks: Vec<(DiskId, DiskInfo, Option<CutNumber>)>) -> Vec<ImageRecord> {
    let record = |(disk, info, map): (DiskId, DiskInfo, Option<CutNumber>)| {
        Some(ImageRecord { disk, path: info.path?, format: info.format, stamp: None, map })
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
    let (stopped, maps): (Vec<_>, Vec<_>) = judged.into_iter().unzip();
    let record = |stamp: &dyn Fn(&StoppedDisk) -> Option<ImageStamp>| {
        let each = stopped.iter().zip(&maps);
        each.map(|(disk, map)| record(disk, stamp(disk), *map)).collect::<Vec<_>>()
    };
    let (consistency, shortfall) = reached(request.consistency);
    if stopped.iter().all(|disk| disk.unchanged_at.is_some()) {
        let images = record(&|disk| disk.unchanged_at);
        return Ok(Box::new(Idle::of(&request.disks, taken_at, consistency, shortfall, images, slot)));
    }
    // A VM that ended in the middle of a cut, and our own end with it, leaves that cut's scratch files.
    let scratch = shared.config.scratch_dir.clone();
    if let Err(err) = super::scratch::sweep(&scratch) {
        tracing::warn!(directory = %scratch.display(), %err, "scratch space of an earlier cut is still taken");
    }
    let directory = shared.config.runtime_dir.join("stopped");
    // Where it lies may have been cleared, with the host's start, since the VM was last on.
    std::fs::create_dir_all(&shared.config.runtime_dir)
        .map_err(|err| Error::host(format!("make {}", shared.config.runtime_dir.display()), err))?;
    let disks = StoppedDisks::open(storage_daemon()?, &directory, &stopped).await?;
    for spec in &request.disks {
        let found = disks.reader(spec.id).map_or(0, DiskReader::size);
        if found != spec.size {
            disks.close().await;
            return Err(Error::Resized { disk: spec.key.clone(), expected: spec.size, found });
        }
    }
    let images = record(&|disk| disks.stamp(disk.disk));
    Ok(Box::new(StoppedCut { disks, taken_at, consistency, shortfall, images, _slot: slot }))
}

/// A guest that is off cannot freeze its file systems. If it was shut down it has put them in order itself, but nobody
/// knows whether it was.
fn reached(asked: Consistency) -> (Consistency, Option<String>) {
    match asked {
        Consistency::Application => (Consistency::Standard, Some("the VM is off".into())),
        asked => (asked, None),
    }
}

fn record(disk: &StoppedDisk, stamp: Option<ImageStamp>, map: Option<CutNumber>) -> ImageRecord {
    ImageRecord { disk: disk.disk, path: disk.path.clone(), format: disk.format, stamp, map }
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

impl Look {
    /// Decides from where the changes of this disk are to be known, and which map is its youngest. Blocking.
    fn judge(self) -> Result<(StoppedDisk, Option<CutNumber>)> {
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
        match record.stamp {
            Some(stamp) if stamp == facts.stamp => Ok((disk, record.map)),
            None if record.format == ImageFormat::Qcow2 => {
                let lost = |lost| Error::tracking(&spec.key, lost);
                let (maps, names) = maps_of(&spec, &facts, &owner);
                maps.covers(base).map_err(lost)?;
                maps.reaches(record.map).map_err(lost)?;
                disk.maps = names;
                Ok((disk, maps.youngest()))
            }
            _ => Err(Error::tracking(&spec.key, LostTracking::ChangedWhileOff)),
        }
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
        self.disks.dirty(disk)
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
