//! How an unknown host becomes a trusted one: by presenting the secret of an invitation.
//!
//! The stranger has proved by TLS that it holds its key, and has checked ours against the token. What is decided here
//! is only whether the secret is that of an open invitation. Comparing takes the same time whatever is presented;
//! using an invitation up and storing the peer is one step in the catalogue, so of two hosts that present the same
//! secret at once one is trusted.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use aws_lc_rs::constant_time::verify_slices_are_equal;
use understudy_model::{Millis, PeerId, Refusal, ReturnCode, Timestamp};
use understudy_wire::message::{Join, Joined};

use super::token::InviteToken;
use super::trust::Trust;
use crate::audit::{Act, Audit};
use crate::catalogue::{Authorization, Catalogue, InviteRecord, PeerRecord};
use crate::clock::Clock;
use crate::config;
use crate::entropy::Entropy;
use crate::events::{Events, Notice};
use crate::names::{NAME_MAX, to_name};

/// Separates the hash of a secret from every other use of the hash.
const HASH_CONTEXT: &str = "understudy 2026 secret of an invitation";

/// How this host presents itself to those it trusts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Card {
    /// Its name.
    pub name: String,
    /// Where it can be reached.
    pub addresses: Vec<String>,
}

/// Makes invitations and takes them.
pub struct Pairing {
    catalogue: Catalogue,
    trust: Arc<Trust>,
    audit: Audit,
    events: Events,
    clock: Arc<dyn Clock>,
    entropy: Arc<dyn Entropy>,
    config: config::Invite,
    own: PeerId,
    card: Card,
    attempts: Mutex<Attempts>,
}

/// Wrong secrets within the running minute (steady clock).
#[derive(Debug, Default)]
struct Attempts {
    since: Timestamp,
    wrong: u32,
}

/// What pairing needs of the rest of the daemon.
pub struct PairingParts {
    /// Where invitations and peers are recorded.
    pub catalogue: Catalogue,
    /// Who is trusted.
    pub trust: Arc<Trust>,
    /// Where joining is recorded.
    pub audit: Audit,
    /// Who hears of new peers.
    pub events: Events,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Randomness.
    pub entropy: Arc<dyn Entropy>,
    /// Limits.
    pub config: config::Invite,
}

impl Pairing {
    /// Pairing for the host with this key and card. Takes up the invitations that are open already.
    pub async fn open(parts: PairingParts, own: PeerId, card: Card) -> Result<Self, crate::catalogue::CatalogueError> {
        let PairingParts { catalogue, trust, audit, events, clock, entropy, config } = parts;
        for invite in catalogue.invites().await?.iter().filter(|i| i.used_at.is_none()) {
            trust.await_strangers(invite.expires_at);
        }
        let attempts = Mutex::default();
        Ok(Self { catalogue, trust, audit, events, clock, entropy, config, own, card, attempts })
    }

    /// How this host presents itself.
    pub fn card(&self) -> &Card {
        &self.card
    }

    /// Makes an invitation. Its token is shown once and stored nowhere.
    pub async fn invite(&self) -> Result<InviteToken, Refusal> {
        let secret = self.entropy.secret();
        let now = self.clock.wall();
        let expires_at = now + self.config.lifetime.0;
        let record = InviteRecord { secret: hash(&secret), made_at: now, expires_at, used_at: None };
        let recorded = self.catalogue.add_invite(record, self.config.open_max).await.map_err(|err| err.refusal())?;
        if !recorded {
            let reason = format!("{} invitations are open already", self.config.open_max);
            return Err(Refusal::new(ReturnCode::OutOfMemory, reason).hint("wait until one has been used or has ended"));
        }
        self.trust.await_strangers(expires_at);
        Ok(InviteToken { host: self.own, addresses: self.card.addresses.clone(), secret, expires_at })
    }

    /// Takes the secret that a host presents. On success the host is trusted, durably.
    pub async fn join(&self, peer: PeerId, remote: SocketAddr, join: &Join) -> Result<Joined, Refusal> {
        let secret = match self.check(join).await {
            Ok(secret) => secret,
            Err(refusal) => {
                self.note_refused(peer, remote, &refusal).await;
                return Err(refusal);
            }
        };
        let record = self.record_for(peer, join);
        let object = format!("{} {}", record.name, record.id);
        let act = Act { by: format!("peer at {remote}"), act: "peer-join", object, detail: "by invitation".to_owned() };
        let begun = self.audit.begin(act).await?;
        match self.admit(secret, record).await {
            Ok(()) => {
                begun.done().await;
                Ok(Joined { name: self.card.name.clone(), addresses: self.card.addresses.clone() })
            }
            Err(refusal) => {
                begun.refused(&refusal).await;
                Err(refusal)
            }
        }
    }

    async fn admit(&self, secret: [u8; 32], record: PeerRecord) -> Result<(), Refusal> {
        let id = record.id;
        let now = self.clock.wall();
        let used = self.catalogue.use_invite(secret, now, record.clone()).await.map_err(|err| err.refusal())?;
        if !used {
            // Somebody else used it between our look and now, or it has just ended.
            return Err(used_up());
        }
        tracing::info!(peer = %id, name = %record.name, "peer joined by invitation");
        self.trust.put(record);
        self.events.tell(Notice::Peer(id));
        Ok(())
    }

    /// Finds the open invitation of a secret. Looks at all of them, whichever fits.
    async fn check(&self, join: &Join) -> Result<[u8; 32], Refusal> {
        self.charge_attempt()?;
        let given = hash(&read_secret(&join.secret).unwrap_or_default());
        let invites = self.catalogue.invites().await.map_err(|err| err.refusal())?;
        let mut found = None;
        for invite in &invites {
            if verify_slices_are_equal(&invite.secret, &given).is_ok() {
                found = Some(invite);
            }
        }
        let Some(invite) = found else {
            return Err(Refusal::new(ReturnCode::AccessDenied, "the invitation is not known here")
                .hint("make a new one on the host that is to be joined: understudy peer invite"));
        };
        match invite.used_at {
            Some(_) => Err(used_up()),
            None if invite.expires_at <= self.clock.wall() => {
                Err(Refusal::new(ReturnCode::AccessDenied, "the invitation has expired")
                    .hint("make a new one on the host that is to be joined: understudy peer invite"))
            }
            None => {
                self.give_attempt_back();
                Ok(given)
            }
        }
    }

    /// Counts an attempt before anything is looked up, so that many at once are counted too.
    fn charge_attempt(&self) -> Result<(), Refusal> {
        let now = self.clock.steady();
        let mut attempts = self.attempts.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if now - attempts.since >= Millis::from_secs(60) {
            *attempts = Attempts { since: now, wrong: 0 };
        }
        if attempts.wrong >= self.config.attempts_per_minute {
            return Err(Refusal::new(ReturnCode::SystemInUse, "too many wrong invitations were presented lately")
                .hint("try again in a minute"));
        }
        attempts.wrong += 1;
        Ok(())
    }

    fn give_attempt_back(&self) {
        let mut attempts = self.attempts.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        attempts.wrong = attempts.wrong.saturating_sub(1);
    }

    fn record_for(&self, id: PeerId, join: &Join) -> PeerRecord {
        PeerRecord {
            id,
            name: free_name(&self.trust, id, &join.name),
            addresses: usable(&join.addresses),
            added_at: self.clock.wall(),
            authorization: Authorization::new(true),
        }
    }

    async fn note_refused(&self, peer: PeerId, remote: SocketAddr, refusal: &Refusal) {
        // Past the limit nothing more is written: a flood must not fill the log.
        if refusal.code == ReturnCode::SystemInUse {
            return;
        }
        tracing::warn!(%peer, %remote, %refusal, "invitation presented by a host was refused");
        let act =
            Act { by: format!("peer at {remote}"), act: "peer-join", object: peer.to_string(), detail: String::new() };
        self.audit.note(act, &format!("refused: {refusal}")).await;
    }
}

fn used_up() -> Refusal {
    Refusal::new(ReturnCode::AccessDenied, "the invitation was used before")
        .hint("each invitation serves once: make a new one with understudy peer invite")
}

fn hash(secret: &[u8; 16]) -> [u8; 32] {
    blake3::derive_key(HASH_CONTEXT, secret)
}

/// The secret as it travels: 32 hexadecimal digits.
pub fn write_secret(secret: &[u8; 16]) -> String {
    secret.iter().map(|b| format!("{b:02x}")).collect()
}

fn read_secret(text: &str) -> Option<[u8; 16]> {
    if text.len() != 32 || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    u128::from_str_radix(text, 16).ok().map(u128::to_be_bytes)
}

/// Addresses fit to be dialled, at most as many as an invitation carries.
pub fn usable(addresses: &[String]) -> Vec<String> {
    let fit = addresses.iter().filter(|a| config::is_host_port(a));
    fit.take(config::ADVERTISE_MAX).cloned().collect()
}

/// A name no other peer bears, made from the one the host gives itself.
pub fn free_name(trust: &Trust, id: PeerId, wanted: &str) -> String {
    let wanted = to_name(wanted).unwrap_or_else(|| format!("host-{}", &id.to_string()[..8]));
    let taken: Vec<String> = trust.peers().into_iter().filter(|(p, _)| p.id != id).map(|(p, _)| p.name).collect();
    let numbered = |n: u32| {
        let short: String = wanted.chars().take(NAME_MAX - 11).collect();
        format!("{short}-{n}")
    };
    let is_free = |name: &String| !taken.contains(name);
    std::iter::once(wanted.clone()).chain((2..).map(numbered)).find(is_free).expect("numbers do not run out")
}
