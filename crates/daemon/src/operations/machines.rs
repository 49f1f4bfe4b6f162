//! The VMs of this host, as the operations see them: looked at, never changed.

use std::path::Path;

use async_trait::async_trait;
use understudy_hypervisor::driver::Description;
use understudy_model::{Refusal, VmId};

/// Looks at VMs.
#[async_trait]
pub trait Machines: Send + Sync + 'static {
    /// Looks at the VM behind a QMP socket, and changes nothing about it. Bounded in time. Refuses with `FileNotFound`
    /// where there is no socket, `NotAvailable` where nobody answers, `InvalidParameter` where somebody else than a
    /// QEMU answers, `NotSupported` where the VM cannot be replicated as it is.
    async fn inspect(&self, qmp: &Path) -> Result<Inspection, Refusal>;

    /// Whether a text is a definition that drivers can build a VM from. `InvalidParameter` otherwise, with the place.
    fn check_definition(&self, text: &str) -> Result<(), Refusal>;
}

/// What was found.
#[derive(Debug, Clone)]
pub struct Inspection {
    /// The VM's own identity, if it was given one.
    pub uuid: Option<VmId>,
    /// What it is and does.
    pub description: Description,
    /// How to build it elsewhere, as far as it could be found out: disks numbered in the description's order.
    pub definition: Option<String>,
}
