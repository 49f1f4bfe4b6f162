//! Jobs: long work that somebody follows, with an end that is never lost.
//!
//! ```text
//!            begin                     end
//!  ticket ─────────▶ running ─────────────────────▶ completed │ exception │ terminated
//!                      │  cancel                       ▲
//!                      ╰────────▶ shutting-down ───────╯
//! ```
//!
//! An operation hands a [`JobTicket`] to whoever does the work; beginning it makes the job durable and gives a
//! [`JobHandle`], the right and the duty to report progress and the end. A handle that is dropped without an end (its
//! worker panicked) ends its job as an exception. After a restart the jobs still under way wait to be adopted by the
//! workers that can go on ([`Jobs::adopt`]); those nobody adopts end as exceptions ([`Jobs::settle_orphans`]).
//!
//! Invariant: an end is on stable storage before anybody is shown it.

mod handle;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use understudy_model::job::{Job, JobError, JobKind, JobState};
use understudy_model::{JobId, Millis, Refusal, ReturnCode, Timestamp, VmId};

use crate::catalogue::{Catalogue, CatalogueError};
use crate::clock::Clock;
use crate::config;
use crate::entropy::Entropy;
use crate::events::{Events, Notice};

pub use handle::{JobEnd, JobHandle, JobTicket, Progress};

/// Progress is recorded no more often than this: after a crash it may be so much older.
const SAVE_EVERY: Millis = Millis::from_secs(5);

/// Progress is told to listeners no more often than this.
const TELL_EVERY: Millis = Millis(500);

/// The jobs of this host. Cheap to clone.
#[derive(Clone)]
pub struct Jobs {
    inner: Arc<Inner>,
}

struct Inner {
    catalogue: Catalogue,
    clock: Arc<dyn Clock>,
    entropy: Arc<dyn Entropy>,
    events: Events,
    limits: config::Jobs,
    table: Mutex<Table>,
}

#[derive(Default)]
struct Table {
    jobs: BTreeMap<JobId, Entry>,
    /// Set when the daemon stops: handles that are dropped from then on leave their jobs for the next start.
    is_closing: bool,
}

struct Entry {
    shown: watch::Sender<Job>,
    cancel: CancellationToken,
    /// Whether some worker holds the handle.
    is_held: bool,
    /// Steady times of the last record and the last notice.
    saved_at: Timestamp,
    told_at: Timestamp,
}

impl Entry {
    fn new(job: Job, is_held: bool, now: Timestamp) -> Self {
        let cancel = CancellationToken::new();
        if job.state == JobState::ShuttingDown {
            // Somebody was told that it would be cancelled; a restart does not change that.
            cancel.cancel();
        }
        Self { shown: watch::Sender::new(job), cancel, is_held, saved_at: now, told_at: now }
    }

    fn job(&self) -> Job {
        self.shown.borrow().clone()
    }
}

impl Jobs {
    /// Takes up what the catalogue holds. Jobs still under way wait for [`Jobs::adopt`].
    pub async fn open(
        catalogue: Catalogue,
        clock: Arc<dyn Clock>,
        entropy: Arc<dyn Entropy>,
        events: Events,
        limits: config::Jobs,
    ) -> Result<Self, CatalogueError> {
        let now = clock.steady();
        let jobs = catalogue.jobs().await?.into_iter().map(|job| (job.id, Entry::new(job, false, now))).collect();
        let table = Mutex::new(Table { jobs, is_closing: false });
        Ok(Self { inner: Arc::new(Inner { catalogue, clock, entropy, events, limits, table }) })
    }

    /// A ticket for work of this kind. Nothing is recorded until it is begun.
    pub fn ticket(&self, kind: JobKind, vm: Option<VmId>) -> JobTicket {
        JobTicket::new(self.clone(), kind, vm)
    }

    /// Every job, newest first.
    pub fn list(&self) -> Vec<Job> {
        let mut jobs: Vec<Job> = self.inner.table().jobs.values().map(Entry::job).collect();
        jobs.sort_by_key(|job| (std::cmp::Reverse(job.submitted_at), job.id));
        jobs
    }

    /// One job.
    pub fn get(&self, id: JobId) -> Option<Job> {
        self.inner.table().jobs.get(&id).map(Entry::job)
    }

    /// Shows a job as it changes.
    pub fn watch(&self, id: JobId) -> Option<watch::Receiver<Job>> {
        self.inner.table().jobs.get(&id).map(|entry| entry.shown.subscribe())
    }

    /// Waits for a job's end. Nothing if there is no such job.
    pub async fn wait(&self, id: JobId) -> Option<Job> {
        let mut shown = self.watch(id)?;
        let ended = shown.wait_for(|job| job.state.is_terminal()).await.map(|job| job.clone());
        // The sender goes only when the job has ended and is swept.
        ended.ok().or_else(|| Some(shown.borrow().clone()))
    }

    /// Asks a job to end early. It is up to its worker when and whether it does; the request is durable.
    pub async fn cancel(&self, id: JobId) -> Result<Job, Refusal> {
        let job = self.get(id).ok_or_else(|| unknown(id))?;
        if job.state.is_terminal() {
            return Err(Refusal::new(ReturnCode::InvalidState, format!("job {id} has ended already")));
        }
        if !job.cancellable {
            return Err(Refusal::new(ReturnCode::NotSupported, format!("job {id} cannot be cancelled"))
                .hint("wait for its end"));
        }
        let stopping = Job { state: JobState::ShuttingDown, ..job };
        self.inner.catalogue.save_job(stopping.clone()).await.map_err(|err| err.refusal())?;
        let cancel = self.inner.change(id, |job| job.state = JobState::ShuttingDown);
        if let Some(cancel) = cancel {
            cancel.cancel();
        }
        Ok(self.get(id).unwrap_or(stopping))
    }

    /// Hands a job that was under way before a restart to a worker that goes on with it. Nothing if it has ended or
    /// somebody has it already.
    pub fn adopt(&self, id: JobId) -> Option<JobHandle> {
        let mut table = self.inner.table();
        let entry = table.jobs.get_mut(&id).filter(|e| !e.is_held && !e.shown.borrow().state.is_terminal())?;
        entry.is_held = true;
        Some(JobHandle::new(self.clone(), id, entry.cancel.clone()))
    }

    /// As [`Jobs::adopt`], for a worker that knows its kind of work and the VM but not the job.
    pub fn adopt_for(&self, kind: JobKind, vm: VmId) -> Option<JobHandle> {
        let ids: Vec<JobId> = {
            let table = self.inner.table();
            let fits = |e: &Entry| e.shown.borrow().kind == kind && e.shown.borrow().vm == Some(vm);
            table.jobs.iter().filter(|(_, e)| fits(e)).map(|(id, _)| *id).collect()
        };
        ids.into_iter().find_map(|id| self.adopt(id))
    }

    /// As [`Jobs::adopt`], for one of this VM that has not begun yet, with its kind and the time at which it is to begin.
    pub fn adopt_scheduled(&self, vm: VmId) -> Option<(JobHandle, JobKind, Timestamp)> {
        let found = {
            let table = self.inner.table();
            let waiting = |job: &Job| job.vm == Some(vm) && job.state == JobState::New;
            table.jobs.values().map(Entry::job).find(waiting)?
        };
        Some((self.adopt(found.id)?, found.kind, found.scheduled_at?))
    }

    /// Ends every job under way that nobody adopted after a restart. Says how many there were.
    pub async fn settle_orphans(&self) -> usize {
        let orphans: Vec<JobId> = {
            let table = self.inner.table();
            let orphan = |e: &Entry| !e.is_held && !e.shown.borrow().state.is_terminal();
            table.jobs.iter().filter(|(_, e)| orphan(e)).map(|(id, _)| *id).collect()
        };
        for id in &orphans {
            let refusal = Refusal::new(ReturnCode::Failed, "the service was restarted while this was under way")
                .hint("look at the state of the VM's replication, and ask again if the work is still wanted");
            self.inner.end(*id, JobEnd::Failed(refusal)).await;
        }
        orphans.len()
    }

    /// Forgets ended jobs that are too old or too many.
    pub async fn sweep(&self) -> Result<(), CatalogueError> {
        let gone = self.inner.overdue();
        if gone.is_empty() {
            return Ok(());
        }
        self.inner.catalogue.remove_jobs(gone.clone()).await?;
        let mut table = self.inner.table();
        for id in gone {
            table.jobs.remove(&id);
        }
        Ok(())
    }

    /// From now on handles that are dropped leave their jobs under way, for the next start to go on with.
    pub fn close(&self) {
        self.inner.table().is_closing = true;
    }
}

/// The refusal for a job nobody knows.
pub fn unknown(id: JobId) -> Refusal {
    Refusal::new(ReturnCode::InvalidParameter, format!("there is no job {id}"))
        .hint("ended jobs are forgotten after a while; list the jobs")
}

impl Inner {
    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Changes what is shown of a job that has not ended.
    fn change(&self, id: JobId, change: impl FnOnce(&mut Job)) -> Option<CancellationToken> {
        let table = self.table();
        let entry = table.jobs.get(&id)?;
        let changed = entry.shown.send_if_modified(|job| {
            let open = !job.state.is_terminal();
            if open {
                change(job);
            }
            open
        });
        changed.then(|| {
            self.events.tell(Notice::Job(Box::new(entry.job())));
            entry.cancel.clone()
        })
    }

    /// Records the end of a job, then shows it.
    async fn end(&self, id: JobId, end: JobEnd) {
        let Some(job) = self.table().jobs.get(&id).map(Entry::job).filter(|j| !j.state.is_terminal()) else { return };
        let mut ended = ended(job, end, self.clock.wall());
        if let Err(err) = self.catalogue.save_job(ended.clone()).await {
            tracing::error!(job = %id, err = %crate::chain(&err), "end of a job cannot be recorded");
            ended = unrecorded(ended, &err);
        }
        self.change(id, |job| *job = ended);
    }

    fn overdue(&self) -> Vec<JobId> {
        let table = self.table();
        let mut ended: Vec<(Timestamp, JobId)> = table
            .jobs
            .values()
            .map(|e| e.shown.borrow())
            .filter(|job| job.state.is_terminal())
            .map(|job| (job.ended_at.unwrap_or(job.submitted_at), job.id))
            .collect();
        ended.sort_unstable();
        let surplus = ended.len().saturating_sub(self.limits.keep_count);
        let now = self.clock.wall();
        let old = |at: Timestamp| now - at > self.limits.keep_for.0;
        ended.iter().enumerate().filter(|(i, (at, _))| *i < surplus || old(*at)).map(|(_, (_, id))| *id).collect()
    }
}

fn ended(job: Job, end: JobEnd, now: Timestamp) -> Job {
    let job = Job { ended_at: Some(now), ..job };
    match end {
        JobEnd::Completed => {
            Job { state: JobState::Completed, percent: 100, status: "completed".to_owned(), error: None, ..job }
        }
        JobEnd::Terminated => Job { state: JobState::Terminated, status: "cancelled".to_owned(), ..job },
        JobEnd::Failed(refusal) => {
            let error = JobError { code: refusal.code, description: refusal.reason, hint: refusal.hint };
            Job { state: JobState::Exception, status: "failed".to_owned(), error: Some(error), ..job }
        }
    }
}

/// What is shown of a job whose end could not be recorded. After a restart it will be an exception too.
fn unrecorded(job: Job, err: &CatalogueError) -> Job {
    let description = format!("the work ended ({}), but that could not be recorded: {}", job.status, crate::chain(err));
    let hint = "look at the state of the VM's replication; put the state directory right and restart the service";
    let error = JobError { code: ReturnCode::StatusUnknown, description, hint: hint.to_owned() };
    Job { state: JobState::Exception, error: Some(error), ..job }
}

/// Whether a kind of job moves data, and therefore shows a rate.
pub fn moves_data(kind: JobKind) -> bool {
    use JobKind::{Import, Resync, SendInitial, Start, StartExport, StartSeeded};
    matches!(kind, Start | SendInitial | StartSeeded | StartExport | Import | Resync)
}
