//! The cut itself: all disks frozen at one instant, and tracking handed over from the old maps to the new.
//!
//! ```text
//!            begin new maps        instant         end old maps
//!  old maps ───────────────────────────┼────────────────┤
//!  new maps        ├───────────────────┼───────────────────────────▶
//!  filter                              ├───────────── as long as the cut is open ──▶
//! ```
//!
//! Each map thus holds a little more than it must, never less, wherever we die. Two ways to place the filters:
//!
//! - **Narrow**, for a few disks with scattered changes: within `stop`…`cont` the maps' union is frozen and the filters are made with it, so they
//!   guard only what is due and what is not due cannot be read. Costs the guest about a millisecond a disk.
//! - **Wide**: the filters are made beforehand and guard the whole disk; within the instant they
//!   are only put in front. What turns out not to be due is given up afterwards (`trim`). One disk needs no `stop` for
//!   it: exchanging a disk's node lets its requests end, and is an instant by itself.
//!
//! The wide way is the rule; the narrow one is for maps with so many pieces that giving up what lies between them would
//! cost more than it saves. A VM that wrote nothing is only looked at.
//!
//! Everything between `stop` and `cont`, these included, goes to QEMU in one write, so the time the guest stands does
//! not depend on us getting the processor back; and the guard sends `cont` should we die before QEMU has read it all.

use std::collections::HashMap;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};
use tokio::sync::OwnedMutexGuard;
use tokio::time::{sleep, timeout};
use understudy_model::{Consistency, DiskId, DiskSpec, Timestamp};

use super::answer::{execute, execute_all, failed};
use super::connect::{RunState, check_version, run_state};
use super::disks::{Disk, Survey, graph, survey};
use super::frozen::{Export, Frozen, FrozenDisk, remove};
use super::idle::Idle;
use super::names::{DUE_MAP, Part};
use super::scratch::{Scratch, prepare_directory};
use super::server::{add_export, own_socket, socket, start};
use super::tidy::set_drive;
use super::tracking::{MAPS_MAX, add_map, add_passing_map, disable_map, merge_maps, transaction};
use super::{IOTHREAD_VERSION_MIN, Shared, freeze, images};
use crate::driver::{CutRequest, Error, FrozenCut, ImageRecord, LostTracking, Result};
use crate::guard::{Duty, Watch};
use crate::qmp::{Command, Monitor, Refused};

/// How long a guest's write may wait for its copy to scratch before the cut is ended in its favour, in seconds. QEMU
/// before 9.1 counts the nanoseconds in 32 bits, so it must stay below 4.3.
const CBW_TIMEOUT_S: u64 = 2;

/// How long the host may take to write out what it holds back for the disks. If it takes longer, `stop` would take long as
/// well, and the guest would wait for that.
const FLUSH_MAX: Duration = Duration::from_secs(10);

/// How long a QEMU that hangs up is given to be gone.
const ENDING: Duration = Duration::from_millis(500);

/// Most disks that are frozen the narrow way: each adds 1.3 ms to the pause on a slow host, and the wide way 0.5 ms.
const NARROW_DISKS_MAX: usize = 4;

/// From how many due granules on the narrow way is worth its longer pause. Giving up what is not due takes QEMU some
/// 35 µs a piece, and between any two due granules there may be one: half a second here.
const NARROW_GRANULES_MIN: u64 = 16_384;

/// Takes a cut, or says why not; in the latter case nothing of it is left in the VM but, perhaps, the new maps.
pub async fn cut(shared: Arc<Shared>, request: CutRequest, slot: OwnedMutexGuard<()>) -> Result<Box<dyn FrozenCut>> {
    let Some(mut monitor) = shared.try_monitor().await? else {
        return images::cut(&shared, request, slot).await;
    };
    let survey = ready(&shared, &mut monitor, &request).await?;
    let plan = Plan::new(&survey, &request)?;
    if plan.is_idle(&request) {
        return Ok(Box::new(Idle::new(&plan, &request, slot)));
    }
    let taken = take(&shared, &mut monitor, &plan, &request).await;
    match taken {
        Ok(taken) => Ok(Box::new(Frozen::new(shared.clone(), slot, taken))),
        Err(err) => {
            // Hung up first: it may have timed out in the middle of something.
            drop(monitor);
            undo(&shared).await;
            Err(err)
        }
    }
}

/// Looks at the VM, after taking out what an earlier cut may have left, and refuses what cannot be cut now.
async fn ready(shared: &Shared, monitor: &mut Monitor, request: &CutRequest) -> Result<Survey> {
    check_version(monitor.version())?;
    let mut found = survey(monitor).await?;
    if found.disks.iter().any(Disk::has_leftovers) {
        shared.remove_cut(monitor).await?;
        found = survey(monitor).await?;
    }
    if found.state == RunState::Moving || found.is_migrating {
        return Err(Error::Busy("the VM is being migrated, saved or restored".into()));
    }
    for spec in &request.disks {
        let disk = found.find(spec)?;
        let known = request.images.iter().find(|image| image.disk == spec.id);
        check_disk(disk, request, known)?;
        check_iothread(disk, &found, shared.config.allow_iothreads)?;
    }
    Ok(found)
}

fn check_disk(disk: &Disk, request: &CutRequest, known: Option<&ImageRecord>) -> Result<()> {
    let maps = disk.maps_of(&request.owner);
    maps.covers(request.base).map_err(|lost| disk.lost(lost))?;
    maps.reaches(known.and_then(|image| image.map)).map_err(|lost| disk.lost(lost))?;
    if known.is_some_and(|known| images::is_exchanged(known, &disk.info)) {
        return Err(disk.lost(LostTracking::ChangedWhileOff));
    }
    let held = known.and_then(|image| image.held.as_ref());
    if held.is_some_and(|held| !held.is_empty()) && disk.marked_granules(&request.owner) == 0 {
        return Err(disk.lost(LostTracking::ChangedWhileOff));
    }
    if maps.maps.iter().any(|m| m.number == request.number) {
        return Err(disk.lost(LostTracking::NumberTaken { number: request.number }));
    }
    if maps.maps.len() >= MAPS_MAX {
        return Err(Error::Misuse(format!("disk {} bears {MAPS_MAX} maps: fold them", disk.info.key)));
    }
    if disk.is_pivoting {
        return Err(Error::Busy(format!("a mirror or commit job works on disk {}", disk.info.key)));
    }
    Ok(())
}

/// What a QEMU may do to a guest whose disk is on an I/O thread: abort when an NBD reader leaves
/// ([`IOTHREAD_VERSION_MIN`]), or lose an interrupt at the instant of a cut ([`super::QemuConfig::allow_iothreads`]).
pub fn check_iothread(disk: &Disk, survey: &Survey, is_allowed: bool) -> Result<()> {
    let Some(thread) = disk.info.iothread.as_deref() else { return Ok(()) };
    let (fault, remedy) = if survey.version < IOTHREAD_VERSION_MIN {
        ("aborts when a reader of such a disk leaves", "take the disk off its I/O thread")
    } else if !is_allowed {
        (
            "may lose an interrupt of such a disk when the VM is stopped for an instant, which hangs the guest",
            "take the disk off its I/O thread, or accept the risk: vms.allow_iothreads in the configuration",
        )
    } else {
        return Ok(());
    };
    Err(Error::Unsupported {
        what: format!("disk {} is served by I/O thread {thread}, and QEMU {} {fault}", disk.info.key, survey.version),
        remedy: remedy.to_owned(),
    })
}

/// Which disks, in which way.
pub struct Plan<'a> {
    pub disks: Vec<(DiskSpec, &'a Disk)>,
    is_narrow: bool,
    must_stop: bool,
    survey: &'a Survey,
}

impl<'a> Plan<'a> {
    fn new(survey: &'a Survey, request: &CutRequest) -> Result<Self> {
        let disks = request.disks.iter().map(|spec| Ok((spec.clone(), survey.find(spec)?)));
        let disks = disks.collect::<Result<Vec<_>>>()?;
        let (count, is_running) = (disks.len(), survey.state == RunState::Running);
        if count == 0 {
            return Err(Error::Misuse("a cut of no disk".into()));
        }
        let marked: Vec<_> = disks.iter().map(|(_, disk)| disk.marked_granules(&request.owner)).collect();
        let is_scattered = marked.iter().sum::<u64>() >= NARROW_GRANULES_MIN;
        // A map with that many pieces is rounded, and then more must be served than is due.
        let is_coarse = marked.iter().any(|n| *n > FrozenDisk::EXTENTS_MAX as u64);
        // The narrow way serves what the maps hold and nothing else.
        let is_narrow = !request.has_more() && (2..=NARROW_DISKS_MAX).contains(&count) && is_scattered && !is_coarse;
        Ok(Self { disks, is_narrow, must_stop: is_running && count > 1, survey })
    }

    /// Whether nothing was written since the base, in which case the moment of the look is the cut: no disk was written
    /// before its map was looked at, so at the first of these moments all were as in the base. A write that was not yet
    /// answered then is in a later cut, as after a power failure. Nothing needs to be done to the VM for it. To freeze its
    /// file systems would make it write, so that is another matter.
    fn is_idle(&self, request: &CutRequest) -> bool {
        request.consistency != Consistency::Application
            && !request.has_more()
            && self.disks.iter().all(|(_, disk)| disk.marked_granules(&request.owner) == 0)
    }

    pub fn each<T>(&self, make: impl Fn(&DiskSpec, &Disk) -> T) -> Vec<T> {
        self.disks.iter().map(|(spec, disk)| make(spec, disk)).collect()
    }
}

/// All that a cut consists of, once it is taken.
pub struct Taken {
    pub taken_at: Timestamp,
    pub consistency: Consistency,
    pub shortfall: Option<String>,
    pub disks: HashMap<DiskId, FrozenDisk>,
    pub images: Vec<ImageRecord>,
    pub scratch: Vec<Scratch>,
    pub scratch_limit: u64,
    /// Whether the filters guard only what is due.
    pub is_narrow: bool,
}

async fn take(shared: &Shared, monitor: &mut Monitor, plan: &Plan<'_>, request: &CutRequest) -> Result<Taken> {
    let scratch = prepare(shared, monitor, plan, request).await?;
    let (moment, shortfall) = freeze_all(shared, monitor, plan, request).await?;
    end_old_maps(monitor, plan, request).await?;
    let due = due(monitor, plan).await?;
    let disks = open_exports(shared, monitor, plan, request, &due).await?;
    check_held(&disks, plan, request)?;
    Ok(Taken {
        taken_at: moment,
        consistency: achieved(request.consistency, shortfall.is_some()),
        shortfall,
        disks,
        images: images::records(plan.each(|spec, disk| (spec.id, disk.info.clone(), Some(request.number)))),
        scratch,
        scratch_limit: request.scratch_limit,
        is_narrow: plan.is_narrow,
    })
}

/// Whether the maps hold what they held at the base, if the VM was off then: else an earlier state of an image was put
/// back before the VM was started.
fn check_held(disks: &HashMap<DiskId, FrozenDisk>, plan: &Plan<'_>, request: &CutRequest) -> Result<()> {
    for (spec, disk) in &plan.disks {
        let held = request.images.iter().find(|image| image.disk == spec.id).and_then(|image| image.held.as_ref());
        if !images::holds(disks.get(&spec.id).map(FrozenDisk::due), held) {
            return Err(disk.lost(LostTracking::ChangedWhileOff));
        }
    }
    Ok(())
}

fn achieved(asked: Consistency, fell_short: bool) -> Consistency {
    match asked {
        Consistency::Application if fell_short => Consistency::Standard,
        asked => asked,
    }
}

/// Everything that can be done while the guest runs: scratch files, the new maps, and with the wide way the filters.
async fn prepare(
    shared: &Shared,
    monitor: &mut Monitor,
    plan: &Plan<'_>,
    request: &CutRequest,
) -> Result<Vec<Scratch>> {
    let directory = prepare_directory(&shared.config.scratch_dir, plan.survey.peer)?;
    prepare_directory(&shared.config.runtime_dir, plan.survey.peer)?;
    let mut scratch = Vec::new();
    let mut commands = vec![transaction(new_maps(plan, request))];
    for (spec, _) in &plan.disks {
        let file = Scratch::create(&directory, spec.id, spec.size, plan.survey.peer)?;
        commands.push(file.add(spec.id));
        scratch.push(file);
    }
    if !plan.is_narrow {
        commands.extend(plan.each(|spec, disk| add_filter(spec, disk, false)));
    }
    execute_all(monitor, "prepare a cut", &commands).await?;
    if plan.must_stop {
        flush(plan).await?;
    }
    Ok(scratch)
}

/// The new maps record from here on. With the narrow way the map of what is due begins here as well: it takes in all the
/// others and records on, so that at the instant it holds their union without any further command.
fn new_maps(plan: &Plan<'_>, request: &CutRequest) -> Vec<Value> {
    let name = request.owner.map_name(request.number);
    let mut actions = plan.each(|_, disk| add_map(disk, &name));
    if plan.is_narrow {
        for (_, disk) in &plan.disks {
            actions.push(add_passing_map(disk, DUE_MAP, true));
            actions.push(merge_old_maps(disk, request));
        }
    }
    actions
}

fn merge_old_maps(disk: &Disk, request: &CutRequest) -> Value {
    let old = old_maps(disk, request);
    merge_maps(&disk.node, DUE_MAP, &old.iter().map(String::as_str).collect::<Vec<_>>())
}

fn old_maps(disk: &Disk, request: &CutRequest) -> Vec<String> {
    disk.our_maps().into_iter().filter(|m| m.owner == request.owner).map(|m| m.name).collect()
}

fn add_filter(spec: &DiskSpec, disk: &Disk, is_narrow: bool) -> Command {
    let mut arguments = json!({
        "driver": "copy-before-write", "node-name": Part::Filter.name(spec.id), "file": disk.root,
        "target": Part::Scratch.name(spec.id), "on-cbw-error": "break-snapshot", "cbw-timeout": CBW_TIMEOUT_S,
    });
    if is_narrow {
        arguments["bitmap"] = json!({ "node": disk.node, "name": DUE_MAP });
    }
    Command::new("blockdev-add", arguments)
}

/// `stop` makes QEMU write out what it and the host hold back for all disks, and the guest waits for that. So the host is
/// asked to do most of it before. Where we cannot open an image, `stop` takes as long as it takes.
async fn flush(plan: &Plan<'_>) -> Result<()> {
    let paths: Vec<PathBuf> = plan.disks.iter().filter_map(|(_, disk)| disk.info.path.clone()).collect();
    let flushing = tokio::task::spawn_blocking(move || {
        for file in paths.iter().filter_map(|path| open_image(path).ok()) {
            // An error here is QEMU's to meet and the guest's to hear of; it changes nothing for the cut.
            let _ = file.sync_data();
        }
    });
    let late = |_| Error::Busy("the host's storage is so slow that stopping the VM would hurt it".into());
    timeout(FLUSH_MAX, flushing).await.map(drop).map_err(late)
}

/// Opens a file or block device for syncing. The path is what the hypervisor says: opening some other kinds of file
/// would wait, or do something.
fn open_image(path: &Path) -> std::io::Result<std::fs::File> {
    let kind = std::fs::metadata(path)?.file_type();
    if !kind.is_file() && !kind.is_block_device() {
        return Err(std::io::ErrorKind::InvalidInput.into());
    }
    let nonblocking = rustix::fs::OFlags::NONBLOCK.bits() as i32;
    std::fs::OpenOptions::new().read(true).custom_flags(nonblocking).open(path)
}

/// Freezes all disks, inside a freeze of the guest's file systems if that was asked for and works.
async fn freeze_all(
    shared: &Shared,
    monitor: &mut Monitor,
    plan: &Plan<'_>,
    request: &CutRequest,
) -> Result<(Timestamp, Option<String>)> {
    if request.consistency != Consistency::Application {
        return Ok((instant(shared, monitor, plan).await?, None));
    }
    let config = &shared.config;
    let frozen = match (&config.agent, plan.survey.state) {
        (Some(agent), RunState::Running) => freeze::freeze(agent, &config.runtime_dir, &config.guard).await,
        (Some(_), _) => Err("the VM is not running".into()),
        (None, _) => Err("the VM has no guest agent".into()),
    };
    match frozen {
        Ok(frozen) => {
            let (moment, in_time) = frozen.during(instant(shared, monitor, plan)).await;
            let late = || "the guest had to be let go on before the cut was done".into();
            Ok((moment?, (!in_time).then(late)))
        }
        Err(why) => Ok((instant(shared, monitor, plan).await?, Some(why))),
    }
}

/// The instant.
async fn instant(shared: &Shared, monitor: &mut Monitor, plan: &Plan<'_>) -> Result<Timestamp> {
    let commands = instant_commands(plan);
    let watch = if plan.must_stop { Some(arm(shared).await?) } else { None };
    // The look at the VM was some milliseconds ago. One that somebody paused since must not be let run on by us.
    if let Err(err) = check_unchanged(monitor, plan).await {
        // Nothing was stopped, so there is nothing to undo.
        watch.into_iter().for_each(Watch::done);
        return Err(err);
    }
    let moment = now();
    // On an error of the connection the watch is dropped, and the guard looks after the VM.
    let answers = monitor.pipeline(&commands).await.map_err(|err| failed("freeze its disks", err))?;
    if let Some(watch) = watch {
        match answers.last() {
            Some(Ok(_)) => watch.done(),
            _ => drop(watch),
        }
    }
    first_refusal(answers)?;
    if plan.disks.len() > 1 && !plan.must_stop {
        check_unchanged(monitor, plan).await?;
    }
    Ok(moment)
}

async fn arm(shared: &Shared) -> Result<Watch> {
    let duty = Duty::Resume { monitor: shared.config.monitor.clone() };
    let watch = shared.config.guard.arm(duty).await;
    watch.map_err(|err| Error::host("start the guard that lets the VM run on if we die", err))
}

/// Refuses if the VM was paused or resumed by somebody since it was looked at.
async fn check_unchanged(monitor: &mut Monitor, plan: &Plan<'_>) -> Result<()> {
    let status = execute(monitor, "tell whether it runs", Command::bare("query-status")).await?;
    match run_state(&status) == plan.survey.state {
        true => Ok(()),
        false => Err(Error::Busy("somebody paused or resumed the VM during the cut".into())),
    }
}

fn instant_commands(plan: &Plan<'_>) -> Vec<Command> {
    let mut commands = Vec::new();
    if plan.must_stop {
        commands.push(Command::bare("stop"));
    }
    if plan.is_narrow {
        commands.push(transaction(plan.each(|_, disk| disable_map(&disk.node, DUE_MAP))));
        commands.extend(plan.each(|spec, disk| add_filter(spec, disk, true)));
    }
    commands.extend(plan.each(|spec, disk| set_drive(&disk.device, &Part::Filter.name(spec.id))));
    if plan.must_stop {
        commands.push(Command::bare("cont"));
    }
    commands
}

fn first_refusal(answers: Vec<std::result::Result<Value, Refused>>) -> Result<()> {
    answers.into_iter().try_for_each(|answer| answer.map(drop).map_err(|no| failed("freeze its disks", no.into())))
}

/// What the wall clock says.
pub fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

/// The old maps end, after the instant; with the wide way what is due is known only then.
async fn end_old_maps(monitor: &mut Monitor, plan: &Plan<'_>, request: &CutRequest) -> Result<()> {
    let mut actions = Vec::new();
    for (_, disk) in &plan.disks {
        let recording = disk.our_maps().into_iter().filter(|m| m.owner == request.owner && m.info.recording);
        actions.extend(recording.map(|m| disable_map(&disk.node, &m.name)));
        if !plan.is_narrow {
            actions.push(add_passing_map(disk, DUE_MAP, false));
            actions.push(merge_old_maps(disk, request));
        }
    }
    execute(monitor, "end the old maps", transaction(actions)).await.map(drop)
}

/// Bytes that are due on each disk.
async fn due(monitor: &mut Monitor, plan: &Plan<'_>) -> Result<HashMap<DiskId, u64>> {
    let graph = graph(monitor).await?;
    let count = |disk: &Disk| {
        let bitmaps = graph.node(&disk.node).map_or(&Value::Null, |node| &node["dirty-bitmaps"]);
        super::disks::marked(bitmaps, DUE_MAP)
    };
    let counts = plan.each(|spec, disk| count(disk).map(|n| (spec.id, n)).ok_or_else(|| gone(disk)));
    counts.into_iter().collect()
}

fn gone(disk: &Disk) -> Error {
    Error::Busy(format!("somebody changed disk {} during the cut", disk.info.key))
}

/// Shows the frozen disks and connects to them. A disk on which nothing is due is not read, so it is not shown.
async fn open_exports(
    shared: &Shared,
    monitor: &mut Monitor,
    plan: &Plan<'_>,
    request: &CutRequest,
    due: &HashMap<DiskId, u64>,
) -> Result<HashMap<DiskId, FrozenDisk>> {
    let mut disks = HashMap::new();
    let own = own_socket(&shared.config.runtime_dir)?;
    let mut server = None;
    for (spec, disk) in &plan.disks {
        if due[&spec.id] == 0 && request.also(spec.id).is_none() {
            disks.insert(spec.id, FrozenDisk::untouched(spec));
            continue;
        }
        let is_ours = match server {
            Some(is_ours) => is_ours,
            None => *server.insert(start(monitor, &own).await?),
        };
        let id = Part::Snapshot.name(spec.id);
        let commands = [add_snapshot(spec), add_export(&id, &id, true, Some((&disk.node, DUE_MAP)))];
        execute_all(monitor, "show a frozen disk", &commands).await?;
        let socket = socket(monitor, &own, is_ours, &id).await?;
        let export = Export { socket: &socket, id: &id, version: plan.survey.version };
        disks.insert(spec.id, FrozenDisk::connect(spec, &export, plan.is_narrow, request.also(spec.id)).await?);
    }
    Ok(disks)
}

fn add_snapshot(spec: &DiskSpec) -> Command {
    Command::new(
        "blockdev-add",
        json!({
            "driver": "snapshot-access", "node-name": Part::Snapshot.name(spec.id),
            "file": Part::Filter.name(spec.id), "discard": "unmap",
        }),
    )
}

/// Takes out what a failed cut left. If that fails too, the next cut or `tidy` does it; the guest runs on either way.
async fn undo(shared: &Shared) {
    if remove(shared).await.is_ok() {
        return;
    }
    // A QEMU that is just ending hangs up, which may be why the cut failed. A moment later nobody is there.
    sleep(ENDING).await;
    if let Err(err) = remove(shared).await {
        tracing::warn!(monitor = %shared.config.monitor.display(), %err, "parts of a failed cut stay for now");
    }
}
