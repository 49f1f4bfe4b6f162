//! VMs that are shut down, started again, and killed.

use anyhow::{Result, ensure};
use understudy_testkit::disk::Format;
use understudy_testkit::guest::GuestDisk;

use crate::protect::{DISK, Protection, assert_sound, go_on, guest, plain};

/// What the guest writes before replication begins, so that a full copy could not be mistaken for a delta.
const FILLED: u64 = 32 << 20;
/// More than a journal writes in the seconds that a test takes, and far less than [`FILLED`].
const DELTA_MAX: u64 = 16 << 20;

#[test]
fn a_vm_shut_down_and_started_again_goes_on_with_deltas_and_nothing_is_missing() -> Result<()> {
    let config = guest(&[(Format::Qcow2, plain), (Format::Qcow2, GuestDisk::on_scsi)])?;
    let mut guest = config.start()?;
    guest.workload(&format!("dirty /disk/b --clusters {} --from {}", FILLED >> 16, DISK / 2))?;
    go_on(&mut guest)?;
    let mut protection = Protection::start(&config, |daemon| daemon.allow("cannot be reached"))?;
    let first = protection.until_cut()?;
    guest.stop_journal()?;
    guest.poweroff()?;

    // Off: its last changes follow, and then it is idle.
    let off = protection.until_cut()?;
    protection.assert_equal(config.disks())?;

    // What is known of the images outlives the daemon.
    protection.pair.primary.kill()?;
    protection.pair.primary.up()?;
    protection.until_cut()?;

    let mut guest = config.start()?;
    go_on(&mut guest)?;
    protection.until_cut()?;
    let acked = guest.stop_journal()?;
    // Off again right after the last record: what was not carried yet is in the images' maps only.
    guest.poweroff()?;
    protection.until_cut()?;
    protection.assert_equal(config.disks())?;
    let changed = protection.changed_after(first)?;
    ensure!(changed.iter().all(|bytes| *bytes < DELTA_MAX), "not deltas: {changed:?}");
    ensure!(protection.changed_after(off)?.iter().any(|bytes| *bytes > 0), "nothing changed after the restart");

    let mut guest = config.start()?;
    go_on(&mut guest)?;
    protection.until_cut()?;
    guest.kill()?;
    protection.pair.primary.kill()?;
    assert_sound(&protection.fail_over(&config)?, acked.number)
}

#[test]
fn a_killed_vm_is_marked_for_resynchronisation_with_the_cause_and_its_last_point_stays() -> Result<()> {
    let config = guest(&[(Format::Qcow2, plain)])?;
    let mut guest = config.start()?;
    go_on(&mut guest)?;
    let protection = Protection::start(&config, |daemon| daemon.allow("cannot be reached"))?;
    let acked = guest.acked().map_or(0, |ack| ack.number);
    protection.until_cut()?;
    guest.kill()?;
    let cause = protection.until_state("resync-required")?;
    ensure!(cause.contains("was not closed in good order") || cause.contains("no map is present"), "{cause}");
    let newest = protection.newest()?;

    // Started again it stays so: what it wrote last before its death nobody knows.
    let mut guest = config.start()?;
    go_on(&mut guest)?;
    ensure!(protection.pair.primary.text(&["replication", "resume", "web"]).is_err(), "resumed without a comparison");
    ensure!(protection.status()?["state"] == "resync-required");
    ensure!(protection.newest()? == newest, "a cycle was taken on top of unknown changes");
    assert_sound(&protection.fail_over(&config)?, acked)
}

#[test]
fn a_vm_killed_and_started_again_between_two_cuts_is_found_out() -> Result<()> {
    let config = guest(&[(Format::Qcow2, plain), (Format::Raw, plain)])?;
    let mut guest = config.start()?;
    go_on(&mut guest)?;
    let protection = Protection::start(&config, |daemon| daemon.allow("cannot be reached"))?;
    protection.until_cut()?;
    protection.pair.primary.text(&["replication", "suspend", "web"])?;
    guest.kill()?;
    let mut guest = config.start()?;
    go_on(&mut guest)?;
    protection.pair.primary.text(&["replication", "resume", "web"])?;
    let cause = protection.until_state("resync-required")?;
    ensure!(cause.contains("is lost"), "{cause}");
    Ok(())
}

#[test]
fn replication_asked_for_while_the_vm_is_off_begins_when_it_starts_and_a_raw_disk_says_what_it_cannot_know()
-> Result<()> {
    let config = guest(&[(Format::Raw, plain)])?;
    let guest = config.start()?;
    let protection = Protection::create(&config, |daemon| daemon.allow("cannot be reached"))?;
    guest.poweroff()?;
    let job = protection.pair.primary.json(&["replication", "start", "web"])?;
    protection.until_failure("the VM is off")?;

    let mut guest = config.start()?;
    go_on(&mut guest)?;
    let id = job["job"]["id"].as_str().or(job["id"].as_str()).unwrap_or_default().to_owned();
    protection.pair.primary.text(&["job", "wait", &id])?;
    protection.until_cut()?;
    guest.stop_journal()?;
    protection.until_cut()?;
    protection.assert_equal(config.disks())?;

    // A raw image keeps no map: after the VM's end nothing tells what was written last.
    guest.poweroff()?;
    let cause = protection.until_state("resync-required")?;
    ensure!(cause.contains("while the VM was off"), "{cause}");
    Ok(())
}

#[test]
fn a_vm_that_comes_and_goes_while_nothing_is_replicated_is_caught_up_with_and_an_image_put_back_is_found_out()
-> Result<()> {
    let config = guest(&[(Format::Qcow2, plain), (Format::Qcow2, plain)])?;
    let mut guest = config.start()?;
    go_on(&mut guest)?;
    let protection = Protection::start(&config, |daemon| daemon.allow("cannot be reached"))?;
    let on = protection.until_cut()?;
    let say = |word: &str| protection.pair.primary.text(&["replication", word, "web"]);
    say("suspend")?;
    guest.poweroff()?;
    let mut guest = config.start()?;
    go_on(&mut guest)?;
    guest.stop_journal()?;
    guest.poweroff()?;
    say("resume")?;
    protection.until_cut()?;
    protection.assert_equal(config.disks())?;
    let changed = protection.changed_after(on)?;
    ensure!(changed.iter().any(|bytes| *bytes > 0) && changed.iter().all(|bytes| *bytes < DELTA_MAX), "{changed:?}");

    // From a cut of the VM while it was off on, the maps tell it from an image that somebody put back.
    say("suspend")?;
    let backup = config.directory().join("backup.qcow2");
    std::fs::copy(&config.disks()[0].path, &backup)?;
    let mut guest = config.start()?;
    go_on(&mut guest)?;
    guest.stop_journal()?;
    guest.poweroff()?;
    say("resume")?;
    protection.until_cut()?;
    protection.assert_equal(config.disks())?;
    std::fs::copy(&backup, &config.disks()[0].path)?;
    let cause = protection.until_state("resync-required")?;
    ensure!(cause.contains("while the VM was off"), "{cause}");
    Ok(())
}
