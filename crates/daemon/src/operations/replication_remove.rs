//! Ends a relationship on this host. The other side is told if it can be reached; what it holds stays there.

use understudy_model::Refusal;
use understudy_model::job::JobKind;

use super::owner::Command;
use super::{Administer, Done, Operations, Permit, to_the_end};
use crate::audit::Act;

impl Operations {
    /// Ends a relationship.
    pub async fn replication_remove(&self, permit: &Permit<Administer>, vm: String, leg: u8) -> Result<Done, Refusal> {
        let (this, by) = (self.clone(), permit.by().to_owned());
        to_the_end(async move { this.replication_remove_now(by, &vm, leg).await }).await
    }

    async fn replication_remove_now(&self, by: String, vm: &str, leg: u8) -> Result<Done, Refusal> {
        let id = self.find_relationship(vm, leg).await?;
        let act = Act { by, act: "replication-remove", object: id.to_string(), detail: String::new() };
        if let Some(owner) = self.parts.registry.get(id) {
            let ticket = self.parts.jobs.ticket(JobKind::Remove, Some(id.vm));
            return self.ask_audited(act, owner.as_ref(), Command::Remove, ticket).await;
        }
        // Nobody could take it up at the start; it can still be forgotten.
        let begun = self.parts.audit.begin(act).await?;
        match self.parts.registry.discard(id).await {
            Ok(()) => {
                begun.done().await;
                Ok(Done::now(()))
            }
            Err(err) => {
                let refusal = err.refusal();
                begun.refused(&refusal).await;
                Err(refusal)
            }
        }
    }
}
