//! Looking at a QEMU: which disks it has, how to name them durably, which maps they bear.
//!
//! Node names are made up anew at every start (`#block123`), and the order in which QEMU lists disks is not the guest's.
//! So a disk is known by its device: the id somebody gave it, else its serial number, else the name of its `-drive`,
//! else its place in QEMU's object tree, which is the same as long as the command line is.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use understudy_model::DiskSpec;

use super::answer::{execute, execute_all, flag, list, number, text};
use super::connect::{RunState, run_state};
use super::graph::{Graph, is_filter, is_pivot};
use super::names::{DUE_MAP, Part};
use crate::driver::{
    Description, DiskInfo, DiskMaps, Error, ImageFormat, LostTracking, MapInfo, MapOwner, Power, Result,
};
use crate::qmp::{Command, Monitor, Peer, Version, printable};

/// One look at a QEMU.
#[derive(Debug)]
pub struct Survey {
    pub version: Version,
    pub state: RunState,
    /// A migration is under way, whatever the state says.
    pub is_migrating: bool,
    pub peer: Peer,
    pub disks: Vec<Disk>,
    pub left_out: Vec<String>,
}

/// One disk that can be replicated, with what its QEMU calls it now.
#[derive(Debug)]
pub struct Disk {
    pub info: DiskInfo,
    /// The device in QEMU's object tree: where its `drive` property is.
    pub device: String,
    /// The node the device reads and writes: perhaps a filter.
    pub root: String,
    /// The node that bears the maps: the first below that is no filter.
    pub node: String,
    /// A job that is going to put another node in its place.
    pub is_pivoting: bool,
    /// All bitmaps on the node, of anybody, as QEMU lists them.
    bitmaps: Vec<Value>,
}

/// A bitmap of ours on a disk.
#[derive(Debug)]
pub struct OurMap {
    pub name: String,
    pub owner: MapOwner,
    pub info: MapInfo,
}

impl Survey {
    pub fn description(&self) -> Description {
        let power = match self.state {
            _ if self.is_migrating => Power::Unsettled,
            RunState::Running => Power::Running,
            RunState::Standing => Power::Paused,
            RunState::Moving => Power::Unsettled,
        };
        let Version { major, minor, patch } = self.version;
        Description {
            power,
            version: Some((major, minor, patch)),
            disks: self.disks.iter().map(|d| d.info.clone()).collect(),
            left_out: self.left_out.clone(),
        }
    }

    /// The disk that `spec` means, if it is still what was registered.
    pub fn find(&self, spec: &DiskSpec) -> Result<&Disk> {
        let disk = self.disks.iter().find(|d| d.info.key == spec.key).ok_or_else(|| Error::DiskMissing {
            disk: spec.key.clone(),
            why: match self.left_out.is_empty() {
                true => "it was removed".into(),
                false => format!("it was removed, or is one of those left out: {}", self.left_out.join("; ")),
            },
        })?;
        if disk.info.size != spec.size {
            return Err(Error::Resized { disk: spec.key.clone(), expected: spec.size, found: disk.info.size });
        }
        Ok(disk)
    }
}

impl Disk {
    /// All maps of ours, of any owner.
    pub fn our_maps(&self) -> Vec<OurMap> {
        let maps = self.bitmaps.iter().filter_map(|bitmap| {
            let name = text(bitmap, "/name");
            let (owner, number) = MapOwner::parse(name)?;
            Some(OurMap { name: name.into(), owner, info: map_info(bitmap, number) })
        });
        let mut maps: Vec<_> = maps.collect();
        maps.sort_by_key(|m| m.info.number);
        maps
    }

    /// The maps of one owner, and the names of what its former generations left.
    pub fn maps_of(&self, owner: &MapOwner) -> DiskMaps {
        let mut maps = DiskMaps { key: self.info.key.clone(), size: self.info.size, ..DiskMaps::default() };
        for map in self.our_maps() {
            if map.owner == *owner {
                maps.maps.push(map.info);
            } else if map.owner.relationship == owner.relationship {
                maps.stale.push(map.name);
            }
        }
        maps
    }

    /// Whether parts of a cut that was not ended properly are on the disk.
    pub fn has_leftovers(&self) -> bool {
        Part::Filter.owns(&self.root) || self.bitmaps.iter().any(|b| text(b, "/name") == DUE_MAP)
    }

    /// Most granules that the maps of one owner mark together.
    pub fn marked_granules(&self, owner: &MapOwner) -> u64 {
        let maps = self.our_maps().into_iter().filter(|m| m.owner == *owner);
        maps.map(|m| m.info.dirty / m.info.granularity.max(1)).fold(0, u64::saturating_add)
    }

    pub fn lost(&self, lost: LostTracking) -> Error {
        Error::tracking(&self.info.key, lost)
    }
}

/// Bytes marked in the bitmap with this name, from a list of bitmaps.
pub fn marked(bitmaps: &Value, name: &str) -> Option<u64> {
    let bitmap = list(bitmaps).iter().find(|b| text(b, "/name") == name)?;
    number(bitmap, "/count")
}

fn map_info(bitmap: &Value, number: understudy_model::CutNumber) -> MapInfo {
    MapInfo {
        number,
        recording: flag(bitmap, "/recording"),
        inconsistent: flag(bitmap, "/inconsistent"),
        persistent: flag(bitmap, "/persistent"),
        busy: flag(bitmap, "/busy"),
        granularity: self::number(bitmap, "/granularity").unwrap_or(0),
        dirty: self::number(bitmap, "/count").unwrap_or(0),
    }
}

/// Looks at everything that a replication may need to know.
pub async fn survey(monitor: &mut Monitor) -> Result<Survey> {
    let commands = ["query-status", "query-block", "query-block-jobs", "query-iothreads"].map(Command::bare);
    let answers = execute_all(monitor, "describe itself", &commands).await?;
    let [status, blocks, jobs, iothreads] = answers.try_into().expect("one answer a command");
    let is_migrating = is_migrating(monitor).await?;
    let mut left_out = Vec::new();
    let candidates = candidates(&blocks, &mut left_out);
    let needs_graph = !list(&jobs).is_empty() || candidates.iter().any(|c| is_filter(text(c.block, "/inserted/drv")));
    let graph = if needs_graph { Some(graph(monitor).await?) } else { None };
    let traits = traits(monitor, &candidates, !list(&iothreads).is_empty()).await?;
    let mut disks = Vec::new();
    let directory = monitor.peer().pid.map(|pid| PathBuf::from(format!("/proc/{pid}/cwd")));
    for (candidate, traits) in candidates.iter().zip(traits) {
        match disk(candidate, traits, graph.as_ref(), directory.as_deref()) {
            Ok(disk) => disks.push(disk),
            Err(why) => left_out.push(format!("{}: {why}", candidate.name())),
        }
    }
    name_disks(&mut disks, &mut left_out);
    Ok(Survey {
        version: monitor.version(),
        state: run_state(&status),
        is_migrating,
        peer: monitor.peer(),
        disks: disks.into_iter().map(|d| d.disk).collect(),
        left_out,
    })
}

/// The block graph with all nodes.
pub async fn graph(monitor: &mut Monitor) -> Result<Graph> {
    let nodes = Command::new("query-named-block-nodes", json!({ "flat": true }));
    let nodes = execute(monitor, "list its block nodes", nodes).await?;
    let edges = monitor.execute(Command::bare("x-debug-query-block-graph")).await;
    match edges {
        Ok(edges) => Ok(Graph::new(Some(&edges), &nodes)),
        Err(crate::qmp::QmpError::Refused(_)) => Ok(Graph::new(None, &nodes)),
        Err(err) => Err(super::answer::failed("show its block graph", err)),
    }
}

async fn is_migrating(monitor: &mut Monitor) -> Result<bool> {
    let migration = execute(monitor, "tell of migrations", Command::bare("query-migrate")).await?;
    let status = text(&migration, "/status");
    Ok(!matches!(status, "" | "none" | "completed" | "failed" | "cancelled"))
}

/// An entry of `query-block` that may be a disk of the guest.
struct Candidate<'a> {
    block: &'a Value,
    /// The device in the object tree.
    device: String,
    /// The id somebody gave it, if any.
    id: Option<String>,
}

impl Candidate<'_> {
    /// What a person would call it.
    fn name(&self) -> String {
        let drive = text(self.block, "/device");
        printable(match (&self.id, drive) {
            (Some(id), _) => id,
            (None, "") => &self.device,
            (None, drive) => drive,
        })
    }
}

fn candidates<'a>(blocks: &'a Value, left_out: &mut Vec<String>) -> Vec<Candidate<'a>> {
    let mut found = Vec::new();
    for block in list(blocks) {
        let (device, id) = place(text(block, "/qdev"));
        let candidate = Candidate { block, device, id };
        let reason = if candidate.device.is_empty() {
            "no device of the guest uses it"
        } else if flag(block, "/removable") {
            "removable medium"
        } else if block.get("inserted").is_none() {
            "nothing is inserted"
        } else if flag(block, "/inserted/ro") {
            "read-only"
        } else {
            found.push(candidate);
            continue;
        };
        left_out.push(format!("{}: {reason}", candidate.name()));
    }
    found
}

/// The device's path in the object tree and the id it was given, from what `query-block` calls `qdev`: an id, or a path
/// for a device that has none, or that is the inner half of a virtio device.
pub fn place(qdev: &str) -> (String, Option<String>) {
    const GIVEN: &str = "/machine/peripheral/";
    if qdev.is_empty() {
        return (String::new(), None);
    }
    if !qdev.starts_with('/') {
        return (format!("{GIVEN}{qdev}"), Some(qdev.into()));
    }
    let path = qdev.strip_suffix("/virtio-backend").unwrap_or(qdev);
    (path.into(), path.strip_prefix(GIVEN).map(Into::into))
}

/// What only the device itself can tell.
#[derive(Debug, Default)]
struct Traits {
    serial: String,
    iothread: Option<String>,
}

async fn traits(monitor: &mut Monitor, candidates: &[Candidate<'_>], has_iothreads: bool) -> Result<Vec<Traits>> {
    let mut all = Vec::new();
    for candidate in candidates {
        let mut traits = Traits::default();
        if candidate.id.is_none() {
            let serial = property(monitor, &candidate.device, "serial").await?;
            traits.serial = if is_made_up(&serial) { String::new() } else { serial };
        }
        if has_iothreads {
            traits.iothread = iothread(monitor, &candidate.device).await?;
        }
        all.push(traits);
    }
    Ok(all)
}

/// Whether a serial number is one that QEMU gives to IDE disks by their count.
fn is_made_up(serial: &str) -> bool {
    serial.strip_prefix("QM").is_some_and(|rest| rest.len() == 5 && rest.bytes().all(|b| b.is_ascii_digit()))
}

/// The I/O thread of a device, or of the controller it hangs on.
async fn iothread(monitor: &mut Monitor, device: &str) -> Result<Option<String>> {
    let bus = property(monitor, device, "parent_bus").await?;
    let controller = bus.split("/virtio-backend").next().unwrap_or_default().to_owned();
    for place in [device, &controller] {
        let thread = property(monitor, place, "iothread").await?;
        if !thread.is_empty() {
            return Ok(Some(thread.rsplit('/').next().unwrap_or_default().to_owned()));
        }
        let mapping = property_value(monitor, place, "iothread-vq-mapping").await?;
        if let Some(first) = list(&mapping).first() {
            return Ok(Some(text(first, "/iothread").to_owned()));
        }
    }
    Ok(None)
}

/// A property of an object as text; empty where it has none such.
async fn property(monitor: &mut Monitor, path: &str, name: &str) -> Result<String> {
    Ok(property_value(monitor, path, name).await?.as_str().unwrap_or_default().to_owned())
}

async fn property_value(monitor: &mut Monitor, path: &str, name: &str) -> Result<Value> {
    if path.is_empty() {
        return Ok(Value::Null);
    }
    let command = Command::new("qom-get", json!({ "path": path, "property": name }));
    match monitor.execute(command).await {
        Ok(value) => Ok(value),
        Err(crate::qmp::QmpError::Refused(_)) => Ok(Value::Null),
        Err(err) => Err(super::answer::failed("describe a device", err)),
    }
}

/// A disk whose key is still to be chosen from these, the most durable first.
struct Unnamed {
    disk: Disk,
    keys: Vec<String>,
}

fn disk(
    candidate: &Candidate<'_>,
    traits: Traits,
    graph: Option<&Graph>,
    directory: Option<&Path>,
) -> Result<Unnamed, &'static str> {
    let inserted = &candidate.block["inserted"];
    let shown = text(inserted, "/node-name");
    let drive = text(candidate.block, "/device");
    let backend = if drive.is_empty() { text(candidate.block, "/qdev") } else { drive };
    let root = graph.and_then(|g| g.root(backend)).unwrap_or(shown);
    let chain = graph.map_or(vec![root], |g| g.chain(root));
    let node = *chain.last().expect("a chain has its root");
    let description = if node == shown { inserted } else { graph.and_then(|g| g.node(node)).ok_or("no such node")? };
    let driver = text(description, "/drv");
    if is_filter(driver) {
        return Err("what lies below its filter cannot be seen");
    }
    let size = number(inserted, "/image/virtual-size").ok_or("its size is not told")?;
    if size == 0 || size % 512 != 0 || size > DiskSpec::SIZE_MAX {
        return Err("its size cannot be replicated");
    }
    let is_pivoting =
        graph.is_some_and(|g| chain.iter().any(|n| g.node(n).is_some_and(|node| is_pivot(text(node, "/drv")))));
    let info = DiskInfo {
        key: String::new(),
        size,
        format: format(driver),
        path: path(text(description, "/image/filename"), directory),
        persistent_maps: driver == "qcow2" && text(description, "/image/format-specific/data/compat") != "0.10",
        iothread: traits.iothread,
    };
    let keys = [("id", candidate.id.as_deref().unwrap_or_default()), ("serial", &traits.serial), ("drive", drive)];
    let keys = keys.iter().filter(|(_, name)| !name.is_empty()).map(|(kind, name)| format!("{kind}:{name}"));
    let keys = keys.chain([format!("qom:{}", candidate.device)]).collect();
    let bitmaps = list(&description["dirty-bitmaps"]).to_vec();
    let disk =
        Disk { info, device: candidate.device.clone(), root: root.into(), node: node.into(), is_pivoting, bitmaps };
    Ok(Unnamed { disk, keys })
}

/// Gives each disk the most durable key that no other disk of the VM could be meant by.
fn name_disks(disks: &mut Vec<Unnamed>, left_out: &mut Vec<String>) {
    let mut seen = HashSet::new();
    let mut doubtful = HashSet::new();
    for key in disks.iter().flat_map(|d| &d.keys) {
        if !seen.insert(key.clone()) {
            doubtful.insert(key.clone());
        }
    }
    disks.retain_mut(|disk| match disk.keys.iter().find(|k| !doubtful.contains(*k)) {
        Some(key) => {
            disk.disk.info.key = printable(key);
            true
        }
        None => {
            left_out.push(format!("{}: another disk has all of its names", disk.disk.device));
            false
        }
    });
}

fn format(driver: &str) -> ImageFormat {
    match driver {
        "qcow2" => ImageFormat::Qcow2,
        "raw" | "file" | "host_device" => ImageFormat::Raw,
        _ => ImageFormat::Other,
    }
}

/// The image's path, if QEMU knows it by a plain one. Relative ones begin at QEMU's own directory.
fn path(filename: &str, directory: Option<&Path>) -> Option<PathBuf> {
    if filename.is_empty() || filename.starts_with("json:") {
        return None;
    }
    let path = Path::new(filename);
    if path.is_absolute() {
        return Some(path.into());
    }
    // A name with a scheme, as of NBD or RBD, is no file either, and finds none here.
    let path = std::fs::read_link(directory?).ok()?.join(path);
    path.exists().then_some(path)
}
