//! A guest loses its power while it writes, and its journal says what came through.

use anyhow::Result;
use understudy_testkit::disk::{self, Format};
use understudy_testkit::guest::{GuestConfig, GuestDisk, Machine};

const DISK: u64 = 64 << 20;

fn two_disks(config: GuestConfig, formats: [Format; 2]) -> Result<GuestConfig> {
    let dir = config.directory().to_path_buf();
    let make = |name: &str, format| disk::create(&dir.join(name), format, DISK);
    let (a, b) = (make("a", formats[0])?, make("b", formats[1])?);
    Ok(config.disk(GuestDisk::new("a", a, formats[0])).disk(GuestDisk::new("b", b, formats[1])))
}

fn report(what: &str, value: impl std::fmt::Debug) {
    println!("measured: {what}: {value:?}");
}

/// Journals, pulls the plug, starts again, verifies.
fn survives_a_power_cut(config: GuestConfig) -> Result<()> {
    let mut guest = config.start()?;
    report("up in", guest.up_in());
    guest.start_journal("")?;
    guest.wait_for_ack(200)?;
    let (config, acked) = guest.kill()?;
    let acked = acked.expect("records were announced");
    let mut guest = config.start()?;
    report("up again in", guest.up_in());
    let verdict = guest.verify()?;
    report("verdict", &verdict);
    assert!(verdict.consistent, "{verdict:?}");
    assert_eq!((verdict.missing, verdict.torn, verdict.order), (0, 0, 0));
    assert_eq!(verdict.loss(acked).0, 0, "announced {acked:?}, found {verdict:?}");
    guest.poweroff()?;
    Ok(())
}

#[test]
fn a_booted_guest_finds_every_announced_record_after_its_power_was_cut() -> Result<()> {
    survives_a_power_cut(two_disks(GuestConfig::new()?.booted(), [Format::Raw, Format::Raw])?)
}

#[test]
fn a_restored_guest_finds_every_announced_record_after_its_power_was_cut() -> Result<()> {
    survives_a_power_cut(two_disks(GuestConfig::new()?, [Format::Raw, Format::Qcow2])?)
}

#[test]
fn a_microvm_finds_every_announced_record_after_its_power_was_cut() -> Result<()> {
    survives_a_power_cut(two_disks(GuestConfig::new()?.machine(Machine::Microvm).booted(), [Format::Raw, Format::Raw])?)
}
