//! The sending side as operations see it: creation, jobs, reports, around the engine's owner task.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};

use async_trait::async_trait;
use understudy_engine::primary::{Command as EngineCommand, Progress, Record};
use understudy_engine::stats::Stats;
use understudy_model::{
    Consistency, Generation, Health, JobId, Mode, Refusal, RelationshipId, ReturnCode, State, Timestamp,
};
use understudy_wire::message::{Disk, Prepare, Relationship, Settings as WireSettings};

use super::dial::prepare;
use super::owner::{Book, CycleEntry, Durable, Handle, Parts, start};
use super::record::write;
use super::schedule::{Beginning, Schedule, look_after, refuse_resync};
use crate::catalogue::{Catalogue, CycleOutcome, CycleRecord, RelationshipRecord, Side};
use crate::clock::Clock;
use crate::events::{Events, Notice};
use crate::jobs::{self, JobEnd, JobHandle, JobTicket, Jobs};
use crate::operations::owner::{
    Answer, Command, LinkReport, NewestCut, PointReport, RelationshipOwner, RelationshipReport,
};
use crate::operations::registry::Exit;

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Makes the parts of an owner task, once it is needed.
pub trait PartsFactory: Send + Sync {
    /// The parts for this relationship.
    fn parts(&self, record: &RelationshipRecord, book: Arc<dyn Book>) -> Parts;
    /// Connects to peers.
    fn dialer(&self) -> Arc<dyn super::dial::Dialer>;
}

/// One relationship of which this host is the primary.
pub struct PrimaryService {
    record: RelationshipRecord,
    disks: Vec<understudy_model::DiskSpec>,
    factory: Arc<dyn PartsFactory>,
    catalogue: Catalogue,
    events: Events,
    exit: Exit,
    shared: Arc<Shared>,
    pub(super) jobs: Jobs,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) schedule: Schedule,
    /// Since when is counted, by the wall clock.
    counted_since: Mutex<Timestamp>,
}

struct Shared {
    /// The engine's task, once the relationship was created.
    task: Mutex<Option<Handle>>,
    /// Jobs of the engine that have not ended.
    transfers: Mutex<HashMap<JobId, JobHandle>>,
    /// Fires once the engine's task has let go of everything after a removal.
    forgotten: tokio::sync::watch::Sender<bool>,
}

impl Shared {
    fn task(&self) -> Option<Handle> {
        self.task.lock().unwrap_or_else(|e| e.into_inner()).clone()
    }

    fn transfers(&self) -> MutexGuard<'_, HashMap<JobId, JobHandle>> {
        self.transfers.lock().unwrap_or_else(|e| e.into_inner())
    }
}

/// What a relationship is taken up from.
pub struct Opening {
    /// Its record in the catalogue.
    pub record: RelationshipRecord,
    /// The VM's disks that are to be replicated.
    pub disks: Vec<understudy_model::DiskSpec>,
    /// What it remembers; with this it was created before and goes on at once.
    pub durable: Option<Durable>,
    /// The job of an initial replication or a resynchronisation under way.
    pub transfer: Option<JobHandle>,
    /// The jobs.
    pub jobs: Jobs,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Makes the parts of the engine's task.
    pub factory: Arc<dyn PartsFactory>,
    /// Where it remembers.
    pub catalogue: Catalogue,
    /// Who is told of changes.
    pub events: Events,
    /// How it ends.
    pub exit: Exit,
}

impl PrimaryService {
    /// Takes a relationship up.
    pub fn open(opening: Opening) -> Arc<Self> {
        let Opening { record, disks, durable, transfer, jobs, clock, factory, catalogue, events, exit } = opening;
        let shared = Arc::new(Shared {
            task: Mutex::new(None),
            transfers: Mutex::default(),
            forgotten: tokio::sync::watch::Sender::new(false),
        });
        let schedule = Schedule::default();
        if let Some((job, kind, at)) = jobs.adopt_scheduled(record.id.vm)
            && let Some(what) = Beginning::of(kind)
        {
            schedule.set(job, at, what);
        }
        let counted_since = Mutex::new(clock.wall());
        let service = Arc::new(Self {
            record,
            disks,
            factory,
            catalogue,
            events,
            exit,
            shared,
            jobs,
            clock,
            schedule,
            counted_since,
        });
        tokio::spawn(look_after(Arc::downgrade(&service)));
        if let Some(transfer) = transfer {
            service.hold(transfer);
        }
        if let Some(durable) = durable {
            service.run(durable);
        }
        service
    }

    fn run(self: &Arc<Self>, durable: Durable) {
        let book = Arc::new(Pages {
            id: self.record.id,
            catalogue: self.catalogue.clone(),
            events: self.events.clone(),
            shared: self.shared.clone(),
        });
        let handle = start(durable, self.factory.parts(&self.record, book));
        *self.shared.task.lock().unwrap_or_else(|e| e.into_inner()) = Some(handle);
        self.events.tell(Notice::Relationship(self.record.id));
    }

    /// Keeps a transfer's job until the engine ends it; a cancel stops the transfer.
    fn hold(self: &Arc<Self>, job: JobHandle) {
        let (cancelled, service) = (job.cancelled().clone(), Arc::downgrade(self));
        self.shared.transfers().insert(job.id(), job);
        tokio::spawn(async move {
            cancelled.cancelled().await;
            let task = service.upgrade().and_then(|s| s.shared.task());
            if let Some(task) = task {
                // If it has just ended, there is nothing to stop.
                if task.ask(EngineCommand::StopInitial).await.is_err() {
                    let _ = task.ask(EngineCommand::StopResync).await;
                }
            }
        });
    }

    fn create(self: &Arc<Self>, job: JobHandle) {
        let service = self.clone();
        tokio::spawn(async move {
            let made = service.make().await;
            if made.is_err()
                && let Err(err) = service.exit.remove().await
            {
                tracing::error!(relationship = %service.record.id, cause = crate::chain(&err), "cannot forget a relationship that was not made");
            }
            job.end(made).await;
        });
    }

    async fn make(self: &Arc<Self>) -> Result<(), Refusal> {
        let id = self.record.id;
        let asked = Prepare {
            relationship: Relationship::from(id),
            generation: Generation(1).0,
            name: self.record.vm_name.clone(),
            disks: self.disks.iter().map(Disk::from).collect(),
            settings: WireSettings::from(&self.record.settings),
        };
        prepare(&*self.factory.dialer(), self.record.peer, asked).await.map_err(|f| f.refusal)?;
        let record = Record::new(id, Generation(1), self.disks.clone(), self.record.settings.clone());
        let durable = Durable { record, images: Vec::new(), newest_at: None };
        let saved = self.catalogue.save_record(id, write(&durable), self.record.settings.clone()).await;
        saved.map_err(|err| err.refusal())?;
        self.run(durable);
        Ok(())
    }

    /// The VM.
    pub(super) fn vm(&self) -> understudy_model::VmId {
        self.record.id.vm
    }

    pub(super) fn task(&self) -> Result<Handle, Refusal> {
        self.shared.task().ok_or_else(|| Refusal::new(ReturnCode::SystemInUse, "the relationship is still being made"))
    }

    /// Begins at once, or puts it on the schedule.
    async fn start(
        self: &Arc<Self>,
        what: Beginning,
        at: Option<Timestamp>,
        ticket: JobTicket,
    ) -> Result<Answer, Refusal> {
        let state = self.task()?.view().record().state;
        if let Some(refusal) = refuse(what, state) {
            return Err(refusal);
        }
        if let Some(at) = at {
            return self.put_on_schedule(ticket, at, what).await.map(Answer::Job);
        }
        let job = ticket.begin("waiting for the replica").await?;
        let id = job.id();
        self.begin(job, what).await?;
        self.clear_schedule("it was started at once").await;
        Ok(Answer::Job(id))
    }

    /// Has the engine begin. A refusal is on the job as well.
    pub(super) async fn begin(self: &Arc<Self>, job: JobHandle, what: Beginning) -> Result<(), Refusal> {
        let transfer_job = job.id();
        self.hold(job);
        let command = match what {
            Beginning::Initial(kind) => EngineCommand::Start { transfer_job, kind },
            Beginning::Resync => EngineCommand::Resynchronize { transfer_job },
        };
        let asked = match self.task() {
            Ok(task) => task.ask(command).await,
            Err(refusal) => Err(refusal),
        };
        if let Err(refusal) = &asked
            && let Some(job) = { self.shared.transfers().remove(&transfer_job) }
        {
            job.end(JobEnd::Failed(refusal.clone())).await;
        }
        asked
    }

    /// Gives up what is under way, or what was to begin later.
    async fn stop(&self) -> Result<Answer, Refusal> {
        let task = self.task()?;
        if self.clear_schedule("it was taken off the schedule").await {
            return Ok(Answer::Done);
        }
        let is_resync = task.view().record().compare.is_some();
        let command = if is_resync { EngineCommand::StopResync } else { EngineCommand::StopInitial };
        done(task.ask(command).await)
    }

    async fn remove(self: &Arc<Self>, ticket: JobTicket) -> Result<Answer, Refusal> {
        let task = self.task()?;
        let mut forgotten = self.shared.forgotten.subscribe();
        let job = ticket.begin("ending replication").await?;
        let id = job.id();
        self.clear_schedule("the relationship was removed").await;
        let service = self.clone();
        tokio::spawn(async move {
            let removed = match task.ask(EngineCommand::Remove).await {
                Ok(()) => {
                    // The task ends only after the hypervisor was cleaned up; the channel cannot close before.
                    let _ = forgotten.wait_for(|gone| *gone).await;
                    task.stop().await;
                    service.exit.remove().await.map_err(|err| err.refusal())
                }
                Err(refusal) => Err(refusal),
            };
            job.end(removed).await;
        });
        Ok(Answer::Job(id))
    }
}

/// The pages of one relationship in the catalogue and among the jobs.
struct Pages {
    id: RelationshipId,
    catalogue: Catalogue,
    events: Events,
    shared: Arc<Shared>,
}

#[async_trait]
impl Book for Pages {
    async fn save(&self, durable: &Durable) -> Result<(), BoxError> {
        let (text, settings) = (write(durable), durable.record.settings.clone());
        self.catalogue.save_record(self.id, text, settings).await.map_err(Into::into)
    }

    async fn forget(&self) -> Result<(), BoxError> {
        self.shared.forgotten.send_replace(true);
        Ok(())
    }

    fn progress(&self, job: JobId, progress: Progress) {
        if let Some(handle) = self.shared.transfers().get(&job) {
            let status = "copying or comparing the disks".to_owned();
            handle.progress(jobs::Progress {
                bytes_done: progress.done,
                bytes_total: progress.total,
                percent: 0,
                status,
            });
        }
    }

    async fn finish(&self, job: JobId, result: Result<(), Refusal>) {
        let handle = self.shared.transfers().remove(&job);
        let Some(handle) = handle else { return };
        let end = match result {
            Err(_) if handle.cancelled().is_cancelled() => JobEnd::Terminated,
            result => JobEnd::from(result),
        };
        handle.end(end).await;
    }

    async fn cycle(&self, entry: CycleEntry) {
        let record = CycleRecord {
            cut: entry.cut.number,
            outcome: CycleOutcome::Acknowledged,
            consistency: Consistency::Standard,
            taken_at: entry.taken_at,
            ended_at: entry.acked_at,
            changed: entry.bytes_changed,
            sent: entry.bytes_sent,
            detail: String::new(),
        };
        if let Err(err) = self.catalogue.add_cycle(self.id, record).await {
            tracing::warn!(relationship = %self.id, cause = crate::chain(&err), "a cycle is missing from the history");
        }
    }

    fn changed(&self) {
        self.events.tell(Notice::Relationship(self.id));
    }
}

/// The door that operations knock at.
pub struct PrimaryDoor(pub Arc<PrimaryService>);

#[async_trait]
impl RelationshipOwner for PrimaryDoor {
    fn id(&self) -> RelationshipId {
        self.0.record.id
    }

    async fn ask(&self, command: Command, ticket: JobTicket) -> Result<Answer, Refusal> {
        let service = &self.0;
        let here = |what: &str| {
            Refusal::new(
                ReturnCode::InvalidState,
                format!("{what} is done on the replica host, and this is the primary"),
            )
        };
        match command {
            Command::Create => {
                let job = ticket.begin("asking the replica host for a place").await?;
                let id = job.id();
                service.create(job);
                Ok(Answer::Job(id))
            }
            Command::Start { kind, at } => service.start(Beginning::Initial(kind), at, ticket).await,
            Command::Resync { at } => service.start(Beginning::Resync, at, ticket).await,
            Command::Stop => service.stop().await,
            Command::Suspend => done(service.task()?.ask(EngineCommand::Suspend).await),
            Command::Resume => done(service.task()?.ask(EngineCommand::Resume).await),
            Command::ResetStatistics => {
                service.task()?.ask(EngineCommand::ResetStats).await?;
                *service.counted_since.lock().unwrap_or_else(|e| e.into_inner()) = service.clock.wall();
                Ok(Answer::Done)
            }
            Command::Modify(settings) => done(service.task()?.ask(EngineCommand::Modify(settings)).await),
            Command::Remove => service.remove(ticket).await,
            Command::Seed(_) => Err(here("placing an image")),
            Command::FailoverStart { .. } => Err(here("a failover")),
            Command::FailoverRevert | Command::FailoverCommit => Err(here("this")),
        }
    }

    fn report(&self) -> RelationshipReport {
        match self.0.shared.task() {
            Some(task) => self.running_report(&task),
            None => self.blank_report(),
        }
    }

    async fn points(&self) -> Result<Vec<PointReport>, Refusal> {
        Err(Refusal::new(
            ReturnCode::InvalidState,
            "recovery points are kept on the replica host, and this is the primary",
        )
        .hint("ask the replica host"))
    }

    async fn stop(&self) {
        if let Some(task) = self.0.shared.task() {
            task.stop().await;
        }
    }
}

/// Why this cannot begin in this state, if it cannot.
fn refuse(what: Beginning, state: State) -> Option<Refusal> {
    match what {
        Beginning::Resync => refuse_resync(state),
        Beginning::Initial(_) if state == State::Ready => None,
        Beginning::Initial(_) => {
            let reason = format!("cannot start initial replication while replication is {state}");
            let hint = "initial replication is started once, while the relationship is ready";
            Some(Refusal::new(ReturnCode::InvalidState, reason).hint(hint))
        }
    }
}

fn done(result: Result<(), Refusal>) -> Result<Answer, Refusal> {
    result.map(|()| Answer::Done)
}

impl PrimaryDoor {
    fn running_report(&self, task: &Handle) -> RelationshipReport {
        let (view, service) = (task.view(), &self.0);
        let report = view.report(task.now());
        let record = view.record();
        RelationshipReport {
            mode: Mode::Primary,
            state: report.state,
            health: report.health,
            issues: report.issues,
            activity: report.activity.to_owned(),
            settings: record.settings.clone(),
            generation: record.generation,
            newest: report.acked.map(|cut| NewestCut { cut, taken_at: view.newest_at.unwrap_or_default() }),
            rpo_actual: report.rpo_actual,
            failure: report.failure,
            progress: match report.state {
                State::InitialReplication | State::Resynchronizing => report.progress,
                _ => Progress::default(),
            },
            scheduled_at: service.schedule.at(),
            link: view.link.clone(),
            stats: report.stats,
            ..service.blank()
        }
    }

    fn blank_report(&self) -> RelationshipReport {
        RelationshipReport { activity: "asking the replica host for a place".to_owned(), ..self.0.blank() }
    }
}

impl PrimaryService {
    fn blank(&self) -> RelationshipReport {
        RelationshipReport {
            id: self.record.id,
            vm_name: self.record.vm_name.clone(),
            side: Side::Primary,
            mode: Mode::None,
            peer: self.record.peer,
            state: State::Disabled,
            health: Health::NotApplicable,
            issues: Vec::new(),
            activity: String::new(),
            settings: self.record.settings.clone(),
            generation: Generation(0),
            newest: None,
            rpo_actual: None,
            failure: None,
            failover: None,
            progress: Progress::default(),
            scheduled_at: None,
            stats_since: *self.counted_since.lock().unwrap_or_else(|e| e.into_inner()),
            link: LinkReport::default(),
            stats: Stats::default(),
            points: 0,
        }
    }
}
