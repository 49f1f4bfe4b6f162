//! From the service's types to the API's, and back where the API takes something.

use understudy_hypervisor::driver::Power;
use understudy_model as model;
use understudy_model::settings::PointEvery;
use understudy_model::{Millis, Refusal, ReturnCode};

use super::types;
use crate::catalogue::{CycleRecord, PeerRecord, RelationshipRecord, VmRecord};
use crate::clock::label;
use crate::operations::owner::{FailoverReport, LinkReport, PointReport, RelationshipReport};
use crate::operations::{HostReport, PeerReport, RelationshipView, Statistics, VmView};

impl From<HostReport> for types::Host {
    fn from(host: HostReport) -> Self {
        Self {
            id: host.about.id.to_string(),
            name: host.about.name,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            listen: host.about.listen.to_string(),
            addresses: host.addresses,
            congestion_control: host.about.congestion_control,
            state_dir: host.about.state.display().to_string(),
            storage_dir: host.about.storage.display().to_string(),
            storage_free_bytes: host.storage_free,
            uptime_ms: host.uptime.0,
            starts: host.about.starts,
            vms: host.vms,
            peers: host.peers,
            relationships: host.relationships,
            jobs_open: host.jobs_open,
            audit_fault: host.about.audit_fault,
        }
    }
}

impl From<VmView> for types::Vm {
    fn from(view: VmView) -> Self {
        let now = view.now.map(|now| match now {
            Ok(found) => types::VmNow {
                power: power(found.description.power).to_owned(),
                hypervisor: found.description.version.map(|(a, b, c)| format!("{a}.{b}.{c}")),
                left_out: found.description.left_out,
                problem: None,
            },
            Err(refusal) => types::VmNow {
                power: "unknown".to_owned(),
                hypervisor: None,
                left_out: Vec::new(),
                problem: Some(refusal.reason),
            },
        });
        let definition = now.is_some().then(|| view.record.definition.clone()).flatten();
        Self { is_replicated: view.is_replicated, now, definition, ..view.record.into() }
    }
}

impl From<VmRecord> for types::Vm {
    fn from(vm: VmRecord) -> Self {
        let disk = |d: &model::DiskSpec| types::Disk { id: d.id.to_string(), key: d.key.clone(), size: d.size };
        Self {
            id: vm.id.to_string(),
            name: vm.name,
            qmp: vm.qmp,
            has_definition: vm.definition.is_some(),
            definition: None,
            is_replicated: false,
            disks: vm.disks.iter().map(disk).collect(),
            added_at: label(vm.added_at),
            now: None,
        }
    }
}

fn power(power: Power) -> &'static str {
    match power {
        Power::Running => "running",
        Power::Paused => "paused",
        Power::Unsettled => "unsettled",
        Power::Off => "off",
    }
}

impl From<PeerReport> for types::Peer {
    fn from(peer: PeerReport) -> Self {
        let relationships = peer.relationships.into_iter().map(types::RelationshipRef::from).collect();
        Self { connections: peer.connections, relationships, ..peer.record.into() }
    }
}

impl From<PeerRecord> for types::Peer {
    fn from(peer: PeerRecord) -> Self {
        Self {
            id: peer.id.to_string(),
            name: peer.name,
            addresses: peer.addresses,
            added_at: label(peer.added_at),
            may_replicate_here: peer.authorization.may_replicate_here,
            trust_group: peer.authorization.trust_group,
            connections: 0,
            relationships: Vec::new(),
        }
    }
}

impl From<model::RelationshipId> for types::RelationshipRef {
    fn from(id: model::RelationshipId) -> Self {
        Self { vm: id.vm.to_string(), leg: id.leg }
    }
}

impl From<&model::Settings> for types::Settings {
    fn from(s: &model::Settings) -> Self {
        Self {
            interval_ms: s.interval.0,
            points: s.points,
            point_every_ms: match s.point_every {
                PointEvery::Cycle => 0,
                PointEvery::Span(span) => span.0,
            },
            application_consistent_every_ms: s.application_consistent_every.map(|m| m.0),
            compression: s.compression,
            excluded_disks: s.excluded_disks.iter().map(ToString::to_string).collect(),
            auto_resync: s.auto_resync.map(|w| types::ResyncWindow { start_ms: w.start.0, end_ms: w.end.0 }),
        }
    }
}

impl From<types::ResyncWindow> for model::settings::ResyncWindow {
    fn from(w: types::ResyncWindow) -> Self {
        Self { start: Millis(w.start_ms), end: Millis(w.end_ms) }
    }
}

/// Which cuts become points: 0 is each one.
pub(super) fn point_every(ms: u64) -> PointEvery {
    if ms == 0 { PointEvery::Cycle } else { PointEvery::Span(Millis(ms)) }
}

impl TryFrom<types::SettingsUpdate> for model::Settings {
    type Error = Refusal;
    fn try_from(s: types::SettingsUpdate) -> Result<Self, Refusal> {
        let disk = |text: &String| {
            text.parse()
                .map_err(|err: model::id::ParseIdError| Refusal::new(ReturnCode::InvalidParameter, err.to_string()))
        };
        Ok(Self {
            interval: Millis(s.interval_ms),
            points: s.points,
            point_every: point_every(s.point_every_ms),
            application_consistent_every: s.application_consistent_every_ms.map(Millis),
            compression: s.compression,
            excluded_disks: s.excluded_disks.iter().map(disk).collect::<Result<_, _>>()?,
            auto_resync: s.auto_resync.map(Into::into),
        })
    }
}

fn cut(cut: &model::CutRef, taken_at: model::Timestamp) -> types::Cut {
    types::Cut {
        number: cut.number.0,
        generation: cut.generation.0,
        digest: cut.digest.to_string(),
        taken_at: label(taken_at),
    }
}

fn consistency(consistency: model::Consistency) -> String {
    let word = match consistency {
        model::Consistency::Standard => "standard",
        model::Consistency::Application => "application",
        model::Consistency::Planned => "planned",
    };
    word.to_owned()
}

impl From<FailoverReport> for types::FailoverState {
    fn from(f: FailoverReport) -> Self {
        let kind = f.kind.name().to_owned();
        Self { cut: cut(&f.cut, f.taken_at), kind, is_running: f.is_running, monitor: f.monitor }
    }
}

impl From<LinkReport> for types::Link {
    fn from(link: LinkReport) -> Self {
        let LinkReport { is_up, connections, address, congestion_control } = link;
        Self { is_up, connections, address, congestion_control }
    }
}

impl From<(Statistics, understudy_engine::stats::Stats)> for types::StatisticsReport {
    fn from((s, counters): (Statistics, understudy_engine::stats::Stats)) -> Self {
        Self {
            since: label(s.since),
            until: label(s.until),
            health: s.health.name().to_owned(),
            counters: (&counters).into(),
            ages: s.ages.count,
            rpo_p50_ms: s.ages.p50.map(|m| m.0),
            rpo_p99_ms: s.ages.p99.map(|m| m.0),
            rpo_max_ms: s.ages.max.map(|m| m.0),
        }
    }
}

impl From<&understudy_engine::stats::Stats> for types::Statistics {
    fn from(s: &understudy_engine::stats::Stats) -> Self {
        Self {
            cycles: s.successes,
            missed: s.misses,
            failures: s.failures,
            network_failures: s.network_failures,
            bytes_sent: s.bytes_sent,
            bytes_max: s.bytes_max,
            latency_mean_ms: s.latency_total.0.checked_div(s.successes).unwrap_or(0),
            latency_max_ms: s.latency_max.0,
        }
    }
}

impl From<RelationshipView> for types::Relationship {
    fn from(view: RelationshipView) -> Self {
        match view.told {
            Ok(report) => Self { peer_name: view.peer_name, ..(*report).into() },
            Err(record) => Self { peer_name: view.peer_name, ..(*record).into() },
        }
    }
}

impl From<RelationshipReport> for types::Relationship {
    fn from(r: RelationshipReport) -> Self {
        let issue = |i: &understudy_engine::health::Issue| types::Issue {
            health: i.health.name().to_owned(),
            text: i.text.clone(),
        };
        Self {
            vm: r.id.vm.to_string(),
            leg: r.id.leg,
            vm_name: r.vm_name,
            side: r.side.name().to_owned(),
            mode: r.mode.name().to_owned(),
            mode_value: r.mode.value(),
            peer: r.peer.to_string(),
            peer_name: None,
            state: r.state.name().to_owned(),
            state_value: r.state.value(),
            health: r.health.name().to_owned(),
            health_value: r.health.value(),
            issues: r.issues.iter().map(issue).collect(),
            activity: r.activity,
            settings: (&r.settings).into(),
            generation: r.generation.0,
            newest: r.newest.map(|n| cut(&n.cut, n.taken_at)),
            rpo_actual_ms: r.rpo_actual.map(|m| m.0),
            failure: r.failure,
            failover: r.failover.map(Into::into),
            scheduled_at: r.scheduled_at.map(label),
            progress_bytes: r.progress.done,
            progress_bytes_total: r.progress.total,
            link: r.link.into(),
            statistics: (&r.stats).into(),
            points: r.points,
        }
    }
}

/// A relationship that nobody could take up: what is recorded, and that it stands still.
impl From<RelationshipRecord> for types::Relationship {
    fn from(r: RelationshipRecord) -> Self {
        let text = "this relationship could not be taken up when the service started; the log has the cause".to_owned();
        let mode = match r.side {
            crate::catalogue::Side::Primary => model::Mode::Primary,
            crate::catalogue::Side::Replica => model::Mode::Replica,
        };
        Self {
            vm: r.id.vm.to_string(),
            leg: r.id.leg,
            vm_name: r.vm_name,
            side: r.side.name().to_owned(),
            mode: mode.name().to_owned(),
            mode_value: mode.value(),
            peer: r.peer.to_string(),
            peer_name: None,
            state: model::State::Critical.name().to_owned(),
            state_value: model::State::Critical.value(),
            health: model::Health::Critical.name().to_owned(),
            health_value: model::Health::Critical.value(),
            issues: vec![types::Issue { health: model::Health::Critical.name().to_owned(), text }],
            activity: "stands still".to_owned(),
            settings: (&r.settings).into(),
            generation: 0,
            newest: None,
            rpo_actual_ms: None,
            failure: None,
            failover: None,
            scheduled_at: None,
            progress_bytes: 0,
            progress_bytes_total: 0,
            link: LinkReport::default().into(),
            statistics: (&understudy_engine::stats::Stats::default()).into(),
            points: 0,
        }
    }
}

impl From<CycleRecord> for types::Cycle {
    fn from(c: CycleRecord) -> Self {
        Self {
            cut: c.cut.0,
            outcome: c.outcome.name().to_owned(),
            consistency: consistency(c.consistency),
            taken_at: label(c.taken_at),
            ended_at: label(c.ended_at),
            changed_bytes: c.changed,
            sent_bytes: c.sent,
            detail: c.detail,
        }
    }
}

impl From<PointReport> for types::Point {
    fn from(p: PointReport) -> Self {
        Self {
            id: p.id.to_string(),
            cut: cut(&p.cut.id, p.cut.taken_at),
            consistency: consistency(p.cut.consistency),
            is_newest: p.is_newest,
            is_kept: p.is_kept,
            stored_bytes: p.stored,
        }
    }
}

impl From<model::job::Job> for types::Job {
    fn from(job: model::job::Job) -> Self {
        let error = job.error.map(|e| types::JobError {
            code: e.code.value(),
            name: e.code.name().to_owned(),
            description: e.description,
            hint: e.hint,
        });
        Self {
            id: job.id.to_string(),
            kind: job.kind.name().to_owned(),
            kind_value: job.kind.value(),
            vm: job.vm.map(|vm| vm.to_string()),
            state: job.state.name().to_owned(),
            state_value: job.state.value(),
            has_ended: job.state.is_terminal(),
            percent: job.percent,
            bytes_done: job.bytes_done,
            bytes_total: job.bytes_total,
            status: job.status,
            submitted_at: label(job.submitted_at),
            scheduled_at: job.scheduled_at.map(label),
            started_at: job.started_at.map(label),
            ended_at: job.ended_at.map(label),
            cancellable: job.cancellable,
            error,
        }
    }
}
