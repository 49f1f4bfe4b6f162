//! `understudy replication`

use std::io::{IsTerminal, Write};
use std::time::Duration;

use serde_json::Value;
use understudy_daemon::faces::rest::types;

use super::Session;
use crate::arguments::{AutoResync, Create, Modify, PointEvery, Replication};
use crate::client::{path, read};
use crate::failure::Failure;
use crate::{follow, show};

pub(super) const RELATIONSHIPS: &str = "/api/v1/relationships";

/// How often `--watch` looks.
const WATCH_EVERY: Duration = Duration::from_secs(1);

impl Session {
    pub(super) async fn replication(&self, verb: Replication) -> Result<(), Failure> {
        match verb {
            Replication::Create(create) => self.replication_create(create).await,
            Replication::Start { name, kind, at, wait } => {
                let request = types::RelationshipStart {
                    initial_replication_type: Some(kind.value()),
                    export_location: None,
                    start_time: at,
                };
                self.replication_start(&name, &request, wait).await
            }
            Replication::Seed { name, disk, format, take } => self.replication_seed(&name, disk, format, take).await,
            Replication::Resync { name, at, wait } => self.replication_resync(&name, at, wait).await,
            Replication::Status { name, watch: true } => self.watch(name.as_deref()).await,
            Replication::Status { name, watch: false } => {
                let answer = self.client.get(&status_path(name.as_deref())).await?;
                self.tell(&answer, || {
                    print!("{}", status_text(&answer)?);
                    Ok(())
                })
            }
            Replication::History { name, count } => self.history(&name, count).await,
            Replication::Statistics { name, reset: true } => {
                self.act(&name, "statistics/reset", "is counted from now on").await
            }
            Replication::Statistics { name, reset: false } => self.statistics(&name).await,
            Replication::Modify(modify) => self.replication_modify(modify).await,
            Replication::Suspend { name } => self.act(&name, "suspend", "is paused").await,
            Replication::Resume { name } => self.act(&name, "resume", "goes on").await,
            Replication::Stop { name } => self.act(&name, "stop", "is where it was before what was stopped now").await,
            Replication::Remove { name } => {
                let answer = self.client.delete(&path(RELATIONSHIPS, &name, "")).await?;
                self.carry(answer, &format!("VM {name} is no longer replicated by this host.")).await
            }
        }
    }

    async fn replication_create(&self, create: Create) -> Result<(), Failure> {
        let request = types::RelationshipCreate {
            vm: create.name.clone(),
            peer: create.to.clone(),
            interval_ms: create.interval.map(|span| span.0.0),
            points: create.points,
            point_every_ms: create.point_every.map(PointEvery::ms),
            application_consistent_every_ms: None,
            compression: create.no_compression.then_some(false),
            excluded_disks: create.exclude_disk,
            auto_resync: create.auto_resync.and_then(window),
        };
        let answer = self.client.post(RELATIONSHIPS, &request).await?;
        let said = format!(
            "VM {0} is to be replicated to {1}. Begin with: understudy replication start {0}",
            create.name, create.to
        );
        self.carry(answer, &said).await
    }

    /// One image after the other: each is there before the next is begun.
    async fn replication_seed(
        &self,
        name: &str,
        disks: Vec<(String, String)>,
        format: Option<String>,
        take: bool,
    ) -> Result<(), Failure> {
        for (disk, path_of_image) in disks {
            let said = format!("{path_of_image} is in place for {disk} of VM {name}.");
            let request = types::RelationshipSeed { disk, path: path_of_image, format: format.clone(), take };
            let answer = self.client.post(&path(RELATIONSHIPS, name, "/seed"), &request).await?;
            self.carry(answer, &said).await?;
        }
        Ok(())
    }

    async fn replication_resync(&self, name: &str, at: Option<String>, wait: bool) -> Result<(), Failure> {
        let request = types::RelationshipResync { start_time: at };
        let mut answer = self.client.post(&path(RELATIONSHIPS, name, "/resync"), &request).await?;
        let id = answer["job"]["id"].as_str().unwrap_or_default().to_owned();
        if wait && !id.is_empty() {
            answer["job"] = follow::job_and_transfer(&self.client, &id, self.json).await?;
        }
        self.tell(&answer, || {
            if wait {
                println!("Both sides of VM {name} are equal again; replication goes on.");
            } else {
                println!(
                    "Job {id} compares both sides of VM {name}{}. Follow it: understudy job wait {id}",
                    begins(&answer)
                );
            }
            Ok(())
        })
    }

    async fn replication_start(
        &self,
        name: &str,
        request: &types::RelationshipStart,
        wait: bool,
    ) -> Result<(), Failure> {
        let mut answer = self.client.post(&path(RELATIONSHIPS, name, "/start"), request).await?;
        let id = answer["job"]["id"].as_str().unwrap_or_default().to_owned();
        if wait && !id.is_empty() {
            answer["job"] = follow::job_and_transfer(&self.client, &id, self.json).await?;
        }
        self.tell(&answer, || {
            if wait {
                println!("The initial copy of VM {name} is complete; replication goes on.");
            } else {
                println!("Job {id} copies VM {name}{}. Follow it: understudy job wait {id}", begins(&answer));
            }
            Ok(())
        })
    }

    async fn replication_modify(&self, modify: Modify) -> Result<(), Failure> {
        let name = &modify.name;
        let now: types::Relationship = read(&self.client.get(&path(RELATIONSHIPS, name, "")).await?)?;
        let old = now.settings;
        let request = types::SettingsUpdate {
            interval_ms: modify.interval.map_or(old.interval_ms, |span| span.0.0),
            points: modify.points.unwrap_or(old.points),
            point_every_ms: modify.point_every.map_or(old.point_every_ms, PointEvery::ms),
            application_consistent_every_ms: old.application_consistent_every_ms,
            compression: modify.compression.unwrap_or(old.compression),
            excluded_disks: old.excluded_disks,
            auto_resync: modify.auto_resync.map_or(old.auto_resync, window),
        };
        let answer = self.client.put(&path(RELATIONSHIPS, name, "/settings"), &request).await?;
        self.carry(answer, &format!("The settings of VM {name} are changed.")).await
    }

    async fn act(&self, name: &str, verb: &str, said: &str) -> Result<(), Failure> {
        let answer = self.client.act(&path(RELATIONSHIPS, name, &format!("/{verb}"))).await?;
        self.carry(answer, &format!("Replication of VM {name} {said}.")).await
    }

    async fn statistics(&self, name: &str) -> Result<(), Failure> {
        let answer = self.client.get(&path(RELATIONSHIPS, name, "/statistics")).await?;
        self.tell(&answer, || {
            let s: types::StatisticsReport = read(&answer)?;
            let c = &s.counters;
            let span = |ms: Option<u64>| show::or_dash(ms.map(show::span));
            let lines = [
                ("Since", show::time(&s.since)),
                ("Health", s.health.clone()),
                ("Cycles", format!("{} acknowledged, {} missed", c.cycles, c.missed)),
                ("Failures", format!("{}, {} of them of the network", c.failures, c.network_failures)),
                ("Sent", format!("{}, at most {} in a cycle", show::bytes(c.bytes_sent), show::bytes(c.bytes_max))),
                (
                    "Cut to acknowledged",
                    format!("{} on average, {} at most", show::span(c.latency_mean_ms), show::span(c.latency_max_ms)),
                ),
                (
                    "Age of the replica",
                    format!(
                        "half of {} cycles at most {}, 99 % {}, all {}",
                        s.ages,
                        span(s.rpo_p50_ms),
                        span(s.rpo_p99_ms),
                        span(s.rpo_max_ms)
                    ),
                ),
            ];
            print!("{}", show::details_text(&lines));
            Ok(())
        })
    }

    async fn history(&self, name: &str, count: u32) -> Result<(), Failure> {
        let answer = self.client.get(&path(RELATIONSHIPS, name, &format!("/cycles?count={count}"))).await?;
        self.tell(&answer, || {
            let cycles: Vec<types::Cycle> = read(&answer)?;
            if cycles.is_empty() {
                println!("No cycle has ended yet.");
                return Ok(());
            }
            let row = |c: types::Cycle| {
                let (changed, sent) = (show::bytes(c.changed_bytes), show::bytes(c.sent_bytes));
                vec![c.cut.to_string(), show::time(&c.taken_at), c.outcome, c.consistency, changed, sent, c.detail]
            };
            let header = ["CUT", "TAKEN", "OUTCOME", "CONSISTENCY", "CHANGED", "SENT", "REMARK"];
            show::table(&header, cycles.into_iter().map(row).collect());
            Ok(())
        })
    }

    /// Shows the status again whenever it changed: in place on a terminal, one after the other elsewhere.
    async fn watch(&self, name: Option<&str>) -> Result<(), Failure> {
        let path = status_path(name);
        let is_terminal = std::io::stdout().is_terminal();
        let mut last = String::new();
        loop {
            let answer = self.client.get(&path).await?;
            let text = if self.json { format!("{answer}\n") } else { status_text(&answer)? };
            if text != last {
                let clear = if is_terminal && !self.json { "\u{1b}[H\u{1b}[2J" } else { "" };
                let mut out = std::io::stdout().lock();
                // Whoever reads may go away; then there is nobody to show it to.
                if write!(out, "{clear}{text}").and_then(|()| out.flush()).is_err() {
                    return Ok(());
                }
                last = text;
            }
            tokio::time::sleep(WATCH_EVERY).await;
        }
    }
}

fn window(hours: AutoResync) -> Option<types::ResyncWindow> {
    hours.0.map(|(start_ms, end_ms)| types::ResyncWindow { start_ms, end_ms })
}

/// When a job that does not begin at once begins.
fn begins(answer: &Value) -> String {
    let at = answer["job"]["scheduled_at"].as_str();
    at.map(|at| format!(", from {} on", show::time(at))).unwrap_or_default()
}

fn status_path(name: Option<&str>) -> String {
    name.map_or(RELATIONSHIPS.to_owned(), |name| path(RELATIONSHIPS, name, ""))
}

fn status_text(answer: &Value) -> Result<String, Failure> {
    if answer.is_array() {
        return Ok(all_text(read(answer)?));
    }
    Ok(show::details_text(&lines(&read(answer)?)))
}

fn all_text(all: Vec<types::Relationship>) -> String {
    if all.is_empty() {
        return "No VM is replicated from or to this host.\n".to_owned();
    }
    let row = |r: types::Relationship| {
        let direction = if r.side == "primary" { "to" } else { "from" };
        let peer = r.peer_name.clone().unwrap_or_else(|| format!("{} (not trusted)", show::short(&r.peer)));
        let age = show::or_dash(r.rpo_actual_ms.map(show::span));
        let (state, health, activity) = (r.state.clone(), r.health.clone(), activity(&r));
        vec![r.vm_name, format!("{direction} {peer}"), state, health, age, activity]
    };
    show::table_text(&["VM", "PEER", "STATE", "HEALTH", "AGE", "NOW"], all.into_iter().map(row).collect())
}

fn activity(r: &types::Relationship) -> String {
    if r.progress_bytes_total == 0 {
        return r.activity.clone();
    }
    let percent = u128::from(r.progress_bytes) * 100 / u128::from(r.progress_bytes_total);
    format!("{} {percent} %", r.activity)
}

fn lines(r: &types::Relationship) -> Vec<(&'static str, String)> {
    let peer = match &r.peer_name {
        Some(name) => format!("{name} ({})", show::short(&r.peer)),
        None => format!("{} (not trusted)", show::short(&r.peer)),
    };
    let role = if r.side == "primary" { "Replicated to" } else { "Replica from" };
    let mut lines = vec![("VM", r.vm_name.clone()), ("Identity", r.vm.clone()), (role, peer)];
    lines.push(("State", r.state.clone()));
    lines.push(("Health", r.health.clone()));
    if !r.issues.is_empty() {
        let issues: Vec<String> = r.issues.iter().map(|i| format!("{}: {}", i.health, i.text)).collect();
        lines.push(("Because", issues.join("\n")));
    }
    lines.push(("Now", activity(r)));
    lines.extend(r.scheduled_at.as_ref().map(|at| ("Begins", show::time(at))));
    if let Some(cut) = &r.newest {
        let age = r.rpo_actual_ms.map(|ms| format!(", {} old", show::span(ms))).unwrap_or_default();
        lines.push(("Newest cut", format!("{} of {}{age}", cut.number, show::time(&cut.taken_at))));
    }
    if let Some(failover) = &r.failover {
        let runs = if failover.is_running { "the VM runs here" } else { "the VM does not run" };
        let of = show::time(&failover.cut.taken_at);
        lines.push(("Failed over", format!("to cut {} of {of} ({}); {runs}", failover.cut.number, failover.kind)));
        lines.extend(failover.monitor.clone().map(|monitor| ("Monitor", monitor)));
    }
    lines.push(("Interval", show::span(r.settings.interval_ms)));
    lines.push(("Points", points(r)));
    lines.push(("Connection", link(&r.link)));
    let s = &r.statistics;
    let sent = format!("{} acknowledged, {} missed, {} sent", s.cycles, s.missed, show::bytes(s.bytes_sent));
    lines.push(("Cycles", sent));
    lines
}

fn points(r: &types::Relationship) -> String {
    let every = match r.settings.point_every_ms {
        0 => "of each cycle".to_owned(),
        ms => format!("one every {}", show::span(ms)),
    };
    let asked = match r.settings.points {
        0 => "the newest state only".to_owned(),
        n => format!("{n} beside the newest state, {every}"),
    };
    if r.side == "replica" { format!("{asked}; {} kept now", r.points) } else { asked }
}

fn link(link: &types::Link) -> String {
    if !link.is_up {
        return "none".to_owned();
    }
    let with = link.congestion_control.as_ref().map(|cc| format!(" ({cc})")).unwrap_or_default();
    let to = link.address.as_ref().map(|address| format!(" with {address}")).unwrap_or_default();
    format!("{}{to}{with}", show::count(link.connections.into(), "connection"))
}
