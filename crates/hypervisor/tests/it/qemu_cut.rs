//! Cuts of real VMs: what is read is the instant of the cut, whatever the guest does meanwhile, and afterwards nothing of
//! ours is left but the maps.

use std::time::Duration;

use understudy_hypervisor::driver::{Error, LostTracking, Machine};
use understudy_model::{Consistency, CutNumber, DiskId, ErrorKind, Extent};

use crate::vm::*;

/// Takes a few cycles of a VM with these disks while its guest goes on writing.
async fn cycles(qemu: Qemu, disks: &[DiskPlan]) {
    let vm = Vm::start(qemu, disks, &[]);
    let machine = vm.machine();
    let (mut replica, mut model, mut tool) = (Replica::blank(&vm), Model::blank(&vm), vm.tool().await);
    machine.begin_tracking(&owner(), &vm.specs(), CutNumber(1)).await.unwrap();
    for cycle in 2..6u64 {
        let offset = cycle * 300_032;
        for disk in 0..disks.len() {
            model.write(&mut tool, disk, offset, 100_000, (16 * disk as u64 + cycle) as u8).await;
        }
        tool.was_stopped().await;
        let cut = machine.cut(request(&vm, cycle, cycle - 1)).await.unwrap();
        assert_eq!(tool.status().await, "running");
        assert_eq!(tool.was_stopped().await, disks.len() > 1, "one disk needs no stop");
        let instant = model.disks.clone();
        for disk in 0..disks.len() {
            // Over what is due, beside it, and far from it.
            model.write(&mut tool, disk, offset - 1000 * 512, 200_192, 255).await;
            model.write(&mut tool, disk, 7 << 20, 4096, cycle as u8).await;
        }
        replica.take(&*cut).await.unwrap();
        Model { disks: instant }.assert_held_by(&replica);
        assert_eq!(cut.consistency(), Consistency::Standard);
        cut.release().await.unwrap();
        machine.drop_maps(&owner(), CutNumber(cycle)).await.unwrap();
        assert_eq!(tool.our_names().await, maps(&[cycle], disks.len()));
        assert!(vm.scratch_files().is_empty());
    }
}

#[tokio::test]
async fn a_cut_of_several_disks_is_the_disks_at_one_instant() {
    for qemu in Qemu::all() {
        cycles(qemu, &[VIRTIO_QCOW2, SCSI_RAW, SCSI_QCOW2]).await;
    }
}

#[tokio::test]
async fn a_cut_of_one_disk_is_the_disk_at_that_instant_and_stops_nothing() {
    for qemu in Qemu::all() {
        cycles(qemu, &[VIRTIO_RAW]).await;
        cycles(qemu, &[SCSI_QCOW2]).await;
    }
}

#[tokio::test]
async fn a_cut_of_many_disks_is_the_disks_at_one_instant() {
    let ide = DiskPlan::new(Bus::Ide, "qcow2");
    let nvme = DiskPlan::new(Bus::Nvme, "raw");
    cycles(Qemu::Installed, &[VIRTIO_QCOW2, VIRTIO_RAW, SCSI_QCOW2, ide, nvme]).await;
}

#[tokio::test]
async fn disks_on_an_io_thread_are_cut_where_qemu_can_and_refused_where_it_would_die() {
    let on_thread = |plan| DiskPlan { on_iothread: true, ..plan };
    let disks = [on_thread(VIRTIO_QCOW2), on_thread(SCSI_RAW)];
    cycles(Qemu::Installed, &disks).await;
    cycles(Qemu::Installed, &disks[..1]).await;
    for qemu in Qemu::all().into_iter().filter(|q| *q == Qemu::Old) {
        for at in 0..2 {
            let vm = Vm::start(qemu, &disks[at..=at], &[]);
            let machine = vm.machine();
            machine.begin_tracking(&owner(), &vm.specs(), CutNumber(1)).await.unwrap();
            let err = machine.cut(request(&vm, 2, 1)).await.err().unwrap();
            assert_eq!(err.kind(), ErrorKind::Operator);
            assert!(err.to_string().contains("I/O thread io0, and QEMU 7.2"), "{err}");
            assert!(machine.read_live(&vm.specs()[0]).await.is_err(), "a reader of the live disk does the same harm");
        }
    }
}

#[tokio::test]
async fn zeros_discards_and_odd_lengths_are_changes_like_any_other() {
    for qemu in Qemu::all() {
        zeros_and_discards(qemu).await;
    }
}

async fn zeros_and_discards(qemu: Qemu) {
    let odd = DiskPlan { size: 5 * MIB + 512, ..VIRTIO_QCOW2 };
    let vm = Vm::start(qemu, &[odd, VIRTIO_RAW], &[]);
    let machine = vm.machine();
    let (mut replica, mut model, mut tool) = (Replica::blank(&vm), Model::blank(&vm), vm.tool().await);
    machine.begin_tracking(&owner(), &vm.specs(), CutNumber(1)).await.unwrap();
    for disk in 0..2 {
        model.write(&mut tool, disk, 0, 2 * MIB, 7).await;
    }
    model.write(&mut tool, 0, 5 * MIB, 512, 9).await;
    let cut = machine.cut(request(&vm, 2, 1)).await.unwrap();
    replica.take(&*cut).await.unwrap();
    cut.release().await.unwrap();
    model.assert_held_by(&replica);
    for disk in 0..2 {
        tool.io(disk, "write -q -z 64k 128k").await;
        tool.io(disk, "discard -q 1M 512k").await;
        model.disks[disk][64 << 10..192 << 10].fill(0);
        model.disks[disk][1 << 20..(1 << 20) + (512 << 10)].fill(0);
        model.write(&mut tool, disk, 12_288 + 512, 512, 3).await;
    }
    let cut = machine.cut(request(&vm, 3, 2)).await.unwrap();
    let due = extents(&[(12_288, 4096), (64 << 10, 128 << 10), (1 << 20, 512 << 10)]);
    for disk in 0..2 {
        assert!(due.iter().all(|e| cut.dirty(DiskId(disk)).unwrap().contains(e)));
    }
    replica.take(&*cut).await.unwrap();
    cut.release().await.unwrap();
    model.assert_held_by(&replica);
}

#[tokio::test]
async fn what_a_cycle_given_up_held_is_in_the_next_one() {
    let vm = Vm::start(Qemu::Installed, &[VIRTIO_QCOW2, VIRTIO_RAW], &[]);
    let machine = vm.machine();
    let (mut replica, mut model, mut tool) = (Replica::blank(&vm), Model::blank(&vm), vm.tool().await);
    machine.begin_tracking(&owner(), &vm.specs(), CutNumber(1)).await.unwrap();
    for number in 2..5u64 {
        model.write(&mut tool, 0, number * 200_192, 512, number as u8).await;
        model.write(&mut tool, 1, number * 300_032, 4096, number as u8).await;
        machine.cut(request(&vm, number, 1)).await.unwrap().release().await.unwrap();
        if number == 3 {
            machine.fold_maps(&owner()).await.unwrap();
            assert_eq!(tool.our_names().await, maps(&[1, 3], 2), "the oldest keeps its number");
        }
    }
    assert_eq!(tool.our_names().await, maps(&[1, 3, 4], 2));
    let cut = machine.cut(request(&vm, 5, 1)).await.unwrap();
    let due = cut.dirty(DiskId(0)).unwrap().bytes();
    assert_eq!(due, 3 * 4096, "three granules, and nothing else");
    replica.take(&*cut).await.unwrap();
    model.assert_held_by(&replica);
    cut.release().await.unwrap();
    machine.drop_maps(&owner(), CutNumber(5)).await.unwrap();
    machine.drop_maps(&owner(), CutNumber(9)).await.unwrap();
    assert_eq!(tool.our_names().await, maps(&[5], 2), "what records is never dropped");

    let err = machine.cut(request(&vm, 6, 4)).await.err().unwrap();
    assert_eq!(err.kind(), ErrorKind::Resync);
    let young = LostTracking::TooYoung { oldest: CutNumber(5), base: CutNumber(4) };
    assert!(matches!(err, Error::Tracking { lost, .. } if lost == young));
    let err = machine.cut(request(&vm, 5, 5)).await.err().unwrap();
    assert!(matches!(err, Error::Tracking { lost: LostTracking::NumberTaken { .. }, .. }));
}

#[tokio::test]
async fn an_idle_disk_costs_no_export_and_reads_as_nothing_due() {
    let vm = Vm::start(Qemu::Installed, &[VIRTIO_QCOW2, VIRTIO_RAW], &[]);
    let machine = vm.machine();
    let (mut model, mut tool) = (Model::blank(&vm), vm.tool().await);
    machine.begin_tracking(&owner(), &vm.specs(), CutNumber(1)).await.unwrap();
    model.write(&mut tool, 1, 0, 4096, 1).await;
    let cut = machine.cut(request(&vm, 2, 1)).await.unwrap();
    let exports = tool.ask("query-block-exports").await;
    assert_eq!(exports.as_array().unwrap().len(), 1);
    assert!(cut.dirty(DiskId(0)).unwrap().is_empty());
    assert_eq!(cut.dirty(DiskId(1)).unwrap(), &extents(&[(0, 4096)]));
    assert!(cut.reader(DiskId(0)).unwrap().read(Extent::new(0, 512)).await.is_err());
    assert!(cut.dirty(DiskId(2)).is_none() && cut.reader(DiskId(2)).is_none());
    cut.ensure_intact().await.unwrap();
    cut.release().await.unwrap();
    let cut = machine.cut(request(&vm, 3, 2)).await.unwrap();
    assert_eq!(tool.ask("query-block-exports").await.as_array().unwrap().len(), 1, "map 1 was not dropped yet");
    cut.release().await.unwrap();
    machine.drop_maps(&owner(), CutNumber(3)).await.unwrap();
    tool.was_stopped().await;
    for number in 4..6 {
        let cut = machine.cut(request(&vm, number, number - 1)).await.unwrap();
        assert!(!tool.was_stopped().await, "a VM that wrote nothing is only looked at");
        assert_eq!(tool.our_names().await, maps(&[3], 2));
        cut.ensure_intact().await.unwrap();
        cut.release().await.unwrap();
        machine.drop_maps(&owner(), CutNumber(number)).await.unwrap();
    }
    model.write(&mut tool, 0, 512, 512, 1).await;
    let cut = machine.cut(request(&vm, 6, 5)).await.unwrap();
    assert_eq!(cut.dirty(DiskId(0)).unwrap(), &extents(&[(0, 4096)]));
    cut.release().await.unwrap();
}

#[tokio::test]
async fn disks_with_much_to_carry_are_frozen_so_that_only_that_is_served() {
    for qemu in Qemu::all() {
        let large = |plan| DiskPlan { size: 72 * MIB, ..plan };
        let vm = Vm::start(qemu, &[large(VIRTIO_QCOW2), large(SCSI_RAW)], &[]);
        let machine = vm.machine();
        let (mut replica, mut model, mut tool) = (Replica::blank(&vm), Model::blank(&vm), vm.tool().await);
        machine.begin_tracking(&owner(), &vm.specs(), CutNumber(1)).await.unwrap();
        for disk in 0..2 {
            model.write(&mut tool, disk, 0, 40 * MIB, 1).await;
            model.write(&mut tool, disk, 50 * MIB, 4096, 2).await;
        }
        let cut = machine.cut(request(&vm, 2, 1)).await.unwrap();
        let instant = Model { disks: model.disks.clone() };
        for disk in 0..2u16 {
            let reader = cut.reader(DiskId(disk)).unwrap();
            assert!(reader.read(Extent::new(50 * MIB, 64 << 10)).await.is_ok(), "a whole neighbourhood");
            let beside = reader.read(Extent::new(60 * MIB, 4096)).await.unwrap_err();
            assert!(matches!(beside, Error::CutEnded(_)), "not due, not served: {beside}");
            model.write(&mut tool, disk.into(), 20 * MIB, MIB, 3).await;
        }
        replica.take(&*cut).await.unwrap();
        instant.assert_held_by(&replica);
        cut.release().await.unwrap();
        assert_eq!(tool.our_names().await, maps(&[1, 2], 2));
    }
}

#[tokio::test]
async fn a_vm_that_somebody_paused_is_cut_and_stays_paused() {
    let vm = Vm::start(Qemu::Installed, &[VIRTIO_QCOW2, SCSI_RAW], &[]);
    let machine = vm.machine();
    let (mut replica, mut model, mut tool) = (Replica::blank(&vm), Model::blank(&vm), vm.tool().await);
    machine.begin_tracking(&owner(), &vm.specs(), CutNumber(1)).await.unwrap();
    model.write(&mut tool, 0, 0, 4096, 1).await;
    tool.ask("stop").await;
    let cut = machine.cut(request(&vm, 2, 1)).await.unwrap();
    replica.take(&*cut).await.unwrap();
    cut.release().await.unwrap();
    model.assert_held_by(&replica);
    assert_eq!(tool.status().await, "paused");
}

#[tokio::test]
async fn a_guest_that_resets_in_the_middle_of_a_cut_changes_nothing() {
    let vm = Vm::start(Qemu::Installed, &[VIRTIO_QCOW2, SCSI_RAW], &[]);
    let machine = vm.machine();
    let (mut replica, mut model, mut tool) = (Replica::blank(&vm), Model::blank(&vm), vm.tool().await);
    machine.begin_tracking(&owner(), &vm.specs(), CutNumber(1)).await.unwrap();
    model.write(&mut tool, 0, 0, 4096, 1).await;
    model.write(&mut tool, 1, 0, 4096, 2).await;
    let cut = machine.cut(request(&vm, 2, 1)).await.unwrap();
    tool.ask("system_reset").await;
    replica.take(&*cut).await.unwrap();
    model.assert_held_by(&replica);
    cut.release().await.unwrap();
    assert_eq!(tool.status().await, "running");
}

#[tokio::test]
async fn a_second_cut_waits_for_the_end_of_the_first() {
    let vm = Vm::start(Qemu::Installed, &[VIRTIO_QCOW2], &[]);
    let machine = vm.machine();
    machine.begin_tracking(&owner(), &vm.specs(), CutNumber(1)).await.unwrap();
    vm.tool().await.io(0, "write -q 0 4096").await;
    let cut = machine.cut(request(&vm, 2, 1)).await.unwrap();
    let err = machine.cut(request(&vm, 3, 1)).await.err().unwrap();
    assert!(matches!(err, Error::Busy(_)) && err.kind() == ErrorKind::Retry);
    assert!(matches!(machine.tidy(&owner()).await, Err(Error::Busy(_))), "an open cut is not tidied away");
    cut.release().await.unwrap();
    machine.cut(request(&vm, 3, 1)).await.unwrap().release().await.unwrap();
}

#[tokio::test]
async fn a_cut_that_is_dropped_is_taken_out_all_the_same() {
    let vm = Vm::start(Qemu::Installed, &[VIRTIO_QCOW2, SCSI_RAW], &[]);
    let machine = vm.machine();
    let (mut model, mut tool) = (Model::blank(&vm), vm.tool().await);
    machine.begin_tracking(&owner(), &vm.specs(), CutNumber(1)).await.unwrap();
    model.write(&mut tool, 0, 0, 4096, 1).await;
    drop(machine.cut(request(&vm, 2, 1)).await.unwrap());
    eventually("the cut is gone", async || tool.our_names().await == maps(&[1, 2], 2)).await;

    // A caller who loses patience does not leave a cut half taken either.
    let cutting = tokio::spawn({
        let (machine, request) = (machine.clone(), request(&vm, 3, 1));
        // The one before may still be on its way out.
        async move {
            while let Err(Error::Busy(_)) = machine.cut(request.clone()).await.map(drop) {
                tokio::task::yield_now().await;
            }
        }
    });
    eventually("the cut was begun", async || tool.our_names().await.len() > 4).await;
    cutting.abort();
    eventually("the cut is gone", async || tool.our_names().await == maps(&[1, 2, 3], 2)).await;
    assert_eq!(tool.status().await, "running");
}

#[tokio::test]
async fn the_live_disk_is_read_with_its_holes_and_leaves_nothing() {
    for qemu in Qemu::all() {
        let vm = Vm::start(qemu, &[VIRTIO_QCOW2, SCSI_RAW], &[]);
        let machine = vm.machine();
        let (mut replica, mut model, mut tool) = (Replica::blank(&vm), Model::blank(&vm), vm.tool().await);
        for disk in 0..2 {
            model.write(&mut tool, disk, MIB, MIB, 5).await;
            let spec = &vm.specs()[disk];
            let live = machine.read_live(spec).await.unwrap();
            let whole = Extent::new(0, live.size());
            assert!(live.status(whole).await.unwrap().len() >= 3, "holes before and after");
            read_into(&*live, whole, &mut replica.disks[disk]).await.unwrap();
            drop(live);
            let again = machine.read_live(spec).await.unwrap();
            assert_eq!(again.read(Extent::new(MIB, 512)).await.unwrap()[..], [5; 512]);
        }
        model.assert_held_by(&replica);
        eventually("the exports are gone", async || tool.our_names().await.is_empty()).await;
        eventually("the server is gone", async || !vm.path("run/nbd").exists()).await;
    }
}

#[tokio::test]
async fn an_agent_that_freezes_makes_a_cut_application_consistent() {
    let vm = Vm::start(Qemu::Installed, &[VIRTIO_QCOW2, SCSI_RAW], &[]);
    let agent = crate::agent::Agent::start(crate::agent::Manner::Good);
    let machine = vm.machine_with(|c| c.agent = Some(agent.socket()));
    machine.begin_tracking(&owner(), &vm.specs(), CutNumber(1)).await.unwrap();
    let mut wanted = request(&vm, 2, 1);
    wanted.consistency = Consistency::Application;
    let cut = machine.cut(wanted).await.unwrap();
    assert_eq!((cut.consistency(), cut.shortfall()), (Consistency::Application, None));
    cut.release().await.unwrap();
    assert_eq!(agent.seen(), ["status", "freeze", "thaw"]);
    assert!(!vm.path("run/frozen").exists());
}

#[tokio::test]
async fn an_agent_that_does_not_play_along_makes_it_a_standard_cut_and_is_thawed() {
    use crate::agent::{Agent, Manner};
    let vm = Vm::start(Qemu::Installed, &[VIRTIO_QCOW2], &[]);
    vm.machine().begin_tracking(&owner(), &vm.specs(), CutNumber(1)).await.unwrap();
    let manners = [
        (Manner::Refuses, "could not freeze", true),
        (Manner::HangsUpWhileFreezing, "could not freeze", true),
        (Manner::IsFrozenBySomebodyElse, "another tool", false),
    ];
    let mut number = 2;
    for (manner, why, is_thawed) in manners {
        let agent = Agent::start(manner);
        let machine = vm.machine_with(|c| c.agent = Some(agent.socket()));
        let mut wanted = request(&vm, number, 1);
        wanted.consistency = Consistency::Application;
        number += 1;
        let cut = machine.cut(wanted).await.unwrap();
        assert_eq!(cut.consistency(), Consistency::Standard);
        assert!(cut.shortfall().unwrap().contains(why), "{:?}", cut.shortfall());
        cut.release().await.unwrap();
        if is_thawed {
            eventually("the guest is thawed", async || agent.seen().last().is_some_and(|c| c == "thaw")).await;
        } else {
            assert_eq!(agent.seen(), ["status"], "a freeze of somebody else's is left alone");
        }
    }
    let machine = vm.machine_with(|c| c.agent = Some(vm.path("no-agent")));
    let mut wanted = request(&vm, number, 1);
    wanted.consistency = Consistency::Application;
    let cut = machine.cut(wanted).await.unwrap();
    assert!(cut.shortfall().unwrap().contains("does not answer"));
    cut.release().await.unwrap();
}

#[tokio::test]
async fn a_monitor_that_another_tool_holds_makes_a_cut_wait_and_then_say_so() {
    let vm = Vm::start(Qemu::Installed, &[VIRTIO_QCOW2], &[]);
    let machine = vm.machine_with(|c| c.patience.connect = Duration::from_millis(300));
    machine.begin_tracking(&owner(), &vm.specs(), CutNumber(1)).await.unwrap();
    let held = std::os::unix::net::UnixStream::connect(vm.path("qmp")).unwrap();
    let mut byte = [0];
    std::io::Read::read_exact(&mut &held, &mut byte).unwrap();
    let err = machine.cut(request(&vm, 2, 1)).await.err().unwrap();
    assert!(matches!(err, Error::Busy(_)), "{err}");
    drop(held);
    let machine = vm.machine();
    machine.cut(request(&vm, 2, 1)).await.unwrap().release().await.unwrap();
}

#[tokio::test]
async fn a_request_over_what_was_copied_and_what_was_not_is_answered_from_the_instant() {
    // QEMU before 8.0 answers such a request wholly from the disk, so it is never made there.
    for qemu in Qemu::all() {
        for disks in [&[VIRTIO_QCOW2][..], &[SCSI_RAW]] {
            let vm = Vm::start(qemu, disks, &[]);
            let machine = vm.machine();
            let mut tool = vm.tool().await;
            machine.begin_tracking(&owner(), &vm.specs(), CutNumber(1)).await.unwrap();
            tool.io(0, "write -q -P 1 0 1M").await;
            let cut = machine.cut(request(&vm, 2, 1)).await.unwrap();
            tool.io(0, "write -q -P 2 0 64k").await;
            tool.io(0, "write -q -z -u 128k 64k").await;
            tool.io(0, "discard -q 256k 64k").await;
            let reader = cut.reader(DiskId(0)).unwrap();
            for (from, len) in [(0, 1 << 20), (0, 128 << 10), (128 << 10, 512 << 10), (4096, 65536), (512, 512)] {
                let extent = Extent::new(from, len);
                assert!(reader.read(extent).await.unwrap().iter().all(|b| *b == 1), "{qemu:?} {extent:?}");
                let status = reader.status(extent).await.unwrap();
                assert_eq!(status, [(extent, understudy_hypervisor::driver::Content::Data)], "{qemu:?}");
            }
            // The same bytes, many times at once: QEMU before 9.2 would end if they were asked for so.
            let extent = Extent::new(512 << 10, 256 << 10);
            let reads = (0..40).map(|_| reader.read(extent));
            for bytes in futures::future::join_all(reads).await {
                assert!(bytes.unwrap().iter().all(|b| *b == 1));
            }
            cut.ensure_intact().await.unwrap();
            cut.release().await.unwrap();
        }
    }
}

#[tokio::test]
async fn scratch_space_is_given_back_as_it_is_read() {
    for qemu in Qemu::all() {
        for disks in [&[VIRTIO_QCOW2][..], &[DiskPlan { size: 8 * MIB + 512, ..SCSI_RAW }, VIRTIO_RAW]] {
            let vm = Vm::start(qemu, disks, &[]);
            let machine = vm.machine();
            let (mut model, mut tool) = (Model::blank(&vm), vm.tool().await);
            machine.begin_tracking(&owner(), &vm.specs(), CutNumber(1)).await.unwrap();
            model.write(&mut tool, 0, 0, 8 * MIB, 1).await;
            let cut = machine.cut(request(&vm, 2, 1)).await.unwrap();
            tool.io(0, "write -q -P 3 0 8M").await;
            let taken = scratch_taken(&vm);
            assert!(taken >= 8 * MIB, "{qemu:?}: only {taken} bytes were kept");
            let mut replica = Replica::blank(&vm);
            replica.take(&*cut).await.unwrap();
            model.assert_held_by(&replica);
            let taken = scratch_taken(&vm);
            assert!(taken <= 128 << 10, "{qemu:?}: {taken} bytes are still taken");
            // What is read is no longer guarded either: overwriting it takes nothing.
            tool.io(0, "write -q -P 2 1M 4M").await;
            let taken = scratch_taken(&vm);
            assert!(taken <= 128 << 10, "{qemu:?}: {taken} bytes are taken again");
            cut.ensure_intact().await.unwrap();
            cut.release().await.unwrap();
        }
    }
}

/// Bytes that a VM's scratch files take on their file system.
fn scratch_taken(vm: &Vm) -> u64 {
    use std::os::unix::fs::MetadataExt;
    vm.scratch_files().iter().map(|file| std::fs::metadata(file).unwrap().blocks() * 512).sum()
}

#[tokio::test]
async fn a_qemu_that_cannot_freeze_without_harm_is_refused() {
    let peer = crate::qmp_peer::Peer::tell(async |mut talk| {
        talk.greet_as(r#"{"QMP":{"version":{"qemu":{"micro":0,"minor":0,"major":7}},"capabilities":[]}}"#).await;
        while let Some(command) = talk.hear().await {
            let answer = match command["execute"].as_str().unwrap() {
                "query-status" => serde_json::json!({"status": "running"}),
                _ => serde_json::json!([]),
            };
            talk.say_line(serde_json::json!({"return": answer, "id": command["id"]})).await;
        }
    });
    let vm = Vm::start(Qemu::Installed, &[], &[]);
    let machine = vm.machine_with(|c| c.monitor = peer.socket());
    for err in [
        machine.cut(request(&vm, 2, 1)).await.err().unwrap(),
        machine.begin_tracking(&owner(), &vm.specs(), CutNumber(1)).await.unwrap_err(),
    ] {
        assert_eq!(err.kind(), ErrorKind::Operator);
        assert!(err.to_string().contains("QEMU 7.0.0 cannot") && err.to_string().contains("7.1"), "{err}");
    }
}
