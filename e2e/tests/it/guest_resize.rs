//! A disk that changes its size while it is replicated.

use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::json;
use understudy_testkit::disk::Format;
use understudy_testkit::wait::wait_for;

use crate::protect::{DISK, Protection, assert_sound, go_on, guest, plain};

#[test]
fn a_disk_that_grows_stops_replication_with_the_cause_and_its_last_point_stays() -> Result<()> {
    let config = guest(&[(Format::Qcow2, plain)])?;
    let mut guest = config.start()?;
    go_on(&mut guest)?;
    let protection = Protection::start(&config, |daemon| daemon.allow("cannot be reached"))?;
    let acked = guest.acked().map_or(0, |ack| ack.number);
    protection.until_cut()?;
    // While a cut is open QEMU refuses; that is over in a moment.
    wait_for("the disk to grow", Duration::from_secs(30), || {
        let grown = guest.qmp().execute("block_resize", json!({ "node-name": "disk0", "size": DISK * 2 }));
        Ok(grown.is_ok().then_some(()))
    })?;
    let cause = protection.until_state("resync-required")?;
    ensure!(cause.contains(&format!("has {} bytes and was registered with {DISK}", DISK * 2)), "{cause}");
    let newest = protection.newest()?;

    // The guest knows nothing of it and goes on.
    let ack = guest.acked().map_or(0, |ack| ack.number);
    guest.wait_for_ack(ack + 100)?;
    ensure!(protection.newest()? == newest);
    assert_sound(&protection.fail_over(&config)?, acked)
}
