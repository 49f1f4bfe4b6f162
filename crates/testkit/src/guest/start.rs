//! Brings a guest up: from its kernel, or from a state saved by an earlier one of the same shape.
//!
//! The state is saved before the guest has loaded a disk driver, so it knows nothing of any disk: whatever is attached at the
//! restore is discovered then, as at a boot. What it does fix is the shape of the machine, which is part of its name in the cache.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use serde_json::json;

use super::arguments::{Backing, arguments};
use super::config::{GuestConfig, Start};
use super::console::Console;
use super::{Guest, Qmp};
use crate::cache;
use crate::process::Owned;
use crate::wait::wait_for;

/// A boot takes 4 to 8 s on a busy machine of two cores; ten guests at once may take ten times that.
const BOOT_BOUND: Duration = Duration::from_secs(120);
/// QEMU opens its sockets within tenths of a second.
const SOCKET_BOUND: Duration = Duration::from_secs(30);
/// Some 70 MiB to be read or written.
const STATE_BOUND: Duration = Duration::from_secs(60);

/// Starts the guest of a configuration.
pub fn start(config: &GuestConfig) -> Result<Guest> {
    match config.start {
        Start::Booted => boot(config),
        Start::Restored => restore(config, &saved_state(config)?),
    }
}

fn boot(config: &GuestConfig) -> Result<Guest> {
    let mut guest = launch(config, &config.kernel_words(), Backing::Images, None)?;
    if config.script.is_none() {
        guest.console.wait_for("GUEST-READY", BOOT_BOUND).with_context(|| said_by(config))?;
    }
    guest.up_in = guest.started.elapsed();
    Ok(guest)
}

fn restore(config: &GuestConfig, state: &Path) -> Result<Guest> {
    // The kernel's command line is in the saved memory. What QEMU is given now is for those who ask it how to boot the same guest.
    let mut guest = launch(config, &config.kernel_words(), Backing::Images, Some(state))?;
    wait_for("the state to be restored", STATE_BOUND, || {
        let status = guest.qmp.execute("query-status", json!({})).with_context(|| said_by(config))?;
        Ok((status["status"] == "running").then_some(()))
    })?;
    // The guest still lives in the moment in which its state was saved.
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
    guest.console.send(&now.to_string())?;
    guest.console.wait_for("GUEST-READY", BOOT_BOUND).with_context(|| said_by(config))?;
    guest.up_in = guest.started.elapsed();
    Ok(guest)
}

/// Starts QEMU and connects to it; the guest need not have come up.
fn launch(config: &GuestConfig, words: &str, backing: Backing, state: Option<&Path>) -> Result<Guest> {
    let emulator = config.chosen_emulator()?;
    let mut list = arguments(config, words, backing)?;
    if let Some(state) = state {
        list.extend(["-incoming".into(), emulator.state_uri(state, false)]);
    }
    let (program, list) = emulator.command(&list);
    let errors = File::create(config.error_log()).context("cannot create the emulator's log")?;
    for socket in [config.console_socket(), config.test_socket(), config.product_socket()] {
        forget(&socket)?;
    }
    let started = Instant::now();
    let mut process = Owned::start(program, list, |command| {
        command.stderr(errors);
    })?;
    let bound = SOCKET_BOUND;
    let connected = Console::connect(&config.console_socket(), bound)
        .and_then(|console| Ok((console, Qmp::connect(&config.test_socket(), bound)?)));
    match connected {
        Ok((console, qmp)) => {
            Ok(Guest { config: config.clone(), process, console, qmp, started, up_in: Duration::ZERO })
        }
        Err(err) => {
            let ended = process.ended()?.map_or(String::new(), |status| format!("QEMU ended: {status}. "));
            Err(err.context(format!("{ended}{}", said_by(config))))
        }
    }
}

/// A socket left by an earlier QEMU would look like one that nobody answers.
fn forget(socket: &Path) -> Result<()> {
    match fs::remove_file(socket) {
        Err(err) if err.kind() != std::io::ErrorKind::NotFound => {
            Err(err).with_context(|| format!("cannot remove {}", socket.display()))
        }
        _ => Ok(()),
    }
}

fn said_by(config: &GuestConfig) -> String {
    let said = fs::read_to_string(config.error_log()).unwrap_or_default();
    format!("the guest did not come up; QEMU said: {}", if said.is_empty() { "nothing" } else { said.trim() })
}

fn warm_words(config: &GuestConfig) -> String {
    format!("{} guest.warm", config.kernel_words())
}

/// The saved state for machines of this shape, made by booting one if there is none.
fn saved_state(config: &GuestConfig) -> Result<PathBuf> {
    let emulator = config.chosen_emulator()?;
    let disks: Vec<_> = config.disks.iter().map(|disk| (disk.bus, disk.iothread)).collect();
    let shape = (config.machine, config.memory_mib, disks, config.agent, &config.extra, crate::emulator::accelerator());
    let name = format!("state-{}", cache::key((config.image()?.key(), config.kernel_words(), shape, &emulator)));
    cache::get_or_make(&name, |path| {
        let blank = GuestConfig { directory: GuestConfig::new()?.directory, ..config.clone() };
        let mut guest = launch(&blank, &warm_words(&blank), Backing::Nothing, None)?;
        guest.console.wait_for("GUEST-WARM", BOOT_BOUND).with_context(|| said_by(&blank))?;
        save(&mut guest, &emulator.state_uri(path, true))
    })
}

fn save(guest: &mut Guest, uri: &str) -> Result<()> {
    guest.qmp.execute("migrate-set-parameters", json!({"max-bandwidth": 4u64 << 30}))?;
    guest.qmp.execute("migrate", json!({ "uri": uri }))?;
    wait_for("the state to be saved", STATE_BOUND, || {
        let state = guest.qmp.execute("query-migrate", json!({}))?;
        match state["status"].as_str() {
            Some("completed") => Ok(Some(())),
            Some("failed" | "cancelled") => bail!("the state could not be saved: {state}"),
            _ => Ok(None),
        }
    })
}
