//! The sending host's end of an open session: requests and their answers, bulk frames, signs of life.
//!
//! One task reads the connection. Answers come in the order of the requests; notices and the end of the connection
//! go to the relationship's owner as events. A refusal that nobody asked for (the target gave a transfer up half-way)
//! is kept and given to whoever sends next.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::{Mutex, mpsc};
use tokio_util::sync::CancellationToken;
use understudy_engine::primary::{Event, Failure};
use understudy_model::{ErrorKind, Generation, ReturnCode, SessionNumber};
use understudy_wire::message::{Notice, Ping, Refused};
use understudy_wire::{FrameKind, Message};

use crate::channel::{Receiver, Sender};
use crate::link::frames::LinkError;

/// How often we ask whether the other side is alive.
const PING_EVERY: Duration = Duration::from_secs(5);
/// Silence in both directions after which the connection is given up: six unanswered pings.
const SILENCE_MAX: Duration = Duration::from_secs(30);

/// Where events of a session go.
pub type Events = mpsc::UnboundedSender<Event>;

/// An open session.
pub struct Session {
    number: SessionNumber,
    sender: Sender,
    /// Number of the next bulk frame.
    next_bulk: AtomicU64,
    /// Bulk frames for whichever further connection is free; `None` when there is only this one.
    carriers: Option<Carriers>,
    /// One request at a time, so that answers find their question.
    answers: Mutex<mpsc::Receiver<Message>>,
    expects_answer: AtomicBool,
    early_refusal: std::sync::Mutex<Option<Failure>>,
    heard: AtomicU64,
    began: Instant,
    is_ping_under_way: AtomicBool,
    /// Ends the session's tasks.
    closed: CancellationToken,
    is_closed_by_owner: AtomicBool,
}

impl Session {
    /// Takes over a connection on which the session was granted.
    /// `carriers` are further connections that joined it.
    pub fn begin(
        number: SessionNumber,
        sender: Sender,
        receiver: Receiver,
        carriers: Vec<(Sender, Receiver)>,
        events: Events,
    ) -> Arc<Self> {
        let (to_answers, answers) = mpsc::channel(4);
        let closed = CancellationToken::new();
        let carriers = (!carriers.is_empty()).then(|| Carriers::start(carriers, &closed));
        let session = Arc::new(Self {
            number,
            sender,
            next_bulk: AtomicU64::new(0),
            carriers,
            answers: Mutex::new(answers),
            expects_answer: AtomicBool::new(false),
            early_refusal: std::sync::Mutex::new(None),
            heard: AtomicU64::new(0),
            began: Instant::now(),
            is_ping_under_way: AtomicBool::new(false),
            is_closed_by_owner: AtomicBool::new(false),
            closed,
        });
        tokio::spawn(read(session.clone(), receiver, to_answers, events));
        tokio::spawn(keep_alive(session.clone()));
        session
    }

    /// Its number.
    pub fn number(&self) -> SessionNumber {
        self.number
    }

    /// Bytes sent so far, on all its connections.
    pub fn bytes(&self) -> u64 {
        self.sender.bytes() + self.carriers.as_ref().map_or(0, |c| c.bytes.load(Ordering::Relaxed))
    }

    /// Ends the session. The relationship's owner is not told: it asked for it.
    pub fn close(&self) {
        self.is_closed_by_owner.store(true, Ordering::Release);
        self.closed.cancel();
    }

    /// Asks and waits for the answer, which may take as long as the other side shows signs of life.
    pub async fn request(&self, message: &Message) -> Result<Message, Failure> {
        let mut answers = self.answers.lock().await;
        self.check()?;
        self.expects_answer.store(true, Ordering::Release);
        let answer = async {
            self.sender.message(message).await.map_err(lost)?;
            answers.recv().await.ok_or_else(gone)
        };
        let answer = tokio::select! {
            answer = answer => answer,
            () = self.closed.cancelled() => Err(gone()),
        };
        self.expects_answer.store(false, Ordering::Release);
        match answer? {
            Message::Refused(refused) => Err(refusal(&refused)),
            answer => Ok(answer),
        }
    }

    /// Says something that has no answer.
    pub async fn tell(&self, message: &Message) -> Result<(), Failure> {
        self.check()?;
        self.until_closed(self.sender.message(message)).await
    }

    /// Sends a part of a transfer, on whichever connection is free.
    pub async fn bulk(&self, kind: FrameKind, payload: Bytes) -> Result<(), Failure> {
        self.check()?;
        let sequence = self.next_bulk.fetch_add(1, Ordering::Relaxed);
        match &self.carriers {
            None => self.until_closed(self.sender.bulk(kind, sequence, payload)).await?,
            Some(carriers) => tokio::select! {
                sent = carriers.queue.send((kind, sequence, payload)) => sent.map_err(|_| gone())?,
                () = self.closed.cancelled() => return Err(gone()),
            },
        }
        // Data that went out shows that the other side takes it in.
        self.note_life();
        Ok(())
    }

    /// Sends a part of a boot image, on the session's own connection: it belongs to no transfer.
    pub async fn blob(&self, payload: Bytes) -> Result<(), Failure> {
        self.check()?;
        self.until_closed(self.sender.bulk(FrameKind::BlobData, 0, payload)).await?;
        self.note_life();
        Ok(())
    }

    async fn until_closed(&self, io: impl Future<Output = Result<(), LinkError>>) -> Result<(), Failure> {
        tokio::select! {
            done = io => done.map_err(lost),
            () = self.closed.cancelled() => Err(gone()),
        }
    }

    /// Fails if the target gave up, or the connection is gone.
    pub fn check(&self) -> Result<(), Failure> {
        if let Some(failure) = self.early_refusal.lock().unwrap_or_else(|e| e.into_inner()).clone() {
            return Err(failure);
        }
        if self.closed.is_cancelled() { Err(gone()) } else { Ok(()) }
    }

    fn note_life(&self) {
        self.heard.store(self.began.elapsed().as_millis() as u64, Ordering::Relaxed);
    }

    fn silence(&self) -> Duration {
        self.began.elapsed().saturating_sub(Duration::from_millis(self.heard.load(Ordering::Relaxed)))
    }
}

/// The further connections of a session. Whichever is free takes the next frame.
struct Carriers {
    queue: mpsc::Sender<(FrameKind, u64, Bytes)>,
    bytes: Arc<AtomicU64>,
}

impl Carriers {
    fn start(connections: Vec<(Sender, Receiver)>, closed: &CancellationToken) -> Self {
        let (queue, frames) = mpsc::channel(connections.len());
        let (frames, bytes) = (Arc::new(Mutex::new(frames)), Arc::new(AtomicU64::new(0)));
        for (sender, receiver) in connections {
            tokio::spawn(carry(sender, receiver, frames.clone(), bytes.clone(), closed.clone()));
        }
        Self { queue, bytes }
    }
}

type Queue = Arc<Mutex<mpsc::Receiver<(FrameKind, u64, Bytes)>>>;

/// Carries frames until the session closes. If the connection fails, so does the session: a frame may be lost.
async fn carry(
    sender: Sender,
    mut receiver: Receiver,
    frames: Queue,
    bytes: Arc<AtomicU64>,
    closed: CancellationToken,
) {
    let sending = async {
        loop {
            let Some((kind, sequence, payload)) = frames.lock().await.recv().await else { return };
            let len = payload.len() as u64;
            if sender.bulk(kind, sequence, payload).await.is_err() || sender.flush().await.is_err() {
                return;
            }
            bytes.fetch_add(len + understudy_wire::frame::HEADER_LEN as u64, Ordering::Relaxed);
        }
    };
    tokio::select! {
        () = sending => {}
        // Nothing is said on a carrier: whatever comes is its end.
        _ = receiver.next() => {}
        () = closed.cancelled() => {}
    }
    closed.cancel();
    sender.close().await;
}

async fn read(session: Arc<Session>, mut receiver: Receiver, answers: mpsc::Sender<Message>, events: Events) {
    loop {
        let frame = tokio::select! {
            frame = receiver.next() => frame,
            () = session.closed.cancelled() => break,
        };
        let message = match frame {
            Ok(Some(frame)) if frame.kind == FrameKind::Message => Message::from_payload(&frame.payload),
            Ok(Some(_)) | Ok(None) | Err(_) => break,
        };
        session.note_life();
        match message {
            Ok(Message::Pong(_)) => {}
            Ok(Message::Notice(notice)) => pass_on(notice, &events),
            Ok(Message::Refused(refused)) if !session.expects_answer.load(Ordering::Acquire) => {
                let mut early = session.early_refusal.lock().unwrap_or_else(|e| e.into_inner());
                early.get_or_insert_with(|| refusal(&refused));
            }
            Ok(answer) => {
                // An answer nobody waits for, or more of them than questions: the peer has lost its way.
                if answers.try_send(answer).is_err() {
                    break;
                }
            }
            Err(_) => break,
        }
    }
    session.closed.cancel();
    if !session.is_closed_by_owner.load(Ordering::Acquire) {
        // The owner may be gone already, then nobody needs to know.
        let _ = events.send(Event::LinkLost { session: session.number });
    }
    session.sender.close().await;
}

fn pass_on(notice: Notice, events: &Events) {
    let event = match notice {
        Notice::Suspended => Event::PeerSuspended(true),
        Notice::Resumed => Event::PeerSuspended(false),
        Notice::FailedOver { .. } => Event::PeerFailedOver,
        Notice::Removed => Event::PeerRemoved,
        Notice::Trouble { reason } => return tracing::warn!(reason, "the replica reports trouble"),
        Notice::Unknown => return,
    };
    let _ = events.send(event);
}

async fn keep_alive(session: Arc<Session>) {
    let mut token = 0;
    loop {
        tokio::select! {
            () = tokio::time::sleep(PING_EVERY) => {}
            () = session.closed.cancelled() => return,
        }
        if session.silence() > SILENCE_MAX {
            tracing::info!(session = %session.number, "the replica has been silent for too long");
            return session.closed.cancel();
        }
        token += 1;
        // A ping may have to wait behind data in a full socket; it must go out whole, so it is not cut short.
        if !session.is_ping_under_way.swap(true, Ordering::AcqRel) {
            tokio::spawn(ping(session.clone(), token));
        }
    }
}

async fn ping(session: Arc<Session>, token: u64) {
    let ping = Message::Ping(Ping { token });
    // If it fails, the reading task learns of it.
    let _ = session.until_closed(session.sender.message(&ping)).await;
    session.is_ping_under_way.store(false, Ordering::Release);
}

/// A refusal as the engine's failure.
pub fn refusal(refused: &Refused) -> Failure {
    Failure {
        kind: refused.error_kind(),
        refusal: refused.refusal(),
        generation: refused.generation.map(Generation),
        is_handed_back: refused.handed_back,
        session: refused.session.map(SessionNumber),
        is_link_lost: false,
    }
}

/// A failed connection as the engine's failure.
pub fn lost(err: LinkError) -> Failure {
    Failure::new(ErrorKind::Retry, ReturnCode::NotAvailable, crate::chain(&err)).with_link_lost()
}

fn gone() -> Failure {
    let reason = "the connection to the replica was lost";
    Failure::new(ErrorKind::Retry, ReturnCode::NotAvailable, reason).with_link_lost()
}

/// An answer that does not fit its question.
pub fn unexpected(message: &Message) -> Failure {
    let reason = format!("the peer answered with {:?} out of place", message.name());
    Failure::new(ErrorKind::Bug, ReturnCode::Failed, reason)
}
