//! Withdraws trust from a host, at once and whatever rests on it: who takes a key away must not be made to wait.
//!
//! Relationships with the host stay and show that it is not trusted; pairing the same host again makes them go on.

use understudy_model::{PeerId, Refusal, RelationshipId};

use super::{Administer, Done, Operations, Permit, to_the_end};
use crate::audit::Act;
use crate::events::Notice;

/// What was removed, and what rested on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerRemoved {
    /// The host.
    pub id: PeerId,
    /// Its name.
    pub name: String,
    /// Relationships that now stand still.
    pub relationships: Vec<RelationshipId>,
}

impl Operations {
    /// Withdraws trust from a host.
    pub async fn peer_remove(&self, permit: &Permit<Administer>, peer: String) -> Result<Done<PeerRemoved>, Refusal> {
        let (this, by) = (self.clone(), permit.by().to_owned());
        to_the_end(async move { this.peer_remove_now(by, &peer).await.map(Done::now) }).await
    }

    async fn peer_remove_now(&self, by: String, peer: &str) -> Result<PeerRemoved, Refusal> {
        let record = self.find_peer(peer)?;
        let all = self.parts.catalogue.relationships().await.map_err(|err| err.refusal())?;
        let relationships: Vec<RelationshipId> = all.iter().filter(|r| r.peer == record.id).map(|r| r.id).collect();
        let (object, detail) =
            (format!("{} {}", record.name, record.id), format!("{} relationships", relationships.len()));
        let begun = self.parts.audit.begin(Act { by, act: "peer-remove", object, detail }).await?;
        if let Err(err) = self.parts.catalogue.remove_peer(record.id).await {
            let refusal = err.refusal();
            begun.refused(&refusal).await;
            return Err(refusal);
        }
        self.parts.trust.remove(record.id);
        begun.done().await;
        tracing::info!(peer = %record.id, name = %record.name, "peer removed");
        self.parts.events.tell(Notice::PeerRemoved(record.id));
        relationships.iter().for_each(|id| self.parts.events.tell(Notice::Relationship(*id)));
        Ok(PeerRemoved { id: record.id, name: record.name, relationships })
    }
}
