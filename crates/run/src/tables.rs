//! The qcow2 tables of a run: level 2, level 1, refcount blocks, refcount table.
//!
//! They follow from the entries alone. The builder puts them out to a file; [`crate::verify`] puts them out
//! again and compares, so whatever is wrong in a table is found without a second description of what is right.

use crate::codec::Stored;
use crate::entry::{Entry, EntryContent};
use crate::layout::Layout;
use crate::refcount::RefcountBlocks;

/// Exactly one reference: the cluster may be written in place, if anybody were to write.
const COPIED: u64 = 1 << 63;
/// The cluster's bytes are a compressed frame.
const COMPRESSED: u64 = 1 << 62;
/// The cluster reads as zero and has no bytes.
const ZERO: u64 = 1;
/// Unit of a compressed cluster's length.
const SECTOR_BITS: u32 = 9;
/// Long tables are put out in pieces of this many bytes; every cluster size is a multiple or a divisor of it.
const PIECE: u64 = 4096;

/// Where table bytes go. Pieces come in ascending order and cover everything from the first level 2 table to the
/// trailer.
pub(crate) trait TableOut<E> {
    /// Takes the bytes that belong at `offset`.
    fn put(&mut self, offset: u64, bytes: &[u8]) -> Result<(), E>;
}

/// Entries that can be gone through several times.
pub(crate) trait EntrySeq<E> {
    /// Calls `each` for every entry in ascending order.
    fn visit(&mut self, each: &mut dyn FnMut(&Entry) -> Result<(), E>) -> Result<(), E>;
}

/// Entries that no layout of this shape can hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TableError {
    /// There are more or fewer level 2 tables than the layout has room for.
    Level2Count,
    /// More than 65535 compressed clusters touch one cluster of the file.
    SharedTooOften,
}

/// Puts out all tables.
pub(crate) fn emit<E: From<TableError>>(
    layout: &Layout,
    entries: &mut dyn EntrySeq<E>,
    out: &mut impl TableOut<E>,
) -> Result<(), E> {
    let touched = emit_level2(layout, entries, out)?;
    emit_level1(layout, &touched, out)?;
    emit_refcounts(layout, entries, out)?;
    emit_pointers(layout.table_offset, layout.table_clusters * layout.geometry.cluster_size(), out, {
        let first = layout.blocks_offset;
        let size = layout.geometry.cluster_size();
        (0..layout.blocks).map(move |n| (n, first + n * size))
    })
}

/// The level 2 descriptor of a data cluster.
pub(crate) fn descriptor(cluster_bits: u32, stored: Stored, at: u64, len: u32) -> u64 {
    match stored {
        Stored::Plain => COPIED | at,
        Stored::Compressed => {
            let offset_bits = 62 - (cluster_bits - 8);
            let additional = ((at + u64::from(len) - 1) >> SECTOR_BITS) - (at >> SECTOR_BITS);
            COMPRESSED | (additional << offset_bits) | at
        }
    }
}

/// Which entries of the level 1 table are in use: ascending ranges of (first, count).
#[derive(Default)]
struct Touched {
    ranges: Vec<(u64, u64)>,
    count: u64,
}

impl Touched {
    fn add(&mut self, index: u64) {
        self.count += 1;
        match self.ranges.last_mut() {
            Some((first, count)) if *first + *count == index => *count += 1,
            _ => self.ranges.push((index, 1)),
        }
    }

    fn iter(&self) -> impl Iterator<Item = u64> + '_ {
        self.ranges.iter().flat_map(|(first, count)| *first..*first + *count)
    }
}

/// Counts level 2 tables without building them: adjacent clusters mostly share one.
#[derive(Default)]
pub(crate) struct Level2Counter {
    /// First table index not yet counted.
    next: u64,
    pub(crate) tables: u64,
}

impl Level2Counter {
    pub(crate) fn add(&mut self, first_cluster: u64, clusters: u64, l2_entries: u64) {
        let first = (first_cluster / l2_entries).max(self.next);
        let end = (first_cluster + clusters).div_ceil(l2_entries);
        if end > first {
            self.tables += end - first;
            self.next = end;
        }
    }
}

/// The level 2 table being filled.
struct Level2<'a, O> {
    layout: &'a Layout,
    out: &'a mut O,
    table: Vec<u8>,
    index: Option<u64>,
    touched: Touched,
}

impl<O> Level2<'_, O> {
    fn add<E: From<TableError>>(&mut self, entry: &Entry) -> Result<(), E>
    where
        O: TableOut<E>,
    {
        let geometry = self.layout.geometry;
        let mut cluster = entry.address >> geometry.cluster_bits();
        let (mut left, value) = match entry.content {
            EntryContent::Zeros { count } => (count, ZERO),
            EntryContent::Data { stored, at, len, .. } => (1, descriptor(geometry.cluster_bits(), stored, at, len)),
        };
        while left > 0 {
            self.turn_to(cluster / geometry.l2_entries())?;
            let slot = cluster % geometry.l2_entries();
            let here = left.min(geometry.l2_entries() - slot);
            let bytes = &mut self.table[slot as usize * 8..(slot + here) as usize * 8];
            bytes.as_chunks_mut().0.fill(value.to_be_bytes());
            cluster += here;
            left -= here;
        }
        Ok(())
    }

    fn turn_to<E: From<TableError>>(&mut self, index: u64) -> Result<(), E>
    where
        O: TableOut<E>,
    {
        if self.index != Some(index) {
            self.flush()?;
            self.index = Some(index);
        }
        Ok(())
    }

    fn flush<E: From<TableError>>(&mut self) -> Result<(), E>
    where
        O: TableOut<E>,
    {
        let Some(index) = self.index.take() else { return Ok(()) };
        if self.touched.count == self.layout.l2_tables {
            return Err(TableError::Level2Count.into());
        }
        let offset = self.layout.l2_offset + self.touched.count * self.layout.geometry.cluster_size();
        self.out.put(offset, &self.table)?;
        self.table.fill(0);
        self.touched.add(index);
        Ok(())
    }
}

fn emit_level2<E: From<TableError>>(
    layout: &Layout,
    entries: &mut dyn EntrySeq<E>,
    out: &mut impl TableOut<E>,
) -> Result<Touched, E> {
    let table = vec![0; layout.geometry.cluster_size() as usize];
    let mut level2 = Level2 { layout, out, table, index: None, touched: Touched::default() };
    entries.visit(&mut |entry| level2.add(entry))?;
    level2.flush()?;
    if level2.touched.count != layout.l2_tables {
        return Err(TableError::Level2Count.into());
    }
    Ok(level2.touched)
}

fn emit_level1<E: From<TableError>>(layout: &Layout, touched: &Touched, out: &mut impl TableOut<E>) -> Result<(), E> {
    let size = layout.geometry.cluster_size();
    let first = layout.l2_offset;
    let pointers = touched.iter().zip(0..).map(|(index, n)| (index, COPIED | (first + n * size)));
    emit_pointers(layout.l1_offset, layout.blocks_offset - layout.l1_offset, out, pointers)
}

/// Puts out a table of `len` bytes with the given values, ascending by index, and zeros elsewhere.
fn emit_pointers<E>(
    offset: u64,
    len: u64,
    out: &mut impl TableOut<E>,
    values: impl Iterator<Item = (u64, u64)>,
) -> Result<(), E> {
    let mut values = values.peekable();
    for start in (0..len).step_by(PIECE as usize) {
        let mut piece = [0; PIECE as usize];
        while let Some((index, value)) = values.next_if(|(index, _)| index * 8 < start + PIECE) {
            let at = (index * 8 - start) as usize;
            piece[at..at + 8].copy_from_slice(&value.to_be_bytes());
        }
        out.put(offset + start, &piece)?;
    }
    Ok(())
}

fn emit_refcounts<E: From<TableError>>(
    layout: &Layout,
    entries: &mut dyn EntrySeq<E>,
    out: &mut impl TableOut<E>,
) -> Result<(), E> {
    let bits = layout.geometry.cluster_bits();
    let mut blocks = RefcountBlocks::new(layout, out);
    // The header's cluster, then the data's as they are touched: a compressed cluster touches one or two.
    let (mut cluster, mut count) = (0, 1);
    entries.visit(&mut |entry| {
        let EntryContent::Data { at, len, .. } = entry.content else { return Ok(()) };
        for touched in at >> bits..=(at + u64::from(len) - 1) >> bits {
            if touched != cluster {
                blocks.set(cluster, count)?;
                (cluster, count) = (touched, 0);
            }
            count += 1;
        }
        Ok(())
    })?;
    blocks.set(cluster, count)?;
    for table_cluster in layout.l2_offset >> bits..layout.trailer_offset >> bits {
        blocks.set(table_cluster, 1)?;
    }
    blocks.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn compressed_descriptors_count_additional_sectors() {
        // At 64 KiB clusters the offset has 54 bits.
        assert_eq!(descriptor(16, Stored::Compressed, 0x10000, 512), COMPRESSED | 0x10000);
        assert_eq!(descriptor(16, Stored::Compressed, 0x10001, 512), COMPRESSED | 1 << 54 | 0x10001);
        assert_eq!(descriptor(12, Stored::Compressed, 0x11ff, 2), COMPRESSED | 1 << 58 | 0x11ff);
        assert_eq!(descriptor(12, Stored::Plain, 0x2000, 4096), COPIED | 0x2000);
    }

    #[test]
    fn level2_tables_are_counted_once() {
        let mut counter = Level2Counter::default();
        counter.add(0, 1, 512);
        counter.add(5, 1, 512);
        counter.add(511, 2, 512);
        counter.add(600, 1, 512);
        assert_eq!(counter.tables, 2);
        counter.add(5000, 5000, 512);
        assert_eq!(counter.tables, 2 + 11);
    }
}
