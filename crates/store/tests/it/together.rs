//! Things that meet: readers, upkeep, receiving, tests and failovers, locks.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use understudy_model::{DiskId, ErrorKind, Generation, SessionNumber};
use understudy_store::files::MemFiles;
use understudy_store::{
    CrashPoint, CycleError, FailoverError, FailoverPurpose, FailoverStage, PointReader, Removal, RemoveError, Store,
    StoreOptions, UpkeepError, UpkeepStep, VmStore,
};

use crate::support::*;

type Cuts = Vec<(understudy_model::CutDigest, Images)>;

fn world(cycles: u64) -> (MemFiles, Store, Arc<VmStore>, Primary, Cuts) {
    let files = MemFiles::new();
    let store = open(&files);
    let mut primary = Primary::small();
    (0..16).for_each(|i| primary.write(i % 2, i as u64 * 12_288, 9_000, i as u64 + 1));
    let vm = primary.start(&store);
    let mut cuts = Vec::new();
    for i in 0..cycles {
        primary.write((i % 2) as usize, i * 9_000, 12_000, 100 + i);
        let cut = primary.replicate(&vm, true);
        cuts.push((cut.id.digest, primary.images.clone()));
    }
    (files, store, vm, primary, cuts)
}

fn take_over(generation: u64) -> FailoverPurpose {
    FailoverPurpose::TakeOver { generation: Generation(generation) }
}

#[test]
fn nothing_beneath_a_reader_moves_until_it_is_done() {
    let (_files, _store, vm, _primary, cuts) = world(5);
    vm.retain(&[cuts[0].0.point()]).unwrap();
    let reader = vm.open_point(cuts[0].0.point()).unwrap();
    vm.retain(&[cuts[4].0.point()]).unwrap();
    let mut seen = vec![0; DISK as usize];
    let mut steps = 0;
    loop {
        reader.disk(DiskId(0)).unwrap().read_at(0, &mut seen).unwrap();
        assert!(seen == cuts[0].1[0]);
        match vm.upkeep(&mut unpaced).unwrap() {
            UpkeepStep::Idle => break,
            _ => steps += 1,
        }
    }
    assert_eq!(steps, 1, "what lies above is merged meanwhile");
    drop(reader);
    assert!(upkeep(&vm) > 0);
}

/// A reader that comes at a named place.
#[derive(Default)]
struct Meeting {
    vm: Option<Arc<VmStore>>,
    reader: Option<PointReader>,
}

#[test]
fn a_step_of_upkeep_that_meets_a_new_reader_is_put_off() {
    for place in [CrashPoint::ApplyBaseSynced, CrashPoint::MergeBeforeSwap] {
        let (files, store, vm, primary, cuts) = world(5);
        let keep = if place == CrashPoint::MergeBeforeSwap { 0 } else { 3 };
        vm.retain(&[cuts[keep].0.point(), cuts[4].0.point()]).unwrap();
        while keep == 0 && !matches!(vm.upkeep(&mut unpaced).unwrap(), UpkeepStep::Committed { .. }) {}
        drop((store, vm));
        // Somebody opens the newest point when the step is all but done.
        let meeting: Arc<Mutex<Meeting>> = Arc::default();
        let (there, newest) = (meeting.clone(), cuts[4].0.point());
        let listen = move |at: CrashPoint| {
            let mut meeting = there.lock().unwrap();
            if at == place
                && let Some(vm) = meeting.vm.take()
            {
                meeting.reader = Some(vm.open_point(newest).unwrap());
            }
            Ok(())
        };
        let options = StoreOptions { checkpoints: Arc::new(listen), ..options() };
        let store = Store::open(Arc::new(files.clone()), options).unwrap();
        let vm = store.vm(primary.vm).unwrap();
        meeting.lock().unwrap().vm = Some(vm.clone());
        assert_eq!(vm.upkeep(&mut unpaced).unwrap(), UpkeepStep::Deferred, "{place}");
        assert_eq!(vm.upkeep(&mut unpaced).unwrap(), UpkeepStep::Idle, "{place}");
        assert!(images_read(&vm, newest) == cuts[4].1);
        assert_no_leftovers(&files, &vm);
        meeting.lock().unwrap().reader = None;
        assert!(upkeep(&vm) > 0);
        assert!(images_of(&files, &vm, newest) == cuts[4].1);
        assert_eq!(vm.check(&mut unpaced).unwrap().unknown_blocks, 0);
    }
}

#[test]
fn a_cancelled_step_leaves_everything_as_it_was() {
    let files = MemFiles::new();
    let store = open(&files);
    let mut primary = Primary::new(&[4 << 20]);
    let vm = primary.start(&store);
    let mut expected = BTreeMap::new();
    for i in 1..4 {
        (0..1024).for_each(|n| primary.write(0, n * 4096, 4096, i * 10_000 + n));
        let cut = primary.replicate(&vm, i != 2);
        if i != 2 {
            expected.insert(cut.id.digest, primary.images.clone());
        }
    }
    let mut stop = |_| ControlFlow::Break(());
    assert!(matches!(vm.upkeep(&mut stop), Err(UpkeepError::Cancelled)));
    assert_points(&files, &vm, &expected);
    upkeep(&vm);
    assert_points(&files, &vm, &expected);
    assert!(vm.check(&mut stop).is_err(), "a check can be cancelled too");
}

#[test]
fn a_cycle_begun_before_upkeep_fits_after_it() {
    let (files, _store, vm, mut primary, cuts) = world(5);
    let session = primary.admit(&vm);
    primary.write(1, 0, 20_000, 300);
    let cycle = primary.cut();
    let mut receiver = vm.begin_cycle(session, cycle.header.clone()).unwrap();
    cycle.batches.iter().for_each(|(disk, batch)| receiver.push(*disk, batch).unwrap());
    vm.retain(&[cuts[4].0.point()]).unwrap();
    assert!(upkeep(&vm) >= 4);
    let cut = receiver.seal(cycle.digest, true, None).unwrap();
    assert!(images_of(&files, &vm, cut.point()) == primary.images);
    assert_eq!(vm.check(&mut unpaced).unwrap().damage, []);
}

#[test]
fn replication_goes_on_beside_tests_and_not_beside_a_failover() {
    let (_files, _store, vm, mut primary, cuts) = world(3);
    let test = vm.begin_failover(cuts[1].0.point(), FailoverPurpose::Test).unwrap();
    primary.replicate(&vm, true);
    let session = primary.admit(&vm);
    primary.write(0, 0, 4096, 400);
    let cycle = primary.cut();
    let mut late = vm.begin_cycle(session, cycle.header.clone()).unwrap();
    cycle.batches.iter().for_each(|(disk, batch)| late.push(*disk, batch).unwrap());
    let failover = vm.begin_failover(cuts[0].0.point(), take_over(2)).unwrap();
    let err = late.seal(cycle.digest, true, None).unwrap_err();
    assert!(matches!(err, CycleError::FailedOver), "{err:?}");
    assert!(vm.admit_session(Generation(1), SessionNumber(99)).is_err(), "the old primary is refused for ever");
    let stages: Vec<_> = vm.failovers().iter().map(|f| f.stage).collect();
    assert_eq!(stages, [FailoverStage::Test, FailoverStage::Active]);
    vm.revert_failover(failover).unwrap();
    vm.revert_failover(test).unwrap();
    primary.generation = Generation(2);
    primary.replicate(&vm, true);
}

#[test]
fn failovers_that_make_no_sense_are_refused() {
    let (_files, store, vm, primary, cuts) = world(4);
    let unknown = understudy_model::CutDigest([9; 32]).point();
    let refused = |point, purpose| vm.begin_failover(point, purpose).unwrap_err();
    assert_eq!(refused(unknown, FailoverPurpose::Test).kind(), ErrorKind::Refused);
    assert!(matches!(refused(cuts[0].0.point(), take_over(1)), FailoverError::Generation { .. }));
    let id = vm.begin_failover(cuts[1].0.point(), take_over(2)).unwrap();
    assert!(matches!(refused(cuts[0].0.point(), take_over(3)), FailoverError::InForce { .. }));
    let test = vm.begin_failover(cuts[3].0.point(), FailoverPurpose::Test).unwrap();
    assert!(matches!(vm.commit_failover(test), Err(FailoverError::Stage { .. })));
    assert!(matches!(vm.commit_failover(id), Err(FailoverError::TestAbove { .. })));
    vm.revert_failover(test).unwrap();
    vm.set_locked(cuts[2].0.point(), true).unwrap();
    assert!(matches!(vm.commit_failover(id), Err(FailoverError::LockedAbove { .. })));
    vm.set_locked(cuts[2].0.point(), false).unwrap();
    vm.commit_failover(id).unwrap();
    assert!(matches!(vm.commit_failover(id), Err(FailoverError::Stage { .. })));
    assert!(matches!(vm.revert_failover(id), Err(FailoverError::Stage { .. })));
    assert!(matches!(vm.revert_failover(test), Err(FailoverError::Unknown { .. })));
    assert!(matches!(store.remove(primary.vm, Removal::DestroyPoints), Err(RemoveError::InUse { .. })));
    store.remove(primary.vm, Removal::KeepPoints).unwrap();
    assert_eq!(vm.overlay_paths(id).unwrap().len(), 2, "the VM's disks outlive the relationship");
    store.remove(primary.vm, Removal::DestroyDisks).unwrap();
    assert!(store.list().is_empty());
}

#[test]
fn retention_keeps_the_newest_the_locked_and_what_is_in_use() {
    let (files, _store, vm, _primary, cuts) = world(6);
    vm.set_locked(cuts[1].0.point(), true).unwrap();
    let test = vm.begin_failover(cuts[3].0.point(), FailoverPurpose::Test).unwrap();
    vm.retain(&[]).unwrap();
    let expect = |kept: &[usize]| {
        let expected = kept.iter().map(|i| cuts[*i].clone()).collect();
        assert_points(&files, &vm, &expected);
    };
    expect(&[1, 3, 5]);
    upkeep(&vm);
    expect(&[1, 3, 5]);
    vm.revert_failover(test).unwrap();
    vm.set_locked(cuts[1].0.point(), false).unwrap();
    vm.retain(&[]).unwrap();
    upkeep(&vm);
    expect(&[5]);
    assert!(vm.retain(&[cuts[0].0.point()]).is_err(), "what is gone cannot be kept");
    assert!(vm.set_locked(cuts[0].0.point(), true).is_err());
}

#[test]
fn dropping_points_by_name_leaves_those_that_came_since() {
    let (files, _store, vm, mut primary, cuts) = world(4);
    vm.set_locked(cuts[1].0.point(), true).unwrap();
    let late = primary.replicate(&vm, true);
    let gone = understudy_model::CutDigest([9; 32]).point();
    vm.drop_points(&[cuts[0].0.point(), cuts[1].0.point(), cuts[3].0.point(), gone]).unwrap();
    primary.write(0, 0, 4096, 800);
    let newest = primary.replicate(&vm, false);
    upkeep(&vm);
    let kept: Vec<_> = vm.points().iter().map(|p| p.cut.id.digest).collect();
    assert_eq!(kept, [cuts[1].0, cuts[2].0, late.id.digest, newest.id.digest]);
    assert!(images_of(&files, &vm, cuts[2].0.point()) == cuts[2].1);
}

#[test]
fn space_in_use_is_counted_over_all_files() {
    let (files, store, vm, primary, _cuts) = world(3);
    let before = files.used();
    assert_eq!(vm.disk_usage().unwrap(), before);
    store.remove(primary.vm, Removal::DestroyPoints).unwrap();
    assert_eq!(files.used(), 0);
}

#[test]
fn the_newest_state_can_become_a_point_later_and_a_hidden_one_cannot() {
    let (_files, _store, vm, mut primary, _cuts) = world(1);
    primary.write(0, 0, 4096, 200);
    let plain = primary.replicate(&vm, false);
    vm.retain(&[plain.point()]).unwrap();
    primary.write(0, 0, 4096, 201);
    let hidden = primary.replicate(&vm, false);
    primary.replicate(&vm, false);
    assert!(vm.points().iter().any(|p| p.cut == plain && p.kept));
    assert!(vm.retain(&[plain.point(), hidden.point()]).is_err());
    assert!(vm.open_point(hidden.point()).is_err());
    assert!(vm.points().iter().any(|p| p.cut == plain && p.kept), "a refused call changes nothing");
}

#[test]
fn receiver_upkeep_and_readers_work_at_once() {
    let (files, _store, vm, mut primary, _cuts) = world(2);
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::SeqCst) {
                vm.upkeep(&mut unpaced).unwrap();
            }
        });
        scope.spawn(|| {
            let mut seen: BTreeMap<_, Images> = BTreeMap::new();
            while !over.load(Ordering::SeqCst) {
                for point in vm.points() {
                    let id = point.cut.point();
                    // Dropped between the look and the opening: fine. Otherwise it reads the same each time.
                    let Ok(reader) = vm.open_point(id) else { continue };
                    let images: Images = reader
                        .disks()
                        .iter()
                        .map(|(disk, size)| {
                            let mut image = vec![0; *size as usize];
                            reader.disk(*disk).unwrap().read_at(0, &mut image).unwrap();
                            image
                        })
                        .collect();
                    assert!(*seen.entry(id).or_insert_with(|| images.clone()) == images);
                }
            }
        });
        for i in 0..60 {
            primary.write((i % 2) as usize, (i * 7_001) % 200_000, 15_000, 500 + i);
            primary.replicate(&vm, i % 3 == 0);
            if i % 7 == 0 {
                let points = vm.points();
                let keep: Vec<_> = points.iter().rev().take(4).map(|p| p.cut.point()).collect();
                vm.retain(&keep).unwrap();
            }
        }
        over.store(true, Ordering::SeqCst);
    });
    upkeep(&vm);
    let newest = vm.newest().unwrap();
    assert!(images_of(&files, &vm, newest.point()) == primary.images);
    assert_eq!(vm.check(&mut unpaced).unwrap().damage, []);
}
