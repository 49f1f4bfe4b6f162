//! All that can happen to the sending side, and all that it can ask for.

use understudy_model::{
    Consistency, CutDigest, CutNumber, CutRef, DiskId, ErrorKind, Generation, JobId, Refusal, ReturnCode,
    SessionNumber, Settings, Timestamp,
};

use super::{Progress, Record};

/// Names one piece of work, so that its late outcome is recognised.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Token(pub u64);

/// How a piece of work failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// What should be done next.
    pub kind: ErrorKind,
    /// For people and the API.
    pub refusal: Refusal,
    /// The other side's generation, where that was the cause.
    pub generation: Option<Generation>,
    /// Whether the other side hands the right to be primary back, under [`Failure::generation`].
    pub is_handed_back: bool,
    /// The highest session number the other side has seen, where that was the cause.
    pub session: Option<SessionNumber>,
    /// Whether the link is of no use any more.
    pub is_link_lost: bool,
}

impl Failure {
    /// A failure without details.
    pub fn new(kind: ErrorKind, code: ReturnCode, reason: impl Into<String>) -> Self {
        Self {
            kind,
            refusal: Refusal::new(code, reason),
            generation: None,
            is_handed_back: false,
            session: None,
            is_link_lost: false,
        }
    }

    /// The same, with the link lost.
    #[must_use]
    pub fn with_link_lost(mut self) -> Self {
        self.is_link_lost = true;
        self
    }
}

/// What the target says it has when a session is opened.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TargetReport {
    /// Its newest cut.
    pub newest: Option<CutRef>,
    /// The initial replication it holds in staging: the attempt, and durable positions.
    pub base: Option<(CutNumber, Vec<(DiskId, u64)>)>,
    /// Whether its operator paused it.
    pub is_suspended: bool,
}

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs, reason = "each field is named for what it is; the variants say when they come")]
pub enum Event {
    /// Time went by.
    Tick,
    /// A session is open.
    Opened { token: Token, session: SessionNumber, report: TargetReport },
    /// No session could be opened.
    OpenFailed { token: Token, failure: Failure },
    /// The connection of a session ended.
    LinkLost { session: SessionNumber },
    /// The target's operator paused or resumed it.
    PeerSuspended(bool),
    /// The target took over. The next handshake tells under which generation.
    PeerFailedOver,
    /// The relationship was removed on the target.
    PeerRemoved,
    /// Tracking was begun afresh on all disks.
    TrackingBegun { token: Token },
    /// Tracking could not be begun.
    TrackingFailed { token: Token, failure: Failure },
    /// The copy goes on.
    BaseProgress { token: Token, progress: Progress },
    /// Everything was copied and is durable on the target.
    BaseCopied { token: Token },
    /// The copy stopped.
    BaseFailed { token: Token, failure: Failure },
    /// Everything was compared, and what differs is known.
    Compared { token: Token },
    /// The comparison stopped.
    CompareFailed { token: Token, failure: Failure },
    /// All disks are frozen.
    CutTaken { token: Token },
    /// The disks could not be frozen, or their maps do not cover what is needed.
    CutFailed { token: Token, failure: Failure },
    /// All data of the cycle was sent, and this is the digest of its cut.
    CycleComputed { token: Token, digest: CutDigest },
    /// The cycle is durable on the target, which computed this digest.
    CycleAcked { token: Token, digest: CutDigest, bytes: u64 },
    /// The cycle was not sealed, or it is not known whether it was.
    CycleFailed { token: Token, failure: Failure },
}

/// How the first full copy comes to the target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum InitialKind {
    /// Everything is sent.
    #[default]
    Network,
    /// The target holds something like it already; what differs is sent.
    Seeded,
}

/// What an operator asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Begin initial replication; the job follows it to its end.
    Start {
        /// The job.
        transfer_job: JobId,
        /// How.
        kind: InitialKind,
    },
    /// Compare both sides and repair the replica; the job follows it to its end.
    Resynchronize {
        /// The job.
        transfer_job: JobId,
    },
    /// Give the resynchronisation up.
    StopResync,
    /// Give initial replication up.
    StopInitial,
    /// Pause.
    Suspend,
    /// Go on.
    Resume,
    /// Count from now on.
    ResetStats,
    /// Change settings.
    Modify(Settings),
    /// End the relationship on this side.
    Remove,
}

/// Something to be done, in the order of the list. Each but the bookkeeping ones has an outcome that comes back as an
/// [`Event`] with the same token.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs, reason = "each field is named for what it is; the variants say what to do")]
pub enum Action {
    /// Make the record durable before anything after this in the list. If that fails, stop: nothing later may happen.
    Persist(Box<Record>),
    /// Connect and open this session.
    Open { token: Token, generation: Generation, session: SessionNumber },
    /// Close the connection, if there is one.
    CloseLink,
    /// Remove every map of this relationship and begin tracking on all disks with this map, in one step.
    BeginTracking { token: Token, first_map: CutNumber },
    /// Remove every map of this relationship.
    EndTracking,
    /// Copy the live disks from these positions on into the target's staging. Seeded: send only what differs from what
    /// is there already.
    CopyBase { token: Token, attempt: CutNumber, positions: Vec<(DiskId, u64)>, is_seeded: bool },
    /// Compare the live disks with this cut of the target, which is its newest, and note durably what differs under the
    /// number of the attempt. A comparison that was cut short goes on if it has the same number.
    Compare { token: Token, attempt: CutNumber, against: CutRef },
    /// Forget what comparisons noted: it was sent, or is of no use any more.
    ForgetComparison,
    /// Stop what is under way (copy, cut or cycle); its outcome is no longer wanted.
    Abandon,
    /// Freeze all disks together. The oldest of our maps must be `must_cover` or older, else it is a failure of kind
    /// resync. The new map bears `number`. What the comparison of the attempt `differing` noted is carried as well.
    TakeCut {
        token: Token,
        number: CutNumber,
        must_cover: CutNumber,
        consistency: Consistency,
        differing: Option<CutNumber>,
    },
    /// Send what the frozen maps hold.
    SendCycle { token: Token, number: CutNumber, parent: CutDigest },
    /// Ask the target to seal the cycle that was sent.
    ConcludeCycle { token: Token },
    /// Remove maps below this number that no longer record.
    DropMaps { below: CutNumber },
    /// Unite the maps that no longer record into the oldest of them.
    FoldMaps,
    /// Tell the target the settings, if a link is up.
    SendSettings,
    /// Show progress on the transfer's job.
    Progress { job: JobId, progress: Progress },
    /// The transfer's job ended. May come again after a crash; the first end counts.
    FinishJob { job: JobId, result: Result<(), Refusal> },
    /// For the timeline: a cycle was acknowledged.
    CycleDone { cut: CutRef, cut_at: Timestamp, bytes: u64 },
    /// The relationship is gone: forget the record.
    Forget,
}

/// Actions in the order they must be carried out.
pub type Actions = Vec<Action>;
