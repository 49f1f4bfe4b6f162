//! What is refused: the code, the words, and that nothing has changed.

use std::fs;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use understudy_e2e::replication::{PATIENCE, status, wait_for_state};
use understudy_e2e::{Pair, Site};
use understudy_testkit::disk::Format;
use understudy_testkit::guest::GuestConfig;
use understudy_testkit::wait;

/// Everything a person can see of a host, which a refused command must leave as it was.
fn everything(site: &Site) -> Result<Value> {
    let mut seen = Vec::new();
    for words in [["vm", "list"], ["peer", "list"], ["replication", "status"], ["job", "list"]] {
        seen.push(site.json(&words)?);
    }
    Ok(without_times(json!(seen)))
}

/// Ages and counters go on by themselves.
fn without_times(value: Value) -> Value {
    match value {
        Value::Array(items) => items.into_iter().map(without_times).collect(),
        Value::Object(fields) => {
            let lasting = |name: &str| {
                !["rpo_actual_ms", "statistics", "newest", "activity", "link", "connections"].contains(&name)
            };
            fields.into_iter().filter(|(name, _)| lasting(name)).map(|(name, v)| (name, without_times(v))).collect()
        }
        other => other,
    }
}

/// Runs a command that must be refused with this code, and with these words in what it says.
#[track_caller]
fn refused(site: &Site, words: &[&str], code: u32, said: &[&str]) -> Result<()> {
    let before = everything(site)?;
    let output = site.config().command(words).output()?;
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(!output.status.success(), "{words:?} was not refused: {text}");
    ensure!(text.contains(&code.to_string()), "{words:?} was refused without {code}: {text}");
    for word in said {
        ensure!(text.contains(word), "{words:?} was refused without naming {word:?}: {text}");
    }
    let after = everything(site)?;
    ensure!(before == after, "{words:?} was refused and changed something:\n{before}\n{after}");
    Ok(())
}

#[test]
fn bad_input_is_named_and_changes_nothing() -> Result<()> {
    let pair = Pair::start_with(|config| config.allow("WARN"))?;
    let (primary, replica) = (&pair.primary, &pair.replica);
    let config = GuestConfig::new()?.name("web").two_disks([Format::Qcow2, Format::Raw], 16 << 20)?;
    let guest = config.start()?;
    let socket = guest.config().product_socket().display().to_string();
    let place = tempfile::tempdir()?;
    let dead = place.path().join("dead.sock").display().to_string();
    drop(std::os::unix::net::UnixListener::bind(&dead)?);
    let no_vm = place.path().join("no-vm.toml");
    fs::write(&no_vm, "this = \"is no VM\"\n")?;
    let no_vm = no_vm.display().to_string();

    refused(primary, &["vm", "add", "web", "--qmp", &dead], 32777, &[&dead])?;
    refused(primary, &["vm", "add", "web", "--qmp", "/nowhere/qmp"], 32779, &["/nowhere/qmp"])?;
    refused(primary, &["vm", "add", "web", "--qmp", &socket, "--definition", &no_vm], 32773, &["definition"])?;
    refused(primary, &["vm", "add", "", "--qmp", &socket], 32773, &["name"])?;
    refused(primary, &["vm", "show", "web"], 32773, &["web"])?;
    refused(primary, &["replication", "create", "web", "--to", "replica"], 32773, &["web"])?;

    primary.text(&["vm", "add", "web", "--qmp", &socket])?;
    refused(primary, &["vm", "add", "web", "--qmp", &socket], 32775, &["web"])?;
    refused(primary, &["replication", "create", "web", "--to", "nobody"], 32773, &["nobody"])?;
    refused(primary, &["replication", "create", "web", "--to", "replica", "--interval", "16m"], 32773, &["interval"])?;
    refused(primary, &["replication", "create", "web", "--to", "replica", "--points", "25"], 32773, &["points"])?;
    refused(primary, &["replication", "create", "web", "--to", "replica", "--exclude-disk", "no"], 32773, &["no"])?;
    refused(primary, &["replication", "start", "web"], 32775, &["web"])?;

    primary.text(&["replication", "create", "web", "--to", "replica", "--interval", "1s"])?;
    refused(primary, &["replication", "create", "web", "--to", "replica"], 32775, &["replicated already"])?;
    refused(primary, &["replication", "suspend", "web"], 32775, &[])?;
    refused(primary, &["replication", "resume", "web"], 32775, &[])?;
    refused(primary, &["failover", "start", "web", "--yes"], 32775, &[])?;
    refused(primary, &["vm", "remove", "web"], 32775, &["replication remove"])?;
    refused(primary, &["job", "cancel", "00000000-0000-0000-0000-000000000000"], 32773, &[])?;

    primary.text(&["replication", "start", "web", "--wait"])?;
    refused(primary, &["replication", "start", "web"], 32775, &[])?;
    refused(replica, &["failover", "revert", "web", "--yes"], 32775, &[])?;
    refused(replica, &["failover", "commit", "web", "--yes"], 32775, &[])?;
    refused(replica, &["failover", "start", "web", "--point", "nothing", "--yes"], 32773, &["nothing"])?;
    refused(replica, &["replication", "start", "web"], 32775, &[])?;
    pair.wait_until_caught_up("web").map(drop)
}

#[test]
fn a_peer_that_was_removed_is_refused_and_the_relationship_says_so() -> Result<()> {
    let pair = Pair::start_with(|config| config.allow("WARN"))?;
    let guest = GuestConfig::new()?.name("web").two_disks([Format::Qcow2, Format::Qcow2], 16 << 20)?.start()?;
    pair.replicate(&guest, "web", &["--interval", "1s"])?;
    pair.wait_until_caught_up("web")?;
    pair.replica.text(&["peer", "remove", "primary"])?;
    let mut last = Value::Null;
    let told = wait::wait_for("the refusal to be told", PATIENCE, || {
        last = status(&pair.primary, "web")?;
        let is_told = last["failure"].as_str().is_some_and(|text| text.contains("not trusted"));
        Ok((last["health"] != "ok" && is_told).then_some(()))
    });
    told.with_context(|| format!("the last status was {last}"))?;
    pair.primary.text(&["peer", "join", &pair.invite()?])?;
    wait_for_state(&pair.primary, "web", "replicating")?;
    pair.wait_until_caught_up("web").map(drop)
}
