//! Who carries out what is asked of one relationship: the seam between the operations and `primary`/`replica`.
//!
//! Each relationship of this host has one owner, and everything that happens to it goes through that owner, one thing
//! at a time. Operations check what can be checked without it (rights, types, values), then ask. The owner checks the
//! state, answers at once, and goes on with the work in a job.

use std::path::PathBuf;

use async_trait::async_trait;
use understudy_engine::health::Issue;
use understudy_engine::primary::{InitialKind, Progress};
use understudy_engine::stats::Stats;
use understudy_model::{
    Cut, CutRef, DiskId, FailoverKind, Generation, Health, JobId, Millis, Mode, PeerId, PointId, Refusal,
    RelationshipId, Settings, State, Timestamp,
};

use super::registry::Exit;
use crate::catalogue::{RelationshipRecord, Side};
use crate::jobs::JobTicket;

/// What an operator wants of a relationship.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Carry the creation through: the record was just made, with an empty engine record. Asked once, first of all, on
    /// the primary. The owner contacts the peer, which makes a place; then it records the engine's first state, then it
    /// ends the job. If it cannot, it leaves ([`Exit::remove`]) and ends the job with the cause.
    Create,
    /// Begin initial replication, at once or at a later time.
    Start {
        /// How.
        kind: InitialKind,
        /// When (wall clock).
        at: Option<Timestamp>,
    },
    /// Compare both sides and repair the replica, at once or at a later time.
    Resync {
        /// When (wall clock).
        at: Option<Timestamp>,
    },
    /// Place an image that a seeded initial replication begins with; on the replica.
    Seed(Seed),
    /// Give up what is under way or was to begin later: an initial replication or a resynchronisation.
    Stop,
    /// Pause.
    Suspend,
    /// Go on.
    Resume,
    /// Count from now on.
    ResetStatistics,
    /// Replace the settings. They were checked.
    Modify(Settings),
    /// End the relationship on this host. The owner stops what is under way, takes its maps out of the hypervisor, ends
    /// the jobs it holds, leaves ([`Exit::remove`]), and then ends the job. Recovery points on a replica stay.
    Remove,
    /// Make a recovery point startable; on the replica.
    FailoverStart {
        /// Which one; `None` is the newest state received, whether kept as a point or not.
        point: Option<PointId>,
        /// Whether to start the VM too.
        power_on: bool,
    },
    /// Throw a failover away.
    FailoverRevert,
    /// Make a failover final.
    FailoverCommit,
}

/// An image that a seeded initial replication begins with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seed {
    /// Which disk it is to become.
    pub disk: DiskId,
    /// Where it is: a raw image.
    pub path: PathBuf,
    /// Whether it may be moved from there.
    pub take: bool,
}

/// What the owner answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// Done, durably; there is nothing to follow. The ticket was not used.
    Done,
    /// It was accepted, durably; this job goes on with it.
    Job(JobId),
}

/// The owner of one relationship.
///
/// Calls may come from any task at any time; the owner puts them in order. Dropping a call's future must not undo or
/// repeat what the call began.
#[async_trait]
pub trait RelationshipOwner: Send + Sync + 'static {
    /// Which relationship.
    fn id(&self) -> RelationshipId;

    /// Asks for something. The caller's rights and the command's values were checked; the owner checks the state
    /// (`InvalidState`: the state graph says no; `SystemInUse`: another command is under way) and answers within a
    /// second or so: whatever waits for a peer, a disk or a guest happens in a job. A refusal has changed nothing.
    ///
    /// The ticket bears the job's kind and VM. An owner that needs a job begins it *after* it has accepted the command,
    /// and drops the ticket otherwise. Before the answer `Job` the job and the accepted command are durable; before
    /// `Done` the effect is.
    async fn ask(&self, command: Command, ticket: JobTicket) -> Result<Answer, Refusal>;

    /// What an operator sees now. Cheap and without waiting: called for every line of every list. What it tells is
    /// durable already, save for ages and progress.
    fn report(&self) -> RelationshipReport;

    /// The recovery points, oldest first. On a primary: `InvalidState`.
    async fn points(&self) -> Result<Vec<PointReport>, Refusal>;

    /// Stops in good order because the daemon does: gives a cycle under way up, closes connections, leaves jobs under
    /// way as they are ([`crate::jobs::Jobs::close`] was called). Bounded: the daemon goes after 10 s in any case.
    async fn stop(&self);
}

/// Makes owners.
#[async_trait]
pub trait OwnerFactory: Send + Sync + 'static {
    /// Makes the owner of a recorded relationship: for each one at start-up, and for one that was just recorded. An
    /// owner begins its work by itself. Does not wait for peers, guests or disks.
    ///
    /// At start-up it adopts the jobs it can go on with ([`crate::jobs::Jobs::adopt`]) before it returns. A record
    /// without an engine record at start-up is one whose creation was cut short: it is either gone on with (by adopting
    /// its job of kind `Create`) or refused with `InvalidState`; refused ones are removed.
    async fn open(
        &self,
        record: RelationshipRecord,
        exit: Exit,
    ) -> Result<std::sync::Arc<dyn RelationshipOwner>, Refusal>;
}

/// A relationship at one moment.
#[derive(Debug, Clone)]
pub struct RelationshipReport {
    /// Which.
    pub id: RelationshipId,
    /// Name of the VM, for people.
    pub vm_name: String,
    /// Which end this host is.
    pub side: Side,
    /// The role in the API's words.
    pub mode: Mode,
    /// The host at the other end.
    pub peer: PeerId,
    /// Where it stands.
    pub state: State,
    /// How well it goes.
    pub health: Health,
    /// Why it does not go well; empty when it does.
    pub issues: Vec<Issue>,
    /// What it is doing now, in a few words.
    pub activity: String,
    /// Settings in force.
    pub settings: Settings,
    /// Its generation.
    pub generation: Generation,
    /// The newest cut both sides have: acknowledged on a primary, sealed on a replica.
    pub newest: Option<NewestCut>,
    /// Age of the data of that cut by a clock that does not jump; `None` if it is not known since the daemon started.
    pub rpo_actual: Option<Millis>,
    /// Why the last attempt failed, while none has succeeded since.
    pub failure: Option<String>,
    /// The failover under way or done; on a replica.
    pub failover: Option<FailoverReport>,
    /// How far initial replication is; zeros when none is under way.
    pub progress: Progress,
    /// When an initial replication or a resynchronisation is to begin by the wall clock, if that was set.
    pub scheduled_at: Option<Timestamp>,
    /// The connection to the other side.
    pub link: LinkReport,
    /// Counters.
    pub stats: Stats,
    /// Since when they count, by the wall clock: the daemon's start, or the last reset.
    pub stats_since: Timestamp,
    /// Recovery points kept; on a replica.
    pub points: u32,
}

/// A cut, and when it was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NewestCut {
    /// Which cut.
    pub cut: CutRef,
    /// When the disks were frozen, by the primary's wall clock: a label.
    pub taken_at: Timestamp,
}

/// A failover under way or done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FailoverReport {
    /// The cut the VM was taken from.
    pub cut: CutRef,
    /// What kind of cut that is.
    pub kind: FailoverKind,
    /// When it was taken, by the primary's wall clock.
    pub taken_at: Timestamp,
    /// Whether the VM runs here.
    pub is_running: bool,
    /// How to reach its console or monitor, where it runs.
    pub monitor: Option<String>,
}

/// The connection to the other side.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LinkReport {
    /// Whether a session is open.
    pub is_up: bool,
    /// Connections that carry it.
    pub connections: u16,
    /// The address in use.
    pub address: Option<String>,
    /// Congestion control in force on them, as the kernel names it.
    pub congestion_control: Option<String>,
}

/// A recovery point.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PointReport {
    /// Its identity.
    pub id: PointId,
    /// The cut it keeps.
    pub cut: Cut,
    /// Whether it is the newest state received; that one can be failed over to even if it is not kept.
    pub is_newest: bool,
    /// Whether retention keeps it as a recovery point.
    pub is_kept: bool,
    /// Bytes its runs take on the disk.
    pub stored: u64,
}
