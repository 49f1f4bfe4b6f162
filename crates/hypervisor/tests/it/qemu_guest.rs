//! Cuts under a guest that really runs: the order of its writes is kept over disks, whatever the drive.

use understudy_hypervisor::driver::Machine;
use understudy_model::CutNumber;

use crate::boot_sector::{counter, install};
use crate::vm::*;

/// Starts the guest on these disks, of which the first is raw.
fn start(qemu: Qemu, disks: &[DiskPlan]) -> Vm {
    let mut vm = Vm::start(qemu, disks, &["-S"]);
    vm.kill();
    install(&vm.image(0));
    vm.start_at_once();
    vm.boot();
    vm
}

/// The counters on both disks, as the running guest has them just now: first disk 1, then disk 0.
fn peek(vm: &Vm) -> (u32, u32) {
    let second = counter(&std::fs::read(vm.image(1)).unwrap());
    (counter(&std::fs::read(vm.image(0)).unwrap()), second)
}

async fn keeps_the_order(qemu: Qemu, disks: &[DiskPlan]) {
    let vm = start(qemu, disks);
    let machine = vm.machine();
    until("the guest writes", || peek(&vm).1 > 0);
    machine.begin_tracking(&owner(), &vm.specs(), CutNumber(1)).await.unwrap();
    // The initial copy, under the guest's writes.
    let mut replica = Replica::blank(&vm);
    for (spec, disk) in vm.specs().iter().zip(&mut replica.disks) {
        let live = machine.read_live(spec).await.unwrap();
        read_into(&*live, understudy_model::Extent::new(0, spec.size), disk).await.unwrap();
    }
    let mut last = 0;
    for number in 2..8u64 {
        let before = peek(&vm).1;
        let cut = machine.cut(request(&vm, number, number - 1)).await.unwrap();
        // The guest goes on while the cut is read.
        until("the guest goes on", || peek(&vm).1 > before + 1);
        replica.take(&*cut).await.unwrap();
        cut.release().await.unwrap_or_else(|err| panic!("cut {number} under {qemu:?}: {err:?}"));
        machine.drop_maps(&owner(), CutNumber(number)).await.unwrap();
        let [first, second] = [counter(&replica.disks[0]), counter(&replica.disks[1])];
        assert!(first == second || first == second + 1, "cut {number}: {first} on disk 0, {second} on disk 1");
        assert!(first > last, "cut {number} is newer than the one before");
        last = first;
        until("the guest has gone past the cut", || peek(&vm).1 > last);
    }
}

#[tokio::test]
async fn the_order_of_writes_over_two_disks_is_kept() {
    for qemu in Qemu::all() {
        keeps_the_order(qemu, &[VIRTIO_RAW, SCSI_RAW]).await;
    }
}

#[tokio::test]
async fn the_order_of_writes_is_kept_with_many_disks() {
    keeps_the_order(Qemu::Installed, &[VIRTIO_RAW, SCSI_RAW, VIRTIO_RAW, VIRTIO_RAW, SCSI_RAW]).await;
}

#[tokio::test]
async fn disks_frozen_one_after_the_other_would_be_found_out() {
    let vm = start(Qemu::Installed, &[VIRTIO_RAW, SCSI_RAW]);
    until("the guest writes", || peek(&vm).1 > 0);
    // Disk 0 first, and disk 1 only after the guest has gone on: what a cut without one instant gives.
    let first = counter(&std::fs::read(vm.image(0)).unwrap());
    until("the guest goes on", || peek(&vm).1 > first + 1);
    let second = counter(&std::fs::read(vm.image(1)).unwrap());
    assert!(first != second && first != second + 1);
}
