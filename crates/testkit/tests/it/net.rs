//! Two namespaces: what reaches the other side, and what a fault keeps from it.

use std::io::{Seek, SeekFrom};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::Result;
use understudy_testkit::net::{Fate, Host, Net};
use understudy_testkit::process::output_of;
use understudy_testkit::wait::wait_for;

const PORT: u16 = 7000;
const BOUND: Duration = Duration::from_secs(20);

/// Bytes that arrive at `to` when `from` sends so many; what cannot be sent is given up after two seconds.
fn send(from: &Host, to: &Host, bytes: usize) -> Result<usize> {
    let port = PORT.to_string();
    let mut received = tempfile::tempfile()?;
    let output = received.try_clone()?;
    let mut server = to.start("busybox", &["nc", "-l", "-p", &port], |command| {
        command.stdin(Stdio::piped()).stdout(output); // with no input it would hang up at once
    })?;
    wait_for("the server to listen", BOUND, || {
        let mut command = to.command("ss");
        command.args(["-Hltn", &format!("sport = {PORT}")]);
        Ok((!output_of(&mut command)?.stdout.is_empty()).then_some(()))
    })?;
    let mut command = from.command("timeout");
    command.args(["20", "sh", "-c", &format!("head -c {bytes} /dev/zero | busybox nc -w 2 {} {PORT}", to.address())]);
    output_of(&mut command)?;
    if server.wait(Duration::from_millis(200)).is_err() {
        server.kill()?; // nobody came
    }
    Ok(received.seek(SeekFrom::End(0))? as usize)
}

#[test]
fn hosts_reach_each_other_unless_a_fault_is_between_them() -> Result<()> {
    if Net::must_skip("hosts_reach_each_other_unless_a_fault_is_between_them") {
        return Ok(());
    }
    let net = Net::start()?;
    assert_eq!(send(&net.a, &net.b, 1000)?, 1000);
    for fate in [Fate::Reset, Fate::Dropped] {
        net.b.refuse_port(PORT, fate)?;
        assert_eq!(send(&net.a, &net.b, 1000)?, 0, "{fate:?}");
        net.b.heal()?;
    }
    net.a.deafen()?;
    assert_eq!(send(&net.a, &net.b, 1000)?, 0, "deaf to its peer's answers");
    net.a.heal()?;
    net.b.down()?;
    assert_eq!(send(&net.a, &net.b, 1000)?, 0, "unplugged");
    net.b.up()?;
    assert_eq!(send(&net.a, &net.b, 1000)?, 1000);
    Ok(())
}

#[test]
fn a_host_sends_no_faster_than_its_limit() -> Result<()> {
    if Net::must_skip("a_host_sends_no_faster_than_its_limit") {
        return Ok(());
    }
    let net = Net::start()?;
    net.a.rate(Some(20_000_000))?;
    let started = Instant::now();
    assert_eq!(send(&net.a, &net.b, 2_500_000)?, 2_500_000); // a second's worth
    assert!(started.elapsed() >= Duration::from_millis(900), "{:?}", started.elapsed());
    net.a.rate(None)?;
    assert_eq!(send(&net.a, &net.b, 2_500_000)?, 2_500_000);
    Ok(())
}
