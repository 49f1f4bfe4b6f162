//! Planting a seed: a raw image that an operator brought, put where an initial copy will look for what it need not send.
//!
//! Nothing is believed of it; the copy compares every block. So all that matters here is that the file is not lost and
//! not half there: a seed that is moved is recorded before it moves, one that is copied after it was copied.

use std::sync::Arc;

use understudy_model::{DiskId, DiskSpec, ErrorKind};
use understudy_run::pace::Pace;

use super::super::sums::{BASE_BLOCK, is_zero};
use super::super::{Space, VmStore};
use crate::checkpoints::CrashPoint;
use crate::error::{At, ChangeError, FileError};
use crate::files::{Access, FileRef, OutsideFile, data_ranges, must_copy, read_exact_at, set_len, write_all_at};
use crate::manifest::Manifest;
use crate::paths;

/// A raw image to begin with.
pub struct SeedFile {
    /// The file.
    pub file: OutsideFile,
    /// It may be moved into the store and is then gone from where it was.
    pub take: bool,
}

/// How a seed was brought in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Planting {
    /// Moved.
    Moved,
    /// As a file that shares its bytes with the one that was given.
    Shared,
    /// Copied.
    Copied,
}

/// Why a seed is not planted. The file that was given is where it was, unless it had been moved already and the
/// replica stopped.
#[derive(Debug, thiserror::Error)]
pub enum SeedError {
    /// The VM has no such disk.
    #[error("{disk} is none of the VM's disks")]
    UnknownDisk {
        /// What was asked for.
        disk: DiskId,
    },
    /// A copy is there, or under way.
    #[error("an initial copy has begun")]
    Begun,
    /// The replica is to come from an export.
    #[error("the replica awaits the import of its initial replication")]
    AwaitsImport,
    /// Another transfer is under way.
    #[error("another transfer to this replica is under way")]
    Busy,
    /// The relationship was removed here.
    #[error("the relationship was removed on this side")]
    Detached,
    /// It is longer than the disk, and so no image of it.
    #[error("{path} has {len} bytes, and {disk} has {size}")]
    TooLong {
        /// Where it is.
        path: String,
        /// Its length.
        len: u64,
        /// The disk.
        disk: DiskId,
        /// The disk's size.
        size: u64,
    },
    /// It could not be read.
    #[error("cannot read {path}")]
    Read {
        /// Where it is.
        path: String,
        /// Why.
        #[source]
        err: std::io::Error,
    },
    /// The pace said to stop.
    #[error("planting was cancelled")]
    Cancelled,
    /// What is left of the disk is kept for upkeep and failover.
    #[error("no space left for a seed: {free} bytes are free, {floor} are kept")]
    NoSpace {
        /// Bytes free.
        free: u64,
        /// Bytes that are left alone.
        floor: u64,
    },
    /// A file could not be used.
    #[error("cannot plant a seed")]
    File(#[from] FileError),
    /// It could not be recorded.
    #[error("cannot record a seed")]
    Change(#[from] ChangeError),
}

impl SeedError {
    /// What the caller does next.
    pub fn kind(&self) -> ErrorKind {
        match self {
            SeedError::Busy | SeedError::Cancelled => ErrorKind::Retry,
            SeedError::NoSpace { .. } | SeedError::Read { .. } => ErrorKind::Operator,
            SeedError::File(err) => err.kind(),
            SeedError::Change(err) => err.kind(),
            _ => ErrorKind::Refused,
        }
    }
}

/// Bytes that are copied at a time.
const PIECE: u64 = 1 << 20;

impl VmStore {
    /// Plants a seed for a disk, before any copy has begun; another one planted before is replaced. Where the seed is
    /// shorter than the disk, zeros follow. A copy begun in [`super::BaseMode::Compare`] starts from it.
    pub fn plant_seed(
        self: &Arc<Self>,
        disk: DiskId,
        seed: &SeedFile,
        pace: &mut Pace<'_>,
    ) -> Result<Planting, SeedError> {
        self.check_going()?;
        let spec = check(&self.manifest(), disk)?;
        let path = seed.file.path().display().to_string();
        let len = seed.file.size().map_err(|err| SeedError::Read { path: path.clone(), err })?;
        if len > spec.size {
            return Err(SeedError::TooLong { path, len, disk, size: spec.size });
        }
        let _planting = self.claim_planting().ok_or(SeedError::Busy)?;
        if seed.take && self.move_seed(&spec, seed)? {
            return Ok(Planting::Moved);
        }
        let staged = paths::staged_other(self.next_number());
        let planted = self.copy_seed(&spec, seed, &staged, pace);
        planted.inspect_err(|_| self.discard(std::slice::from_ref(&staged)))
    }

    /// Moves the seed if that can be done.
    fn move_seed(&self, spec: &DiskSpec, seed: &SeedFile) -> Result<bool, SeedError> {
        self.reached(CrashPoint::SeedBeforePlace)?;
        // From here on recovery leaves alone what it finds under the name.
        self.record_seed(spec.id)?;
        let path = paths::staged_base(spec.id);
        match crate::files::again(|| self.place.files().take(&seed.file, &self.place.path(&path))) {
            Err(err) if must_copy(&err) => return Ok(false),
            other => other.at("move a seed to", &self.place.path(&path))?,
        }
        // As long as it could still be found in its old place, it must be what it was.
        self.place.sync_dir(paths::STAGING).map_err(|err| self.judge(err))?;
        self.reached(CrashPoint::SeedPlaced)?;
        self.extend_seed(spec)?;
        Ok(true)
    }

    /// A seed becomes as long as its disk, durably. One that is not there is passed over.
    pub(super) fn extend_seed(&self, spec: &DiskSpec) -> Result<(), FileError> {
        let path = paths::staged_base(spec.id);
        let Some(file) = self.place.open_if_there(&path, Access::Write)? else { return Ok(()) };
        if self.place.len(&file, &path)? < spec.size {
            set_len(&*file, spec.size).at("size", &self.place.path(&path)).map_err(|err| self.judge(err))?;
        }
        self.place.sync(&file, &path).map_err(|err| self.judge(err))
    }

    fn copy_seed(
        &self,
        spec: &DiskSpec,
        seed: &SeedFile,
        staged: &str,
        pace: &mut Pace<'_>,
    ) -> Result<Planting, SeedError> {
        let shared = crate::files::again(|| self.place.files().share(&seed.file, &self.place.path(staged)));
        let (file, planting) = match shared {
            Ok(()) => (self.place.open(staged, Access::Write)?, Planting::Shared),
            Err(err) if must_copy(&err) => {
                let file = self.place.create_anew(staged)?;
                self.copy_bytes(seed, &file, staged, pace)?;
                (file, Planting::Copied)
            }
            Err(err) => return Err(FileError::new("share a seed with", self.place.path(staged), err).into()),
        };
        set_len(&*file, spec.size).at("size", &self.place.path(staged)).map_err(|err| self.judge(err))?;
        self.place.sync(&file, staged).map_err(|err| self.judge(err))?;
        self.reached(CrashPoint::SeedBeforePlace)?;
        self.place.rename(staged, &paths::staged_base(spec.id))?;
        self.place.sync_dir(paths::STAGING).map_err(|err| self.judge(err))?;
        self.reached(CrashPoint::SeedPlaced)?;
        self.record_seed(spec.id)?;
        Ok(planting)
    }

    /// Copies what is not zero.
    fn copy_bytes(&self, seed: &SeedFile, to: &FileRef, staged: &str, pace: &mut Pace<'_>) -> Result<(), SeedError> {
        let unreadable = |err| SeedError::Read { path: seed.file.path().display().to_string(), err };
        let mut buffer = vec![0; PIECE as usize];
        for range in data_ranges(seed.file.file(), 0) {
            let range = range.map_err(unreadable)?;
            let mut at = range.start;
            while at < range.end {
                let piece = &mut buffer[..(range.end - at).min(PIECE - at % PIECE) as usize];
                read_exact_at(seed.file.file(), at, piece).map_err(unreadable)?;
                self.write_piece(to, staged, at, piece)?;
                at += piece.len() as u64;
                self.reached(CrashPoint::SeedMidCopy)?;
                self.check_going()?;
                if let Err((free, floor)) = self.spare_space()? {
                    return Err(SeedError::NoSpace { free, floor });
                }
                if pace(piece.len() as u64).is_break() {
                    return Err(SeedError::Cancelled);
                }
            }
        }
        Ok(())
    }

    fn write_piece(&self, to: &FileRef, staged: &str, at: u64, piece: &[u8]) -> Result<(), FileError> {
        let blocks = piece.chunks(BASE_BLOCK as usize).zip((at..).step_by(BASE_BLOCK as usize));
        for (block, at) in blocks.filter(|(block, _)| !is_zero(block)) {
            let written = write_all_at(&**to, at, block);
            written.map_err(|err| self.judge(FileError::new("write", self.place.path(staged), err)))?;
        }
        Ok(())
    }

    fn record_seed(&self, disk: DiskId) -> Result<(), SeedError> {
        if self.manifest().seeds.contains(&disk) {
            return Ok(());
        }
        self.change(Space::Spare, |m| {
            check(m, disk)?;
            m.seeds.push(disk);
            Ok(())
        })
    }

    /// Disks for which a seed was planted and no copy has begun.
    pub fn seeds(&self) -> Vec<DiskId> {
        self.manifest().seeds.clone()
    }
}

fn check(manifest: &Manifest, disk: DiskId) -> Result<DiskSpec, SeedError> {
    if manifest.detached {
        return Err(SeedError::Detached);
    }
    if manifest.waiting.is_some() {
        return Err(SeedError::AwaitsImport);
    }
    if manifest.base.is_some() || manifest.initial.is_some() {
        return Err(SeedError::Begun);
    }
    manifest.current_disks().find(|spec| spec.id == disk).cloned().ok_or(SeedError::UnknownDisk { disk })
}
