//! What an operator sees of the sending side.

use understudy_model::{CutRef, Health, Millis, State, Timestamp};

use super::{Link, Progress, Relationship, Work};
use crate::health::{self, Issue, Vitals};
use crate::stats::Stats;

/// A relationship at one moment.
#[derive(Debug, Clone)]
pub struct Report {
    /// Where it stands.
    pub state: State,
    /// How well it goes.
    pub health: Health,
    /// Why it does not go well.
    pub issues: Vec<Issue>,
    /// What it is doing now: one word for screens.
    pub activity: &'static str,
    /// Newest acknowledged cut.
    pub acked: Option<CutRef>,
    /// Age of that cut's data, if it was acknowledged since the process began.
    pub rpo_actual: Option<Millis>,
    /// Why the last attempt failed, if it did.
    pub failure: Option<String>,
    /// How far initial replication is.
    pub progress: Progress,
    /// Counters.
    pub stats: Stats,
}

impl Relationship {
    /// What an operator sees.
    pub fn report(&self, now: Timestamp) -> Report {
        let rpo_actual = self.acked_cut_at.map(|at| now - at);
        let failure = self.record.cause.clone().or_else(|| self.last_failure.clone());
        let (health, issues) = health::judge(&Vitals {
            state: self.record.state,
            interval: self.interval(),
            age: rpo_actual,
            watched: now - self.began_at,
            missed_percent: self.stats.missed_percent(),
            failure: failure.clone(),
            peer_suspended: self.peer_suspended,
            is_replica: false,
        });
        Report {
            state: self.record.state,
            health,
            issues,
            activity: self.activity(),
            acked: self.record.acked,
            rpo_actual,
            failure,
            progress: self.progress,
            stats: self.stats.clone(),
        }
    }

    fn activity(&self) -> &'static str {
        match (&self.work, &self.link) {
            (Work::Tracking(_), _) => "beginning to track changes",
            (Work::Copying(_), _) => "copying",
            (Work::Comparing(_), _) => "comparing",
            (Work::Cutting(..), _) => "taking a cut",
            (Work::Sending { .. }, _) => "sending changes",
            (Work::Idle, Link::Opening(_)) => "connecting",
            (Work::Idle, Link::Down { .. }) if self.wants_link() => "waiting to reconnect",
            (Work::Idle, _) => "idle",
        }
    }
}
