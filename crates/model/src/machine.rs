//! Disks as replication sees them. What else a VM has (processors, NICs) is a definition: text that only the
//! hypervisor driver reads.

use crate::id::DiskId;

/// One disk of a VM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskSpec {
    /// Its number within the VM.
    pub id: DiskId,
    /// How the hypervisor names the device durably (a device id, a serial): tells it from the others after a restart.
    pub key: String,
    /// Size in bytes as the guest sees it: a positive multiple of 512.
    pub size: u64,
}

impl DiskSpec {
    /// Most disks of one VM. Hyper-V's limit is 4 controllers of 64 SCSI disks; ours is a named bound on tables.
    pub const COUNT_MAX: usize = 256;
    /// Largest disk: 64 TiB, the largest VHDX (MS-VHDX section 1.3).
    pub const SIZE_MAX: u64 = 64 << 40;
}
