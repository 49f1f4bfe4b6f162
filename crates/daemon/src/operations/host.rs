//! Shows this host.

use understudy_model::{Millis, Refusal};

use super::{About, Operations, Permit, View};

/// This host at one moment.
#[derive(Debug, Clone)]
pub struct HostReport {
    /// What is known from its start.
    pub about: About,
    /// Time since the start.
    pub uptime: Millis,
    /// Addresses in invitations.
    pub addresses: Vec<String>,
    /// Bytes free where replicas are stored; `None` if that cannot be told.
    pub storage_free: Option<u64>,
    /// VMs listed.
    pub vms: usize,
    /// Hosts trusted.
    pub peers: usize,
    /// Relationships recorded.
    pub relationships: usize,
    /// Jobs under way.
    pub jobs_open: usize,
}

impl Operations {
    /// This host.
    pub async fn host_show(&self, _permit: &Permit<View>) -> Result<HostReport, Refusal> {
        let catalogue = &self.parts.catalogue;
        let storage = self.parts.about.storage.clone();
        let free = tokio::task::spawn_blocking(move || free_space(&storage)).await.ok().flatten();
        Ok(HostReport {
            about: self.parts.about.clone(),
            uptime: self.parts.clock.steady() - self.parts.about.started_at,
            addresses: self.parts.pairing.card().addresses.clone(),
            storage_free: free,
            vms: catalogue.vms().await.map_err(|err| err.refusal())?.len(),
            peers: self.parts.trust.peers().len(),
            relationships: catalogue.relationships().await.map_err(|err| err.refusal())?.len(),
            jobs_open: self.parts.jobs.list().iter().filter(|job| !job.state.is_terminal()).count(),
        })
    }
}

fn free_space(path: &std::path::Path) -> Option<u64> {
    let stat = rustix::fs::statvfs(path).ok()?;
    stat.f_bavail.checked_mul(stat.f_frsize)
}
