//! VMs that are off: cut from their images, if it is certain what changed in them.

use understudy_hypervisor::driver::{Error, ImageRecord, LostTracking, Machine, Power};
use understudy_model::{Consistency, CutNumber, DiskId, ErrorKind, Extent};

use crate::programs::run;
use crate::vm::*;

/// Cuts a VM that is on, reads it, and returns what is to be remembered.
async fn cycle(
    vm: &Vm,
    replica: &mut Replica,
    number: u64,
    images: Vec<ImageRecord>,
) -> Result<Vec<ImageRecord>, Error> {
    let mut request = request(vm, number, number - 1);
    request.images = images;
    let cut = vm.machine().cut(request).await?;
    replica.take(&*cut).await?;
    let images = cut.images().to_vec();
    cut.release().await?;
    Ok(images)
}

#[tokio::test]
async fn a_vm_that_was_shut_down_is_cut_from_its_image_and_again_when_it_is_back() {
    for qemu in Qemu::all() {
        let mut vm = Vm::start(qemu, &[VIRTIO_QCOW2], &[]);
        let (mut replica, mut model) = (Replica::blank(&vm), Model::blank(&vm));
        vm.machine().begin_tracking(&owner(), &vm.specs(), CutNumber(1)).await.unwrap();
        model.write(&mut vm.tool().await, 0, 0, 100_352, 1).await;
        let images = cycle(&vm, &mut replica, 2, Vec::new()).await.unwrap();
        assert_eq!((images[0].path.as_path(), images[0].stamp), (vm.image(0).as_path(), None));
        model.write(&mut vm.tool().await, 0, MIB, 5000 / 512 * 512, 2).await;
        vm.quit().await;

        assert_eq!(vm.machine().describe().await.unwrap().power, Power::Off);
        let images = cycle(&vm, &mut replica, 3, images).await.unwrap();
        model.assert_held_by(&replica);
        assert!(images[0].stamp.is_some(), "off, its stamp means something");

        // Nothing happens to it: nothing is read, and no map is needed.
        let before = replica.clone();
        let mut again = request(&vm, 4, 3);
        again.images = images.clone();
        again.consistency = Consistency::Application;
        let cut = vm.machine().cut(again).await.unwrap();
        assert!(cut.dirty(DiskId(0)).unwrap().is_empty());
        assert_eq!((cut.consistency(), cut.shortfall()), (Consistency::Standard, Some("the VM is off")));
        cut.ensure_intact().await.unwrap();
        let images = cut.images().to_vec();
        cut.release().await.unwrap();
        assert_eq!(replica.disks, before.disks);

        // Off, nothing is rotated or removed.
        vm.machine().drop_maps(&owner(), CutNumber(4)).await.unwrap();
        vm.machine().fold_maps(&owner()).await.unwrap();
        vm.boot();
        model.write(&mut vm.tool().await, 0, 2 * MIB, 512, 3).await;
        let images = cycle(&vm, &mut replica, 5, images).await.unwrap();
        model.assert_held_by(&replica);
        assert_eq!(images[0].stamp, None);
    }
}

#[tokio::test]
async fn an_image_that_somebody_changed_while_the_vm_was_off_is_noticed() {
    let mut vm = Vm::start(Qemu::Installed, &[VIRTIO_QCOW2], &[]);
    let mut replica = Replica::blank(&vm);
    vm.machine().begin_tracking(&owner(), &vm.specs(), CutNumber(1)).await.unwrap();
    vm.tool().await.io(0, "write -q -P 1 0 4096").await;
    let images = cycle(&vm, &mut replica, 2, Vec::new()).await.unwrap();
    vm.quit().await;
    let images = cycle(&vm, &mut replica, 3, images).await.unwrap();
    let (image, backup) = (vm.image(0), vm.path("backup"));
    std::fs::copy(&image, &backup).unwrap();
    // QEMU's own tools note what they write in the maps.
    run("qemu-io", &["-f", "qcow2", "-c", "write -q -P 9 65536 512", image.to_str().unwrap()]);
    let images = cycle(&vm, &mut replica, 4, images).await.unwrap();
    assert_eq!(&replica.disks[0][65536..66048], [9; 512]);
    assert!(images[0].held.as_ref().unwrap().contains(Extent::new(65536, 512)));
    std::fs::copy(&backup, &image).unwrap();
    let err = cycle(&vm, &mut replica, 4, images.clone()).await.unwrap_err();
    assert_eq!(err.kind(), ErrorKind::Resync);
    assert!(matches!(err, Error::Tracking { lost: LostTracking::ChangedWhileOff, .. }));
    std::fs::remove_file(&image).unwrap();
    let err = cycle(&vm, &mut replica, 5, images).await.unwrap_err();
    assert_eq!(err.kind(), ErrorKind::Operator, "{err}");
}

#[tokio::test]
async fn a_vm_that_was_on_between_two_cuts_is_cut_from_its_image() {
    for is_put_back in [false, true] {
        let mut vm = Vm::start(Qemu::Installed, &[VIRTIO_QCOW2], &[]);
        let (mut replica, mut model) = (Replica::blank(&vm), Model::blank(&vm));
        vm.machine().begin_tracking(&owner(), &vm.specs(), CutNumber(1)).await.unwrap();
        model.write(&mut vm.tool().await, 0, 0, 100_352, 1).await;
        let images = cycle(&vm, &mut replica, 2, Vec::new()).await.unwrap();
        vm.quit().await;
        let (image, backup) = (vm.image(0), vm.path("backup"));
        std::fs::copy(&image, &backup).unwrap();
        vm.boot();
        model.write(&mut vm.tool().await, 0, MIB, 4096, 2).await;
        vm.quit().await;
        let images = cycle(&vm, &mut replica, 3, images).await.unwrap();
        model.assert_held_by(&replica);
        if is_put_back {
            std::fs::copy(&backup, &image).unwrap();
        }
        vm.boot();
        model.write(&mut vm.tool().await, 0, 3 * MIB, 4096, 3).await;
        if is_put_back {
            let err = cycle(&vm, &mut replica, 4, images.clone()).await.unwrap_err();
            assert!(matches!(err, Error::Tracking { lost: LostTracking::ChangedWhileOff, .. }), "on: {err}");
        }
        vm.quit().await;
        match cycle(&vm, &mut replica, 5, images).await {
            Ok(_) if !is_put_back => model.assert_held_by(&replica),
            Err(Error::Tracking { lost: LostTracking::ChangedWhileOff, .. }) if is_put_back => {}
            other => panic!("put back: {is_put_back}, and the cut was {other:?}"),
        }
    }
}

#[tokio::test]
async fn an_image_that_tells_nothing_means_resynchronisation() {
    let mut vm = Vm::start(Qemu::Installed, &[VIRTIO_RAW], &[]);
    let mut replica = Replica::blank(&vm);
    vm.machine().begin_tracking(&owner(), &vm.specs(), CutNumber(1)).await.unwrap();
    vm.tool().await.io(0, "write -q -P 1 0 4096").await;
    let images = cycle(&vm, &mut replica, 2, Vec::new()).await.unwrap();
    vm.quit().await;
    let err = cycle(&vm, &mut replica, 3, images).await.unwrap_err();
    assert!(matches!(err, Error::Tracking { lost: LostTracking::ChangedWhileOff, .. }), "{err}");
    let err = cycle(&vm, &mut replica, 4, Vec::new()).await.unwrap_err();
    assert!(err.to_string().contains("no cut has told where its image lies") && err.kind() == ErrorKind::Operator);
}

#[tokio::test]
async fn a_killed_qemu_leaves_maps_that_are_not_trusted() {
    let mut vm = Vm::start(Qemu::Installed, &[VIRTIO_QCOW2], &[]);
    let mut replica = Replica::blank(&vm);
    vm.machine().begin_tracking(&owner(), &vm.specs(), CutNumber(1)).await.unwrap();
    vm.quit().await;
    vm.boot();
    vm.tool().await.io(0, "write -q -P 1 0 4096").await;
    let images = cycle(&vm, &mut replica, 2, Vec::new()).await.unwrap();
    vm.kill();
    let err = cycle(&vm, &mut replica, 3, images).await.unwrap_err();
    assert_eq!(err.kind(), ErrorKind::Resync);
    assert!(matches!(err, Error::Tracking { lost: LostTracking::Inconsistent { .. }, .. }), "{err}");
}

#[tokio::test]
async fn an_image_in_use_by_a_qemu_that_does_not_answer_is_left_alone() {
    let vm = Vm::start(Qemu::Installed, &[VIRTIO_QCOW2], &[]);
    let mut replica = Replica::blank(&vm);
    vm.machine().begin_tracking(&owner(), &vm.specs(), CutNumber(1)).await.unwrap();
    vm.tool().await.io(0, "write -q -P 1 0 4096").await;
    let images = cycle(&vm, &mut replica, 2, Vec::new()).await.unwrap();
    std::fs::remove_file(vm.path("qmp")).unwrap();
    let err = cycle(&vm, &mut replica, 3, images).await.unwrap_err();
    // Which of the two tells depends on how the kernel names the file system; either way it is not cut.
    let is_told = matches!(&err, Error::Busy(why) if why.contains("some process uses"))
        || matches!(&err, Error::Tracking { lost: LostTracking::Inconsistent { .. }, .. });
    assert!(is_told, "{err}");
}

#[tokio::test]
async fn a_vm_started_while_its_image_is_read_makes_the_cut_void() {
    let mut vm = Vm::start(Qemu::Installed, &[VIRTIO_QCOW2], &[]);
    let mut replica = Replica::blank(&vm);
    vm.machine().begin_tracking(&owner(), &vm.specs(), CutNumber(1)).await.unwrap();
    vm.tool().await.io(0, "write -q -P 1 0 4096").await;
    let images = cycle(&vm, &mut replica, 2, Vec::new()).await.unwrap();
    vm.tool().await.io(0, "write -q -P 2 0 4096").await;
    vm.quit().await;
    let mut off = request(&vm, 3, 2);
    off.images = images;
    let machine = vm.machine();
    let cut = machine.cut(off).await.unwrap();
    assert!(!cut.dirty(DiskId(0)).unwrap().is_empty());
    vm.boot();
    let err = cut.ensure_intact().await.unwrap_err();
    assert!(matches!(err, Error::CutEnded(_)), "{err}");
    cut.release().await.unwrap();
    machine.cut(request(&vm, 4, 2)).await.unwrap().release().await.unwrap();
}

#[tokio::test]
async fn an_earlier_state_of_an_image_that_was_put_back_is_noticed_off_and_on() {
    for is_started in [false, true] {
        let mut vm = Vm::start(Qemu::Installed, &[VIRTIO_QCOW2], &[]);
        let mut replica = Replica::blank(&vm);
        vm.machine().begin_tracking(&owner(), &vm.specs(), CutNumber(1)).await.unwrap();
        vm.tool().await.io(0, "write -q -P 1 0 4096").await;
        vm.quit().await;
        let (image, backup) = (vm.image(0), vm.path("backup"));
        std::fs::copy(&image, &backup).unwrap();
        vm.boot();
        vm.tool().await.io(0, "write -q -P 2 0 4096").await;
        let images = cycle(&vm, &mut replica, 2, Vec::new()).await.unwrap();
        assert_eq!(images[0].map, Some(CutNumber(2)));
        vm.quit().await;
        // Its maps are whole and reach back far enough: only that they are too few shows what was done.
        std::fs::copy(&backup, &image).unwrap();
        if is_started {
            vm.boot();
        }
        let err = cycle(&vm, &mut replica, 3, images).await.unwrap_err();
        assert_eq!(err.kind(), ErrorKind::Resync);
        assert!(matches!(err, Error::Tracking { lost: LostTracking::PutBack { .. }, .. }), "{err}");
    }
}

#[tokio::test]
async fn a_vm_that_is_shut_down_in_the_middle_of_a_cut_ends_well_and_nothing_is_missing() {
    for qemu in Qemu::all() {
        for disks in [&[VIRTIO_QCOW2][..], &[VIRTIO_QCOW2, SCSI_QCOW2]] {
            let mut vm = Vm::start(qemu, disks, &[]);
            let (mut replica, mut model) = (Replica::blank(&vm), Model::blank(&vm));
            let machine = vm.machine();
            machine.begin_tracking(&owner(), &vm.specs(), CutNumber(1)).await.unwrap();
            let mut tool = vm.tool().await;
            model.write(&mut tool, 0, 0, 100_352, 1).await;
            let images = cycle(&vm, &mut replica, 2, Vec::new()).await.unwrap();
            model.write(&mut tool, 0, MIB, 4096, 2).await;
            let cut = machine.cut(request(&vm, 3, 2)).await.unwrap();
            model.write(&mut tool, 0, 2 * MIB, 4096, 3).await;
            drop(tool);
            vm.quit().await;
            let err = replica.clone().take(&*cut).await.unwrap_err();
            assert_eq!(err.kind(), ErrorKind::Retry, "{err}");
            let err = cut.ensure_intact().await.unwrap_err();
            assert!(matches!(err, Error::CutEnded(_)), "{err}");
            cut.release().await.unwrap();
            std::fs::write(vm.path("scratch").join("disk-0.scratch"), "of a life that ended as well").unwrap();
            let images = cycle(&vm, &mut replica, 4, images).await.unwrap();
            model.assert_held_by(&replica);
            assert!(vm.scratch_files().is_empty());
            vm.boot();
            cycle(&vm, &mut replica, 5, images).await.unwrap();
            model.assert_held_by(&replica);
        }
    }
}

#[tokio::test]
async fn what_cannot_be_done_to_a_vm_that_is_off_says_so_and_waits() {
    let mut vm = Vm::start(Qemu::Installed, &[VIRTIO_QCOW2], &[]);
    let machine = vm.machine();
    vm.quit().await;
    let specs = vm.specs();
    for err in [
        machine.begin_tracking(&owner(), &specs, CutNumber(1)).await.unwrap_err(),
        machine.maps(&owner()).await.unwrap_err(),
        machine.read_live(&specs[0]).await.err().unwrap(),
        machine.end_tracking(&owner()).await.unwrap_err(),
    ] {
        assert_eq!(err.kind(), ErrorKind::Retry);
        assert!(err.to_string().contains("the VM is off"), "{err}");
    }
    vm.boot();
    machine.begin_tracking(&owner(), &specs, CutNumber(1)).await.unwrap();
}

#[tokio::test]
async fn an_image_exchanged_while_the_vm_was_off_is_noticed_when_it_runs_again() {
    let mut vm = Vm::start(Qemu::Installed, &[VIRTIO_QCOW2], &[]);
    let mut replica = Replica::blank(&vm);
    vm.machine().begin_tracking(&owner(), &vm.specs(), CutNumber(1)).await.unwrap();
    vm.tool().await.io(0, "write -q -P 1 0 4096").await;
    let images = cycle(&vm, &mut replica, 2, Vec::new()).await.unwrap();
    vm.quit().await;
    let images = cycle(&vm, &mut replica, 3, images).await.unwrap();
    // The same bytes and the same maps in another file: who knows what was done to it.
    std::fs::copy(vm.image(0), vm.path("other")).unwrap();
    std::fs::rename(vm.path("other"), vm.image(0)).unwrap();
    vm.boot();
    let err = cycle(&vm, &mut replica, 4, images).await.unwrap_err();
    assert!(matches!(err, Error::Tracking { lost: LostTracking::ChangedWhileOff, .. }), "{err}");
}
