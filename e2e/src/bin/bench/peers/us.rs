//! Ours: a daemon on each host, told through the command line.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use understudy_testkit::daemon::{Daemon, DaemonConfig};
use understudy_testkit::disk::{self, Format};
use understudy_testkit::guest::Guest;
use understudy_testkit::wait::wait_for;

use super::Contender;
use crate::lab::Lab;

/// As it stands in the tables.
pub const NAME: &str = "understudy";
/// The VM's name.
const VM: &str = "vm";
/// Where daemons listen, each in a namespace of its own.
const PORT: u16 = 7843;
/// For one cycle of some MiB.
const CYCLE_BOUND: Duration = Duration::from_secs(120);
/// Upkeep works step by step behind each cycle.
const UPKEEP_BOUND: Duration = Duration::from_secs(60);

/// Two daemons that trust each other.
#[derive(Debug)]
pub struct Hosts {
    /// Where the guest runs.
    pub primary: Daemon,
    /// Where its copy is.
    pub replica: Daemon,
}

impl Hosts {
    /// Starts both with nothing on them, and pairs them.
    pub fn start(lab: &Lab) -> Result<Self> {
        let start = |name: &str, host| -> Result<Daemon> {
            let config = DaemonConfig::new(name)?.on(host, PORT).allow("cannot be reached");
            let way_in = format!("{}:{PORT}", host.address());
            config.arguments(&["--name", name, "--advertise", &way_in]).start()
        };
        let hosts = Hosts { primary: start("primary", &lab.net.a)?, replica: start("replica", &lab.net.b)? };
        let invitation = hosts.replica.json(&["peer", "invite"])?;
        let token = invitation["token"].as_str().with_context(|| format!("no token in {invitation}"))?;
        hosts.primary.text(&["peer", "join", token])?;
        Ok(hosts)
    }

    /// Lists the guest and makes a relationship for it.
    pub fn add(&self, guest: &Guest, settings: &[&str]) -> Result<()> {
        let monitor = guest.config().product_socket();
        self.primary.text(&["vm", "add", VM, "--qmp", super::word(&monitor)?])?;
        let create = ["replication", "create", VM, "--to", "replica"];
        self.primary.text(&[&create, settings].concat()).map(drop)
    }

    /// As [`Hosts::add`], without the kernel our guests are booted from. With it, as large as half a small image, the first cut would
    /// bring files that belong to no disk, and that no other contender sends.
    pub fn add_disks_only(&self, guest: &Guest, settings: &[&str]) -> Result<()> {
        let monitor = guest.config().product_socket();
        let add = ["vm", "add", VM, "--qmp", super::word(&monitor)?];
        self.primary.text(&add)?;
        let shown = self.primary.json(&["vm", "show", VM])?;
        let definition = shown["definition"].as_str().with_context(|| format!("no definition in {shown}"))?;
        let mut definition: Value = serde_json::from_str(definition).context("the definition is no JSON")?;
        definition.as_object_mut().context("the definition is no object")?.remove("kernel");
        let file = self.primary.config().directory().join("definition.json");
        std::fs::write(&file, definition.to_string())?;
        self.primary.text(&["vm", "remove", VM])?;
        self.primary.text(&[&add[..], &["--definition", super::word(&file)?]].concat())?;
        let create = ["replication", "create", VM, "--to", "replica"];
        self.primary.text(&[&create, settings].concat()).map(drop)
    }

    /// Copies the whole disk, and waits until the other host has a whole, consistent state of it.
    pub fn copy(&self) -> Result<()> {
        self.primary.text(&["replication", "start", VM, "--wait"])?;
        wait_for("the first cut", CYCLE_BOUND, || Ok(self.newest()?.map(drop)))
    }

    /// The relationship as the primary sees it.
    pub fn status(&self) -> Result<Value> {
        self.primary.json(&["replication", "status", VM])
    }

    /// The number of the newest cut both sides have.
    pub fn newest(&self) -> Result<Option<u64>> {
        Ok(self.status()?["newest"]["number"].as_u64())
    }

    /// Takes tracking out of the guest and ends both daemons.
    pub fn stop(self) -> Result<()> {
        self.primary.text(&["replication", "remove", VM])?;
        let stopped = self.primary.stop();
        self.replica.stop()?;
        stopped.map(drop)
    }

    /// The directory of the one disk of the one VM on the replica.
    fn disk(&self) -> Result<PathBuf> {
        let storage = self.replica.config().storage();
        let entries = std::fs::read_dir(&storage).context("cannot list the replicas")?;
        let mut disks = entries.filter_map(|entry| Some(entry.ok()?.path().join("disk-0")));
        disks.find(|path| path.is_dir()).with_context(|| format!("no disk below {}", storage.display()))
    }

    /// The newest state: the newest run, or the base once all runs are in it.
    fn newest_file(&self) -> Result<(PathBuf, Format)> {
        let disk = self.disk()?;
        let entries = std::fs::read_dir(&disk).context("cannot list the replica's files")?;
        let mut runs: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
        runs.retain(|path| path.extension().is_some_and(|extension| extension == "qcow2"));
        runs.sort();
        Ok(runs.pop().map_or_else(|| (disk.join("base.raw"), Format::Raw), |run| (run, Format::Qcow2)))
    }
}

/// Ours as a contender.
#[derive(Debug)]
pub struct Us<'a> {
    lab: &'a Lab,
    hosts: Option<Hosts>,
    /// Turns are cycles, after a first copy that is not measured.
    in_cycles: bool,
}

impl<'a> Us<'a> {
    /// Full copies.
    pub fn new(lab: &'a Lab) -> Self {
        Us { lab, hosts: None, in_cycles: false }
    }

    /// What was written since a first copy.
    pub fn in_cycles(lab: &'a Lab) -> Self {
        Us { lab, hosts: None, in_cycles: true }
    }

    fn hosts(&self) -> Result<&Hosts> {
        self.hosts.as_ref().context("the daemons do not run")
    }

    /// Sends everything since the last cycle. The connection is made anew, which is in the figures.
    fn cycle(&self) -> Result<()> {
        let hosts = self.hosts()?;
        let before = hosts.newest()?;
        hosts.primary.text(&["replication", "resume", VM])?;
        wait_for("a cycle", CYCLE_BOUND, || Ok((hosts.newest()? > before).then_some(())))
    }
}

impl Contender for Us<'_> {
    fn name(&self) -> String {
        NAME.into()
    }

    fn prepare(&mut self, guest: &mut Guest) -> Result<()> {
        let hosts = Hosts::start(self.lab)?;
        // The longest there is: cycles come when the bench says so.
        hosts.add_disks_only(guest, &["--interval", "15m"])?;
        if self.in_cycles {
            hosts.copy()?;
        }
        self.hosts = Some(hosts);
        self.rest()
    }

    fn servers(&self) -> Vec<u32> {
        self.hosts.iter().flat_map(|hosts| [hosts.primary.id(), hosts.replica.id()]).collect()
    }

    fn run(&mut self, _guest: &mut Guest) -> Result<()> {
        if self.in_cycles { self.cycle() } else { self.hosts()?.copy() }
    }

    fn rest(&mut self) -> Result<()> {
        if self.in_cycles {
            self.hosts()?.primary.text(&["replication", "suspend", VM])?;
        }
        Ok(())
    }

    fn check(&mut self, original: &Path) -> Result<()> {
        let hosts = self.hosts()?;
        // Upkeep may take a run into the base while it is looked at; what it leaves must read the same.
        let mut said = String::new();
        let compared = wait_for("the replica to read as the original", UPKEEP_BOUND, || {
            let (file, format) = hosts.newest_file()?;
            match disk::assert_same((&file, format), (original, Format::Raw)) {
                Ok(()) => Ok(Some(())),
                Err(err) => {
                    said = format!("{err:#}");
                    ensure!(!file.exists(), said.clone());
                    Ok(None)
                }
            }
        });
        compared.with_context(|| said)
    }

    fn finish(&mut self, _guest: &mut Guest) -> Result<()> {
        self.hosts.take().map_or(Ok(()), Hosts::stop)
    }
}
