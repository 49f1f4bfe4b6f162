//! A guest under replication: what the tests of guests share.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use understudy_e2e::Pair;
use understudy_testkit::daemon::DaemonConfig;
use understudy_testkit::disk::{self, Format};
use understudy_testkit::guest::{Console, Guest, GuestConfig, GuestDisk, Verdict};
use understudy_testkit::wait::wait_for;

/// The name every guest goes by.
pub const NAME: &str = "web";
/// Size of each disk.
pub const DISK: u64 = 128 << 20;
/// How long a cycle, or a state, may take to come: retries are up to half a minute apart.
pub const BOUND: Duration = Duration::from_secs(90);

/// Two hosts, and what they do with one guest.
pub struct Protection {
    pub pair: Pair,
    uuid: String,
}

impl Protection {
    /// Two hosts, and a relationship for this VM that has not begun.
    pub fn create(guest: &GuestConfig, prepare: impl Fn(DaemonConfig) -> DaemonConfig) -> Result<Self> {
        Self::create_through(guest, &guest.product_socket(), prepare)
    }

    /// As [`Protection::create`], with the monitor at another place.
    pub fn create_through(
        guest: &GuestConfig,
        monitor: &Path,
        prepare: impl Fn(DaemonConfig) -> DaemonConfig,
    ) -> Result<Self> {
        let pair = Pair::start_with(prepare)?;
        pair.primary.text(&["vm", "add", NAME, "--qmp", &monitor.display().to_string()])?;
        let create = "--to replica --interval 1s --points 8 --point-every cycle".split(' ');
        let words: Vec<&str> = ["replication", "create", NAME].into_iter().chain(create).collect();
        pair.primary.text(&words)?;
        Ok(Self { pair, uuid: guest.uuid().to_owned() })
    }

    /// Two hosts, and the VM's first copy made.
    pub fn start(guest: &GuestConfig, prepare: impl Fn(DaemonConfig) -> DaemonConfig) -> Result<Self> {
        let protection = Self::create(guest, prepare)?;
        protection.begin()?;
        Ok(protection)
    }

    /// Makes the first copy.
    pub fn begin(&self) -> Result<()> {
        self.pair.primary.text(&["replication", "start", NAME, "--wait"]).map(drop)
    }

    /// The primary's view of the relationship.
    pub fn status(&self) -> Result<Value> {
        self.pair.primary.json(&["replication", "status", NAME])
    }

    /// Number of the newest cut that both sides have.
    pub fn newest(&self) -> Result<u64> {
        let status = self.status()?;
        status["newest"]["number"].as_u64().with_context(|| format!("no cut yet: {status}"))
    }

    /// Waits until the replica holds a cut that was taken after this call. One may be under way; the one after it began
    /// later.
    pub fn until_cut(&self) -> Result<u64> {
        let mut newest = self.newest()?;
        for _ in 0..2 {
            newest = wait_for("the next cut", BOUND, || {
                let status = self.status()?;
                if status["state"] != "replicating" {
                    bail!("replication is {}: {}", status["state"], status["failure"]);
                }
                Ok(status["newest"]["number"].as_u64().filter(|number| *number != newest))
            })?;
        }
        Ok(newest)
    }

    /// Waits until the relationship is in this state, and gives the cause it tells.
    pub fn until_state(&self, state: &str) -> Result<String> {
        let found = wait_for(&format!("replication to be {state}"), BOUND, || {
            let status = self.status()?;
            Ok((status["state"] == state).then(|| status["failure"].as_str().unwrap_or_default().to_owned()))
        });
        found.with_context(|| format!("{:?}", self.status()))
    }

    /// Waits until the last failure contains this text.
    pub fn until_failure(&self, text: &str) -> Result<()> {
        let found = wait_for(&format!("a failure that says {text:?}"), BOUND, || {
            let status = self.status()?;
            Ok(status["failure"].as_str().is_some_and(|failure| failure.contains(text)).then_some(()))
        });
        found.with_context(|| format!("{:?}", self.status()))
    }

    /// Bytes that each acknowledged cycle after this cut carried.
    pub fn changed_after(&self, cut: u64) -> Result<Vec<u64>> {
        let history = self.pair.primary.json(&["replication", "history", NAME, "--count", "1000"])?;
        let cycles = history.as_array().with_context(|| format!("no list: {history}"))?;
        let cycles = cycles.iter().filter(|cycle| cycle["cut"].as_u64() > Some(cut));
        Ok(cycles.filter_map(|cycle| cycle["changed_bytes"].as_u64()).collect())
    }

    /// Fails unless the newest state on the replica is what the images hold. Nothing may be written meanwhile.
    pub fn assert_equal(&self, disks: &[GuestDisk]) -> Result<()> {
        let place = self.pair.replica.config().storage().join(&self.uuid);
        for (number, disk) in disks.iter().enumerate() {
            let place = place.join(format!("disk-{number}"));
            wait_for("runs that are not merged while they are read", BOUND, || compare(disk, &place))?;
        }
        Ok(())
    }

    /// Takes over on the replica, boots the guest there and lets it read its journal back.
    pub fn fail_over(&self, guest: &GuestConfig) -> Result<Verdict> {
        let replica = &self.pair.replica;
        replica.text(&["failover", "start", NAME, "--power-on", "--yes"])?;
        let status = replica.json(&["replication", "status", NAME])?;
        let monitor = status["failover"]["monitor"].as_str().with_context(|| format!("no monitor in {status}"))?;
        let mut console = Console::connect(&PathBuf::from(monitor).with_file_name("console.sock"), BOUND)?;
        console.wait_for("GUEST-READY", BOUND)?;
        let disks: Vec<String> = guest.disks().iter().map(GuestDisk::in_guest).collect();
        let verdict = console.verify(&disks.join(" "), BOUND)?;
        drop(console);
        replica.text(&["failover", "revert", NAME, "--yes"])?;
        Ok(verdict)
    }
}

/// Compares an image with the topmost one of a replica's disk. None if the replica merged its files meanwhile.
fn compare(disk: &GuestDisk, place: &Path) -> Result<Option<()>> {
    let before = files(place)?;
    let (newest, format) = newest_file(place)?;
    let compared = disk::check_chain(&newest, format)
        .and_then(|()| disk::assert_same((&disk.path, disk.format), (&newest, format)));
    match compared {
        Err(_) if before != files(place)? => Ok(None),
        compared => compared.map(Some),
    }
}

/// The files of a replica's disk.
fn files(place: &Path) -> Result<BTreeSet<PathBuf>> {
    let entries = std::fs::read_dir(place).with_context(|| format!("no directory {}", place.display()))?;
    entries.map(|entry| Ok(entry?.path())).collect()
}

/// The topmost image of a replica's disk.
fn newest_file(place: &Path) -> Result<(PathBuf, Format)> {
    let files = files(place)?;
    let runs = files.iter().filter(|path| path.extension().is_some_and(|word| word == "qcow2"));
    Ok(match runs.max() {
        Some(run) => (run.clone(), Format::Qcow2),
        None => (place.join("base.raw"), Format::Raw),
    })
}

/// Fails unless the disks are a state the guest passed through, with everything up to record `at_least`.
pub fn assert_sound(verdict: &Verdict, at_least: u64) -> Result<()> {
    ensure!(verdict.consistent, "no state the guest passed through: {verdict:?}");
    let bad = verdict.missing + verdict.torn + verdict.order + verdict.strangers;
    ensure!(bad == 0, "the journal is damaged: {verdict:?}");
    ensure!(verdict.last.number >= at_least, "record {at_least} is not there: {verdict:?}");
    Ok(())
}

/// Says how a disk is attached.
pub type Attach = fn(GuestDisk) -> GuestDisk;

/// A guest with these disks, named `a`, `b`, ….
pub fn guest(disks: &[(Format, Attach)]) -> Result<GuestConfig> {
    let mut config = GuestConfig::new()?.name(NAME);
    for ((format, attach), serial) in disks.iter().zip(["a", "b", "c"]) {
        let path = disk::create(&config.directory().join(serial), *format, DISK)?;
        config = config.disk(attach(GuestDisk::new(serial, path, *format)));
    }
    Ok(config)
}

/// As it is: virtio-blk, served by the main loop.
pub fn plain(disk: GuestDisk) -> GuestDisk {
    disk
}

/// Lets a journal go on, with some records more.
pub fn go_on(guest: &mut Guest) -> Result<u64> {
    Ok(guest.start_journal("--rate 200")?.number)
}
