//! Starting QEMU from definitions, finding it again, stopping it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;
use understudy_hypervisor::driver::{ImageFormat, Power};
use understudy_hypervisor::machine::{
    Attachment, BlobError, BlobName, Console, Definition, DiskImage, Emulator, FindError, Identity, Launch,
    LaunchError, LocalQemu, Mac, NetworkName, Networks, Running, Source, UefiFiles, VmName, derive, launch,
};
use understudy_hypervisor::qmp::{Monitor, Patience};
use understudy_model::{DiskId, ErrorKind};
use uuid::Uuid;

use crate::machine_vm::{PATIENCE, ask, drives, emulator, fake_kernel};
use crate::programs::run;

const STOP: Duration = Duration::from_secs(20);

/// A place for one VM: images, blobs, runtime directory. What still runs in it when it is dropped is ended.
struct Host {
    directory: TempDir,
}

impl Host {
    fn new() -> Self {
        Self { directory: TempDir::new().unwrap() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn runtime(&self) -> PathBuf {
        // A comma in it: paths are the host's, and the host may like commas.
        self.path("run,time")
    }

    /// An empty overlay over an empty base.
    fn image(&self, name: &str) -> DiskImage {
        let (base, overlay) = (self.path(&format!("{name}.raw")), self.path(&format!("{name},.qcow2")));
        std::fs::File::create(&base).unwrap().set_len(8 << 20).unwrap();
        let (base, file) = (base.to_str().unwrap(), overlay.to_str().unwrap());
        run("qemu-img", &["create", "-q", "-f", "qcow2", "-F", "raw", "-b", base, file]);
        DiskImage { path: overlay, format: ImageFormat::Qcow2 }
    }

    fn launch(&self, document: Value) -> Launch {
        let definition = Definition::from_json(document.to_string().as_bytes()).unwrap();
        let images = definition.disks.iter().map(|d| (d.disk, self.image(&d.disk.to_string()))).collect();
        Launch {
            definition,
            identity: None,
            images,
            blobs: BTreeMap::new(),
            networks: Networks::Isolated,
            console: Console::File,
            runtime: self.runtime(),
            paused: true,
        }
    }

    fn pid(&self) -> Option<u32> {
        std::fs::read_to_string(self.runtime().join("qemu.pid")).ok()?.trim().parse().ok()
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let Some(pid) = self.pid() else { return };
        let command = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        // Ended only if it is the one that was started here.
        if String::from_utf8_lossy(&command).contains(self.runtime().to_str().unwrap()) {
            let pid = rustix::process::Pid::from_raw(pid as i32).unwrap();
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
    }
}

fn plain(machine: &str) -> Value {
    json!({
        "format": "understudy-machine", "version": 1, "name": "web, 1", "uuid": Uuid::from_u128(7), "accelerator": "tcg",
        "machine": machine, "cpu": { "model": "qemu64", "sockets": 1, "cores": 2, "threads": 1 }, "memory_mib": 64,
    })
}

/// A definition with everything that its family of machines can have.
fn full(machine: &str) -> Value {
    let mut document = plain(machine);
    let (disks, nics, ports) = match machine {
        "microvm" => (
            json!([{ "disk": 0, "bus": "virtio-blk", "serial": "a b,c", "iothread": true }, { "disk": 4, "bus": "virtio-scsi" }]),
            json!([{ "model": "virtio-net", "mac": "52:54:00:00:00:01", "network": "net-0" }]),
            json!([]),
        ),
        "pc-i440fx-10.0" => (
            json!([
                { "disk": 5, "bus": "virtio-blk", "place": { "slot": 9 } },
                { "disk": 0, "bus": "ide", "serial": "I0" }, { "disk": 1, "bus": "ide", "serial": "I1", "boot": 4 },
                { "disk": 2, "bus": "sata", "serial": "S0", "wwn": 77 }, { "disk": 3, "bus": "sata", "serial": "S1" },
            ]),
            json!([{ "model": "e1000", "mac": "52:54:00:00:00:01", "network": "net-0", "place": { "slot": 8 } },
                   { "model": "rtl8139", "mac": "52:54:00:00:00:02", "network": "net-1", "place": { "slot": 10 } }]),
            json!([]),
        ),
        _ => (
            json!([
                { "disk": 0, "bus": "virtio-blk", "serial": "a b,c", "boot": 1, "iothread": true, "place": { "port": 0, "slot": 0 } },
                { "disk": 1, "bus": "virtio-scsi", "serial": "x", "device_id": "drive-scsi0", "wwn": 5 },
                { "disk": 2, "bus": "virtio-scsi", "iothread": true, "logical_block": 4096, "physical_block": 4096, "boot": 2,
                  "device_id": "disk-2" },
                { "disk": 3, "bus": "sata", "serial": "S0" }, { "disk": 7, "bus": "nvme", "serial": "n", "place": { "slot": 9 } },
            ]),
            json!([
                { "model": "vmxnet3", "mac": "52:54:00:00:00:03", "network": "net-0", "place": { "slot": 3 } },
                { "model": "e1000e", "mac": "52:54:00:00:00:02", "network": "net-1", "place": { "slot": 3, "function": 1 } },
                { "model": "virtio-net", "mac": "52:54:00:00:00:01", "network": "net-2", "boot": 9, "place": { "port": 1, "slot": 0 } },
            ]),
            json!([{ "slot": 2 }, { "slot": 2, "function": 1 }, { "slot": 5 }]),
        ),
    };
    document["disks"] = disks;
    document["nics"] = nics;
    document["root_ports"] = ports;
    document["cpu"]["features"] = json!({ "avx": "off", "hv-spinlocks": "0x1fff", "hv-relaxed": "on" });
    document["machine_options"] = match machine {
        "microvm" => json!({ "pic": "off", "pit": "off", "rtc": "on" }),
        _ => json!({ "hpet": "off", "smm": "off", "vmport": "off" }),
    };
    document["clock"] = json!("local");
    for field in ["console", "rng", "agent"] {
        document[field] = json!(true);
    }
    if machine != "microvm" {
        document["video"] = json!("vga");
    }
    document
}

async fn derived(running: &Running, definition: &Definition) -> Definition {
    let all = drives(&running.files().monitor()).await;
    let is = |qdev: &str, id: DiskId| qdev == id.to_string() || qdev.contains(&format!("/{id}"));
    let qdev = |id| all.iter().find(|qdev| is(qdev, id)).unwrap_or_else(|| panic!("{id} in {all:?}")).clone();
    let disks = definition.disks.iter().map(|d| (d.disk, qdev(d.disk))).collect();
    let source = Source { disks, pid: Some(running.pid()), ..Source::default() };
    let mut monitor = Monitor::connect(&running.files().monitor(), Patience::default()).await.unwrap();
    let derived = derive(&mut monitor, &source).await.unwrap();
    assert_eq!(derived.left_out, Vec::<String>::new());
    derived.definition
}

#[tokio::test]
async fn what_is_launched_is_what_the_definition_says() {
    for machine in ["pc-q35-10.0", "pc-i440fx-10.0", "microvm"] {
        let host = Host::new();
        let request = host.launch(full(machine));
        let running = launch(&request, &emulator(), PATIENCE).await.unwrap();
        // The derivation is the judge: it knows nothing of how this QEMU was started.
        let found = derived(&running, &request.definition).await;
        assert_eq!(found, request.definition, "{machine}");
        running.stop(STOP).await.unwrap();
    }
}

#[tokio::test]
async fn disks_are_opened_as_they_were_given() {
    let host = Host::new();
    let mut document = plain("q35");
    document["disks"] = json!([{ "disk": 0, "bus": "virtio-blk" }, { "disk": 3, "bus": "virtio-blk" }]);
    let mut request = host.launch(document);
    let raw = host.path("three.raw");
    std::fs::File::create(&raw).unwrap().set_len(4 << 20).unwrap();
    // It looks like a qcow2 image, and must still be taken as raw.
    std::fs::copy(&request.images[&DiskId(3)].path, &raw).unwrap();
    request.images.insert(DiskId(3), DiskImage { path: raw.clone(), format: ImageFormat::Raw });
    let running = launch(&request, &emulator(), PATIENCE).await.unwrap();
    let nodes = ask(&running.files().monitor(), "query-named-block-nodes", None).await;
    let node = |name: &str| nodes.as_array().unwrap().iter().find(|n| n["node-name"] == name).unwrap().clone();
    let (zero, three) = (node("disk-0"), node("disk-3"));
    assert_eq!((&zero["drv"], &zero["ro"]), (&json!("qcow2"), &json!(false)));
    assert_eq!(zero["file"], json!(request.images[&DiskId(0)].path));
    assert_eq!(zero["image"]["virtual-size"], json!(8 << 20));
    assert_eq!(zero["backing_file_depth"], json!(1));
    assert_eq!((&three["drv"], &three["file"]), (&json!("raw"), &json!(raw)));
    let cache = json!({ "writeback": true, "direct": false, "no-flush": false });
    assert_eq!(zero["cache"], cache);
    // QEMU holds the lock that keeps others from writing to the image.
    let file = request.images[&DiskId(0)].path.to_str().unwrap();
    let open = std::process::Command::new(crate::programs::program("qemu-io"))
        .args(["-f", "qcow2", "-c", "write 0 512", file])
        .output();
    assert!(String::from_utf8_lossy(&open.unwrap().stderr).contains("lock"));
    running.stop(STOP).await.unwrap();
}

#[tokio::test]
async fn a_vm_is_found_again_and_stopped() {
    let host = Host::new();
    let request = host.launch(plain("q35"));
    let uuid = request.definition.uuid;
    assert!(Running::find(&host.runtime(), uuid).await.unwrap().is_none());
    let running = launch(&request, &emulator(), PATIENCE).await.unwrap();
    let pid = running.pid();
    assert_eq!(running.power().await.unwrap(), Power::Paused);
    drop(running);

    let found = Running::find(&host.runtime(), uuid).await.unwrap().expect("it outlives the handle");
    assert_eq!(found.pid(), pid);
    found.resume().await.unwrap();
    assert_eq!(found.power().await.unwrap(), Power::Running);
    let again = launch(&request, &emulator(), PATIENCE).await.unwrap_err();
    assert!(matches!(again, LaunchError::Running { pid: other } if other == pid), "{again:?}");
    let other = Running::find(&host.runtime(), Uuid::from_u128(8)).await.unwrap_err();
    assert!(matches!(&other, FindError::OtherVm { .. }) && other.kind() == ErrorKind::Operator, "{other}");

    found.stop(STOP).await.unwrap();
    assert!(Running::find(&host.runtime(), uuid).await.unwrap().is_none());
    // The same place can be used again.
    launch(&request, &emulator(), PATIENCE).await.unwrap().kill().await.unwrap();
    assert!(Running::find(&host.runtime(), uuid).await.unwrap().is_none());
}

/// Which directory the test below is to launch in.
const DIES_IN: &str = "UNDERSTUDY_TEST_DIES_IN";

#[tokio::test]
#[ignore = "run by a_vm_outlives_the_daemon_that_started_it, as the daemon"]
async fn a_daemon_that_dies_once_its_vm_runs() {
    let Some(directory) = std::env::var_os(DIES_IN) else { return };
    let host = std::mem::ManuallyDrop::new(Host { directory: TempDir::new_in(directory).unwrap() });
    let runtime = PathBuf::from(std::env::var_os(DIES_IN).unwrap()).join("vm");
    let request = Launch { runtime, ..host.launch(plain("q35")) };
    let running = launch(&request, &emulator(), PATIENCE).await.unwrap();
    let pid = rustix::process::getpid();
    assert_ne!(running.pid(), pid.as_raw_pid() as u32);
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    std::future::pending::<()>().await;
}

#[tokio::test]
async fn a_vm_outlives_the_daemon_that_started_it() {
    let directory = TempDir::new().unwrap();
    let name = "machine_launch::a_daemon_that_dies_once_its_vm_runs";
    let mut daemon = std::process::Command::new(std::env::current_exe().unwrap());
    let ended = daemon.args([name, "--exact", "--ignored"]).env(DIES_IN, directory.path()).output().unwrap();
    assert!(!ended.status.success(), "{}", String::from_utf8_lossy(&ended.stdout));
    let running = Running::find(&directory.path().join("vm"), Uuid::from_u128(7)).await.unwrap().expect("it runs");
    assert_eq!(running.power().await.unwrap(), Power::Paused);
    let session = rustix::process::getsid(rustix::process::Pid::from_raw(running.pid() as i32)).unwrap();
    assert_eq!(session.as_raw_pid() as u32, running.pid());
    running.stop(STOP).await.unwrap();
}

#[tokio::test]
async fn a_process_id_that_means_somebody_else_is_not_touched() {
    let host = Host::new();
    std::fs::create_dir(host.runtime()).unwrap();
    let mut stranger = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
    for content in [stranger.id().to_string(), "1".to_owned(), "0".to_owned(), "-5".to_owned(), "x".repeat(100)] {
        std::fs::write(host.runtime().join("qemu.pid"), &content).unwrap();
        let found = Running::find(&host.runtime(), Uuid::from_u128(7)).await.unwrap();
        assert!(found.is_none(), "{content}");
    }
    assert!(stranger.try_wait().unwrap().is_none());
    stranger.kill().unwrap();
    stranger.wait().unwrap();
}

#[tokio::test]
async fn a_vm_that_was_killed_is_off() {
    let host = Host::new();
    let request = host.launch(plain("q35"));
    let running = launch(&request, &emulator(), PATIENCE).await.unwrap();
    let second = Running::find(&host.runtime(), request.definition.uuid).await.unwrap().unwrap();
    running.kill().await.unwrap();
    assert!(second.ended(STOP).await);
    assert_eq!(second.power().await.unwrap(), Power::Off);
    second.stop(STOP).await.unwrap();
}

#[tokio::test]
async fn a_copy_has_another_identity_and_no_network() {
    let host = Host::new();
    let mut document = plain("q35");
    document["nics"] = json!([{ "model": "virtio-net", "mac": "52:54:00:00:00:01", "network": "lan" }]);
    let mut request = host.launch(document);
    let lan = NetworkName::try_from("lan").unwrap();
    request.identity = Some(Identity {
        name: VmName::try_from("web - Test").unwrap(),
        uuid: Uuid::from_u128(99),
        macs: vec![Mac::try_from("52:54:00:00:00:99").unwrap()],
    });
    let running = launch(&request, &emulator(), PATIENCE).await.unwrap();
    let monitor = running.files().monitor();
    assert_eq!(ask(&monitor, "query-uuid", None).await["UUID"], Uuid::from_u128(99).to_string());
    assert_eq!(ask(&monitor, "query-name", None).await["name"], "web - Test");
    assert_eq!(network(&monitor).await, "hub");
    let mac = json!({ "path": "/machine/peripheral/nic-0", "property": "mac" });
    assert_eq!(ask(&monitor, "qom-get", Some(mac)).await, "52:54:00:00:00:99");
    running.stop(STOP).await.unwrap();

    request.networks = Networks::Attached(BTreeMap::from([(lan, Attachment::User)]));
    let running = launch(&request, &emulator(), PATIENCE).await.unwrap();
    assert_eq!(network(&running.files().monitor()).await, "user");
    running.stop(STOP).await.unwrap();

    request.identity.as_mut().unwrap().macs.clear();
    let err = launch(&request, &emulator(), PATIENCE).await.unwrap_err();
    assert!(matches!(err, LaunchError::Misuse(_)));
}

/// What the first network card is connected to.
async fn network(monitor: &Path) -> &'static str {
    let text = json!({ "command-line": "info network" });
    let text = ask(monitor, "human-monitor-command", Some(text)).await;
    let text = text.as_str().unwrap();
    match (text.contains("hub 0"), text.contains("type=user")) {
        (true, false) => "hub",
        (false, true) => "user",
        _ => panic!("{text}"),
    }
}

#[tokio::test]
async fn a_kernel_is_compared_with_its_name_before_it_is_used() {
    let host = Host::new();
    let (image, initrd) = (host.path("vm,linuz"), host.path("initrd"));
    let name = |bytes: &[u8]| BlobName::of(&blake3::hash(bytes));
    let kernel = fake_kernel(&image);
    std::fs::write(&initrd, b"070701").unwrap();
    let (kernel, file) = (name(&kernel), name(b"070701"));
    let mut document = plain("pc-q35-10.0");
    document["kernel"] = json!({ "image": kernel.as_str(), "initrd": file.as_str(), "command_line": "a=b,c d" });
    let mut request = host.launch(document);
    let missing = launch(&request, &emulator(), PATIENCE).await.unwrap_err();
    assert!(matches!(missing, LaunchError::Misuse(_)), "{missing}");

    request.blobs = BTreeMap::from([(kernel, image.clone()), (file, initrd.clone())]);
    let running = launch(&request, &emulator(), PATIENCE).await.unwrap();
    assert_eq!(derived(&running, &request.definition).await, request.definition);
    running.stop(STOP).await.unwrap();

    std::fs::write(&initrd, b"070702").unwrap();
    let err = launch(&request, &emulator(), PATIENCE).await.unwrap_err();
    assert!(matches!(&err, LaunchError::Blob(BlobError::Other { .. })) && err.kind() == ErrorKind::Corrupt, "{err}");
}

#[tokio::test]
async fn a_qemu_that_refuses_is_heard() {
    let host = Host::new();
    let mut document = plain("q35");
    document["cpu"]["model"] = json!("Pentium-9");
    let err = launch(&host.launch(document), &emulator(), PATIENCE).await.unwrap_err();
    assert!(matches!(&err, LaunchError::Refused { said } if said.contains("Pentium-9")), "{err}");

    let mut document = plain("q35");
    document["firmware"] = json!("uefi");
    let err = launch(&host.launch(document), &emulator(), PATIENCE).await.unwrap_err();
    assert!(matches!(&err, LaunchError::Lacking(_)) && err.kind() == ErrorKind::Operator, "{err}");
    assert!(Running::find(&host.runtime(), Uuid::from_u128(7)).await.unwrap().is_none());
}

#[tokio::test]
async fn uefi_has_variables_of_its_own_that_stay() {
    let host = Host::new();
    let (code, variables) = (host.path("code,.fd"), host.path("vars.fd"));
    // Nothing to run, but flash of the sizes that OVMF has.
    std::fs::write(&code, vec![0; 3 << 20]).unwrap();
    std::fs::write(&variables, vec![1; 528 << 10]).unwrap();
    let emulator = Emulator { uefi: Some(UefiFiles { code, variables }), ..emulator() };
    let mut document = plain("pc-q35-10.0");
    document["firmware"] = json!("uefi");
    let request = host.launch(document);
    let own = host.runtime().join("uefi-variables.fd");
    for first in [true, false] {
        let running = launch(&request, &emulator, PATIENCE).await.unwrap();
        let nodes = ask(&running.files().monitor(), "query-named-block-nodes", None).await;
        let node = |name: &str| nodes.as_array().unwrap().iter().find(|n| n["node-name"] == name).unwrap().clone();
        assert_eq!(node("uefi-code")["ro"], json!(true));
        assert_eq!((&node("uefi-variables")["ro"], &node("uefi-variables")["file"]), (&json!(false), &json!(own)));
        let mut monitor = Monitor::connect(&running.files().monitor(), Patience::default()).await.unwrap();
        let source = Source { pid: Some(running.pid()), ..Source::default() };
        let found = derive(&mut monitor, &source).await.unwrap();
        assert_eq!(found.definition, request.definition);
        assert!(found.left_out[0].contains("UEFI variables"), "{:?}", found.left_out);
        drop(monitor);
        running.stop(STOP).await.unwrap();
        assert_eq!(std::fs::read(&own).unwrap()[0], if first { 1 } else { 2 });
        std::fs::write(&own, vec![2; 528 << 10]).unwrap();
    }
}

#[tokio::test]
async fn images_and_disks_must_agree() {
    let host = Host::new();
    let mut document = plain("q35");
    document["disks"] = json!([{ "disk": 0, "bus": "virtio-blk" }]);
    let request = host.launch(document);
    let with = |images| Launch { images, ..request.clone() };
    let image = request.images[&DiskId(0)].clone();
    let wrong = [
        BTreeMap::new(),
        BTreeMap::from([(DiskId(0), image.clone()), (DiskId(1), image.clone())]),
        BTreeMap::from([(DiskId(0), DiskImage { path: "disk.qcow2".into(), ..image.clone() })]),
        BTreeMap::from([(DiskId(0), DiskImage { path: host.path("none"), ..image.clone() })]),
        BTreeMap::from([(DiskId(0), DiskImage { path: host.directory.path().into(), ..image.clone() })]),
        BTreeMap::from([(DiskId(0), DiskImage { format: ImageFormat::Other, ..image })]),
    ];
    for images in wrong {
        let shown = format!("{images:?}");
        let err = launch(&with(images), &emulator(), PATIENCE).await.unwrap_err();
        assert!(matches!(err, LaunchError::Misuse(_) | LaunchError::Host { .. }), "{shown}: {err}");
    }
    let long = Launch { runtime: host.path(&"x".repeat(90)), ..request };
    assert!(matches!(launch(&long, &emulator(), PATIENCE).await, Err(LaunchError::Misuse(_))));
}

#[tokio::test]
async fn what_this_host_lacks_is_listed() {
    let local = LocalQemu::probe(&emulator(), PATIENCE).await.unwrap();
    assert!(local.version >= (7, 2, 0));
    let lacks = |change: &dyn Fn(&mut Value)| {
        let mut document = full("pc-q35-10.0");
        change(&mut document);
        local.lacks(&Definition::from_json(document.to_string().as_bytes()).unwrap())
    };
    let none = Vec::<String>::new();
    assert_eq!(lacks(&|_| {}), none);
    assert_eq!(lacks(&|d| d["machine"] = json!("q35")), none);
    let everything = lacks(&|d| {
        d["machine"] = json!("pc-q35-99.0");
        d["cpu"]["model"] = json!("Pentium-9");
        d["firmware"] = json!("uefi");
    });
    assert_eq!(everything.len(), 3, "{everything:?}");
    assert_eq!(everything[0], "machine type pc-q35-99.0");
    let host = lacks(&|d| d["cpu"]["model"] = json!("host"));
    assert!(host.contains(&"processor model host without KVM".to_owned()), "{host:?}");
    let wide = lacks(&|d| {
        d["machine"] = json!("pc-i440fx-10.0");
        d["root_ports"] = json!([]);
        d["disks"] = json!([]);
        d["nics"] = json!([]);
        d["cpu"]["sockets"] = json!(500);
    });
    assert!(wide.iter().any(|w| w.starts_with("1000 processors on pc-i440fx-10.0")), "{wide:?}");
}
