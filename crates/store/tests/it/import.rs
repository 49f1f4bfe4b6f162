//! Replicas whose initial replication comes on a medium, before or after the cycles that follow it.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;

use understudy_model::{CutDigest, CutNumber, DiskId, ErrorKind, Generation, SessionNumber};
use understudy_store::files::{Crash, MemFiles};
use understudy_store::{
    AdoptError, AwaitError, BaseBytes, BaseError, ComparisonError, CycleError, FailoverPurpose, PointError, Removal,
    SeedError, SeedFile, Session, Store, UpkeepStep, VmStore,
};

use crate::support::*;

struct World {
    files: MemFiles,
    store: Store,
    vm: Arc<VmStore>,
    primary: Primary,
    import: MemoryImport,
    /// The cut of the export, then those that were received on top of it.
    cuts: Vec<(CutDigest, Images)>,
}

fn fresh(sizes: &[u64]) -> World {
    let files = MemFiles::new();
    let store = open(&files);
    let mut primary = Primary::new(sizes);
    (0..16).for_each(|i| primary.write(i % sizes.len(), i as u64 * 12_288, 9_000, i as u64 + 1));
    let vm = store.create_vm(primary.vm, Generation(1), &primary.specs).unwrap();
    primary.admit(&vm);
    let import = primary.export();
    let cuts = vec![(import.cut.id.digest, primary.images.clone())];
    World { files, store, vm, primary, import, cuts }
}

/// Two cycles have come, and the export has not.
fn waiting() -> World {
    waiting_with(&[DISK, DISK])
}

fn waiting_with(sizes: &[u64]) -> World {
    let mut world = fresh(sizes);
    let session = world.primary.admit(&world.vm);
    world.vm.await_base(session, &world.import.cut, &world.import.disks).unwrap();
    world.cycle(1);
    world.cycle(2);
    world
}

impl World {
    fn cycle(&mut self, i: u64) {
        self.primary.write((i % 2) as usize, i * 20_000, 15_000, 60 + i);
        let cut = self.primary.replicate(&self.vm, true);
        self.cuts.push((cut.id.digest, self.primary.images.clone()));
    }

    fn session(&mut self) -> Session {
        self.primary.admit(&self.vm)
    }

    fn adopt(&self) -> Result<understudy_model::Cut, AdoptError> {
        self.vm.adopt_import(&self.import, &mut unpaced)
    }

    fn assert_whole(&self) {
        let expected: BTreeMap<_, _> = self.cuts.iter().cloned().collect();
        assert_points(&self.files, &self.vm, &expected);
        for (digest, images) in &self.cuts {
            assert!(images_read(&self.vm, digest.point()) == *images);
        }
        let report = self.vm.check(&mut unpaced).unwrap();
        assert_eq!((report.damage, report.unknown_blocks), (vec![], 0));
        assert_no_leftovers(&self.files, &self.vm);
    }
}

#[test]
fn what_arrives_before_the_import_is_not_to_be_seen() {
    let mut world = waiting();
    let (vm, newest) = (world.vm.clone(), world.cuts[2].0);
    assert_eq!(vm.points(), []);
    assert_eq!((vm.newest(), vm.cuts().len()), (None, 0));
    assert_eq!(vm.awaited_newest().unwrap().digest, newest);
    assert_eq!(vm.awaited_import().unwrap().id.digest, world.cuts[0].0);
    let point = newest.point();
    assert!(matches!(vm.chain(point), Err(PointError::AwaitsImport)));
    assert!(vm.open_point(point).is_err());
    assert!(matches!(vm.retain(&[point]), Err(PointError::AwaitsImport)));
    assert!(vm.begin_failover(point, FailoverPurpose::Test).unwrap_err().to_string().contains("cannot fail over"));
    assert!(matches!(vm.comparison(newest), Err(ComparisonError::AwaitsImport)));
    assert_eq!(vm.upkeep(&mut unpaced).unwrap(), UpkeepStep::Idle);
    assert_eq!(vm.check(&mut unpaced).unwrap().damage, []);
    // Nor after a restart; and cycles go on.
    drop(vm);
    let World { files, store, vm, primary, import, cuts } = world;
    drop((vm, store));
    files.crash(Crash::LostAll);
    let store = open(&files);
    let vm = store.vm(primary.vm).unwrap();
    world = World { files, store, vm, primary, import, cuts };
    assert_eq!((world.vm.points().len(), world.vm.awaited_newest().unwrap().digest), (0, newest));
    world.cycle(3);
    world.adopt().unwrap();
    world.assert_whole();
}

#[test]
fn an_import_makes_itself_and_all_that_waited_visible_at_once() {
    let mut world = waiting();
    let cut = world.adopt().unwrap();
    assert_eq!((cut.id.digest, world.vm.awaited_newest()), (world.cuts[0].0, None));
    world.assert_whole();
    let reader = world.vm.open_point(cut.point()).unwrap();
    let definition = reader.definition().unwrap().unwrap();
    assert_eq!(definition.bytes, b"exported");
    assert_eq!(world.vm.blob(&definition.blobs[0]).unwrap(), b"a boot image");
    drop(reader);
    // An ordinary replica from here on.
    world.cycle(3);
    world.assert_whole();
    let kept = world.cuts.split_off(2);
    world.vm.retain(&kept.iter().map(|(digest, _)| digest.point()).collect::<Vec<_>>()).unwrap();
    world.cuts = kept;
    assert!(upkeep(&world.vm) > 0);
    world.assert_whole();
    assert!(matches!(world.adopt(), Err(AdoptError::Published)));
}

#[test]
fn an_import_may_come_before_anything_else() {
    let mut world = fresh(&[DISK, DISK + 512]);
    world.adopt().unwrap();
    world.assert_whole();
    let session = world.session();
    let err = world.vm.await_base(session, &world.import.cut, &world.import.disks).unwrap_err();
    assert!(matches!(err, AwaitError::Published));
    world.cycle(1);
    world.assert_whole();
}

#[test]
fn a_sparse_disk_is_imported_sparse() {
    let world = fresh(&[1 << 30]);
    world.adopt().unwrap();
    let used = world.vm.disk_usage().unwrap();
    assert!(used < 2 << 20, "{used}");
}

#[test]
fn disks_may_grow_join_and_leave_before_the_import() {
    let mut world = waiting();
    world.primary.grow(1, DISK + 8 * GRANULE);
    world.primary.write(1, DISK, 4_000, 71);
    world.cycle(3);
    let joined = world.primary.add_disk(3 * GRANULE);
    world.primary.write(joined, 100, 5_000, 72);
    world.cycle(4);
    world.primary.remove_disk(0);
    world.primary.write(0, 0, 100, 73);
    let cut = world.primary.replicate(&world.vm, true);
    world.cuts.push((cut.id.digest, world.primary.images.clone()));
    world.adopt().unwrap();
    world.assert_whole();
}

#[test]
fn another_export_drops_what_was_received_and_the_same_one_keeps_it() {
    let mut world = waiting();
    let session = world.session();
    world.vm.await_base(session, &world.import.cut, &world.import.disks).unwrap();
    assert_eq!(world.vm.awaited_newest().unwrap().digest, world.cuts[2].0);
    let old = std::mem::replace(&mut world.import, world.primary.export());
    world.vm.await_base(session, &world.import.cut, &world.import.disks).unwrap();
    assert_eq!(world.vm.awaited_newest().unwrap(), world.import.cut.id);
    assert!(!world.files.tree().iter().any(|path| path.ends_with(".qcow2")), "{:?}", world.files.tree());
    world.cuts = vec![(world.import.cut.id.digest, world.primary.images.clone())];
    world.cycle(1);
    let err = world.vm.adopt_import(&old, &mut unpaced).unwrap_err();
    assert!(matches!(err, AdoptError::OtherCut { .. }), "{err:?}");
    assert_eq!(err.kind(), ErrorKind::Refused);
    world.adopt().unwrap();
    world.assert_whole();
}

#[test]
fn a_copy_over_the_network_ends_the_waiting() {
    let mut world = waiting();
    let session = world.session();
    let base = world.vm.begin_base(session, CutNumber(9)).unwrap();
    assert_eq!(world.vm.awaited_newest(), None);
    assert!(matches!(world.adopt(), Err(AdoptError::Copying)));
    for (spec, image) in world.primary.specs.iter().zip(&world.primary.images) {
        base.write(spec.id, 0, BaseBytes::Data(image)).unwrap();
    }
    base.sync().unwrap();
    drop(base);
    world.primary.acknowledged(CutDigest::ZERO);
    world.cuts.clear();
    world.cycle(7);
    world.assert_whole();
}

#[test]
fn a_copy_that_was_begun_is_dropped_when_an_import_is_awaited() {
    let mut world = fresh(&[DISK, DISK]);
    let session = world.session();
    let base = world.vm.begin_base(session, CutNumber(1)).unwrap();
    base.write(DiskId(0), 0, BaseBytes::Data(&world.primary.images[0])).unwrap();
    base.sync().unwrap();
    assert!(matches!(world.vm.await_base(session, &world.import.cut, &world.import.disks), Err(AwaitError::Busy)));
    drop(base);
    world.vm.await_base(session, &world.import.cut, &world.import.disks).unwrap();
    assert_eq!(world.vm.base_positions(), None);
    assert!(!world.files.tree().iter().any(|path| path.contains("staging/")));
    world.adopt().unwrap();
    world.assert_whole();
}

#[test]
fn only_what_follows_the_awaited_cut_is_taken() {
    let mut world = waiting();
    let session = world.session();
    let mut cycle = world.primary.cut();
    cycle.header.parent = world.cuts[0].0;
    let err = world.vm.begin_cycle(session, cycle.header.clone()).err().unwrap();
    assert!(matches!(err, CycleError::ParentNotNewest { .. }), "{err:?}");
    cycle.header.parent = CutDigest([7; 32]);
    let err = world.vm.begin_cycle(session, cycle.header.clone()).err().unwrap();
    assert!(matches!(err, CycleError::UnknownParent { .. }), "{err:?}");
    cycle.header.parent = world.cuts[2].0;
    cycle.header.number = CutNumber(2);
    let err = world.vm.begin_cycle(session, cycle.header).err().unwrap();
    assert!(matches!(err, CycleError::NumberReused { .. }), "{err:?}");
}

#[test]
fn what_makes_no_sense_is_refused_and_changes_nothing() {
    let world = waiting_with(&[DISK, DISK, DISK + 512]);
    let refused = |change: &dyn Fn(&mut MemoryImport)| {
        let mut other = world.import.clone();
        change(&mut other);
        let err = world.vm.adopt_import(&other, &mut unpaced).unwrap_err();
        assert!(world.vm.points().is_empty() && world.vm.awaited_newest().is_some());
        assert_no_leftovers(&world.files, &world.vm);
        err
    };
    let vm = understudy_model::VmId(uuid::Uuid::from_u128(9));
    assert!(matches!(refused(&|i| i.vm = vm), AdoptError::OtherVm { .. }));
    assert!(matches!(refused(&|i| i.cut.id.generation = Generation(5)), AdoptError::FutureGeneration { .. }));
    assert!(matches!(refused(&|i| i.cut.id.digest = CutDigest([1; 32])), AdoptError::OtherCut { .. }));
    assert!(matches!(refused(&|i| i.disks[0].size += 512), AdoptError::Disks { .. }));
    assert!(matches!(refused(&|i| i.disks[0].key = "other".into()), AdoptError::Disks { .. }));
    assert!(matches!(refused(&|i| drop(i.disks.pop())), AdoptError::Disks { .. }));
    assert!(matches!(refused(&|i| i.runs[0] = i.runs[2].clone()), AdoptError::Disks { .. }));
    assert!(matches!(refused(&|i| i.runs[0][0][4_200] ^= 1), AdoptError::Read { disk: DiskId(0), .. }));
    assert!(matches!(refused(&|i| i.blob[0] ^= 1), AdoptError::Definition(_)));
    let mut stop = |_| ControlFlow::Break(());
    assert!(matches!(world.vm.adopt_import(&world.import, &mut stop), Err(AdoptError::Cancelled)));
    world.adopt().unwrap();
    world.assert_whole();
}

#[test]
fn awaiting_what_makes_no_sense_is_refused() {
    let mut world = fresh(&[DISK, DISK]);
    let session = world.session();
    let ask = |session, cut: &understudy_model::Cut, disks: &[understudy_model::DiskSpec]| {
        world.vm.await_base(session, cut, disks).unwrap_err()
    };
    let (cut, disks) = (&world.import.cut, &world.import.disks);
    let mut future = cut.clone();
    future.id.generation = Generation(2);
    assert!(matches!(ask(session, &future, disks), AwaitError::FutureGeneration { .. }));
    assert!(matches!(ask(session, cut, &[]), AwaitError::Disks { .. }));
    assert!(matches!(ask(session, cut, &[disks[0].clone(), disks[0].clone()]), AwaitError::Disks { .. }));
    assert!(matches!(ask(session, cut, &[spec(0, 100), disks[1].clone()]), AwaitError::Disks { .. }));
    assert!(matches!(ask(session, cut, &[spec(7, DISK)]), AwaitError::Disks { .. }));
    let old = Session { number: SessionNumber(0), ..session };
    assert!(matches!(ask(old, cut, disks), AwaitError::Session(_)));
    assert_eq!(world.vm.awaited_newest(), None);
    let seed = || SeedFile { file: world.files.as_outside("lock").unwrap(), take: false };
    world.vm.await_base(session, cut, disks).unwrap();
    assert!(matches!(world.vm.plant_seed(DiskId(0), &seed(), &mut unpaced), Err(SeedError::AwaitsImport)));
    world.store.remove(world.primary.vm, Removal::KeepPoints).unwrap();
    assert!(matches!(world.adopt(), Err(AdoptError::Detached)));
    assert_eq!(world.vm.awaited_newest(), None);
}

#[test]
fn cycles_go_on_while_the_import_is_read_and_copies_do_not_begin() {
    let mut world = waiting();
    let (vm, import, mut met) = (world.vm.clone(), world.import.clone(), 0);
    let session = world.session();
    let mut meet = |_| {
        met += 1;
        if met > 1 {
            return ControlFlow::Continue(());
        }
        assert!(matches!(vm.begin_base(session, CutNumber(5)), Err(BaseError::Busy)));
        assert!(matches!(vm.adopt_import(&import, &mut unpaced), Err(AdoptError::Busy)));
        // One that adds a disk, so that the import must look again.
        let joined = world.primary.add_disk(2 * GRANULE);
        world.primary.write(joined, 0, 3_000, 5);
        world.cycle(4);
        ControlFlow::Continue(())
    };
    vm.adopt_import(&import, &mut meet).unwrap();
    assert!(met > 1);
    world.assert_whole();
}

#[test]
fn a_run_that_was_damaged_while_it_waited_is_noticed() {
    let mut world = waiting();
    let run = world.files.tree().into_iter().rfind(|path| path.ends_with(".qcow2")).unwrap();
    world.files.damage(&run, 4_120, |b| b[0] ^= 1, 1).unwrap();
    assert_eq!(world.vm.check(&mut unpaced).unwrap().damage.len(), 1);
    let session = world.session();
    let err = send(&world.vm, session, &world.primary.cut(), true).unwrap_err();
    assert!(matches!(err, CycleError::Damaged { .. }), "{err:?}");
    world.adopt().unwrap();
    assert!(images_read(&world.vm, world.cuts[0].0.point()) == world.cuts[0].1);
    assert!(world.vm.open_point(world.cuts[2].0.point()).is_err());
}
