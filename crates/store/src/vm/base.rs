//! Receiving an initial copy: into sparse files in staging, resumable, invisible until the first cycle is sealed.
//!
//! The copy of a running VM's disks is no state they were ever in; the first cycle carries what was written while it
//! was made. So the base is published together with the first run, and nothing is shown before
//! ([`super::receive`]).
//!
//! Invariant: everything below a disk's position is durable. Above it anything may lie, and is written again.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use understudy_model::{CutNumber, DiskId, ErrorKind, Extent, ExtentSet};

use super::sums::{BASE_BLOCK, SummedBase};
use super::{Space, VmStore, session};
use crate::checkpoints::CrashPoint;
use crate::error::{At, ChangeError, FileError};
use crate::files::{Access, set_len};
use crate::manifest::{InitialDisk, Manifest};
use crate::paths;
use crate::{Session, SessionError};

/// A piece of a disk.
#[derive(Debug, Clone, Copy)]
pub enum BaseBytes<'a> {
    /// Its bytes.
    Data(&'a [u8]),
    /// So many bytes of zero.
    Zeros(u64),
}

impl BaseBytes<'_> {
    fn len(self) -> u64 {
        match self {
            BaseBytes::Data(bytes) => bytes.len() as u64,
            BaseBytes::Zeros(len) => len,
        }
    }
}

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
    /// The VM has no such disk.
    #[error("{disk} is none of the VM's disks")]
    UnknownDisk {
        /// What was asked for.
        disk: DiskId,
    },
    /// Pieces consist of whole blocks of [`BASE_BLOCK`] bytes, save at the disk's end.
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

/// Pieces beyond the contiguous part that are kept account of between two syncs, per disk.
const PIECES_MAX: usize = 65_536;

/// An initial copy being received. Any number of threads may write; dropping it gives nothing up.
pub struct BaseReceiver {
    vm: Arc<VmStore>,
    session: Session,
    attempt: CutNumber,
    claim: u64,
    disks: BTreeMap<DiskId, Mutex<BaseDisk>>,
}

struct BaseDisk {
    base: SummedBase,
    size: u64,
    /// Everything below is durable.
    durable: u64,
    /// What was written since, sorted.
    written: ExtentSet,
    begun: bool,
}

impl BaseDisk {
    /// End of what was written without a gap.
    fn contiguous(&self) -> u64 {
        match self.written.iter().next() {
            Some(first) if first.offset <= self.durable => first.end().max(self.durable),
            _ => self.durable,
        }
    }
}

impl VmStore {
    /// Begins an initial copy, or resumes the one of this attempt. What another attempt left rests on other tracking,
    /// and nothing is built upon it.
    pub fn begin_base(self: &Arc<Self>, session: Session, attempt: CutNumber) -> Result<BaseReceiver, BaseError> {
        let manifest = self.manifest();
        check_open(&manifest, session)?;
        self.check_going()?;
        let claim = self.claim_receiving(session).ok_or(BaseError::Busy)?;
        // What a superseded receiver is writing at this moment ends before this one begins.
        drop(self.base_io.write().expect("nothing panics while a base is changed"));
        let begun = self.begin_claimed(session, attempt, &manifest);
        let disks = begun.inspect_err(|_| self.end_receiving(claim))?;
        Ok(BaseReceiver { vm: self.clone(), session, attempt, claim, disks })
    }

    fn begin_claimed(
        &self,
        session: Session,
        attempt: CutNumber,
        manifest: &Manifest,
    ) -> Result<BTreeMap<DiskId, Mutex<BaseDisk>>, BaseError> {
        let is_same = manifest.attempt() == Some(attempt);
        match if is_same { self.resume_base(manifest)? } else { None } {
            Some(disks) => Ok(disks),
            None => self.restart_base(session, attempt, manifest),
        }
    }

    /// The files of the copy under way; `None` if one of them is gone.
    fn resume_base(&self, manifest: &Manifest) -> Result<Option<BTreeMap<DiskId, Mutex<BaseDisk>>>, BaseError> {
        let mut disks = BTreeMap::new();
        for initial in manifest.initial.iter().flatten() {
            let spec = manifest.current_disks().find(|spec| spec.id == initial.disk);
            let spec = spec.ok_or(BaseError::UnknownDisk { disk: initial.disk })?;
            let path = paths::staged_base(spec.id);
            let data = self.place.open_if_there(&path, Access::Write)?;
            let sums = self.place.open_if_there(&paths::staged_base_sums(spec.id), Access::Write)?;
            let (Some(data), Some(sums)) = (data, sums) else { return Ok(None) };
            if self.place.len(&data, &path)? != spec.size {
                return Ok(None);
            }
            let base = SummedBase::new(data, sums);
            let durable = initial.position;
            let disk = BaseDisk { base, size: spec.size, durable, written: ExtentSet::new(), begun: true };
            disks.insert(spec.id, Mutex::new(disk));
        }
        Ok(Some(disks))
    }

    fn restart_base(
        &self,
        session: Session,
        attempt: CutNumber,
        manifest: &Manifest,
    ) -> Result<BTreeMap<DiskId, Mutex<BaseDisk>>, BaseError> {
        // The positions go first: they must never vouch for a file that is not the one they were measured on.
        if manifest.initial.is_some() {
            self.save_positions(session, |m| m.initial = None)?;
        }
        let mut disks = BTreeMap::new();
        for spec in manifest.current_disks() {
            let base = self.create_base(&paths::staged_base(spec.id), &paths::staged_base_sums(spec.id), spec.size)?;
            let disk = BaseDisk { base, size: spec.size, durable: 0, written: ExtentSet::new(), begun: false };
            disks.insert(spec.id, Mutex::new(disk));
        }
        self.place.sync_dir(paths::STAGING).map_err(|err| self.judge(err))?;
        let initial = disks.keys().map(|disk| InitialDisk { disk: *disk, attempt, position: 0 }).collect();
        self.save_positions(session, |m| m.initial = Some(initial))?;
        Ok(disks)
    }

    fn save_positions(&self, session: Session, edit: impl FnOnce(&mut Manifest)) -> Result<(), BaseError> {
        self.change(Space::Spare, |m| {
            check_open(m, session)?;
            edit(m);
            Ok(())
        })
    }

    /// Makes an empty, sparse base and its checksums, synced under their names only once their directory is.
    pub(crate) fn create_base(&self, data: &str, sums: &str, size: u64) -> Result<SummedBase, FileError> {
        let (data_file, sums_file) = (self.place.create_anew(data)?, self.place.create_anew(sums)?);
        set_len(&*data_file, size).at("size", &self.place.path(data))?;
        SummedBase::size_table(&sums_file, size).at("size", &self.place.path(sums))?;
        self.place.sync(&data_file, data).map_err(|err| self.judge(err))?;
        self.place.sync(&sums_file, sums).map_err(|err| self.judge(err))?;
        Ok(SummedBase::new(data_file, sums_file))
    }

    /// The attempt whose initial copy lies in staging, if one does.
    pub fn base_attempt(&self) -> Option<CutNumber> {
        self.manifest().attempt()
    }

    /// How far the initial copy got, durably, per disk; none if none is under way.
    pub fn base_positions(&self) -> Option<Vec<(DiskId, u64)>> {
        let manifest = self.manifest();
        manifest.initial.as_ref().map(|disks| disks.iter().map(|d| (d.disk, d.position)).collect())
    }

    /// Refuses to take the last of the space.
    pub(crate) fn spare_space(&self) -> Result<Result<(), (u64, u64)>, FileError> {
        let floor = self.shared.options.receive_floor;
        let free = crate::files::again(|| self.place.files().free_space()).at("measure the space of", "the store")?;
        Ok(if free < floor { Err((free, floor)) } else { Ok(()) })
    }
}

/// Whether an initial copy may be received in this session.
fn check_open(manifest: &Manifest, session: Session) -> Result<(), BaseError> {
    session::check(manifest, session)?;
    if manifest.base.is_some() { Err(BaseError::Published) } else { Ok(()) }
}

impl BaseReceiver {
    /// Takes one piece of one disk. Pieces may come in any order; what lies below the durable position is passed
    /// over, since it is there already. Nothing is durable before [`BaseReceiver::sync`].
    pub fn write(&self, disk: DiskId, offset: u64, bytes: BaseBytes<'_>) -> Result<(), BaseError> {
        check_open(&self.vm.manifest(), self.session)?;
        self.vm.check_going()?;
        if let Err((free, floor)) = self.vm.spare_space()? {
            return Err(BaseError::NoSpace { free, floor });
        }
        let entry = self.disks.get(&disk).ok_or(BaseError::UnknownDisk { disk })?;
        let mut entry = entry.lock().expect("no write of a base panics half-way");
        let _still = self.vm.base_io.read().expect("nothing panics while a base is changed");
        if !self.vm.is_receiving(self.claim) {
            return Err(BaseError::Busy);
        }
        self.vm.reached(if entry.begun { CrashPoint::InitialMidExtent } else { CrashPoint::InitialFirstExtent })?;
        entry.begun = true;
        check_piece(offset, bytes.len(), entry.size)?;
        if bytes.len() == 0 || offset + bytes.len() <= entry.durable {
            return Ok(());
        }
        let skip = entry.durable.saturating_sub(offset);
        let (from, len) = (offset + skip, bytes.len() - skip);
        let write = match bytes {
            BaseBytes::Data(bytes) => entry.base.write_initial(from, &bytes[skip as usize..]),
            BaseBytes::Zeros(_) => entry.base.zero_initial(from, len),
        };
        let path = self.vm.place.path(&paths::staged_base(disk));
        write.map_err(|err| self.vm.judge(FileError::new("write", path, err)))?;
        entry.written.insert(Extent::new(from, len));
        if entry.written.count() > PIECES_MAX { Err(BaseError::Scattered) } else { Ok(()) }
    }

    /// Makes what was written durable and answers how far each disk now is without a gap.
    pub fn sync(&self) -> Result<Vec<(DiskId, u64)>, BaseError> {
        self.vm.reached(CrashPoint::InitialBeforeExtentSync)?;
        let mut positions = Vec::new();
        for (disk, entry) in &self.disks {
            let entry = entry.lock().expect("no write of a base panics half-way");
            let position = entry.contiguous();
            if position > entry.durable {
                let (data, sums) = (paths::staged_base(*disk), paths::staged_base_sums(*disk));
                self.vm.place.sync(&entry.base.data, &data).map_err(|err| self.vm.judge(err))?;
                self.vm.place.sync(&entry.base.sums, &sums).map_err(|err| self.vm.judge(err))?;
            }
            positions.push((*disk, position));
        }
        if self.vm.base_positions().as_ref() != Some(&positions) {
            let attempt = self.attempt;
            let entry = |(disk, position): &(DiskId, u64)| InitialDisk { disk: *disk, attempt, position: *position };
            let initial = positions.iter().map(entry).collect();
            self.vm.save_positions(self.session, |m| m.initial = Some(initial))?;
        }
        for (disk, position) in &positions {
            let mut entry = self.disks[disk].lock().expect("no write of a base panics half-way");
            entry.durable = *position;
            entry.written = entry.written.iter().filter(|e| e.end() > *position).collect();
        }
        self.vm.reached(CrashPoint::InitialAfterPositionSaved)?;
        Ok(positions)
    }

    /// How far each disk is, durably.
    pub fn positions(&self) -> Vec<(DiskId, u64)> {
        self.vm.base_positions().unwrap_or_default()
    }
}

impl Drop for BaseReceiver {
    fn drop(&mut self) {
        self.vm.end_receiving(self.claim);
    }
}

fn check_piece(offset: u64, len: u64, size: u64) -> Result<(), BaseError> {
    let end = offset.checked_add(len).filter(|end| *end <= size).ok_or(BaseError::OutOfRange { offset, len, size })?;
    let whole = offset.is_multiple_of(BASE_BLOCK) && (end.is_multiple_of(BASE_BLOCK) || end == size);
    if whole { Ok(()) } else { Err(BaseError::Unaligned { offset, len }) }
}
