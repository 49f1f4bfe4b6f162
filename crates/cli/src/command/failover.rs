//! `understudy failover`: shows what will happen, asks, then does it.

use std::io::{BufRead, IsTerminal, Write};

use anyhow::Context;
use understudy_daemon::faces::rest::types;

use super::Session;
use super::replication::RELATIONSHIPS;
use crate::arguments::Failover;
use crate::client::{path, read};
use crate::failure::Failure;
use crate::show;

impl Session {
    pub(super) async fn failover(&self, verb: Failover) -> Result<(), Failure> {
        match verb {
            Failover::Start { name, point, power_on, yes, dry_run } => {
                let plan = self.plan(&name, point.as_deref(), power_on).await?;
                if dry_run {
                    println!("{plan}");
                    return Ok(());
                }
                confirm(&plan, yes)?;
                let request = types::FailoverStart { point, power_on };
                let answer = self.client.post(&path(RELATIONSHIPS, &name, "/failover/start"), &request).await?;
                let runs = if power_on { "and runs on this host" } else { "and can be started on this host" };
                let said = format!(
                    "VM {name} is failed over {runs}. Make it final with `understudy failover commit {name}`, or undo it \
                     with `understudy failover revert {name}`."
                );
                self.carry(answer, &said).await
            }
            Failover::Revert { name, yes } => {
                let plan = format!("VM {name} on this host is ended, and what it wrote since the failover is lost.");
                confirm(&plan, yes)?;
                let answer = self.client.act(&path(RELATIONSHIPS, &name, "/failover/revert")).await?;
                self.carry(answer, &format!("The failover of VM {name} is undone; replication can go on.")).await
            }
            Failover::Commit { name, yes } => {
                let plan = format!(
                    "The failover of VM {name} becomes final: it cannot be undone, and its other recovery points go."
                );
                confirm(&plan, yes)?;
                let answer = self.client.act(&path(RELATIONSHIPS, &name, "/failover/commit")).await?;
                self.carry(answer, &format!("The failover of VM {name} is final.")).await
            }
        }
    }

    /// What a failover would do, in words.
    async fn plan(&self, name: &str, point: Option<&str>, power_on: bool) -> Result<String, Failure> {
        let now: types::Relationship = read(&self.client.get(&path(RELATIONSHIPS, name, "")).await?)?;
        let points: Vec<types::Point> = read(&self.client.get(&path(RELATIONSHIPS, name, "/points")).await?)?;
        let chosen = match point {
            Some(id) => points.iter().find(|p| p.id == id),
            None => points.iter().find(|p| p.is_newest),
        };
        // A point that is not there is for the service to refuse, with its own words.
        let from = match chosen {
            Some(p) if p.is_newest => format!("its newest state, of {}", show::time(&p.cut.taken_at)),
            Some(p) => format!("the {} recovery point of {}", p.consistency, show::time(&p.cut.taken_at)),
            None => "what was asked for".to_owned(),
        };
        let started = if power_on { "and started" } else { "and not started" };
        let peer = now.peer_name.unwrap_or_else(|| show::short(&now.peer));
        Ok(format!(
            "VM {} will be made from {from} on this host, {started}.\n\
             Everything written on {peer} after that is not in it. {peer} can send no more changes from then on.\n\
             Make sure that the VM no longer runs there.",
            now.vm_name
        ))
    }
}

/// Asks, where there is somebody to ask. A script means what it says.
fn confirm(plan: &str, yes: bool) -> Result<(), Failure> {
    if yes || !std::io::stdin().is_terminal() {
        return Ok(());
    }
    eprint!("{plan}\nGo on? [y/N] ");
    std::io::stderr().flush().context("cannot ask")?;
    let mut answer = String::new();
    std::io::stdin().lock().read_line(&mut answer).context("cannot read the answer")?;
    match answer.trim() {
        "y" | "Y" | "yes" => Ok(()),
        _ => Err(Failure::NotConfirmed),
    }
}
