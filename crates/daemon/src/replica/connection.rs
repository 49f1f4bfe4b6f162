//! One connection from another host: greeting, one request or a session, data.
//!
//! What may come when is decided by `wire::target`; whether this peer may is decided here, before anything else
//! happens. Data goes to a thread of its own ([`super::intake`]), so that signs of life are answered meanwhile.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use understudy_engine::primary::Failure;
use understudy_model::{ErrorKind, Generation, PeerId, ReturnCode, SessionNumber, VmId};
use understudy_wire::message::{self, Open, Opened, Prepare, Refused, convert};
use understudy_wire::target::{Incoming, Target};
use understudy_wire::{Frame, Message};

use super::hub::Hub;
use super::intake::{Intake, Work};
use super::mux::Mux;
use super::place::Place;
use crate::channel::{Receiver, Sender};
use crate::primary::failure::{chain, failure};

/// Silence after which a connection is given up: a source says something every five seconds.
const SILENCE: Duration = Duration::from_secs(60);
/// Time a refused source has to read why, while what it still sends is thrown away.
const FAREWELL: Duration = Duration::from_secs(5);

/// A greeted connection from a trusted peer.
pub struct Caller {
    /// Whose key the other side proved to hold.
    pub peer: PeerId,
    /// Receives frames.
    pub receiver: Receiver,
    /// Sends frames.
    pub sender: Arc<Sender>,
    /// Says which frames may come.
    pub target: Target,
    /// What was read already.
    pub first: Option<Incoming>,
}

/// Serves a connection to its end.
pub async fn serve(hub: Arc<Hub>, caller: Caller) {
    let Caller { peer, receiver, sender, target, first } = caller;
    let mut connection =
        Connection { hub, peer, receiver, sender, machine: target, intake: None, session: None, fed: 0, carries: None };
    if let Err(err) = connection.run(first).await {
        tracing::info!(%peer, cause = chain(&*err), "a peer's connection was ended");
    }
    connection.end().await;
}

/// What came, and on which connection.
enum Next {
    Own(Frame),
    Carried(Frame),
}

const SILENT: &str = "the peer was silent for too long";

type Fault = Box<dyn std::error::Error + Send + Sync>;

struct Bound {
    place: Arc<Place>,
    mux: Arc<Mux>,
    /// Frames from further connections, in order.
    carried: mpsc::Receiver<Frame>,
    number: SessionNumber,
    /// Cancelled when a newer session takes over.
    replaced: CancellationToken,
}

struct Connection {
    hub: Arc<Hub>,
    peer: PeerId,
    receiver: Receiver,
    sender: Arc<Sender>,
    machine: Target,
    intake: Option<Intake>,
    session: Option<Bound>,
    /// Bulk frames of the transfer under way that were handed to the intake.
    fed: u64,
    /// The session for which this connection carries frames, if it is a further one.
    carries: Option<Arc<Mux>>,
}

impl Connection {
    async fn run(&mut self, first: Option<Incoming>) -> Result<(), Fault> {
        if let Some(first) = first
            && !self.take(first).await?
        {
            return Ok(());
        }
        while let Some(next) = self.next_frame().await? {
            let incoming = match next {
                Next::Own(frame) => self.machine.accept(frame)?,
                Next::Carried(frame) => self.machine.read_bulk(frame.kind, &frame.payload)?,
            };
            if !self.take(incoming).await? {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Deals with what came. `false` ends the connection.
    async fn take(&mut self, incoming: Incoming) -> Result<bool, Fault> {
        match incoming {
            Incoming::Message(message) => return self.on_message(message).await,
            Incoming::Base(disk, records) => {
                self.fed += 1;
                self.feed(Work::Base(disk, records)).await?;
            }
            Incoming::Cycle(disk, batch) => {
                self.fed += 1;
                self.feed(Work::Batch(disk, batch)).await?;
            }
            Incoming::Blob(name, offset, bytes) => self.feed(Work::Blob(name, offset, bytes)).await?,
            Incoming::Carried(frame) => {
                let mux = self.carries.clone().ok_or("data of no session")?;
                return Ok(mux.push(frame).await);
            }
        }
        Ok(true)
    }

    async fn next_frame(&mut self) -> Result<Option<Next>, Fault> {
        let Self { receiver, session, carries, .. } = self;
        if let Some(mux) = carries {
            // Between transfers nothing is said here; the session's own connection shows signs of life.
            return tokio::select! {
                frame = receiver.next() => Ok(frame?.map(Next::Own)),
                () = mux.ended() => Ok(None),
            };
        }
        let own = tokio::time::timeout(SILENCE, receiver.next());
        let Some(bound) = session else {
            let frame = own.await.map_err(|_| SILENT)??;
            return Ok(frame.map(Next::Own));
        };
        tokio::select! {
            Some(frame) = bound.carried.recv() => Ok(Some(Next::Carried(frame))),
            frame = own => Ok(frame.map_err(|_| SILENT)??.map(Next::Own)),
            () = bound.replaced.cancelled() => Ok(None),
        }
    }

    /// Takes what further connections still bring, until so many frames of the transfer have come.
    async fn catch_up(&mut self, frames: u64) -> Result<(), Fault> {
        while self.fed < frames {
            let Some(bound) = &mut self.session else { return Ok(()) };
            if bound.mux.connections() == 1 {
                // Everything came here: what is missing will not come any more, and the intake says so.
                return Ok(());
            }
            let frame = tokio::select! {
                frame = tokio::time::timeout(SILENCE, bound.carried.recv()) => frame.map_err(|_| SILENT)?,
                () = bound.replaced.cancelled() => None,
            };
            let frame = frame.ok_or("the session's further connections ended")?;
            match self.machine.read_bulk(frame.kind, &frame.payload)? {
                Incoming::Base(disk, records) => self.feed(Work::Base(disk, records)).await?,
                Incoming::Cycle(disk, batch) => self.feed(Work::Batch(disk, batch)).await?,
                _ => return Err("a further connection brought something else than data".into()),
            }
            self.fed += 1;
        }
        Ok(())
    }

    /// A transfer begins: its frames may have overtaken this message.
    async fn announce(&mut self) {
        self.fed = 0;
        if let Some(bound) = &self.session {
            bound.mux.begin().await;
        }
    }

    /// Answers a message. `false` ends the connection.
    async fn on_message(&mut self, message: Message) -> Result<bool, Fault> {
        match message {
            Message::Ping(ping) => self.sender.message(&Message::Pong(ping)).await?,
            Message::Test => self.sender.message(&Message::Done).await?,
            Message::Prepare(prepare) => return self.prepare(*prepare).await,
            Message::Open(open) => return self.open(open).await,
            Message::Attach(attach) => return self.attach(attach).await,
            Message::Settings(settings) => return self.settings(settings).await,
            Message::Blobs(blobs) => self.feed(Work::Blobs(blobs)).await?,
            Message::BaseBegin(begin) => {
                let lenders = self.lenders();
                self.feed(Work::BaseBegin(begin, lenders)).await?;
                self.announce().await;
            }
            Message::BaseSync(sync) => {
                self.catch_up(sync.frames).await?;
                self.feed(Work::BaseSync(sync)).await?;
            }
            Message::CompareBegin(begin) => self.feed(Work::CompareBegin(begin)).await?,
            Message::Offer(offer) => self.feed(Work::Offer(offer)).await?,
            Message::OfferParts(offer) => self.feed(Work::OfferParts(offer)).await?,
            Message::CycleBegin(begin) => {
                self.feed(Work::CycleBegin(begin)).await?;
                self.announce().await;
            }
            Message::CycleEnd(end) => {
                self.catch_up(end.frames).await?;
                self.close_transfer();
                self.feed(Work::CycleEnd(end)).await?;
            }
            Message::CycleAbandon(_) => {
                self.close_transfer();
                self.feed(Work::CycleAbandon).await?;
            }
            other => return Err(format!("a source does not say {:?}", other.name()).into()),
        }
        Ok(true)
    }

    /// Other VMs of the same source: it learns which of its blocks they have.
    fn lenders(&self) -> Vec<VmId> {
        let own = self.session.as_ref().map(|bound| bound.place.id().vm);
        self.hub.vms_of(self.peer).into_iter().filter(|vm| Some(*vm) != own).collect()
    }

    async fn prepare(&mut self, prepare: Prepare) -> Result<bool, Fault> {
        match self.hub.prepare(self.peer, prepare).await {
            Ok(()) => self.sender.message(&Message::Done).await?,
            Err(failure) => return self.turn_away(&failure).await,
        }
        Ok(true)
    }

    async fn open(&mut self, open: Open) -> Result<bool, Fault> {
        match self.try_open(self.peer, &open).await {
            Ok((bound, opened)) => {
                let number = bound.number.0;
                self.intake = Some(Intake::new(bound.place.clone(), bound.number, self.sender.clone()));
                self.session = Some(bound);
                // The answer still bears no session; everything after it does.
                self.sender.message(&Message::Opened(opened)).await?;
                self.machine.granted(number, false);
                self.sender.set_session(number);
                Ok(true)
            }
            Err(failure) => self.turn_away(&failure).await,
        }
    }

    fn close_transfer(&self) {
        if let Some(bound) = &self.session {
            bound.mux.close();
        }
    }

    async fn attach(&mut self, attach: message::Attach) -> Result<bool, Fault> {
        match self.try_attach(&attach).await {
            Ok(mux) => {
                self.carries = Some(mux);
                // The answer still bears no session; everything after it does.
                self.sender.message(&Message::Done).await?;
                self.machine.granted(attach.session, true);
                self.sender.set_session(attach.session);
                Ok(true)
            }
            Err(failure) => self.turn_away(&failure).await,
        }
    }

    async fn try_attach(&self, attach: &message::Attach) -> Result<Arc<Mux>, Failure> {
        let relationship = attach.relationship.try_into();
        let relationship = relationship.map_err(|e: convert::ConvertError| failure(ErrorKind::Bug, &e))?;
        let place = self.hub.find(self.peer, relationship).await?;
        let mux = place.mux(SessionNumber(attach.session))?;
        if mux.attach() {
            return Ok(mux);
        }
        Err(Failure::new(ErrorKind::Refused, ReturnCode::OutOfMemory, "the session has enough connections"))
    }

    async fn try_open(&self, peer: PeerId, open: &Open) -> Result<(Bound, Opened), Failure> {
        let unreadable = |e: &dyn std::error::Error| failure(ErrorKind::Bug, e);
        let relationship = open.relationship.try_into().map_err(|e: convert::ConvertError| unreadable(&e))?;
        let settings = (&open.settings).try_into().map_err(|e: convert::ConvertError| unreadable(&e))?;
        let place = self.hub.find(peer, relationship).await?;
        let number = SessionNumber(open.session);
        let (mux, carried) = Mux::new();
        let mux = Arc::new(mux);
        let (opened, replaced) =
            place.open(Generation(open.generation), number, settings, self.sender.clone(), mux.clone()).await?;
        Ok((Bound { place, mux, carried, number, replaced }, opened))
    }

    async fn settings(&mut self, settings: message::Settings) -> Result<bool, Fault> {
        let Some(bound) = &self.session else { return Err("settings without a session".into()) };
        let settings = (&settings).try_into()?;
        match bound.place.set_settings(settings).await {
            Ok(()) => self.sender.message(&Message::Done).await?,
            Err(failure) => return self.turn_away(&failure).await,
        }
        Ok(true)
    }

    async fn feed(&mut self, work: Work) -> Result<(), Fault> {
        let intake = self.intake.as_mut().ok_or("data without a session")?;
        intake.put(work).await.map_err(|()| "the session's data can no longer be taken".into())
    }

    /// Refuses and lets the peer read why, throwing away what it still sends.
    async fn turn_away(&mut self, failure: &Failure) -> Result<bool, Fault> {
        self.refuse(failure).await;
        let drain = async { while let Ok(Some(_)) = self.receiver.next().await {} };
        let _ = tokio::time::timeout(FAREWELL, drain).await;
        Ok(false)
    }

    async fn refuse(&self, failure: &Failure) {
        // If the peer is gone it does not need to know.
        let _ = self.sender.message(&refused(failure)).await;
    }

    async fn end(&mut self) {
        if let Some(intake) = self.intake.take() {
            intake.finish().await;
        }
        if let Some(bound) = self.session.take() {
            bound.mux.end();
            bound.place.closed(bound.number).await;
        }
        self.sender.close().await;
    }
}

/// A refusal that nothing will change.
pub fn from_refusal(refusal: understudy_model::Refusal) -> Failure {
    let mut failure = Failure::new(ErrorKind::Refused, refusal.code, "");
    failure.refusal = refusal;
    failure
}

/// The engine's failure as a message.
pub fn refused(failure: &Failure) -> Message {
    let Message::Refused(plain) = Message::refused(&failure.refusal, failure.kind) else {
        unreachable!("a refusal is made as a refusal")
    };
    Message::Refused(Refused {
        generation: failure.generation.map(|g| g.0),
        session: failure.session.map(|s| s.0),
        handed_back: failure.is_handed_back,
        ..plain
    })
}
