//! What monitoring sees, in the text format of Prometheus (OpenMetrics).
//!
//! Names are `understudy_<noun>_<unit>[_total]`. Labels are bounded: by the number of relationships and peers of this
//! host, and by words of the code. Counters of events live where the events happen and are registered here; what can be
//! asked (states, ages) is asked at each scrape and stored nowhere.

use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric};
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;
use understudy_model::job::JobState;

use crate::jobs::Jobs;
use crate::link::Trust;
use crate::link::listener::LinkStats;
use crate::operations::owner::RelationshipReport;
use crate::operations::registry::Registry as Owners;

/// Media type of [`Metrics::render`].
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// See the module's description.
pub struct Metrics {
    registry: Registry,
    requests: Family<RequestLabels, Counter>,
}

/// One kind of answer of the API.
#[derive(Debug, Clone, Hash, PartialEq, Eq, EncodeLabelSet)]
struct RequestLabels {
    method: &'static str,
    status: u16,
}

/// Where counters and answers come from.
pub struct Sources {
    /// Relationships.
    pub owners: Owners,
    /// Jobs.
    pub jobs: Jobs,
    /// Peers.
    pub trust: std::sync::Arc<Trust>,
    /// The listener.
    pub link: LinkStats,
    /// Commits of the catalogue.
    pub commits: Counter,
}

impl Metrics {
    /// Metrics of these.
    pub fn new(sources: Sources) -> Self {
        let mut registry = Registry::with_prefix("understudy");
        let version = Info::new(vec![("version", env!("CARGO_PKG_VERSION"))]);
        registry.register("build", "The running program", version);
        let requests = Family::<RequestLabels, Counter>::default();
        registry.register("api_requests", "Requests of the API, by method and status", requests.clone());
        let link = &sources.link;
        registry.register("link_served", "Connections of peers that came to be served", link.served.clone());
        registry.register("link_refused", "Connections that ended before they were served", link.refused.clone());
        registry.register("link_evicted", "Handshakes ended because too many were under way", link.evicted.clone());
        registry.register("link_starved", "Times the system could not accept a connection", link.starved.clone());
        registry.register("catalogue_commits", "Durable commits of the catalogue", sources.commits.clone());
        let asked = Asked { owners: sources.owners, jobs: sources.jobs, trust: sources.trust };
        registry.register_collector(Box::new(asked));
        Self { registry, requests }
    }

    /// Counts a request of the API.
    pub fn count_request(&self, method: &axum::http::Method, status: axum::http::StatusCode) {
        // A method of the caller's own making must not become a label of its own.
        let method = match method.as_str() {
            "GET" => "GET",
            "POST" => "POST",
            "PUT" => "PUT",
            "DELETE" => "DELETE",
            _ => "other",
        };
        self.requests.get_or_create(&RequestLabels { method, status: status.as_u16() }).inc();
    }

    /// Everything, as text.
    pub fn render(&self) -> Result<String, fmt::Error> {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry)?;
        Ok(text)
    }
}

/// What is asked at each scrape.
struct Asked {
    owners: Owners,
    jobs: Jobs,
    trust: std::sync::Arc<Trust>,
}

impl fmt::Debug for Asked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Asked")
    }
}

impl Collector for Asked {
    fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        let reports: Vec<RelationshipReport> = self.owners.all().iter().map(|owner| owner.report()).collect();
        relationships(&mut encoder, &reports)?;
        self.jobs(&mut encoder)?;
        let peers = self.trust.peers();
        let peers = peers.iter().map(|(peer, connections)| ([("peer", peer.name.clone())], *connections as u64));
        gauges(&mut encoder, "peer_connections", "Connections with a trusted peer", peers)
    }
}

impl Asked {
    fn jobs(&self, encoder: &mut DescriptorEncoder) -> fmt::Result {
        let jobs = self.jobs.list();
        let counted = JobState::ALL.iter().map(|state| {
            let count = jobs.iter().filter(|job| job.state == *state).count();
            ([("state", state.name().to_owned())], count as u64)
        });
        gauges(encoder, "jobs", "Jobs known, by state", counted)
    }
}

fn relationships(encoder: &mut DescriptorEncoder, reports: &[RelationshipReport]) -> fmt::Result {
    let labels = |r: &RelationshipReport| [("vm", r.vm_name.clone()), ("leg", r.id.leg.to_string())];
    let each = |value: fn(&RelationshipReport) -> u64| reports.iter().map(move |r| (labels(r), value(r)));
    let state = each(|r| r.state.value().into());
    gauges(encoder, "relationship_state", "ReplicationState, as its number", state)?;
    let health = each(|r| r.health.value().into());
    gauges(encoder, "relationship_health", "0 not applicable, 1 ok, 2 warning, 3 critical", health)?;
    let link = each(|r| r.link.is_up.into());
    gauges(encoder, "relationship_link_up", "1 while a session with the other side is open", link)?;
    let points = each(|r| r.points.into());
    gauges(encoder, "relationship_points", "Recovery points kept here", points)?;
    let ages = reports.iter().filter_map(|r| r.rpo_actual.map(|age| (labels(r), age.0 as f64 / 1000.0)));
    gauges(encoder, "relationship_rpo_actual_seconds", "Age of the newest acknowledged data", ages)?;
    let targets = reports.iter().map(|r| (labels(r), r.settings.interval.0 as f64 / 1000.0));
    gauges(encoder, "relationship_interval_seconds", "Time between cuts that is asked for", targets)?;
    counters(encoder, "relationship_cycles", "Cycles acknowledged", each(|r| r.stats.successes))?;
    counters(encoder, "relationship_missed", "Intervals without an acknowledged cycle", each(|r| r.stats.misses))?;
    counters(encoder, "relationship_failures", "Attempts that failed", each(|r| r.stats.failures))?;
    counters(encoder, "relationship_sent_bytes", "Bytes sent", each(|r| r.stats.bytes_sent))
}

fn gauges<L, V>(
    encoder: &mut DescriptorEncoder,
    name: &str,
    help: &str,
    values: impl Iterator<Item = (L, V)>,
) -> fmt::Result
where
    L: EncodeLabelSet,
    ConstGauge<V>: EncodeMetric,
{
    let kind = prometheus_client::metrics::MetricType::Gauge;
    let mut family = encoder.encode_descriptor(name, help, None, kind)?;
    for (labels, value) in values {
        ConstGauge::new(value).encode(family.encode_family(&labels)?)?;
    }
    Ok(())
}

fn counters<L: EncodeLabelSet>(
    encoder: &mut DescriptorEncoder,
    name: &str,
    help: &str,
    values: impl Iterator<Item = (L, u64)>,
) -> fmt::Result {
    let kind = prometheus_client::metrics::MetricType::Counter;
    let mut family = encoder.encode_descriptor(name, help, None, kind)?;
    for (labels, value) in values {
        ConstCounter::new(value).encode(family.encode_family(&labels)?)?;
    }
    Ok(())
}
