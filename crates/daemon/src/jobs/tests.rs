use uuid::Uuid;

use super::*;
use crate::clock::ManualClock;
use crate::config::Span;
use crate::entropy::SeededEntropy;

struct World {
    dir: tempfile::TempDir,
    clock: Arc<ManualClock>,
    limits: config::Jobs,
}

impl World {
    fn new() -> Self {
        let limits = config::Jobs { keep_for: Span::secs(60), keep_count: 3, open_max: 4 };
        Self { dir: tempfile::tempdir().unwrap(), clock: Arc::new(ManualClock::new(Timestamp(1_000))), limits }
    }

    async fn open(&self) -> (Jobs, Catalogue) {
        let catalogue = Catalogue::open(&self.dir.path().join("c.db")).unwrap();
        let entropy = Arc::new(SeededEntropy::new(catalogue.jobs().await.unwrap().len() as u64));
        let jobs = Jobs::open(catalogue.clone(), self.clock.clone(), entropy, Events::new(), self.limits.clone());
        (jobs.await.unwrap(), catalogue)
    }
}

fn vm(n: u128) -> VmId {
    VmId(Uuid::from_u128(n))
}

fn refusal() -> Refusal {
    Refusal::new(ReturnCode::NotAvailable, "the peer is gone").hint("start it")
}

#[tokio::test]
async fn a_job_is_durable_from_its_beginning_and_its_end_before_it_is_shown() {
    let world = World::new();
    let (jobs, catalogue) = world.open().await;
    let handle = jobs.ticket(JobKind::Start, Some(vm(1))).begin("starting").await.unwrap();
    let id = handle.id();
    assert_eq!(catalogue.jobs().await.unwrap(), vec![jobs.get(id).unwrap()]);
    let mut shown = jobs.watch(id).unwrap();
    world.clock.advance(Millis(500));
    let waiting = tokio::spawn({
        let catalogue = catalogue.clone();
        async move {
            shown.wait_for(|job| job.state.is_terminal()).await.unwrap();
            catalogue.jobs().await.unwrap()
        }
    });
    handle.end(JobEnd::Completed).await;
    let recorded = waiting.await.unwrap();
    assert_eq!((recorded[0].state, recorded[0].percent), (JobState::Completed, 100));
    assert_eq!(recorded[0].ended_at, Some(Timestamp(1500)));
    assert_eq!(jobs.wait(id).await.unwrap(), recorded[0]);
}

#[tokio::test]
async fn a_ticket_that_is_not_begun_leaves_no_trace() {
    let world = World::new();
    let (jobs, catalogue) = world.open().await;
    drop(jobs.ticket(JobKind::Failover, Some(vm(1))));
    assert!(jobs.list().is_empty() && catalogue.jobs().await.unwrap().is_empty());
}

#[tokio::test]
async fn progress_is_shown_at_once_and_never_reaches_a_hundred_before_the_end() {
    let world = World::new();
    let (jobs, _) = world.open().await;
    let handle = jobs.ticket(JobKind::SendInitial, Some(vm(1))).begin("").await.unwrap();
    let show = |done, total, percent| {
        handle.progress(Progress { bytes_done: done, bytes_total: total, percent, status: "copying".into() });
        jobs.get(handle.id()).unwrap().percent
    };
    assert_eq!(show(1, 3, 0), 33);
    assert_eq!(show(3, 3, 0), 99);
    assert_eq!(show(u64::MAX, u64::MAX, 0), 99);
    assert_eq!(show(0, 0, 400), 99);
    assert_eq!(jobs.get(handle.id()).unwrap().status, "copying");
}

#[tokio::test]
async fn a_job_whose_worker_panics_ends_as_an_exception() {
    let world = World::new();
    let (jobs, catalogue) = world.open().await;
    let handle = jobs.ticket(JobKind::Failover, Some(vm(1))).begin("").await.unwrap();
    let id = handle.id();
    let worker = tokio::spawn(async move {
        let _held = handle;
        panic!("a fault of ours");
    });
    assert!(worker.await.is_err());
    let job = jobs.wait(id).await.unwrap();
    assert_eq!(job.state, JobState::Exception);
    assert_eq!(job.error.as_ref().unwrap().code, ReturnCode::Failed);
    assert_eq!(catalogue.jobs().await.unwrap(), vec![job]);
}

#[tokio::test]
async fn a_failed_job_keeps_code_cause_and_hint() {
    let world = World::new();
    let (jobs, _) = world.open().await;
    let handle = jobs.ticket(JobKind::Create, None).begin("").await.unwrap();
    let id = handle.id();
    handle.end(Err(refusal())).await;
    let error = jobs.get(id).unwrap().error.unwrap();
    assert_eq!((error.code, error.hint.as_str()), (ReturnCode::NotAvailable, "start it"));
}

#[tokio::test]
async fn a_cancel_is_durable_before_it_is_answered_and_survives_a_restart() {
    let world = World::new();
    let (jobs, catalogue) = world.open().await;
    let handle = jobs.ticket(JobKind::SendInitial, Some(vm(1))).cancellable().begin("").await.unwrap();
    let id = handle.id();
    assert_eq!(jobs.cancel(id).await.unwrap().state, JobState::ShuttingDown);
    assert!(handle.cancelled().is_cancelled());
    assert_eq!(catalogue.jobs().await.unwrap()[0].state, JobState::ShuttingDown);
    jobs.close();
    drop((handle, jobs, catalogue));

    let (jobs, _) = world.open().await;
    let handle = jobs.adopt(id).unwrap();
    assert!(handle.cancelled().is_cancelled());
    handle.end(JobEnd::Terminated).await;
    assert_eq!(jobs.get(id).unwrap().state, JobState::Terminated);
    assert_eq!(jobs.cancel(id).await.unwrap_err().code, ReturnCode::InvalidState);
}

#[tokio::test]
async fn what_cannot_be_cancelled_says_so() {
    let world = World::new();
    let (jobs, _) = world.open().await;
    let handle = jobs.ticket(JobKind::Commit, Some(vm(1))).begin("").await.unwrap();
    assert_eq!(jobs.cancel(handle.id()).await.unwrap_err().code, ReturnCode::NotSupported);
    assert_eq!(jobs.cancel(JobId(Uuid::nil())).await.unwrap_err().code, ReturnCode::InvalidParameter);
    assert!(!handle.cancelled().is_cancelled());
}

#[tokio::test]
async fn after_a_restart_a_job_is_adopted_once_and_the_rest_end_with_a_reason() {
    let world = World::new();
    let (jobs, catalogue) = world.open().await;
    let going_on = jobs.ticket(JobKind::SendInitial, Some(vm(1))).begin("copying").await.unwrap();
    let lost = jobs.ticket(JobKind::Failover, Some(vm(2))).begin("").await.unwrap();
    let (going_on_id, lost_id) = (going_on.id(), lost.id());
    jobs.close();
    drop((going_on, lost, jobs, catalogue));

    let (jobs, catalogue) = world.open().await;
    assert!(jobs.adopt_for(JobKind::SendInitial, vm(2)).is_none());
    let handle = jobs.adopt_for(JobKind::SendInitial, vm(1)).unwrap();
    assert_eq!(handle.id(), going_on_id);
    assert!(jobs.adopt(going_on_id).is_none(), "somebody has it already");
    assert_eq!(jobs.settle_orphans().await, 1);
    let lost = jobs.get(lost_id).unwrap();
    assert_eq!(lost.state, JobState::Exception);
    assert!(lost.error.unwrap().description.contains("restarted"));
    handle.end(JobEnd::Completed).await;
    assert!(catalogue.jobs().await.unwrap().iter().all(|job| job.state.is_terminal()));
}

#[tokio::test]
async fn ended_jobs_are_forgotten_when_they_are_old_or_too_many() {
    let world = World::new();
    let (jobs, catalogue) = world.open().await;
    let open = jobs.ticket(JobKind::Start, None).begin("").await.unwrap();
    let mut ids = Vec::new();
    for _ in 0..5 {
        world.clock.advance(Millis(10));
        let handle = jobs.ticket(JobKind::Create, None).begin("").await.unwrap();
        ids.push(handle.id());
        handle.end(JobEnd::Completed).await;
    }
    jobs.sweep().await.unwrap();
    let kept: Vec<JobId> = jobs.list().into_iter().map(|job| job.id).collect();
    assert_eq!(kept, [ids[4], ids[3], ids[2], open.id()], "the newest three, and what is under way");
    world.clock.advance(Millis(59_985));
    jobs.sweep().await.unwrap();
    assert_eq!(jobs.list().len(), 3);
    world.clock.advance(Millis::from_secs(60));
    jobs.sweep().await.unwrap();
    assert_eq!(catalogue.jobs().await.unwrap().len(), 1);
    assert!(jobs.get(open.id()).is_some());
}

#[tokio::test]
async fn jobs_under_way_are_bounded() {
    let world = World::new();
    let (jobs, _) = world.open().await;
    let mut held = Vec::new();
    for _ in 0..4 {
        held.push(jobs.ticket(JobKind::Start, None).begin("").await.unwrap());
    }
    let Err(refusal) = jobs.ticket(JobKind::Start, None).begin("").await else { panic!("a fifth job began") };
    assert_eq!(refusal.code, ReturnCode::OutOfMemory);
    held.pop().unwrap().end(JobEnd::Completed).await;
    assert!(jobs.ticket(JobKind::Start, None).begin("").await.is_ok());
}

#[tokio::test]
async fn listeners_hear_of_the_beginning_and_the_end() {
    let world = World::new();
    let (jobs, _) = world.open().await;
    let mut events = jobs.inner.events.listen();
    let handle = jobs.ticket(JobKind::Start, None).begin("").await.unwrap();
    let id = handle.id();
    handle.end(JobEnd::Completed).await;
    let mut states = Vec::new();
    while let Ok(Notice::Job(job)) = events.try_recv() {
        assert_eq!(job.id, id);
        states.push(job.state);
    }
    assert_eq!(states, [JobState::Running, JobState::Completed]);
}
