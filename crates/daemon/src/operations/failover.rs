//! Failover, revert and commit: on the replica, recorded in the audit log before anything happens.

use understudy_model::job::JobKind;
use understudy_model::{PointId, Refusal};

use super::owner::Command;
use super::{Done, Failover, Operations, Permit, to_the_end};
use crate::audit::Act;

impl Operations {
    /// Makes a recovery point startable, and starts the VM from it if asked to.
    pub async fn failover_start(
        &self,
        permit: &Permit<Failover>,
        vm: String,
        point: Option<PointId>,
        power_on: bool,
    ) -> Result<Done, Refusal> {
        let command = Command::FailoverStart { point, power_on };
        let chosen = point.map_or("newest state".to_owned(), |p| format!("point {p}"));
        let detail = if power_on { format!("{chosen}, power on") } else { chosen };
        self.failover(permit, vm, "failover-start", detail, command, JobKind::Failover).await
    }

    /// Throws a failover away: the VM started from it ends, and what it wrote is lost.
    pub async fn failover_revert(&self, permit: &Permit<Failover>, vm: String) -> Result<Done, Refusal> {
        self.failover(permit, vm, "failover-revert", String::new(), Command::FailoverRevert, JobKind::Revert).await
    }

    /// Makes a failover final: the other recovery points go.
    pub async fn failover_commit(&self, permit: &Permit<Failover>, vm: String) -> Result<Done, Refusal> {
        self.failover(permit, vm, "failover-commit", String::new(), Command::FailoverCommit, JobKind::Commit).await
    }

    async fn failover(
        &self,
        permit: &Permit<Failover>,
        vm: String,
        word: &'static str,
        detail: String,
        command: Command,
        kind: JobKind,
    ) -> Result<Done, Refusal> {
        let owner = self.find_owner(&vm, 0).await?;
        let (this, by) = (self.clone(), permit.by().to_owned());
        to_the_end(async move {
            let id = owner.id();
            let act = Act { by, act: word, object: format!("{} {id}", owner.report().vm_name), detail };
            let ticket = this.parts.jobs.ticket(kind, Some(id.vm));
            this.ask_audited(act, owner.as_ref(), command, ticket).await
        })
        .await
    }
}
