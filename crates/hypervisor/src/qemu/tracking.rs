//! Maps on the disks of a running QEMU: begun, dropped, folded and ended, each for all disks in one transaction.

use serde_json::{Value, json};
use understudy_model::{CutNumber, DiskSpec};

use super::answer::execute;
use super::connect::check_version;
use super::disks::{Disk, OurMap, survey};
use crate::driver::{LostTracking, MapOwner, Result, granularity};
use crate::qmp::{Command, Monitor};

/// Most maps one disk may come to bear: enough for a day of failed cycles between two folds, and far below the 65535
/// that a qcow2 image can store.
pub const MAPS_MAX: usize = 256;

/// Adds a map that records from now on.
pub fn add_map(disk: &Disk, name: &str) -> Value {
    json!({ "type": "block-dirty-bitmap-add", "data": {
        "node": disk.node, "name": name, "granularity": granularity(disk.info.size),
        "persistent": disk.info.persistent_maps,
    } })
}

/// Adds a map for the length of a cut.
pub fn add_passing_map(disk: &Disk, name: &str, is_recording: bool) -> Value {
    json!({ "type": "block-dirty-bitmap-add", "data": {
        "node": disk.node, "name": name, "granularity": granularity(disk.info.size), "disabled": !is_recording,
    } })
}

/// Stops a map's recording.
pub fn disable_map(node: &str, name: &str) -> Value {
    json!({ "type": "block-dirty-bitmap-disable", "data": { "node": node, "name": name } })
}

/// Removes a map.
pub fn remove_map(node: &str, name: &str) -> Value {
    json!({ "type": "block-dirty-bitmap-remove", "data": { "node": node, "name": name } })
}

/// ORs maps into another.
pub fn merge_maps(node: &str, into: &str, from: &[&str]) -> Value {
    json!({ "type": "block-dirty-bitmap-merge", "data": { "node": node, "target": into, "bitmaps": from } })
}

/// All of it or nothing of it.
pub fn transaction(actions: Vec<Value>) -> Command {
    Command::new("transaction", json!({ "actions": actions }))
}

/// Carries out a transaction, unless it is empty.
async fn carry_out(monitor: &mut Monitor, what: &str, actions: Vec<Value>) -> Result<()> {
    if actions.is_empty() {
        return Ok(());
    }
    execute(monitor, what, transaction(actions)).await.map(drop)
}

pub async fn begin(monitor: &mut Monitor, owner: &MapOwner, specs: &[DiskSpec], first: CutNumber) -> Result<()> {
    let survey = survey(monitor).await?;
    check_version(survey.version)?;
    let mut actions = Vec::new();
    for spec in specs {
        let disk = survey.find(spec)?;
        let stale = disk.our_maps().into_iter().filter(|m| owner.supersedes(&m.owner));
        actions.extend(stale.map(|m| remove_map(&disk.node, &m.name)));
        actions.push(add_map(disk, &owner.map_name(first)));
    }
    carry_out(monitor, "begin tracking", actions).await
}

pub async fn drop_below(monitor: &mut Monitor, owner: &MapOwner, below: CutNumber) -> Result<()> {
    let survey = survey(monitor).await?;
    let spent = |m: &OurMap| m.owner == *owner && m.info.number < below && !m.info.recording;
    let actions = survey.disks.iter().flat_map(|disk| {
        let maps = disk.our_maps().into_iter().filter(spent);
        maps.map(|m| remove_map(&disk.node, &m.name)).collect::<Vec<_>>()
    });
    let actions = actions.collect();
    carry_out(monitor, "remove maps", actions).await
}

pub async fn fold(monitor: &mut Monitor, owner: &MapOwner) -> Result<()> {
    let survey = survey(monitor).await?;
    let mut actions = Vec::new();
    for disk in &survey.disks {
        let frozen = |m: &OurMap| m.owner == *owner && !m.info.recording;
        let maps: Vec<_> = disk.our_maps().into_iter().filter(frozen).collect();
        if let Some(bad) = maps.iter().find(|m| m.info.inconsistent) {
            return Err(disk.lost(LostTracking::Inconsistent { number: bad.info.number }));
        }
        let Some((oldest, rest)) = maps.split_first().filter(|(_, rest)| !rest.is_empty()) else { continue };
        let names: Vec<_> = rest.iter().map(|m| m.name.as_str()).collect();
        actions.push(merge_maps(&disk.node, &oldest.name, &names));
        actions.extend(names.iter().map(|name| remove_map(&disk.node, name)));
    }
    carry_out(monitor, "unite maps", actions).await
}

pub async fn end(monitor: &mut Monitor, owner: &MapOwner) -> Result<()> {
    let survey = survey(monitor).await?;
    let actions = survey.disks.iter().flat_map(|disk| {
        let maps = disk.our_maps().into_iter().filter(|m| owner.supersedes(&m.owner));
        maps.map(|m| remove_map(&disk.node, &m.name)).collect::<Vec<_>>()
    });
    let actions = actions.collect();
    carry_out(monitor, "end tracking", actions).await
}
