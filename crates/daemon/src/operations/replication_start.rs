//! Starts initial replications (`StartReplication`) and resynchronisations (`Resynchronize`).

use std::path::PathBuf;

use understudy_engine::primary::InitialKind;
use understudy_model::job::JobKind;
use understudy_model::{Millis, Refusal, ReturnCode, Timestamp};

use super::owner::Command;
use super::{Done, Operate, Operations, Permit, invalid, to_the_end};
use crate::primary::schedule::Beginning;

/// Furthest scheduled start, as in Hyper-V's cmdlets.
const SCHEDULE_MAX: Millis = Millis::from_secs(7 * 86_400);

/// How the first full copy gets to the replica (`InitialReplicationType`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum InitialReplication {
    /// 1: over the network.
    Network,
    /// 2: into a directory, to be carried there.
    Export {
        /// The directory.
        location: Option<PathBuf>,
    },
    /// 3: a copy is there already; both sides are compared.
    Seeded,
}

/// What to start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReplicationStart {
    /// The VM, by name or identity.
    pub vm: String,
    /// Which leg.
    pub leg: u8,
    /// How.
    pub initial: InitialReplication,
    /// When (wall clock); `None` or a time gone by is at once. Not heeded for an export.
    pub at: Option<Timestamp>,
}

impl Operations {
    /// Starts initial replication. The job follows the copy to its end.
    pub async fn replication_start(
        &self,
        _permit: &Permit<Operate>,
        request: ReplicationStart,
    ) -> Result<Done, Refusal> {
        self.check_values(&request)?;
        let owner = self.find_owner(&request.vm, request.leg).await?;
        let kind = match request.initial {
            InitialReplication::Network => InitialKind::Network,
            InitialReplication::Seeded => InitialKind::Seeded,
            InitialReplication::Export { .. } => {
                return Err(not_yet("initial replication by export")
                    .hint("start it over the network: understudy replication start"));
            }
        };
        let what = Beginning::Initial(kind);
        let ticket = self.parts.jobs.ticket(what.job_kind(), Some(owner.id().vm)).cancellable();
        let command = Command::Start { kind, at: self.later(request.at) };
        let this = self.clone();
        to_the_end(async move { this.ask(owner.as_ref(), command, ticket).await.map(Done::from) }).await
    }

    /// Compares both sides and repairs the replica (`Resynchronize`), at once or at a later time.
    pub async fn replication_resync(
        &self,
        _permit: &Permit<Operate>,
        vm: &str,
        leg: u8,
        at: Option<Timestamp>,
    ) -> Result<Done, Refusal> {
        self.check_time(at)?;
        let owner = self.find_owner(vm, leg).await?;
        let ticket = self.parts.jobs.ticket(JobKind::Resync, Some(owner.id().vm)).cancellable();
        let command = Command::Resync { at: self.later(at) };
        let this = self.clone();
        to_the_end(async move { this.ask(owner.as_ref(), command, ticket).await.map(Done::from) }).await
    }

    /// A time gone by is at once.
    fn later(&self, at: Option<Timestamp>) -> Option<Timestamp> {
        at.filter(|at| *at > self.parts.clock.wall())
    }

    fn check_time(&self, at: Option<Timestamp>) -> Result<(), Refusal> {
        if at.is_some_and(|at| at > self.parts.clock.wall() + SCHEDULE_MAX) {
            return Err(invalid("a start can be scheduled for at most 7 days ahead"));
        }
        Ok(())
    }

    fn check_values(&self, request: &ReplicationStart) -> Result<(), Refusal> {
        if let InitialReplication::Export { location } = &request.initial {
            let location = location.as_ref().ok_or_else(|| invalid("an export needs a directory"))?;
            if !location.is_absolute() {
                return Err(invalid("the directory of an export must be given by its full path"));
            }
            return Ok(());
        }
        self.check_time(request.at)
    }
}

/// The refusal for what this version does not offer.
pub(super) fn not_yet(what: &str) -> Refusal {
    Refusal::new(ReturnCode::NotSupported, format!("{what} is not offered by this version"))
}
