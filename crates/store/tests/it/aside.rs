//! Replicas that make room, that cannot be opened, and what is kept of them.

use std::collections::BTreeMap;
use std::sync::Arc;

use understudy_model::{ErrorKind, Generation, PointId};
use understudy_store::files::{Crash, Files, MemFiles, write_all_at};
use understudy_store::{CreateError, FailoverPurpose, FileNumber, Removal, RemoveError, Store, VmStore};

use crate::support::*;

fn world() -> (MemFiles, Store, Arc<VmStore>, Primary, PointId) {
    let files = MemFiles::new();
    let store = open(&files);
    let mut primary = Primary::small();
    primary.write(0, 0, 100_000, 1);
    let vm = primary.start(&store);
    primary.replicate(&vm, true);
    let cut = primary.replicate(&vm, true);
    (files, store, vm, primary, cut.point())
}

fn again(primary: &Primary) -> Primary {
    let mut again = Primary::small();
    (again.specs, again.images) = (primary.specs.clone(), primary.images.clone());
    again
}

#[test]
fn points_that_were_kept_make_room_for_a_new_replica() {
    let (files, store, vm, primary, _) = world();
    store.remove(primary.vm, Removal::KeepPoints).unwrap();
    let mut next = again(&primary);
    let new = next.start(&store);
    assert!(new.points().is_empty());
    assert!(
        vm.points().len() == 2 && vm.admit_session(Generation(9), Default::default()).is_err(),
        "the old one is over"
    );
    let cut = next.replicate(&new, true);
    assert!(images_of(&files, &new, cut.point()) == next.images);
    let aside = store.set_aside().unwrap();
    assert_eq!(aside.len(), 1);
    assert_eq!((aside[0].vm, aside[0].number, aside[0].points), (primary.vm, FileNumber(1), Some(2)));
    assert!(aside[0].bytes > 100_000);
    // Twice, and after a restart.
    store.remove(primary.vm, Removal::KeepPoints).unwrap();
    let newest = again(&primary).start(&store);
    drop((newest, new, vm, store));
    files.crash(Crash::LostAll);
    let store = open(&files);
    let numbers: Vec<_> = store.set_aside().unwrap().iter().map(|aside| aside.number.0).collect();
    assert_eq!(numbers, [1, 2]);
    store.discard_set_aside(primary.vm, FileNumber(1)).unwrap();
    assert_eq!(store.set_aside().unwrap().len(), 1);
    assert!(matches!(store.discard_set_aside(primary.vm, FileNumber(1)), Err(RemoveError::Unknown { .. })));
    assert!(!files.tree().iter().any(|path| path.contains("-000001") || path.starts_with("removing")));
}

#[test]
fn what_is_in_use_makes_no_room() {
    let (_files, store, vm, primary, point) = world();
    let create = || store.create_vm(primary.vm, Generation(2), &primary.specs).err();
    assert!(matches!(create(), Some(CreateError::Exists { .. })));
    let test = vm.begin_failover(point, FailoverPurpose::Test).unwrap();
    store.remove(primary.vm, Removal::KeepPoints).unwrap();
    assert!(matches!(create(), Some(CreateError::InUse { .. })));
    vm.revert_failover(test).unwrap();
    let reader = vm.open_point(point).unwrap();
    let err = create().unwrap();
    assert!(matches!(err, CreateError::InUse { .. }));
    assert_eq!(err.kind(), ErrorKind::Refused);
    drop(reader);
    assert!(create().is_none());
    assert!(vm.open_point(point).is_err(), "its files are elsewhere now");
}

#[test]
fn a_locked_point_is_set_aside_and_not_discarded() {
    let (_files, store, vm, primary, point) = world();
    vm.set_locked(point, true).unwrap();
    store.remove(primary.vm, Removal::KeepPoints).unwrap();
    store.create_vm(primary.vm, Generation(2), &primary.specs).unwrap();
    let err = store.discard_set_aside(primary.vm, FileNumber(1)).unwrap_err();
    assert!(matches!(err, RemoveError::Locked { .. }));
    assert_eq!(store.set_aside().unwrap().len(), 1);
}

/// Breaks both copies of the manifest.
fn break_manifest(files: &MemFiles, primary: &Primary) {
    for name in ["manifest.json", "manifest.copy.json"] {
        files.damage(&format!("{}/{name}", primary.vm), 100, |b| b[0] ^= 1, 1).unwrap();
    }
}

#[test]
fn a_replica_that_cannot_be_opened_is_destroyed_or_set_aside() {
    for removal in [Removal::DestroyPoints, Removal::DestroyDisks, Removal::KeepPoints] {
        let (files, store, vm, primary, _) = world();
        drop((vm, store));
        break_manifest(&files, &primary);
        let store = open(&files);
        assert_eq!(store.unopened().len(), 1);
        assert!(matches!(store.create_vm(primary.vm, Generation(2), &primary.specs), Err(CreateError::Exists { .. })));
        store.remove(primary.vm, removal).unwrap();
        assert!(matches!(store.remove(primary.vm, removal), Err(RemoveError::Unknown { .. })));
        assert_eq!(store.unopened(), []);
        let aside = store.set_aside().unwrap();
        assert_eq!(aside.len(), usize::from(removal == Removal::KeepPoints));
        assert!(aside.iter().all(|aside| aside.points.is_none()));
        drop(store);
        files.crash(Crash::LostAll);
        let store = open(&files);
        assert_eq!((store.unopened(), store.list().len()), (vec![], 0));
        let mut next = again(&primary);
        let vm = next.start(&store);
        let cut = next.replicate(&vm, true);
        assert_points(&files, &vm, &BTreeMap::from([(cut.id.digest, next.images.clone())]));
        for aside in aside {
            store.discard_set_aside(aside.vm, aside.number).unwrap();
        }
    }
}

#[test]
fn what_a_newer_program_wrote_is_not_destroyed_unseen() {
    let (files, store, vm, primary, _) = world();
    drop((vm, store));
    let path = format!("{}/manifest.json", primary.vm);
    let newer = of_version(&files.content(&path).unwrap(), 3, |body| body.to_owned());
    files.unlink(&path).unwrap();
    let file = files.create(&path).unwrap();
    write_all_at(&*file, 0, newer.as_bytes()).unwrap();
    let store = open(&files);
    assert_eq!(store.unopened()[0].2, ErrorKind::Refused);
    assert!(matches!(store.remove(primary.vm, Removal::DestroyDisks), Err(RemoveError::Newer { .. })));
    store.remove(primary.vm, Removal::KeepPoints).unwrap();
    assert!(matches!(store.discard_set_aside(primary.vm, FileNumber(1)), Err(RemoveError::Newer { .. })));
}
