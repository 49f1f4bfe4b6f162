//! What a guest's writes take: 4 KiB written and synced, over and over, without replication and with a cut every second.

use anyhow::{Context, Result};
use understudy_testkit::disk::{self, Format};
use understudy_testkit::guest::{Guest, Report};

use crate::lab::Lab;
use crate::peers::Hosts;
use crate::table::print_line;

/// Small, so that the first copy is no matter.
const DISK: u64 = 1 << 30;
/// What is asked of the guest's report.
const FIGURES: [(&str, &str, f64, &str); 5] = [
    ("per_second", "writes", 1.0, "/s"),
    ("p50_us", "p50", 1000.0, "ms"),
    ("p99_us", "p99", 1000.0, "ms"),
    ("p999_us", "p99.9", 1000.0, "ms"),
    ("max_us", "longest", 1000.0, "ms"),
];

/// Runs and prints it.
pub fn run(lab: &Lab) -> Result<()> {
    let image = disk::create(&lab.path("latency.raw"), Format::Raw, DISK)?;
    let mut guest = lab.guest("latency", &[("a", &image)])?;
    sample(lab, &mut guest)?; // space is allocated and caches are filled before it counts
    let (mut without, mut with, mut cycles) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..lab.options.repetitions {
        without.push(sample(lab, &mut guest)?);
        let hosts = Hosts::start(lab)?;
        hosts.add_disks_only(&guest, &["--interval", "1s"])?;
        hosts.copy()?;
        let before = hosts.newest()?.context("no cut after the first copy")?;
        with.push(sample(lab, &mut guest)?);
        let after = hosts.newest()?.context("no cut after cycles")?;
        cycles.push((after - before) as f64 / lab.options.seconds as f64);
        hosts.stop()?;
    }
    println!("\n== guest's 4 KiB writes, each synced, for {} s at a time", lab.options.seconds);
    for (key, name, divisor, unit) in FIGURES {
        for (what, reports) in [("without replication", &without), ("with a cycle every second", &with)] {
            let values =
                reports.iter().map(|report| Ok(report.number(key)? as f64 / divisor)).collect::<Result<Vec<_>>>()?;
            print_line(&format!("{name}, {what}"), values, 2, unit);
        }
    }
    print_line("cycles acknowledged", cycles, 2, "/s");
    Ok(())
}

fn sample(lab: &Lab, guest: &mut Guest) -> Result<Report> {
    let words = format!("latency /disk/a --seconds {} --span {}", lab.options.seconds, DISK / 2);
    guest.workload(&words)
}
