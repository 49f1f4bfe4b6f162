//! Shows the hosts this one trusts.

use understudy_model::{Refusal, RelationshipId};

use super::{Operations, Permit, View};
use crate::catalogue::PeerRecord;

/// A trusted host.
#[derive(Debug, Clone)]
pub struct PeerReport {
    /// What is recorded.
    pub record: PeerRecord,
    /// Connections with it now.
    pub connections: usize,
    /// Relationships with it.
    pub relationships: Vec<RelationshipId>,
}

impl Operations {
    /// All peers, by name.
    pub async fn peer_list(&self, _permit: &Permit<View>) -> Result<Vec<PeerReport>, Refusal> {
        let all = self.parts.catalogue.relationships().await.map_err(|err| err.refusal())?;
        let peers = self.parts.trust.peers().into_iter().map(|(record, connections)| {
            let relationships = all.iter().filter(|r| r.peer == record.id).map(|r| r.id).collect();
            PeerReport { record, connections, relationships }
        });
        Ok(peers.collect())
    }
}
