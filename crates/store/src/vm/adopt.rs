//! Adopting an import: an initial replication that came on a medium becomes the base, and what was received meanwhile
//! becomes visible with it.
//!
//! ```text
//! look at what it claims → read it all into staging, checked → sync → one manifest: base and waiting links → renames
//! ```
//!
//! Until that manifest nothing has changed, and whatever was cut short is cleared away and done again. Cycles go on
//! arriving meanwhile.

use std::io;
use std::sync::Arc;

use understudy_model::{Cut, CutDigest, DiskId, DiskSpec, ErrorKind, Generation, VmId};
use understudy_run::pace::Pace;
use understudy_run::{ChainReader, EntryContent, Nothing, ReadError, Run, RunReader, RunSource};

use super::awaiting::{check_disks, record};
use super::definition::{Definition, DefinitionError, Placed};
use super::receive::adopt_definition;
use super::sums::{BASE_BLOCK, SummedBase};
use super::{Marks, Space, VmStore};
use crate::checkpoints::CrashPoint;
use crate::error::{ChangeError, FileError};
use crate::manifest::{Base, BaseFile, Manifest, PendingRename};
use crate::paths;

/// A run of an import, wherever its bytes are.
pub type ImportRun = Run<Arc<dyn RunSource + Send + Sync>>;

/// An initial replication that came by another way than the wire. Whoever offers it has verified it: that every file
/// is there and whole, and that runs and cut have the digests that they claim.
pub trait Import {
    /// The VM.
    fn vm(&self) -> VmId;
    /// The cut that the disks are at.
    fn cut(&self) -> &Cut;
    /// Every disk at that cut.
    fn disks(&self) -> &[DiskSpec];
    /// The runs that make a disk, newest first; below them is nothing.
    fn runs(&self, disk: DiskId) -> Result<Vec<ImportRun>, ReadError>;
    /// The VM's definition at the cut.
    fn definition(&self) -> io::Result<Option<Definition>>;
    /// The length of a blob that the definition refers to.
    fn blob_len(&self, hash: &[u8; 32]) -> io::Result<u64>;
    /// Hands over a blob, piece by piece.
    fn blob(&self, hash: &[u8; 32], take: &mut dyn FnMut(&[u8]) -> io::Result<()>) -> io::Result<()>;
}

/// Why an import is not adopted. Nothing has changed, unless the replica stopped.
#[derive(Debug, thiserror::Error)]
pub enum AdoptError {
    /// It is of another VM.
    #[error("the export is of VM {found}, not of {vm}")]
    OtherVm {
        /// The replica's.
        vm: VmId,
        /// The export's.
        found: VmId,
    },
    /// It is another export than the one whose import is awaited.
    #[error("the export is of cut {found}; the one awaited is of cut {awaited}")]
    OtherCut {
        /// What is awaited.
        awaited: CutDigest,
        /// The export's.
        found: CutDigest,
    },
    /// It claims a generation that was not seen here yet.
    #[error("the export is of generation {given}; the replica is at {held}")]
    FutureGeneration {
        /// The export's.
        given: Generation,
        /// The replica's.
        held: Generation,
    },
    /// Its disks are not the replica's.
    #[error("the export's disks are not those of the replica: {what}")]
    Disks {
        /// What is wrong with them.
        what: &'static str,
    },
    /// There is a base already.
    #[error("the initial replication is done")]
    Published,
    /// A copy over the network has begun.
    #[error("an initial copy over the network is under way")]
    Copying,
    /// Another import is being adopted.
    #[error("another import is under way")]
    Busy,
    /// The relationship was removed here.
    #[error("the relationship was removed on this side")]
    Detached,
    /// It could not be read.
    #[error("cannot read {disk} of the export")]
    Read {
        /// Which disk.
        disk: DiskId,
        /// Why.
        #[source]
        err: ReadError,
    },
    /// Its definition could not be read.
    #[error("cannot read the VM's definition in the export")]
    ReadDefinition(#[source] io::Error),
    /// Its definition is not taken.
    #[error("cannot take the export's definition of the VM")]
    Definition(#[from] DefinitionError),
    /// The pace said to stop.
    #[error("the import was cancelled")]
    Cancelled,
    /// What is left of the disk is kept for upkeep and failover.
    #[error("no space left for the import: {free} bytes are free, {floor} are kept")]
    NoSpace {
        /// Bytes free.
        free: u64,
        /// Bytes that are left alone.
        floor: u64,
    },
    /// A file could not be used.
    #[error("cannot write an import")]
    File(#[from] FileError),
    /// It could not be recorded.
    #[error("cannot record an import")]
    Change(#[from] ChangeError),
}

impl AdoptError {
    /// What the caller does next.
    pub fn kind(&self) -> ErrorKind {
        match self {
            AdoptError::Read { err, .. } => err.kind(),
            AdoptError::Definition(err) => err.kind(),
            AdoptError::Busy | AdoptError::Cancelled => ErrorKind::Retry,
            AdoptError::NoSpace { .. } | AdoptError::ReadDefinition(_) => ErrorKind::Operator,
            AdoptError::File(err) => err.kind(),
            AdoptError::Change(err) => err.kind(),
            _ => ErrorKind::Refused,
        }
    }
}

/// Bytes between two looks at space and patience.
const STEP: u64 = 1 << 20;

impl VmStore {
    /// Makes an import the base, whether it is awaited already or not. When this returns, its cut is a recovery point,
    /// and all cycles received on top of it are visible. `pace` is called for each mebibyte that was written; its
    /// `Break` ends the import.
    pub fn adopt_import(self: &Arc<Self>, import: &dyn Import, pace: &mut Pace<'_>) -> Result<Cut, AdoptError> {
        self.check_going()?;
        check(&self.manifest(), import)?;
        let _importing = self.claim_importing().ok_or(AdoptError::Busy)?;
        self.reached(CrashPoint::ImportVerified)?;
        let mut made = Vec::new();
        let adopted = self.adopt_claimed(import, &mut made, pace);
        if adopted.is_err() {
            self.discard(&made);
        }
        adopted
    }

    fn adopt_claimed(
        self: &Arc<Self>,
        import: &dyn Import,
        made: &mut Vec<String>,
        pace: &mut Pace<'_>,
    ) -> Result<Cut, AdoptError> {
        for disk in import.disks() {
            let (data, sums) = (paths::staged_base(disk.id), paths::staged_base_sums(disk.id));
            made.extend([data.clone(), sums.clone()]);
            let mut base = self.create_base(&data, &sums, disk.size)?;
            self.import_disk(import, disk, &mut base, pace)?;
            self.place.sync(&base.data, &data).map_err(|err| self.judge(err))?;
            self.place.sync(&base.sums, &sums).map_err(|err| self.judge(err))?;
        }
        let definition = self.import_definition(import, made)?;
        self.place.sync_dir(paths::STAGING).map_err(|err| self.judge(err))?;
        self.publish_import(import, definition)?;
        made.clear();
        Ok(import.cut().clone())
    }

    /// Writes all that a disk's runs say that is not zero.
    fn import_disk(
        &self,
        import: &dyn Import,
        disk: &DiskSpec,
        base: &mut SummedBase,
        pace: &mut Pace<'_>,
    ) -> Result<(), AdoptError> {
        let unreadable = |err| AdoptError::Read { disk: disk.id, err };
        let runs = import.runs(disk.id).map_err(unreadable)?;
        if runs.iter().any(|run| run.geometry().virtual_size() != disk.size) {
            return Err(AdoptError::Disks { what: "one has runs of another size" });
        }
        let mut next = runs.iter().map(Run::reader).collect::<Result<Vec<_>, _>>().map_err(unreadable)?;
        let mut chain = ChainReader::new(&runs, Nothing).map_err(unreadable)?;
        let (mut at, mut since, mut block) = (0, 0, vec![0; BASE_BLOCK as usize]);
        while let Some(address) = next_data(&mut next, at).map_err(unreadable)?.filter(|address| *address < disk.size) {
            let address = address / BASE_BLOCK * BASE_BLOCK;
            let piece = &mut block[..(disk.size - address).min(BASE_BLOCK) as usize];
            chain.read_at(address, piece).map_err(unreadable)?;
            let written = base.write_initial(address, piece);
            let path = self.place.path(&paths::staged_base(disk.id));
            written.map_err(|err| self.judge(FileError::new("write", path, err)))?;
            at = address + BASE_BLOCK;
            since += BASE_BLOCK;
            if since >= STEP {
                self.pause(std::mem::take(&mut since), pace)?;
            }
        }
        self.pause(since, pace)
    }

    fn pause(&self, bytes: u64, pace: &mut Pace<'_>) -> Result<(), AdoptError> {
        self.reached(CrashPoint::ImportMidCopy)?;
        self.check_going()?;
        if let Err((free, floor)) = self.spare_space()? {
            return Err(AdoptError::NoSpace { free, floor });
        }
        if pace(bytes).is_break() { Err(AdoptError::Cancelled) } else { Ok(()) }
    }

    fn import_definition(
        self: &Arc<Self>,
        import: &dyn Import,
        made: &mut Vec<String>,
    ) -> Result<Option<Placed>, AdoptError> {
        let Some(definition) = import.definition().map_err(AdoptError::ReadDefinition)? else { return Ok(None) };
        for hash in &definition.blobs {
            // What nothing refers to in the end is cleared away at the next opening.
            self.import_blob(import, hash)?;
        }
        let placed = self.place_definition(&definition)?;
        made.extend(placed.made.clone());
        Ok(Some(placed))
    }

    fn import_blob(self: &Arc<Self>, import: &dyn Import, hash: &[u8; 32]) -> Result<(), AdoptError> {
        if self.has_blob(hash)? {
            return Ok(());
        }
        let len = import.blob_len(hash).map_err(AdoptError::ReadDefinition)?;
        let mut receiver = self.begin_blob(*hash, len)?;
        let mut refused = None;
        let mut take = |piece: &[u8]| {
            receiver.push(piece).map_err(|err| {
                refused = Some(err);
                io::Error::other("the blob is not taken")
            })
        };
        let read = import.blob(hash, &mut take);
        match refused {
            Some(err) => Err(err.into()),
            None => {
                read.map_err(AdoptError::ReadDefinition)?;
                Ok(receiver.finish()?)
            }
        }
    }

    fn publish_import(&self, import: &dyn Import, definition: Option<Placed>) -> Result<(), AdoptError> {
        // From here on no cycle is sealed, so that no disk joins unseen.
        let mut writer = self.lock();
        let joined = joined_disks(&self.manifest(), import);
        for (disk, size) in &joined {
            self.create_base(&paths::staged_base(*disk), &paths::staged_base_sums(*disk), *size)?;
        }
        if !joined.is_empty() {
            self.place.sync_dir(paths::STAGING).map_err(|err| self.judge(err))?;
        }
        let marks = Marks { before: Some(CrashPoint::ImportCommit), ..Marks::default() };
        self.change_marked(&mut writer, Space::Spare, &marks, |m| {
            check(m, import)?;
            let mut record = record(import.cut(), import.disks());
            record.definition = definition.map(|d| adopt_definition(self, m, d)).transpose()?;
            let mut sizes: Vec<_> = record.sizes.iter().copied().chain(joined).collect();
            sizes.sort();
            let file = |(disk, size): &(DiskId, u64)| BaseFile { disk: *disk, size: *size, stub: None };
            m.pending.extend(sizes.iter().map(|(disk, _)| PendingRename::Base { disk: *disk }));
            m.base = Some(Base { record: Some(record), files: sizes.iter().map(file).collect() });
            m.links = m.waiting.take().map_or_else(Vec::new, |w| w.links);
            m.seeds.clear();
            Ok(())
        })
    }
}

/// Disks that joined the VM after the export, with the size they began with. They were empty.
fn joined_disks(m: &Manifest, import: &dyn Import) -> Vec<(DiskId, u64)> {
    let mut joined: Vec<(DiskId, u64)> = Vec::new();
    for (disk, size) in m.waiting.iter().flat_map(|w| &w.links).flat_map(|l| &l.record.sizes) {
        if import.disks().iter().all(|d| d.id != *disk) && joined.iter().all(|(known, _)| known != disk) {
            joined.push((*disk, *size));
        }
    }
    joined
}

/// The first address at or after `at` for which a run has bytes.
fn next_data<S: RunSource>(runs: &mut [RunReader<S>], at: u64) -> Result<Option<u64>, ReadError> {
    let mut first = None;
    for run in runs {
        let geometry = *run.run().geometry();
        let mut position = at;
        while let Some(entry) = run.next_from(position)? {
            if let EntryContent::Data { .. } = entry.content {
                let address = entry.address.max(at);
                first = Some(first.map_or(address, |other: u64| other.min(address)));
                break;
            }
            position = entry.end(&geometry);
        }
    }
    Ok(first)
}

/// Whether an import may become the base.
fn check(m: &Manifest, import: &dyn Import) -> Result<(), AdoptError> {
    if import.vm() != m.vm {
        return Err(AdoptError::OtherVm { vm: m.vm, found: import.vm() });
    }
    if m.detached {
        return Err(AdoptError::Detached);
    }
    if m.base.is_some() {
        return Err(AdoptError::Published);
    }
    if m.initial.is_some() {
        return Err(AdoptError::Copying);
    }
    let found = import.cut().id;
    if found.generation > m.generation {
        return Err(AdoptError::FutureGeneration { given: found.generation, held: m.generation });
    }
    if let Some(waiting) = &m.waiting {
        let awaited = waiting.record.digest();
        if waiting.record.cut != *import.cut() {
            return Err(AdoptError::OtherCut { awaited, found: found.digest });
        }
        if record(import.cut(), import.disks()).sizes != waiting.record.sizes {
            return Err(AdoptError::Disks { what: "their sizes are not those that were announced" });
        }
    } else if !is_same_disks(m, import.disks()) {
        return Err(AdoptError::Disks { what: "their number or sizes differ" });
    }
    check_disks(m, import.disks()).map_or(Ok(()), |what| Err(AdoptError::Disks { what }))
}

fn is_same_disks(m: &Manifest, disks: &[DiskSpec]) -> bool {
    let ours: Vec<&DiskSpec> = m.current_disks().collect();
    ours.len() == disks.len() && ours.iter().all(|o| disks.iter().any(|d| d.id == o.id && d.size == o.size))
}
