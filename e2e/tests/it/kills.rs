//! Hosts that are killed at any moment, under a guest that never stops writing.

use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use understudy_e2e::Pair;
use understudy_e2e::replication::{PATIENCE, check_runs, status};
use understudy_testkit::disk::Format;
use understudy_testkit::guest::{Guest, GuestConfig};
use understudy_testkit::link::Direction;
use understudy_testkit::wait;

const DISK: u64 = 256 << 20;
/// Times a host is killed. Each costs a second or two.
const KILLS: u32 = 10;

/// The moments are counted in records of the guest's journal, and drawn from a seed: another one each time, or the
/// one in `UNDERSTUDY_SEED`.
fn seed() -> u64 {
    let given = std::env::var("UNDERSTUDY_SEED").ok().and_then(|text| text.parse().ok());
    let fresh = || SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |since| since.as_nanos() as u64);
    given.unwrap_or_else(fresh)
}

#[test]
fn hosts_killed_at_any_moment_lose_nothing_that_was_acknowledged() -> Result<()> {
    let seed = seed();
    eprintln!("UNDERSTUDY_SEED={seed}");
    let mut chance = fastrand::Rng::with_seed(seed);
    // Whatever a host says of another that is gone, and of its own being away, is expected here.
    let mut pair = Pair::start_with(|config| config.allow("WARN"))?;
    let config = GuestConfig::new()?.name("web").two_disks([Format::Qcow2, Format::Raw], DISK)?;
    let disks: Vec<String> = config.disks().iter().map(|disk| disk.in_guest()).collect();
    let mut guest = config.start()?;
    guest.start_journal("--rate 400")?;
    pair.replicate(&guest, "web", &["--interval", "1s", "--points", "3", "--point-every", "cycle"])?;

    let mut runs = 0;
    for _ in 0..KILLS {
        write_on(&guest, chance.u64(1..700))?;
        match chance.u8(0..3) {
            0 => pair.primary.kill()?,
            1 => pair.replica.kill()?,
            _ => {
                pair.primary.kill()?;
                pair.replica.kill()?;
            }
        }
        runs += check_runs(&pair.replica)?;
        write_on(&guest, chance.u64(1..300))?;
        ensure!(guest.is_running()?, "the guest went with its host's daemon");
        bring_back(&mut pair)?;
        if chance.bool() {
            pair.wait_until_caught_up("web")?;
        }
    }
    ensure!(runs > 0, "there never was a run to check");
    let acked = guest.acked().context("the guest announced nothing")?;
    pair.wait_until_caught_up("web")?;
    let (_, last) = guest.kill()?;
    pair.primary.kill()?;
    let replica = pair.take_over("web")?;
    let verdict = replica.verify(&disks.join(" "), acked)?;
    eprintln!("{KILLS} kills, {} records, newest announced {last:?}, newest found {:?}", verdict.records, verdict.last);
    replica.revert()
}

fn write_on(guest: &Guest, records: u64) -> Result<()> {
    let now = guest.acked().context("the guest announced nothing")?.number;
    guest.wait_for_ack(now + records).map(drop)
}

fn bring_back(pair: &mut Pair) -> Result<()> {
    for site in [&mut pair.replica, &mut pair.primary] {
        if site.daemon().is_err() {
            site.up()?;
        }
    }
    Ok(())
}

#[test]
fn a_replica_that_was_away_is_caught_up_by_itself_and_without_a_new_copy() -> Result<()> {
    let pair = Pair::start_with(|config| config.allow("WARN"))?;
    let config = GuestConfig::new()?.name("web").two_disks([Format::Qcow2, Format::Qcow2], DISK)?;
    let disks: Vec<String> = config.disks().iter().map(|disk| disk.in_guest()).collect();
    let mut guest = config.start()?;
    // What cannot be compressed makes a new copy tell itself from a delta.
    guest.workload(&format!("fill {} --bytes {} --from {} --pattern random", disks[0], DISK / 4, DISK / 2))?;
    guest.start_journal("--rate 400")?;
    pair.replicate(&guest, "web", &["--interval", "1s", "--points", "0"])?;
    pair.wait_until_caught_up("web")?;

    let link = pair.replica.link();
    link.refuse(true);
    link.cut();
    let away = wait::wait_for("the primary to tell what it misses", PATIENCE, || {
        let status = status(&pair.primary, "web")?;
        Ok(status["statistics"]["missed"].as_u64().is_some_and(|missed| missed >= 3).then_some(status))
    })?;
    ensure!(away["state"] == "replicating", "{away}");
    ensure!(away["health"] != "ok", "three cycles are missing and health is ok: {away}");
    write_on(&guest, 500)?;
    let acked = guest.stop_journal()?;

    let passed = link.passed(Direction::Forward);
    link.refuse(false);
    pair.wait_until_caught_up("web")?;
    let sent = link.passed(Direction::Forward) - passed;
    ensure!(sent < DISK / 4, "catching up took {sent} bytes");
    pair.take_over("web")?.verify(&disks.join(" "), acked).map(drop)
}
