//! Whom this host trusts, as the connections see it: a copy of the catalogue's peers in memory, with what is needed to
//! end their connections at once.
//!
//! Invariant: changed only after the catalogue was. Withdrawing trust cancels the peer's token before the call returns,
//! and every stream of that peer ends with its token.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};

use tokio_util::sync::CancellationToken;
use understudy_model::{PeerId, Timestamp};

use crate::catalogue::{Authorization, PeerRecord};
use crate::clock::Clock;

/// See the module's description.
pub struct Trust {
    clock: Arc<dyn Clock>,
    connections_max: usize,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    peers: BTreeMap<PeerId, Entry>,
    /// Until when invitations are open (wall clock): strangers are let through the handshake to present a secret.
    invited_until: Timestamp,
}

struct Entry {
    record: PeerRecord,
    ended: CancellationToken,
    connections: usize,
}

impl std::fmt::Debug for Trust {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Trust").field("peers", &self.state().peers.len()).finish_non_exhaustive()
    }
}

/// A trusted peer's connection, counted. Dropping it gives the place back.
#[derive(Debug)]
pub struct Admission {
    trust: Arc<Trust>,
    peer: PeerId,
    ended: CancellationToken,
}

/// Why a peer's connection is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AdmissionError {
    /// Not trusted.
    #[error("the peer is not trusted")]
    Unknown,
    /// It has as many connections as it may.
    #[error("the peer holds {held} connections already")]
    TooMany {
        /// How many.
        held: usize,
    },
}

impl Trust {
    /// Trust in these peers. Each may hold `connections_max` connections at once.
    pub fn new(clock: Arc<dyn Clock>, connections_max: usize, peers: Vec<PeerRecord>) -> Arc<Self> {
        let trust = Self { clock, connections_max, state: Mutex::default() };
        peers.into_iter().for_each(|peer| trust.put(peer));
        Arc::new(trust)
    }

    /// Trusts a peer from now on, or takes over what changed about it.
    pub fn put(&self, record: PeerRecord) {
        let mut state = self.state();
        match state.peers.get_mut(&record.id) {
            Some(entry) => entry.record = record,
            None => {
                let entry = Entry { record, ended: CancellationToken::new(), connections: 0 };
                state.peers.insert(entry.record.id, entry);
            }
        }
    }

    /// Ends trust, and with it every connection of the peer.
    pub fn remove(&self, peer: PeerId) {
        if let Some(entry) = self.state().peers.remove(&peer) {
            entry.ended.cancel();
        }
    }

    /// Whether a peer is trusted.
    pub fn is_trusted(&self, peer: PeerId) -> bool {
        self.state().peers.contains_key(&peer)
    }

    /// What is known of a peer.
    pub fn peer(&self, peer: PeerId) -> Option<PeerRecord> {
        self.state().peers.get(&peer).map(|entry| entry.record.clone())
    }

    /// Every trusted peer, with the number of its connections, by name.
    pub fn peers(&self) -> Vec<(PeerRecord, usize)> {
        let mut peers: Vec<_> = self.state().peers.values().map(|e| (e.record.clone(), e.connections)).collect();
        peers.sort_by(|a, b| a.0.name.cmp(&b.0.name));
        peers
    }

    /// What a peer may do here. `None`: it is not trusted.
    pub fn authorization(&self, peer: PeerId) -> Option<Authorization> {
        self.state().peers.get(&peer).map(|entry| entry.record.authorization.clone())
    }

    /// Counts a connection of a trusted peer in.
    pub fn admit(self: &Arc<Self>, peer: PeerId) -> Result<Admission, AdmissionError> {
        let mut state = self.state();
        let entry = state.peers.get_mut(&peer).ok_or(AdmissionError::Unknown)?;
        if entry.connections >= self.connections_max {
            return Err(AdmissionError::TooMany { held: entry.connections });
        }
        entry.connections += 1;
        Ok(Admission { trust: self.clone(), peer, ended: entry.ended.clone() })
    }

    /// Lets strangers through the handshake until then (wall clock), if that is later than now agreed.
    pub fn await_strangers(&self, until: Timestamp) {
        let mut state = self.state();
        state.invited_until = state.invited_until.max(until);
    }

    /// Whether an invitation may be open.
    pub fn awaits_strangers(&self) -> bool {
        self.clock.wall() < self.state().invited_until
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl Admission {
    /// Fires when trust in the peer ends.
    pub fn ended(&self) -> &CancellationToken {
        &self.ended
    }
}

impl Drop for Admission {
    fn drop(&mut self) {
        let mut state = self.trust.state();
        // A peer that was removed and came back has a new entry, which never counted this connection.
        if !self.ended.is_cancelled()
            && let Some(entry) = state.peers.get_mut(&self.peer)
        {
            entry.connections -= 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::ManualClock;
    use understudy_model::Millis;

    fn record(n: u8) -> PeerRecord {
        PeerRecord {
            id: PeerId([n; 32]),
            name: format!("peer-{n}"),
            addresses: vec![],
            added_at: Timestamp(0),
            authorization: Authorization::new(true),
        }
    }

    fn trust(clock: &Arc<ManualClock>) -> Arc<Trust> {
        Trust::new(clock.clone(), 2, vec![record(1)])
    }

    #[test]
    fn connections_are_counted_and_given_back() {
        let trust = trust(&Arc::new(ManualClock::new(Timestamp(0))));
        let first = trust.admit(PeerId([1; 32])).unwrap();
        let _second = trust.admit(PeerId([1; 32])).unwrap();
        assert_eq!(trust.admit(PeerId([1; 32])).unwrap_err(), AdmissionError::TooMany { held: 2 });
        drop(first);
        assert!(trust.admit(PeerId([1; 32])).is_ok());
        assert_eq!(trust.admit(PeerId([2; 32])).unwrap_err(), AdmissionError::Unknown);
    }

    #[test]
    fn a_removed_peers_connections_end_and_a_returning_one_starts_from_none() {
        let trust = trust(&Arc::new(ManualClock::new(Timestamp(0))));
        let old = trust.admit(PeerId([1; 32])).unwrap();
        trust.remove(PeerId([1; 32]));
        assert!(old.ended().is_cancelled() && !trust.is_trusted(PeerId([1; 32])));
        trust.put(record(1));
        let new = trust.admit(PeerId([1; 32])).unwrap();
        drop(old);
        assert!(!new.ended().is_cancelled());
        assert_eq!(trust.peers()[0].1, 1);
    }

    #[test]
    fn a_change_of_the_entry_leaves_connections_alone() {
        let trust = trust(&Arc::new(ManualClock::new(Timestamp(0))));
        let held = trust.admit(PeerId([1; 32])).unwrap();
        trust.put(PeerRecord { authorization: Authorization::new(false), ..record(1) });
        assert!(!held.ended().is_cancelled());
        assert!(!trust.authorization(PeerId([1; 32])).unwrap().may_replicate_here);
    }

    #[test]
    fn strangers_are_awaited_while_an_invitation_is_open() {
        let clock = Arc::new(ManualClock::new(Timestamp(1000)));
        let trust = trust(&clock);
        assert!(!trust.awaits_strangers());
        trust.await_strangers(Timestamp(2000));
        trust.await_strangers(Timestamp(1500));
        assert!(trust.awaits_strangers());
        clock.advance(Millis(1000));
        assert!(!trust.awaits_strangers());
    }
}
