//! Comparing the newest state with what a source claims.

use std::sync::Arc;

use proptest::prelude::*;
use understudy_model::{CutDigest, DiskId, ErrorKind};
use understudy_run::part_hash;
use understudy_store::files::{Call, Fault, FaultPlan, FaultyFiles, MemFiles};
use understudy_store::{
    BASE_BLOCK, BLOCK_PARTS, BlockClaim, CLAIMS_MAX, Comparison, ComparisonError, Store, UpkeepStep, VmStore,
};

use crate::support::*;

const BLOCK: usize = BASE_BLOCK as usize;
/// Seven whole blocks and a short one.
const SIZE: u64 = 7 * BASE_BLOCK + 3 * GRANULE;
const PART: usize = BLOCK / BLOCK_PARTS;

struct World {
    files: MemFiles,
    _store: Store,
    vm: Arc<VmStore>,
    primary: Primary,
}

/// A base, links above it, and some of both merged and committed.
fn world() -> World {
    let files = MemFiles::new();
    let store = open(&files);
    let mut primary = Primary::new(&[SIZE, DISK]);
    primary.write(0, 0, 5 * BASE_BLOCK, 1);
    primary.write(1, 0, 9_000, 2);
    let vm = primary.start(&store);
    for i in 0..4 {
        primary.write(0, i * 90_000, 5_000, 10 + i);
        primary.cluster_bits = 12 + (i % 3) as u32;
        primary.replicate(&vm, i % 2 == 1);
    }
    let newest: Vec<_> = vm.points().iter().rev().take(2).map(|p| p.cut.point()).collect();
    vm.retain(&newest).unwrap();
    upkeep(&vm);
    World { files, _store: store, vm, primary }
}

impl World {
    fn compare(&self) -> Comparison {
        self.vm.comparison(self.newest()).unwrap()
    }

    fn newest(&self) -> CutDigest {
        self.vm.newest().unwrap().id.digest
    }

    fn flip(&self, inner: &str, at: u64) {
        self.files.damage(&format!("{}/{inner}", self.primary.vm), at, |b| b[0] ^= 0x10, 1).unwrap();
    }
}

fn blocks(image: &[u8]) -> impl Iterator<Item = (u64, Vec<u8>)> + '_ {
    image.chunks(BLOCK).enumerate().map(|(i, piece)| {
        let mut block = piece.to_vec();
        block.resize(BLOCK, 0);
        ((i * BLOCK) as u64, block)
    })
}

fn claims(image: &[u8]) -> Vec<BlockClaim> {
    blocks(image).map(|(at, block)| BlockClaim::of(at, &block)).collect()
}

fn parts(at: u64, block: &[u8]) -> [understudy_run::PartHash; BLOCK_PARTS] {
    let hashes = block.chunks(PART).enumerate().map(|(i, part)| part_hash(at + (i * PART) as u64, part));
    hashes.collect::<Vec<_>>().try_into().unwrap()
}

/// What a comparison should say of two images.
fn expected(ours: &[u8], theirs: &[u8]) -> Vec<bool> {
    blocks(ours).zip(blocks(theirs)).map(|(a, b)| a != b).collect()
}

#[test]
fn the_same_disks_do_not_differ() {
    let world = world();
    let comparison = world.compare();
    for (disk, _) in comparison.disks().to_vec() {
        let image = &world.primary.images[usize::from(disk.0)];
        let differing = comparison.differing(disk, 0, &claims(image)).unwrap();
        assert!(differing.iter().all(|differs| !differs), "{disk}: {differing:?}");
        for (at, block) in blocks(image) {
            assert_eq!(comparison.differing_parts(disk, at, &parts(at, &block)).unwrap(), 0);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn what_differs_is_what_the_images_say(
        changes in prop::collection::vec((0..SIZE - 600, 1u64..600, any::<bool>()), 0..6),
        first in 0u64..8,
    ) {
        let world = world();
        let ours = world.primary.images[0].clone();
        let mut theirs = ours.clone();
        for (at, len, zero) in changes {
            let value = |i: usize| if zero { 0 } else { i as u8 | 1 };
            theirs[at as usize..(at + len) as usize].iter_mut().enumerate().for_each(|(i, byte)| *byte = value(i));
        }
        let comparison = world.compare();
        let from = first as usize;
        let differing = comparison.differing(DiskId(0), first * BASE_BLOCK, &claims(&theirs)[from..]).unwrap();
        prop_assert_eq!(&differing, &expected(&ours, &theirs)[from..]);
        for ((at, a), (_, b)) in blocks(&ours).zip(blocks(&theirs)) {
            let differs = a.chunks(PART).zip(b.chunks(PART)).enumerate().map(|(i, (a, b))| u16::from(a != b) << i);
            let mask: u16 = differs.sum();
            prop_assert_eq!(comparison.differing_parts(DiskId(0), at, &parts(at, &b)).unwrap(), mask);
        }
    }
}

#[test]
fn beyond_its_end_a_disk_is_zero_so_that_it_may_have_grown() {
    let world = world();
    let mut theirs = world.primary.images[0].clone();
    theirs.resize(10 * BLOCK, 0);
    theirs[9 * BLOCK + 7] = 1;
    let comparison = world.compare();
    let differing = comparison.differing(DiskId(0), 0, &claims(&theirs)).unwrap();
    assert_eq!(differing, [&[false; 9][..], &[true]].concat());
    let mask = comparison.differing_parts(DiskId(0), 9 * BASE_BLOCK, &parts(9 * BASE_BLOCK, &theirs[9 * BLOCK..]));
    assert_eq!(mask.unwrap(), 1);
}

#[test]
fn known_checksums_answer_without_reading_and_nothing_else_does() {
    let mut primary = Primary::new(&[SIZE]);
    primary.write(0, 0, SIZE, 1);
    let memory = MemFiles::new();
    let files = FaultyFiles::over_memory(&memory);
    let store = open(&files);
    let vm = primary.start(&store);
    primary.write(0, BASE_BLOCK, 100, 2);
    let newest = primary.replicate(&vm, true).id.digest;
    let comparison = vm.comparison(newest).unwrap();
    let claims = claims(&primary.images[0]);
    comparison.differing(DiskId(0), 0, &claims).unwrap();
    // The table of checksums and the page of the run's table are read; then the next read fails.
    let ask = |from: usize, to: usize, nth| {
        files.plan(Some(FaultPlan { call: Call::Read, fault: Fault::Io, nth, for_ever: true }));
        let answer = comparison.differing(DiskId(0), from as u64 * BASE_BLOCK, &claims[from..to]);
        files.plan(None);
        answer
    };
    assert_eq!(ask(2, 7, 3).unwrap(), [false; 5]);
    assert!(ask(1, 2, 3).is_err() || vm.report().damage.len() == 1, "what a run touches is read");
}

#[test]
fn a_damaged_block_counts_as_different_and_is_named() {
    for object in ["disk-0/base.raw", "run"] {
        let mut world = world();
        // Covers the second block in part, so that both base and run are needed for it.
        world.primary.write(0, BASE_BLOCK + 8192, 100, 77);
        world.primary.cluster_bits = 12;
        world.primary.replicate(&world.vm, true);
        let name = match object {
            "run" => {
                let prefix = format!("{}/disk-0/", world.primary.vm);
                let tree = world.files.tree();
                let newest = tree.iter().rfind(|p| p.starts_with(&prefix) && p.ends_with(".qcow2")).unwrap();
                newest.strip_prefix(&format!("{}/", world.primary.vm)).unwrap().to_owned()
            }
            base => base.to_owned(),
        };
        world.flip(&name, if object == "run" { 4_120 } else { BASE_BLOCK + 50_000 });
        let comparison = world.compare();
        let image = &world.primary.images[0];
        let differing = comparison.differing(DiskId(0), 0, &claims(image)).unwrap();
        let only_the_second: Vec<bool> = (0..differing.len()).map(|i| i == 1).collect();
        assert_eq!(differing, only_the_second, "{object}");
        let (at, block) = blocks(image).nth(1).unwrap();
        assert_eq!(comparison.differing_parts(DiskId(0), at, &parts(at, &block)).unwrap(), u16::MAX);
        let damage = world.vm.report().damage;
        assert!(damage.len() == 1 && damage[0].starts_with(&name), "{damage:?}");
    }
}

#[test]
fn a_base_that_is_known_to_be_damaged_is_no_longer_believed_by_its_checksums() {
    let world = world();
    world.flip("disk-0/base.raw", 3 * BASE_BLOCK + 99);
    let ask = || world.compare().differing(DiskId(0), 0, &claims(&world.primary.images[0])).unwrap();
    assert!(!ask()[3], "nothing touched it, so nobody looked");
    assert_eq!(world.vm.check(&mut unpaced).unwrap().damage.len(), 1);
    assert!(ask()[3]);
}

#[test]
fn a_run_that_cannot_be_opened_is_damage_and_no_answer() {
    let world = world();
    let prefix = format!("{}/disk-0/", world.primary.vm);
    let run = world.files.tree().into_iter().rfind(|p| p.starts_with(&prefix) && p.ends_with(".qcow2")).unwrap();
    let len = world.files.content(&run).unwrap().len() as u64;
    world.files.damage(&run, len - 100, |b| b[0] ^= 1, 1).unwrap();
    let err = world.compare().differing(DiskId(0), 0, &[BlockClaim::Zero]).unwrap_err();
    assert!(matches!(err, ComparisonError::Damaged { .. }), "{err:?}");
    assert_eq!(err.kind(), ErrorKind::Corrupt);
    assert_eq!(world.vm.report().damage.len(), 1);
}

#[test]
fn only_the_newest_cut_is_compared_and_only_with_claims_that_make_sense() {
    let mut world = world();
    let before = world.newest();
    world.primary.replicate(&world.vm, true);
    assert!(matches!(world.vm.comparison(before), Err(ComparisonError::NotNewest { .. })));
    assert!(matches!(world.vm.comparison(CutDigest::ZERO), Err(ComparisonError::NotNewest { .. })));
    let comparison = world.compare();
    let ask = |disk, offset, count| comparison.differing(DiskId(disk), offset, &vec![BlockClaim::Zero; count]);
    assert!(matches!(ask(7, 0, 1), Err(ComparisonError::UnknownDisk { .. })));
    for (offset, count) in [(4096, 1), (0, CLAIMS_MAX + 1), (u64::MAX - 65_535, 1), (1 << 60, 1)] {
        let err = ask(0, offset, count).unwrap_err();
        assert!(matches!(err, ComparisonError::Claims { .. }), "{offset} {count}: {err:?}");
        assert_eq!(err.kind(), ErrorKind::Refused);
    }
    assert_eq!(ask(0, 0, CLAIMS_MAX).unwrap().len(), CLAIMS_MAX);
    assert!(ask(0, 0, 0).unwrap().is_empty());
    assert!(comparison.differing_parts(DiskId(0), 100, &[[0; 16]; BLOCK_PARTS]).is_err());
}

#[test]
fn what_is_compared_stays_as_it_is_and_a_cycle_may_come_on_top_of_it() {
    let mut world = world();
    for i in 0..3 {
        world.primary.write(0, i * 40_000, 5_000, 200 + i);
        world.primary.replicate(&world.vm, false);
    }
    let before = world.primary.images[0].clone();
    let comparison = world.compare();
    assert_eq!(world.vm.upkeep(&mut unpaced).unwrap(), UpkeepStep::Idle, "nothing beneath it moves");
    world.primary.write(0, 0, 100_000, 300);
    let cut = world.primary.replicate(&world.vm, true);
    assert_eq!(comparison.differing(DiskId(0), 0, &claims(&before)).unwrap(), [false; 8]);
    drop(comparison);
    world.vm.retain(&[cut.point()]).unwrap();
    assert!(upkeep(&world.vm) > 0);
    assert!(images_of(&world.files, &world.vm, cut.point()) == world.primary.images);
}

#[test]
fn several_ask_at_once() {
    let world = world();
    let comparison = world.compare();
    std::thread::scope(|scope| {
        for disk in [0u16, 1, 0, 1] {
            let (comparison, image) = (&comparison, &world.primary.images[usize::from(disk)]);
            scope.spawn(move || {
                for _ in 0..20 {
                    let differing = comparison.differing(DiskId(disk), 0, &claims(image)).unwrap();
                    assert!(differing.iter().all(|differs| !differs));
                }
            });
        }
    });
}
