//! Shows relationships.

use understudy_model::{Refusal, RelationshipId};

use super::owner::RelationshipReport;
use super::{Operations, Permit, View};
use crate::catalogue::{CycleRecord, RelationshipRecord};

/// Most cycles of the history told at once.
const CYCLES_MAX: u32 = 1000;

/// A relationship: what its owner says, or that nobody could take it up.
#[derive(Debug, Clone)]
pub struct RelationshipView {
    /// The peer's name here; `None` if it is not trusted (any more).
    pub peer_name: Option<String>,
    /// What is told of it.
    pub told: Result<Box<RelationshipReport>, Box<RelationshipRecord>>,
}

impl Operations {
    /// All relationships, by name of the VM.
    pub async fn replication_list(&self, _permit: &Permit<View>) -> Result<Vec<RelationshipView>, Refusal> {
        let mut views: Vec<_> = self.parts.registry.all().iter().map(|owner| self.shown(owner.report())).collect();
        let ownerless = self.parts.registry.ownerless().await.map_err(|err| err.refusal())?;
        views.extend(ownerless.into_iter().map(|record| self.unshown(record)));
        views.sort_by(|a, b| a.sort_key().cmp(&b.sort_key()));
        Ok(views)
    }

    /// One relationship.
    pub async fn replication_show(
        &self,
        _permit: &Permit<View>,
        vm: &str,
        leg: u8,
    ) -> Result<RelationshipView, Refusal> {
        let id = self.find_relationship(vm, leg).await?;
        if let Some(owner) = self.parts.registry.get(id) {
            return Ok(self.shown(owner.report()));
        }
        let record = self.parts.catalogue.relationship(id).await.map_err(|err| err.refusal())?;
        record.map(|r| self.unshown(r)).ok_or_else(|| super::invalid(format!("relationship {id} is gone")))
    }

    /// One relationship by identity, if it is still there: for streams of events.
    pub fn replication_peek(&self, _permit: &Permit<View>, id: RelationshipId) -> Option<RelationshipView> {
        self.parts.registry.get(id).map(|owner| self.shown(owner.report()))
    }

    /// The latest cycles of a relationship, newest first.
    pub async fn replication_history(
        &self,
        _permit: &Permit<View>,
        vm: &str,
        leg: u8,
        count: u32,
    ) -> Result<Vec<CycleRecord>, Refusal> {
        let id = self.find_relationship(vm, leg).await?;
        self.parts.catalogue.cycles(id, count.min(CYCLES_MAX)).await.map_err(|err| err.refusal())
    }

    fn shown(&self, report: RelationshipReport) -> RelationshipView {
        let peer_name = self.parts.trust.peer(report.peer).map(|peer| peer.name);
        RelationshipView { peer_name, told: Ok(Box::new(report)) }
    }

    fn unshown(&self, record: RelationshipRecord) -> RelationshipView {
        let peer_name = self.parts.trust.peer(record.peer).map(|peer| peer.name);
        RelationshipView { peer_name, told: Err(Box::new(record)) }
    }
}

impl RelationshipView {
    fn sort_key(&self) -> (&str, RelationshipId) {
        match &self.told {
            Ok(report) => (&report.vm_name, report.id),
            Err(record) => (&record.vm_name, record.id),
        }
    }
}
