//! What other tools have in the same QEMU.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use understudy_testkit::disk::Format;
use understudy_testkit::guest::{Guest, GuestDisk};
use understudy_testkit::process;

use crate::protect::{Protection, go_on, guest, plain};

/// Name, whether it records, whether it is stored, of each bitmap on the guest's disks.
fn bitmaps(guest: &mut Guest) -> Result<Vec<(String, bool, bool)>> {
    let blocks = guest.qmp().execute("query-block", json!({}))?;
    let disks = blocks.as_array().context("no disks")?.iter();
    let bitmaps = disks.flat_map(|disk| disk["inserted"]["dirty-bitmaps"].as_array().cloned().unwrap_or_default());
    let flag = |bitmap: &Value, name: &str| bitmap[name].as_bool().unwrap_or_default();
    let told = |bitmap: Value| {
        let name = bitmap["name"].as_str().unwrap_or_default().to_owned();
        (name, flag(&bitmap, "recording"), flag(&bitmap, "persistent"))
    };
    Ok(bitmaps.map(told).collect())
}

#[test]
fn bitmaps_and_exports_of_others_are_left_as_they_are() -> Result<()> {
    let config = guest(&[(Format::Qcow2, plain), (Format::Raw, GuestDisk::on_scsi)])?;
    let mut guest = config.start()?;
    let theirs = [
        json!({ "node": "disk0", "name": "backup-2026", "persistent": true }),
        json!({ "node": "disk0", "name": "backup-old", "disabled": true }),
        json!({ "node": "disk1", "name": "understudy-but-not-quite" }),
    ];
    for bitmap in &theirs {
        guest.qmp().execute("block-dirty-bitmap-add", bitmap.clone())?;
    }
    let socket = config.directory().join("theirs.nbd");
    let address = json!({ "addr": { "type": "unix", "data": { "path": socket } } });
    guest.qmp().execute("nbd-server-start", address)?;
    let export = json!({ "type": "nbd", "id": "theirs", "node-name": "disk1", "name": "theirs", "writable": false });
    guest.qmp().execute("block-export-add", export)?;
    let before = (bitmaps(&mut guest)?, guest.qmp().execute("query-block-exports", json!({}))?);
    ensure!(before.0.len() == 3, "{before:?}");

    go_on(&mut guest)?;
    let protection = Protection::start(&config, |daemon| daemon)?;
    protection.until_cut()?;
    let url = format!("nbd+unix:///theirs?socket={}", socket.display());
    process::run("qemu-img", ["info", &url]).context("their export is not served beside ours")?;
    let during = bitmaps(&mut guest)?;
    ensure!(during.len() > 3, "ours are there as well: {during:?}");
    guest.stop_journal()?;
    protection.until_cut()?;
    protection.assert_equal(config.disks())?;

    protection.pair.primary.text(&["replication", "remove", "web"])?;
    let after = (bitmaps(&mut guest)?, guest.qmp().execute("query-block-exports", json!({}))?);
    ensure!(after == before, "before: {before:?}\nafter: {after:?}");
    process::run("qemu-img", ["info", &url]).context("their export is gone with ours")?;
    protection.pair.stop()
}
