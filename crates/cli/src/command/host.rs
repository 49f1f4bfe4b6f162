//! `understudy host`

use understudy_daemon::faces::rest::types;

use super::Session;
use crate::arguments::Host;
use crate::client::read;
use crate::failure::Failure;
use crate::show;

impl Session {
    pub(super) async fn host(&self, verb: Host) -> Result<(), Failure> {
        match verb {
            Host::Show => {
                let answer = self.client.get("/api/v1/host").await?;
                self.tell(&answer, || {
                    show::details(&lines(&read(&answer)?));
                    Ok(())
                })
            }
        }
    }
}

fn lines(host: &types::Host) -> Vec<(&'static str, String)> {
    let storage = match host.storage_free_bytes {
        Some(free) => format!("{}, {} free", host.storage_dir, show::bytes(free)),
        None => host.storage_dir.clone(),
    };
    let holds = [
        show::count(host.vms, "VM"),
        show::count(host.relationships, "relationship"),
        show::count(host.peers, "peer"),
        format!("{} under way", show::count(host.jobs_open, "job")),
    ];
    let audit = host.audit_fault.clone().unwrap_or_else(|| "whole".to_owned());
    vec![
        ("Name", host.name.clone()),
        ("Identity", host.id.clone()),
        ("Version", host.version.clone()),
        ("Up for", show::span(host.uptime_ms)),
        ("Listens on", host.listen.clone()),
        ("Addresses", host.addresses.join("\n")),
        ("Congestion", host.congestion_control.clone()),
        ("State", host.state_dir.clone()),
        ("Storage", storage),
        ("Holds", holds.join(", ")),
        ("Audit log", audit),
    ]
}
