//! Reading a point: every byte checked on its way out, and nothing served that is known to be damaged.

use std::sync::Arc;

use tracing::warn;
use understudy_model::{Cut, CutDigest, DiskId, ErrorKind, PointId};
use understudy_run::{ChainReader, ReadError, Run};

use super::definition::{Definition, DefinitionError};
use super::points::{Pin, PointError};
use super::sums::{BASE_BLOCK, BlockSum, CheckedBase, SummedBase, damaged_block};
use super::{Space, VmStore};
use crate::adapt::FileSource;
use crate::error::{ChangeError, FileError, chain_of};
use crate::files::Access;
use crate::manifest::{DAMAGE_MAX, DamageRecord, Height, Manifest, Object, RunRecord};
use crate::paths::{self, FileNumber};

/// Why a point cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum PointReadError {
    /// The point is not served.
    #[error("cannot open the recovery point")]
    Point(#[from] PointError),
    /// The point has no such disk.
    #[error("{disk} is none of the point's disks")]
    UnknownDisk {
        /// What was asked for.
        disk: DiskId,
    },
    /// What was asked for lies beyond the disk's end.
    #[error("{len} bytes at {offset} lie outside a disk of {size}")]
    OutOfRange {
        /// The offset.
        offset: u64,
        /// The length.
        len: u64,
        /// The disk's size.
        size: u64,
    },
    /// A part of the chain is damaged or cannot be read. It is not served from now on.
    #[error("cannot read {object}")]
    Damaged {
        /// Which part.
        object: Object,
        /// How.
        #[source]
        err: ReadError,
    },
    /// A part of the chain could not be read.
    #[error("cannot read {disk}")]
    Read {
        /// The disk.
        disk: DiskId,
        /// Why.
        #[source]
        err: ReadError,
    },
    /// A file could not be opened.
    #[error("cannot open a file of the recovery point")]
    File(#[from] FileError),
    /// The definition cannot be read.
    #[error("cannot read the VM's definition")]
    Definition(#[from] DefinitionError),
}

impl PointReadError {
    /// What the caller does next.
    pub fn kind(&self) -> ErrorKind {
        match self {
            PointReadError::Point(err) => err.kind(),
            PointReadError::Damaged { .. } => ErrorKind::Corrupt,
            PointReadError::Read { err, .. } => err.kind(),
            PointReadError::File(err) => err.kind(),
            PointReadError::Definition(err) => err.kind(),
            _ => ErrorKind::Refused,
        }
    }
}

/// An opened point. While it lives, nothing it needs is changed.
pub struct PointReader {
    pin: Pin,
}

/// Reads one disk of an opened point.
pub struct DiskReader<'a> {
    vm: &'a VmStore,
    disk: DiskId,
    size: u64,
    /// Numbers of the runs, newest first.
    numbers: Vec<FileNumber>,
    chain: ChainReader<FileSource, CheckedBase<&'a VmStore>>,
}

/// An opened run and the number of its file.
pub(crate) type NumberedRun = (FileNumber, Run<FileSource>);

/// What changed on one disk between two cuts that follow each other.
pub struct DeltaRun {
    /// The disk.
    pub disk: DiskId,
    /// Its size at the later cut.
    pub size: u64,
    /// The changed clusters; none if nothing changed.
    pub run: Option<Run<FileSource>>,
}

impl VmStore {
    /// Opens a point for reading.
    pub fn open_point(self: &Arc<Self>, point: PointId) -> Result<PointReader, PointReadError> {
        Ok(PointReader { pin: Pin::point(self, point)? })
    }

    /// Opens a run and sees that it is the one the manifest means.
    pub(crate) fn open_run(
        &self,
        disk: DiskId,
        record: &RunRecord,
        number: FileNumber,
        len: u64,
    ) -> Result<Run<FileSource>, RunOpenError> {
        let path = paths::run(disk, number);
        let file = self.place.open(&path, Access::Read)?;
        let found = self.place.len(&file, &path)?;
        if found != len {
            return Err(RunOpenError::Other { what: format!("it is {found} bytes long and not {len}") });
        }
        let run = Run::open(FileSource(file))?;
        if run.summary().digest != record.digest {
            return Err(RunOpenError::Other { what: "it is another run than the manifest says".to_owned() });
        }
        Ok(run)
    }

    pub(crate) fn open_base(&self, disk: DiskId, access: Access) -> Result<SummedBase, FileError> {
        let data = self.place.open(&paths::base(disk), access)?;
        Ok(SummedBase::new(data, self.place.open(&paths::base_sums(disk), access)?))
    }

    /// The runs of a disk up to a height, newest first.
    pub(crate) fn open_runs(
        &self,
        manifest: &Manifest,
        disk: DiskId,
        height: Height,
    ) -> Result<Vec<NumberedRun>, (Object, RunOpenError)> {
        let mut out = Vec::new();
        for record in manifest.links[..height].iter().rev().filter_map(|l| l.run(disk)) {
            let Some(file) = record.file else { continue };
            let run = self.open_run(disk, record, file.number, file.len);
            out.push((file.number, run.map_err(|err| (Object::Run { disk, number: file.number }, err))?));
        }
        Ok(out)
    }

    /// Records that something is damaged. Failing to is no reason to serve it: the caller has its error.
    pub(crate) fn note_damage(&self, object: Object, what: &str) {
        if self.manifest().damage.iter().any(|d| d.object == object) {
            return;
        }
        warn!(vm = %self.vm, %object, what, "damage found");
        let noted = self.change(Space::Reserved, |m| {
            m.damage.truncate(DAMAGE_MAX - 1);
            m.damage.push(DamageRecord { object, what: what.to_owned(), covered: None });
            Ok::<_, ChangeError>(())
        });
        if let Err(err) = noted {
            warn!(vm = %self.vm, error = %chain_of(&err), "cannot record damage");
        }
    }
}

/// Why a run that the manifest names cannot be opened.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RunOpenError {
    #[error("cannot open a run")]
    File(#[from] FileError),
    #[error("cannot read a run")]
    Read(#[from] ReadError),
    #[error("{what}")]
    Other { what: String },
}

impl RunOpenError {
    /// How the run is damaged, if that is what it is.
    pub(crate) fn damage(&self) -> Option<String> {
        match self {
            RunOpenError::File(err) if err.err.kind() == std::io::ErrorKind::NotFound => {
                Some("it is missing".to_owned())
            }
            RunOpenError::File(_) => None,
            RunOpenError::Read(err) => damage_of(err),
            RunOpenError::Other { what } => Some(what.clone()),
        }
    }

    pub(crate) fn into_read(self) -> ReadError {
        match self {
            RunOpenError::Read(err) => err,
            RunOpenError::File(err) => ReadError::Io(std::io::Error::new(err.err.kind(), err)),
            RunOpenError::Other { what } => ReadError::Io(std::io::Error::new(std::io::ErrorKind::InvalidData, what)),
        }
    }
}

/// How something is damaged, if an error of reading it says that it is.
pub(crate) fn damage_of(err: &ReadError) -> Option<String> {
    match err {
        ReadError::Damaged { .. } | ReadError::NotARun | ReadError::Version { .. } => Some(err.to_string()),
        ReadError::Io(io) if io.kind() == std::io::ErrorKind::UnexpectedEof => Some("it is too short".to_owned()),
        // What the disk cannot read is lost just as well.
        ReadError::Io(io) if io.raw_os_error() == Some(5) => Some("the disk cannot read it".to_owned()),
        _ => damaged_block(err).map(ToString::to_string),
    }
}

impl PointReader {
    /// The cut.
    pub fn cut(&self) -> &Cut {
        &self.record().cut
    }

    /// The cut that the uppermost runs follow: what a receiver of [`PointReader::delta`] must have. Zero if the point
    /// is the bottom of the chain.
    pub fn follows(&self) -> CutDigest {
        self.record().follows
    }

    /// Its disks and their sizes.
    pub fn disks(&self) -> &[(DiskId, u64)] {
        &self.record().sizes
    }

    fn record(&self) -> &crate::manifest::CutRecord {
        self.pin.manifest.record(self.pin.height).expect("a pinned cut is in its manifest")
    }

    /// The VM's definition at the cut.
    pub fn definition(&self) -> Result<Option<Definition>, PointReadError> {
        let Some(number) = self.record().definition else { return Ok(None) };
        let record = self.pin.manifest.definitions.iter().find(|d| d.number == number);
        let record = record.expect("a manifest has the definitions it refers to");
        let read = self.pin.vm().read_definition(record);
        if let Err(DefinitionError::Damaged { .. }) = &read {
            self.pin.vm().note_damage(Object::Definition { number }, "it does not have its hash");
        }
        Ok(Some(read?))
    }

    /// Begins reading one disk. Several may be read at once, each by its own reader.
    pub fn disk(&self, disk: DiskId) -> Result<DiskReader<'_>, PointReadError> {
        let vm = self.pin.vm();
        let size = self.record().size(disk).ok_or(PointReadError::UnknownDisk { disk })?;
        let runs = vm.open_runs(&self.pin.manifest, disk, self.pin.height);
        let runs = runs.map_err(|(object, err)| self.open_failed(disk, object, err))?;
        let base = CheckedBase { vm: &**vm, base: self.open_base(disk)? };
        let (numbers, runs): (Vec<_>, Vec<_>) = runs.into_iter().unzip();
        let chain = ChainReader::new(&runs, base).map_err(|err| PointReadError::Read { disk, err })?;
        Ok(DiskReader { vm, disk, size, numbers, chain })
    }

    fn open_base(&self, disk: DiskId) -> Result<SummedBase, PointReadError> {
        let opened = self.pin.vm().open_base(disk, Access::Read);
        if let Err(err) = &opened
            && err.err.kind() == std::io::ErrorKind::NotFound
        {
            self.pin.vm().note_damage(Object::Base { disk }, "it is missing");
        }
        Ok(opened?)
    }

    fn open_failed(&self, disk: DiskId, object: Object, err: RunOpenError) -> PointReadError {
        match err.damage() {
            Some(what) if self.pin.vm().is_damaged(object) => {
                self.pin.vm().note_damage(object, &what);
                PointReadError::Damaged { object, err: err.into_read() }
            }
            _ => PointReadError::Read { disk, err: err.into_read() },
        }
    }

    /// What changed since the cut that [`PointReader::follows`] names, for passing it on; none if the point is the
    /// bottom of the chain.
    pub fn delta(&self) -> Result<Option<Vec<DeltaRun>>, PointReadError> {
        let Some(index) = self.pin.height.checked_sub(1) else { return Ok(None) };
        let link = &self.pin.manifest.links[index];
        let runs = link.runs.iter().zip(&link.record.sizes).map(|(record, (disk, size))| {
            let opened = record.file.map(|file| self.pin.vm().open_run(*disk, record, file.number, file.len));
            let object = |number| Object::Run { disk: *disk, number };
            let run = opened.transpose().map_err(|err| {
                let number = record.file.expect("only a file can fail to open").number;
                self.open_failed(*disk, object(number), err)
            })?;
            Ok(DeltaRun { disk: *disk, size: *size, run })
        });
        runs.collect::<Result<Vec<_>, PointReadError>>().map(Some)
    }

    /// What is known of blocks of a disk without reading it: `count` blocks of [`BASE_BLOCK`] bytes from the one at
    /// `offset` on. Blocks that a run touches are unknown.
    pub fn block_sums(&self, disk: DiskId, offset: u64, count: usize) -> Result<Vec<BlockSum>, PointReadError> {
        let vm = self.pin.vm();
        let size = self.record().size(disk).ok_or(PointReadError::UnknownDisk { disk })?;
        let len = (count as u64).saturating_mul(BASE_BLOCK);
        let inside =
            offset.is_multiple_of(BASE_BLOCK) && offset < size && len <= size.next_multiple_of(BASE_BLOCK) - offset;
        if !inside {
            return Err(PointReadError::OutOfRange { offset, len, size });
        }
        let base = self.open_base(disk)?;
        let mut sums =
            base.sums(offset, count).map_err(|err| PointReadError::Read { disk, err: ReadError::Io(err) })?;
        let runs = vm.open_runs(&self.pin.manifest, disk, self.pin.height);
        for (_, run) in runs.map_err(|(object, err)| self.open_failed(disk, object, err))? {
            hide_touched(&run, offset, &mut sums).map_err(|err| PointReadError::Read { disk, err })?;
        }
        Ok(sums)
    }
}

/// Blocks about which a run says anything are no longer the base's.
pub(crate) fn hide_touched(run: &Run<FileSource>, offset: u64, sums: &mut [BlockSum]) -> Result<(), ReadError> {
    let end = offset + sums.len() as u64 * BASE_BLOCK;
    let mut reader = run.reader()?;
    let mut position = offset;
    while let Some(entry) = reader.next_from(position)? {
        if entry.address >= end {
            break;
        }
        let from = (entry.address.max(offset) - offset) / BASE_BLOCK;
        let to = (entry.end(run.geometry()).min(end) - offset).div_ceil(BASE_BLOCK);
        sums[from as usize..to as usize].fill(BlockSum::Unknown);
        position = entry.end(run.geometry());
    }
    // A run of a smaller disk hides all beyond its end.
    let known = run.geometry().virtual_size().saturating_sub(offset) / BASE_BLOCK;
    sums.iter_mut().skip(known as usize).for_each(|sum| *sum = BlockSum::Unknown);
    Ok(())
}

impl DiskReader<'_> {
    /// The disk's size in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Fills `out` with the disk's bytes from `offset`.
    pub fn read_at(&mut self, offset: u64, out: &mut [u8]) -> Result<(), PointReadError> {
        let len = out.len() as u64;
        if offset.checked_add(len).is_none_or(|end| end > self.size) {
            return Err(PointReadError::OutOfRange { offset, len, size: self.size });
        }
        self.chain.read_at(offset, out).map_err(|err| self.failed(err))
    }

    fn failed(&self, err: ReadError) -> PointReadError {
        let what = damage_of(&err);
        let found = what.and_then(|what| Some((self.find_damaged(&err)?, what)));
        match found {
            Some((object, what)) => {
                self.vm.note_damage(object, &what);
                PointReadError::Damaged { object, err }
            }
            // It went by itself: no reason to refuse the point for ever.
            None => PointReadError::Read { disk: self.disk, err },
        }
    }

    /// The chain does not say which of its runs failed: the one that does not verify.
    fn find_damaged(&self, err: &ReadError) -> Option<Object> {
        if damaged_block(err).is_some() {
            return Some(Object::Base { disk: self.disk });
        }
        let runs = self.numbers.iter().map(|number| Object::Run { disk: self.disk, number: *number });
        runs.into_iter().find(|run| self.vm.is_damaged(*run))
    }
}
