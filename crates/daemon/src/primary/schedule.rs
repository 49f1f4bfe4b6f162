//! What is to begin later: an initial replication or a resynchronisation at a time somebody named, and
//! resynchronisations that may start by themselves in the hours of their window.
//!
//! The schedule is the job itself: one that is new and says when it begins. So it is durable, is seen, and can be
//! cancelled like any other.

use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

use understudy_engine::primary::InitialKind;
use understudy_model::job::JobKind;
use understudy_model::settings::ResyncWindow;
use understudy_model::{Millis, Refusal, ReturnCode, State, Timestamp};

use super::service::PrimaryService;
use crate::jobs::{JobEnd, JobHandle, JobTicket};

/// How often is looked whether something is due. A wall clock that jumps moves a start by no more than the jump.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Time between two resynchronisations that begin by themselves: one that fails at once must not fill the list of jobs.
const PAUSE: Duration = Duration::from_secs(300);

/// What begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Beginning {
    /// An initial replication.
    Initial(InitialKind),
    /// A resynchronisation.
    Resync,
}

impl Beginning {
    /// The kind of its job.
    pub fn job_kind(self) -> JobKind {
        match self {
            Beginning::Initial(InitialKind::Network) => JobKind::Start,
            Beginning::Initial(InitialKind::Seeded) => JobKind::StartSeeded,
            Beginning::Resync => JobKind::Resync,
        }
    }

    /// What a job of this kind begins.
    pub fn of(kind: JobKind) -> Option<Self> {
        match kind {
            JobKind::Start => Some(Beginning::Initial(InitialKind::Network)),
            JobKind::StartSeeded => Some(Beginning::Initial(InitialKind::Seeded)),
            JobKind::Resync => Some(Beginning::Resync),
            _ => None,
        }
    }
}

/// The one thing that is to begin later.
#[derive(Default)]
pub struct Schedule {
    pending: Mutex<Option<Pending>>,
}

struct Pending {
    job: JobHandle,
    at: Timestamp,
    what: Beginning,
}

impl Schedule {
    /// Sets what begins next; gives the job of what was to begin before.
    pub fn set(&self, job: JobHandle, at: Timestamp, what: Beginning) -> Option<JobHandle> {
        let before = self.lock().replace(Pending { job, at, what });
        before.map(|pending| pending.job)
    }

    /// Takes the schedule back.
    pub fn clear(&self) -> Option<JobHandle> {
        self.lock().take().map(|pending| pending.job)
    }

    /// When the next thing begins.
    pub fn at(&self) -> Option<Timestamp> {
        self.lock().as_ref().map(|pending| pending.at)
    }

    fn take_due(&self, now: Timestamp) -> Option<Due> {
        let mut pending = self.lock();
        let found = pending.as_ref()?;
        if found.job.cancelled().is_cancelled() {
            return pending.take().map(|p| Due::Cancelled(p.job));
        }
        if found.at > now {
            return None;
        }
        pending.take().map(|p| Due::Begin(p.job, p.what))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Pending>> {
        self.pending.lock().unwrap_or_else(|e| e.into_inner())
    }
}

enum Due {
    Cancelled(JobHandle),
    Begin(JobHandle, Beginning),
}

/// Begins what is due, until the service is gone.
pub async fn look_after(service: Weak<PrimaryService>) {
    let mut last: Option<Instant> = None;
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        let Some(service) = service.upgrade() else { return };
        let wall = service.clock.wall();
        match service.schedule.take_due(wall) {
            Some(Due::Cancelled(job)) => job.end(JobEnd::Terminated).await,
            Some(Due::Begin(job, what)) => begin(&service, job, what).await,
            None => {
                let is_rested = last.is_none_or(|at| at.elapsed() >= PAUSE);
                if is_rested && is_window_open(&service, wall) {
                    last = Some(Instant::now());
                    begin_by_itself(&service).await;
                }
            }
        }
    }
}

async fn begin(service: &Arc<PrimaryService>, job: JobHandle, what: Beginning) {
    job.begun().await;
    // What stands in the way is on the job.
    let _ = service.begin(job, what).await;
}

async fn begin_by_itself(service: &Arc<PrimaryService>) {
    let ticket = service.jobs.ticket(JobKind::Resync, Some(service.vm())).cancellable();
    match ticket.begin("resynchronising in the hours set for it").await {
        Ok(job) => {
            tracing::info!(vm = %service.vm(), "a resynchronisation begins by itself");
            // What stands in the way is on the job.
            let _ = service.begin(job, Beginning::Resync).await;
        }
        Err(refusal) => tracing::warn!(vm = %service.vm(), %refusal, "a resynchronisation cannot begin by itself"),
    }
}

/// Whether a resynchronisation is required and may begin now.
fn is_window_open(service: &PrimaryService, wall: Timestamp) -> bool {
    let Ok(task) = service.task() else { return false };
    let view = task.view();
    let record = view.record();
    record.state == State::ResyncRequired
        && record.settings.auto_resync.is_some_and(|window| contains(window, time_of_day(wall)))
}

/// Time since midnight where this host is.
fn time_of_day(wall: Timestamp) -> Millis {
    let ms = i64::try_from(wall.0).unwrap_or(i64::MAX);
    let at = jiff::Timestamp::from_millisecond(ms).unwrap_or(jiff::Timestamp::MAX);
    let time = at.to_zoned(jiff::tz::TimeZone::system()).time();
    let seconds = i64::from(time.hour()) * 3600 + i64::from(time.minute()) * 60 + i64::from(time.second());
    Millis(seconds.unsigned_abs() * 1000)
}

/// Whether a window holds a time of day. One whose start is its end is the whole day.
fn contains(window: ResyncWindow, at: Millis) -> bool {
    match window.start.cmp(&window.end) {
        std::cmp::Ordering::Less => (window.start..window.end).contains(&at),
        std::cmp::Ordering::Equal => true,
        std::cmp::Ordering::Greater => at >= window.start || at < window.end,
    }
}

impl PrimaryService {
    /// Notes what is to begin at a later time, in place of what was noted before.
    pub(super) async fn put_on_schedule(
        self: &Arc<Self>,
        ticket: JobTicket,
        at: Timestamp,
        what: Beginning,
    ) -> Result<understudy_model::JobId, Refusal> {
        let job = ticket.schedule(at, "waiting for its time").await?;
        let id = job.id();
        if let Some(before) = self.schedule.set(job, at, what) {
            replaced(before, "another time was set").await;
        }
        Ok(id)
    }

    /// Takes back what was to begin later, if anything.
    pub(super) async fn clear_schedule(&self, why: &str) -> bool {
        match self.schedule.clear() {
            Some(job) => {
                replaced(job, why).await;
                true
            }
            None => false,
        }
    }
}

async fn replaced(job: JobHandle, why: &str) {
    job.progress(crate::jobs::Progress { status: why.to_owned(), ..Default::default() });
    job.end(JobEnd::Terminated).await;
}

/// The refusal when a resynchronisation is asked for where none can be.
pub(super) fn refuse_resync(state: State) -> Option<Refusal> {
    match state {
        State::ResyncRequired | State::Suspended | State::Critical => None,
        State::Replicating => Some(
            Refusal::new(ReturnCode::InvalidState, "cannot resynchronise while replication goes well")
                .hint("suspend replication first, if the two sides are to be compared all the same"),
        ),
        state => {
            Some(Refusal::new(ReturnCode::InvalidState, format!("cannot resynchronise while replication is {state}")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn window(start: u64, end: u64) -> ResyncWindow {
        ResyncWindow { start: Millis::from_secs(start * 3600), end: Millis::from_secs(end * 3600) }
    }

    #[test]
    fn a_window_may_wrap_past_midnight_and_an_empty_one_is_the_whole_day() {
        let at = |hour: u64| Millis::from_secs(hour * 3600);
        assert!(contains(window(1, 5), at(1)) && !contains(window(1, 5), at(5)) && !contains(window(1, 5), at(0)));
        assert!(contains(window(22, 4), at(23)) && contains(window(22, 4), at(3)) && !contains(window(22, 4), at(12)));
        assert!((0..24).all(|hour| contains(window(0, 0), at(hour))));
    }

    #[test]
    fn a_job_kind_says_what_begins() {
        for what in
            [Beginning::Initial(InitialKind::Network), Beginning::Initial(InitialKind::Seeded), Beginning::Resync]
        {
            assert_eq!(Beginning::of(what.job_kind()), Some(what));
        }
        assert_eq!(Beginning::of(JobKind::Failover), None);
    }
}
