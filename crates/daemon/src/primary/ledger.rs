//! What a comparison found to differ, durable: a comparison that is cut short goes on from here.
//!
//! One file for each relationship, replaced as a whole. It belongs to one attempt and one cut of the target; of another
//! one it is nothing.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use understudy_model::{CutDigest, CutNumber, DiskId, DiskSpec, Extent, ExtentSet};

/// Version of the form.
const VERSION: u32 = 1;
/// Most pieces noted of a disk: beyond, neighbours are united at ever coarser granules. 16 bytes each in memory.
const PIECES_MAX: usize = 1 << 18;

/// Where a comparison stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Comparison {
    /// Which attempt.
    pub attempt: CutNumber,
    /// The target's cut that is compared with.
    pub against: CutDigest,
    /// Each disk.
    pub disks: Vec<Standing>,
}

/// Where a comparison stands on one disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    /// The disk.
    pub disk: DiskId,
    /// Everything below was compared.
    pub position: u64,
    /// What differs of it.
    pub differing: ExtentSet,
}

impl Comparison {
    /// One that has not begun.
    pub fn new(attempt: CutNumber, against: CutDigest, disks: &[DiskSpec]) -> Self {
        let standing = |spec: &DiskSpec| Standing { disk: spec.id, position: 0, differing: ExtentSet::new() };
        Self { attempt, against, disks: disks.iter().map(standing).collect() }
    }

    /// Whether all of these disks were compared.
    pub fn is_complete(&self, disks: &[DiskSpec]) -> bool {
        disks.iter().all(|spec| self.disks.iter().any(|d| d.disk == spec.id && d.position == spec.size))
    }

    /// Bytes that differ.
    pub fn differing(&self) -> u64 {
        self.disks.iter().map(|d| d.differing.bytes()).sum()
    }
}

impl Standing {
    /// Notes that everything up to `position` was compared, and what of it differs.
    pub fn advance(&mut self, position: u64, differing: impl IntoIterator<Item = Extent>, size: u64) {
        differing.into_iter().for_each(|extent| self.differing.insert(extent));
        self.position = position;
        let mut granule = 64 << 10;
        while self.differing.count() > PIECES_MAX {
            self.differing = self.differing.aligned(granule, size);
            granule *= 4;
        }
    }
}

#[derive(Serialize, Deserialize)]
struct Stored {
    version: u32,
    attempt: u64,
    against: String,
    disks: Vec<StoredDisk>,
}

#[derive(Serialize, Deserialize)]
struct StoredDisk {
    disk: u16,
    position: u64,
    /// Pairs of offset and length.
    differing: Vec<(u64, u64)>,
}

/// The file of one relationship. Calls block.
#[derive(Debug, Clone)]
pub struct Ledger {
    path: PathBuf,
}

impl Ledger {
    /// The file at this path. It need not exist, nor its directory.
    pub fn at(path: PathBuf) -> Self {
        Self { path }
    }

    /// What was noted of this attempt. What cannot be read is as good as not noted: it is compared again.
    pub fn load(&self, attempt: CutNumber) -> Option<Comparison> {
        let bytes = std::fs::read(&self.path).ok()?;
        let stored: Stored = serde_json::from_slice(&bytes).ok()?;
        if stored.version != VERSION || stored.attempt != attempt.0 {
            return None;
        }
        let disk = |d: StoredDisk| Standing {
            disk: DiskId(d.disk),
            position: d.position,
            differing: d.differing.into_iter().map(|(offset, len)| Extent::new(offset, len)).collect(),
        };
        Some(Comparison {
            attempt,
            against: stored.against.parse().ok()?,
            disks: stored.disks.into_iter().map(disk).collect(),
        })
    }

    /// Notes it, durably.
    pub fn save(&self, comparison: &Comparison) -> io::Result<()> {
        let disk = |d: &Standing| StoredDisk {
            disk: d.disk.0,
            position: d.position,
            differing: d.differing.iter().map(|e| (e.offset, e.len)).collect(),
        };
        let stored = Stored {
            version: VERSION,
            attempt: comparison.attempt.0,
            against: comparison.against.to_string(),
            disks: comparison.disks.iter().map(disk).collect(),
        };
        let directory = self.path.parent().unwrap_or(Path::new("."));
        std::fs::create_dir_all(directory)?;
        let fresh = self.path.with_extension("new");
        let mut file = File::create(&fresh)?;
        serde_json::to_writer(io::BufWriter::new(&file), &stored)?;
        file.flush()?;
        file.sync_all()?;
        std::fs::rename(&fresh, &self.path)?;
        File::open(directory)?.sync_all()
    }

    /// Forgets it.
    pub fn forget(&self) -> io::Result<()> {
        match std::fs::remove_file(&self.path) {
            Err(err) if err.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn comparison() -> Comparison {
        let disks = [DiskSpec { id: DiskId(2), key: "id:vda".into(), size: 1 << 30 }];
        let mut comparison = Comparison::new(CutNumber(7), CutDigest([3; 32]), &disks);
        comparison.disks[0].advance(1 << 20, [Extent::new(4096, 512)], 1 << 30);
        assert!(!comparison.is_complete(&disks));
        comparison
    }

    #[test]
    fn what_was_noted_is_found_again_under_its_attempt_alone() {
        let dir = tempfile::tempdir().unwrap();
        let ledger = Ledger::at(dir.path().join("new").join("ledger.json"));
        assert_eq!(ledger.load(CutNumber(7)), None);
        ledger.save(&comparison()).unwrap();
        assert_eq!(ledger.load(CutNumber(7)), Some(comparison()));
        assert_eq!(ledger.load(CutNumber(8)), None);
        ledger.forget().unwrap();
        ledger.forget().unwrap();
        assert_eq!(ledger.load(CutNumber(7)), None);
    }

    #[test]
    fn a_torn_file_is_no_ledger() {
        let dir = tempfile::tempdir().unwrap();
        let ledger = Ledger::at(dir.path().join("ledger.json"));
        ledger.save(&comparison()).unwrap();
        let bytes = std::fs::read(dir.path().join("ledger.json")).unwrap();
        std::fs::write(dir.path().join("ledger.json"), &bytes[..bytes.len() / 2]).unwrap();
        assert_eq!(ledger.load(CutNumber(7)), None);
    }

    #[test]
    fn too_many_pieces_are_united() {
        let mut standing = Standing { disk: DiskId(0), position: 0, differing: ExtentSet::new() };
        let pieces = (0..PIECES_MAX as u64 + 1000).map(|at| Extent::new(at * 8192, 4096));
        let size = (PIECES_MAX as u64 + 1000) * 8192;
        standing.advance(size, pieces.clone(), size);
        assert!(standing.differing.count() <= PIECES_MAX);
        assert!(pieces.into_iter().all(|piece| standing.differing.contains(piece)));
    }
}
