//! Where everything lies in a run: computed, not stored, so that no offset in a file has to be believed.
//!
//! ```text
//! header cluster | data … | level 2 tables | level 1 table | refcount blocks | refcount table | trailer
//! ```
//!
//! The geometry, the end of the data and the number of level 2 tables determine all the rest. The builder arrives at
//! those three by building, the reader finds them in the footer.

use crate::geometry::Geometry;

/// Bytes of data a run may hold: offsets then fit every field of the format at every cluster size.
const DATA_END_MAX: u64 = 1 << 50;

/// QEMU refuses images whose refcount table is longer (its `QCOW_MAX_REFTABLE_SIZE`).
const REFCOUNT_TABLE_BYTES_MAX: u64 = 8 << 20;

/// Reference counts are of 16 bits.
const REFCOUNT_BYTES: u64 = 2;

/// Offsets of all structures of one run, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Layout {
    pub(crate) geometry: Geometry,
    /// End of the last cluster's bytes.
    pub(crate) data_end: u64,
    pub(crate) l2_offset: u64,
    pub(crate) l2_tables: u64,
    pub(crate) l1_offset: u64,
    pub(crate) blocks_offset: u64,
    pub(crate) blocks: u64,
    pub(crate) table_offset: u64,
    pub(crate) table_clusters: u64,
    /// End of what is reference counted.
    pub(crate) trailer_offset: u64,
}

impl Layout {
    /// The layout of a run; `None` if no run can be like that.
    pub(crate) fn new(geometry: Geometry, data_end: u64, l2_tables: u64) -> Option<Self> {
        let size = geometry.cluster_size();
        if data_end < size || data_end > DATA_END_MAX || l2_tables > geometry.l1_entries() {
            return None;
        }
        let l2_offset = geometry.round_up(data_end);
        let l1_offset = l2_offset + l2_tables * size;
        let blocks_offset = l1_offset + geometry.round_up(geometry.l1_entries() * 8);
        let (blocks, table_clusters) = refcount_clusters(blocks_offset / size, size);
        if table_clusters * size > REFCOUNT_TABLE_BYTES_MAX {
            return None;
        }
        let table_offset = blocks_offset + blocks * size;
        let trailer_offset = table_offset + table_clusters * size;
        Some(Self {
            geometry,
            data_end,
            l2_offset,
            l2_tables,
            l1_offset,
            blocks_offset,
            blocks,
            table_offset,
            table_clusters,
            trailer_offset,
        })
    }
}

/// How many clusters of refcount blocks and of refcount table it takes to count `others` clusters and themselves.
fn refcount_clusters(others: u64, cluster_size: u64) -> (u64, u64) {
    let (mut blocks, mut table) = (1, 1);
    loop {
        let need_blocks = (others + blocks + table).div_ceil(cluster_size / REFCOUNT_BYTES);
        let need_table = (need_blocks * 8).div_ceil(cluster_size);
        if (need_blocks, need_table) == (blocks, table) {
            return (blocks, table);
        }
        // Neither ever shrinks, so this ends.
        (blocks, table) = (need_blocks.max(blocks), need_table.max(table));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn refcounts_cover_everything_and_no_block_is_idle(others in 1u64..1 << 34, bits in 12u32..=18) {
            let size = 1 << bits;
            let (blocks, table) = refcount_clusters(others, size);
            let counted = others + blocks + table;
            prop_assert!(blocks * (size / 2) >= counted);
            prop_assert!(table * size / 8 >= blocks);
            prop_assert!((blocks - 1) * (size / 2) < counted);
        }

        #[test]
        fn structures_follow_each_other_in_whole_clusters(
            bits in 12u32..=18, sectors in 1u64..1 << 31, data in 0u64..1 << 40, tables in 0u64..1 << 22
        ) {
            let Ok(geometry) = Geometry::new(sectors * 512, bits) else { return Ok(()) };
            let Some(l) = Layout::new(geometry, data, tables) else { return Ok(()) };
            let size = geometry.cluster_size();
            let edges = [size, l.l2_offset, l.l1_offset, l.blocks_offset, l.table_offset, l.trailer_offset];
            prop_assert!(edges.is_sorted());
            prop_assert!(edges.iter().all(|edge| edge % size == 0));
            prop_assert!(l.l2_offset - l.data_end < size);
        }
    }
}
