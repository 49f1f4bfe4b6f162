//! The judge: knows what is true, watches what is promised, and says which promise was broken.
//!
//! The judge sees every cut at the instant it is taken and keeps the disks' true content, so nothing the system says
//! about itself has to be believed. It is told of every record that becomes durable, every session that is granted,
//! every seal and every acknowledgement, and looks at the store from outside. It never tells anybody anything.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use understudy_engine::primary::Record;
use understudy_engine::replica;
use understudy_model::{CutDigest, CutNumber, Generation, JobId, PointId, SessionNumber, State, Timestamp};
use understudy_store::CrashPoint;

mod points;
mod primary_side;
mod qcow2;
mod replica_side;
mod truth;

pub use points::Depth;
pub use truth::{CutTruth, Truth};

/// What must hold. The numbers are those of the project's list of invariants.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[allow(missing_docs, reason = "each is described by its text")]
pub enum Rule {
    I01,
    I02,
    I03,
    I04,
    I05,
    I06,
    I08,
    I09,
    I10,
    I11,
    I12,
    I13,
    I14,
    I15,
    I16,
    I22,
    I23,
    I24,
    I28,
    I29,
    I31,
    I33,
    I44,
    I45,
    I46,
    I47,
    I48,
    I49,
    I51,
    I54,
}

impl Rule {
    /// Every rule.
    pub const ALL: &[Rule] = &[
        Rule::I01,
        Rule::I02,
        Rule::I03,
        Rule::I04,
        Rule::I05,
        Rule::I06,
        Rule::I08,
        Rule::I09,
        Rule::I10,
        Rule::I11,
        Rule::I12,
        Rule::I13,
        Rule::I14,
        Rule::I15,
        Rule::I16,
        Rule::I22,
        Rule::I23,
        Rule::I24,
        Rule::I28,
        Rule::I29,
        Rule::I31,
        Rule::I33,
        Rule::I44,
        Rule::I45,
        Rule::I46,
        Rule::I47,
        Rule::I48,
        Rule::I49,
        Rule::I51,
        Rule::I54,
    ];

    /// The promise in a few words.
    pub fn text(self) -> &'static str {
        match self {
            Rule::I01 => "acknowledged only what is on stable storage",
            Rule::I02 => "an acknowledged cycle is never lost",
            Rule::I03 => "the store opens to exactly the committed points",
            Rule::I04 => "a point equals the disks at its cut bit for bit",
            Rule::I05 => "staging is never visible",
            Rule::I06 => "all disks advance together",
            Rule::I08 => "points form one chain",
            Rule::I09 => "a number stands for one content for ever",
            Rule::I10 => "repeats do no harm",
            Rule::I11 => "nothing is assumed after a failed sync",
            Rule::I12 => "damaged data is not taken",
            Rule::I13 => "a changed granule is in a map or in an acknowledged cut",
            Rule::I14 => "a map is never less than what changed",
            Rule::I15 => "the data sent is that of one instant",
            Rule::I16 => "lost tracking is noticed",
            Rule::I22 => "retention keeps the newest and the used points",
            Rule::I23 => "merging leaves every remaining point as it was",
            Rule::I24 => "a merge cut short is wholly done or not done",
            Rule::I28 => "two histories are never merged",
            Rule::I29 => "promotion is fenced by a durable generation",
            Rule::I31 => "a failover says which cut it starts from",
            Rule::I33 => "revert restores what was, commit is one-way",
            Rule::I44 => "a refused call changes nothing",
            Rule::I45 => "success that was told survives a crash",
            Rule::I46 => "every job reaches one end, and the right one",
            Rule::I47 => "only listed transitions happen",
            Rule::I48 => "an unknown outcome is settled at the next contact",
            Rule::I49 => "health ok is proof of progress",
            Rule::I51 => "faults over, replication goes on by itself",
            Rule::I54 => "a jump of the wall clock moves no schedule",
        }
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = format!("{self:?}");
        write!(f, "I-{}", &name[1..])
    }
}

/// A broken promise.
#[derive(Debug, Clone)]
pub struct Violation {
    /// Which one.
    pub rule: Rule,
    /// What was seen.
    pub what: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({}): {}", self.rule, self.rule.text(), self.what)
    }
}

/// Why something that would otherwise be a broken promise is in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Excuse {
    /// QEMU ended or restarted without keeping its maps.
    TrackingLost,
    /// The store, or the whole replica, was put back to an older copy.
    PutBack,
    /// A message was altered behind TLS: what it said may have been believed.
    MessageAltered,
    /// The replica was removed.
    ReplicaRemoved,
    /// The VM was started and stopped between two cuts: what changed its images in between cannot be told.
    StartedAndStopped,
    /// Initial replication was stopped before it was known whether its first cycle had arrived.
    InitialStopped,
}

/// See the module's description.
#[derive(Default)]
pub struct Judge {
    /// The disks as they are and as they were.
    pub truth: Truth,
    violations: Vec<Violation>,
    /// How often each rule was looked at and found kept.
    checks: BTreeMap<Rule, u64>,
    excuses: BTreeSet<Excuse>,
    /// Counts relationships: numbers begin again with each.
    epoch: u64,
    primary: PrimarySide,
    replica: ReplicaSide,
    /// When cycles were acknowledged, as the replica told.
    acks: Vec<Timestamp>,
    /// When faults struck.
    faults: Vec<Timestamp>,
    now: Timestamp,
    /// Frames were sent again that had been sent before.
    were_repeats: bool,
    /// The wall clocks jumped.
    have_clocks_jumped: bool,
    /// The replica died in the middle of merging or committing; nobody has looked since.
    was_merge_cut_short: bool,
    /// A disk that fails to read is in force: a point may be unreadable for a while, never wrong.
    pub reads_may_fail: bool,
}

#[derive(Default)]
struct PrimarySide {
    durable: Option<Record>,
    cut_numbers: BTreeSet<(u64, CutNumber)>,
    is_tracking_lost: bool,
    jobs: BTreeMap<JobId, Job>,
}

struct Job {
    epoch: u64,
    /// A durable record followed it: it was begun in earnest.
    is_followed: bool,
    is_done: Option<bool>,
}

#[derive(Default)]
struct ReplicaSide {
    durable: Option<replica::Record>,
    generation_max: Generation,
    session_max: SessionNumber,
    /// Digests whose sealing was asked for: only these may ever show.
    seals_begun: BTreeSet<CutDigest>,
    sealed: BTreeMap<(u64, Generation, CutNumber), CutDigest>,
    newest: Option<CutDigest>,
    acked: Option<CutDigest>,
    kept: BTreeSet<PointId>,
    dropped: BTreeSet<PointId>,
    /// The newest cut when a failover was decided on: what a revert must bring back.
    before_failover: Option<Option<CutDigest>>,
    looks: u64,
}

impl Judge {
    fn fail(&mut self, rule: Rule, what: impl Into<String>) {
        self.violations.push(Violation { rule, what: what.into() });
    }

    fn kept(&mut self, rule: Rule) {
        *self.checks.entry(rule).or_insert(0) += 1;
    }

    /// A promise was found broken by somebody else's look.
    pub fn broken(&mut self, rule: Rule, what: String) {
        self.fail(rule, what);
    }

    /// Counts the rule as looked at, or as broken.
    fn expect(&mut self, rule: Rule, holds: bool, what: impl FnOnce() -> String) -> bool {
        if holds {
            self.kept(rule);
        } else {
            self.fail(rule, what());
        }
        holds
    }

    /// Broken promises so far.
    pub fn violations(&self) -> &[Violation] {
        &self.violations
    }

    /// How often each rule was looked at.
    pub fn checks(&self) -> &BTreeMap<Rule, u64> {
        &self.checks
    }

    /// The world's time, for what is noted.
    pub fn set_now(&mut self, now: Timestamp) {
        self.now = now;
    }

    /// Something that excuses one or the other outcome has happened.
    pub fn excuse(&mut self, excuse: Excuse) {
        self.excuses.insert(excuse);
    }

    /// Whether that has happened in this relationship.
    pub fn is_excused(&self, excuse: Excuse) -> bool {
        self.excuses.contains(&excuse)
    }

    /// A fault has struck.
    pub fn fault_struck(&mut self) {
        self.faults.push(self.now);
    }

    /// Frames that were sent before are sent again.
    pub fn repeats_begin(&mut self) {
        self.were_repeats = true;
    }

    /// The wall clocks jump.
    pub fn clocks_jumped(&mut self) {
        self.have_clocks_jumped = true;
    }

    /// The replica's daemon died here.
    pub fn died_at(&mut self, point: CrashPoint) {
        self.was_merge_cut_short |= ["prune/", "apply/"].iter().any(|part| point.name().starts_with(part));
    }

    /// Cycles acknowledged.
    pub fn acks(&self) -> &[Timestamp] {
        &self.acks
    }

    /// Whether cycles were acknowledged before and after a fault: only such a run says anything.
    pub fn counts(&self) -> bool {
        self.faults.iter().any(|fault| {
            self.acks.first().is_some_and(|first| first < fault) && self.acks.last().is_some_and(|last| last > fault)
        })
    }

    /// A relationship is created; numbers begin again.
    pub fn new_relationship(&mut self) {
        self.epoch += 1;
        self.excuses.clear();
        self.primary.durable = None;
        self.primary.is_tracking_lost = false;
        self.forget_replica();
    }

    fn forget_replica(&mut self) {
        let looks = self.replica.looks;
        let seals_begun = std::mem::take(&mut self.replica.seals_begun);
        let sealed = std::mem::take(&mut self.replica.sealed);
        self.replica = ReplicaSide { looks, seals_begun, sealed, ..ReplicaSide::default() };
    }

    /// A job was begun.
    pub fn job_begun(&mut self, job: JobId) {
        self.primary.jobs.insert(job, Job { epoch: self.epoch, is_followed: false, is_done: None });
    }
}

/// Whether a state of the primary may be followed by another.
fn primary_may_go(from: State, to: State) -> bool {
    use State::*;
    from == to
        || matches!(
            (from, to),
            (Ready, InitialReplication)
                | (InitialReplication, Ready | Replicating | Critical | ResyncRequired)
                | (Replicating, Suspended | Critical | ResyncRequired)
                | (Suspended, Replicating)
                | (Critical, Replicating | InitialReplication | Suspended | ResyncRequired | Ready)
        )
}

/// Whether a state of the replica may be followed by another.
fn replica_may_go(from: State, to: State) -> bool {
    use State::*;
    from == to
        || matches!(
            (from, to),
            (InitialReplication, Replicating)
                | (Replicating, Suspended | FailingOver)
                | (Suspended, Replicating | FailingOver)
                | (FailingOver, FailedOver | Replicating | Suspended)
                | (FailedOver, Committed | Replicating | Suspended)
        )
}
