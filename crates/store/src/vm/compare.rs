//! Holding the newest state against what a source says of its own: which blocks differ.
//!
//! The source makes claims, a hash for each block or "it is zero"; what is known here answers most of them, and the
//! rest is read, through the whole chain, and hashed. What cannot be read because it is damaged counts as different, so
//! that what comes next covers it. Whether to compare, and what becomes of the answer, is decided elsewhere.
//!
//! Invariant: "equal" is said only of bytes that were hashed where they lie, or of a block of the base whose checksum
//! is known and that no run touches.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};

use understudy_model::{Cut, CutDigest, DiskId, DiskSpec, ErrorKind};
use understudy_run::{ChainReader, EntryContent, PartHash, ReadError, Run, part_hash};

use super::VmStore;
use super::points::Pin;
use super::reader::{NumberedRun, RunOpenError, damage_of, hide_touched};
use super::sums::{BASE_BLOCK, BlockSum, CheckedBase, SummedBase, damaged_block, is_zero};
use crate::adapt::FileSource;
use crate::error::{ChangeError, FileError};
use crate::files::Access;
use crate::manifest::Object;

/// Most claims in one call: 256 MiB of a disk, so that an answer is never long in coming.
pub const CLAIMS_MAX: usize = 4096;
/// A block is told apart in so many parts.
pub const BLOCK_PARTS: usize = 16;
const PART: usize = BASE_BLOCK as usize / BLOCK_PARTS;
/// Claims may go past the disk's end, where it reads as zeros: it may have grown. No disk is larger than this.
const END_MAX: u64 = DiskSpec::SIZE_MAX + BASE_BLOCK;

/// What a source says of one block of [`BASE_BLOCK`] bytes. The last block of a disk is filled up with zeros.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BlockClaim {
    /// It is all zero.
    Zero,
    /// It is not, and its bytes and address hash to this ([`understudy_run::cluster_hash`]).
    Hash([u8; 32]),
}

impl BlockClaim {
    /// What is to be said of a block, given its bytes filled up with zeros to [`BASE_BLOCK`].
    pub fn of(address: u64, block: &[u8]) -> Self {
        match BlockSum::of(address, block) {
            BlockSum::Hash(hash) => BlockClaim::Hash(hash),
            _ => BlockClaim::Zero,
        }
    }

    pub(crate) fn sum(self) -> BlockSum {
        match self {
            BlockClaim::Zero => BlockSum::Zero,
            BlockClaim::Hash(hash) => BlockSum::Hash(hash),
        }
    }
}

/// Why nothing is said of a block.
#[derive(Debug, thiserror::Error)]
pub enum ComparisonError {
    /// Another cut is the newest, or there is none.
    #[error("cut {cut} is not the newest one here")]
    NotNewest {
        /// What was asked for.
        cut: CutDigest,
    },
    /// Nothing can be compared before the base was imported.
    #[error("the replica awaits the import of its initial replication")]
    AwaitsImport,
    /// The newest state has no such disk.
    #[error("{disk} is none of the newest state's disks")]
    UnknownDisk {
        /// What was asked for.
        disk: DiskId,
    },
    /// Claims are made of whole blocks, and of a bounded number of them at once.
    #[error("{count} claims from {offset} on make no sense")]
    Claims {
        /// Where they begin.
        offset: u64,
        /// How many they are.
        count: usize,
    },
    /// A part of the chain is damaged beyond what another cut on top could cover.
    #[error("{object} is damaged: {what}")]
    Damaged {
        /// Which part.
        object: Object,
        /// How.
        what: String,
    },
    /// Something could not be read, and is not known to be damaged.
    #[error("cannot read {disk}")]
    Read {
        /// The disk.
        disk: DiskId,
        /// Why.
        #[source]
        err: ReadError,
    },
    /// A file could not be opened.
    #[error("cannot compare")]
    File(#[from] FileError),
    /// The replica stopped or was removed.
    #[error("cannot compare")]
    Change(#[from] ChangeError),
}

impl ComparisonError {
    /// What the caller does next.
    pub fn kind(&self) -> ErrorKind {
        match self {
            ComparisonError::Damaged { .. } => ErrorKind::Corrupt,
            ComparisonError::Read { err, .. } => err.kind(),
            ComparisonError::File(err) => err.kind(),
            ComparisonError::Change(err) => err.kind(),
            _ => ErrorKind::Refused,
        }
    }
}

/// The newest state, held against claims. While it lives, nothing at or below that cut is changed. Several threads may
/// ask at once; those that ask of one disk take turns.
pub struct Comparison {
    pin: Pin,
    disks: Mutex<BTreeMap<DiskId, Arc<Mutex<Compared>>>>,
}

/// One disk, opened once for all the questions about it.
struct Compared {
    disk: DiskId,
    size: u64,
    base: SummedBase,
    /// Newest first.
    runs: Vec<NumberedRun>,
    chain: ChainReader<FileSource, CheckedBase<Arc<VmStore>>>,
    /// Something is wrong with the base: its checksums no longer stand for its bytes.
    distrusted: bool,
    block: Vec<u8>,
}

impl VmStore {
    /// Begins a comparison with a cut, which must be the newest. It need not be a recovery point.
    pub fn comparison(self: &Arc<Self>, cut: CutDigest) -> Result<Comparison, ComparisonError> {
        if self.manifest().waiting.is_some() {
            return Err(ComparisonError::AwaitsImport);
        }
        let pin = Pin::newest(self, cut)?.ok_or(ComparisonError::NotNewest { cut })?;
        Ok(Comparison { pin, disks: Mutex::default() })
    }
}

impl Comparison {
    /// The cut.
    pub fn cut(&self) -> &Cut {
        &self.record().cut
    }

    /// Its disks and their sizes.
    pub fn disks(&self) -> &[(DiskId, u64)] {
        &self.record().sizes
    }

    fn record(&self) -> &crate::manifest::CutRecord {
        self.pin.manifest.record(self.pin.height).expect("a pinned cut is in its manifest")
    }

    /// Which blocks differ from what is claimed of them: one answer for each block from the one at `offset` on, at
    /// most [`CLAIMS_MAX`]. Beyond its end a disk is zero.
    pub fn differing(&self, disk: DiskId, offset: u64, claims: &[BlockClaim]) -> Result<Vec<bool>, ComparisonError> {
        check_claims(offset, claims.len())?;
        let entry = self.open(disk)?;
        let mut entry = lock(&entry);
        let vm = self.pin.vm();
        let sums = entry.sums(vm, offset, claims.len())?;
        let addresses = (offset..).step_by(BASE_BLOCK as usize);
        addresses.zip(claims).zip(sums).map(|((at, claim), sum)| entry.differs(vm, at, claim.sum(), sum)).collect()
    }

    /// Which parts of a block differ, of [`BLOCK_PARTS`] equal ones, as bits from the lowest on. Of each part the
    /// source says its [`part_hash`]. A block that cannot be read differs in all of them.
    pub fn differing_parts(
        &self,
        disk: DiskId,
        offset: u64,
        parts: &[PartHash; BLOCK_PARTS],
    ) -> Result<u16, ComparisonError> {
        check_claims(offset, 1)?;
        let entry = self.open(disk)?;
        let mut entry = lock(&entry);
        if !entry.read(self.pin.vm(), offset)? {
            return Ok(u16::MAX);
        }
        let ours = entry.block.chunks(PART).zip((offset..).step_by(PART)).map(|(part, at)| part_hash(at, part));
        let differs = ours.zip(parts).map(|(ours, theirs)| ours != *theirs);
        Ok(differs.enumerate().fold(0, |mask, (i, differs)| mask | u16::from(differs) << i))
    }

    fn open(&self, disk: DiskId) -> Result<Arc<Mutex<Compared>>, ComparisonError> {
        let mut disks = self.disks.lock().expect("nothing panics while the list of disks is held");
        if let Some(entry) = disks.get(&disk) {
            return Ok(entry.clone());
        }
        let size = self.record().size(disk).ok_or(ComparisonError::UnknownDisk { disk })?;
        let entry = Arc::new(Mutex::new(self.begin(disk, size)?));
        disks.insert(disk, entry.clone());
        Ok(entry)
    }

    fn begin(&self, disk: DiskId, size: u64) -> Result<Compared, ComparisonError> {
        let vm = self.pin.vm();
        let runs = vm.open_runs(&self.pin.manifest, disk, self.pin.height);
        let runs = runs.map_err(|(object, err)| self.open_failed(disk, object, err))?;
        let base = || vm.open_base(disk, Access::Read).map_err(|err| self.base_failed(disk, err));
        let opened: Vec<Run<FileSource>> = runs.iter().map(|(_, run)| run.clone()).collect();
        let below = CheckedBase { vm: vm.clone(), base: base()? };
        let chain = ChainReader::new(&opened, below).map_err(|err| ComparisonError::Read { disk, err })?;
        let block = vec![0; BASE_BLOCK as usize];
        Ok(Compared { disk, size, base: base()?, runs, chain, distrusted: false, block })
    }

    fn open_failed(&self, disk: DiskId, object: Object, err: RunOpenError) -> ComparisonError {
        match err.damage() {
            Some(what) => self.damaged(object, what),
            None => ComparisonError::Read { disk, err: err.into_read() },
        }
    }

    fn base_failed(&self, disk: DiskId, err: FileError) -> ComparisonError {
        match err.err.kind() {
            std::io::ErrorKind::NotFound => self.damaged(Object::Base { disk }, "it is missing".to_owned()),
            _ => err.into(),
        }
    }

    fn damaged(&self, object: Object, what: String) -> ComparisonError {
        self.pin.vm().note_damage(object, &what);
        ComparisonError::Damaged { object, what }
    }
}

fn lock(entry: &Mutex<Compared>) -> MutexGuard<'_, Compared> {
    entry.lock().expect("no comparison panics half-way")
}

fn check_claims(offset: u64, count: usize) -> Result<(), ComparisonError> {
    let len = (count as u64).checked_mul(BASE_BLOCK);
    let end = len.and_then(|len| offset.checked_add(len));
    let inside = offset.is_multiple_of(BASE_BLOCK) && end.is_some_and(|end| end <= END_MAX);
    if inside && count <= CLAIMS_MAX { Ok(()) } else { Err(ComparisonError::Claims { offset, count }) }
}

impl Compared {
    /// What is known without reading.
    fn sums(&mut self, vm: &VmStore, offset: u64, count: usize) -> Result<Vec<BlockSum>, ComparisonError> {
        let disk = self.disk;
        self.distrusted |= vm.manifest().damage.iter().any(|d| d.object == Object::Base { disk });
        let read = |err| ComparisonError::Read { disk, err };
        let mut sums = match self.distrusted {
            true => vec![BlockSum::Unknown; count],
            false => self.base.sums(offset, count).map_err(|err| read(ReadError::Io(err)))?,
        };
        for (_, run) in &self.runs {
            hide_touched(run, offset, &mut sums).map_err(read)?;
        }
        let inside = self.size.saturating_sub(offset).div_ceil(BASE_BLOCK);
        sums.iter_mut().skip(inside as usize).for_each(|sum| *sum = BlockSum::Zero);
        Ok(sums)
    }

    fn differs(
        &mut self,
        vm: &VmStore,
        address: u64,
        claimed: BlockSum,
        known: BlockSum,
    ) -> Result<bool, ComparisonError> {
        if known != BlockSum::Unknown {
            return Ok(claimed != known);
        }
        if !self.read(vm, address)? {
            return Ok(true);
        }
        Ok(match claimed {
            BlockSum::Zero => !is_zero(&self.block),
            claimed => claimed != BlockSum::of(address, &self.block),
        })
    }

    /// Reads a block, filled up with zeros. `false` if it is damaged.
    fn read(&mut self, vm: &VmStore, address: u64) -> Result<bool, ComparisonError> {
        let inside = self.size.saturating_sub(address).min(BASE_BLOCK) as usize;
        self.block[inside..].fill(0);
        match self.chain.read_at(address, &mut self.block[..inside]) {
            Ok(()) => Ok(true),
            Err(err) => self.judge(vm, address, err).map(|()| false),
        }
    }

    /// Looks again at a block that could not be read. What is damaged is noted; what is not is an error that may pass.
    fn judge(&mut self, vm: &VmStore, address: u64, err: ReadError) -> Result<(), ComparisonError> {
        let Some((object, what)) = damage_of(&err).and_then(|_| self.find_damaged(vm, address)) else {
            return Err(ComparisonError::Read { disk: self.disk, err });
        };
        vm.note_damage(object, &what);
        Ok(())
    }

    fn find_damaged(&mut self, vm: &VmStore, address: u64) -> Option<(Object, String)> {
        let (disk, end) = (self.disk, address + BASE_BLOCK);
        let in_run = |run: &Run<FileSource>| probe(run, address, end).err().as_ref().and_then(damage_of);
        let of_runs = self
            .runs
            .iter()
            .find_map(|(number, run)| in_run(run).map(|what| (Object::Run { disk, number: *number }, what)));
        of_runs.or_else(|| self.find_in_base(vm, address).map(|what| (Object::Base { disk }, what)))
    }

    fn find_in_base(&mut self, vm: &VmStore, address: u64) -> Option<String> {
        let _still = vm.base_io.read().expect("nothing panics while a base is changed");
        let err = match self.base.check(address) {
            Ok(Ok(_)) => return None,
            Ok(Err(damaged)) => ReadError::Io(std::io::Error::new(std::io::ErrorKind::InvalidData, damaged)),
            Err(err) => ReadError::Io(err),
        };
        damaged_block(&err).map(ToString::to_string).or_else(|| damage_of(&err))
    }
}

/// Reads all that a run says of a range.
fn probe(run: &Run<FileSource>, from: u64, to: u64) -> Result<(), ReadError> {
    let (geometry, mut reader, mut position) = (*run.geometry(), run.reader()?, from);
    while let Some(entry) = reader.next_from(position)?.filter(|entry| entry.address < to) {
        if let EntryContent::Data { .. } = entry.content {
            reader.read_cluster(&entry)?;
        }
        position = entry.end(&geometry);
    }
    Ok(())
}
