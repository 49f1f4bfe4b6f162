//! The owner of one relationship on its sending side: a task that holds the engine's state machine.
//!
//! Events and commands come in one at a time; actions go out in order. Making the record durable is a barrier: until
//! it has succeeded nothing after it happens, and if it fails it is tried again while the guest runs on.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;
use understudy_engine::primary::{
    Action, Actions, Command, Event, Failure, Progress, Record, Relationship, Report, Token,
};
use understudy_hypervisor::driver::{ImageRecord, MapOwner};
use understudy_model::{CutRef, JobId, Millis, PeerId, Refusal, ReturnCode, Timestamp};
use understudy_wire::Message;
use understudy_wire::message::Settings;

use super::dial::{Dialer, OpenSession, Wanted, open};
use super::failure::chain;
use super::lane::{CutFacts, Facts, Lane, LaneHandle, Order, Outcome, Step, Tools};
use super::session::Session;
use crate::clock::Clock;
use crate::operations::owner::LinkReport;

/// Pause between attempts to write the record while the state directory refuses it.
const PERSIST_RETRY: Duration = Duration::from_secs(2);

/// What is durable about the sending side: the engine's record, and the images as they were at the last cut.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Durable {
    /// The engine's.
    pub record: Record,
    /// For a VM that is off.
    pub images: Vec<ImageRecord>,
    /// When the newest acknowledged cut was taken, by the wall clock.
    pub newest_at: Option<Timestamp>,
}

/// Where the owner writes what must survive, and tells what others want to know.
#[async_trait]
pub trait Book: Send + Sync {
    /// Makes it durable.
    async fn save(&self, durable: &Durable) -> Result<(), Box<dyn std::error::Error + Send + Sync>>;
    /// Forgets the relationship, durably.
    async fn forget(&self) -> Result<(), Box<dyn std::error::Error + Send + Sync>>;
    /// A transfer's job goes on.
    fn progress(&self, job: JobId, progress: Progress);
    /// A transfer's job ended.
    async fn finish(&self, job: JobId, result: Result<(), Refusal>);
    /// A cycle was acknowledged.
    async fn cycle(&self, entry: CycleEntry);
    /// Something that people see has changed.
    fn changed(&self);
}

/// One acknowledged cycle, for the history.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CycleEntry {
    /// Which cut.
    pub cut: CutRef,
    /// When it was acknowledged (wall clock).
    pub acked_at: Timestamp,
    /// When the disks were frozen (wall clock).
    pub taken_at: Timestamp,
    /// Time from the cut to its acknowledgement.
    pub latency: Millis,
    /// Bytes sent.
    pub bytes_sent: u64,
    /// Bytes of the guest carried over.
    pub bytes_changed: u64,
}

/// All an owner works with.
pub struct Parts {
    /// Hypervisor, definition, shares.
    pub tools: Tools,
    /// Connections.
    pub dialer: Arc<dyn Dialer>,
    /// The host the replica is on.
    pub peer: PeerId,
    /// Durable memory.
    pub book: Arc<dyn Book>,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Most scratch space of a cut.
    pub scratch_limit: u64,
    /// Spreads retries.
    pub seed: u64,
}

struct Ask {
    command: Command,
    answer: oneshot::Sender<Result<(), Refusal>>,
}

/// What an attempt to open a session came to.
struct OpenOutcome {
    token: Token,
    result: Result<OpenSession, Failure>,
}

/// What can be seen of a relationship from outside its task: the state machine as it was when everything it had asked
/// for last was durable.
#[derive(Debug, Clone)]
pub struct View {
    engine: Arc<Relationship>,
    /// The connection, for people.
    pub link: LinkReport,
    /// When the newest acknowledged cut was taken, by the wall clock.
    pub newest_at: Option<Timestamp>,
    /// Whether it was removed.
    pub is_gone: bool,
}

impl View {
    /// What is durable.
    pub fn record(&self) -> &Record {
        self.engine.record()
    }

    /// What an operator sees at this moment.
    pub fn report(&self, now: Timestamp) -> Report {
        self.engine.report(now)
    }
}

/// The door to an owner.
#[derive(Clone)]
pub struct Handle {
    asks: mpsc::Sender<Ask>,
    clock: Arc<dyn Clock>,
    view: watch::Receiver<View>,
    stop: CancellationToken,
    stopped: CancellationToken,
}

impl Handle {
    /// Asks for something and waits until it is durable.
    pub async fn ask(&self, command: Command) -> Result<(), Refusal> {
        let gone = || Refusal::new(ReturnCode::NotAvailable, "the relationship is not served at the moment");
        let (answer, answered) = oneshot::channel();
        self.asks.send(Ask { command, answer }).await.map_err(|_| gone())?;
        answered.await.map_err(|_| gone())?
    }

    /// The steady time that the view's times are measured in.
    pub fn now(&self) -> Timestamp {
        self.clock.steady()
    }

    /// What can be seen now.
    pub fn view(&self) -> View {
        self.view.borrow().clone()
    }

    /// Ends the task in good order: what it holds in the hypervisor is released.
    pub async fn stop(&self) {
        self.stop.cancel();
        self.stopped.cancelled().await;
    }
}

struct Owner {
    engine: Relationship,
    parts: Parts,
    /// The images as they were at the newest acknowledged cut, or when tracking began.
    images: Vec<ImageRecord>,
    /// What belongs to the cycle that was sent last, until it is known whether the replica holds it. Adopted with the
    /// record that says so and not before: what is known of the images must be of the cut the next cycle starts from.
    sent: Option<CutFacts>,
    lane: LaneHandle,
    session: Option<Arc<Session>>,
    link: LinkReport,
    newest_at: Option<Timestamp>,
    /// Cancels the step under way.
    cancel: CancellationToken,
    events: mpsc::UnboundedSender<Event>,
    opens: mpsc::UnboundedSender<OpenOutcome>,
    view: watch::Sender<View>,
    changed: u64,
    is_gone: bool,
}

/// Starts the owner of a relationship.
pub fn start(durable: Durable, mut parts: Parts) -> Handle {
    let (asks, mut asked) = mpsc::channel::<Ask>(16);
    let (outcomes, mut outcome) = mpsc::unbounded_channel();
    let (events, mut event) = mpsc::unbounded_channel();
    let (opens, mut opened) = mpsc::unbounded_channel();
    let now = parts.clock.steady();
    let engine = Relationship::new(durable.record, now, parts.seed);
    let snapshot = Arc::new(engine.clone());
    let first = View { engine: snapshot, link: LinkReport::default(), newest_at: durable.newest_at, is_gone: false };
    let (view, watching) = watch::channel(first);
    let (stop, stopped) = (CancellationToken::new(), CancellationToken::new());
    let clock = parts.clock.clone();
    let handle = Handle { asks, clock, view: watching, stop: stop.clone(), stopped: stopped.clone() };
    let tools = take_tools(&mut parts);
    let lane = Lane::start(tools, outcomes);
    let cancel = CancellationToken::new();
    let images = durable.images;
    let mut owner = Owner {
        engine,
        parts,
        images,
        sent: None,
        newest_at: durable.newest_at,
        lane,
        session: None,
        link: LinkReport::default(),
        cancel,
        events,
        opens,
        view,
        changed: 0,
        is_gone: false,
    };
    tokio::spawn(async move {
        owner.handle(Event::Tick).await;
        while !owner.is_gone {
            let deadline = owner.until_deadline();
            tokio::select! {
                () = stop.cancelled() => break,
                Some(ask) = asked.recv() => owner.obey(ask).await,
                Some(outcome) = outcome.recv() => owner.learn(outcome).await,
                Some(event) = event.recv() => owner.handle(event).await,
                Some(opened) = opened.recv() => owner.take_session(opened).await,
                () = deadline => owner.handle(Event::Tick).await,
            }
        }
        owner.close();
        drop(owner.lane);
        // The lane releases what it holds and then drops its end of the channel.
        while outcome.recv().await.is_some() {}
        stopped.cancel();
    });
    handle
}

fn take_tools(parts: &mut Parts) -> Tools {
    Tools {
        machine: parts.tools.machine.clone(),
        definitions: parts.tools.definitions.clone(),
        budget: parts.tools.budget.clone(),
        effort: parts.tools.effort.clone(),
        ledger: parts.tools.ledger.clone(),
    }
}

impl Owner {
    fn now(&self) -> Timestamp {
        self.parts.clock.steady()
    }

    fn until_deadline(&self) -> impl Future<Output = ()> + use<> {
        let wait = self.engine.next_deadline().map(|at| (at - self.now()).0);
        async move {
            match wait {
                Some(millis) => tokio::time::sleep(Duration::from_millis(millis)).await,
                None => std::future::pending().await,
            }
        }
    }

    async fn obey(&mut self, ask: Ask) {
        let mut actions = Actions::new();
        let result = self.engine.command(self.now(), ask.command, &mut actions);
        self.carry_out(actions).await;
        self.show();
        // Whoever asked may have gone away.
        let _ = ask.answer.send(result);
    }

    async fn handle(&mut self, event: Event) {
        let mut actions = Actions::new();
        self.engine.handle(self.now(), event, &mut actions);
        self.carry_out(actions).await;
        self.show();
    }

    async fn learn(&mut self, outcome: Outcome) {
        match outcome {
            Outcome::Event(event) => self.handle(event).await,
            Outcome::Begun { event, images } => {
                self.images = images;
                self.handle(event).await;
            }
            Outcome::Computed { event, cut } => {
                self.sent = Some(cut);
                self.handle(event).await;
            }
        }
    }

    /// The replica holds the cycle that was sent last, if `acked` is its cut.
    fn adopt(&mut self, acked: Option<CutRef>) {
        let is_held = |cut: &CutFacts| acked.is_some_and(|acked| acked.number == cut.number);
        if let Some(cut) = self.sent.take_if(|cut| is_held(cut)) {
            self.images = cut.images;
            self.changed = cut.changed;
            self.newest_at = Some(cut.taken_at);
        }
    }

    async fn take_session(&mut self, opened: OpenOutcome) {
        let OpenOutcome { token, result } = opened;
        match result {
            Ok(OpenSession { session, report, link }) => {
                self.link = link;
                let number = session.number();
                if let Some(old) = self.session.replace(session) {
                    old.close();
                }
                self.handle(Event::Opened { token, session: number, report }).await;
            }
            Err(failure) => {
                tracing::info!(
                    relationship = %self.engine.record().id, cause = %failure.refusal, "no session with the replica"
                );
                self.handle(Event::OpenFailed { token, failure }).await;
            }
        }
    }

    fn show(&self) {
        let mut link = self.link.clone();
        link.is_up = self.session.as_ref().is_some_and(|s| s.check().is_ok());
        let view =
            View { engine: Arc::new(self.engine.clone()), link, newest_at: self.newest_at, is_gone: self.is_gone };
        self.view.send_replace(view);
        self.parts.book.changed();
    }

    async fn carry_out(&mut self, actions: Actions) {
        for action in actions {
            self.act(action).await;
        }
    }

    async fn act(&mut self, action: Action) {
        match action {
            Action::Persist(record) => self.persist(*record).await,
            Action::Open { token, generation, session } => {
                let record = self.engine.record();
                let wanted = Wanted {
                    peer: self.parts.peer,
                    relationship: record.id,
                    generation,
                    session,
                    settings: record.settings.clone(),
                };
                let (dialer, events, opens) = (self.parts.dialer.clone(), self.events.clone(), self.opens.clone());
                tokio::spawn(async move {
                    let result = open(&*dialer, &wanted, events).await;
                    let _ = opens.send(OpenOutcome { token, result });
                });
            }
            Action::CloseLink => self.close(),
            Action::BeginTracking { token, first_map } => self.put(Step::BeginTracking(token, first_map)),
            Action::EndTracking => self.put(Step::EndTracking),
            Action::CopyBase { token, attempt, is_seeded, .. } => match self.session.clone() {
                Some(session) => self.put(Step::CopyBase { token, attempt, is_seeded, session }),
                None => self.tell_lost(|failure| Event::BaseFailed { token, failure }),
            },
            Action::Compare { token, attempt, against } => match self.session.clone() {
                Some(session) => self.put(Step::Compare { token, attempt, against, session }),
                None => self.tell_lost(|failure| Event::CompareFailed { token, failure }),
            },
            Action::ForgetComparison => self.put(Step::ForgetComparison),
            Action::Abandon => {
                self.cancel.cancel();
                self.cancel = CancellationToken::new();
            }
            Action::TakeCut { token, number, must_cover, consistency, differing } => {
                self.put(Step::TakeCut { token, number, must_cover, consistency, differing });
            }
            Action::SendCycle { token, number, parent } => match self.session.clone() {
                Some(session) => self.put(Step::SendCycle(token, number, parent, session)),
                None => self.tell_lost(|failure| Event::CycleFailed { token, failure }),
            },
            Action::ConcludeCycle { token } => self.lane.conclude(token),
            Action::DropMaps { below } => self.put(Step::DropMaps(below)),
            Action::FoldMaps => self.put(Step::FoldMaps),
            Action::SendSettings => self.send_settings(),
            Action::Progress { job, progress } => self.parts.book.progress(job, progress),
            Action::FinishJob { job, result } => {
                // Who waited for the job looks next, and must find what it came to.
                self.show();
                self.parts.book.finish(job, result).await;
            }
            Action::CycleDone { cut, cut_at, bytes } => self.note_cycle(cut, cut_at, bytes).await,
            Action::Forget => self.forget().await,
        }
    }

    fn put(&self, step: Step) {
        let record = self.engine.record();
        let facts = Facts {
            vm: record.id.vm,
            generation: record.generation,
            owner: MapOwner { relationship: record.id, generation: record.map_generation },
            disks: record.disks.clone(),
            compression: record.settings.compression,
            images: self.images.clone(),
            scratch_limit: self.parts.scratch_limit,
        };
        self.lane.put(Order { step, facts, cancel: self.cancel.clone() });
    }

    fn tell_lost(&self, event: impl FnOnce(Failure) -> Event) {
        let reason = "the connection to the replica was lost";
        let failure = Failure::new(understudy_model::ErrorKind::Retry, ReturnCode::NotAvailable, reason);
        let _ = self.events.send(event(failure.with_link_lost()));
    }

    fn close(&mut self) {
        self.cancel.cancel();
        self.cancel = CancellationToken::new();
        if let Some(session) = self.session.take() {
            session.close();
        }
    }

    /// Nothing after this may happen before it has succeeded.
    async fn persist(&mut self, record: Record) {
        self.adopt(record.acked);
        let durable = Durable { record, images: self.images.clone(), newest_at: self.newest_at };
        let mut was_told = false;
        while let Err(err) = self.parts.book.save(&durable).await {
            if !was_told {
                tracing::error!(
                    relationship = %durable.record.id, cause = chain(&*err),
                    "cannot write the state directory: replication stands until it can be written again"
                );
                was_told = true;
            }
            tokio::time::sleep(PERSIST_RETRY).await;
        }
    }

    async fn forget(&mut self) {
        self.close();
        if let Err(err) = self.parts.book.forget().await {
            tracing::error!(
                relationship = %self.engine.record().id, cause = chain(&*err), "cannot forget a removed relationship"
            );
        }
        self.is_gone = true;
        self.show();
    }

    fn send_settings(&self) {
        if let Some(session) = self.session.clone() {
            let settings = Settings::from(&self.engine.record().settings);
            // If this is lost, the next handshake tells them again.
            tokio::spawn(async move { session.request(&Message::Settings(settings)).await });
        }
    }

    async fn note_cycle(&self, cut: CutRef, cut_at: Timestamp, bytes: u64) {
        let entry = CycleEntry {
            cut,
            acked_at: self.parts.clock.wall(),
            taken_at: self.newest_at.unwrap_or_default(),
            latency: self.now() - cut_at,
            bytes_sent: bytes,
            bytes_changed: self.changed,
        };
        tracing::debug!(
            relationship = %self.engine.record().id, cut = %cut.number, bytes, changed = self.changed,
            elapsed_ms = entry.latency.0, "cycle acknowledged"
        );
        self.parts.book.cycle(entry).await;
    }
}
