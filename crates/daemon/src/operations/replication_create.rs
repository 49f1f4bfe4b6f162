//! Makes a relationship: a VM of this host is to be replicated to a peer. Nothing is copied before it is started.

use understudy_model::job::JobKind;
use understudy_model::settings::{PointEvery, ResyncWindow};
use understudy_model::{DiskId, Millis, Refusal, RelationshipId, ReturnCode, Settings};

use super::owner::{Answer, Command};
use super::replication_start::not_yet;
use super::resolve::quoted;
use super::{Done, Operate, Operations, Permit, invalid, to_the_end};
use crate::catalogue::{NewRelationship, Side, VmRecord};

/// What to make. What is not given is as in [`Settings::default`].
#[derive(Debug, Clone, Default)]
pub struct ReplicationCreate {
    /// The VM, by name or identity.
    pub vm: String,
    /// The peer, by name or identity.
    pub peer: String,
    /// Time between cuts.
    pub interval: Option<Millis>,
    /// Recovery points kept beside the newest state.
    pub points: Option<u16>,
    /// Which cuts become recovery points.
    pub point_every: Option<PointEvery>,
    /// Time between application-consistent points.
    pub application_consistent_every: Option<Millis>,
    /// Whether data is compressed.
    pub compression: Option<bool>,
    /// Disks left out.
    pub excluded_disks: Vec<DiskChoice>,
    /// When a resynchronisation that became necessary may start by itself.
    pub auto_resync: Option<ResyncWindow>,
}

/// A disk as a caller names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DiskChoice {
    /// By its number within the VM.
    Number(DiskId),
    /// By the hypervisor's durable name of it.
    Key(String),
}

impl std::str::FromStr for DiskChoice {
    type Err = std::convert::Infallible;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(text.parse().map_or_else(|_| DiskChoice::Key(text.to_owned()), DiskChoice::Number))
    }
}

impl Operations {
    /// Makes a relationship. The job contacts the peer.
    pub async fn replication_create(
        &self,
        _permit: &Permit<Operate>,
        request: ReplicationCreate,
    ) -> Result<Done<RelationshipId>, Refusal> {
        let vm = match self.find_vm(&request.vm).await {
            Ok(vm) => vm,
            Err(unknown) => return Err(self.extension(&request.vm).await.unwrap_or(unknown)),
        };
        let peer = self.find_peer(&request.peer)?;
        let settings = settings(&request, &vm)?;
        let new = NewRelationship {
            id: RelationshipId::first(vm.id),
            vm_name: vm.name.clone(),
            side: Side::Primary,
            peer: peer.id,
            settings,
            engine: None,
            made_at: self.parts.clock.wall(),
        };
        let this = self.clone();
        to_the_end(async move { this.replication_create_now(new).await }).await
    }

    /// For a VM that is a replica here, the call means to extend it to a third host.
    async fn extension(&self, vm: &str) -> Option<Refusal> {
        let id = self.find_relationship(vm, 0).await.ok()?;
        self.parts.registry.get(id).filter(|owner| owner.report().side == Side::Replica)?;
        Some(not_yet("extending a replica to a third host"))
    }

    async fn replication_create_now(&self, new: NewRelationship) -> Result<Done<RelationshipId>, Refusal> {
        let id = new.id;
        let owner = self.parts.registry.create(self.parts.factory.as_ref(), new).await?;
        let ticket = self.parts.jobs.ticket(JobKind::Create, Some(id.vm));
        match self.ask(owner.as_ref(), Command::Create, ticket).await {
            Ok(Answer::Job(job)) => Ok(Done { job: Some(job), value: id }),
            Ok(Answer::Done) => Ok(Done::now(id)),
            Err(refusal) => {
                if let Err(err) = self.parts.registry.discard(id).await {
                    tracing::error!(relationship = %id, err = %crate::chain(&err), "record of a refused relationship stays");
                }
                Err(refusal)
            }
        }
    }
}

fn settings(request: &ReplicationCreate, vm: &VmRecord) -> Result<Settings, Refusal> {
    let default = Settings::default();
    let settings = Settings {
        interval: request.interval.unwrap_or(default.interval),
        points: request.points.unwrap_or(default.points),
        point_every: request.point_every.unwrap_or(default.point_every),
        application_consistent_every: request.application_consistent_every,
        compression: request.compression.unwrap_or(default.compression),
        excluded_disks: excluded(&request.excluded_disks, vm)?,
        auto_resync: request.auto_resync,
    };
    settings.check().map_err(|err| invalid(err.to_string()))?;
    Ok(settings)
}

fn excluded(choices: &[DiskChoice], vm: &VmRecord) -> Result<Vec<DiskId>, Refusal> {
    let mut out: Vec<DiskId> = Vec::new();
    for choice in choices {
        let fits = |disk: &&understudy_model::DiskSpec| match choice {
            DiskChoice::Number(id) => disk.id == *id,
            DiskChoice::Key(key) => disk.key == *key,
        };
        let disk = vm.disks.iter().find(fits).ok_or_else(|| {
            let named = match choice {
                DiskChoice::Number(id) => id.to_string(),
                DiskChoice::Key(key) => quoted(key),
            };
            invalid(format!("VM {} has no disk {named}", quoted(&vm.name))).hint("list its disks: understudy vm show")
        })?;
        if out.contains(&disk.id) {
            return Err(invalid(format!("{} is excluded twice", disk.id)));
        }
        out.push(disk.id);
    }
    if out.len() == vm.disks.len() {
        return Err(Refusal::new(ReturnCode::InvalidParameter, "no disk would be replicated"));
    }
    out.sort_unstable();
    Ok(out)
}
