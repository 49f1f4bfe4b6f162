//! Ways to attach a disk, formats, and the two QEMUs that are in use.

use anyhow::{Result, ensure};
use understudy_testkit::disk::Format;
use understudy_testkit::emulator::Emulator;
use understudy_testkit::guest::{GuestConfig, GuestDisk};

use crate::protect::{Attach, Protection, go_on, guest, plain};

/// Replicates a writing guest, and compares once it has paused.
fn replicate(config: &GuestConfig) -> Result<()> {
    let mut guest = config.start()?;
    go_on(&mut guest)?;
    let protection = Protection::start(config, |daemon| daemon)?;
    let first = protection.until_cut()?;
    let ack = guest.acked().map_or(0, |ack| ack.number);
    guest.wait_for_ack(ack + 200)?;
    guest.stop_journal()?;
    protection.until_cut()?;
    protection.pair.primary.text(&["replication", "suspend", "web"])?;
    protection.assert_equal(config.disks())?;
    ensure!(protection.changed_after(first)?.iter().any(|bytes| *bytes > 0), "no cycle carried anything");
    ensure!(guest.is_running()?, "the guest's QEMU has ended");
    let verdict = guest.verify()?;
    ensure!(verdict.consistent, "{verdict:?}");
    protection.pair.stop()
}

#[test]
fn disks_on_virtio_blk_and_on_virtio_scsi_are_replicated() -> Result<()> {
    replicate(&guest(&[(Format::Raw, plain), (Format::Qcow2, GuestDisk::on_scsi)])?)
}

#[test]
fn a_guest_under_qemu_7_2_is_replicated() -> Result<()> {
    let old = Emulator::debian_12()?;
    replicate(&guest(&[(Format::Qcow2, plain), (Format::Raw, GuestDisk::on_scsi)])?.emulator(old))
}

#[test]
fn a_disk_on_a_thread_of_its_own_is_refused_with_the_cause_and_the_guest_lives() -> Result<()> {
    let attach: [Attach; 2] = [GuestDisk::on_iothread, |disk| disk.on_scsi().on_iothread()];
    refuse(&guest(&[(Format::Raw, attach[0]), (Format::Qcow2, attach[1])])?, "may lose an interrupt")
}

#[test]
fn a_disk_on_a_thread_of_its_own_under_qemu_7_2_is_refused_with_the_cause_and_the_guest_lives() -> Result<()> {
    let config = guest(&[(Format::Qcow2, GuestDisk::on_iothread)])?.emulator(Emulator::debian_12()?);
    refuse(&config, "aborts when a reader of such a disk leaves")
}

fn refuse(config: &GuestConfig, cause: &str) -> Result<()> {
    let mut guest = config.start()?;
    go_on(&mut guest)?;
    let protection = Protection::create(config, |daemon| daemon)?;
    protection.pair.primary.text(&["replication", "start", "web"])?;
    protection.until_failure(cause)?;
    let ack = guest.acked().map_or(0, |ack| ack.number);
    guest.wait_for_ack(ack + 100)?;
    protection.pair.stop()
}
