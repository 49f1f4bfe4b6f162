//! From the word to take over until QEMU runs, and until the guest is up.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use understudy_testkit::guest::Console;

use crate::lab::Lab;
use crate::peers::Hosts;
use crate::table::{print_line, seconds};

/// A boot under emulation, on a busy machine.
const BOOT_BOUND: Duration = Duration::from_secs(120);
/// Cycles behind the first copy, so that there is a chain to start from.
const POINTS: &str = "8";

/// Runs and prints it.
pub fn run(lab: &Lab) -> Result<()> {
    let image = lab.image()?;
    let mut guest = lab.guest("failover", &[("a", &image)])?;
    let booted = guest.up_in();
    let hosts = Hosts::start(lab)?;
    hosts.add(&guest, &["--interval", "1s", "--points", POINTS, "--point-every", "cycle"])?;
    hosts.copy()?;
    guest.workload(&format!("latency /disk/a --seconds {}", lab.options.seconds.max(5)))?;
    guest.kill()?;
    let Hosts { primary, replica } = hosts;
    primary.kill()?;
    let (mut started, mut up) = (Vec::new(), Vec::new());
    for _ in 0..lab.options.repetitions {
        let began = Instant::now();
        replica.text(&["failover", "start", "vm", "--power-on", "--yes"])?;
        started.push(seconds(began.elapsed()));
        let status = replica.json(&["replication", "status", "vm"])?;
        let monitor = status["failover"]["monitor"].as_str().with_context(|| format!("no monitor in {status}"))?;
        let console = Console::connect(&PathBuf::from(monitor).with_file_name("console.sock"), BOOT_BOUND)?;
        console.wait_for("GUEST-READY", BOOT_BOUND)?;
        up.push(seconds(began.elapsed()));
        drop(console);
        replica.text(&["failover", "revert", "vm", "--yes"])?;
    }
    replica.stop()?;
    println!("\n== failover to the newest of {POINTS} points, disk of {} MiB", lab.options.size);
    print_line("from the command until QEMU runs", started, 2, "s");
    print_line("from the command until the guest is up", up, 2, "s");
    print_line("for comparison: the same guest's own boot", [seconds(booted)], 2, "s");
    Ok(())
}
