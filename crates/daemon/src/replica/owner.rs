//! The receiving side as operations see it: pause, failover, removal, reports.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio_util::sync::CancellationToken;
use understudy_engine::primary::{Failure, Progress};
use understudy_engine::replica::Choice;
use understudy_engine::stats::Stats;
use understudy_hypervisor::machine::Running;
use understudy_model::job::JobKind;
use understudy_model::{Mode, Refusal, RelationshipId, ReturnCode, Settings, State, Timestamp};
use understudy_store::files::OutsideFile;
use understudy_store::{Removal, SeedError, SeedFile, VmStore};
use understudy_wire::message::Notice;

use super::failover::{self, Premises};
use super::hub::Hub;
use super::place::Place;
use super::record::Durable;
use super::upkeep::look_after;
use crate::catalogue::{RelationshipRecord, Side};
use crate::chain;
use crate::jobs::{JobEnd, JobHandle, JobTicket, Jobs};
use crate::operations::owner::{
    Answer, Command, FailoverReport, LinkReport, NewestCut, PointReport, RelationshipOwner, RelationshipReport, Seed,
};
use crate::operations::registry::Exit;

/// How often is looked for a failover that could not be carried out when it was asked for.
const FAILOVER_LOOK: Duration = Duration::from_secs(5);

/// One relationship of which this host is the replica.
pub struct ReplicaService {
    record: RelationshipRecord,
    place: Arc<Place>,
    hub: Arc<Hub>,
    premises: Premises,
    exit: Exit,
    /// One failover-like operation at a time.
    busy: tokio::sync::Mutex<()>,
    stop: CancellationToken,
    /// When it was taken up, by the wall clock.
    since: Timestamp,
}

/// The door that operations knock at.
pub struct ReplicaDoor(pub Arc<ReplicaService>);

impl ReplicaService {
    /// Takes a replica up: it can be reached, its upkeep runs, and a failover that a crash cut short is gone on with.
    pub fn open(
        record: RelationshipRecord,
        place: Arc<Place>,
        hub: Arc<Hub>,
        premises: Premises,
        jobs: &Jobs,
        exit: Exit,
    ) -> Arc<Self> {
        let stop = CancellationToken::new();
        hub.add(record.peer, place.clone());
        tokio::spawn(look_after(place.clone(), stop.clone()));
        place.upkeep.notify_one();
        let (since, busy) = (place.clock.wall(), tokio::sync::Mutex::new(()));
        let service = Arc::new(Self { record, place, hub, premises, exit, busy, stop, since });
        let job = failover::is_unfinished(&service.place)
            .then(|| jobs.adopt_for(JobKind::Failover, service.record.id.vm))
            .flatten();
        tokio::spawn(service.clone().see_failovers_through(job));
        service
    }

    /// Goes on with failovers that were decided on and not carried out: one that a crash cut short, at once; one that a
    /// store which stopped kept from its end, as soon as the store is open again.
    async fn see_failovers_through(self: Arc<Self>, mut job: Option<JobHandle>) {
        loop {
            let is_open = self.place.store().stopped().is_none();
            if is_open && failover::is_unfinished(&self.place) && self.busy.try_lock().is_ok() {
                self.clone().finish_failover(job.take()).await;
            }
            tokio::select! {
                () = tokio::time::sleep(FAILOVER_LOOK) => {}
                () = self.stop.cancelled() => return,
            }
        }
    }

    async fn finish_failover(self: Arc<Self>, job: Option<JobHandle>) {
        let _busy = self.busy.lock().await;
        if !failover::is_unfinished(&self.place) {
            return;
        }
        let result = failover::carry_out(&self.place).await;
        if let Err(refusal) = &result {
            tracing::error!(relationship = %self.record.id, cause = %refusal, "a failover cut short could not be finished");
        }
        if let Some(job) = job {
            job.end(result).await;
        }
    }

    async fn failover(self: &Arc<Self>, choice: Choice, power_on: bool, ticket: JobTicket) -> Result<Answer, Refusal> {
        let busy = self.busy.try_lock().map_err(|_| in_use())?;
        // Refused before anything is begun, if the state says no.
        self.place.record().plan_failover(choice, &failover::choices(&self.place.store()))?;
        let job = ticket.begin("taking over").await?;
        let id = job.id();
        if let Err(refusal) = failover::plan(&self.place, choice).await {
            job.end(Err(refusal.clone())).await;
            return Err(refusal);
        }
        drop(busy);
        let service = self.clone();
        tokio::spawn(async move {
            let _busy = service.busy.lock().await;
            let result = service.take_over(power_on).await;
            job.end(result).await;
        });
        Ok(Answer::Job(id))
    }

    async fn take_over(&self, power_on: bool) -> Result<(), Refusal> {
        failover::carry_out(&self.place).await?;
        if power_on {
            let running = failover::power_on(&self.place, &self.premises).await?;
            tracing::info!(relationship = %self.record.id, pid = running.pid(), "the replica was started");
        }
        Ok(())
    }

    async fn end_failover(self: &Arc<Self>, is_commit: bool, ticket: JobTicket) -> Result<Answer, Refusal> {
        drop(self.busy.try_lock().map_err(|_| in_use())?);
        let record = self.place.record();
        if is_commit {
            record.commit()?
        } else {
            record.revert()?
        };
        let job =
            ticket.begin(if is_commit { "making the failover final" } else { "throwing the failover away" }).await?;
        let (id, service) = (job.id(), self.clone());
        tokio::spawn(async move {
            let _busy = service.busy.lock().await;
            let result = if is_commit {
                failover::commit(&service.place).await
            } else {
                failover::revert(&service.place, &service.premises).await
            };
            job.end(result).await;
        });
        Ok(Answer::Job(id))
    }

    async fn set_state(&self, is_suspend: bool) -> Result<Answer, Refusal> {
        let result = self.place.change(|durable| {
            let record = if is_suspend { durable.record.suspend() } else { durable.record.resume() };
            let record = record.map_err(Said)?;
            Ok::<_, Said>((Durable { record, ..durable.clone() }, ()))
        });
        result.await.map_err(|Said(refusal)| refusal)?;
        self.place.notify(if is_suspend { Notice::Suspended } else { Notice::Resumed }).await;
        Ok(Answer::Done)
    }

    /// A replica keeps its own retention; the rest of the settings is the primary's.
    async fn modify(&self, settings: Settings) -> Result<Answer, Refusal> {
        let _ = settings;
        Err(Refusal::new(ReturnCode::InvalidState, "settings are changed on the primary, and this is the replica")
            .hint("ask the primary host"))
    }

    async fn remove(self: &Arc<Self>, ticket: JobTicket) -> Result<Answer, Refusal> {
        drop(self.busy.try_lock().map_err(|_| in_use())?);
        self.place.record().check_removal()?;
        let job = ticket.begin("ending replication").await?;
        let (id, service) = (job.id(), self.clone());
        tokio::spawn(async move {
            let _busy = service.busy.lock().await;
            let result = service.take_down().await;
            job.end(result).await;
        });
        Ok(Answer::Job(id))
    }

    /// Places an image for a seeded initial replication.
    async fn seed(self: &Arc<Self>, seed: Seed, ticket: JobTicket) -> Result<Answer, Refusal> {
        drop(self.busy.try_lock().map_err(|_| in_use())?);
        if self.place.record().state != State::InitialReplication || self.place.store().base_attempt().is_some() {
            return Err(Refusal::new(ReturnCode::InvalidState, "the first copy has begun already")
                .hint("an image can be placed before initial replication is started"));
        }
        let disks = self.place.disks();
        let disk = disks
            .iter()
            .find(|spec| spec.id == seed.disk)
            .ok_or_else(|| Refusal::new(ReturnCode::InvalidParameter, format!("the VM has no {}", seed.disk)))?;
        let job = ticket.cancellable().begin(&format!("placing {}", seed.disk)).await?;
        let (id, service, total) = (job.id(), self.clone(), disk.size);
        tokio::spawn(async move {
            let _busy = service.busy.lock().await;
            let (store, cancelled) = (service.place.store(), job.cancelled().clone());
            let job = Arc::new(job);
            let shown = job.clone();
            let planted = tokio::task::spawn_blocking(move || plant(&store, &seed, total, &shown)).await;
            let planted = planted.map_err(|_| Refusal::new(ReturnCode::Failed, "placing the image panicked"));
            let Some(job) = Arc::into_inner(job) else { return };
            match planted.and_then(|planted| planted) {
                Err(_) if cancelled.is_cancelled() => job.end(JobEnd::Terminated).await,
                result => job.end(result).await,
            }
        });
        Ok(Answer::Job(id))
    }

    async fn take_down(&self) -> Result<(), Refusal> {
        self.place.record().check_removal()?;
        self.place.notify(Notice::Removed).await;
        self.hub.remove(self.record.id);
        self.stop.cancel();
        let (store, vm, has_points) =
            (self.hub.store.clone(), self.record.id.vm, self.place.store().newest().is_some());
        // What was never a state of the VM is of use to nobody.
        let removal = if has_points { Removal::KeepPoints } else { Removal::DestroyPoints };
        let removed = tokio::task::spawn_blocking(move || store.remove(vm, removal)).await;
        let removed = removed.map_err(|_| Refusal::new(ReturnCode::Failed, "removing the replica panicked"))?;
        removed.map_err(|err| Refusal::new(ReturnCode::Failed, chain(&err)))?;
        self.exit.remove().await.map_err(|err| err.refusal())
    }
}

/// Blocks.
fn plant(store: &Arc<VmStore>, seed: &Seed, total: u64, job: &JobHandle) -> Result<(), Refusal> {
    let failed = |err: &dyn std::error::Error| Refusal::new(ReturnCode::Failed, chain(err));
    let file = OutsideFile::open(&seed.path).map_err(|err| failed(&err))?;
    let mut done = 0;
    let mut pace = |bytes: u64| {
        done += bytes;
        job.progress(crate::jobs::Progress { bytes_done: done, bytes_total: total, ..Default::default() });
        if job.cancelled().is_cancelled() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    let planted = store.plant_seed(seed.disk, &SeedFile { file, take: seed.take }, &mut pace);
    planted.map(drop).map_err(|err| match err {
        SeedError::TooLong { .. } => Refusal::new(ReturnCode::InvalidParameter, chain(&err)),
        SeedError::Begun | SeedError::Detached => Refusal::new(ReturnCode::InvalidState, chain(&err)),
        SeedError::Busy => Refusal::new(ReturnCode::SystemInUse, chain(&err)),
        err => failed(&err),
    })
}

/// A refusal that a failed write of the record can turn into.
struct Said(Refusal);

impl From<Failure> for Said {
    fn from(failure: Failure) -> Self {
        Said(failure.refusal)
    }
}

fn in_use() -> Refusal {
    Refusal::new(ReturnCode::SystemInUse, "another operation on this replica is under way")
        .hint("wait for its job to end")
}

#[async_trait]
impl RelationshipOwner for ReplicaDoor {
    fn id(&self) -> RelationshipId {
        self.0.record.id
    }

    async fn ask(&self, command: Command, ticket: JobTicket) -> Result<Answer, Refusal> {
        let service = &self.0;
        match command {
            Command::Create | Command::Start { .. } | Command::Resync { .. } | Command::Stop => Err(Refusal::new(
                ReturnCode::InvalidState,
                "this is controlled on the primary, and this is the replica",
            )
            .hint("ask the primary host")),
            Command::Seed(seed) => service.seed(seed, ticket).await,
            Command::Suspend => service.set_state(true).await,
            Command::Resume => service.set_state(false).await,
            Command::ResetStatistics => Err(Refusal::new(
                ReturnCode::InvalidState,
                "cycles are counted on the primary, and this is the replica",
            )),
            Command::Modify(settings) => service.modify(settings).await,
            Command::Remove => service.remove(ticket).await,
            Command::FailoverStart { point, power_on } => {
                let choice = point.map_or(Choice::Newest, Choice::Point);
                service.failover(choice, power_on, ticket).await
            }
            Command::FailoverRevert => service.end_failover(false, ticket).await,
            Command::FailoverCommit => service.end_failover(true, ticket).await,
        }
    }

    fn report(&self) -> RelationshipReport {
        let service = &self.0;
        let vitals = service.place.vitals();
        let record = &vitals.durable.record;
        let now = service.place.clock.steady();
        let age = vitals.sealed_at.map(|at| now - at);
        let (health, issues) = record.health(age, now - vitals.began_at, vitals.failure.clone());
        let points = service.place.store().points();
        let newest = points.iter().find(|p| p.newest);
        RelationshipReport {
            id: service.record.id,
            vm_name: service.record.vm_name.clone(),
            side: Side::Replica,
            mode: Mode::Replica,
            peer: service.record.peer,
            state: record.state,
            health,
            issues,
            activity: activity(record.state, vitals.is_connected).to_owned(),
            settings: record.settings.clone(),
            generation: record.generation,
            newest: newest.map(|p| NewestCut { cut: p.cut.id, taken_at: p.cut.taken_at }),
            rpo_actual: age,
            failure: vitals.failure,
            failover: record.failover.map(|f| FailoverReport {
                cut: f.cut,
                kind: f.kind,
                taken_at: f.taken_at,
                is_running: failover::monitor_of(&service.place, &service.premises).exists(),
                monitor: Some(failover::monitor_of(&service.place, &service.premises).display().to_string()),
            }),
            progress: self.progress(),
            scheduled_at: None,
            stats_since: service.since,
            link: LinkReport {
                is_up: vitals.is_connected,
                connections: u16::from(vitals.is_connected),
                ..Default::default()
            },
            stats: Stats::default(),
            points: points.iter().filter(|p| p.kept).count() as u32,
        }
    }

    async fn points(&self) -> Result<Vec<PointReport>, Refusal> {
        let points = self.0.place.store().points().into_iter();
        Ok(points
            .filter(|p| p.kept || p.newest)
            .map(|p| PointReport {
                id: p.cut.point(),
                is_newest: p.newest,
                is_kept: p.kept,
                stored: p.stored,
                cut: p.cut,
            })
            .collect())
    }

    async fn stop(&self) {
        self.0.stop.cancel();
        self.0.place.end_session();
    }
}

impl ReplicaDoor {
    fn progress(&self) -> Progress {
        let Some(positions) = self.0.place.store().base_positions() else { return Progress::default() };
        let total = self.0.place.disks().iter().map(|d| d.size).sum();
        Progress { done: super::place::copied(&positions), total }
    }
}

fn activity(state: State, is_connected: bool) -> &'static str {
    match (state, is_connected) {
        (State::FailingOver, _) => "failing over",
        (State::FailedOver | State::Committed, _) => "idle",
        (_, true) => "receiving",
        (_, false) => "waiting for the primary",
    }
}

/// Whether the promoted VM of a replica runs.
pub async fn is_running(place: &Place, premises: &Premises) -> bool {
    let found = Running::find(&failover::runtime_of(place, premises), place.id().vm.0).await;
    found.is_ok_and(|running| running.is_some())
}
