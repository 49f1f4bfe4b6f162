//! From a peer's name to an open session: connect, ask.

use std::sync::Arc;

use async_trait::async_trait;
use understudy_engine::primary::{Failure, TargetReport};
use understudy_model as model;
use understudy_model::{CutNumber, ErrorKind, Generation, PeerId, RelationshipId, SessionNumber};
use understudy_wire::Message;
use understudy_wire::message::{Attach, Open, Opened, Prepare, Relationship, Settings};

use super::failure::failure;
use super::session::{Events, Session, lost, refusal, unexpected};
use crate::channel::{Receiver, Sender};
use crate::operations::owner::LinkReport;

/// A greeted connection to a peer.
pub struct Link {
    /// Receives frames.
    pub receiver: Receiver,
    /// Sends frames.
    pub sender: Sender,
    /// For people.
    pub report: LinkReport,
}

/// Connects to peers: over TLS in the daemon, over a pipe in tests.
#[async_trait]
pub trait Dialer: Send + Sync {
    /// A greeted connection to this peer, its key proven.
    async fn dial(&self, peer: PeerId) -> Result<Link, Failure>;

    /// How many further connections a session gets: none where one fills the link.
    fn carriers(&self) -> u16;
}

/// What is asked for.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// The host that has, or shall have, the replica.
    pub peer: PeerId,
    /// Which relationship.
    pub relationship: RelationshipId,
    /// Our generation.
    pub generation: Generation,
    /// Number for the session.
    pub session: SessionNumber,
    /// Current settings.
    pub settings: model::Settings,
}

impl Link {
    /// Asks one thing on a connection without a session.
    async fn ask(&mut self, message: &Message) -> Result<Message, Failure> {
        self.sender.message(message).await.map_err(lost)?;
        match self.receiver.message().await.map_err(lost)? {
            Message::Refused(refused) => Err(refusal(&refused)),
            message => Ok(message),
        }
    }
}

/// Asks a peer to make a place for a replica.
pub async fn prepare(dialer: &dyn Dialer, peer: PeerId, prepare: Prepare) -> Result<(), Failure> {
    let mut link = dialer.dial(peer).await?;
    let answer = link.ask(&Message::Prepare(Box::new(prepare))).await;
    link.sender.close().await;
    match answer? {
        Message::Done => Ok(()),
        other => Err(unexpected(&other)),
    }
}

/// An opened session, and what the target said it has.
pub struct OpenSession {
    /// The session.
    pub session: Arc<Session>,
    /// What the target has.
    pub report: TargetReport,
    /// For people.
    pub link: LinkReport,
}

/// Opens a session.
pub async fn open(dialer: &dyn Dialer, wanted: &Wanted, events: Events) -> Result<OpenSession, Failure> {
    let mut link = dialer.dial(wanted.peer).await?;
    let open = Message::Open(Open {
        relationship: Relationship::from(wanted.relationship),
        generation: wanted.generation.0,
        session: wanted.session.0,
        settings: Settings::from(&wanted.settings),
    });
    let opened = match link.ask(&open).await? {
        Message::Opened(opened) => opened,
        other => return Err(unexpected(&other)),
    };
    let report = report(&opened)?;
    link.sender.set_session(wanted.session.0);
    let carriers = attach(dialer, wanted).await?;
    link.report.connections = 1 + carriers.len() as u16;
    let session = Session::begin(wanted.session, link.sender, link.receiver, carriers, events);
    Ok(OpenSession { session, report, link: link.report })
}

/// Further connections for the session, where one is not enough to fill the link.
async fn attach(dialer: &dyn Dialer, wanted: &Wanted) -> Result<Vec<(Sender, Receiver)>, Failure> {
    let mut carriers = Vec::new();
    for _ in 0..dialer.carriers() {
        let mut link = dialer.dial(wanted.peer).await?;
        let attach = Attach { relationship: Relationship::from(wanted.relationship), session: wanted.session.0 };
        match link.ask(&Message::Attach(attach)).await? {
            Message::Done => {}
            other => return Err(unexpected(&other)),
        }
        link.sender.set_session(wanted.session.0);
        carriers.push((link.sender, link.receiver));
    }
    Ok(carriers)
}

fn report(opened: &Opened) -> Result<TargetReport, Failure> {
    let newest = opened.newest.as_ref().map(model::CutRef::try_from).transpose();
    let newest = newest.map_err(|e| failure(ErrorKind::Bug, &e))?;
    let base = opened.base.as_ref().map(|base| {
        let positions = base.positions.iter().map(Into::into).collect();
        (CutNumber(base.attempt), positions)
    });
    Ok(TargetReport { newest, base, is_suspended: opened.suspended })
}
