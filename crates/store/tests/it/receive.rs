//! Receiving: what is taken, what is refused and how, and what becomes visible when.

use std::collections::BTreeMap;
use std::sync::Arc;

use understudy_model::{CutDigest, CutNumber, DiskId, ErrorKind, Generation, SessionNumber};
use understudy_store::files::{Access, Crash, Files, MemFiles};
use understudy_store::{
    BASE_BLOCK, BaseBytes, BaseError, BlockSum, CreateError, CycleError, CycleHeader, Definition, Removal, RemoveError,
    SessionError, Store, StoreError,
};

use crate::support::*;

fn started() -> (MemFiles, Store, Primary, Arc<understudy_store::VmStore>) {
    let files = MemFiles::new();
    let store = open(&files);
    let mut primary = Primary::small();
    (0..20).for_each(|i| primary.write(i % 2, i as u64 * 12_288, 9_000, i as u64 + 1));
    let vm = primary.start(&store);
    (files, store, primary, vm)
}

fn replicated(cycles: u64) -> (MemFiles, Store, Primary, Arc<understudy_store::VmStore>) {
    let (files, store, mut primary, vm) = started();
    for i in 0..cycles {
        primary.write(0, i * 8_192, 5_000, 100 + i);
        primary.replicate(&vm, true);
    }
    (files, store, primary, vm)
}

#[test]
fn nothing_is_visible_before_the_first_cycle_is_sealed() {
    let (files, store, mut primary, vm) = started();
    assert!(vm.points().is_empty() && vm.newest().is_none());
    assert!(!files.tree().iter().any(|p| p.contains("disk-0/base")));
    // Written while the copy was made: the base alone is no state of the disks.
    primary.write(1, 0, 4_096, 99);
    let cut = primary.replicate(&vm, false);
    assert_eq!(vm.newest(), Some(cut.clone()));
    assert_eq!(images_of(&files, &vm, cut.point()), primary.images);
    assert_eq!(images_read(&vm, cut.point()), primary.images);
    assert!(vm.base_positions().is_none());
    drop(store);
}

#[test]
fn an_initial_copy_goes_on_where_it_was_durable() {
    let files = MemFiles::new();
    let mut primary = Primary::new(&[4 * BASE_BLOCK]);
    primary.write(0, 0, 4 * BASE_BLOCK, 7);
    let vm = open(&files).create_vm(primary.vm, primary.generation, &primary.specs).unwrap();
    let session = primary.admit(&vm);
    let image = primary.images[0].clone();
    let block = |i: u64| &image[(i * BASE_BLOCK) as usize..((i + 1) * BASE_BLOCK) as usize];
    let base = vm.begin_base(session, CutNumber(1)).unwrap();
    base.write(DiskId(0), 0, BaseBytes::Data(block(0))).unwrap();
    base.write(DiskId(0), 2 * BASE_BLOCK, BaseBytes::Data(block(2))).unwrap();
    assert_eq!(base.sync().unwrap(), [(DiskId(0), BASE_BLOCK)], "a gap is not passed over");
    base.write(DiskId(0), BASE_BLOCK, BaseBytes::Data(block(1))).unwrap();
    drop((base, vm));
    files.crash(Crash::Seed(3));

    let store = open(&files);
    let vm = store.vm(primary.vm).unwrap();
    assert_eq!(vm.base_positions(), Some(vec![(DiskId(0), BASE_BLOCK)]));
    let session = primary.admit(&vm);
    let base = vm.begin_base(session, CutNumber(1)).unwrap();
    (1..4).for_each(|i| base.write(DiskId(0), i * BASE_BLOCK, BaseBytes::Data(block(i))).unwrap());
    assert_eq!(base.sync().unwrap(), [(DiskId(0), 4 * BASE_BLOCK)]);
    drop(base);
    let cut = primary.replicate(&vm, true);
    assert_eq!(images_of(&files, &vm, cut.point()), primary.images);
}

#[test]
fn an_initial_copy_can_begin_again() {
    let files = MemFiles::new();
    let store = open(&files);
    let mut primary = Primary::new(&[2 * BASE_BLOCK]);
    let vm = store.create_vm(primary.vm, primary.generation, &primary.specs).unwrap();
    let session = primary.admit(&vm);
    let base = vm.begin_base(session, CutNumber(1)).unwrap();
    base.write(DiskId(0), 0, BaseBytes::Data(&vec![9; BASE_BLOCK as usize])).unwrap();
    base.sync().unwrap();
    drop(base);
    let base = vm.begin_base(session, CutNumber(2)).unwrap();
    assert_eq!(base.positions(), [(DiskId(0), 0)]);
    base.write(DiskId(0), 0, BaseBytes::Zeros(2 * BASE_BLOCK)).unwrap();
    base.sync().unwrap();
    drop(base);
    let cut = primary.replicate(&vm, true);
    assert_eq!(images_of(&files, &vm, cut.point()), primary.images);
}

#[test]
fn a_store_put_back_to_an_older_attempt_gives_nothing_to_the_present_one() {
    let files = MemFiles::new();
    let store = open(&files);
    let mut primary = Primary::new(&[2 * BASE_BLOCK]);
    let vm = store.create_vm(primary.vm, primary.generation, &primary.specs).unwrap();
    let base = vm.begin_base(primary.admit(&vm), CutNumber(1)).unwrap();
    base.write(DiskId(0), 0, BaseBytes::Data(&vec![9; 2 * BASE_BLOCK as usize])).unwrap();
    base.sync().unwrap();
    drop(base);
    let copy = files.fork();
    drop(vm.begin_base(primary.admit(&vm), CutNumber(2)).unwrap());
    assert_eq!(vm.base_attempt(), Some(CutNumber(2)));

    let vm = open(&copy).vm(primary.vm).unwrap();
    assert_eq!((vm.base_attempt(), vm.base_positions()), (Some(CutNumber(1)), Some(vec![(DiskId(0), 2 * BASE_BLOCK)])));
    let base = vm.begin_base(primary.admit(&vm), CutNumber(2)).unwrap();
    assert_eq!(base.positions(), [(DiskId(0), 0)], "it was copied before the present tracking began");
}

#[test]
fn pieces_of_an_initial_copy_that_make_no_sense_are_refused() {
    let files = MemFiles::new();
    let store = open(&files);
    let mut primary = Primary::new(&[2 * BASE_BLOCK + 512]);
    let vm = store.create_vm(primary.vm, primary.generation, &primary.specs).unwrap();
    let session = primary.admit(&vm);
    let base = vm.begin_base(session, CutNumber(1)).unwrap();
    let err = |disk, offset, len| base.write(DiskId(disk), offset, BaseBytes::Zeros(len)).unwrap_err();
    assert!(matches!(err(7, 0, BASE_BLOCK), BaseError::UnknownDisk { .. }));
    assert!(matches!(err(0, 512, BASE_BLOCK - 512), BaseError::Unaligned { .. }));
    assert!(matches!(err(0, 0, 512), BaseError::Unaligned { .. }));
    assert!(matches!(err(0, BASE_BLOCK, 2 * BASE_BLOCK), BaseError::OutOfRange { .. }));
    assert!(matches!(err(0, u64::MAX, 2), BaseError::OutOfRange { .. }));
    base.write(DiskId(0), 2 * BASE_BLOCK, BaseBytes::Zeros(512)).unwrap();
    let other = vm.begin_base(session, CutNumber(1)).err().unwrap();
    assert!(matches!(other, BaseError::Busy) && other.kind() == ErrorKind::Retry);
}

#[test]
fn a_first_cycle_before_the_copy_is_done_is_refused() {
    let files = MemFiles::new();
    let store = open(&files);
    let mut primary = Primary::small();
    let vm = store.create_vm(primary.vm, primary.generation, &primary.specs).unwrap();
    let session = primary.admit(&vm);
    let cycle = primary.cut();
    let err = send(&vm, session, &cycle, true).unwrap_err();
    assert!(matches!(err, CycleError::BaseIncomplete { disk: DiskId(0), position: 0, size: DISK }));
}

#[test]
fn old_generations_and_sessions_are_refused_also_after_a_restart() {
    let (files, store, mut primary, vm) = replicated(1);
    let held = vm.admit_session(Generation(5), SessionNumber(3)).unwrap();
    drop((store, vm));
    files.crash(Crash::LostAll);
    let store = open(&files);
    let vm = store.vm(primary.vm).unwrap();
    let refusal = |generation, number| vm.admit_session(Generation(generation), SessionNumber(number)).unwrap_err();
    assert!(matches!(refusal(4, 9), SessionError::StaleGeneration { .. }));
    assert!(matches!(refusal(5, 3), SessionError::StaleSession { .. }));
    assert!(matches!(refusal(5, 2), SessionError::StaleSession { .. }));
    assert_eq!(refusal(5, 2).kind(), ErrorKind::Refused);
    let newer = vm.admit_session(Generation(5), SessionNumber(4)).unwrap();
    let cycle = primary.cut();
    assert!(matches!(send(&vm, held, &cycle, true), Err(CycleError::Session(_))));
    send(&vm, newer, &cycle, true).unwrap();
}

#[test]
fn what_an_old_session_sends_late_is_dropped() {
    let (files, _store, mut primary, vm) = replicated(2);
    let old = primary.admit(&vm);
    primary.write(0, 0, 4_096, 500);
    let cycle = primary.cut();
    let mut late = vm.begin_cycle(old, cycle.header.clone()).unwrap();
    let (disk, batch) = &cycle.batches[0];
    late.push(*disk, batch).unwrap();
    let mut other = vm.begin_cycle(old, cycle.header.clone()).err().unwrap();
    assert!(matches!(other, CycleError::Busy));
    let newer = primary.admit(&vm);
    let cut = send(&vm, newer, &cycle, true).unwrap();
    other = late.seal(cycle.digest, true, None).unwrap_err();
    assert!(matches!(other, CycleError::Session(_)), "{other:?}");
    assert_eq!(vm.newest(), Some(cut));
    assert_no_leftovers(&files, &vm);
}

#[test]
fn gaps_forks_and_repeats_are_refused() {
    let (_files, _store, mut primary, vm) = replicated(2);
    let session = primary.admit(&vm);
    primary.write(0, 0, 4_096, 500);
    let repeat = primary.cut();
    send(&vm, session, &repeat, true).unwrap();
    let err = send(&vm, session, &repeat, true).unwrap_err();
    assert!(matches!(err, CycleError::ParentNotNewest { .. }));
    assert_eq!(err.kind(), ErrorKind::Refused);

    let mut gap = primary.cut();
    gap.header.parent = CutDigest([7; 32]);
    let err = send(&vm, session, &gap, true).unwrap_err();
    assert!(matches!(err, CycleError::UnknownParent { .. }));
    assert_eq!(err.kind(), ErrorKind::Resync);

    primary.acknowledged(repeat.digest);
    let mut reused = primary.cut();
    reused.header.number = repeat.header.number;
    assert!(matches!(send(&vm, session, &reused, true), Err(CycleError::NumberReused { .. })));
    reused.header.number = CutNumber(99);
    reused.header.generation = Generation(2);
    assert!(matches!(send(&vm, session, &reused, true), Err(CycleError::FutureGeneration { .. })));
}

#[test]
fn content_that_is_not_what_was_sent_is_never_sealed() {
    let (files, _store, mut primary, vm) = replicated(1);
    let session = primary.admit(&vm);
    primary.write(1, 40_960, 4_096, 500);
    let mut cycle = primary.cut();
    let before = vm.points();
    let err = send(&vm, session, &Cycle { digest: CutDigest([1; 32]), ..cycle.clone() }, true).unwrap_err();
    assert!(matches!(err, CycleError::DigestMismatch { .. }));
    assert_eq!(err.kind(), ErrorKind::Retry);
    let len = cycle.batches[0].1.len();
    cycle.batches[0].1.truncate(len - 1);
    assert!(matches!(send(&vm, session, &cycle, true), Err(CycleError::Data { .. })));
    assert_eq!(vm.points(), before);
    assert_no_leftovers(&files, &vm);
    assert!(vm.stopped().is_none());
}

#[test]
fn a_cycle_given_up_leaves_nothing_and_its_content_comes_with_the_next() {
    let (files, _store, mut primary, vm) = replicated(1);
    let session = primary.admit(&vm);
    primary.write(0, 0, 8_192, 500);
    let cycle = primary.cut();
    let mut receiver = vm.begin_cycle(session, cycle.header.clone()).unwrap();
    receiver.push(cycle.batches[0].0, &cycle.batches[0].1).unwrap();
    drop(receiver);
    assert_no_leftovers(&files, &vm);
    primary.write(1, 0, 8_192, 501);
    let cut = primary.replicate(&vm, true);
    assert_eq!(images_of(&files, &vm, cut.point()), primary.images);
}

#[test]
fn a_disk_that_did_not_change_gets_no_file() {
    let (files, _store, mut primary, vm) = replicated(3);
    let runs = |disk: &str| files.tree().iter().filter(|p| p.contains(disk) && p.ends_with(".qcow2")).count();
    assert_eq!((runs("disk-0/"), runs("disk-1/")), (3, 0));
    let idle = primary.replicate(&vm, true);
    assert_eq!((runs("disk-0/"), runs("disk-1/")), (3, 0));
    assert_eq!(images_of(&files, &vm, idle.point()), primary.images);
    assert_eq!(images_read(&vm, idle.point()), primary.images);
}

#[test]
fn disks_grow_join_and_leave_with_the_cuts() {
    let (files, _store, mut primary, vm) = replicated(2);
    let mut expected = BTreeMap::new();
    let mut keep = |primary: &mut Primary| {
        let cut = primary.replicate(&vm, true);
        expected.insert(cut.id.digest, primary.images.clone());
        assert_eq!(images_read(&vm, cut.point()), primary.images);
    };
    primary.grow(0, DISK + 3 * 512);
    keep(&mut primary);
    primary.write(0, DISK - 100, 1_000, 600);
    keep(&mut primary);
    let added = primary.add_disk(100 * 512);
    primary.write(added, 0, 51_200, 601);
    keep(&mut primary);
    primary.remove_disk(1);
    primary.write(0, 0, 4_096, 602);
    keep(&mut primary);
    primary.write(1, 512, 512, 603);
    keep(&mut primary);
    let points: Vec<_> = expected.keys().map(|d| d.point()).collect();
    vm.retain(&points).unwrap();
    upkeep(&vm);
    assert_points(&files, &vm, &expected);
    // From the oldest on, until nothing but the newest is left.
    let order: Vec<_> = vm.points().iter().map(|p| p.cut.id.digest).collect();
    for digest in &order[..order.len() - 1] {
        expected.remove(digest);
        vm.retain(&expected.keys().map(|d| d.point()).collect::<Vec<_>>()).unwrap();
        upkeep(&vm);
        assert_points(&files, &vm, &expected);
        assert_eq!(vm.check(&mut unpaced).unwrap().damage, []);
    }
}

#[test]
fn disks_that_are_not_what_they_were_ask_for_resynchronisation() {
    let (_files, _store, mut primary, vm) = replicated(1);
    let session = primary.admit(&vm);
    let kind = |change: fn(&mut Primary)| {
        let mut primary = primary.clone();
        change(&mut primary);
        send(&vm, session, &primary.cut(), true).unwrap_err().kind()
    };
    assert_eq!(kind(|p| p.specs[0].size -= 512), ErrorKind::Resync);
    assert_eq!(kind(|p| p.specs[0].key = "other".into()), ErrorKind::Resync);
    let refusal = |change: fn(&mut CycleHeader)| {
        let mut header = primary.clone().cut().header;
        change(&mut header);
        vm.begin_cycle(session, header).err().unwrap().kind()
    };
    assert_eq!(refusal(|h| h.disks[1] = h.disks[0].clone()), ErrorKind::Refused);
    assert_eq!(refusal(|h| h.disks[1].cluster_bits = 40), ErrorKind::Refused);
    assert_eq!(refusal(|h| h.disks[1].spec.size = u64::MAX), ErrorKind::Refused);
    assert_eq!(refusal(|h| h.disks.clear()), ErrorKind::Refused);
}

#[test]
fn a_disk_number_is_never_given_to_another_disk() {
    let (_files, _store, mut primary, vm) = replicated(1);
    let removed = (primary.specs[1].clone(), primary.images[1].clone());
    primary.remove_disk(1);
    primary.replicate(&vm, true);
    let index = primary.add_disk(DISK);
    primary.specs[index] = removed.0;
    let session = primary.admit(&vm);
    let err = send(&vm, session, &primary.cut(), true).unwrap_err();
    assert!(matches!(err, CycleError::DiskChanged { .. }));
}

#[test]
fn definitions_are_kept_once_and_with_their_cut() {
    let (files, store, mut primary, vm) = started();
    let blob = vec![5; 100_000];
    let hash = *blake3::hash(&blob).as_bytes();
    let definition = |text: &str, blobs: Vec<[u8; 32]>| Definition {
        extension: "xml".into(),
        bytes: text.as_bytes().to_vec(),
        blobs,
    };
    primary.definition = Some(definition("<domain>1</domain>", vec![]));
    let first = primary.replicate(&vm, true);
    primary.replicate(&vm, true);
    let count = |files: &MemFiles, end: &str| files.tree().iter().filter(|p| p.ends_with(end)).count();
    assert_eq!(count(&files, ".xml"), 1);

    primary.definition = Some(definition("<domain>2</domain>", vec![hash]));
    let session = primary.admit(&vm);
    let cycle = primary.cut();
    assert!(matches!(send(&vm, session, &cycle, true), Err(CycleError::Definition(_))), "its blob is not here");
    let mut receiver = vm.begin_blob(hash, 100_000).unwrap();
    blob.chunks(30_000).for_each(|part| receiver.push(part).unwrap());
    receiver.finish().unwrap();
    let cut = send(&vm, session, &cycle, true).unwrap();
    primary.acknowledged(cut.id.digest);
    drop((vm, store));
    files.crash(Crash::LostAll);

    let store = open(&files);
    let vm = store.vm(primary.vm).unwrap();
    let of = |point| vm.open_point(point).unwrap().definition().unwrap().unwrap();
    assert_eq!(of(first.point()).bytes, b"<domain>1</domain>");
    assert_eq!(of(cut.point()), definition("<domain>2</domain>", vec![hash]));
    assert_eq!(vm.blob(&hash).unwrap(), blob);
    vm.retain(&[cut.point()]).unwrap();
    assert_eq!((count(&files, ".xml"), count(&files, ".blob")), (1, 1));
    primary.definition = None;
    let last = primary.replicate(&vm, true);
    vm.retain(&[last.point()]).unwrap();
    assert_eq!((count(&files, ".xml"), count(&files, ".blob")), (0, 0));
}

#[test]
fn a_definition_that_could_escape_its_name_is_refused() {
    let (_files, _store, mut primary, vm) = started();
    for extension in ["", "../x", "XML", "a/b", "blob", "123456789"] {
        primary.definition = Some(Definition { extension: extension.into(), bytes: vec![], blobs: vec![] });
        let session = primary.admit(&vm);
        let err = send(&vm, session, &primary.cut(), true).unwrap_err();
        assert_eq!(err.kind(), ErrorKind::Refused, "{extension:?}");
    }
    let err = vm.begin_blob([0; 32], u64::MAX).err().unwrap();
    assert_eq!(err.kind(), ErrorKind::Refused);
    let mut receiver = vm.begin_blob([0; 32], 3).unwrap();
    assert!(receiver.push(b"four").is_err());
    receiver.push(b"abc").unwrap();
    assert!(receiver.finish().is_err(), "not its hash");
}

#[test]
fn one_process_at_a_time_opens_a_store() {
    let files = MemFiles::new();
    let store = open(&files);
    let second = Store::open(Arc::new(files.clone()), options());
    assert!(matches!(second, Err(StoreError::InUse)));
    drop(store);
    open(&files);
}

#[test]
fn a_vm_is_made_once() {
    let files = MemFiles::new();
    let store = open(&files);
    let primary = Primary::small();
    store.create_vm(primary.vm, Generation(1), &primary.specs).unwrap();
    let again = store.create_vm(primary.vm, Generation(1), &primary.specs);
    assert!(matches!(again, Err(CreateError::Exists { .. })));
    assert!(store.create_vm(understudy_model::VmId(uuid::Uuid::nil()), Generation(1), &[]).is_err());
}

#[test]
fn a_removed_relationship_keeps_its_points_or_takes_them_along() {
    let (files, store, mut primary, vm) = replicated(3);
    store.remove(primary.vm, Removal::KeepPoints).unwrap();
    assert_eq!(vm.points().len(), 3);
    let refused = vm.admit_session(Generation(9), SessionNumber(9)).unwrap_err();
    assert!(matches!(refused, SessionError::Detached));
    vm.attach().unwrap();
    primary.replicate(&vm, true);
    let locked = vm.points()[0].cut.point();
    vm.set_locked(locked, true).unwrap();
    assert!(matches!(store.remove(primary.vm, Removal::DestroyPoints), Err(RemoveError::Locked { .. })));
    vm.set_locked(locked, false).unwrap();
    store.remove(primary.vm, Removal::DestroyPoints).unwrap();
    assert!(store.vm(primary.vm).is_none());
    assert!(vm.admit_session(Generation(9), SessionNumber(9)).is_err(), "who still holds it is refused");
    assert_eq!(files.tree(), ["lock"], "no reserve was asked for");
    assert!(matches!(store.remove(primary.vm, Removal::DestroyPoints), Err(RemoveError::Unknown { .. })));
}

#[test]
fn a_newer_format_is_refused_and_left_untouched() {
    let (files, store, primary, vm) = replicated(1);
    drop((store, vm));
    let path = format!("{}/manifest.json", primary.vm);
    let newer = of_version(&files.content(&path).unwrap(), 3, |body| body.to_owned());
    files.unlink(&path).unwrap();
    understudy_store::files::write_all_at(&*files.create(&path).unwrap(), 0, newer.as_bytes()).unwrap();
    let leftover = format!("{}/staging/000099-disk-0.qcow2", primary.vm);
    files.create(&leftover).unwrap();
    let before: Vec<_> = files.tree().iter().map(|p| files.content(p).unwrap()).collect();

    let store = open(&files);
    assert!(store.vm(primary.vm).is_none());
    let unopened = store.unopened();
    assert_eq!(unopened[0].2, ErrorKind::Refused);
    assert!(unopened[0].1.contains("version 3"), "{}", unopened[0].1);
    let after: Vec<_> = files.tree().iter().map(|p| files.content(p).unwrap()).collect();
    assert_eq!(before, after);
    assert!(store.create_vm(primary.vm, Generation(1), &primary.specs).is_err(), "its place is taken");
    files.open(&leftover, Access::Read).unwrap();
}

#[test]
fn a_replica_of_the_first_version_is_opened_and_written_anew() {
    let (files, store, mut primary, vm) = replicated(2);
    let points = vm.points();
    drop((store, vm));
    for name in ["manifest.json", "manifest.copy.json"] {
        let path = format!("{}/{name}", primary.vm);
        let first = of_version(&files.content(&path).unwrap(), 1, |body| {
            body.replacen("\"seeds\":[],", "", 1).replacen("\"waiting\":null,", "", 1)
        });
        files.unlink(&path).unwrap();
        understudy_store::files::write_all_at(&*files.create(&path).unwrap(), 0, first.as_bytes()).unwrap();
    }
    let store = open(&files);
    let vm = store.vm(primary.vm).unwrap();
    assert_eq!(vm.points(), points);
    files.crash(understudy_store::files::Crash::LostAll);
    let text = String::from_utf8(files.content(&format!("{}/manifest.json", primary.vm)).unwrap()).unwrap();
    assert!(text.contains("\"version\":2"), "{text}");
    drop((store, vm));
    let store = open(&files);
    primary.replicate(&store.vm(primary.vm).unwrap(), true);
}

#[test]
fn block_sums_say_what_the_base_holds_and_nothing_of_what_runs_touch() {
    let files = MemFiles::new();
    let store = open(&files);
    let mut primary = Primary::new(&[4 * BASE_BLOCK]);
    primary.write(0, 0, 2 * BASE_BLOCK, 7);
    let vm = primary.start(&store);
    primary.write(0, 100, 10, 8);
    let cut = primary.replicate(&vm, true);
    let reader = vm.open_point(cut.point()).unwrap();
    let sums = reader.block_sums(DiskId(0), 0, 4).unwrap();
    let second = &primary.images[0][BASE_BLOCK as usize..2 * BASE_BLOCK as usize];
    assert_eq!(sums, [BlockSum::Unknown, BlockSum::of(BASE_BLOCK, second), BlockSum::Zero, BlockSum::Zero]);
    assert_eq!(reader.block_sums(DiskId(0), 2 * BASE_BLOCK, 1).unwrap(), [BlockSum::Zero]);
    assert!(reader.block_sums(DiskId(0), 0, 5).is_err());
    assert!(reader.block_sums(DiskId(0), 512, 1).is_err());
    assert!(reader.block_sums(DiskId(1), 0, 1).is_err());
}

#[test]
fn a_delta_can_be_passed_on() {
    let (files, _store, mut primary, vm) = replicated(2);
    primary.write(0, 0, 30_000, 700);
    let before = vm.newest().unwrap();
    let cut = primary.replicate(&vm, true);
    let reader = vm.open_point(cut.point()).unwrap();
    assert_eq!(reader.follows(), before.id.digest);
    let delta = reader.delta().unwrap().unwrap();
    assert_eq!(delta.len(), 2);
    assert!(delta[1].run.is_none(), "disk 1 did not change");
    let mut run = delta[0].run.as_ref().unwrap().reader().unwrap();
    let (batch, _) = run.batch(0, 1 << 20).unwrap().unwrap();
    assert!(!batch.is_empty());
    drop(files);
}
