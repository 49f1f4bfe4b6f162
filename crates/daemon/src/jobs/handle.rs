//! What a worker holds: a ticket before the work, a handle during it.

use tokio_util::sync::CancellationToken;
use understudy_model::job::{Job, JobKind, JobState};
use understudy_model::{JobId, Refusal, ReturnCode, Timestamp, VmId};

use super::{Entry, Inner, Jobs, SAVE_EVERY, TELL_EVERY};
use crate::events::Notice;

/// Longest status, in characters: one line.
const STATUS_MAX: usize = 200;

/// The right to begin one job. Dropping it leaves no trace.
pub struct JobTicket {
    jobs: Jobs,
    kind: JobKind,
    vm: Option<VmId>,
    cancellable: bool,
}

/// How far a job is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Progress {
    /// Bytes done, where data is moved.
    pub bytes_done: u64,
    /// Bytes to do in all; 0 where none are moved.
    pub bytes_total: u64,
    /// Percent, where no bytes say it.
    pub percent: u16,
    /// What is being done now, in words; empty leaves the words as they are.
    pub status: String,
}

/// How a job ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum JobEnd {
    /// What was asked for is done.
    Completed,
    /// It was cancelled, and all is as before or says what is not.
    Terminated,
    /// It failed.
    Failed(Refusal),
}

impl From<Result<(), Refusal>> for JobEnd {
    fn from(result: Result<(), Refusal>) -> Self {
        match result {
            Ok(()) => JobEnd::Completed,
            Err(refusal) => JobEnd::Failed(refusal),
        }
    }
}

impl JobTicket {
    pub(super) fn new(jobs: Jobs, kind: JobKind, vm: Option<VmId>) -> Self {
        Self { jobs, kind, vm, cancellable: false }
    }

    /// A ticket for a second job of the same operation, for example the transfer that a start begins.
    pub fn another(&self, kind: JobKind) -> Self {
        Self::new(self.jobs.clone(), kind, self.vm)
    }

    /// Says that the worker understands [`JobHandle::cancelled`].
    #[must_use]
    pub fn cancellable(mut self) -> Self {
        self.cancellable = true;
        self
    }

    /// Makes the job durable. From now on it has to come to an end.
    pub async fn begin(self, status: &str) -> Result<JobHandle, Refusal> {
        self.open(None, status).await
    }

    /// Makes a job durable that is to begin at a later time: see [`JobHandle::begun`].
    pub async fn schedule(self, at: Timestamp, status: &str) -> Result<JobHandle, Refusal> {
        self.open(Some(at), status).await
    }

    async fn open(self, scheduled_at: Option<Timestamp>, status: &str) -> Result<JobHandle, Refusal> {
        let inner = &self.jobs.inner;
        let now = inner.clock.wall();
        let job = Job {
            id: inner.entropy.job_id(),
            kind: self.kind,
            vm: self.vm,
            state: if scheduled_at.is_some() { JobState::New } else { JobState::Running },
            percent: 0,
            bytes_done: 0,
            bytes_total: 0,
            status: status.chars().take(STATUS_MAX).collect(),
            submitted_at: now,
            scheduled_at,
            started_at: scheduled_at.is_none().then_some(now),
            ended_at: None,
            cancellable: self.cancellable,
            error: None,
        };
        let open = inner.table().jobs.values().filter(|e| !e.shown.borrow().state.is_terminal()).count();
        if open >= inner.limits.open_max {
            return Err(Refusal::new(ReturnCode::OutOfMemory, format!("{open} jobs are under way already"))
                .hint("wait until some of them have ended"));
        }
        inner.catalogue.save_job(job.clone()).await.map_err(|err| err.refusal())?;
        let id = job.id;
        let entry = Entry::new(job.clone(), true, inner.clock.steady());
        let handle = JobHandle::new(self.jobs.clone(), id, entry.cancel.clone());
        inner.table().jobs.insert(id, entry);
        inner.events.tell(Notice::Job(Box::new(job)));
        Ok(handle)
    }
}

/// The right and the duty to report on one job.
///
/// Dropped without [`JobHandle::end`], the job ends as an exception, unless the daemon is stopping: then it stays under
/// way for the next start.
pub struct JobHandle {
    jobs: Jobs,
    id: JobId,
    cancel: CancellationToken,
    has_ended: bool,
}

impl JobHandle {
    pub(super) fn new(jobs: Jobs, id: JobId, cancel: CancellationToken) -> Self {
        Self { jobs, id, cancel, has_ended: false }
    }

    /// The job.
    pub fn id(&self) -> JobId {
        self.id
    }

    /// Fires when somebody wants the job to end early. What is done then ends with [`JobEnd::Terminated`].
    pub fn cancelled(&self) -> &CancellationToken {
        &self.cancel
    }

    /// A job that was to begin at a later time begins now.
    pub async fn begun(&self) {
        let inner = &self.jobs.inner;
        let now = inner.clock.wall();
        let changed = inner.change(self.id, |job| {
            if job.state == JobState::New {
                (job.state, job.started_at) = (JobState::Running, Some(now));
            }
        });
        let job = inner.table().jobs.get(&self.id).map(Entry::job);
        if let (Some(_), Some(job)) = (changed, job)
            && let Err(err) = inner.catalogue.save_job(job).await
        {
            // After a restart it would be begun once more, which is refused or does no harm.
            tracing::warn!(job = %self.id, err = %crate::chain(&err), "that a job began cannot be recorded");
        }
    }

    /// Shows progress. Cheap; recorded and told now and then only.
    pub fn progress(&self, progress: Progress) {
        let inner = &self.jobs.inner;
        let now = inner.clock.steady();
        let mut table = inner.table();
        let Some(entry) = table.jobs.get_mut(&self.id) else { return };
        let is_words = !progress.status.is_empty() && entry.shown.borrow().status != progress.status;
        entry.shown.send_modify(|job| apply(job, progress));
        if is_words || now - entry.told_at >= TELL_EVERY {
            entry.told_at = now;
            inner.events.tell(Notice::Job(Box::new(entry.job())));
        }
        if now - entry.saved_at >= SAVE_EVERY {
            entry.saved_at = now;
            save_later(inner, entry.job());
        }
    }

    /// Ends the job: durable first, then shown.
    pub async fn end(mut self, end: impl Into<JobEnd>) {
        self.has_ended = true;
        self.jobs.inner.end(self.id, end.into()).await;
    }
}

impl Drop for JobHandle {
    fn drop(&mut self) {
        if self.has_ended || self.jobs.inner.table().is_closing {
            return;
        }
        let (jobs, id) = (self.jobs.clone(), self.id);
        tracing::error!(job = %id, "a job was left by its worker without an end");
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        runtime.spawn(async move {
            let refusal = Refusal::new(ReturnCode::Failed, "the work ended by a fault of this program")
                .hint("the log has the details; look at the state of the VM's replication before asking again");
            jobs.inner.end(id, JobEnd::Failed(refusal)).await;
        });
    }
}

fn apply(job: &mut Job, progress: Progress) {
    if job.state.is_terminal() {
        return;
    }
    job.bytes_done = progress.bytes_done;
    job.bytes_total = progress.bytes_total;
    let percent = match progress.bytes_total {
        0 => progress.percent,
        total => (u128::from(progress.bytes_done) * 100 / u128::from(total)).min(99) as u16,
    };
    // 100 is for the end alone: who sees it may rely on it.
    job.percent = percent.min(99);
    if !progress.status.is_empty() {
        job.status = progress.status.chars().take(STATUS_MAX).collect();
    }
}

/// Records progress without anybody waiting for it. A crash loses it, which progress may be.
fn save_later(inner: &Inner, job: Job) {
    let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
    let (catalogue, id) = (inner.catalogue.clone(), job.id);
    runtime.spawn(async move {
        if let Err(err) = catalogue.save_job(job).await {
            tracing::warn!(job = %id, err = %crate::chain(&err), "progress of a job cannot be recorded");
        }
    });
}
