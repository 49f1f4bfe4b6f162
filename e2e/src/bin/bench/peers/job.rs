//! QEMU's own incremental backup: a dirty bitmap and a `blockdev-backup` job that writes to `qemu-nbd` on the other host, over TLS.
//! It is what can be had from QEMU without another program, and what others build on.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::json;
use understudy_testkit::guest::Guest;
use understudy_testkit::wait::wait_for;

use super::nbd::{self, EXPORT, PORT, Server};
use super::{Contender, same, sync};
use crate::lab::Lab;

const BITMAP: &str = "bench";
const JOB: &str = "bench-job";
const JOB_BOUND: Duration = Duration::from_secs(120);

/// The job, after a first copy that is not measured.
#[derive(Debug)]
pub struct BackupJob<'a> {
    lab: &'a Lab,
    original: PathBuf,
    target: PathBuf,
    server: Option<Server>,
}

impl<'a> BackupJob<'a> {
    /// With its server yet to be started.
    pub fn new(lab: &'a Lab, original: &Path) -> Result<Self> {
        Ok(BackupJob { lab, original: original.into(), target: lab.path("job-target.raw"), server: None })
    }

    fn wait(guest: &mut Guest) -> Result<()> {
        let job = wait_for("the backup job", JOB_BOUND, || {
            let jobs = guest.qmp().execute("query-jobs", json!({}))?;
            let job = jobs.as_array().and_then(|jobs| jobs.iter().find(|job| job["id"] == JOB)).cloned();
            Ok(job.filter(|job| job["status"] == "concluded"))
        })?;
        guest.qmp().execute("job-dismiss", json!({"id": JOB}))?;
        match job["error"].as_str() {
            Some(error) => bail!("the backup job failed: {error}"),
            None => Ok(()),
        }
    }
}

impl Contender for BackupJob<'_> {
    fn name(&self) -> String {
        "blockdev-backup, TLS".into()
    }

    fn prepare(&mut self, guest: &mut Guest) -> Result<()> {
        std::fs::copy(&self.original, &self.target).context("cannot make a first copy")?;
        self.server = Some(Server::start(self.lab, &self.target)?);
        let qmp = guest.qmp();
        qmp.execute("block-dirty-bitmap-add", json!({"node": "disk0", "name": BITMAP}))?;
        qmp.execute("object-add", nbd::client_credentials_object(self.lab)?)?;
        let server = json!({"type": "inet", "host": self.lab.net.b.address(), "port": PORT.to_string()});
        let target = json!({
            "driver": "nbd", "node-name": "bench-target", "server": server, "export": EXPORT, "tls-creds": "tls",
        });
        qmp.execute("blockdev-add", target).map(drop)
    }

    fn servers(&self) -> Vec<u32> {
        self.server.iter().map(|server| server.process.id()).collect()
    }

    fn run(&mut self, guest: &mut Guest) -> Result<()> {
        let job = json!({
            "job-id": JOB, "device": "disk0", "target": "bench-target", "sync": "incremental", "bitmap": BITMAP,
            "auto-dismiss": false,
        });
        guest.qmp().execute("blockdev-backup", job)?;
        Self::wait(guest)?;
        sync(&self.target)
    }

    fn check(&mut self, original: &Path) -> Result<()> {
        same(&self.target, original)
    }

    fn finish(&mut self, guest: &mut Guest) -> Result<()> {
        let qmp = guest.qmp();
        qmp.execute("blockdev-del", json!({"node-name": "bench-target"}))?;
        qmp.execute("object-del", json!({"id": "tls"}))?;
        qmp.execute("block-dirty-bitmap-remove", json!({"node": "disk0", "name": BITMAP}))?;
        self.server = None;
        std::fs::remove_file(&self.target).context("cannot remove the target")
    }
}
