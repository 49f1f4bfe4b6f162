//! Takes a VM off this host's list. The VM itself is not touched.

use understudy_model::{Refusal, ReturnCode};

use super::resolve::quoted;
use super::{Done, Operate, Operations, Permit, to_the_end};
use crate::audit::Act;
use crate::events::Notice;

impl Operations {
    /// Removes a VM from the list.
    pub async fn vm_remove(&self, permit: &Permit<Operate>, vm: String) -> Result<Done, Refusal> {
        let (this, by) = (self.clone(), permit.by().to_owned());
        to_the_end(async move { this.vm_remove_now(by, &vm).await.map(Done::now) }).await
    }

    async fn vm_remove_now(&self, by: String, vm: &str) -> Result<(), Refusal> {
        let record = self.find_vm(vm).await?;
        let object = format!("{} {}", record.name, record.id);
        let begun = self.parts.audit.begin(Act { by, act: "vm-remove", object, detail: String::new() }).await?;
        let removed = self.parts.catalogue.remove_vm(record.id).await.map_err(|err| err.refusal());
        match removed.and_then(|gone| if gone { Ok(()) } else { Err(is_replicated(&record.name)) }) {
            Ok(()) => {
                begun.done().await;
                self.parts.events.tell(Notice::VmRemoved(record.id));
                Ok(())
            }
            Err(refusal) => {
                begun.refused(&refusal).await;
                Err(refusal)
            }
        }
    }
}

fn is_replicated(name: &str) -> Refusal {
    Refusal::new(ReturnCode::InvalidState, format!("VM {} is replicated", quoted(name)))
        .hint("remove its relationship first: understudy replication remove")
}
