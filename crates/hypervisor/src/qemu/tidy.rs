//! Taking out of a QEMU what is ours: at the end of a cut, after one that failed, and after a life of ours that ended in
//! the middle of one. What is there is found by looking, so it does not matter which of these it is.
//!
//! The order, from the readers' side to the guest's: exports, snapshot nodes, the filter out of the guest's way, the
//! filter, the scratch node, the scratch file. The maps stay: they are what tracking rests on.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::Instant;

use super::Shared;
use super::answer::{execute, execute_all, failed, list, text};
use super::disks::graph;
use super::graph::Graph;
use super::names::{DUE_MAP, Part};
use super::server::{exports, own_socket, stop_if_idle};
use super::tracking::remove_map;
use super::{freeze, scratch};
use crate::driver::{Error, Result};
use crate::qmp::{Command, Monitor, QmpError};

/// How long an export may take to let go of its node: QEMU ends the requests that are in flight first.
const EXPORT_GONE: Duration = Duration::from_secs(20);
/// Between two looks, unless QEMU tells of something before.
const LOOK: Duration = Duration::from_millis(5);

impl Shared {
    /// Takes out everything of ours, live reads included, and whatever else an earlier life left.
    pub async fn tidy_all(&self) -> Result<()> {
        if let Some(agent) = &self.config.agent {
            freeze::thaw_leftover(agent, &self.config.runtime_dir).await;
        }
        if let Some(mut monitor) = self.try_monitor().await? {
            remove_exports(&mut monitor, &[Part::Snapshot, Part::Live]).await?;
            self.remove_cut(&mut monitor).await?;
        }
        let directory = &self.config.scratch_dir;
        scratch::sweep(directory).map_err(|err| Error::host(format!("clear {}", directory.display()), err))
    }

    /// Takes out everything that belongs to a cut.
    pub async fn remove_cut(&self, monitor: &mut Monitor) -> Result<()> {
        remove_exports(monitor, &[Part::Snapshot]).await?;
        let graph = graph(monitor).await?;
        let ours = |part: Part| graph.names().filter(move |name| part.owns(name));
        delete_nodes(monitor, ours(Part::Snapshot)).await?;
        if ours(Part::Filter).next().is_some() {
            take_out_filters(monitor, &graph).await?;
        }
        delete_nodes(monitor, ours(Part::Filter).chain(ours(Part::Scratch))).await?;
        remove_due_maps(monitor, &graph).await?;
        stop_if_idle(monitor, &own_socket(&self.config.runtime_dir)?).await
    }
}

/// Ends our exports of these kinds and waits until they are gone. Readers are cut off.
pub async fn remove_exports(monitor: &mut Monitor, parts: &[Part]) -> Result<()> {
    let is_ours = |id: &str| parts.iter().any(|part| part.owns(id));
    remove_matching(monitor, is_ours).await
}

/// Ends the one export with this id and waits until it is gone.
pub async fn remove_export(monitor: &mut Monitor, id: &str) -> Result<()> {
    remove_matching(monitor, |other| other == id).await
}

async fn remove_matching(monitor: &mut Monitor, is_ours: impl Fn(&str) -> bool) -> Result<()> {
    let deadline = Instant::now() + EXPORT_GONE;
    loop {
        let left: Vec<_> = exports(monitor).await?.into_iter().filter(|(id, _)| is_ours(id)).collect();
        if left.is_empty() {
            return Ok(());
        }
        if Instant::now() >= deadline {
            return Err(Error::Busy("an export does not end: a read of the disk hangs".into()));
        }
        for (id, _) in left.iter().filter(|(_, is_ending)| !is_ending) {
            let command = Command::new("block-export-del", json!({ "id": id, "mode": "hard" }));
            match monitor.execute(command).await {
                // Refused: it ended by itself in between.
                Ok(_) | Err(QmpError::Refused(_)) => {}
                Err(err) => return Err(failed("end an export", err)),
            }
        }
        monitor.pause(LOOK).await.map_err(|err| failed("end an export", err))?;
    }
}

async fn delete_nodes<'a>(monitor: &mut Monitor, names: impl Iterator<Item = &'a str>) -> Result<()> {
    let commands: Vec<_> = names.map(|name| Command::new("blockdev-del", json!({ "node-name": name }))).collect();
    execute_all(monitor, "remove a block node", &commands).await.map(drop)
}

/// Puts below each of our filters what is there now in the filter's place: somebody may have put an overlay or a filter
/// of theirs between ours and the disk.
async fn take_out_filters(monitor: &mut Monitor, graph: &Graph) -> Result<()> {
    let blocks = execute(monitor, "list its disks", Command::bare("query-block")).await?;
    let mut commands = Vec::new();
    for block in list(&blocks) {
        let root = text(block, "/inserted/node-name");
        if !Part::Filter.owns(root) {
            continue;
        }
        let below = graph.below(root).ok_or_else(|| Error::Unsupported {
            what: format!("this QEMU does not tell what lies below {root}"),
            remedy: "set the device's drive property back to the disk's own node by hand".into(),
        })?;
        commands.push(set_drive(&device(block), below));
    }
    execute_all(monitor, "give the guest its disk back", &commands).await.map(drop)
}

fn device(block: &Value) -> String {
    let qdev = text(block, "/qdev");
    super::disks::place(qdev).0
}

/// Makes a device read and write another node. QEMU lets the device's requests end first.
pub fn set_drive(device: &str, node: &str) -> Command {
    Command::new("qom-set", json!({ "path": device, "property": "drive", "value": node }))
}

/// The maps that live only as long as a cut.
async fn remove_due_maps(monitor: &mut Monitor, graph: &Graph) -> Result<()> {
    let has_due = |name: &&str| {
        let bitmaps = graph.node(name).map_or(&Value::Null, |node| &node["dirty-bitmaps"]);
        list(bitmaps).iter().any(|bitmap| text(bitmap, "/name") == DUE_MAP)
    };
    let actions: Vec<_> = graph.names().filter(has_due).map(|node| remove_map(node, DUE_MAP)).collect();
    if actions.is_empty() {
        return Ok(());
    }
    execute(monitor, "remove a map", super::tracking::transaction(actions)).await.map(drop)
}
