//! Receiving a cycle: batches of records become runs in staging, and all disks of the cut become visible in one
//! change of the manifest.
//!
//! The order is the promise: receive → sync the runs → the manifest names them → sync → acknowledge. The digest is
//! computed here, from what was received, and must be the sender's. The first cycle publishes the initial copy
//! together with its run.
//!
//! Whatever goes wrong before the manifest: the receiver is dropped, its files with it, and nothing has happened.

mod checks;
mod error;
mod publish;

use std::sync::Arc;

use understudy_model::{Consistency, Cut, CutDigest, CutNumber, CutRef, DiskId, DiskSpec, Generation, Timestamp};
use understudy_run::{Backing, BackingFormat, BuildError, Decoder, Geometry, RunBuilder, RunDigester, RunParams};

use super::definition::{Definition, Placed};
use super::session::{self, Session};
use super::{Marks, Space, Transfer, VmStore};
use crate::adapt::FileSink;
use crate::checkpoints::CrashPoint;
use crate::error::FileError;
use crate::files::{Access, FileRef};
use crate::manifest::{Below, CutRecord, Link, RunFile, RunRecord};
use crate::paths::{self, FileNumber};
use checks::{check_cycle, check_disks};
pub use error::CycleError;
pub(crate) use publish::adopt_definition;
pub(crate) use publish::digest_of;
use publish::{adopt_disks, publish_base};

/// What a sender says of a cycle before its data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CycleHeader {
    /// Generation the cut was taken in.
    pub generation: Generation,
    /// The cut's number in the relationship.
    pub number: CutNumber,
    /// Digest of the cut it follows: our newest, or [`CutDigest::ZERO`] after an initial copy.
    pub parent: CutDigest,
    /// When the disks were frozen.
    pub taken_at: Timestamp,
    /// What the cut promises.
    pub consistency: Consistency,
    /// Every disk of the VM at that cut.
    pub disks: Vec<CycleDisk>,
}

/// One disk of a cycle.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CycleDisk {
    /// Identity, key and size at the cut. A disk may have grown; a new one is taken to have been empty before.
    pub spec: DiskSpec,
    /// Base-2 logarithm of the cluster size of its run.
    pub cluster_bits: u32,
}

/// A cycle being received. Dropping it gives the cycle up.
pub struct CycleReceiver {
    vm: Arc<VmStore>,
    session: Session,
    claim: u64,
    header: CycleHeader,
    /// The number that all new runs of the cycle bear.
    number: FileNumber,
    disks: Vec<Receiving>,
    decoder: Decoder,
    failed: bool,
    /// Files made so far that the manifest does not name.
    made: Vec<String>,
}

struct Receiving {
    disk: CycleDisk,
    geometry: Geometry,
    below: Below,
    /// Made with the first batch: a disk that did not change gets no file.
    builder: Option<RunBuilder<FileSink>>,
}

/// A run that has been finished, or found to be empty.
struct Finished {
    record: RunRecord,
    size: u64,
    file: Option<FileRef>,
}

impl VmStore {
    /// Begins a cycle.
    pub fn begin_cycle(self: &Arc<Self>, session: Session, header: CycleHeader) -> Result<CycleReceiver, CycleError> {
        self.check_going()?;
        let manifest = self.manifest();
        check_cycle(&manifest, session, &header)?;
        let disks = check_disks(&manifest, &header)?;
        self.check_space()?;
        let claim = self.claim_receiving(session, Transfer::Cycle).ok_or(CycleError::Busy)?;
        let begun = Decoder::new().map_err(|err| CycleError::Data {
            disk: header.disks[0].spec.id,
            err: BuildError::Cluster { address: 0, err },
        });
        let decoder = begun.inspect_err(|_| self.end_receiving(claim))?;
        let receiver = CycleReceiver {
            vm: self.clone(),
            session,
            claim,
            header,
            number: self.next_number(),
            disks,
            decoder,
            failed: false,
            made: Vec::new(),
        };
        self.reached(CrashPoint::ReceiveHeader)?;
        Ok(receiver)
    }

    fn check_space(&self) -> Result<(), CycleError> {
        self.spare_space()?.map_err(|(free, floor)| CycleError::NoSpace { free, floor })
    }
}

/// What a run's header says of the file below.
pub(crate) fn backing(below: Below) -> Backing {
    let (name, format) = match below {
        Below::Base => (paths::BASE.to_owned(), BackingFormat::Raw),
        Below::Run(number) => (paths::run_name(number), BackingFormat::Qcow2),
    };
    Backing::new(name, format).expect("the names we make are plain")
}

impl CycleReceiver {
    /// The header it was begun with.
    pub fn header(&self) -> &CycleHeader {
        &self.header
    }

    /// Takes the next batch of records of one disk. Batches of a disk come in ascending order; disks may alternate.
    pub fn push(&mut self, disk: DiskId, batch: &[u8]) -> Result<(), CycleError> {
        if std::mem::replace(&mut self.failed, true) {
            return Err(CycleError::Failed);
        }
        session::check(&self.vm.manifest(), self.session)?;
        self.vm.check_going()?;
        self.vm.check_space()?;
        let index = self.disks.iter().position(|d| d.disk.spec.id == disk);
        let index = index.ok_or(CycleError::Disks { what: "data came for one that is not in the header" })?;
        let mut builder = match self.disks[index].builder.take() {
            Some(builder) => builder,
            None => self.new_run(index)?,
        };
        builder.accept_batch(batch, &mut self.decoder).map_err(|err| self.judge(disk, err))?;
        self.disks[index].builder = Some(builder);
        self.vm.reached(CrashPoint::ReceiveMidData)?;
        self.failed = false;
        Ok(())
    }

    fn new_run(&mut self, index: usize) -> Result<RunBuilder<FileSink>, CycleError> {
        let receiving = &self.disks[index];
        let disk = receiving.disk.spec.id;
        let path = paths::staged_run(disk, self.number);
        let file = self.vm.place.create_anew(&path)?;
        self.made.push(path);
        let params = RunParams {
            virtual_size: receiving.disk.spec.size,
            cluster_bits: receiving.disk.cluster_bits,
            backing: Some(backing(receiving.below)),
        };
        RunBuilder::new(FileSink(file), params).map_err(|err| CycleError::Data { disk, err })
    }

    /// A disk that fails to write cannot be trusted with what comes next.
    fn judge(&self, disk: DiskId, err: BuildError) -> CycleError {
        match err {
            BuildError::Write(err) => {
                let path = self.vm.place.path(&paths::staged_run(disk, self.number));
                CycleError::File(self.vm.judge(FileError::new("write", path, err)))
            }
            err => CycleError::Data { disk, err },
        }
    }

    /// Ends the cycle: when this returns, the cut is durable and visible, and may be acknowledged. `expected` is the
    /// digest that the sender computed; `keep` makes the cut a recovery point.
    pub fn seal(mut self, expected: CutDigest, keep: bool, definition: Option<&Definition>) -> Result<Cut, CycleError> {
        if self.failed {
            return Err(CycleError::Failed);
        }
        check_cycle(&self.vm.manifest(), self.session, &self.header)?;
        let finished = self.finish()?;
        let cut = self.cut(&finished);
        if cut.id.digest != expected {
            return Err(CycleError::DigestMismatch { computed: cut.id.digest, expected });
        }
        self.sync(&finished)?;
        let definition = definition.map(|d| self.vm.place_definition(d)).transpose()?;
        self.made.extend(definition.as_ref().and_then(|d| d.made.clone()));
        self.make_new_bases()?;
        self.name(&finished)?;
        self.publish(cut.clone(), keep, definition, finished)?;
        self.made.clear();
        self.vm.reached(CrashPoint::ReceiveBeforeAck)?;
        Ok(cut)
    }

    fn finish(&mut self) -> Result<Vec<Finished>, CycleError> {
        let (vm, number) = (self.vm.clone(), self.number);
        let mut out = Vec::new();
        for receiving in std::mem::take(&mut self.disks) {
            let spec = &receiving.disk.spec;
            let (digest, file) = match receiving.builder {
                None => (RunDigester::new(receiving.geometry).finish(), None),
                Some(builder) => {
                    let (summary, sink) = builder.finish().map_err(|err| self.judge(spec.id, err))?;
                    let file = RunFile { number, len: summary.file_len, below: receiving.below };
                    (summary.digest, Some((file, sink.0)))
                }
            };
            let run_file = file.as_ref().map(|(file, _)| *file);
            let cluster_bits = receiving.disk.cluster_bits;
            let record = RunRecord { disk: spec.id, cluster_bits, digest, file: run_file };
            out.push(Finished { record, size: spec.size, file: file.map(|(_, file)| file) });
        }
        vm.reached(CrashPoint::ReceiveBeforeSegmentSync)?;
        Ok(out)
    }

    fn cut(&self, finished: &[Finished]) -> Cut {
        let runs: Vec<_> = finished.iter().map(|f| (f.record.disk, f.size, f.record.digest)).collect();
        let digest = digest_of(&self.vm, &self.header, &runs);
        Cut {
            id: CutRef { generation: self.header.generation, number: self.header.number, digest },
            parent: self.header.parent,
            taken_at: self.header.taken_at,
            consistency: self.header.consistency,
        }
    }

    fn sync(&self, finished: &[Finished]) -> Result<(), CycleError> {
        for run in finished {
            if let Some(file) = &run.file {
                let path = paths::staged_run(run.record.disk, self.number);
                self.vm.place.sync(file, &path).map_err(|err| self.vm.judge(err))?;
            }
        }
        // What the last receiver of the initial copy wrote is durable already; asking again costs nothing.
        for initial in self.vm.manifest().initial.iter().flatten() {
            for path in [paths::staged_base(initial.disk), paths::staged_base_sums(initial.disk)] {
                let file = self.vm.place.open(&path, Access::Write)?;
                self.vm.place.sync(&file, &path).map_err(|err| self.vm.judge(err))?;
            }
        }
        Ok(self.vm.reached(CrashPoint::ReceiveSegmentSynced)?)
    }

    /// A disk that joins the VM was empty before: its base is a hole. Where the others' are still to be imported, it
    /// comes with them.
    fn make_new_bases(&mut self) -> Result<(), CycleError> {
        let manifest = self.vm.manifest();
        let awaits = manifest.waiting.is_some();
        for disk in &self.header.disks {
            let id = disk.spec.id;
            if manifest.disks.iter().any(|d| d.spec.id == id) {
                continue;
            }
            self.vm.place.ensure_dir(&paths::disk_dir(id))?;
            self.vm.place.sync_dir("").map_err(|err| self.vm.judge(err))?;
            if awaits {
                continue;
            }
            let (data, sums) = (paths::base(id), paths::base_sums(id));
            self.made.extend([data.clone(), sums.clone()]);
            self.vm.create_base(&data, &sums, disk.spec.size)?;
            self.vm.place.sync_dir(&paths::disk_dir(id)).map_err(|err| self.vm.judge(err))?;
        }
        Ok(())
    }

    /// Gives the synced runs the names they keep.
    fn name(&mut self, finished: &[Finished]) -> Result<(), CycleError> {
        let disks: Vec<DiskId> = finished.iter().filter(|f| f.file.is_some()).map(|f| f.record.disk).collect();
        for disk in &disks {
            let name = paths::run(*disk, self.number);
            self.made.push(name.clone());
            self.vm.place.rename(&paths::staged_run(*disk, self.number), &name)?;
        }
        for disk in &disks {
            self.vm.place.sync_dir(&paths::disk_dir(*disk)).map_err(|err| self.vm.judge(err))?;
        }
        Ok(())
    }

    fn publish(
        &self,
        cut: Cut,
        keep: bool,
        definition: Option<Placed>,
        finished: Vec<Finished>,
    ) -> Result<(), CycleError> {
        let initial = self.vm.manifest().initial.is_some();
        if initial {
            self.vm.reached(CrashPoint::InitialBeforeCommit)?;
        }
        let marks = Marks {
            before: Some(CrashPoint::ReceiveBeforeCatalogue),
            written: Some(CrashPoint::ReceiveCatalogueWritten),
            synced: Some(CrashPoint::ReceiveCatalogueSynced),
            ..Marks::default()
        };
        self.vm.change_marked(&mut self.vm.lock(), Space::Spare, &marks, |m| {
            check_cycle(m, self.session, &self.header)?;
            if let Some(initial) = m.initial.take() {
                publish_base(m, &initial);
            }
            adopt_disks(m, &self.header);
            let definition = definition.map(|d| adopt_definition(&self.vm, m, d)).transpose()?;
            let sizes = finished.iter().map(|f| (f.record.disk, f.size)).collect();
            let follows = cut.parent;
            let record = CutRecord { cut, follows, kept: keep, locked: false, definition, sizes };
            let link = Link { record, level: 0, runs: finished.into_iter().map(|f| f.record).collect() };
            m.waiting.as_mut().map_or(&mut m.links, |w| &mut w.links).push(link);
            Ok::<_, CycleError>(())
        })?;
        if initial {
            self.vm.reached(CrashPoint::InitialCommittedBeforeAck)?;
        }
        Ok(())
    }
}

impl Drop for CycleReceiver {
    fn drop(&mut self) {
        self.vm.discard(&self.made);
        self.vm.end_receiving(self.claim);
    }
}
