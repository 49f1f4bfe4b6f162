//! The sending side of a relationship.
//!
//! ```text
//!            start                   first cycle acknowledged
//!   ready ─────────▶ initial-repl. ───────────────────────────▶ replicating ◀──resume── suspended
//!     ▲ stop-initial     │                                        │  │  ▲ ▲ ╰──suspend──────▶
//!     ╰──────────────────╯          tracking lost, histories differ  │  │ │ cause gone
//!                                              ▼                     ▼  │ │
//!                                       resync-required            critical (the peer says no)
//!                                          │  ▲                       │
//!                            resynchronise ▼  │ cancel                │ first cycle acknowledged
//!                                       resynchronizing ──────────────╯
//! ```
//!
//! To resynchronise is: begin to track afresh, compare the live disks with the replica's newest cut, take a cut, and send
//! what differs together with what was written since tracking began. What was equal when it was compared and was not
//! written since is equal at the cut.
//!
//! In every state but `ready` one [`Work`] at most is under way: opening a session, beginning to track, copying the
//! base, taking a cut, sending a cycle. Each carries a [`Token`]; its outcome comes back with the token, and an
//! outcome whose token is not the current one is dropped: it belongs to something already given up.
//!
//! What rests on what (the words "map n" mean: the dirty map that records what was written after cut n):
//! - A cut's number is durable in [`Record::cut_last`] before the cut is tried, so a number is never used twice.
//! - The digest of a cycle is durable in [`Record::sent`] before the replica is asked to seal it, so a replica that
//!   turns out to be one cut ahead can be recognised, and nothing else can be mistaken for that.
//! - Maps are dropped only below an acknowledged cut, and only after the acknowledgement is durable here.

use understudy_model::{
    CutDigest, CutNumber, CutRef, DiskId, DiskSpec, Generation, JobId, Millis, Refusal, RelationshipId, ReturnCode,
    SessionNumber, Settings, State, Timestamp,
};

use crate::backoff::Backoff;
use crate::stats::Stats;

mod command;
mod compare;
mod cycle;
mod event;
mod initial;
mod link;
mod report;
#[cfg(test)]
mod tests;

pub use compare::Compare;
pub use event::{Action, Actions, Command, Event, Failure, InitialKind, TargetReport, Token};
pub use report::Report;

/// What must survive a restart. Written through [`Action::Persist`] before anything that rests on it is done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Which relationship.
    pub id: RelationshipId,
    /// Where it stands.
    pub state: State,
    /// Its settings.
    pub settings: Settings,
    /// The replicated disks.
    pub disks: Vec<DiskSpec>,
    /// Rises with each change of owner.
    pub generation: Generation,
    /// The generation in which tracking began: part of the maps' names, and unchanged while they go on.
    pub map_generation: Generation,
    /// Highest session number tried.
    pub session_last: SessionNumber,
    /// Highest cut number tried, or used to name a map.
    pub cut_last: CutNumber,
    /// Newest acknowledged cut.
    pub acked: Option<CutRef>,
    /// The cycle whose seal was asked for, until it is known how that went.
    pub sent: Option<CutRef>,
    /// The initial replication under way.
    pub base: Option<Base>,
    /// How the initial replication under way is to be done.
    pub initial: InitialKind,
    /// The resynchronisation under way.
    pub compare: Option<Compare>,
    /// The job that follows the initial replication. Named until its end was told: a crash in between must not lose
    /// how it ended.
    pub transfer_job: Option<JobId>,
    /// Why the state is critical or resync-required.
    pub cause: Option<String>,
}

/// An initial replication under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Base {
    /// Number of the map that tracking began with. Also names the attempt: data copied under another one is not
    /// built upon.
    pub first_map: CutNumber,
    /// Whether tracking is known to have begun.
    pub is_tracked: bool,
}

impl Record {
    /// A relationship that was just created.
    pub fn new(id: RelationshipId, generation: Generation, disks: Vec<DiskSpec>, settings: Settings) -> Self {
        Self {
            id,
            state: State::Ready,
            settings,
            disks,
            generation,
            map_generation: generation,
            session_last: SessionNumber(0),
            cut_last: CutNumber(0),
            acked: None,
            sent: None,
            base: None,
            initial: InitialKind::Network,
            compare: None,
            transfer_job: None,
            cause: None,
        }
    }

    /// The oldest map that the next cycle needs: what was written after what the replica holds.
    fn must_cover(&self) -> Option<CutNumber> {
        let compared = self.compare.map(|c| c.first_map);
        compared.or(self.acked.map(|c| c.number)).or(self.base.map(|b| b.first_map))
    }

    /// Digest of the cut the next cycle starts from.
    fn parent(&self) -> CutDigest {
        let below = self.compare.map_or(self.acked, |compare| compare.against);
        below.map_or(CutDigest::ZERO, |c| c.digest)
    }

    /// The state to go on in when nothing stands in the way any more.
    fn active_state(&self) -> State {
        match (self.compare, self.acked) {
            (Some(_), _) => State::Resynchronizing,
            (None, Some(_)) => State::Replicating,
            (None, None) => State::InitialReplication,
        }
    }
}

/// The one thing under way.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Work {
    Idle,
    /// Change tracking is being begun afresh.
    Tracking(Token),
    /// The base is being copied.
    Copying(Token),
    /// The live disks are being compared with the replica's newest cut.
    Comparing(Token),
    /// The disks are being frozen.
    Cutting(Token, CutNumber),
    /// The frozen disks' changes are being sent.
    Sending {
        token: Token,
        number: CutNumber,
        cut_at: Timestamp,
    },
}

/// The link to the replica.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Link {
    Down { retry_at: Timestamp },
    Opening(Token),
    Up { session: SessionNumber },
}

/// How far the initial copy has come, for people.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Progress {
    /// Bytes of the disks dealt with.
    pub done: u64,
    /// Bytes of the disks in all.
    pub total: u64,
}

/// The sending side of one relationship. See the module's description.
#[derive(Debug, Clone)]
pub struct Relationship {
    record: Record,
    link: Link,
    work: Work,
    backoff: Backoff,
    token_last: u64,
    /// Where the target's base stands, as it told when the session was opened.
    base_positions: Vec<(DiskId, u64)>,
    is_base_copied: bool,
    /// Time of the cut the next cycle is measured from.
    next_cut: Timestamp,
    /// No new attempt before this, after a failure.
    not_before: Timestamp,
    began_at: Timestamp,
    acked_cut_at: Option<Timestamp>,
    last_failure: Option<String>,
    corrupt_in_a_row: u32,
    /// Numbers taken over from the replica's refusals since a session was last opened.
    lessons: u32,
    peer_suspended: bool,
    is_removed: bool,
    progress: Progress,
    stats: Stats,
    random: u64,
}

/// Refusals of the same cut for damage before it is held to be our own mistake: the first may be a passing memory
/// error, the second a coincidence.
const CORRUPT_MAX: u32 = 3;

/// Refusals that name a better number and are followed by an attempt at once: one for the generation, one for the
/// session. What goes on naming new numbers has to wait like any other trouble.
const LESSONS_MAX: u32 = 2;

impl Relationship {
    /// Takes a relationship up at the start of the process, or when it is created. `seed` spreads its retries.
    pub fn new(record: Record, now: Timestamp, seed: u64) -> Self {
        Self {
            record,
            link: Link::Down { retry_at: now },
            work: Work::Idle,
            backoff: Backoff::default(),
            token_last: 0,
            base_positions: Vec::new(),
            is_base_copied: false,
            next_cut: now,
            not_before: now,
            began_at: now,
            acked_cut_at: None,
            last_failure: None,
            corrupt_in_a_row: 0,
            lessons: 0,
            peer_suspended: false,
            is_removed: false,
            progress: Progress::default(),
            stats: Stats::default(),
            random: seed | 1,
        }
    }

    /// What is durable.
    pub fn record(&self) -> &Record {
        &self.record
    }

    /// Changes state for one event and pushes what should now be done.
    pub fn handle(&mut self, now: Timestamp, event: Event, actions: &mut Actions) {
        self.settle_job(actions);
        match event {
            Event::Tick => {}
            Event::Opened { token, session, report } => self.on_opened(now, token, session, report, actions),
            Event::OpenFailed { token, failure } => self.on_open_failed(now, token, failure, actions),
            Event::LinkLost { session } => self.on_link_lost(now, session, actions),
            Event::PeerSuspended(suspended) => self.peer_suspended = suspended,
            Event::PeerFailedOver => self.reopen(now, actions),
            Event::PeerRemoved => self.on_peer_removed(now, actions),
            Event::TrackingBegun { token } => self.on_tracking_begun(token, actions),
            Event::TrackingFailed { token, failure } => self.on_tracking_failed(now, token, failure, actions),
            Event::BaseProgress { token, progress } => self.on_base_progress(token, progress, actions),
            Event::BaseCopied { token } => self.on_base_copied(token),
            Event::BaseFailed { token, failure } => self.on_base_failed(now, token, failure, actions),
            Event::Compared { token } => self.on_compared(token, actions),
            Event::CompareFailed { token, failure } => self.on_compare_failed(now, token, failure, actions),
            Event::CutTaken { token } => self.on_cut_taken(now, token, actions),
            Event::CutFailed { token, failure } => self.on_cut_failed(now, token, failure, actions),
            Event::CycleComputed { token, digest } => self.on_cycle_computed(token, digest, actions),
            Event::CycleAcked { token, digest, bytes } => self.on_cycle_acked(now, token, digest, bytes, actions),
            Event::CycleFailed { token, failure } => self.on_cycle_failed(now, token, failure, actions),
        }
        self.settle(now, actions);
    }

    /// Carries out an operator's command, or says why not. A refused command changes nothing.
    pub fn command(&mut self, now: Timestamp, command: Command, actions: &mut Actions) -> Result<(), Refusal> {
        if self.is_removed {
            return Err(Refusal::new(ReturnCode::InvalidState, "the relationship has been removed"));
        }
        self.obey(now, command, actions)?;
        self.settle(now, actions);
        Ok(())
    }

    /// When to send [`Event::Tick`] if nothing else happens.
    pub fn next_deadline(&self) -> Option<Timestamp> {
        if self.is_removed || !self.wants_link() {
            return None;
        }
        match (&self.link, &self.work) {
            (Link::Down { retry_at }, _) => Some(*retry_at),
            (Link::Up { .. }, Work::Idle) if self.peer_suspended => None,
            (Link::Up { .. }, Work::Idle) => match self.record.state {
                State::Replicating => Some(self.next_cut.max(self.not_before)),
                State::InitialReplication | State::Resynchronizing => Some(self.not_before),
                _ => None,
            },
            _ => None,
        }
    }

    /// Takes the next step that is due. Cheap, and leaves a known state whatever came before.
    fn settle(&mut self, now: Timestamp, actions: &mut Actions) {
        if self.is_removed || !self.wants_link() {
            return;
        }
        match self.link {
            Link::Down { retry_at } if retry_at <= now => self.open(actions),
            Link::Up { .. } if self.work == Work::Idle && self.not_before <= now => self.next_step(now, actions),
            _ => {}
        }
    }

    fn next_step(&mut self, now: Timestamp, actions: &mut Actions) {
        if self.peer_suspended {
            return;
        }
        match self.record.state {
            State::InitialReplication => self.next_initial_step(now, actions),
            State::Resynchronizing => self.next_compare_step(now, actions),
            State::Replicating if self.next_cut <= now => self.take_cut(now, actions),
            _ => {}
        }
    }

    /// Whether the state is one in which a link is of use. In `critical` it is tried again and again, slowly, so that
    /// replication goes on by itself when the cause is gone.
    fn wants_link(&self) -> bool {
        matches!(
            self.record.state,
            State::InitialReplication | State::Replicating | State::Resynchronizing | State::Critical
        )
    }

    fn token(&mut self) -> Token {
        self.token_last += 1;
        Token(self.token_last)
    }

    /// The next number of a fixed sequence (xorshift64): spreads retries, decides nothing else.
    fn random(&mut self) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random
    }

    fn persist(&self, actions: &mut Actions) {
        actions.push(Action::Persist(Box::new(self.record.clone())));
    }

    fn enter(&mut self, state: State, cause: Option<String>, actions: &mut Actions) {
        self.record.state = state;
        self.record.cause = cause;
        self.persist(actions);
    }

    /// Tells how the transfer's job ended, then forgets the job. What made it end is durable by now.
    fn end_job(&mut self, result: Result<(), Refusal>, actions: &mut Actions) {
        if let Some(job) = self.record.transfer_job.take() {
            actions.push(Action::FinishJob { job, result });
            self.persist(actions);
        }
    }

    /// Ends a job that a crash has kept from its end.
    fn settle_job(&mut self, actions: &mut Actions) {
        let is_acked = self.record.acked.is_some();
        match self.record.state {
            State::InitialReplication | State::Resynchronizing | State::ResyncSuspended => {}
            State::Critical if self.record.compare.is_some() => {}
            State::ResyncRequired => {
                let reason = self.record.cause.clone().unwrap_or_default();
                self.end_job(Err(Refusal::new(ReturnCode::Failed, reason)), actions);
            }
            State::Critical if !is_acked => {}
            _ if is_acked => self.end_job(Ok(()), actions),
            _ => {
                let stopped = "initial replication was stopped";
                let reason = self.record.cause.clone().unwrap_or_else(|| stopped.to_owned());
                self.end_job(Err(Refusal::new(ReturnCode::Failed, reason)), actions);
            }
        }
    }

    /// Notes a failed attempt and puts off the next one.
    fn put_off(&mut self, now: Timestamp, failure: &Failure) {
        let random = self.random();
        self.not_before = self.backoff.fail(now, random);
        self.last_failure = Some(failure.refusal.reason.clone());
    }

    fn interval(&self) -> Millis {
        self.record.settings.interval
    }
}
