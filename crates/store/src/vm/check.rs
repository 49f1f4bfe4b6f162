//! Reads everything and holds it against its checksums. What is damaged is named, recorded, and not served from then
//! on; what was recorded and is whole after all is served again.

use std::io;
use std::ops::ControlFlow;

use understudy_model::{CutDigest, DiskId, ErrorKind};
use understudy_run::pace::Pace;
use understudy_run::verify::VerifyError;

use super::definition::{DEFINITION_MAX, DefinitionError};
use super::receive::{CycleHeader, backing, digest_of};
use super::sums::{BASE_BLOCK, SummedBase};
use super::{Space, VmStore, blobs};
use crate::error::{At, ChangeError, FileError};
use crate::files::{Access, read_exact_at};
use crate::manifest::{Below, Link, Manifest, Object, RunRecord};
use crate::paths::{self, FileNumber};

/// What a check found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CheckReport {
    /// Things looked at.
    pub objects: u64,
    /// Bytes read.
    pub bytes: u64,
    /// Blocks of bases whose checksums were unknown because a step of upkeep was cut short; its repetition sets them.
    pub unknown_blocks: u64,
    /// What is damaged.
    pub damage: Vec<Damage>,
}

/// A damaged thing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Damage {
    /// What it is.
    pub object: Object,
    /// How it is damaged.
    pub what: String,
}

/// Why a check did not end.
#[derive(Debug, thiserror::Error)]
pub enum CheckError {
    /// The pace said to stop.
    #[error("the check was cancelled")]
    Cancelled,
    /// Something could not be read for a reason other than damage.
    #[error("cannot read {object}")]
    Read {
        /// What.
        object: Object,
        /// Why.
        #[source]
        err: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The result could not be recorded.
    #[error("cannot record the result of a check")]
    Change(#[from] ChangeError),
}

impl CheckError {
    /// What the caller does next.
    pub fn kind(&self) -> ErrorKind {
        match self {
            CheckError::Cancelled | CheckError::Read { .. } => ErrorKind::Retry,
            CheckError::Change(err) => err.kind(),
        }
    }
}

/// How one thing was found.
enum Found {
    Whole,
    Damaged(String),
    /// It was superseded meanwhile.
    Gone,
}

/// Why one thing could not be looked at.
enum Trouble {
    Cancelled,
    Other(Box<dyn std::error::Error + Send + Sync>),
}

impl From<FileError> for Trouble {
    fn from(err: FileError) -> Self {
        Trouble::Other(err.into())
    }
}

impl VmStore {
    /// Checks every byte of the replica. `pace` is called at least once for each mebibyte; it may sleep, and its
    /// `Break` ends the check. Everything else goes on meanwhile.
    pub fn check(&self, pace: &mut Pace<'_>) -> Result<CheckReport, CheckError> {
        let mut report = CheckReport::default();
        let mut whole = Vec::new();
        for object in objects(&self.manifest()) {
            let found = self.look_at(object, &mut report, pace);
            match found {
                Ok(Found::Gone) => continue,
                Ok(Found::Whole) => whole.push(object),
                Ok(Found::Damaged(what)) => report.damage.push(Damage { object, what }),
                Err(Trouble::Cancelled) => return Err(CheckError::Cancelled),
                Err(Trouble::Other(err)) => return Err(CheckError::Read { object, err }),
            }
            report.objects += 1;
        }
        self.record_check(&report, &whole)?;
        Ok(report)
    }

    fn record_check(&self, report: &CheckReport, whole: &[Object]) -> Result<(), ChangeError> {
        for damage in &report.damage {
            self.note_damage(damage.object, &damage.what);
        }
        if self.manifest().damage.iter().any(|d| whole.contains(&d.object)) {
            self.change(Space::Reserved, |m| {
                m.damage.retain(|d| !whole.contains(&d.object));
                Ok::<_, ChangeError>(())
            })?;
        }
        Ok(())
    }

    fn look_at(&self, object: Object, report: &mut CheckReport, pace: &mut Pace<'_>) -> Result<Found, Trouble> {
        match object {
            // The base is looked at block by block, so that upkeep need not wait.
            Object::Base { disk } => self.check_base(disk, report, pace),
            _ => {
                let _still = self.busy.lock().expect("no step of upkeep panics half-way");
                let manifest = self.manifest();
                self.check_object(&manifest, object, report, pace)
            }
        }
    }

    fn check_object(
        &self,
        manifest: &Manifest,
        object: Object,
        report: &mut CheckReport,
        pace: &mut Pace<'_>,
    ) -> Result<Found, Trouble> {
        match object {
            Object::Run { disk, number } => self.check_run(manifest, disk, number, report, pace),
            Object::Linkage { cut } => Ok(self.check_linkage(manifest, cut)),
            Object::Definition { number } => self.check_definition(manifest, number, report),
            Object::Blob { hash } => self.check_blob(&hash, report),
            Object::Overlay { failover, disk } => self.check_overlay(failover, disk),
            Object::Base { .. } => unreachable!("bases are looked at without the lock"),
        }
    }

    fn check_run(
        &self,
        manifest: &Manifest,
        disk: DiskId,
        number: FileNumber,
        report: &mut CheckReport,
        pace: &mut Pace<'_>,
    ) -> Result<Found, Trouble> {
        let Some(expected) = find_run(manifest, disk, number) else { return Ok(Found::Gone) };
        report.bytes += expected.len;
        match self.verify_expected(disk, number, &expected, pace) {
            Ok(()) => Ok(Found::Whole),
            Err(RunTrouble::Damaged(what)) => Ok(Found::Damaged(what)),
            Err(RunTrouble::Cancelled) => Err(Trouble::Cancelled),
            Err(RunTrouble::Other(err)) => Err(Trouble::Other(err)),
        }
    }

    /// Looks again at something that seemed damaged: what failed once and then verifies was the disk's mood.
    pub(crate) fn is_damaged(&self, object: Object) -> bool {
        // A base says so by a checksum of its own.
        let Object::Run { disk, number } = object else { return true };
        let Some(expected) = find_run(&self.manifest(), disk, number) else { return false };
        let mut unpaced = |_| ControlFlow::Continue(());
        matches!(self.verify_expected(disk, number, &expected, &mut unpaced), Err(RunTrouble::Damaged(_)))
    }

    fn verify_expected(
        &self,
        disk: DiskId,
        number: FileNumber,
        expected: &Expected,
        pace: &mut Pace<'_>,
    ) -> Result<(), RunTrouble> {
        let run = self.open_run(disk, &expected.record, number, expected.len);
        let run = run.map_err(|err| match err.damage() {
            Some(what) => RunTrouble::Damaged(what),
            None => RunTrouble::Other(err.into()),
        })?;
        if run.backing() != Some(&backing(expected.below)) {
            return Err(RunTrouble::Damaged("it names another file below".to_owned()));
        }
        match run.verify(pace) {
            Ok(_) => Ok(()),
            Err(VerifyError::Cancelled) => Err(RunTrouble::Cancelled),
            Err(VerifyError::Read(err)) => Err(match super::reader::damage_of(&err) {
                Some(what) => RunTrouble::Damaged(what),
                None => RunTrouble::Other(err.into()),
            }),
        }
    }

    /// Recomputes a cut's digest from what leads to it, where nothing was merged away.
    fn check_linkage(&self, manifest: &Manifest, cut: CutDigest) -> Found {
        let Some(link) = manifest.links.iter().find(|l| l.record.digest() == cut) else { return Found::Gone };
        if link.record.follows != link.record.cut.parent || self.digest_of_link(link) == cut {
            return Found::Whole;
        }
        Found::Damaged("its runs do not make its digest".to_owned())
    }

    fn digest_of_link(&self, link: &Link) -> CutDigest {
        let cut = &link.record.cut;
        let header = CycleHeader {
            generation: cut.id.generation,
            number: cut.id.number,
            parent: cut.parent,
            taken_at: cut.taken_at,
            consistency: cut.consistency,
            disks: Vec::new(),
        };
        let runs = link.runs.iter().zip(&link.record.sizes).map(|(r, (disk, size))| (*disk, *size, r.digest));
        digest_of(self, &header, &runs.collect::<Vec<_>>())
    }

    fn check_base(&self, disk: DiskId, report: &mut CheckReport, pace: &mut Pace<'_>) -> Result<Found, Trouble> {
        let Some(size) = base_size(&self.manifest(), disk) else { return Ok(Found::Gone) };
        let mut base = match self.open_base(disk, Access::Read) {
            Err(err) if err.err.kind() == io::ErrorKind::NotFound => return self.gone_or(disk, "it is missing"),
            other => other?,
        };
        if self.place.len(&base.data, &paths::base(disk))? < size {
            return self.gone_or(disk, "it is too short");
        }
        let mut address = 0;
        while address < size {
            match self.check_block(&mut base, address).at("read", &self.place.path(&paths::base(disk))) {
                Ok(Ok(known)) => report.unknown_blocks += u64::from(!known),
                Ok(Err(what)) => return self.gone_or(disk, &what),
                Err(err) => return Err(err.into()),
            }
            address += BASE_BLOCK;
            report.bytes += BASE_BLOCK;
            if pace(BASE_BLOCK).is_break() {
                return Err(Trouble::Cancelled);
            }
        }
        Ok(Found::Whole)
    }

    fn check_block(&self, base: &mut SummedBase, address: u64) -> io::Result<Result<bool, String>> {
        let _still = self.base_io.read().expect("nothing panics while a base is changed");
        match base.check(address) {
            Ok(checked) => Ok(checked.map_err(|err| err.to_string())),
            Err(err) if err.kind() == io::ErrorKind::UnexpectedEof => Ok(Err("it is too short".to_owned())),
            Err(err) if err.raw_os_error() == Some(5) => {
                Ok(Err(format!("the disk cannot read the block at {address}")))
            }
            Err(err) => Err(err),
        }
    }

    /// A base that was dropped meanwhile is not damaged.
    fn gone_or(&self, disk: DiskId, what: &str) -> Result<Found, Trouble> {
        let there = base_size(&self.manifest(), disk).is_some();
        Ok(if there { Found::Damaged(what.to_owned()) } else { Found::Gone })
    }

    fn check_definition(
        &self,
        manifest: &Manifest,
        number: FileNumber,
        report: &mut CheckReport,
    ) -> Result<Found, Trouble> {
        let Some(record) = manifest.definitions.iter().find(|d| d.number == number) else { return Ok(Found::Gone) };
        let path = paths::definition(number, &record.extension);
        let Some(file) = self.place.open_if_there(&path, Access::Read)? else {
            let gone = self.manifest().definitions.iter().all(|d| d.number != number);
            return Ok(if gone { Found::Gone } else { Found::Damaged("it is missing".to_owned()) });
        };
        report.bytes += record.len;
        verdict(self.read_checked(&file, &path, &record.hash, DEFINITION_MAX as u64))
    }

    fn check_blob(&self, hash: &[u8; 32], report: &mut CheckReport) -> Result<Found, Trouble> {
        match self.blob(hash) {
            Err(DefinitionError::MissingBlob { .. }) => {
                let gone = !blobs(&self.manifest()).contains(hash);
                Ok(if gone { Found::Gone } else { Found::Damaged("it is missing".to_owned()) })
            }
            read => {
                report.bytes += read.as_ref().map_or(0, |bytes| bytes.len() as u64);
                verdict(read)
            }
        }
    }

    /// Overlays are QEMU's to write, so no checksum covers them; they can only be missing or no qcow2 files.
    fn check_overlay(&self, failover: FileNumber, disk: DiskId) -> Result<Found, Trouble> {
        let path = paths::overlay(failover, disk);
        let Some(file) = self.place.open_if_there(&path, Access::Read)? else {
            let gone = self.manifest().failovers.iter().all(|f| f.number != failover);
            return Ok(if gone { Found::Gone } else { Found::Damaged("it is missing".to_owned()) });
        };
        let mut magic = [0; 4];
        let is_qcow2 = read_exact_at(&*file, 0, &mut magic).is_ok() && magic == *b"QFI\xfb";
        Ok(if is_qcow2 { Found::Whole } else { Found::Damaged("it is no qcow2 file".to_owned()) })
    }
}

enum RunTrouble {
    Damaged(String),
    Cancelled,
    Other(Box<dyn std::error::Error + Send + Sync>),
}

fn verdict(read: Result<Vec<u8>, DefinitionError>) -> Result<Found, Trouble> {
    match read {
        Ok(_) => Ok(Found::Whole),
        Err(DefinitionError::Damaged { .. }) => Ok(Found::Damaged("it does not have its hash".to_owned())),
        Err(DefinitionError::File(err)) if err.err.kind() == io::ErrorKind::UnexpectedEof => {
            Ok(Found::Damaged("it is too short".to_owned()))
        }
        Err(DefinitionError::File(err)) if err.err.raw_os_error() == Some(5) => {
            Ok(Found::Damaged("the disk cannot read it".to_owned()))
        }
        Err(err) => Err(Trouble::Other(err.into())),
    }
}

/// What the manifest says of a run or stub.
struct Expected {
    record: RunRecord,
    len: u64,
    below: Below,
}

fn find_run(manifest: &Manifest, disk: DiskId, number: FileNumber) -> Option<Expected> {
    let mut runs = manifest.all_links().filter_map(|l| l.run(disk));
    if let Some(record) = runs.find(|r| r.file.is_some_and(|f| f.number == number)) {
        let file = record.file?;
        return Some(Expected { record: record.clone(), len: file.len, below: file.below });
    }
    let stub = manifest.base.as_ref()?.file(disk)?.stub.filter(|s| s.number == number)?;
    let record = RunRecord { disk, cluster_bits: 0, digest: stub.digest, file: None };
    Some(Expected { record, len: stub.len, below: Below::Base })
}

fn base_size(manifest: &Manifest, disk: DiskId) -> Option<u64> {
    manifest.base.as_ref()?.file(disk).map(|f| f.size)
}

/// Everything that can be damaged.
fn objects(m: &Manifest) -> Vec<Object> {
    let mut out: Vec<Object> = m.links.iter().map(|l| Object::Linkage { cut: l.record.digest() }).collect();
    out.extend(m.run_files().into_iter().map(|(disk, number)| Object::Run { disk, number }));
    out.extend(m.base.iter().flat_map(|b| &b.files).map(|f| Object::Base { disk: f.disk }));
    out.extend(m.definitions.iter().map(|d| Object::Definition { number: d.number }));
    out.extend(blobs(m).into_iter().map(|hash| Object::Blob { hash }));
    for failover in &m.failovers {
        let disks = super::failover::overlays(m, failover);
        out.extend(disks.into_iter().map(|disk| Object::Overlay { failover: failover.number, disk }));
    }
    out
}
