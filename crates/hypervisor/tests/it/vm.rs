//! Real VMs under TCG without an operating system: their disks are written through the device's own backend, as the guest
//! would, or by a boot sector that is a guest.

use std::path::PathBuf;
use std::process::{Command as Process, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use serde_json::{Value, json};
use tempfile::TempDir;
use understudy_hypervisor::driver::{Content, CutRequest, DiskReader, Error, FrozenCut, MapOwner, READ_LEN_MAX};
use understudy_hypervisor::guard::GuardClient;
use understudy_hypervisor::qemu::{QemuConfig, QemuMachine};
use understudy_hypervisor::qmp::{Command, Monitor, Patience};
use understudy_model::{Consistency, CutNumber, DiskId, DiskSpec, Extent, ExtentSet, Generation, RelationshipId, VmId};
use uuid::Uuid;

use crate::programs::{program, run};

pub const MIB: u64 = 1 << 20;
pub const GUARD: &str = env!("CARGO_BIN_EXE_guard-rehearsal");

/// How a disk is attached.
#[derive(Debug, Clone, Copy)]
pub enum Bus {
    Virtio,
    Scsi,
    Ide,
    Nvme,
}

/// One disk of a VM to be started.
#[derive(Debug, Clone, Copy)]
pub struct DiskPlan {
    pub bus: Bus,
    pub format: &'static str,
    pub size: u64,
    pub on_iothread: bool,
}

impl DiskPlan {
    pub const fn new(bus: Bus, format: &'static str) -> Self {
        Self { bus, format, size: 8 * MIB, on_iothread: false }
    }
}

pub const VIRTIO_QCOW2: DiskPlan = DiskPlan::new(Bus::Virtio, "qcow2");
pub const VIRTIO_RAW: DiskPlan = DiskPlan::new(Bus::Virtio, "raw");
pub const SCSI_QCOW2: DiskPlan = DiskPlan::new(Bus::Scsi, "qcow2");
pub const SCSI_RAW: DiskPlan = DiskPlan::new(Bus::Scsi, "raw");

/// Which QEMU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Qemu {
    /// The installed one.
    Installed,
    /// Debian 12's 7.2, unpacked in the directory that `UNDERSTUDY_QEMU72` names.
    Old,
}

impl Qemu {
    /// Those that are here. Says aloud when one is not.
    pub fn all() -> Vec<Qemu> {
        match old_root() {
            Some(_) => vec![Qemu::Installed, Qemu::Old],
            None => {
                eprintln!("SKIPPED on QEMU 7.2: UNDERSTUDY_QEMU72 names no unpacked one");
                vec![Qemu::Installed]
            }
        }
    }

    fn process(self) -> Process {
        match (self, old_root()) {
            (Qemu::Installed, _) => Process::new(program("qemu-system-x86_64")),
            (Qemu::Old, Some(root)) => {
                let mut process = Process::new(root.join("usr/bin/qemu-system-x86_64"));
                process.env("LD_LIBRARY_PATH", root.join("usr/lib/x86_64-linux-gnu"));
                process.arg("-L").arg(root.join("usr/share/qemu"));
                process.arg("-L").arg(root.join("usr/share/seabios"));
                process
            }
            (Qemu::Old, None) => panic!("UNDERSTUDY_QEMU72 names no unpacked QEMU 7.2"),
        }
    }
}

fn old_root() -> Option<PathBuf> {
    let root = PathBuf::from(std::env::var_os("UNDERSTUDY_QEMU72")?);
    root.join("usr/bin/qemu-system-x86_64").is_file().then_some(root)
}

/// A VM with its files.
pub struct Vm {
    pub directory: TempDir,
    qemu: Qemu,
    disks: Vec<DiskPlan>,
    extra: Vec<String>,
    pid: Option<Pid>,
}

impl Vm {
    /// Makes the images and starts the VM, with these arguments besides.
    pub fn start(qemu: Qemu, disks: &[DiskPlan], extra: &[&str]) -> Self {
        let directory = TempDir::new().unwrap();
        let extra = extra.iter().map(|a| a.replace("DIR", directory.path().to_str().unwrap())).collect();
        let mut vm = Self { directory, qemu, disks: disks.to_vec(), extra, pid: None };
        for (at, disk) in disks.iter().enumerate() {
            let (image, size) = (vm.image(at), disk.size.to_string());
            run("qemu-img", &["create", "-q", "-f", disk.format, image.to_str().unwrap(), &size]);
        }
        vm.boot();
        vm
    }

    /// Starts the QEMU. Its sockets are there when this returns.
    pub fn boot(&mut self) {
        let mut process = self.qemu.process();
        let pidfile = self.path("pid");
        process.args(["-accel", "tcg", "-nodefaults", "-display", "none", "-m", "16", "-daemonize", "-pidfile"]);
        process.arg(&pidfile);
        for name in ["qmp", "spare"] {
            process.arg("-qmp").arg(format!("unix:{},server=on,wait=off", self.path(name).display()));
        }
        process.args(["-object", "iothread,id=io0"]);
        for (at, disk) in self.disks.iter().enumerate() {
            process.args(self.disk_arguments(at, disk));
        }
        process.args(&self.extra).stdin(Stdio::null()).stdout(Stdio::null());
        let output = process.stderr(Stdio::piped()).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let pid = std::fs::read_to_string(pidfile).unwrap();
        self.pid = Pid::from_raw(pid.trim().parse().unwrap());
    }

    fn disk_arguments(&self, at: usize, disk: &DiskPlan) -> Vec<String> {
        let thread = if disk.on_iothread { ",iothread=io0" } else { "" };
        let image = self.image(at);
        let mut all = vec![
            "-blockdev".into(),
            format!(
                "driver={},node-name=node{at},discard=unmap,cache.no-flush=on,\
                 file.driver=file,file.discard=unmap,file.filename={}",
                disk.format,
                image.display()
            ),
        ];
        let device = match disk.bus {
            Bus::Virtio => format!("virtio-blk-pci,id=d{at},drive=node{at},bootindex={at}{thread}"),
            Bus::Scsi => {
                all.extend(["-device".into(), format!("virtio-scsi-pci,id=scsi{at}{thread}")]);
                format!("scsi-hd,id=d{at},drive=node{at},bus=scsi{at}.0,bootindex={at}")
            }
            Bus::Ide => format!("ide-hd,id=d{at},drive=node{at}"),
            Bus::Nvme => format!("nvme,id=d{at},drive=node{at},serial=n{at}"),
        };
        all.extend(["-device".into(), device]);
        all
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub fn image(&self, at: usize) -> PathBuf {
        self.path(&format!("disk{at}.img"))
    }

    /// Our driver for it.
    pub fn machine(&self) -> QemuMachine {
        self.machine_with(|_| {})
    }

    pub fn machine_with(&self, change: impl FnOnce(&mut QemuConfig)) -> QemuMachine {
        let mut config = QemuConfig {
            monitor: self.path("qmp"),
            agent: None,
            runtime_dir: self.path("run"),
            scratch_dir: self.path("scratch"),
            guard: GuardClient::new(GUARD, ["guard"]),
            allow_iothreads: true,
            patience: Patience::default(),
        };
        change(&mut config);
        QemuMachine::new(config)
    }

    pub fn specs(&self) -> Vec<DiskSpec> {
        let spec = |(at, disk): (usize, &DiskPlan)| DiskSpec {
            id: DiskId(at as u16),
            key: format!("id:d{at}"),
            size: disk.size,
        };
        self.disks.iter().enumerate().map(spec).collect()
    }

    /// A second monitor, of somebody else's.
    pub async fn tool(&self) -> Tool {
        Tool { monitor: Monitor::connect(&self.path("spare"), Patience::default()).await.unwrap() }
    }

    /// Ends it as `quit` does: in good order.
    pub async fn quit(&mut self) {
        self.tool().await.execute("quit", Value::Null).await;
        let pid = self.pid.take().unwrap();
        until("QEMU has ended", || test_kill_process(pid).is_err());
    }

    /// No further arguments, from the next start on.
    pub fn start_at_once(&mut self) {
        self.extra.clear();
    }

    /// Other arguments and none of the disks, from the next start on.
    pub fn replace_arguments(&mut self, arguments: &[&str]) {
        self.disks.clear();
        self.extra = arguments.iter().map(|a| (*a).to_owned()).collect();
    }

    pub fn kill(&mut self) {
        if let Some(pid) = self.pid.take() {
            let _ = kill_process(pid, Signal::KILL);
            until("QEMU is dead", || test_kill_process(pid).is_err());
        }
    }

    /// Whether any scratch file is left.
    pub fn scratch_files(&self) -> Vec<PathBuf> {
        let files = std::fs::read_dir(self.path("scratch")).into_iter().flatten();
        files.map(|e| e.unwrap().path()).collect()
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        if let Some(pid) = self.pid.take() {
            let _ = kill_process(pid, Signal::KILL);
        }
    }
}

/// Waits for a state, which must come soon.
#[track_caller]
pub fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !is_so() {
        assert!(Instant::now() < deadline, "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Somebody else's connection to a VM, for watching it and writing as its guest.
pub struct Tool {
    pub monitor: Monitor,
}

impl Tool {
    pub async fn try_execute(&mut self, name: &'static str, arguments: Value) -> Result<Value, String> {
        let command = Command { name, arguments: (!arguments.is_null()).then_some(arguments) };
        self.monitor.execute(command).await.map_err(|err| err.to_string())
    }

    pub async fn execute(&mut self, name: &'static str, arguments: Value) -> Value {
        self.try_execute(name, arguments).await.unwrap_or_else(|err| panic!("{name}: {err}"))
    }

    /// A command without arguments.
    pub async fn ask(&mut self, name: &'static str) -> Value {
        self.execute(name, Value::Null).await
    }

    pub async fn status(&mut self) -> String {
        self.execute("query-status", Value::Null).await["status"].as_str().unwrap().to_owned()
    }

    /// Carries out a command of qemu-io on a disk, through the device's own backend.
    pub async fn io(&mut self, disk: usize, command: &str) {
        let blocks = self.execute("query-block", Value::Null).await;
        let device = blocks
            .as_array()
            .unwrap()
            .iter()
            .filter_map(|b| b["qdev"].as_str())
            .find(|q| *q == format!("d{disk}") || q.starts_with(&format!("/machine/peripheral/d{disk}/")));
        let line = format!("qemu-io -d {} \"{command}\"", device.unwrap());
        let said = self.execute("human-monitor-command", json!({ "command-line": line })).await;
        let said = said.as_str().unwrap();
        assert!(!said.contains("failed") && !said.contains("rror"), "{line}: {said}");
    }

    /// The names of all block nodes, exports and bitmaps there are.
    pub async fn names(&mut self) -> Vec<String> {
        let mut names = Vec::new();
        for node in self.execute("query-named-block-nodes", json!({ "flat": true })).await.as_array().unwrap() {
            names.push(node["node-name"].as_str().unwrap().to_owned());
            let bitmaps = node["dirty-bitmaps"].as_array().into_iter().flatten();
            names.extend(bitmaps.filter_map(|b| b["name"].as_str()).map(str::to_owned));
        }
        let exports = self.execute("query-block-exports", Value::Null).await;
        names.extend(exports.as_array().unwrap().iter().map(|e| e["id"].as_str().unwrap().to_owned()));
        names
    }

    /// Those of ours: nothing but maps, when no cut is open.
    pub async fn our_names(&mut self) -> Vec<String> {
        let mut names = self.names().await;
        names.retain(|name| name.starts_with("understudy-"));
        names.sort();
        names
    }

    /// Whether the VM was stopped or resumed since this was last asked.
    pub async fn was_stopped(&mut self) -> bool {
        self.status().await;
        self.monitor.take_events().iter().any(|e| e.name == "STOP" || e.name == "RESUME")
    }
}

pub fn owner() -> MapOwner {
    MapOwner { relationship: RelationshipId::first(VmId(Uuid::from_u128(0x5eed))), generation: Generation(1) }
}

pub fn request(vm: &Vm, number: u64, base: u64) -> CutRequest {
    CutRequest {
        owner: owner(),
        number: CutNumber(number),
        base: CutNumber(base),
        disks: vm.specs(),
        consistency: Consistency::Standard,
        scratch_limit: 64 * MIB,
        images: Vec::new(),
        also: Default::default(),
    }
}

/// The names of the maps of cuts, as many times as there are disks.
pub fn maps(numbers: &[u64], disks: usize) -> Vec<String> {
    let name = |n: &u64| vec![owner().map_name(CutNumber(*n)); disks];
    let mut names: Vec<_> = numbers.iter().flat_map(name).collect();
    names.sort();
    names
}

/// What a replica would hold: whole disks, brought from cut to cut by what each cut says is dirty.
#[derive(Clone)]
pub struct Replica {
    pub disks: Vec<Vec<u8>>,
}

impl Replica {
    /// Of disks that have never been written.
    pub fn blank(vm: &Vm) -> Self {
        Self { disks: vm.specs().iter().map(|d| vec![0; d.size as usize]).collect() }
    }

    /// Reads everything a cut holds, in neighbourhoods, and proves that it is whole.
    pub async fn take(&mut self, cut: &dyn FrozenCut) -> Result<(), Error> {
        for (at, disk) in self.disks.iter_mut().enumerate() {
            let id = DiskId(at as u16);
            let reader = cut.reader(id).unwrap();
            for extent in cut.dirty(id).unwrap().iter() {
                read_into(reader, extent, disk).await?;
                cut.done_with(id, extent).await;
            }
        }
        cut.ensure_intact().await
    }
}

/// Reads an extent, by its holes and its data.
pub async fn read_into(reader: &dyn DiskReader, extent: Extent, disk: &mut [u8]) -> Result<(), Error> {
    let mut at = extent.offset;
    for (part, content) in reader.status(extent).await? {
        assert_eq!(part.offset, at, "gapless");
        at = part.end();
        if content == Content::Zero {
            disk[part.offset as usize..part.end() as usize].fill(0);
            continue;
        }
        let mut from = part.offset;
        while from < part.end() {
            let len = READ_LEN_MAX.min(part.end() - from);
            let bytes = reader.read(Extent::new(from, len)).await?;
            disk[from as usize..][..bytes.len()].copy_from_slice(&bytes);
            from += len;
        }
    }
    assert_eq!(at, extent.end(), "to the end");
    Ok(())
}

/// Compares without printing megabytes.
#[track_caller]
pub fn assert_same(found: &[u8], expected: &[u8], what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    if let Some(at) = found.chunks(512).zip(expected.chunks(512)).position(|(a, b)| a != b) {
        panic!("{what}: differs at {}: {:?} instead of {:?}", at * 512, found[at * 512], expected[at * 512]);
    }
}

pub fn extents(list: &[(u64, u64)]) -> ExtentSet {
    list.iter().map(|(offset, len)| Extent::new(*offset, *len)).collect()
}

/// The guest's disks as they should be, written together with the real ones.
pub struct Model {
    pub disks: Vec<Vec<u8>>,
}

impl Model {
    pub fn blank(vm: &Vm) -> Self {
        Self { disks: Replica::blank(vm).disks }
    }

    /// Writes as the guest.
    pub async fn write(&mut self, tool: &mut Tool, disk: usize, offset: u64, len: u64, byte: u8) {
        tool.io(disk, &format!("write -q -P {byte} {offset} {len}")).await;
        self.disks[disk][offset as usize..(offset + len) as usize].fill(byte);
    }

    #[track_caller]
    pub fn assert_held_by(&self, replica: &Replica) {
        for (at, (found, expected)) in replica.disks.iter().zip(&self.disks).enumerate() {
            assert_same(found, expected, &format!("disk {at}"));
        }
    }
}

/// Waits for a state that only asking can tell, which must come soon.
pub async fn eventually(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !is_so().await {
        assert!(Instant::now() < deadline, "waited in vain: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}
