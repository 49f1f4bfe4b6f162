//! The moment in which a guest of several disks stands still, and what happens should the daemon die in it.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use understudy_testkit::disk::Format;
use understudy_testkit::wait::wait_for;

use crate::protect::{BOUND, Protection, go_on, guest, plain};

/// Longest time a guest stands still when the daemon dies at the worst moment.
const STANDSTILL_MAX: Duration = Duration::from_secs(1);

/// A way to a monitor that can be made to end right behind the next `stop`.
struct Way {
    path: PathBuf,
    /// Who is told when `stop` went through and nothing behind it will.
    trap: Arc<Mutex<Option<Sender<()>>>>,
}

impl Way {
    fn lay(monitor: PathBuf, path: PathBuf) -> Result<Self> {
        let listener = UnixListener::bind(&path)?;
        let trap = Arc::<Mutex<Option<Sender<()>>>>::default();
        let theirs = trap.clone();
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let (monitor, trap) = (monitor.clone(), theirs.clone());
                std::thread::spawn(move || relay(&client, &monitor, &trap));
            }
        });
        Ok(Self { path, trap })
    }

    /// Lets the next `stop` through, and nothing that comes behind it on that connection.
    fn set_trap(&self) -> Receiver<()> {
        let (sender, receiver) = channel();
        *self.trap.lock().expect("no holder panics") = Some(sender);
        receiver
    }
}

fn relay(client: &UnixStream, monitor: &Path, trap: &Mutex<Option<Sender<()>>>) -> Option<()> {
    let server = UnixStream::connect(monitor).ok()?;
    let (mut answers, mut back) = (server.try_clone().ok()?, client.try_clone().ok()?);
    std::thread::spawn(move || {
        // Either end may go at any time.
        let _ = std::io::copy(&mut answers, &mut back);
        let _ = back.shutdown(std::net::Shutdown::Both);
    });
    let mut orders = BufReader::new(client.try_clone().ok()?);
    let mut line = Vec::new();
    while orders.read_until(b'\n', &mut line).is_ok_and(|len| len > 0) {
        (&server).write_all(&line).ok()?;
        if String::from_utf8_lossy(&line).contains("\"execute\":\"stop\"")
            && let Some(sprung) = trap.lock().expect("no holder panics").take()
        {
            // The connection stays as it is until the client is dead: its other orders are never heard.
            sprung.send(()).ok()?;
            let mut rest = Vec::new();
            let _ = std::io::Read::read_to_end(&mut orders, &mut rest);
            break;
        }
        line.clear();
    }
    let _ = server.shutdown(std::net::Shutdown::Both);
    Some(())
}

/// When QEMU told of this event.
fn told_at(events: &[Value], name: &str) -> Option<SystemTime> {
    let event = events.iter().find(|event| event["event"] == name)?;
    let number = |unit: &str| event["timestamp"][unit].as_u64();
    let since = Duration::from_secs(number("seconds")?) + Duration::from_micros(number("microseconds")?);
    Some(UNIX_EPOCH + since)
}

#[test]
fn a_guest_whose_daemon_dies_while_it_stands_still_runs_on_within_a_second() -> Result<()> {
    let config = guest(&[(Format::Qcow2, plain), (Format::Raw, plain)])?;
    let mut guest = config.start()?;
    let way = Way::lay(config.product_socket(), config.directory().join("way.qmp"))?;
    go_on(&mut guest)?;
    let mut protection = Protection::create_through(&config, &way.path, |daemon| daemon.allow("in place of a daemon"))?;
    protection.begin()?;
    protection.until_cut()?;

    let sprung = way.set_trap();
    sprung.recv_timeout(BOUND).context("no cut stopped the guest")?;
    wait_for("the guest to stand still", BOUND, || {
        let status = guest.qmp().execute("query-status", json!({}))?;
        Ok((status["status"] == "paused").then_some(()))
    })?;
    guest.qmp().events.clear();
    let killed = SystemTime::now();
    protection.pair.primary.kill()?;
    let resumed = wait_for("the guest to run on", BOUND, || {
        guest.qmp().execute("query-status", json!({}))?;
        Ok(told_at(&guest.qmp().events, "RESUME"))
    })?;
    let standstill = resumed.duration_since(killed).context("it ran on before the daemon was dead")?;
    println!("the guest ran on {standstill:?} after its daemon was killed");
    ensure!(standstill < STANDSTILL_MAX, "the guest stood still for {standstill:?} after its daemon was killed");
    let ack = guest.acked().map_or(0, |ack| ack.number);
    guest.wait_for_ack(ack + 100)?;

    // The next life tidies up, and goes on with a delta.
    protection.pair.primary.up()?;
    protection.until_cut()?;
    guest.stop_journal()?;
    protection.until_cut()?;
    protection.assert_equal(config.disks())?;
    protection.pair.stop()
}
