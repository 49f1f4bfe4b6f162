//! Receiving an initial copy: into sparse files in staging, resumable, invisible until the first cycle is sealed.
//!
//! It may begin with what lies in staging already: a seed that an operator planted ([`seed`]), or what an earlier
//! attempt brought. Then the source offers hashes first, and sends what differs ([`offer`]).
//!
//! The copy of a running VM's disks is no state they were ever in; the first cycle carries what was written while it
//! was made. So the base is published together with the first run, and nothing is shown before
//! ([`super::receive`]).
//!
//! Invariant: everything below a disk's position is durable and what the source has. Above it anything may lie, and is
//! written or compared again; no checksum of it is believed.

mod error;
mod lend;
mod offer;
pub(crate) mod seed;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, RwLockReadGuard};

use understudy_model::{CutNumber, DiskId, DiskSpec, Extent, ExtentSet, VmId};

use super::sums::{BASE_BLOCK, SummedBase};
use super::{Space, Transfer, VmStore, session};
use crate::Session;
use crate::checkpoints::CrashPoint;
use crate::error::{At, FileError};
use crate::files::{Access, FileRef, set_len};
use crate::manifest::{InitialDisk, Manifest};
use crate::paths;
pub use error::BaseError;
use lend::Lenders;

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

/// What an initial copy begins with.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum BaseMode {
    /// Empty disks, unless it goes on with the same attempt.
    #[default]
    Fresh,
    /// What lies in staging, whoever brought it: it is compared with what the source offers.
    Compare {
        /// Other replicas of this store from whose bases equal blocks may be taken: of VMs that the source may know,
        /// since it learns which of its blocks they have.
        lenders: Vec<VmId>,
    },
}

/// Pieces beyond the contiguous part that are kept account of between two syncs, per disk.
const PIECES_MAX: usize = 65_536;

/// A disk with its staged base and its durable position.
type Begun = (DiskSpec, SummedBase, u64);

/// An initial copy being received. Any number of threads may write; dropping it gives nothing up.
pub struct BaseReceiver {
    vm: Arc<VmStore>,
    session: Session,
    attempt: CutNumber,
    claim: u64,
    /// Whether what lies in staging was looked at in a way that allows to compare with it.
    compares: bool,
    disks: BTreeMap<DiskId, Mutex<BaseDisk>>,
}

struct BaseDisk {
    base: SummedBase,
    lenders: Lenders,
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

    /// Notes that a piece is what the source has.
    fn account(&mut self, piece: Extent) -> Result<(), BaseError> {
        self.written.insert(piece);
        if self.written.count() > PIECES_MAX { Err(BaseError::Scattered) } else { Ok(()) }
    }
}

impl VmStore {
    /// Begins an initial copy with empty disks, or resumes the one of this attempt. What another attempt left rests on
    /// other tracking, and nothing is built upon it.
    pub fn begin_base(self: &Arc<Self>, session: Session, attempt: CutNumber) -> Result<BaseReceiver, BaseError> {
        self.begin_base_in(session, attempt, &BaseMode::Fresh)
    }

    /// Begins an initial copy, or resumes the one of this attempt from its durable positions. In
    /// [`BaseMode::Compare`] another attempt goes through everything from the beginning, and keeps what is equal.
    pub fn begin_base_in(
        self: &Arc<Self>,
        session: Session,
        attempt: CutNumber,
        mode: &BaseMode,
    ) -> Result<BaseReceiver, BaseError> {
        let manifest = self.manifest();
        check_open(&manifest, session)?;
        self.check_going()?;
        let claim = self.claim_receiving(session, Transfer::Base).ok_or(BaseError::Busy)?;
        // What a superseded receiver is writing at this moment ends before this one begins.
        drop(self.base_io.write().expect("nothing panics while a base is changed"));
        let begun = self.begin_claimed(session, attempt, mode, &manifest);
        let disks = begun.inspect_err(|_| self.end_receiving(claim))?;
        let compares = *mode != BaseMode::Fresh;
        Ok(BaseReceiver { vm: self.clone(), session, attempt, claim, compares, disks })
    }

    fn begin_claimed(
        &self,
        session: Session,
        attempt: CutNumber,
        mode: &BaseMode,
        manifest: &Manifest,
    ) -> Result<BTreeMap<DiskId, Mutex<BaseDisk>>, BaseError> {
        let is_same = manifest.attempt() == Some(attempt);
        let bases = match if is_same { self.resume_base(mode, manifest)? } else { None } {
            Some(bases) => bases,
            None => self.restart_base(session, attempt, mode, manifest)?,
        };
        let disks = bases.into_iter().map(|(spec, base, durable)| {
            let lenders = Lenders::find(self, mode, &spec);
            let written = ExtentSet::new();
            (spec.id, Mutex::new(BaseDisk { base, lenders, size: spec.size, durable, written, begun: is_same }))
        });
        Ok(disks.collect())
    }

    /// The files of the copy under way; `None` if one of them is gone.
    fn resume_base(&self, mode: &BaseMode, manifest: &Manifest) -> Result<Option<Vec<Begun>>, BaseError> {
        let mut bases = Vec::new();
        for initial in manifest.initial.iter().flatten() {
            let spec = manifest.current_disks().find(|spec| spec.id == initial.disk);
            let spec = spec.ok_or(BaseError::UnknownDisk { disk: initial.disk })?;
            let Some(data) = self.open_staged(spec)? else { return Ok(None) };
            if *mode != BaseMode::Fresh {
                self.look_anew(spec, &data)?;
            }
            let sums = self.place.open_if_there(&paths::staged_base_sums(spec.id), Access::Write)?;
            let Some(sums) = sums else { return Ok(None) };
            bases.push((spec.clone(), SummedBase::new(data, sums), initial.position));
        }
        Ok(Some(bases))
    }

    /// A staged base, if it is there and of the right length.
    fn open_staged(&self, spec: &DiskSpec) -> Result<Option<FileRef>, BaseError> {
        let path = paths::staged_base(spec.id);
        let Some(data) = self.place.open_if_there(&path, Access::Write)? else { return Ok(None) };
        let fits = self.place.len(&data, &path)? == spec.size;
        Ok(fits.then_some(data))
    }

    /// What is read from now on is what the disk has, not what is remembered of a sync that failed.
    fn look_anew(&self, spec: &DiskSpec, data: &FileRef) -> Result<(), BaseError> {
        let path = paths::staged_base(spec.id);
        self.place.sync(data, &path).map_err(|err| self.judge(err))?;
        Ok(data.forget_cached().at("read anew", &self.place.path(&path))?)
    }

    fn restart_base(
        &self,
        session: Session,
        attempt: CutNumber,
        mode: &BaseMode,
        manifest: &Manifest,
    ) -> Result<Vec<Begun>, BaseError> {
        let kept = match mode {
            BaseMode::Fresh => Vec::new(),
            BaseMode::Compare { .. } => staged_disks(manifest),
        };
        // The positions go first: they must never vouch for a file that is not the one they were measured on.
        if manifest.initial.is_some() || manifest.seeds != kept || manifest.waiting.is_some() {
            self.save_positions(session, |m| {
                m.drop_waiting();
                (m.initial, m.seeds) = (None, kept.clone());
            })?;
        }
        let mut bases = Vec::new();
        for spec in manifest.current_disks() {
            let base = match kept.contains(&spec.id) {
                true => self.keep_staged(spec)?,
                false => None,
            };
            let base = match base {
                Some(base) => base,
                None => self.create_base(&paths::staged_base(spec.id), &paths::staged_base_sums(spec.id), spec.size)?,
            };
            bases.push((spec.clone(), base, 0));
        }
        self.place.sync_dir(paths::STAGING).map_err(|err| self.judge(err))?;
        let initial = bases.iter().map(|(spec, ..)| InitialDisk { disk: spec.id, attempt, position: 0 }).collect();
        self.save_positions(session, |m| (m.initial, m.seeds) = (Some(initial), Vec::new()))?;
        Ok(bases)
    }

    /// A staged base under an empty table of checksums; `None` if it is gone, or is not this disk's.
    fn keep_staged(&self, spec: &DiskSpec) -> Result<Option<SummedBase>, BaseError> {
        self.extend_seed(spec)?;
        let Some(data) = self.open_staged(spec)? else { return Ok(None) };
        self.look_anew(spec, &data)?;
        let path = paths::staged_base_sums(spec.id);
        let sums = match self.place.open_if_there(&path, Access::Write)? {
            Some(sums) => sums,
            None => self.place.create(&path)?,
        };
        SummedBase::size_table(&sums, spec.size).at("size", &self.place.path(&path))?;
        self.place.sync(&sums, &path).map_err(|err| self.judge(err))?;
        Ok(Some(SummedBase::new(data, sums)))
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

/// Disks of which something lies in staging.
fn staged_disks(manifest: &Manifest) -> Vec<DiskId> {
    let of_attempt = manifest.initial.iter().flatten().map(|i| i.disk);
    of_attempt.chain(manifest.seeds.iter().copied()).collect()
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
        let mut entry = self.admit(disk)?;
        let _still = self.still()?;
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
        write.map_err(|err| self.failed(disk, err))?;
        entry.account(Extent::new(from, len))
    }

    /// Whether anything may be changed now, and the disk of which it is asked.
    fn admit(&self, disk: DiskId) -> Result<MutexGuard<'_, BaseDisk>, BaseError> {
        check_open(&self.vm.manifest(), self.session)?;
        self.vm.check_going()?;
        if let Err((free, floor)) = self.vm.spare_space()? {
            return Err(BaseError::NoSpace { free, floor });
        }
        let entry = self.disks.get(&disk).ok_or(BaseError::UnknownDisk { disk })?;
        Ok(entry.lock().expect("no write of a base panics half-way"))
    }

    /// Holds back whoever supersedes this receiver, unless that has happened.
    fn still(&self) -> Result<RwLockReadGuard<'_, ()>, BaseError> {
        let still = self.vm.base_io.read().expect("nothing panics while a base is changed");
        if self.vm.is_receiving(self.claim) { Ok(still) } else { Err(BaseError::Busy) }
    }

    fn failed(&self, disk: DiskId, err: std::io::Error) -> FileError {
        let path = self.vm.place.path(&paths::staged_base(disk));
        self.vm.judge(FileError::new("write", path, err))
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
