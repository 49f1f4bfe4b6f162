//! The steps every story of a replicated VM is made of.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use understudy_testkit::disk;
use understudy_testkit::guest::{Ack, Console, Guest, Qmp, Verdict};
use understudy_testkit::wait;

use crate::{Pair, Site};

/// How long anything may take that is not a guest's boot: minutes, because machines of tests are slow and shared.
pub const PATIENCE: Duration = Duration::from_secs(120);
/// How long a guest may take to boot, under emulation on a busy machine.
pub const BOOT: Duration = Duration::from_secs(90);

/// What a host tells of a VM's replication.
pub fn status(site: &Site, vm: &str) -> Result<Value> {
    site.json(&["replication", "status", vm])
}

/// The number of the newest cut that is on the replica, as far as this host knows.
pub fn newest(site: &Site, vm: &str) -> Result<Option<u64>> {
    Ok(status(site, vm)?["newest"]["number"].as_u64())
}

/// Waits until a host tells this state.
pub fn wait_for_state(site: &Site, vm: &str, state: &str) -> Result<Value> {
    let mut last = Value::Null;
    let found = wait::wait_for(&format!("{vm} to be {state} on {}", site.name()), PATIENCE, || {
        last = status(site, vm)?;
        Ok((last["state"] == state).then(|| last.clone()))
    });
    found.with_context(|| format!("the last status was {last}"))
}

impl Pair {
    /// Makes a guest of the primary known, replicates it to the replica and waits for the end of the copy.
    pub fn replicate(&self, guest: &Guest, vm: &str, options: &[&str]) -> Result<()> {
        self.relate(guest, vm, options)?;
        self.primary.text(&["replication", "start", vm, "--wait"]).map(drop)
    }

    /// As [`Pair::replicate`], without starting anything.
    pub fn relate(&self, guest: &Guest, vm: &str, options: &[&str]) -> Result<()> {
        let socket = guest.config().product_socket().display().to_string();
        self.primary.text(&["vm", "add", vm, "--qmp", &socket])?;
        let words = [&["replication", "create", vm, "--to", "replica"], options].concat();
        self.primary.text(&words).map(drop)
    }

    /// Waits until everything the guest has written up to now is on the replica, and gives the cut that holds it.
    ///
    /// The cut that is being taken may be older than the call; the one after it is not.
    pub fn wait_until_caught_up(&self, vm: &str) -> Result<u64> {
        let before = newest(&self.primary, vm)?.unwrap_or(0);
        self.wait_for_cut(vm, before + 2)
    }

    /// Waits until this cut or a later one is on the replica.
    pub fn wait_for_cut(&self, vm: &str, number: u64) -> Result<u64> {
        let mut last = Value::Null;
        let found = wait::wait_for(&format!("cut {number} of {vm}"), PATIENCE, || {
            last = status(&self.primary, vm)?;
            Ok(last["newest"]["number"].as_u64().filter(|newest| *newest >= number))
        });
        found.with_context(|| format!("the last status was {last}"))
    }

    /// Fails the VM over on the replica and boots it there.
    pub fn take_over(&self, vm: &str) -> Result<TakenOver<'_>> {
        self.take_over_at(vm, &[])
    }

    /// As [`Pair::take_over`], with more to say about the failover.
    pub fn take_over_at(&self, vm: &str, options: &[&str]) -> Result<TakenOver<'_>> {
        let words = [&["failover", "start", vm, "--power-on", "--yes"], options].concat();
        self.replica.text(&words)?;
        let status = status(&self.replica, vm)?;
        let monitor = status["failover"]["monitor"].as_str().with_context(|| format!("no monitor in {status}"))?;
        Ok(TakenOver { site: &self.replica, vm: vm.to_owned(), monitor: PathBuf::from(monitor) })
    }
}

/// A VM that runs on the replica. It is ended when this goes.
#[derive(Debug)]
pub struct TakenOver<'a> {
    site: &'a Site,
    vm: String,
    monitor: PathBuf,
}

impl TakenOver<'_> {
    /// Waits until the guest is up.
    pub fn console(&self) -> Result<Console> {
        let mut console = Console::connect(&self.monitor.with_file_name("console.sock"), BOOT)?;
        console.wait_for("GUEST-READY", BOOT)?;
        // The prompt comes right after; a first command that does nothing waits for it.
        console.run("true", BOOT)?;
        Ok(console)
    }

    /// Lets the guest read its journal back from these disks, which must be a state it passed through, with everything up to
    /// `promised` in it.
    pub fn verify(&self, disks: &str, promised: Ack) -> Result<Verdict> {
        let verdict = self.console()?.verify(disks, BOOT)?;
        ensure!(verdict.consistent, "the disks are no state the guest passed through: {verdict:?}");
        let faults = verdict.missing + verdict.torn + verdict.order + verdict.strangers;
        ensure!(faults == 0, "the journal has faults: {verdict:?}");
        ensure!(verdict.last >= promised, "{promised:?} was on the replica and is not there now: {verdict:?}");
        Ok(verdict)
    }

    /// Gives the failover up; replication goes on.
    pub fn revert(self) -> Result<()> {
        self.site.text(&["failover", "revert", &self.vm, "--yes"]).map(drop)
    }
}

impl Drop for TakenOver<'_> {
    /// A QEMU that nobody ends would outlive the test. One that is gone already is no fault.
    fn drop(&mut self) {
        if let Ok(mut qmp) = Qmp::connect(&self.monitor, Duration::from_secs(1)) {
            drop(qmp.execute("quit", json!({})));
        }
    }
}

/// What the guest's own kernel and initramfs weigh: they travel once, with the VM's definition.
pub fn machine_bytes(guest: &Guest) -> Result<u64> {
    let image = guest.config().image()?;
    Ok(std::fs::metadata(image.kernel)?.len() + std::fs::metadata(image.initramfs)?.len())
}

/// `qemu-img check` on every run that lies in a host's storage now. Gives how many there were. Staging is left out: a run
/// that is being received has no header yet.
pub fn check_runs(site: &Site) -> Result<usize> {
    let mut checked = 0;
    for file in files(&site.config().storage())? {
        if file.extension().is_none_or(|end| end != "qcow2") {
            continue;
        }
        let outcome = disk::check(&file);
        // Runs that were merged meanwhile are gone; those that are there must be good.
        if file.exists() {
            outcome?;
            checked += 1;
        }
    }
    Ok(checked)
}

fn files(directory: &std::path::Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut open = vec![directory.to_path_buf()];
    while let Some(directory) = open.pop() {
        let Ok(entries) = std::fs::read_dir(&directory) else { continue };
        for entry in entries.flatten() {
            let kind = entry.file_type()?;
            if kind.is_dir() && entry.file_name() != "staging" {
                open.push(entry.path());
            } else if kind.is_file() {
                found.push(entry.path());
            }
        }
    }
    Ok(found)
}
