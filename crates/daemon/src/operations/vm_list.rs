//! Shows the VMs of this host.

use std::path::Path;
use std::time::Duration;

use understudy_model::{Refusal, RelationshipId};

use super::machines::Inspection;
use super::{Operations, Permit, View};
use crate::catalogue::VmRecord;

/// Time a VM has to describe itself before it is shown without.
const LOOK_LIMIT: Duration = Duration::from_secs(5);

/// A VM, with what it does now.
#[derive(Debug, Clone)]
pub struct VmView {
    /// What is recorded.
    pub record: VmRecord,
    /// Whether it is replicated from here.
    pub is_replicated: bool,
    /// What its hypervisor says, or why it says nothing; only looked for when one VM is shown.
    pub now: Option<Result<Inspection, Refusal>>,
}

impl Operations {
    /// All VMs, by name.
    pub async fn vm_list(&self, _permit: &Permit<View>) -> Result<Vec<VmView>, Refusal> {
        let vms = self.parts.catalogue.vms().await.map_err(|err| err.refusal())?;
        Ok(vms.into_iter().map(|record| self.view(record, None)).collect())
    }

    /// One VM, looked at now.
    pub async fn vm_show(&self, _permit: &Permit<View>, vm: &str) -> Result<VmView, Refusal> {
        let record = self.find_vm(vm).await?;
        let look = self.parts.machines.inspect(Path::new(&record.qmp));
        let now = tokio::time::timeout(LOOK_LIMIT, look).await.unwrap_or_else(|_| {
            Err(Refusal::new(understudy_model::ReturnCode::Timeout, "the VM's monitor does not answer"))
        });
        Ok(self.view(record, Some(now)))
    }

    fn view(&self, record: VmRecord, now: Option<Result<Inspection, Refusal>>) -> VmView {
        let is_replicated = self.parts.registry.get(RelationshipId::first(record.id)).is_some();
        VmView { record, is_replicated, now }
    }
}
