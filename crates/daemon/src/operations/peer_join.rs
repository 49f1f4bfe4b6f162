//! Accepts an invitation: both hosts then know each other's key.
//!
//! The inviting host stores us first, then we store it. If the answer is lost in between, it trusts us and we do not
//! trust it: nothing can flow, and a new invitation mends it.

use std::time::Duration;

use understudy_model::{Refusal, ReturnCode};
use understudy_wire::message::{Join, Joined, Message};

use super::{Administer, Done, Operations, Permit, invalid, to_the_end};
use crate::audit::Act;
use crate::catalogue::{Authorization, PeerRecord};
use crate::config::ADVERTISE_MAX;
use crate::events::Notice;
use crate::link::DialError;
use crate::link::pairing::{free_name, usable, write_secret};
use crate::link::token::InviteToken;

/// Time the inviting host has to store us and answer.
const JOIN_LIMIT: Duration = Duration::from_secs(20);

/// An invitation to accept.
#[derive(Clone)]
pub struct PeerJoin {
    /// The token's text.
    pub token: String,
}

impl Operations {
    /// Accepts an invitation.
    pub async fn peer_join(&self, permit: &Permit<Administer>, request: PeerJoin) -> Result<Done<PeerRecord>, Refusal> {
        let token = InviteToken::parse(&request.token)
            .map_err(|err| invalid(err.to_string()).hint("copy the whole line that understudy peer invite printed"))?;
        if token.host == self.parts.about.id {
            return Err(invalid("the invitation is this host's own")
                .hint("accept it on the other host, the one whose VMs are to be replicated"));
        }
        let (this, by) = (self.clone(), permit.by().to_owned());
        to_the_end(async move { this.peer_join_now(by, token).await.map(Done::now) }).await
    }

    async fn peer_join_now(&self, by: String, token: InviteToken) -> Result<PeerRecord, Refusal> {
        let act = Act { by, act: "peer-join", object: token.host.to_string(), detail: token.addresses.join(" ") };
        let begun = self.parts.audit.begin(act).await?;
        match self.present(&token).await {
            Ok(peer) => {
                begun.done().await;
                Ok(peer)
            }
            Err(refusal) => {
                begun.refused(&refusal).await;
                Err(refusal)
            }
        }
    }

    async fn present(&self, token: &InviteToken) -> Result<PeerRecord, Refusal> {
        let dialled = self.parts.dialler.connect_invited(token.host, &token.addresses).await;
        let mut connection = dialled.map_err(|err| err.refusal())?;
        let card = self.parts.pairing.card();
        let join =
            Join { secret: write_secret(&token.secret), name: card.name.clone(), addresses: card.addresses.clone() };
        match connection.request(&Message::Join(join), JOIN_LIMIT).await {
            Ok(Message::Joined(joined)) => self.store(token, joined).await,
            Ok(other) => Err(Refusal::new(ReturnCode::Failed, format!("the host answered {:?}", other.name()))),
            Err(DialError::Refused(refusal)) => Err(refusal),
            Err(err) => {
                let reason = format!("the answer to the invitation was lost: {}", crate::chain(&err));
                Err(Refusal::new(ReturnCode::StatusUnknown, reason)
                    .hint("the other host may trust this one already; make a new invitation there and accept that"))
            }
        }
    }

    async fn store(&self, token: &InviteToken, joined: Joined) -> Result<PeerRecord, Refusal> {
        // What was dialled has worked; what the host says of itself may name more.
        let mut addresses = token.addresses.clone();
        addresses.extend(usable(&joined.addresses).into_iter().filter(|a| !token.addresses.contains(a)));
        addresses.truncate(ADVERTISE_MAX);
        let peer = PeerRecord {
            id: token.host,
            name: free_name(&self.parts.trust, token.host, &joined.name),
            addresses,
            added_at: self.parts.clock.wall(),
            // Who accepts an invitation lets nobody store anything here by that.
            authorization: Authorization::new(false),
        };
        self.parts.catalogue.put_peer(peer.clone()).await.map_err(|err| err.refusal())?;
        self.parts.trust.put(peer.clone());
        self.parts.events.tell(Notice::Peer(peer.id));
        tracing::info!(peer = %peer.id, name = %peer.name, "joined a host by its invitation");
        Ok(peer)
    }
}
