//! What is asked of a relationship under way: pause, go on, give the first copy up, other settings.

use understudy_model::job::JobKind;
use understudy_model::{Refusal, Settings};

use super::owner::Command;
use super::{Done, Operate, Operations, Permit, invalid, to_the_end};

impl Operations {
    /// Pauses replication on this host.
    pub async fn replication_suspend(&self, _permit: &Permit<Operate>, vm: &str, leg: u8) -> Result<Done, Refusal> {
        self.command(vm, leg, Command::Suspend, JobKind::ChangeState).await
    }

    /// Goes on with replication.
    pub async fn replication_resume(&self, _permit: &Permit<Operate>, vm: &str, leg: u8) -> Result<Done, Refusal> {
        self.command(vm, leg, Command::Resume, JobKind::ChangeState).await
    }

    /// Gives up an initial replication, after which the relationship is ready to be started anew, or a resynchronisation,
    /// after which one is required as before. What was to begin at a later time does not.
    pub async fn replication_stop(&self, _permit: &Permit<Operate>, vm: &str, leg: u8) -> Result<Done, Refusal> {
        self.command(vm, leg, Command::Stop, JobKind::StopInitial).await
    }

    /// Replaces the settings.
    pub async fn replication_modify(
        &self,
        _permit: &Permit<Operate>,
        vm: &str,
        leg: u8,
        settings: Settings,
    ) -> Result<Done, Refusal> {
        settings.check().map_err(|err| invalid(err.to_string()))?;
        self.command(vm, leg, Command::Modify(settings), JobKind::Modify).await
    }

    async fn command(&self, vm: &str, leg: u8, command: Command, kind: JobKind) -> Result<Done, Refusal> {
        let owner = self.find_owner(vm, leg).await?;
        let ticket = self.parts.jobs.ticket(kind, Some(owner.id().vm));
        let this = self.clone();
        to_the_end(async move { this.ask(owner.as_ref(), command, ticket).await.map(Done::from) }).await
    }
}
