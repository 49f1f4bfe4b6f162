//! A full disk: receiving stops early and politely, and what gives space back or must not fail still finishes.

use std::sync::Arc;

use understudy_model::{CutNumber, ErrorKind, Generation};
use understudy_store::files::{Crash, Files, MemFiles};
use understudy_store::{
    BaseBytes, BaseError, CycleError, FailoverPurpose, Removal, Store, StoreOptions, UpkeepError, VmStore,
};

use crate::support::*;

const RESERVE: u64 = 1 << 20;

fn with_reserve(files: &MemFiles) -> Store {
    let options = StoreOptions { reserve: RESERVE, receive_floor: RESERVE / 2, ..options() };
    Store::open(Arc::new(files.clone()), options).unwrap()
}

struct World {
    files: MemFiles,
    store: Store,
    vm: Arc<VmStore>,
    primary: Primary,
    cuts: Vec<(understudy_model::CutDigest, Images)>,
}

/// Six points, then not a byte left.
fn full() -> World {
    let files = MemFiles::new();
    let store = with_reserve(&files);
    let mut primary = Primary::small();
    (0..16).for_each(|i| primary.write(i % 2, i as u64 * 12_288, 9_000, i as u64 + 1));
    let vm = primary.start(&store);
    let mut cuts = Vec::new();
    for i in 0..6 {
        primary.write(0, i * 20_000, 40_000, 70 + i);
        let cut = primary.replicate(&vm, true);
        cuts.push((cut.id.digest, primary.images.clone()));
    }
    assert!(store.has_reserve());
    files.set_capacity(files.used());
    assert_eq!(files.free_space().unwrap(), 0);
    World { files, store, vm, primary, cuts }
}

#[test]
fn receiving_stops_before_the_last_space_is_gone() {
    let mut world = full();
    world.files.set_capacity(world.files.used() + RESERVE / 2 - 1);
    // A session is no data and is still admitted.
    let session = world.primary.admit(&world.vm);
    let before = world.vm.points();
    let err = send(&world.vm, session, &world.primary.cut(), true).unwrap_err();
    assert!(matches!(err, CycleError::NoSpace { .. }), "{err:?}");
    assert_eq!(err.kind(), ErrorKind::Operator);
    assert_eq!(world.vm.points(), before);
    assert!(world.vm.stopped().is_none() && world.store.has_reserve());
    world.files.set_capacity(u64::MAX);
    world.primary.replicate(&world.vm, true);
}

#[test]
fn space_that_runs_out_inside_a_cycle_or_copy_gives_up_only_that() {
    let files = MemFiles::new();
    let store = open(&files);
    let mut primary = Primary::small();
    primary.write(0, 0, DISK, 5);
    let vm = store.create_vm(primary.vm, primary.generation, &primary.specs).unwrap();
    let session = primary.admit(&vm);
    let base = vm.begin_base(session, CutNumber(1)).unwrap();
    files.set_capacity(files.used() + DISK / 2);
    let err = base.write(primary.specs[0].id, 0, BaseBytes::Data(&primary.images[0])).unwrap_err();
    assert!(matches!(&err, BaseError::File(err) if err.is_no_space()), "{err:?}");
    assert_eq!(err.kind(), ErrorKind::Operator);
    files.set_capacity(u64::MAX);
    drop(base);
    primary.send_base(&vm, session);
    primary.replicate(&vm, true);

    for spare in (0..40).map(|n| n * 4096) {
        primary.write(0, 0, 100_000, 900 + spare);
        let cycle = primary.cut();
        files.set_capacity(files.used() + spare);
        let session = understudy_store::Session { generation: primary.generation, number: primary.session };
        let sent = send(&vm, session, &cycle, true);
        files.set_capacity(u64::MAX);
        assert!(vm.stopped().is_none(), "a full disk is no broken disk");
        match sent {
            Ok(cut) => primary.acknowledged(cut.id.digest),
            Err(err) => assert_eq!(err.kind(), ErrorKind::Operator, "{err:?}"),
        }
        assert_no_leftovers(&files, &vm);
    }
    let cut = primary.replicate(&vm, true);
    assert_eq!(images_of(&files, &vm, cut.point()), primary.images);
}

#[test]
fn pruning_finishes_on_a_full_disk_and_the_reserve_comes_back() {
    let world = full();
    let before = world.files.used();
    world.vm.retain(&[world.cuts[3].0.point(), world.cuts[5].0.point()]).unwrap();
    assert!(!world.store.has_reserve(), "the manifest took it");
    assert!(upkeep(&world.vm) >= 4);
    world.vm.check(&mut unpaced).unwrap();
    for i in [3, 5] {
        assert!(images_of(&world.files, &world.vm, world.cuts[i].0.point()) == world.cuts[i].1);
    }
    assert!(world.files.used() < before);
    world.files.set_capacity(u64::MAX);
    upkeep(&world.vm);
    assert!(world.store.has_reserve());
}

#[test]
fn a_failover_and_its_revert_finish_on_a_full_disk() {
    let world = full();
    let take_over = FailoverPurpose::TakeOver { generation: Generation(2) };
    let id = world.vm.begin_failover(world.cuts[2].0.point(), take_over).unwrap();
    world.vm.revert_failover(id).unwrap();
    assert!(images_of(&world.files, &world.vm, world.cuts[2].0.point()) == world.cuts[2].1);
}

#[test]
fn a_removal_finishes_on_a_full_disk() {
    let world = full();
    world.store.remove(world.primary.vm, Removal::DestroyPoints).unwrap();
    let mut left = world.files.tree();
    left.sort();
    assert_eq!(left, ["lock", "reserve"]);
}

#[test]
fn a_store_opens_on_a_full_disk() {
    let World { files, store, vm, primary, cuts } = full();
    drop((store, vm));
    files.crash(Crash::LostAll);
    let store = with_reserve(&files);
    let vm = store.vm(primary.vm).unwrap();
    assert_eq!(vm.points().len(), 6);
    assert!(images_of(&files, &vm, cuts[5].0.point()) == cuts[5].1);
    assert!(store.has_reserve());
}

#[test]
fn without_any_space_upkeep_says_how_much_it_needs_and_changes_nothing() {
    let world = full();
    // The reserve goes to somebody else.
    world.vm.retain(&[world.cuts[0].0.point(), world.cuts[5].0.point()]).unwrap();
    assert!(!world.store.has_reserve());
    world.files.set_capacity(world.files.used());
    let err = loop {
        match world.vm.upkeep(&mut unpaced) {
            Ok(_) => world.files.set_capacity(world.files.used()),
            Err(err) => break err,
        }
    };
    assert!(matches!(err, UpkeepError::NoSpace { needed } if needed > 0), "{err:?}");
    assert_eq!(err.kind(), ErrorKind::Operator);
    assert!(world.vm.stopped().is_none());
    world.files.set_capacity(u64::MAX);
    upkeep(&world.vm);
    assert!(images_of(&world.files, &world.vm, world.cuts[5].0.point()) == world.cuts[5].1);
}
