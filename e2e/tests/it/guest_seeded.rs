//! Initial replication from a seed: what the replica host has already need not be sent.

use std::path::PathBuf;

use anyhow::{Result, ensure};
use understudy_e2e::replication::machine_bytes;
use understudy_testkit::disk::Format;
use understudy_testkit::guest::{Guest, GuestConfig, GuestDisk};
use understudy_testkit::link::Direction;

use crate::protect::{DISK, NAME, Protection, assert_sound, go_on, guest, plain};

/// Written before the seed is taken: what a full copy would have to send.
const FILLED: u64 = 64 << 20;
/// Hashes, what the journal writes meanwhile, and the cycles.
const SENT_MAX: u64 = 24 << 20;

fn filled() -> Result<(GuestConfig, Guest)> {
    let config = guest(&[(Format::Raw, plain), (Format::Raw, GuestDisk::on_scsi)])?;
    let mut running = config.start()?;
    running.workload(&format!("dirty /disk/b --clusters {} --from {}", FILLED >> 16, DISK / 2))?;
    Ok((config, running))
}

/// A restored backup: the disks as they were some time ago, and not even at one instant.
fn backup(config: &GuestConfig) -> Result<Vec<PathBuf>> {
    let disks = config.disks().iter().enumerate();
    let copied = disks.map(|(number, disk)| {
        let to = config.directory().join(format!("backup-{number}.raw"));
        std::fs::copy(&disk.path, &to)?;
        Ok(to)
    });
    copied.collect()
}

fn seed(protection: &Protection, images: &[PathBuf], more: &[&str]) -> Result<String> {
    let disks: Vec<String> =
        images.iter().enumerate().map(|(number, path)| format!("--disk=disk-{number}={}", path.display())).collect();
    let words: Vec<&str> = ["replication", "seed", NAME].into_iter().chain(disks.iter().map(String::as_str)).collect();
    protection.pair.replica.text(&[words, more.to_vec()].concat())
}

#[test]
fn a_restored_backup_is_taken_up_under_a_guest_that_writes_and_only_what_differs_is_sent() -> Result<()> {
    let (config, mut guest) = filled()?;
    let images = backup(&config)?;
    go_on(&mut guest)?;
    let mut protection = Protection::create(&config, |daemon| daemon.allow("cannot be reached"))?;
    seed(&protection, &images, &["--take"])?;
    ensure!(images.iter().all(|image| !image.exists()), "an image that may be moved is not copied");

    // Hosts are killed in the middle; what was compared before counts.
    let answer = protection.pair.primary.json(&["replication", "start", NAME, "--type", "seeded"])?;
    protection.pair.replica.kill()?;
    protection.pair.replica.up()?;
    protection.pair.primary.kill()?;
    protection.pair.primary.up()?;
    let job = answer["job"]["id"].as_str().unwrap_or_default().to_owned();
    protection.pair.primary.text(&["job", "wait", &job])?;
    protection.until_cut()?;
    let sent = protection.pair.replica.link().passed(Direction::Forward) - machine_bytes(&guest)?;
    ensure!(sent < SENT_MAX, "{sent} bytes were sent, although the replica had nearly everything");

    let acked = guest.stop_journal()?;
    protection.until_cut()?;
    assert_sound(&protection.fail_over(&config)?, acked.number)
}

#[test]
fn a_seed_that_is_another_disk_altogether_still_ends_in_an_equal_copy() -> Result<()> {
    let (config, mut guest) = filled()?;
    let odd = config.directory().join("odd.raw");
    std::fs::write(&odd, vec![0xa5; 5 << 20])?;
    go_on(&mut guest)?;
    let protection = Protection::create(&config, |daemon| daemon)?;
    seed(&protection, &[odd.clone(), odd], &[])?;
    protection.pair.primary.text(&["replication", "start", NAME, "--type", "seeded", "--wait"])?;
    protection.until_cut()?;
    let acked = guest.stop_journal()?;
    protection.until_cut()?;
    assert_sound(&protection.fail_over(&config)?, acked.number)
}

#[test]
fn without_a_seed_the_job_fails_with_the_cause_and_a_seed_that_cannot_be_is_refused() -> Result<()> {
    let (config, _guest) = filled()?;
    let protection = Protection::create(&config, |daemon| daemon)?;
    let failed = protection.pair.primary.text(&["replication", "start", NAME, "--type", "seeded", "--wait"]);
    let said = failed.err().map(|err| format!("{err:#}")).unwrap_or_default();
    ensure!(said.contains("nothing was placed on the replica host"), "{said}");
    ensure!(protection.status()?["state"] == "ready");

    let large = config.directory().join("large.raw");
    std::fs::File::create(&large)?.set_len(DISK + 512)?;
    let qcow2 = config.directory().join("image.qcow2");
    std::fs::write(&qcow2, b"QFI\xfb")?;
    for (image, why) in
        [(large, "bytes"), (qcow2, "looks like a qcow2 image"), (PathBuf::from("/nowhere"), "there is no image")]
    {
        let said = seed(&protection, &[image], &[]).err().map(|err| format!("{err:#}")).unwrap_or_default();
        ensure!(said.contains(why), "{why:?} is not in {said:?}");
    }
    Ok(())
}
