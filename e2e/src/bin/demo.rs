//! The demo: two hosts, a real guest that keeps a journal over two disks, replication every second; the primary is
//! lost, the replica takes over, and the guest reads its journal back.
//!
//! Everything is done through the command line, as an administrator would. Ends non-zero when anything is not so.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use understudy_e2e::Pair;
use understudy_testkit::disk::Format;
use understudy_testkit::guest::{Ack, Console, Guest, GuestConfig, Verdict};
use understudy_testkit::wait;

/// Size of each of the guest's disks.
const DISK: u64 = 256 << 20;
/// Cycles that are watched before the primary is lost.
const CYCLES: u64 = 8;
/// How long the replica's guest may take to boot, under emulation on a busy machine.
const BOOT_BOUND: Duration = Duration::from_secs(90);

fn main() -> Result<()> {
    say("booting a small Linux guest with two disks");
    let config = GuestConfig::new()?.name("web").two_disks([Format::Qcow2, Format::Raw], DISK)?;
    let disks: Vec<String> = config.disks().iter().map(|d| d.in_guest()).collect();
    let mut guest = config.start()?;
    let first = guest.start_journal("")?;
    note(&format!(
        "up in {:.1} s; it writes numbered records to both disks in turn, {first:?} was the first",
        guest.up_in().as_secs_f64()
    ));
    say("starting two hosts and letting them trust each other");
    let mut pair = Pair::start_with(|daemon| daemon.allow("cannot be reached"))?;
    replicate(&pair, &guest)?;
    watch(&pair)?;
    let acked = lose_primary(&mut pair, guest)?;
    let (verdict, console) = take_over(&pair, &disks.join(" "))?;
    drop(console);
    judge(&verdict, acked)?;
    clean_up(&pair)?;
    say("done: the replica is a state the guest passed through, and nothing before it is missing");
    Ok(())
}

fn say(text: &str) {
    println!("\n== {text}");
}

fn note(text: &str) {
    println!("   {text}");
}

/// Runs a command on a host and shows both the command and what it says.
fn show(site: &understudy_e2e::Site, words: &[&str]) -> Result<String> {
    println!("   {}$ understudy {}", site.name(), words.join(" "));
    let text = site.text(words)?;
    text.lines().for_each(|line| println!("     {line}"));
    Ok(text)
}

fn replicate(pair: &Pair, guest: &Guest) -> Result<()> {
    say("replicating the running VM, with a cycle every second");
    let socket = guest.config().product_socket().display().to_string();
    show(&pair.primary, &["vm", "add", "web", "--qmp", &socket])?;
    let create = [
        "replication",
        "create",
        "web",
        "--to",
        "replica",
        "--interval",
        "1s",
        "--points",
        "4",
        "--point-every",
        "cycle",
    ];
    show(&pair.primary, &create)?;
    let began = Instant::now();
    show(&pair.primary, &["replication", "start", "web", "--wait"])?;
    note(&format!("the copy took {:.1} s, under a writing guest", began.elapsed().as_secs_f64()));
    Ok(())
}

fn watch(pair: &Pair) -> Result<()> {
    say("cycles going by");
    let mut seen = 0;
    let mut last = None;
    while seen < CYCLES {
        let (number, age) = wait::wait_for("the next cycle", Duration::from_secs(60), || {
            let status = pair.primary.json(&["replication", "status", "web"])?;
            let number = status["newest"]["number"].as_u64();
            Ok(number.filter(|n| Some(*n) != last).map(|n| (n, status["rpo_actual_ms"].clone())))
        })?;
        note(&format!("cut {number} is on the replica; its data is {age} ms old"));
        (last, seen) = (Some(number), seen + 1);
    }
    show(&pair.replica, &["point", "list", "web"])?;
    Ok(())
}

/// SIGKILL to the guest's QEMU and to the primary's daemon, while the guest writes.
fn lose_primary(pair: &mut Pair, guest: Guest) -> Result<Ack> {
    say("losing the primary: kill -9 to the VM and to its host's daemon, while it writes");
    let (_, acked) = guest.kill()?;
    pair.primary.kill()?;
    let acked = acked.context("the guest announced nothing")?;
    note(&format!("the last record the guest announced as durable was number {}", acked.number));
    Ok(acked)
}

fn take_over(pair: &Pair, disks: &str) -> Result<(Verdict, Console)> {
    say("taking over on the replica");
    let began = Instant::now();
    show(&pair.replica, &["failover", "start", "web", "--power-on", "--yes"])?;
    note(&format!("QEMU was started {:.2} s after the command", began.elapsed().as_secs_f64()));
    let status = pair.replica.json(&["replication", "status", "web"])?;
    let monitor = status["failover"]["monitor"].as_str().with_context(|| format!("no monitor in {status}"))?;
    let console = PathBuf::from(monitor).with_file_name("console.sock");
    let mut console = Console::connect(&console, BOOT_BOUND)?;
    console.wait_for("GUEST-READY", BOOT_BOUND)?;
    note(&format!("the guest is up on the replica, {:.1} s after the command", began.elapsed().as_secs_f64()));
    let verdict = console.verify(disks, BOOT_BOUND)?;
    Ok((verdict, console))
}

fn judge(verdict: &Verdict, acked: Ack) -> Result<()> {
    say("what the guest found in its journal");
    let (records, time) = verdict.loss(acked);
    note(&format!(
        "records {}, missing {}, torn {}, out of order between the disks {}",
        verdict.records, verdict.missing, verdict.torn, verdict.order
    ));
    note(&format!("lost: {records} records, {} ms of writes, all of them after the last cycle", time.as_millis()));
    ensure!(verdict.consistent, "the disks are no state the guest passed through: {verdict:?}");
    ensure!(verdict.missing == 0 && verdict.torn == 0 && verdict.order == 0 && verdict.strangers == 0, "{verdict:?}");
    ensure!(verdict.records > 0, "the journal is empty");
    ensure!(time < Duration::from_secs(30), "more was lost than a few cycles: {time:?}");
    Ok(())
}

/// Ends the VM that was started on the replica.
fn clean_up(pair: &Pair) -> Result<()> {
    show(&pair.replica, &["failover", "revert", "web", "--yes"])?;
    Ok(())
}
