//! The JSON of the API. Its own types, so that nothing inside can change it by accident; the command line reads them
//! back.
//!
//! Times are RFC 3339 in UTC, spans milliseconds, sizes bytes, words lower case with dashes. Fields may be added;
//! clients ignore what they do not know.

use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

/// Declares an object the API gives: readable by clients, with whatever fields later versions add.
macro_rules! given {
    ($($(#[$doc:meta])* $name:ident { $($(#[$fdoc:meta])* $field:ident : $type:ty,)* })*) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
        pub struct $name { $($(#[$fdoc])* pub $field: $type,)* }
    )*};
}

/// Declares an object the API takes: a field nobody knows is refused, since it was meant to change something.
macro_rules! taken {
    ($($(#[$doc:meta])* $name:ident { $($(#[$fdoc:meta])* $field:ident : $type:ty,)* })*) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, ToSchema)]
        #[serde(deny_unknown_fields)]
        pub struct $name { $($(#[$fdoc])* pub $field: $type,)* }
    )*};
}

given! {
    /// Why a call is not carried out. Nothing durable has changed.
    Error {
        /// The return code: 32768 and above. 0 where the request did not reach the service at all.
        code: u32,
        /// The documented name of the code.
        name: String,
        /// What was wrong.
        reason: String,
        /// What to do about it; may be empty.
        hint: String,
    }

    /// The answer to a call that was carried out and has nothing else to say.
    Answer {
        /// 0: done. 4096: the job goes on with it.
        return_value: u32,
        /// The job, as it was when the answer was made.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        job: Option<Job>,
    }

    /// This host.
    Host {
        /// Its identity: the hash of its key, in hexadecimal.
        id: String,
        /// Its name.
        name: String,
        /// The program's version.
        version: String,
        /// The address on which other hosts connect.
        listen: String,
        /// Addresses in invitations.
        addresses: Vec<String>,
        /// Congestion control that connections to other hosts get.
        congestion_control: String,
        /// The state directory.
        state_dir: String,
        /// Where replicas are stored.
        storage_dir: String,
        /// Bytes free there, if that can be told.
        storage_free_bytes: Option<u64>,
        /// Time since the service started.
        uptime_ms: u64,
        /// Times the service has been started.
        starts: u64,
        /// VMs listed.
        vms: usize,
        /// Hosts trusted.
        peers: usize,
        /// Relationships recorded.
        relationships: usize,
        /// Jobs under way.
        jobs_open: usize,
        /// The first fault of the audit log's chain, found at the start; none if it is whole.
        audit_fault: Option<String>,
    }

    /// A disk of a VM.
    Disk {
        /// Its number within the VM, as `disk-0`.
        id: String,
        /// The hypervisor's durable name of the device.
        key: String,
        /// Size in bytes.
        size: u64,
    }

    /// A VM of this host.
    Vm {
        /// Its identity.
        id: String,
        /// Its name.
        name: String,
        /// Its QMP socket.
        qmp: String,
        /// Whether a definition is known, so that its replica can be started by us.
        has_definition: bool,
        /// The definition; only when one VM is shown.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        definition: Option<String>,
        /// Whether it is replicated from here.
        is_replicated: bool,
        /// Its disks.
        disks: Vec<Disk>,
        /// When it was added.
        added_at: String,
        /// What it does now; only when one VM is shown.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        now: Option<VmNow>,
    }

    /// What a VM does now.
    VmNow {
        /// `running`, `paused`, `unsettled`, `off`, or `unknown` if its hypervisor says nothing.
        power: String,
        /// Version of the hypervisor.
        hypervisor: Option<String>,
        /// What looks like a disk and is not replicated, each with why.
        left_out: Vec<String>,
        /// Why nothing is known.
        problem: Option<String>,
    }

    /// The answer to adding a VM.
    VmAnswer {
        /// 0.
        return_value: u32,
        /// The VM.
        vm: Vm,
    }

    /// A trusted host.
    Peer {
        /// Its identity: the hash of its key, in hexadecimal.
        id: String,
        /// Its name here.
        name: String,
        /// Where it is reached.
        addresses: Vec<String>,
        /// When trust began.
        added_at: String,
        /// Whether it may place replicas here.
        may_replicate_here: bool,
        /// Its trust group.
        trust_group: String,
        /// Connections with it now.
        connections: usize,
        /// VMs replicated to or from it.
        relationships: Vec<RelationshipRef>,
    }

    /// A relationship, named.
    RelationshipRef {
        /// The VM.
        vm: String,
        /// 0 or 1.
        leg: u8,
    }

    /// The answer to an invitation.
    InviteAnswer {
        /// 0.
        return_value: u32,
        /// The token to hand to the other host. Told once.
        token: String,
        /// When it ends.
        expires_at: String,
        /// Addresses in it.
        addresses: Vec<String>,
    }

    /// The answer to joining a host.
    PeerAnswer {
        /// 0.
        return_value: u32,
        /// The host.
        peer: Peer,
    }

    /// The answer to removing a peer.
    PeerRemovedAnswer {
        /// 0.
        return_value: u32,
        /// The host's identity.
        id: String,
        /// Its name.
        name: String,
        /// Relationships that now stand still.
        relationships: Vec<RelationshipRef>,
    }

    /// Settings of a relationship, as they are in force.
    Settings {
        /// Time between cuts.
        interval_ms: u64,
        /// Recovery points kept beside the newest state.
        points: u16,
        /// Span between points; 0 keeps each cut.
        point_every_ms: u64,
        /// Span between application-consistent points; none is off.
        application_consistent_every_ms: Option<u64>,
        /// Whether data is compressed.
        compression: bool,
        /// Disks left out.
        excluded_disks: Vec<String>,
        /// When a resynchronisation that became necessary may start by itself; none is never.
        auto_resync: Option<ResyncWindow>,
    }

    /// A cut, named.
    Cut {
        /// Its number in the relationship.
        number: u64,
        /// The generation it was taken in.
        generation: u64,
        /// Its digest: names the whole history that led to it.
        digest: String,
        /// When the disks were frozen, by the primary's clock.
        taken_at: String,
    }

    /// A reason why health is not ok.
    Issue {
        /// `warning` or `critical`.
        health: String,
        /// What is the matter.
        text: String,
    }

    /// The connection to the other side.
    Link {
        /// Whether a session is open.
        is_up: bool,
        /// Connections that carry it.
        connections: u16,
        /// The address in use.
        address: Option<String>,
        /// Congestion control in force.
        congestion_control: Option<String>,
    }

    /// Counters since the service started.
    Statistics {
        /// Cycles acknowledged.
        cycles: u64,
        /// Intervals without one.
        missed: u64,
        /// Attempts that failed.
        failures: u64,
        /// Those of them where the link was the cause.
        network_failures: u64,
        /// Bytes sent.
        bytes_sent: u64,
        /// Bytes of the largest cycle.
        bytes_max: u64,
        /// Mean time from cut to acknowledgement.
        latency_mean_ms: u64,
        /// Longest time from cut to acknowledgement.
        latency_max_ms: u64,
    }

    /// What replication of a VM did, and how old its replica was meanwhile.
    StatisticsReport {
        /// Counted since: the service's start, or the last reset.
        since: String,
        /// Counted until.
        until: String,
        /// `ReplicationHealth` as a word.
        health: String,
        /// Counters.
        counters: Statistics,
        /// Cycles whose age was noted: right before its acknowledgement, how old was the replica's newest state?
        ages: u64,
        /// Half of those ages were at most this.
        rpo_p50_ms: Option<u64>,
        /// 99 of 100 were at most this.
        rpo_p99_ms: Option<u64>,
        /// The highest.
        rpo_max_ms: Option<u64>,
    }

    /// A failover under way or done.
    FailoverState {
        /// The cut the VM was taken from.
        cut: Cut,
        /// `regular`, `application-consistent`, `planned`.
        kind: String,
        /// Whether the VM runs here.
        is_running: bool,
        /// How to reach its console or monitor.
        monitor: Option<String>,
    }

    /// A relationship.
    Relationship {
        /// The VM's identity.
        vm: String,
        /// 0 to the replica, 1 to the extended replica.
        leg: u8,
        /// The VM's name.
        vm_name: String,
        /// This host's end: `primary` or `replica`.
        side: String,
        /// `ReplicationMode` as a word.
        mode: String,
        /// `ReplicationMode`.
        mode_value: u16,
        /// Identity of the host at the other end.
        peer: String,
        /// Its name here; none if it is not trusted.
        peer_name: Option<String>,
        /// `ReplicationState` as a word.
        state: String,
        /// `ReplicationState`.
        state_value: u16,
        /// `ReplicationHealth` as a word.
        health: String,
        /// `ReplicationHealth`.
        health_value: u16,
        /// Why health is not ok.
        issues: Vec<Issue>,
        /// What it is doing now, in words.
        activity: String,
        /// Settings in force.
        settings: Settings,
        /// Its generation.
        generation: u64,
        /// The newest cut both sides have.
        newest: Option<Cut>,
        /// Age of that cut's data.
        rpo_actual_ms: Option<u64>,
        /// Why the last attempt failed, while none has succeeded since.
        failure: Option<String>,
        /// The failover under way or done.
        failover: Option<FailoverState>,
        /// When an initial replication or a resynchronisation is to begin, if that was set.
        scheduled_at: Option<String>,
        /// Bytes of initial replication or resynchronisation dealt with; 0 when none is under way.
        progress_bytes: u64,
        /// Bytes of it in all.
        progress_bytes_total: u64,
        /// The connection to the other side.
        link: Link,
        /// Counters since the service started.
        statistics: Statistics,
        /// Recovery points kept here.
        points: u32,
    }

    /// The answer to making a relationship.
    RelationshipAnswer {
        /// 0 or 4096.
        return_value: u32,
        /// The job that contacts the peer.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        job: Option<Job>,
        /// The relationship.
        relationship: RelationshipRef,
    }

    /// One cycle of the history.
    Cycle {
        /// Number of the cut it led to.
        cut: u64,
        /// `acknowledged` or `given-up`.
        outcome: String,
        /// `standard`, `application`, `planned`.
        consistency: String,
        /// When the disks were frozen.
        taken_at: String,
        /// When it ended.
        ended_at: String,
        /// Bytes of the disks that had changed.
        changed_bytes: u64,
        /// Bytes sent for them.
        sent_bytes: u64,
        /// Why it was given up, or what else is worth knowing.
        detail: String,
    }

    /// A recovery point.
    Point {
        /// Its identity.
        id: String,
        /// The cut it keeps.
        cut: Cut,
        /// `standard`, `application`, `planned`.
        consistency: String,
        /// Whether it is the newest state received.
        is_newest: bool,
        /// Whether it is kept as a recovery point.
        is_kept: bool,
        /// Bytes its runs take on the disk.
        stored_bytes: u64,
    }

    /// How a job ended badly.
    JobError {
        /// `ErrorCode`.
        code: u32,
        /// The documented name of the code.
        name: String,
        /// The whole chain of causes.
        description: String,
        /// What to do about it; may be empty.
        hint: String,
    }

    /// A job.
    Job {
        /// Its identity.
        id: String,
        /// What it does, as a word.
        kind: String,
        /// `JobType`.
        kind_value: u16,
        /// The VM it works on.
        vm: Option<String>,
        /// Where it stands, as a word.
        state: String,
        /// `JobState`.
        state_value: u16,
        /// Whether it has ended.
        has_ended: bool,
        /// 0 to 100; 100 only once completed.
        percent: u16,
        /// Bytes done, where it moves data.
        bytes_done: u64,
        /// Bytes in all; 0 where it moves none.
        bytes_total: u64,
        /// What it is doing now, in words.
        status: String,
        /// When it was asked for.
        submitted_at: String,
        /// When it is to begin, if that was set.
        scheduled_at: Option<String>,
        /// When it began.
        started_at: Option<String>,
        /// When it ended.
        ended_at: Option<String>,
        /// Whether a cancel is understood.
        cancellable: bool,
        /// How it ended badly.
        error: Option<JobError>,
    }

    /// The answer to cancelling a job.
    JobAnswer {
        /// 0: the job was asked to end.
        return_value: u32,
        /// The job.
        job: Job,
    }
}

taken! {
    /// A VM to add.
    VmAdd {
        /// The name to give it here: 1 to 100 letters, digits, `.`, `_`, `-` or single spaces.
        name: String,
        /// Absolute path of its QMP socket.
        qmp: String,
        /// How to build it on another host (docs/reference/definition.md). None: derived from the running VM.
        #[serde(default)]
        definition: Option<String>,
    }

    /// An invitation to accept.
    PeerJoin {
        /// What `understudy peer invite` printed.
        token: String,
    }

    /// A relationship to make. What is not given has Hyper-V's defaults: 300 s, no recovery points, hourly, compressed.
    RelationshipCreate {
        /// The VM, by name or identity.
        vm: String,
        /// The peer, by name or identity.
        peer: String,
        /// Time between cuts: 1000 to 900000.
        #[serde(default)]
        interval_ms: Option<u64>,
        /// Recovery points kept beside the newest state: 0 to 24.
        #[serde(default)]
        points: Option<u16>,
        /// Span between points; 0 keeps each cut.
        #[serde(default)]
        point_every_ms: Option<u64>,
        /// Span between application-consistent points.
        #[serde(default)]
        application_consistent_every_ms: Option<u64>,
        /// Whether data is compressed.
        #[serde(default)]
        compression: Option<bool>,
        /// Disks left out, by number (`disk-1`) or by the hypervisor's name of the device.
        #[serde(default)]
        excluded_disks: Vec<String>,
        /// When a resynchronisation that became necessary may start by itself; none is never.
        #[serde(default)]
        auto_resync: Option<ResyncWindow>,
    }

    /// Settings to put in force, all of them.
    SettingsUpdate {
        /// Time between cuts: 1000 to 900000.
        interval_ms: u64,
        /// Recovery points kept beside the newest state: 0 to 24.
        points: u16,
        /// Span between points; 0 keeps each cut.
        point_every_ms: u64,
        /// Span between application-consistent points; none is off.
        #[serde(default)]
        application_consistent_every_ms: Option<u64>,
        /// Whether data is compressed.
        compression: bool,
        /// Disks left out, by number (`disk-1`).
        #[serde(default)]
        excluded_disks: Vec<String>,
        /// When a resynchronisation that became necessary may start by itself; none is never.
        #[serde(default)]
        auto_resync: Option<ResyncWindow>,
    }

    /// An initial replication to start (`StartReplication`).
    RelationshipStart {
        /// `InitialReplicationType`: 1 over the network (the default), 2 export, 3 seeded.
        #[serde(default)]
        initial_replication_type: Option<u16>,
        /// For an export: the directory.
        #[serde(default)]
        export_location: Option<String>,
        /// When to start: RFC 3339, or a datetime of CIM; at most 7 days ahead. None or gone by is at once. Not heeded for an
        /// export.
        #[serde(default)]
        start_time: Option<String>,
    }

    /// An image that a seeded initial replication begins with.
    RelationshipSeed {
        /// Which disk it is to become, by number (`disk-0`).
        disk: String,
        /// Where it is on this host: the full path.
        path: String,
        /// Its format: `raw`, the only one so far. Needed for a raw image that begins like one of another format.
        #[serde(default)]
        format: Option<String>,
        /// Whether it may be moved from there instead of being copied.
        #[serde(default)]
        take: bool,
    }

    /// Hours of the day, by the primary's own time. A start later than the end wraps past midnight; a start that is the end
    /// means the whole day.
    ResyncWindow {
        /// Time since midnight: below 86400000.
        start_ms: u64,
        /// Time since midnight: below 86400000.
        end_ms: u64,
    }

    /// A resynchronisation to start (`Resynchronize`).
    RelationshipResync {
        /// When to start: RFC 3339, or a datetime of CIM; at most 7 days ahead. None or gone by is at once.
        #[serde(default)]
        start_time: Option<String>,
    }

    /// A failover to start.
    FailoverStart {
        /// The recovery point; none is the newest state.
        #[serde(default)]
        point: Option<String>,
        /// Whether to start the VM too.
        #[serde(default)]
        power_on: bool,
    }
}

/// Which leg of a VM's replication.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct Leg {
    /// 0 (the default) to the replica, 1 to the extended replica.
    #[serde(default)]
    pub leg: u8,
}

/// How much history.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct CycleQuery {
    /// 0 (the default) to the replica, 1 to the extended replica.
    #[serde(default)]
    pub leg: u8,
    /// Most cycles to tell; 1000 at most.
    #[serde(default = "hundred")]
    pub count: u32,
}

/// How long to wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct WaitQuery {
    /// Seconds; 50 at most.
    #[serde(default = "thirty")]
    pub seconds: u64,
}

fn hundred() -> u32 {
    100
}

fn thirty() -> u64 {
    30
}
