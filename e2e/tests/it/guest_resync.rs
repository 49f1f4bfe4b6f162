//! Resynchronisation: what tracking lost is found by comparing, and nothing is copied in full.

use anyhow::{Result, ensure};
use understudy_testkit::disk::Format;
use understudy_testkit::guest::GuestDisk;

use crate::protect::{DISK, NAME, Protection, assert_sound, go_on, guest, plain};

/// Written before replication begins: what a full copy would have to send.
const FILLED: u64 = 48 << 20;
/// Far less than [`FILLED`], and more than a journal writes in a test.
const REPAIR_MAX: u64 = 16 << 20;

fn filled() -> Result<(understudy_testkit::guest::GuestConfig, understudy_testkit::guest::Guest)> {
    let config = guest(&[(Format::Qcow2, plain), (Format::Raw, GuestDisk::on_scsi)])?;
    let mut running = config.start()?;
    running.workload(&format!("dirty /disk/b --clusters {} --from {}", FILLED >> 16, DISK / 2))?;
    go_on(&mut running)?;
    Ok((config, running))
}

fn resync(protection: &Protection) -> Result<()> {
    protection.pair.primary.text(&["replication", "resync", NAME, "--wait"]).map(drop)
}

#[test]
fn after_a_killed_vm_both_sides_are_compared_under_writes_and_only_what_differs_is_sent() -> Result<()> {
    let (config, guest) = filled()?;
    let mut protection = Protection::start(&config, |daemon| daemon.allow("cannot be reached"))?;
    let before = protection.until_cut()?;
    guest.kill()?;
    protection.until_state("resync-required")?;

    // The guest is back and writes on while the sides are compared; hosts are killed in the middle.
    let mut guest = config.start()?;
    go_on(&mut guest)?;
    protection.pair.primary.text(&["replication", "resync", NAME])?;
    protection.pair.primary.kill()?;
    protection.pair.primary.up()?;
    protection.pair.replica.kill()?;
    protection.pair.replica.up()?;
    protection.until_state("replicating")?;
    protection.until_cut()?;
    let changed = protection.changed_after(before)?;
    ensure!(changed.iter().all(|bytes| *bytes < REPAIR_MAX), "copied in full: {changed:?}");
    let points = protection.pair.replica.json(&["point", "list", NAME])?;
    let kept = points.as_array().map_or(0, Vec::len);
    ensure!(kept > 1, "the points of before are gone: {points}");

    let acked = guest.stop_journal()?;
    guest.poweroff()?;
    protection.until_state("resync-required")?;
    assert_sound(&protection.fail_over(&config)?, acked.number.saturating_sub(400))
}

#[test]
fn a_replica_that_was_put_back_is_brought_up_by_what_differs() -> Result<()> {
    let (config, mut guest) = filled()?;
    let mut protection = Protection::start(&config, |daemon| daemon.allow("cannot be reached"))?;
    protection.until_cut()?;
    // The replica's storage is put back to what it was some cycles ago.
    let storage = protection.pair.replica.config().storage();
    let backup = storage.with_extension("backup");
    protection.pair.replica.stop()?;
    copy_tree(&storage, &backup)?;
    protection.pair.replica.up()?;
    let before = protection.until_cut()?;
    protection.pair.replica.stop()?;
    std::fs::remove_dir_all(&storage)?;
    copy_tree(&backup, &storage)?;
    protection.pair.replica.up()?;
    let cause = protection.until_state("resync-required")?;
    ensure!(cause.contains("put back"), "{cause}");

    resync(&protection)?;
    protection.until_cut()?;
    let changed = protection.changed_after(before)?;
    ensure!(changed.iter().all(|bytes| *bytes < REPAIR_MAX), "copied in full: {changed:?}");
    let acked = guest.stop_journal()?;
    protection.until_cut()?;
    assert_sound(&protection.fail_over(&config)?, acked.number)
}

#[test]
fn resynchronisation_begins_by_itself_where_that_is_allowed_and_on_time_where_a_time_is_set() -> Result<()> {
    let (config, guest) = filled()?;
    let mut protection = Protection::start(&config, |daemon| daemon.allow("cannot be reached"))?;
    protection.until_cut()?;
    let refused = refusal(protection.pair.primary.text(&["replication", "resync", NAME]))?;
    ensure!(refused.contains("suspend replication first"), "{refused}");
    guest.kill()?;
    protection.until_state("resync-required")?;
    let mut guest = config.start()?;
    go_on(&mut guest)?;

    // Far off: it waits, survives a restart, and is taken back.
    let later = in_seconds(3600)?;
    let answer = protection.pair.primary.json(&["replication", "resync", NAME, "--at", &later])?;
    ensure!(answer["job"]["state"] == "new" && answer["job"]["scheduled_at"].is_string(), "{answer}");
    ensure!(protection.status()?["state"] == "resync-required");
    protection.pair.primary.kill()?;
    protection.pair.primary.up()?;
    let status = protection.status()?;
    ensure!(status["scheduled_at"].is_string(), "the schedule is gone: {status}");
    protection.pair.primary.text(&["replication", "stop", NAME])?;
    ensure!(protection.status()?["scheduled_at"].is_null());
    let refused =
        refusal(protection.pair.primary.text(&["replication", "resync", NAME, "--at", &in_seconds(8 * 86_400)?]))?;
    ensure!(refused.contains("at most 7 days"), "{refused}");

    protection.pair.primary.text(&["replication", "modify", NAME, "--auto-resync", "always"])?;
    protection.until_state("replicating")?;
    let acked = guest.stop_journal()?;
    protection.until_cut()?;
    assert_sound(&protection.fail_over(&config)?, acked.number)
}

/// A time so many seconds ahead.
fn in_seconds(seconds: u64) -> Result<String> {
    let output =
        std::process::Command::new("date").args(["-u", "-d", &format!("+{seconds} seconds"), "+%FT%TZ"]).output()?;
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}

fn refusal(answer: Result<String>) -> Result<String> {
    match answer {
        Ok(said) => anyhow::bail!("accepted: {said}"),
        Err(err) => Ok(format!("{err:#}")),
    }
}

fn copy_tree(from: &std::path::Path, to: &std::path::Path) -> Result<()> {
    let words = ["-a", "--sparse=always"];
    let status = std::process::Command::new("cp").args(words).arg(from).arg(to).status()?;
    ensure!(status.success(), "cp {} {}: {status}", from.display(), to.display());
    Ok(())
}
