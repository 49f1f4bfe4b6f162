//! Real VMs with trouble: killed daemons, other tools, lost maps, full scratch. The guest always runs on, and what is
//! not certain is never called right.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command as Process, Stdio};

use serde_json::json;
use understudy_hypervisor::driver::{Error, LostTracking, Machine, MapOwner};
use understudy_hypervisor::nbd::{Client, Options};
use understudy_model::{CutNumber, DiskId, ErrorKind, Extent, Generation};

use crate::vm::*;

/// A daemon of its own that has taken a cut, and stands still.
fn other_daemon(vm: &Vm, number: u64, base: u64) -> Child {
    let mut process = Process::new(GUARD);
    process.arg("cut").arg(vm.directory.path()).args([number.to_string(), base.to_string()]);
    let mut child = process.stdout(Stdio::piped()).spawn().unwrap();
    let mut said = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut said).unwrap();
    assert_eq!(said, "cut\n");
    child
}

#[tokio::test]
async fn what_a_killed_daemon_left_is_tidied_away_and_the_next_cycle_is_whole() {
    for qemu in Qemu::all() {
        let vm = Vm::start(qemu, &[VIRTIO_QCOW2, SCSI_RAW], &[]);
        let machine = vm.machine();
        let (mut replica, mut model, mut tool) = (Replica::blank(&vm), Model::blank(&vm), vm.tool().await);
        machine.begin_tracking(&owner(), &vm.specs(), CutNumber(1)).await.unwrap();
        model.write(&mut tool, 0, MIB, 4096, 1).await;
        model.write(&mut tool, 1, MIB, 4096, 2).await;
        let mut daemon = other_daemon(&vm, 2, 1);
        model.write(&mut tool, 0, MIB, 512, 3).await;
        daemon.kill().unwrap();
        daemon.wait().unwrap();
        model.write(&mut tool, 1, MIB, 512, 4).await;
        assert_eq!(tool.status().await, "running");
        assert!(tool.our_names().await.len() > 4, "something is left");

        machine.tidy(&owner()).await.unwrap();
        machine.tidy(&owner()).await.unwrap();
        assert_eq!(tool.our_names().await, maps(&[1, 2], 2));
        assert!(vm.scratch_files().is_empty());
        assert!(!vm.path("run/nbd").exists(), "the server was ours");
        let cut = machine.cut(request(&vm, 3, 1)).await.unwrap();
        replica.take(&*cut).await.unwrap();
        model.assert_held_by(&replica);
        cut.release().await.unwrap();
    }
}

#[tokio::test]
async fn a_cut_cleans_up_after_a_killed_daemon_by_itself() {
    let vm = Vm::start(Qemu::Installed, &[VIRTIO_RAW], &[]);
    let machine = vm.machine();
    let (mut replica, mut model, mut tool) = (Replica::blank(&vm), Model::blank(&vm), vm.tool().await);
    machine.begin_tracking(&owner(), &vm.specs(), CutNumber(1)).await.unwrap();
    model.write(&mut tool, 0, MIB, 4096, 1).await;
    let mut daemon = other_daemon(&vm, 2, 1);
    daemon.kill().unwrap();
    daemon.wait().unwrap();
    let cut = machine.cut(request(&vm, 3, 1)).await.unwrap();
    replica.take(&*cut).await.unwrap();
    model.assert_held_by(&replica);
    cut.release().await.unwrap();
    assert_eq!(tool.our_names().await, maps(&[1, 2, 3], 1));
}

#[tokio::test]
async fn a_reader_that_hangs_never_holds_the_guest_up() {
    let vm = Vm::start(Qemu::Installed, &[VIRTIO_QCOW2, SCSI_RAW], &[]);
    vm.machine().begin_tracking(&owner(), &vm.specs(), CutNumber(1)).await.unwrap();
    let (mut model, mut tool) = (Model::blank(&vm), vm.tool().await);
    model.write(&mut tool, 0, 0, 4 * MIB, 1).await;
    model.write(&mut tool, 1, 0, 4 * MIB, 1).await;
    let mut daemon = other_daemon(&vm, 2, 1);
    rustix::process::kill_process(pid(&daemon), rustix::process::Signal::STOP).unwrap();
    for byte in 2..20 {
        model.write(&mut tool, 0, 0, 4 * MIB, byte).await;
        model.write(&mut tool, 1, 4 * MIB, 4 * MIB, byte).await;
    }
    assert_eq!(tool.status().await, "running");
    daemon.kill().unwrap();
    daemon.wait().unwrap();
    vm.machine().tidy(&owner()).await.unwrap();
    assert_eq!(tool.our_names().await, maps(&[1, 2], 2));
}

fn pid(child: &Child) -> rustix::process::Pid {
    rustix::process::Pid::from_child(child)
}

#[tokio::test]
async fn scratch_beyond_its_limit_ends_the_cut_and_the_guest_goes_on() {
    for disks in [&[VIRTIO_QCOW2, SCSI_RAW][..], &[VIRTIO_RAW]] {
        let vm = Vm::start(Qemu::Installed, disks, &[]);
        let machine = vm.machine();
        let (mut replica, mut model, mut tool) = (Replica::blank(&vm), Model::blank(&vm), vm.tool().await);
        machine.begin_tracking(&owner(), &vm.specs(), CutNumber(1)).await.unwrap();
        model.write(&mut tool, 0, 0, 4 * MIB, 1).await;
        let mut small = request(&vm, 2, 1);
        small.scratch_limit = 1 << 20;
        let cut = machine.cut(small).await.unwrap();
        cut.ensure_intact().await.unwrap();
        model.write(&mut tool, 0, 0, 4 * MIB, 2).await;
        eventually("the cut has ended", async || cut.ensure_intact().await.is_err()).await;
        let err = replica.take(&*cut).await.unwrap_err();
        assert!(matches!(&err, Error::CutEnded(why) if why.contains("scratch space")), "{err}");
        assert_eq!(err.kind(), ErrorKind::Retry);
        assert_eq!(tool.status().await, "running");
        eventually("the cut is gone", async || tool.our_names().await == maps(&[1, 2], disks.len())).await;
        cut.release().await.unwrap();
        assert!(vm.scratch_files().is_empty());
        let cut = machine.cut(request(&vm, 3, 1)).await.unwrap();
        replica.take(&*cut).await.unwrap();
        model.assert_held_by(&replica);
        cut.release().await.unwrap();
    }
}

#[tokio::test]
async fn a_full_scratch_file_system_ends_the_cut_and_no_newer_byte_is_believed() {
    let vm = Vm::start(Qemu::Installed, &[VIRTIO_QCOW2, SCSI_RAW], &[]);
    std::fs::create_dir(vm.path("scratch")).unwrap();
    let scratch = vm.path("scratch");
    let Some(_mounted) = SmallFileSystem::mount(&scratch) else {
        eprintln!("SKIPPED: a small tmpfs cannot be mounted here");
        return;
    };
    let machine = vm.machine();
    let (mut replica, mut model, mut tool) = (Replica::blank(&vm), Model::blank(&vm), vm.tool().await);
    machine.begin_tracking(&owner(), &vm.specs(), CutNumber(1)).await.unwrap();
    model.write(&mut tool, 0, 0, 4 * MIB, 1).await;
    model.write(&mut tool, 1, 0, 4 * MIB, 1).await;
    let cut = machine.cut(request(&vm, 2, 1)).await.unwrap();
    let reader = cut.reader(DiskId(0)).unwrap();
    assert_eq!(reader.read(Extent::new(0, 512)).await.unwrap()[..], [1; 512]);
    for at in 0..64u64 {
        // The guest's writes all go through, also those whose old content finds no room.
        model.write(&mut tool, 0, at << 16, 4096, 2).await;
        if let Ok(bytes) = reader.read(Extent::new(at << 16, 512)).await {
            assert_eq!(bytes[..], [1; 512], "a read that is served is of the instant");
        }
    }
    let err = reader.read(Extent::new(0, 512)).await.unwrap_err();
    assert!(matches!(err, Error::CutEnded(_)), "{err}");
    assert!(matches!(cut.ensure_intact().await, Err(Error::CutEnded(_))));
    assert!(replica.take(&*cut).await.is_err());
    assert_eq!(tool.status().await, "running");
    cut.release().await.unwrap();
    assert_eq!(tool.our_names().await, maps(&[1, 2], 2));
}

/// 1 MiB of tmpfs.
struct SmallFileSystem<'a>(&'a std::path::Path);

impl<'a> SmallFileSystem<'a> {
    fn mount(at: &'a std::path::Path) -> Option<Self> {
        let arguments = ["-t", "tmpfs", "-o", "size=1m", "tmpfs"];
        let output = Process::new("mount").args(arguments).arg(at).output().ok()?;
        output.status.success().then_some(Self(at))
    }
}

impl Drop for SmallFileSystem<'_> {
    fn drop(&mut self) {
        let _ = Process::new("umount").arg("-l").arg(self.0).status();
    }
}

#[tokio::test]
async fn bitmaps_exports_and_servers_of_others_survive() {
    let vm = Vm::start(Qemu::Installed, &[VIRTIO_QCOW2, SCSI_RAW], &[]);
    let machine = vm.machine();
    let (mut replica, mut model, mut tool) = (Replica::blank(&vm), Model::blank(&vm), vm.tool().await);
    let stranger =
        MapOwner { relationship: understudy_model::RelationshipId { leg: 1, ..owner().relationship }, ..owner() };
    let strangers_map = stranger.map_name(CutNumber(1));
    for name in ["libvirt-checkpoint", "understudy-but-not-quite", &strangers_map] {
        tool.execute("block-dirty-bitmap-add", json!({"node": "node0", "name": name})).await;
    }
    let path = vm.path("foreign server");
    let address = json!({"addr": {"type": "unix", "data": {"path": path}}});
    tool.execute("nbd-server-start", address).await;
    let export = json!({"type": "nbd", "id": "theirs", "node-name": "node0", "name": "theirs"});
    tool.execute("block-export-add", export).await;
    let theirs = Client::connect(&path, &Options::new("theirs")).await.unwrap();

    machine.begin_tracking(&owner(), &vm.specs(), CutNumber(1)).await.unwrap();
    model.write(&mut tool, 0, 0, 4096, 1).await;
    model.write(&mut tool, 1, 0, 4096, 2).await;
    let cut = machine.cut(request(&vm, 2, 1)).await.unwrap();
    replica.take(&*cut).await.unwrap();
    model.assert_held_by(&replica);
    cut.release().await.unwrap();
    machine.tidy(&owner()).await.unwrap();
    machine.end_tracking(&owner()).await.unwrap();

    assert_eq!(theirs.read(Extent::new(0, 512)).await.unwrap()[..], [1; 512], "their reader was not cut off");
    let names = tool.names().await;
    for name in ["libvirt-checkpoint", "understudy-but-not-quite", &strangers_map, "theirs"] {
        assert!(names.iter().any(|n| n == name), "{name} is gone");
    }
    assert_eq!(names.iter().filter(|n| n.starts_with("understudy-")).count(), 2, "{names:?}");
}

#[tokio::test]
async fn a_server_of_others_that_cannot_be_used_makes_a_cut_wait() {
    let vm = Vm::start(Qemu::Installed, &[VIRTIO_QCOW2], &[]);
    let (machine, mut tool) = (vm.machine(), vm.tool().await);
    machine.begin_tracking(&owner(), &vm.specs(), CutNumber(1)).await.unwrap();
    tool.io(0, "write -q 0 4096").await;
    let address = json!({"addr": {"type": "inet", "data": {"host": "127.0.0.1", "port": "0"}}});
    tool.execute("nbd-server-start", address).await;
    let err = machine.cut(request(&vm, 2, 1)).await.err().unwrap();
    assert!(matches!(&err, Error::Busy(why) if why.contains("another tool runs an NBD server")), "{err}");
    assert_eq!(tool.our_names().await, maps(&[1, 2], 1));
    tool.ask("nbd-server-stop").await;

    let address = json!({"addr": {"type": "unix", "data": {"path": vm.path("tls")}}, "tls-creds": "tls0"});
    let psk = vm.path("keys");
    std::fs::create_dir(&psk).unwrap();
    std::fs::write(psk.join("keys.psk"), "user:0123456789abcdef0123456789abcdef\n").unwrap();
    let creds = json!({"qom-type": "tls-creds-psk", "id": "tls0", "endpoint": "server", "dir": psk});
    tool.execute("object-add", creds).await;
    tool.execute("nbd-server-start", address).await;
    let err = machine.cut(request(&vm, 3, 1)).await.err().unwrap();
    assert!(matches!(&err, Error::Busy(why) if why.contains("TLS")), "{err}");
    assert_eq!(err.kind(), ErrorKind::Retry);
    tool.ask("nbd-server-stop").await;
    machine.cut(request(&vm, 4, 1)).await.unwrap().release().await.unwrap();
}

#[tokio::test]
async fn a_disk_that_grew_is_told_and_not_cut() {
    let vm = Vm::start(Qemu::Installed, &[VIRTIO_QCOW2, SCSI_RAW], &[]);
    let (machine, mut tool) = (vm.machine(), vm.tool().await);
    machine.begin_tracking(&owner(), &vm.specs(), CutNumber(1)).await.unwrap();
    tool.execute("block_resize", json!({"node-name": "node1", "size": 9 * MIB})).await;
    let err = machine.cut(request(&vm, 2, 1)).await.err().unwrap();
    assert_eq!(err.kind(), ErrorKind::Resync);
    assert!(matches!(err, Error::Resized { expected, found, .. } if (expected, found) == (8 * MIB, 9 * MIB)));
    assert_eq!(tool.our_names().await, maps(&[1], 2), "nothing was begun");
    let mut specs = vm.specs();
    specs[1].size = 9 * MIB;
    machine.begin_tracking(&owner(), &specs, CutNumber(3)).await.unwrap();
    let mut grown = request(&vm, 4, 3);
    grown.disks = specs;
    machine.cut(grown).await.unwrap().release().await.unwrap();
}

#[tokio::test]
async fn maps_outlive_an_orderly_end_where_the_image_can_hold_them() {
    let mut vm = Vm::start(Qemu::Installed, &[VIRTIO_QCOW2, SCSI_RAW], &[]);
    let machine = vm.machine();
    machine.begin_tracking(&owner(), &vm.specs(), CutNumber(1)).await.unwrap();
    vm.tool().await.io(0, "write -q -P 1 1M 4096").await;
    vm.quit().await;
    assert_eq!(machine.describe().await.unwrap().power, understudy_hypervisor::driver::Power::Off);
    vm.boot();
    let inventory = machine.maps(&owner()).await.unwrap();
    let [qcow2, raw] = &inventory.disks[..] else { panic!("two disks") };
    assert_eq!(qcow2.covers(CutNumber(1)), Ok(()));
    assert_eq!(qcow2.maps[0].dirty, 4096);
    assert_eq!(raw.covers(CutNumber(1)), Err(LostTracking::Missing));
    let err = machine.cut(request(&vm, 2, 1)).await.err().unwrap();
    assert_eq!(err.kind(), ErrorKind::Resync);
    let mut one = request(&vm, 3, 1);
    one.disks.truncate(1);
    let cut = machine.cut(one).await.unwrap();
    assert_eq!(cut.dirty(DiskId(0)).unwrap(), &extents(&[(MIB, 4096)]));
    cut.release().await.unwrap();
}

#[tokio::test]
async fn a_killed_qemu_means_resynchronisation_and_says_why() {
    let mut vm = Vm::start(Qemu::Installed, &[VIRTIO_QCOW2], &[]);
    let machine = vm.machine();
    machine.begin_tracking(&owner(), &vm.specs(), CutNumber(1)).await.unwrap();
    // Written to the image once, so that it is there to be found inconsistent.
    vm.quit().await;
    vm.boot();
    vm.tool().await.io(0, "write -q 0 4096").await;
    vm.kill();
    vm.boot();
    let err = machine.cut(request(&vm, 2, 1)).await.err().unwrap();
    assert_eq!(err.kind(), ErrorKind::Resync);
    let lost = LostTracking::Inconsistent { number: CutNumber(1) };
    assert!(matches!(&err, Error::Tracking { disk, lost: l } if disk == "id:d0" && *l == lost), "{err}");
    machine.begin_tracking(&owner(), &vm.specs(), CutNumber(3)).await.unwrap();
    assert_eq!(vm.tool().await.our_names().await, maps(&[3], 1), "the inconsistent one was removed");
    machine.cut(request(&vm, 4, 3)).await.unwrap().release().await.unwrap();
}

#[tokio::test]
async fn lost_or_spoiled_maps_are_noticed() {
    let vm = Vm::start(Qemu::Installed, &[VIRTIO_QCOW2], &[]);
    let (machine, mut tool) = (vm.machine(), vm.tool().await);
    let name = |n| owner().map_name(CutNumber(n));
    machine.begin_tracking(&owner(), &vm.specs(), CutNumber(1)).await.unwrap();
    tool.execute("block-dirty-bitmap-disable", json!({"node": "node0", "name": name(1)})).await;
    let lost = async |number| match machine.cut(request(&vm, number, 1)).await.err().unwrap() {
        Error::Tracking { lost, .. } => lost,
        other => panic!("{other}"),
    };
    assert_eq!(lost(2).await, LostTracking::NotRecording);
    tool.execute("block-dirty-bitmap-remove", json!({"node": "node0", "name": name(1)})).await;
    assert_eq!(lost(3).await, LostTracking::Missing);
    let coarse = json!({"node": "node0", "name": name(1), "granularity": 65536});
    tool.execute("block-dirty-bitmap-add", coarse).await;
    let found = LostTracking::Granularity { number: CutNumber(1), found: 65536, expected: 4096 };
    assert_eq!(lost(4).await, found);
    let older = MapOwner { generation: Generation(0), ..owner() };
    tool.execute("block-dirty-bitmap-add", json!({"node": "node0", "name": older.map_name(CutNumber(1))})).await;
    let inventory = machine.maps(&owner()).await.unwrap();
    assert_eq!(inventory.disks[0].stale, [older.map_name(CutNumber(1))]);
    machine.begin_tracking(&owner(), &vm.specs(), CutNumber(5)).await.unwrap();
    assert_eq!(tool.our_names().await, maps(&[5], 1), "begun anew, with the stale ones gone");
}

#[tokio::test]
async fn a_snapshot_taken_by_others_is_noticed_and_an_open_cut_ends_well() {
    let vm = Vm::start(Qemu::Installed, &[VIRTIO_QCOW2, SCSI_RAW], &[]);
    let machine = vm.machine();
    let (mut replica, mut model, mut tool) = (Replica::blank(&vm), Model::blank(&vm), vm.tool().await);
    machine.begin_tracking(&owner(), &vm.specs(), CutNumber(1)).await.unwrap();
    model.write(&mut tool, 0, 0, 4096, 1).await;
    let cut = machine.cut(request(&vm, 2, 1)).await.unwrap();
    let overlay = vm.path("overlay");
    crate::programs::run("qemu-img", &["create", "-q", "-f", "qcow2", overlay.to_str().unwrap(), "8M"]);
    let add = json!({"driver": "qcow2", "node-name": "overlay", "backing": null,
        "file": {"driver": "file", "filename": overlay}});
    tool.execute("blockdev-add", add).await;
    let snapshot = tool.try_execute("blockdev-snapshot", json!({"node": "node0", "overlay": "overlay"})).await;
    replica.take(&*cut).await.unwrap();
    model.assert_held_by(&replica);
    cut.release().await.unwrap();
    if snapshot.is_err() {
        // QEMU does not allow it while the filter is in; then it is taken afterwards.
        tool.execute("blockdev-snapshot", json!({"node": "node0", "overlay": "overlay"})).await;
    }
    let err = machine.cut(request(&vm, 3, 2)).await.err().unwrap();
    assert!(matches!(&err, Error::Tracking { lost: LostTracking::Missing, .. }), "{err}");
    tool.io(0, "write -q 0 4096").await;
    assert_eq!(tool.status().await, "running");
    machine.begin_tracking(&owner(), &vm.specs(), CutNumber(4)).await.unwrap();
    machine.cut(request(&vm, 5, 4)).await.unwrap().release().await.unwrap();
}

#[tokio::test]
async fn a_backup_job_of_others_goes_on_beside_a_cut_and_a_mirror_makes_it_wait() {
    for (at, disk) in [VIRTIO_QCOW2, SCSI_RAW].into_iter().enumerate() {
        let vm = Vm::start(Qemu::Installed, &[disk], &[]);
        let machine = vm.machine();
        let (mut replica, mut model, mut tool) = (Replica::blank(&vm), Model::blank(&vm), vm.tool().await);
        machine.begin_tracking(&owner(), &vm.specs(), CutNumber(1)).await.unwrap();
        model.write(&mut tool, 0, 0, MIB, 1).await;
        let target = vm.path("target");
        crate::programs::run("qemu-img", &["create", "-q", "-f", "qcow2", target.to_str().unwrap(), "8M"]);
        let add = json!({"driver": "qcow2", "node-name": "target", "file": {"driver": "file", "filename": target}});
        tool.execute("blockdev-add", add).await;
        let backup = json!({"job-id": "theirs", "device": "node0", "target": "target", "sync": "none"});
        tool.execute("blockdev-backup", backup).await;
        let cut = machine.cut(request(&vm, 2, 1)).await.unwrap();
        model_after(&mut tool).await;
        replica.take(&*cut).await.unwrap();
        model.assert_held_by(&replica);
        if at == 0 {
            // Their job ends while our cut is open.
            tool.execute("block-job-cancel", json!({"device": "theirs"})).await;
            eventually("their job has ended", async || {
                tool.ask("query-block-jobs").await.as_array().unwrap().is_empty()
            })
            .await;
            cut.release().await.unwrap();
        } else {
            cut.release().await.unwrap();
            assert_eq!(tool.ask("query-block-jobs").await.as_array().unwrap().len(), 1, "their job goes on");
            tool.execute("block-job-cancel", json!({"device": "theirs"})).await;
            eventually("their job has ended", async || {
                tool.ask("query-block-jobs").await.as_array().unwrap().is_empty()
            })
            .await;
        }
        assert_eq!(tool.our_names().await, maps(&[1, 2], 1));
        tool.io(0, "write -q -P 9 0 4096").await;

        let mirror = json!({"job-id": "mirror", "device": "node0", "target": "target", "sync": "full"});
        tool.execute("blockdev-mirror", mirror).await;
        let err = machine.cut(request(&vm, 3, 2)).await.err().unwrap();
        assert!(matches!(&err, Error::Busy(why) if why.contains("mirror")), "{err}");
        tool.execute("block-job-cancel", json!({"device": "mirror", "force": true})).await;
        eventually("their job has ended", async || tool.ask("query-block-jobs").await.as_array().unwrap().is_empty())
            .await;
        machine.cut(request(&vm, 4, 2)).await.unwrap().release().await.unwrap();
        assert_eq!(tool.status().await, "running");
    }
}

/// Writes that come after the instant.
async fn model_after(tool: &mut Tool) {
    tool.io(0, "write -q -P 77 0 2M").await;
}

#[tokio::test]
async fn disks_are_named_durably_and_what_is_no_disk_is_left_out() {
    for qemu in Qemu::all() {
        let mut vm = Vm::start(qemu, &[VIRTIO_QCOW2], &[]);
        vm.kill();
        for name in ["a", "b", "c", "e"] {
            let path = vm.path(name);
            crate::programs::run("qemu-img", &["create", "-q", "-f", "qcow2", path.to_str().unwrap(), "1M"]);
        }
        let file = |name: &str| format!("file={}", vm.path(name).display());
        let arguments = [
            "-machine",
            "q35",
            "-drive",
            &format!("{},if=none,id=named,format=qcow2", file("a")),
            "-device",
            "virtio-blk-pci,drive=named",
            "-drive",
            &format!("{},if=none,id=x,format=qcow2", file("b")),
            "-device",
            "virtio-blk-pci,drive=x,serial=SN7",
            "-drive",
            &format!("{},if=ide,format=qcow2", file("c")),
            "-object",
            "throttle-group,id=group",
            "-blockdev",
            &format!("qcow2,node-name=e,file.driver=file,file.filename={}", vm.path("e").display()),
            "-blockdev",
            "throttle,node-name=slow,file=e,throttle-group=group",
            "-device",
            "virtio-blk-pci,drive=slow",
            "-device",
            "ide-cd,bus=ide.2",
            "-drive",
            &format!("{},if=none,id=ro,format=qcow2,read-only=on", vm_image(&vm)),
            "-device",
            "virtio-blk-pci,drive=ro,id=reader",
        ];
        vm.replace_arguments(&arguments);
        vm.boot();
        let machine = vm.machine();
        let found = machine.describe().await.unwrap();
        let mut keys: Vec<_> = found.disks.iter().map(|d| d.key.as_str()).collect();
        keys.sort();
        assert_eq!([keys[0], keys[1], keys[3]], ["drive:ide0-hd0", "drive:named", "serial:SN7"]);
        assert!(keys[2].starts_with("qom:/machine/peripheral-anon/"), "{keys:?}");
        let slow = found.disks.iter().find(|d| d.key.starts_with("qom:")).unwrap();
        assert!(slow.persistent_maps, "the maps go below the throttle filter");
        assert_eq!(slow.path.as_deref(), Some(vm.path("e").as_path()));
        assert!(found.left_out.iter().any(|why| why == "reader: read-only"), "{:?}", found.left_out);
        assert!(found.left_out.iter().any(|why| why.ends_with("removable medium")), "{:?}", found.left_out);
        vm.kill();
        vm.boot();
        assert_eq!(machine.describe().await.unwrap().disks, found.disks, "the same names after a restart");
        let specs: Vec<_> = found
            .disks
            .iter()
            .enumerate()
            .map(|(at, d)| understudy_model::DiskSpec { id: DiskId(at as u16), key: d.key.clone(), size: d.size })
            .collect();
        machine.begin_tracking(&owner(), &specs, CutNumber(1)).await.unwrap();
        for _ in 0..2 {
            let number = machine.maps(&owner()).await.unwrap().disks[0].maps.last().unwrap().number.next();
            let mut all = request(&vm, number.0, 1);
            all.disks = specs.clone();
            machine.cut(all).await.unwrap().release().await.unwrap();
        }
        let mut missing = request(&vm, 9, 1);
        missing.disks = specs.clone();
        missing.disks[0].key = "id:gone".into();
        let err = machine.cut(missing).await.err().unwrap();
        assert_eq!(err.kind(), ErrorKind::Operator);
        assert!(err.to_string().contains("reader: read-only"), "{err}");
    }
}

fn vm_image(vm: &Vm) -> String {
    format!("file={}", vm.image(0).display())
}

#[tokio::test]
async fn a_vm_on_its_way_is_left_alone() {
    let vm = Vm::start(Qemu::Installed, &[VIRTIO_QCOW2], &[]);
    let (machine, mut tool) = (vm.machine(), vm.tool().await);
    machine.begin_tracking(&owner(), &vm.specs(), CutNumber(1)).await.unwrap();
    tool.execute("migrate", json!({"uri": format!("exec:cat > {}", vm.path("state").display())})).await;
    eventually("the migration is over", async || tool.ask("query-migrate").await["status"] == "completed").await;
    let err = machine.cut(request(&vm, 2, 1)).await.err().unwrap();
    assert!(matches!(&err, Error::Busy(why) if why.contains("migrated")), "{err}");
    assert_eq!(machine.describe().await.unwrap().power, understudy_hypervisor::driver::Power::Unsettled);
}
