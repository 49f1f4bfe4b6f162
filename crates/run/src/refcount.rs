//! Counts who touches each cluster of the file, in one pass over ascending clusters.

use crate::layout::Layout;
use crate::tables::{TableError, TableOut};

/// Fills refcount blocks in order; clusters that nobody names count zero.
pub(crate) struct RefcountBlocks<'a, O> {
    layout: &'a Layout,
    out: &'a mut O,
    block: Vec<u8>,
    number: u64,
}

impl<'a, O> RefcountBlocks<'a, O> {
    pub(crate) fn new(layout: &'a Layout, out: &'a mut O) -> Self {
        Self { layout, out, block: vec![0; layout.geometry.cluster_size() as usize], number: 0 }
    }

    /// Sets the count of a cluster beyond all that were set before.
    pub(crate) fn set<E: From<TableError>>(&mut self, cluster: u64, count: u32) -> Result<(), E>
    where
        O: TableOut<E>,
    {
        let count = u16::try_from(count).map_err(|_| TableError::SharedTooOften)?;
        let per_block = self.layout.geometry.cluster_size() / 2;
        while self.number < cluster / per_block {
            self.next_block()?;
        }
        let slot = (cluster % per_block) as usize * 2;
        self.block[slot..slot + 2].copy_from_slice(&count.to_be_bytes());
        Ok(())
    }

    /// Puts out what remains.
    pub(crate) fn finish<E: From<TableError>>(mut self) -> Result<(), E>
    where
        O: TableOut<E>,
    {
        while self.number < self.layout.blocks {
            self.next_block()?;
        }
        Ok(())
    }

    fn next_block<E: From<TableError>>(&mut self) -> Result<(), E>
    where
        O: TableOut<E>,
    {
        let offset = self.layout.blocks_offset + self.number * self.layout.geometry.cluster_size();
        self.out.put(offset, &self.block)?;
        self.block.fill(0);
        self.number += 1;
        Ok(())
    }
}
