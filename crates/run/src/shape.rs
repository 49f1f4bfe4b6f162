//! Chooses a run's cluster size from the shape of its dirty map.
//!
//! Small clusters carry little that did not change; large ones compress better and need fewer table entries. So the
//! size is the one that makes the smallest run, by an estimate of what each would take.

use understudy_model::ExtentSet;

use crate::geometry::Geometry;

/// Sizes to choose from. A frozen image serves the 64 KiB neighbourhood of a dirty granule and no more.
const CHOICE: std::ops::RangeInclusive<u32> = 12..=16;

/// Longest level 1 table we choose, a quarter of what QEMU takes: it loads one for each run of a chain when it opens
/// it, in full, however few clusters the run has.
const L1_BYTES: u64 = 8 << 20;

/// What a data cluster costs beside its bytes: its line in the checksum table, its descriptor, its reference counts.
const ENTRY_COST: u64 = 64 + 8 + 4;

/// Bytes of a level 2 table that share a block of the file system, and so are written together.
const TABLE_BLOCK: u64 = 4096;

/// Per mille of a cluster that remain after compression, by cluster size from 4 KiB on. Measured on file system images
/// at zstd level 1; only their proportions matter.
const COMPRESSED: [u64; 5] = [500, 460, 425, 395, 375];

/// The cluster size for a run that carries `dirty`, as its base-2 logarithm.
pub fn choose_cluster_bits(dirty: &ExtentSet, virtual_size: u64) -> u32 {
    let fits = |bits: &u32| level1_bytes(virtual_size, *bits) <= L1_BYTES;
    // Equal costs, such as no costs at all, go to the larger clusters.
    CHOICE.rev().filter(fits).min_by_key(|bits| cost(dirty, *bits)).unwrap_or_else(|| smallest_possible(virtual_size))
}

/// For disks beyond all that is usual: whatever QEMU still opens.
fn smallest_possible(virtual_size: u64) -> u32 {
    let rounded = virtual_size.next_multiple_of(512).max(512);
    (*CHOICE.end()..=18).find(|bits| Geometry::new(rounded, *bits).is_ok()).unwrap_or(18)
}

fn level1_bytes(virtual_size: u64, bits: u32) -> u64 {
    // A level 2 table of 2^bits bytes maps 2^(bits - 3) clusters.
    virtual_size.div_ceil(1 << (2 * bits - 3)) * 8
}

/// Estimated bytes that the run takes.
fn cost(dirty: &ExtentSet, bits: u32) -> u64 {
    let size = 1u64 << bits;
    let clusters = touched(dirty, bits);
    let table_blocks = touched(dirty, bits + TABLE_BLOCK.ilog2() - 3);
    let ratio = COMPRESSED[(bits - CHOICE.start()) as usize];
    clusters.saturating_mul(size * ratio / 1000 + ENTRY_COST).saturating_add(table_blocks.saturating_mul(TABLE_BLOCK))
}

/// How many units of `2^bits` bytes hold a dirty byte.
fn touched(dirty: &ExtentSet, bits: u32) -> u64 {
    let (mut count, mut next) = (0, 0);
    for extent in dirty.iter() {
        let first = (extent.offset >> bits).max(next);
        let end = ((extent.end() - 1) >> bits) + 1;
        if end > first {
            count += end - first;
            next = end;
        }
    }
    count
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use understudy_model::Extent;

    fn scattered(step: u64, len: u64, count: u64) -> ExtentSet {
        (0..count).map(|n| Extent::new(n * step, len)).collect()
    }

    #[test]
    fn scattered_small_writes_get_small_clusters() {
        assert_eq!(choose_cluster_bits(&scattered(1 << 22, 4096, 500), 1 << 36), 12);
        assert_eq!(choose_cluster_bits(&scattered(1 << 17, 16384, 500), 1 << 36), 14);
    }

    #[test]
    fn long_stretches_and_nothing_get_large_clusters() {
        assert_eq!(choose_cluster_bits(&scattered(1 << 30, 1 << 24, 20), 1 << 40), 16);
        assert_eq!(choose_cluster_bits(&ExtentSet::new(), 1 << 30), 16);
    }

    #[test]
    fn every_disk_gets_a_size_that_can_be_built() {
        let few = scattered(1 << 30, 4096, 3);
        for size in [512, 1 << 20, 1 << 40, (1 << 41) + 512, 8 << 40, 64 << 40, 1 << 52, 1 << 55] {
            let bits = choose_cluster_bits(&few, size);
            assert!(Geometry::new(size, bits).is_ok(), "{size} bytes in clusters of 2^{bits}");
        }
        assert_eq!(choose_cluster_bits(&few, 1 << 41), 12, "2 TiB still takes the smallest");
    }

    proptest! {
        #[test]
        fn touched_units_agree_with_a_set(ranges in prop::collection::vec((0u64..5000, 1u64..300), 0..20)) {
            let dirty: ExtentSet = ranges.into_iter().map(|(o, l)| Extent::new(o, l)).collect();
            let units: std::collections::BTreeSet<u64> =
                dirty.iter().flat_map(|e| (e.offset..e.end()).map(|byte| byte >> 6)).collect();
            prop_assert_eq!(touched(&dirty, 6), units.len() as u64);
        }
    }
}
