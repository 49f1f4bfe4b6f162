//! Images of a VM that is off: what is known of them, and reading them without a QEMU of the VM's.

use understudy_model::DiskId;

use crate::driver::{CutRequest, DiskInfo, Error, FrozenCut, ImageRecord, Result};

/// The records of disks of a VM that is on: where their images lie. Stamps mean nothing then.
pub fn records(disks: Vec<(DiskId, DiskInfo)>) -> Vec<ImageRecord> {
    let record = |(disk, info): (DiskId, DiskInfo)| {
        Some(ImageRecord { disk, path: info.path?, format: info.format, stamp: None })
    };
    disks.into_iter().filter_map(record).collect()
}

/// A cut of a VM that no QEMU runs.
pub async fn cut(_request: CutRequest) -> Result<Box<dyn FrozenCut>> {
    Err(Error::Busy("the VM is off".into()))
}
