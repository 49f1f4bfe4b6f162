//! Finds what a caller means: VMs, peers and relationships by name or identity.

use std::str::FromStr;
use std::sync::Arc;

use understudy_model::{PeerId, Refusal, RelationshipId, ReturnCode, VmId};

use super::owner::RelationshipOwner;
use super::{Operations, invalid};
use crate::catalogue::{PeerRecord, VmRecord};

/// Shortest beginning of a peer's identity that stands for the whole, in hexadecimal digits.
const PEER_PREFIX_MIN: usize = 8;

impl Operations {
    /// The VM with this name or identity.
    pub(super) async fn find_vm(&self, text: &str) -> Result<VmRecord, Refusal> {
        let vms = self.parts.catalogue.vms().await.map_err(|err| err.refusal())?;
        let id = VmId::from_str(text).ok();
        vms.into_iter().find(|vm| vm.name == text || Some(vm.id) == id).ok_or_else(|| {
            invalid(format!("there is no VM {} on this host", quoted(text))).hint("list them: understudy vm list")
        })
    }

    /// The peer with this name or identity, or the one whose identity begins so.
    pub(super) fn find_peer(&self, text: &str) -> Result<PeerRecord, Refusal> {
        let peers: Vec<PeerRecord> = self.parts.trust.peers().into_iter().map(|(peer, _)| peer).collect();
        if let Some(named) = peers.iter().find(|peer| peer.name == text) {
            return Ok(named.clone());
        }
        let id = PeerId::from_str(text).ok();
        let begins = |peer: &PeerRecord| text.len() >= PEER_PREFIX_MIN && peer.id.to_string().starts_with(text);
        let mut found = peers.into_iter().filter(|peer| Some(peer.id) == id || begins(peer));
        match (found.next(), found.next()) {
            (Some(peer), None) => Ok(peer),
            (Some(_), Some(_)) => Err(invalid(format!("more than one peer's identity begins with {}", quoted(text)))),
            (None, _) => Err(invalid(format!("there is no peer {}", quoted(text)))
                .hint("list them: understudy peer list; or pair the hosts: understudy peer invite on the replica")),
        }
    }

    /// The relationship of the VM with this name or identity, on this leg.
    pub(super) async fn find_relationship(&self, text: &str, leg: u8) -> Result<RelationshipId, Refusal> {
        if leg > 1 {
            return Err(invalid(format!("there is no leg {leg}: a VM has a first (0) and an extended (1) one")));
        }
        let records = self.parts.catalogue.relationships().await.map_err(|err| err.refusal())?;
        let id = VmId::from_str(text).ok();
        let known = |vm: VmId, name: &str| Some(vm) == id || name == text;
        let mut found: Vec<RelationshipId> =
            records.iter().filter(|r| r.id.leg == leg && known(r.id.vm, &r.vm_name)).map(|r| r.id).collect();
        if found.is_empty()
            && let Ok(vm) = self.find_vm(text).await
        {
            // A VM may bear another name here than in the relationship.
            found.extend(records.iter().filter(|r| r.id == RelationshipId { vm: vm.id, leg }).map(|r| r.id));
            if found.is_empty() {
                return Err(Refusal::new(ReturnCode::InvalidState, format!("VM {} is not replicated", quoted(text)))
                    .hint("make a relationship first: understudy replication create"));
            }
        }
        match found[..] {
            [one] => Ok(one),
            [] => Err(invalid(format!("there is no replicated VM {} on this host", quoted(text)))
                .hint("list them: understudy replication status")),
            _ => Err(invalid(format!("more than one replicated VM is named {}", quoted(text)))
                .hint("say which by its identity: understudy replication status --json")),
        }
    }

    /// The owner of a relationship.
    pub(super) async fn find_owner(&self, text: &str, leg: u8) -> Result<Arc<dyn RelationshipOwner>, Refusal> {
        let id = self.find_relationship(text, leg).await?;
        self.parts.registry.get(id).ok_or_else(|| {
            Refusal::new(ReturnCode::InvalidState, format!("replication of VM {} could not be taken up", quoted(text)))
                .hint("the log of the service's start has the cause; the relationship can be removed")
        })
    }
}

/// A text from outside as it may stand in an answer: on one line, and not endless.
pub(super) fn quoted(text: &str) -> String {
    format!("{:?}", text.chars().take(100).collect::<String>())
}
