//! In-memory versions of the seams below the operations: VMs that exist in a table, owners that only change state. For
//! tests of everything above.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use async_trait::async_trait;
use understudy_engine::health::{Vitals, judge};
use understudy_engine::primary::Progress;
use understudy_engine::stats::Stats;
use understudy_hypervisor::driver::{Description, DiskInfo, ImageFormat, Power};
use understudy_model::{
    Consistency, Cut, CutDigest, CutNumber, CutRef, FailoverKind, Generation, Mode, Refusal, RelationshipId,
    ReturnCode, State, Timestamp, VmId,
};

use super::machines::{Inspection, Machines};
use super::owner::{
    Answer, Command, FailoverReport, LinkReport, NewestCut, OwnerFactory, PointReport, RelationshipOwner,
    RelationshipReport,
};
use super::registry::Exit;
use crate::catalogue::{Catalogue, RelationshipRecord, Side};
use crate::jobs::{JobEnd, JobHandle, JobTicket};

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// VMs by the path of their QMP socket.
#[derive(Default)]
pub struct FakeMachines {
    vms: Mutex<BTreeMap<PathBuf, Result<Inspection, Refusal>>>,
}

impl FakeMachines {
    /// Puts a running VM with these disk sizes behind a socket.
    pub fn put(&self, qmp: &str, uuid: Option<VmId>, sizes: &[u64]) {
        let disk = |(n, size): (usize, &u64)| DiskInfo {
            key: format!("virtio{n}"),
            size: *size,
            format: ImageFormat::Qcow2,
            path: Some(PathBuf::from(format!("/images/{n}.qcow2"))),
            persistent_maps: true,
            iothread: None,
        };
        let disks = sizes.iter().enumerate().map(disk).collect();
        let left_out = vec!["cd0: removable".to_owned()];
        let description = Description { power: Power::Running, version: Some((10, 0, 2)), disks, left_out };
        lock(&self.vms).insert(qmp.into(), Ok(Inspection { uuid, description, definition: None }));
    }

    /// Makes every look at this socket fail.
    pub fn refuse(&self, qmp: &str, refusal: Refusal) {
        lock(&self.vms).insert(qmp.into(), Err(refusal));
    }
}

#[async_trait]
impl Machines for FakeMachines {
    async fn inspect(&self, qmp: &Path) -> Result<Inspection, Refusal> {
        let missing = || Refusal::new(ReturnCode::FileNotFound, format!("there is no socket {}", qmp.display()));
        lock(&self.vms).get(qmp).cloned().unwrap_or_else(|| Err(missing()))
    }

    fn check_definition(&self, text: &str) -> Result<(), Refusal> {
        let is_good = text.starts_with("machine");
        if is_good { Ok(()) } else { Err(Refusal::new(ReturnCode::InvalidParameter, "this is no definition")) }
    }
}

/// Makes [`FakeOwner`]s, and keeps hold of them for the test.
pub struct FakeOwners {
    catalogue: Catalogue,
    owners: Mutex<BTreeMap<RelationshipId, Arc<FakeOwner>>>,
}

impl FakeOwners {
    /// Makes none yet.
    pub fn new(catalogue: Catalogue) -> Arc<Self> {
        Arc::new(Self { catalogue, owners: Mutex::default() })
    }

    /// The owner of a relationship.
    pub fn get(&self, id: RelationshipId) -> Option<Arc<FakeOwner>> {
        lock(&self.owners).get(&id).cloned()
    }
}

#[async_trait]
impl OwnerFactory for FakeOwners {
    async fn open(&self, record: RelationshipRecord, exit: Exit) -> Result<Arc<dyn RelationshipOwner>, Refusal> {
        if record.vm_name == "cannot-be-opened" {
            return Err(Refusal::new(ReturnCode::NotAvailable, "its store is gone"));
        }
        let state = match record.side {
            Side::Primary => State::Ready,
            Side::Replica => State::Replicating,
        };
        let inner = Inner { state, held: None, refuse_next: None, panic_next: false };
        let owner = FakeOwner { record, exit, catalogue: self.catalogue.clone(), inner: Mutex::new(inner) };
        let owner = Arc::new(owner);
        lock(&self.owners).insert(owner.record.id, owner.clone());
        Ok(owner)
    }
}

/// An owner that changes state and ends jobs when the test says so.
pub struct FakeOwner {
    record: RelationshipRecord,
    exit: Exit,
    catalogue: Catalogue,
    inner: Mutex<Inner>,
}

struct Inner {
    state: State,
    held: Option<JobHandle>,
    refuse_next: Option<Refusal>,
    panic_next: bool,
}

impl FakeOwner {
    /// The job it was given last and has not ended.
    pub fn take_job(&self) -> Option<JobHandle> {
        lock(&self.inner).held.take()
    }

    /// Ends that job; a refusal or a cancel leaves the state of before.
    pub async fn end_job(&self, end: JobEnd, state: State) {
        let job = self.take_job().expect("the owner holds a job");
        lock(&self.inner).state = state;
        job.end(end).await;
    }

    /// Refuses whatever is asked next.
    pub fn refuse_next(&self, refusal: Refusal) {
        lock(&self.inner).refuse_next = Some(refusal);
    }

    /// Panics over whatever is asked next.
    pub fn panic_next(&self) {
        lock(&self.inner).panic_next = true;
    }

    /// Shows another state.
    pub fn set_state(&self, state: State) {
        lock(&self.inner).state = state;
    }

    fn cut(number: u64) -> Cut {
        let digest = CutDigest(*blake3::hash(&number.to_le_bytes()).as_bytes());
        let parent = if number == 1 { CutDigest::ZERO } else { Self::cut(number - 1).id.digest };
        Cut {
            id: CutRef { generation: Generation(1), number: CutNumber(number), digest },
            parent,
            taken_at: Timestamp(1_800_000_000_000 + number * 30_000),
            consistency: if number == 2 { Consistency::Application } else { Consistency::Standard },
        }
    }

    fn accept(&self, command: &Command) -> Result<(), Refusal> {
        let mut inner = lock(&self.inner);
        assert!(!std::mem::take(&mut inner.panic_next), "a fault that was asked for");
        if let Some(refusal) = inner.refuse_next.take() {
            return Err(refusal);
        }
        let next = match (command, inner.state) {
            (Command::Create, State::Ready) => State::Ready,
            (Command::Start { .. }, State::Ready) => State::InitialReplication,
            (Command::Seed(_), State::InitialReplication) => State::InitialReplication,
            (Command::Resync { .. }, State::ResyncRequired) => State::Resynchronizing,
            (Command::Stop, State::InitialReplication) => State::Ready,
            (Command::Stop, State::Resynchronizing) => State::ResyncRequired,
            (Command::Suspend, State::Replicating) => State::Suspended,
            (Command::Resume, State::Suspended) => State::Replicating,
            (Command::Modify(_) | Command::ResetStatistics | Command::Remove, state) => state,
            (Command::FailoverStart { .. }, State::Replicating) => State::FailedOver,
            (Command::FailoverRevert, State::FailedOver) => State::Replicating,
            (Command::FailoverCommit, State::FailedOver) => State::Committed,
            (_, state) => {
                let reason = format!("this cannot be done while replication is {state}");
                return Err(Refusal::new(ReturnCode::InvalidState, reason));
            }
        };
        inner.state = next;
        Ok(())
    }
}

#[async_trait]
impl RelationshipOwner for FakeOwner {
    fn id(&self) -> RelationshipId {
        self.record.id
    }

    async fn ask(&self, command: Command, ticket: JobTicket) -> Result<Answer, Refusal> {
        self.accept(&command)?;
        match command {
            Command::Suspend | Command::Resume | Command::Modify(_) | Command::ResetStatistics => Ok(Answer::Done),
            Command::Create | Command::Remove => {
                let job = ticket.begin("working").await?;
                let id = job.id();
                if command == Command::Remove {
                    self.exit.remove().await.map_err(|err| err.refusal())?;
                } else {
                    let saved = self.catalogue.save_engine(self.record.id, "{}".to_owned()).await;
                    saved.map_err(|err| err.refusal())?;
                }
                job.end(JobEnd::Completed).await;
                Ok(Answer::Job(id))
            }
            _ => {
                let job = ticket.begin("working").await?;
                let id = job.id();
                lock(&self.inner).held = Some(job);
                Ok(Answer::Job(id))
            }
        }
    }

    fn report(&self) -> RelationshipReport {
        let state = lock(&self.inner).state;
        let is_replica = self.record.side == Side::Replica;
        let has_cut = !matches!(state, State::Ready | State::InitialReplication);
        let rpo_actual = has_cut.then_some(understudy_model::Millis(1500));
        let (health, issues) = judge(&Vitals {
            state,
            interval: self.record.settings.interval,
            age: rpo_actual,
            watched: understudy_model::Millis(0),
            missed_percent: 0,
            failure: None,
            peer_suspended: false,
            is_replica,
        });
        let newest = Self::cut(3);
        let failover = matches!(state, State::FailedOver | State::Committed).then(|| FailoverReport {
            cut: newest.id,
            kind: FailoverKind::Regular,
            taken_at: newest.taken_at,
            is_running: true,
            monitor: Some("/run/vm/monitor".to_owned()),
        });
        RelationshipReport {
            id: self.record.id,
            vm_name: self.record.vm_name.clone(),
            side: self.record.side,
            mode: if is_replica { Mode::Replica } else { Mode::Primary },
            peer: self.record.peer,
            state,
            health,
            issues,
            activity: "idle".to_owned(),
            settings: self.record.settings.clone(),
            generation: Generation(1),
            newest: has_cut.then_some(NewestCut { cut: newest.id, taken_at: newest.taken_at }),
            rpo_actual,
            failure: None,
            failover,
            scheduled_at: None,
            stats_since: Timestamp(0),
            progress: Progress::default(),
            link: LinkReport { is_up: has_cut, connections: 1, address: None, congestion_control: Some("bbr".into()) },
            stats: Stats::default(),
            points: if is_replica { 2 } else { 0 },
        }
    }

    async fn points(&self) -> Result<Vec<PointReport>, Refusal> {
        if self.record.side == Side::Primary {
            return Err(Refusal::new(ReturnCode::InvalidState, "recovery points are on the replica"));
        }
        let point = |n| {
            let cut = Self::cut(n);
            PointReport { id: cut.point(), cut, is_newest: n == 3, is_kept: n != 3, stored: n * 65_536 }
        };
        Ok((1..=3).map(point).collect())
    }

    async fn stop(&self) {
        drop(self.take_job());
    }
}
