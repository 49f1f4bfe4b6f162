//! Jobs: long operations that somebody follows, with the states and types clients of the API know
//! (`CIM_ConcreteJob.JobState`, `Msvm_ConcreteJob.JobType`).

use crate::code::ReturnCode;
use crate::id::{JobId, VmId};
use crate::time::Timestamp;

/// `JobState`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u16)]
pub enum JobState {
    /// Never started yet.
    New = 2,
    /// Moving from new to running.
    Starting = 3,
    /// At work.
    Running = 4,
    /// Stopped, may be resumed.
    Suspended = 5,
    /// Moving towards an end.
    ShuttingDown = 6,
    /// Ended well.
    Completed = 7,
    /// Ended by a cancel.
    Terminated = 8,
    /// Ended by force.
    Killed = 9,
    /// Ended by an error.
    Exception = 10,
}

impl JobState {
    /// Every state.
    pub const ALL: &[JobState] = &[
        JobState::New,
        JobState::Starting,
        JobState::Running,
        JobState::Suspended,
        JobState::ShuttingDown,
        JobState::Completed,
        JobState::Terminated,
        JobState::Killed,
        JobState::Exception,
    ];

    /// The number in the API.
    pub const fn value(self) -> u16 {
        self as u16
    }

    /// The state with this number.
    pub fn from_value(value: u16) -> Option<Self> {
        Self::ALL.iter().copied().find(|s| s.value() == value)
    }

    /// The word for logs, screens and JSON.
    pub const fn name(self) -> &'static str {
        match self {
            JobState::New => "new",
            JobState::Starting => "starting",
            JobState::Running => "running",
            JobState::Suspended => "suspended",
            JobState::ShuttingDown => "shutting-down",
            JobState::Completed => "completed",
            JobState::Terminated => "terminated",
            JobState::Killed => "killed",
            JobState::Exception => "exception",
        }
    }

    /// Whether the job has ended.
    pub const fn is_terminal(self) -> bool {
        matches!(self, JobState::Completed | JobState::Terminated | JobState::Killed | JobState::Exception)
    }
}

macro_rules! kinds {
    ($($(#[$doc:meta])* $name:ident = $value:literal, $word:literal;)*) => {
        /// `JobType`, the replication range of it.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[repr(u16)]
        pub enum JobKind { $($(#[$doc])* $name = $value,)* }

        impl JobKind {
            /// Every kind.
            pub const ALL: &[JobKind] = &[$(JobKind::$name,)*];
            /// The number in the API.
            pub const fn value(self) -> u16 {
                self as u16
            }
            /// The word for logs, screens and JSON.
            pub const fn name(self) -> &'static str {
                match self { $(JobKind::$name => $word,)* }
            }
            /// The kind with this number.
            pub fn from_value(value: u16) -> Option<Self> {
                Self::ALL.iter().copied().find(|k| k.value() == value)
            }
        }
    };
}

kinds! {
    /// Change the host's replication settings.
    ModifyService = 90, "modify-service";
    /// Make a relationship.
    Create = 91, "create";
    /// Change a relationship's settings.
    Modify = 92, "modify";
    /// Remove a relationship.
    Remove = 93, "remove";
    /// Start initial replication over the network.
    Start = 94, "start";
    /// Import an exported initial replica.
    Import = 95, "import";
    /// Suspend, resume and their like.
    ChangeState = 96, "change-state";
    /// Fail over.
    Failover = 97, "failover";
    /// Revert a failover.
    Revert = 98, "revert";
    /// Commit a failover.
    Commit = 99, "commit";
    /// Prepare a planned failover.
    Prepare = 100, "prepare";
    /// Cancel a prepared failover.
    CancelPrepare = 101, "cancel-prepare";
    /// Make a test replica.
    TestFailover = 102, "test-failover";
    /// Remove a test replica.
    RemoveTest = 103, "remove-test";
    /// Reverse a relationship.
    Reverse = 104, "reverse";
    /// Resynchronise.
    Resync = 107, "resync";
    /// Stop initial replication.
    StopInitial = 109, "stop-initial";
    /// Stop a resynchronisation.
    StopResync = 110, "stop-resync";
    /// Test the connection to a host.
    TestConnection = 115, "test-connection";
    /// The transfer of an initial replication.
    SendInitial = 116, "send-initial";
    /// Start a seeded initial replication.
    StartSeeded = 117, "start-seeded";
    /// Start an initial replication by export.
    StartExport = 118, "start-export";
    /// Change a replica into a primary.
    Promote = 123, "promote";
    /// Change the set of disks.
    UpdateDisks = 125, "update-disks";
}

/// How a job ended badly.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JobError {
    /// `ErrorCode`: one of the failing return codes.
    pub code: ReturnCode,
    /// The whole chain of causes, in words.
    pub description: String,
    /// What the reader can do next; may be empty.
    pub hint: String,
}

/// A job as anybody may see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Job {
    /// Its identity.
    pub id: JobId,
    /// What it does.
    pub kind: JobKind,
    /// The VM it works on, if it is about one.
    pub vm: Option<VmId>,
    /// Where it stands.
    pub state: JobState,
    /// 0 to 100; 100 once completed.
    pub percent: u16,
    /// Bytes done, where it moves data.
    pub bytes_done: u64,
    /// Bytes to do in all, as far as known; 0 where it moves none.
    pub bytes_total: u64,
    /// What it is doing now, in words.
    pub status: String,
    /// When it was asked for (wall clock).
    pub submitted_at: Timestamp,
    /// When it is to begin (wall clock), if that was set.
    pub scheduled_at: Option<Timestamp>,
    /// When it began (wall clock).
    pub started_at: Option<Timestamp>,
    /// When it ended (wall clock).
    pub ended_at: Option<Timestamp>,
    /// Whether a cancel is understood.
    pub cancellable: bool,
    /// How it ended badly.
    pub error: Option<JobError>,
}
