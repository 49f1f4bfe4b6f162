//! The first copy of a disk, interrupted in every way.

use anyhow::{Context, Result, ensure};
use understudy_e2e::replication::{PATIENCE, machine_bytes, status, wait_for_state};
use understudy_e2e::{Pair, Site};
use understudy_testkit::disk::Format;
use understudy_testkit::guest::{Guest, GuestConfig, GuestDisk};
use understudy_testkit::link::Direction;
use understudy_testkit::{disk, wait};

/// What travels: it cannot be compressed.
const FILLED: u64 = 96 << 20;
const DISK: u64 = 256 << 20;
/// What may travel twice: what was under way at three cuts, and what the guest changed meanwhile.
const TWICE_MAX: u64 = FILLED / 3;
/// What a replica that is killed may lose of a copy beside that: it is made durable in steps of this size.
const STEP: u64 = 64 << 20;

fn guest_with_data() -> Result<(Guest, String)> {
    let config = GuestConfig::new()?.name("web").two_disks([Format::Qcow2, Format::Raw], DISK)?;
    let disks: Vec<String> = config.disks().iter().map(|disk| disk.in_guest()).collect();
    let mut guest = config.start()?;
    guest.workload(&format!("fill {} --bytes {FILLED} --from {} --pattern random", disks[0], DISK / 2))?;
    Ok((guest, disks.join(" ")))
}

/// Starts replication and lets this much of the copy pass before the connections are cut.
fn begin(pair: &Pair, bytes: u64) -> Result<()> {
    pair.replica.link().cut_after(Direction::Forward, bytes);
    pair.primary.text(&["replication", "start", "web"])?;
    wait::wait_for("the cut", PATIENCE, || Ok((!pair.replica.link().cut_is_due(Direction::Forward)).then_some(())))
}

/// Waits for the end of the copy and of a cycle after it, and looks at what it cost and what came of it.
fn finish(pair: &Pair, mut guest: Guest, disks: &str, twice_max: u64) -> Result<()> {
    wait_for_state(&pair.primary, "web", "replicating")?;
    let acked = guest.stop_journal()?;
    pair.wait_until_caught_up("web")?;
    let sent = pair.replica.link().passed(Direction::Forward) - machine_bytes(&guest)?;
    eprintln!("{sent} bytes were sent for {FILLED}");
    ensure!(sent < FILLED + twice_max, "the copy began again: {sent} bytes were sent for {FILLED}\n{}", pair.logs());
    let job = pair.primary.json(&["job", "list"])?;
    let ended = job.as_array().and_then(|jobs| jobs.iter().find(|job| job["kind"] == "start")).cloned();
    ensure!(ended.is_none_or(|job| job["has_ended"] == true && job["error"].is_null()), "{job}");
    pair.take_over("web")?.verify(disks, acked).map(drop)
}

#[test]
fn a_copy_goes_on_after_the_connection_is_cut_again_and_again() -> Result<()> {
    let pair = Pair::start_with(|config| config.allow("WARN"))?;
    let (mut guest, disks) = guest_with_data()?;
    guest.start_journal("--rate 200")?;
    pair.relate(&guest, "web", &["--interval", "1s", "--points", "0"])?;
    begin(&pair, FILLED / 4)?;
    for _ in 0..2 {
        pair.replica.link().cut_after(Direction::Forward, FILLED / 5);
        wait::wait_for(
            "the cut",
            PATIENCE,
            || Ok((!pair.replica.link().cut_is_due(Direction::Forward)).then_some(())),
        )?;
    }
    finish(&pair, guest, &disks, TWICE_MAX)
}

#[test]
fn a_copy_goes_on_after_either_host_was_killed() -> Result<()> {
    let mut pair = Pair::start_with(|config| config.allow("WARN"))?;
    let (mut guest, disks) = guest_with_data()?;
    guest.start_journal("--rate 200")?;
    pair.relate(&guest, "web", &["--interval", "1s", "--points", "0"])?;
    begin(&pair, FILLED / 3)?;
    let kills: [fn(&mut Pair) -> &mut Site; 2] = [|pair| &mut pair.primary, |pair| &mut pair.replica];
    for host in kills {
        host(&mut pair).kill()?;
        pair.replica.link().cut_after(Direction::Forward, FILLED / 4);
        host(&mut pair).up()?;
        wait::wait_for(
            "the cut",
            PATIENCE,
            || Ok((!pair.replica.link().cut_is_due(Direction::Forward)).then_some(())),
        )?;
    }
    finish(&pair, guest, &disks, TWICE_MAX + STEP)
}

#[test]
fn an_empty_disk_of_a_tebibyte_costs_nothing() -> Result<()> {
    let pair = Pair::start()?;
    let mut config = GuestConfig::new()?.name("large");
    let path = disk::create(&config.directory().join("large.qcow2"), Format::Qcow2, 1 << 40)?;
    config = config.disk(GuestDisk::new("large", path, Format::Qcow2));
    let guest = config.start()?;
    pair.replicate(&guest, "large", &["--interval", "1s", "--points", "0"])?;
    pair.wait_for_cut("large", 1)?;
    let sent = pair.replica.link().passed(Direction::Forward).saturating_sub(machine_bytes(&guest)?);
    eprintln!("{sent} bytes were sent for an empty disk");
    ensure!(sent < 1 << 20, "{sent} bytes were sent for an empty disk");
    drop(pair.take_over("large")?.console()?);
    Ok(())
}

#[test]
fn a_copy_that_is_cancelled_ends_its_job_and_can_be_started_anew() -> Result<()> {
    let pair = Pair::start_with(|config| config.allow("WARN"))?;
    let (mut guest, disks) = guest_with_data()?;
    guest.start_journal("--rate 200")?;
    pair.relate(&guest, "web", &["--interval", "1s", "--points", "0"])?;
    pair.replica.link().rate(Direction::Forward, Some(4 << 20));
    let job = pair.primary.json(&["replication", "start", "web"])?;
    let id = job["job"]["id"].as_str().with_context(|| format!("no job in {job}"))?.to_owned();
    wait::wait_for("some of the copy", PATIENCE, || {
        Ok(status(&pair.primary, "web")?["progress_bytes"].as_u64().filter(|bytes| *bytes > 0))
    })?;
    pair.primary.text(&["job", "cancel", &id])?;
    wait_for_state(&pair.primary, "web", "ready")?;
    let ended = wait::wait_for("the job's end", PATIENCE, || {
        let job = pair.primary.json(&["job", "show", &id])?;
        Ok((job["has_ended"] == true).then_some(job))
    })?;
    ensure!(ended["state"] != "completed", "{ended}");
    pair.replica.link().rate(Direction::Forward, None);
    pair.primary.text(&["replication", "start", "web", "--wait"])?;
    let acked = guest.stop_journal()?;
    pair.wait_until_caught_up("web")?;
    let replica = pair.take_over("web")?;
    replica.verify(&disks, acked)?;
    Ok(())
}
