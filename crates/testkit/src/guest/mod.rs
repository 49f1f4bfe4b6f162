//! A small Linux guest in a real QEMU: the thing whose data must come back.
//!
//! [`GuestConfig`] says what it is made of and starts it; [`Guest`] is it running. Each has two monitors: one is left to the program
//! under test, the other is the test's. Commands go over the serial console.
//!
//! Invariant: a QEMU started here is ended when its [`Guest`] is dropped, and never another.

mod agent;
mod arguments;
mod config;
mod console;
mod qmp;
mod report;
mod start;

use std::process::ExitStatus;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;

pub use agent::Agent;
pub use config::{Bus, GuestConfig, GuestDisk, Machine, Start};
pub use console::{Answer, Console};
pub use qmp::Qmp;
pub use report::{Ack, Report, Verdict};

use crate::process::Owned;

/// How long a command in the guest may take. Without hardware help everything is some ten times slower.
const COMMAND_BOUND: Duration = Duration::from_secs(120);
/// Sync, unmount, power off.
const POWEROFF_BOUND: Duration = Duration::from_secs(60);

/// A running guest. Dropping it kills its QEMU.
#[derive(Debug)]
pub struct Guest {
    config: GuestConfig,
    process: Owned,
    console: Console,
    qmp: Qmp,
    started: Instant,
    up_in: Duration,
}

impl Guest {
    /// What it was started from.
    pub fn config(&self) -> &GuestConfig {
        &self.config
    }

    /// How long it took from the start of QEMU until the guest took commands.
    pub fn up_in(&self) -> Duration {
        self.up_in
    }

    /// The process id of its QEMU.
    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// The test's own monitor.
    pub fn qmp(&mut self) -> &mut Qmp {
        &mut self.qmp
    }

    /// The serial console.
    pub fn console(&mut self) -> &mut Console {
        &mut self.console
    }

    /// Runs a script and gives its output; a status other than 0 is an error.
    pub fn run(&mut self, script: &str) -> Result<String> {
        let answer = self.try_run(script)?;
        if answer.status != 0 {
            bail!("{script:?} ended with {} in the guest: {}", answer.status, answer.text);
        }
        Ok(answer.text)
    }

    /// Runs a script and gives its output and status.
    pub fn try_run(&mut self, script: &str) -> Result<Answer> {
        self.console.run(script, COMMAND_BOUND)
    }

    /// Runs one command of the workload and gives its report; one that does not end by itself needs [`Guest::run`] with `&`.
    pub fn workload(&mut self, words: &str) -> Result<Report> {
        let text = self.run(&format!("guest-io {words}"))?;
        Report::last_in(&text).with_context(|| format!("no report in: {text}"))
    }

    /// Starts a journal over all disks in the background and waits until its first record is durable.
    pub fn start_journal(&mut self, options: &str) -> Result<Ack> {
        let disks = self.disk_words();
        self.start_journal_on(&disks, options)
    }

    /// As [`Guest::start_journal`], on disks or files the guest knows by these names.
    pub fn start_journal_on(&mut self, disks: &str, options: &str) -> Result<Ack> {
        let before = self.acked();
        self.run(&format!("guest-io journal {disks} {options} &"))?;
        self.wait_for_ack(before.map_or(1, |ack| ack.number + 1))
    }

    /// Waits until a journal has announced this record or a later one.
    pub fn wait_for_ack(&self, number: u64) -> Result<Ack> {
        let what = format!("record {number} to be durable");
        let found = crate::wait::wait_for(&what, COMMAND_BOUND, || Ok(self.acked().filter(|ack| ack.number >= number)));
        found.with_context(|| format!("the console said: {}", self.console.text()))
    }

    /// The newest record announced as durable since this start.
    pub fn acked(&self) -> Option<Ack> {
        self.console.acked()
    }

    /// Ends a journal between two records, and gives the last one it announced.
    pub fn stop_journal(&mut self) -> Result<Ack> {
        self.run("killall guest-io; while killall -0 guest-io; do usleep 20000; done 2>/dev/null; true")?;
        self.acked().context("no journal has announced anything")
    }

    /// Lets the guest read its journal back from all disks.
    pub fn verify(&mut self) -> Result<Verdict> {
        let disks = self.disk_words();
        self.verify_on(&disks)
    }

    /// As [`Guest::verify`], on disks or files the guest knows by these names.
    pub fn verify_on(&mut self, disks: &str) -> Result<Verdict> {
        self.console.verify(disks, COMMAND_BOUND)
    }

    fn disk_words(&self) -> String {
        self.config.disks.iter().map(GuestDisk::in_guest).collect::<Vec<_>>().join(" ")
    }

    /// Pulls the plug: SIGKILL to its QEMU. Gives the last record announced before.
    pub fn kill(mut self) -> Result<(GuestConfig, Option<Ack>)> {
        self.process.kill()?;
        // What QEMU had sent is still in the socket; the console closes behind it.
        self.console.wait_closed(POWEROFF_BOUND)?;
        Ok((self.config.clone(), self.acked()))
    }

    /// Shuts down in good order.
    pub fn poweroff(mut self) -> Result<GuestConfig> {
        self.console.send("off")?;
        self.ended()?;
        Ok(self.config.clone())
    }

    /// Waits until its QEMU has ended by itself; a status other than 0 is an error.
    pub fn ended(&mut self) -> Result<ExitStatus> {
        let status = self.process.wait(POWEROFF_BOUND).with_context(|| self.console.text())?;
        if !status.success() {
            bail!("QEMU ended with {status}");
        }
        Ok(status)
    }

    /// True while its QEMU runs.
    pub fn is_running(&mut self) -> Result<bool> {
        Ok(self.process.ended()?.is_none())
    }
}

fn base64(bytes: &[u8]) -> String {
    STANDARD.encode(bytes)
}
