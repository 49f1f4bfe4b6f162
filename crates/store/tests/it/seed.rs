//! Initial copies that begin with what is here already: seeds, earlier attempts, other replicas.

use std::ops::ControlFlow;
use std::sync::Arc;

use understudy_model::{CutNumber, DiskId, ErrorKind, Generation, VmId};
use understudy_store::files::{
    Call, Crash, Fault, FaultPlan, FaultyFiles, Files, MemFiles, OutsideFile, RealFiles, write_all_at,
};
use understudy_store::{
    BASE_BLOCK, BaseBytes, BaseError, BaseMode, BaseReceiver, BlockClaim, CLAIMS_MAX, Planting, Removal, SeedError,
    SeedFile, Store, VmStore,
};
use uuid::Uuid;

use crate::support::*;

const BLOCK: usize = BASE_BLOCK as usize;
/// Nine blocks and a short one.
const SIZE: u64 = 9 * BASE_BLOCK + 3 * GRANULE;

fn primary() -> Primary {
    let mut primary = Primary::new(&[SIZE]);
    primary.write(0, 0, 4 * BASE_BLOCK, 1);
    primary.write(0, 6 * BASE_BLOCK, SIZE - 6 * BASE_BLOCK, 2);
    primary
}

fn outside(bytes: &[u8]) -> OutsideFile {
    let files = MemFiles::new();
    write_all_at(&*files.create("seed").unwrap(), 0, bytes).unwrap();
    files.as_outside("seed").unwrap()
}

fn plant(vm: &Arc<VmStore>, bytes: &[u8]) -> Result<Planting, SeedError> {
    vm.plant_seed(DiskId(0), &SeedFile { file: outside(bytes), take: false }, &mut unpaced)
}

fn compare() -> BaseMode {
    BaseMode::Compare { lenders: Vec::new() }
}

fn begin(primary: &mut Primary, vm: &Arc<VmStore>, attempt: u64, mode: &BaseMode) -> BaseReceiver {
    let session = primary.admit(vm);
    vm.begin_base_in(session, CutNumber(attempt), mode).unwrap()
}

/// Offers the whole first disk; how many blocks had to be sent.
fn offer_all(primary: &Primary, base: &BaseReceiver) -> usize {
    offer(base, DiskId(0), 0, &primary.images[0]).unwrap()
}

/// The first cycle on top, and everything whole.
fn assert_becomes_the_primary(files: &MemFiles, primary: &mut Primary, vm: &Arc<VmStore>) {
    primary.acknowledged(understudy_model::CutDigest::ZERO);
    primary.write(0, 100, 100, 99);
    let cut = primary.replicate(vm, true);
    assert!(images_of(files, vm, cut.point()) == primary.images);
    assert!(images_read(vm, cut.point()) == primary.images);
    let report = vm.check(&mut unpaced).unwrap();
    assert_eq!((report.damage, report.unknown_blocks), (vec![], 0));
}

#[test]
fn only_what_differs_from_the_seed_is_sent() {
    let files = MemFiles::new();
    let store = open(&files);
    let mut primary = primary();
    let vm = store.create_vm(primary.vm, Generation(1), &primary.specs).unwrap();
    let mut seed = primary.images[0].clone();
    seed[BLOCK + 5] ^= 1;
    // Zero on the primary, something in the seed; and the other way round.
    seed[4 * BLOCK + 9] = 7;
    seed[7 * BLOCK..8 * BLOCK].fill(0);
    seed[SIZE as usize - 1] ^= 1;
    assert_eq!(plant(&vm, &seed).unwrap(), Planting::Copied);
    assert_eq!(vm.seeds(), [DiskId(0)]);
    assert!(vm.points().is_empty() && vm.base_positions().is_none(), "a seed is nothing to be seen");
    let base = begin(&mut primary, &vm, 1, &compare());
    assert_eq!(vm.seeds(), []);
    assert_eq!(base.sync().unwrap(), [(DiskId(0), 0)]);
    assert_eq!(offer_all(&primary, &base), 3, "the zeros need not be sent");
    assert_eq!(base.sync().unwrap(), [(DiskId(0), SIZE)]);
    assert_eq!(offer_all(&primary, &base), 0, "what is durable is passed over");
    drop(base);
    assert_becomes_the_primary(&files, &mut primary, &vm);
}

#[test]
fn a_seed_that_is_shorter_than_the_disk_is_followed_by_zeros_and_a_longer_one_is_refused() {
    let files = MemFiles::new();
    let store = open(&files);
    let mut primary = primary();
    let vm = store.create_vm(primary.vm, Generation(1), &primary.specs).unwrap();
    let err = plant(&vm, &vec![1; SIZE as usize + 1]).unwrap_err();
    assert!(matches!(err, SeedError::TooLong { len, .. } if len == SIZE + 1), "{err:?}");
    assert_eq!(err.kind(), ErrorKind::Refused);
    plant(&vm, &[9; 100]).unwrap();
    // A better one takes its place.
    let half = primary.images[0][..5 * BLOCK + 100].to_vec();
    plant(&vm, &half).unwrap();
    let base = begin(&mut primary, &vm, 1, &compare());
    assert_eq!(offer_all(&primary, &base), 4, "all behind the seed's end that is not zero");
    base.sync().unwrap();
    drop(base);
    assert_becomes_the_primary(&files, &mut primary, &vm);
}

#[test]
fn a_disk_without_a_seed_is_compared_with_nothing() {
    let files = MemFiles::new();
    let store = open(&files);
    let mut primary = primary();
    let vm = store.create_vm(primary.vm, Generation(1), &primary.specs).unwrap();
    let base = begin(&mut primary, &vm, 1, &compare());
    assert_eq!(offer_all(&primary, &base), 8);
    base.sync().unwrap();
    drop(base);
    assert_becomes_the_primary(&files, &mut primary, &vm);
}

#[test]
fn another_attempt_that_compares_keeps_what_an_earlier_one_brought() {
    let files = MemFiles::new();
    let store = open(&files);
    let mut primary = primary();
    let vm = store.create_vm(primary.vm, Generation(1), &primary.specs).unwrap();
    let base = begin(&mut primary, &vm, 1, &BaseMode::Fresh);
    base.write(DiskId(0), 0, BaseBytes::Data(&primary.images[0][..3 * BLOCK])).unwrap();
    base.sync().unwrap();
    base.write(DiskId(0), 6 * BASE_BLOCK, BaseBytes::Data(&primary.images[0][6 * BLOCK..7 * BLOCK])).unwrap();
    drop(base);
    drop((vm, store));
    files.crash(Crash::Killed);
    let store = open(&files);
    let vm = store.vm(primary.vm).unwrap();
    // The same attempt goes on where it was durable; another begins anew and finds what is there.
    let base = begin(&mut primary, &vm, 1, &compare());
    assert_eq!(base.positions(), [(DiskId(0), 3 * BASE_BLOCK)]);
    drop(base);
    let base = begin(&mut primary, &vm, 2, &compare());
    assert_eq!((vm.base_attempt(), base.positions()), (Some(CutNumber(2)), vec![(DiskId(0), 0)]));
    assert_eq!(offer_all(&primary, &base), 4);
    base.sync().unwrap();
    drop(base);
    assert_becomes_the_primary(&files, &mut primary, &vm);
}

#[test]
fn a_fresh_copy_begins_with_empty_disks_and_does_not_compare() {
    let files = MemFiles::new();
    let store = open(&files);
    let mut primary = primary();
    let vm = store.create_vm(primary.vm, Generation(1), &primary.specs).unwrap();
    plant(&vm, &vec![5; SIZE as usize]).unwrap();
    let base = begin(&mut primary, &vm, 1, &BaseMode::Fresh);
    assert_eq!(vm.seeds(), []);
    let err = base.offer(DiskId(0), 0, &[BlockClaim::Zero]).unwrap_err();
    assert!(matches!(err, BaseError::NotComparing), "{err:?}");
    base.write(DiskId(0), 0, BaseBytes::Data(&primary.images[0][..4 * BLOCK])).unwrap();
    base.write(DiskId(0), 4 * BASE_BLOCK, BaseBytes::Zeros(SIZE - 4 * BASE_BLOCK)).unwrap();
    base.sync().unwrap();
    let staged = files.content(&format!("{}/staging/disk-0-base.raw", vm.id())).unwrap();
    assert!(staged[4 * BLOCK..].iter().all(|byte| *byte == 0), "nothing of the seed is left");
}

#[test]
fn what_a_failed_sync_only_seemed_to_store_is_not_believed() {
    let memory = MemFiles::new();
    let files = FaultyFiles::over_memory(&memory);
    let store = open(&files);
    let mut primary = primary();
    let vm = store.create_vm(primary.vm, Generation(1), &primary.specs).unwrap();
    let base = begin(&mut primary, &vm, 1, &BaseMode::Fresh);
    base.write(DiskId(0), 0, BaseBytes::Data(&primary.images[0])).unwrap();
    files.plan(Some(FaultPlan { call: Call::Sync, fault: Fault::Io, nth: 1, for_ever: false }));
    assert!(base.sync().is_err());
    files.plan(None);
    drop((base, vm));
    for attempt in [1, 2] {
        let vm = store.reopen(primary.vm).unwrap();
        let base = begin(&mut primary, &vm, attempt, &compare());
        let claims: Vec<_> = primary.images[0]
            .chunks(BLOCK)
            .take(2)
            .enumerate()
            .map(|(i, b)| BlockClaim::of((i * BLOCK) as u64, b))
            .collect();
        assert_eq!(base.offer(DiskId(0), 0, &claims).unwrap(), [true; 2], "the disk does not have them");
    }
    let vm = store.reopen(primary.vm).unwrap();
    let base = begin(&mut primary, &vm, 2, &compare());
    offer_all(&primary, &base);
    base.sync().unwrap();
    memory.crash(Crash::LostAll);
    let staged = memory.content(&format!("{}/staging/disk-0-base.raw", primary.vm)).unwrap();
    assert!(staged == primary.images[0]);
}

#[test]
fn a_block_that_the_disk_cannot_read_is_wanted() {
    let memory = MemFiles::new();
    let files = FaultyFiles::over_memory(&memory);
    let store = open(&files);
    let mut primary = primary();
    let vm = store.create_vm(primary.vm, Generation(1), &primary.specs).unwrap();
    plant(&vm, &primary.images[0]).unwrap();
    let base = begin(&mut primary, &vm, 1, &compare());
    files.plan(Some(FaultPlan { call: Call::Read, fault: Fault::Io, nth: 2, for_ever: false }));
    assert_eq!(offer_all(&primary, &base), 1);
    assert_eq!(files.failures(), 1);
    base.sync().unwrap();
    drop(base);
    assert_becomes_the_primary(&memory, &mut primary, &vm);
}

/// Another VM of the same template, replicated.
fn sibling(store: &Store, image: &[u8]) -> (Arc<VmStore>, VmId) {
    let mut other = Primary::new(&[SIZE]);
    other.vm = VmId(Uuid::from_u128(0x77));
    other.images[0] = image.to_vec();
    let vm = other.start(store);
    other.replicate(&vm, true);
    (vm, other.vm)
}

#[test]
fn equal_blocks_of_other_replicas_are_taken_from_there() {
    let files = MemFiles::new();
    let store = open(&files);
    let mut primary = primary();
    let mut image = primary.images[0].clone();
    image[0] ^= 1;
    let (_other, id) = sibling(&store, &image);
    let vm = store.create_vm(primary.vm, Generation(1), &primary.specs).unwrap();
    // Damage there is not brought here, and is no harm.
    files.damage(&format!("{id}/disk-0/base.raw"), 7 * BASE_BLOCK + 3, |b| b[0] ^= 1, 1).unwrap();
    let lenders = vec![id, VmId(Uuid::from_u128(0x78)), primary.vm];
    let base = begin(&mut primary, &vm, 1, &BaseMode::Compare { lenders });
    assert_eq!(offer_all(&primary, &base), 2, "the one that differs and the one that is damaged there");
    base.sync().unwrap();
    drop(base);
    assert_becomes_the_primary(&files, &mut primary, &vm);
}

#[test]
fn nobody_is_asked_who_was_not_named() {
    let files = MemFiles::new();
    let store = open(&files);
    let mut primary = primary();
    let (_other, _) = sibling(&store, &primary.images[0].clone());
    let vm = store.create_vm(primary.vm, Generation(1), &primary.specs).unwrap();
    let base = begin(&mut primary, &vm, 1, &compare());
    assert_eq!(offer_all(&primary, &base), 8);
}

#[test]
fn a_lender_that_is_removed_meanwhile_no_longer_lends() {
    let files = MemFiles::new();
    let store = open(&files);
    let mut primary = primary();
    let (other, id) = sibling(&store, &primary.images[0].clone());
    let vm = store.create_vm(primary.vm, Generation(1), &primary.specs).unwrap();
    let base = begin(&mut primary, &vm, 1, &BaseMode::Compare { lenders: vec![id] });
    store.remove(id, Removal::DestroyPoints).unwrap();
    drop(other);
    assert_eq!(offer_all(&primary, &base), 8);
}

#[test]
fn among_many_lenders_the_useful_one_is_found() {
    let files = MemFiles::new();
    let store = open(&files);
    let mut primary = Primary::new(&[64 * BASE_BLOCK]);
    primary.write(0, 0, 64 * BASE_BLOCK, 1);
    let mut lenders = Vec::new();
    for i in 0..7u64 {
        let mut other = Primary::new(&[64 * BASE_BLOCK]);
        other.vm = VmId(Uuid::from_u128(u128::from(i) + 100));
        let stamp = if i == 6 { 1 } else { 50 + i };
        other.write(0, 0, 64 * BASE_BLOCK, stamp);
        let vm = other.start(&store);
        other.replicate(&vm, true);
        lenders.push(other.vm);
    }
    let vm = store.create_vm(primary.vm, Generation(1), &primary.specs).unwrap();
    let base = begin(&mut primary, &vm, 1, &BaseMode::Compare { lenders });
    let mut sent = Vec::new();
    for piece in 0..16 {
        let (from, len) = (piece * 4 * BASE_BLOCK, 4 * BLOCK);
        let bytes = primary.images[0][from as usize..from as usize + len].to_vec();
        sent.push(offer(&base, DiskId(0), from, &bytes).unwrap());
    }
    assert_eq!((sent[0], sent[15]), (4, 0), "{sent:?}");
}

#[test]
fn planting_is_refused_where_it_makes_no_sense() {
    let files = MemFiles::new();
    let store = open(&files);
    let mut primary = primary();
    let vm = store.create_vm(primary.vm, Generation(1), &primary.specs).unwrap();
    let seed = || SeedFile { file: outside(&[1; 70_000]), take: false };
    let err = vm.plant_seed(DiskId(3), &seed(), &mut unpaced).unwrap_err();
    assert!(matches!(err, SeedError::UnknownDisk { .. }), "{err:?}");
    let mut stop = |_| ControlFlow::Break(());
    assert!(matches!(vm.plant_seed(DiskId(0), &seed(), &mut stop), Err(SeedError::Cancelled)));
    assert_no_leftovers(&files, &vm);
    // A receiver keeps seeds away, and a seed on its way keeps receivers away.
    let session = primary.admit(&vm);
    let mut meet = |_| {
        assert!(matches!(vm.begin_base(session, CutNumber(1)), Err(BaseError::Busy)));
        ControlFlow::Continue(())
    };
    vm.plant_seed(DiskId(0), &seed(), &mut meet).unwrap();
    let base = vm.begin_base_in(session, CutNumber(1), &compare()).unwrap();
    assert!(matches!(plant(&vm, &[1]), Err(SeedError::Begun)));
    offer_all(&primary, &base);
    base.sync().unwrap();
    drop(base);
    primary.replicate(&vm, true);
    assert!(matches!(plant(&vm, &[1]), Err(SeedError::Begun)));
    store.remove(primary.vm, Removal::KeepPoints).unwrap();
    assert!(matches!(plant(&vm, &[1]), Err(SeedError::Detached)));
}

#[test]
fn offers_that_make_no_sense_are_refused() {
    let files = MemFiles::new();
    let store = open(&files);
    let mut primary = primary();
    let vm = store.create_vm(primary.vm, Generation(1), &primary.specs).unwrap();
    let base = begin(&mut primary, &vm, 1, &compare());
    let ask = |disk, offset, count| base.offer(DiskId(disk), offset, &vec![BlockClaim::Zero; count]);
    assert!(matches!(ask(2, 0, 1), Err(BaseError::UnknownDisk { .. })));
    for (offset, count) in [(100, 1), (0, 11), (9 * BASE_BLOCK, 2), (u64::MAX - 65_535, 1), (0, CLAIMS_MAX + 1)] {
        let err = ask(0, offset, count).unwrap_err();
        assert!(matches!(err, BaseError::Claims { .. }), "{offset} {count}: {err:?}");
    }
    assert_eq!(ask(0, 0, 10).unwrap(), [false; 10]);
    assert_eq!(base.sync().unwrap(), [(DiskId(0), SIZE)]);
    let late = begin(&mut primary, &vm, 1, &compare());
    assert!(base.offer(DiskId(0), 0, &[BlockClaim::Zero]).is_err(), "an older session's");
    drop(late);
}

#[test]
fn a_seed_survives_a_restart_and_one_that_is_gone_is_forgotten() {
    let files = MemFiles::new();
    let store = open(&files);
    let mut primary = primary();
    let vm = store.create_vm(primary.vm, Generation(1), &primary.specs).unwrap();
    plant(&vm, &primary.images[0]).unwrap();
    drop((vm, store));
    files.crash(Crash::LostAll);
    let store = open(&files);
    let vm = store.vm(primary.vm).unwrap();
    assert_eq!(vm.seeds(), [DiskId(0)]);
    drop((vm, store));
    files.unlink(&format!("{}/staging/disk-0-base.raw", primary.vm)).unwrap();
    let store = open(&files);
    let vm = store.vm(primary.vm).unwrap();
    assert_eq!(vm.seeds(), []);
    let base = begin(&mut primary, &vm, 1, &compare());
    assert_eq!(offer_all(&primary, &base), 8);
}

#[test]
fn on_real_files_a_seed_is_moved_or_copied_with_its_holes() {
    for take in [true, false] {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("store")).unwrap();
        let path = dir.path().join("Old Server (1).raw");
        let mut primary = Primary::new(&[16 << 20]);
        primary.write(0, 9 << 20, 200_000, 3);
        let file = std::fs::File::create(&path).unwrap();
        file.set_len(10 << 20).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, &primary.images[0][9 << 20..10 << 20], 9 << 20).unwrap();
        drop(file);
        let files = Arc::new(RealFiles::open(&dir.path().join("store")).unwrap());
        let store = Store::open(files, options()).unwrap();
        let vm = store.create_vm(primary.vm, Generation(1), &primary.specs).unwrap();
        let seed = SeedFile { file: OutsideFile::open(&path).unwrap(), take };
        let how = vm.plant_seed(DiskId(0), &seed, &mut unpaced).unwrap();
        assert_eq!(how == Planting::Moved, take, "{how:?}");
        assert_eq!(path.exists(), !take);
        assert!(vm.disk_usage().unwrap() < 4 << 20, "holes stay holes");
        let base = begin(&mut primary, &vm, 1, &compare());
        assert_eq!(offer_all(&primary, &base), 0);
        base.sync().unwrap();
        drop(base);
        assert!(vm.disk_usage().unwrap() < 4 << 20, "and take no space by being compared");
        primary.acknowledged(understudy_model::CutDigest::ZERO);
        primary.write(0, 0, 4096, 9);
        let cut = primary.replicate(&vm, true);
        assert!(images_read(&vm, cut.point()) == primary.images);
        assert_eq!(vm.check(&mut unpaced).unwrap().damage, []);
    }
}

#[test]
fn offers_and_data_of_several_disks_come_at_once() {
    let files = MemFiles::new();
    let store = open(&files);
    let mut primary = Primary::new(&[SIZE, SIZE, SIZE]);
    (0..3).for_each(|disk| primary.write(disk, 0, SIZE, disk as u64 + 1));
    let vm = store.create_vm(primary.vm, Generation(1), &primary.specs).unwrap();
    plant(&vm, &primary.images[0]).unwrap();
    let base = begin(&mut primary, &vm, 1, &compare());
    std::thread::scope(|scope| {
        for (disk, image) in primary.images.iter().enumerate() {
            for half in image.chunks(5 * BLOCK).enumerate() {
                let base = &base;
                let (i, piece) = half;
                scope.spawn(move || offer(base, DiskId(disk as u16), (i * 5 * BLOCK) as u64, piece).unwrap());
            }
        }
    });
    base.sync().unwrap();
    drop(base);
    assert_becomes_the_primary(&files, &mut primary, &vm);
}
