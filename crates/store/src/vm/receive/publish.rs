//! How a sealed cycle changes the manifest.

use understudy_model::{CutDigest, DiskId};
use understudy_run::digest::CutHeader;
use understudy_run::{RunDigest, cut_digest};

use super::super::VmStore;
use super::super::definition::{DefinitionError, Placed};
use super::CycleHeader;
use crate::manifest::{Base, BaseFile, DiskRecord, InitialDisk, Manifest, PendingRename};
use crate::paths::FileNumber;

/// The digest of a cut with these runs.
pub(crate) fn digest_of(vm: &VmStore, header: &CycleHeader, runs: &[(DiskId, u64, RunDigest)]) -> CutDigest {
    let says = CutHeader {
        vm: vm.vm,
        generation: header.generation,
        number: header.number,
        taken_at: header.taken_at,
        consistency: header.consistency,
    };
    cut_digest(header.parent, &says, runs)
}

/// The staged base becomes the bottom of the chain; by itself it is no cut.
pub(super) fn publish_base(m: &mut Manifest, initial: &[InitialDisk]) {
    let size = |disk: DiskId| m.disks.iter().find(|d| d.spec.id == disk).map_or(0, |d| d.spec.size);
    let files = initial.iter().map(|i| BaseFile { disk: i.disk, size: size(i.disk), stub: None }).collect();
    m.base = Some(Base { record: None, files });
    m.seeds.clear();
    m.pending.extend(initial.iter().map(|i| PendingRename::Base { disk: i.disk }));
}

/// Brings the list of disks, and of bases, up to the cut.
pub(super) fn adopt_disks(m: &mut Manifest, header: &CycleHeader) {
    for known in &mut m.disks {
        match header.disks.iter().find(|d| d.spec.id == known.spec.id) {
            Some(disk) => known.spec.size = disk.spec.size,
            None => known.removed = true,
        }
    }
    for disk in &header.disks {
        if m.disks.iter().any(|d| d.spec.id == disk.spec.id) {
            continue;
        }
        m.disks.push(DiskRecord { spec: disk.spec.clone(), removed: false });
        if m.waiting.is_some() {
            continue;
        }
        let base = m.base.as_mut().expect("the first cut publishes a base");
        base.files.push(BaseFile { disk: disk.spec.id, size: disk.spec.size, stub: None });
    }
    m.disks.sort_by_key(|d| d.spec.id);
}

/// Between its placing and now a change of points may have dropped what the definition shares with an older one.
pub(crate) fn adopt_definition(vm: &VmStore, m: &mut Manifest, placed: Placed) -> Result<FileNumber, DefinitionError> {
    let number = placed.record.number;
    let known = m.definitions.iter().any(|d| d.number == number);
    if !known && placed.made.is_none() {
        return Err(DefinitionError::Dropped);
    }
    if !known {
        vm.check_blobs(&placed.record.blobs)?;
        m.definitions.push(placed.record);
    }
    Ok(number)
}
