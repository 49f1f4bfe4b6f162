//! The checksums of a raw base: one for each 64 KiB, beside it, so that a flipped bit in the base is found and never
//! served.
//!
//! ```text
//! 32 bytes for each 64 KiB of the disk, in order
//!   all zero  the block is all zero (a sparse base has a sparse table)
//!   all 0xff  not known: the block is being changed
//!   else      the hash of the block's bytes and address, the last block filled up with zeros
//! ```
//!
//! A block is changed in this order: its checksum becomes unknown, durably; the block is written, durably; its
//! checksum is set. So after any crash a known checksum is the block's.

use std::io;
use std::ops::Deref;

use understudy_model::ExtentSet;
use understudy_run::{BaseWrite, Below, ReadError, cluster_hash};

use super::VmStore;
use crate::files::{FileRef, punch, read_exact_at, set_len, write_all_at};

/// Bytes under one checksum, and the alignment of what an initial copy writes.
pub const BASE_BLOCK: u64 = 64 << 10;
const BLOCK: usize = BASE_BLOCK as usize;
const SUM: usize = 32;

/// What a disk answers when it cannot.
const EIO: i32 = 5;

const ZERO: [u8; SUM] = [0; SUM];
const UNKNOWN: [u8; SUM] = [0xff; SUM];

/// What is known of a block of a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BlockSum {
    /// Nothing.
    Unknown,
    /// It is all zero.
    Zero,
    /// Its bytes, filled up with zeros to [`BASE_BLOCK`], and its address hash to this
    /// ([`understudy_run::cluster_hash`]).
    Hash([u8; SUM]),
}

impl BlockSum {
    fn decode(bytes: [u8; SUM]) -> Self {
        match bytes {
            ZERO => BlockSum::Zero,
            UNKNOWN => BlockSum::Unknown,
            hash => BlockSum::Hash(hash),
        }
    }

    fn encode(self) -> [u8; SUM] {
        match self {
            BlockSum::Zero => ZERO,
            BlockSum::Unknown => UNKNOWN,
            BlockSum::Hash(hash) => hash,
        }
    }

    /// The checksum of a block's bytes.
    pub fn of(address: u64, block: &[u8]) -> Self {
        if is_zero(block) { BlockSum::Zero } else { BlockSum::Hash(cluster_hash(address, block).0) }
    }
}

/// Comparing with zeros is done by the machine's fastest means, also in debug builds; asking each byte is not.
pub(crate) fn is_zero(bytes: &[u8]) -> bool {
    static ZEROS: [u8; 4096] = [0; 4096];
    bytes.chunks(ZEROS.len()).all(|piece| *piece == ZEROS[..piece.len()])
}

/// A raw base with its checksums.
pub(crate) struct SummedBase {
    pub(crate) data: FileRef,
    pub(crate) sums: FileRef,
    block: Vec<u8>,
    /// Address of the block in `block`, checked.
    loaded: Option<u64>,
}

/// A block whose bytes do not have its checksum.
#[derive(Debug, thiserror::Error)]
#[error("the block at {address} does not have its checksum")]
pub(crate) struct BlockDamaged {
    pub(crate) address: u64,
}

impl SummedBase {
    pub(crate) fn new(data: FileRef, sums: FileRef) -> Self {
        Self { data, sums, block: vec![0; BLOCK], loaded: None }
    }

    /// Makes the table long enough for a disk of this size.
    pub(crate) fn size_table(sums: &FileRef, disk_size: u64) -> io::Result<()> {
        let len = disk_size.div_ceil(BASE_BLOCK) * SUM as u64;
        if sums.len()? < len { set_len(&**sums, len) } else { Ok(()) }
    }

    pub(crate) fn sum(&self, address: u64) -> io::Result<BlockSum> {
        let mut bytes = [0; SUM];
        match read_exact_at(&*self.sums, slot(address), &mut bytes) {
            // The disk has grown and nothing was ever written there.
            Err(err) if err.kind() == io::ErrorKind::UnexpectedEof => Ok(BlockSum::Zero),
            other => other.map(|()| BlockSum::decode(bytes)),
        }
    }

    /// The checksums of blocks in a row, read at once.
    pub(crate) fn sums(&self, address: u64, count: usize) -> io::Result<Vec<BlockSum>> {
        let (offset, mut bytes) = (slot(address), vec![0; count * SUM]);
        // Beyond its end the table is as good as zero: the disk has grown and nothing was ever written there.
        let inside = self.sums.len()?.saturating_sub(offset).min(bytes.len() as u64) as usize;
        read_exact_at(&*self.sums, offset, &mut bytes[..inside])?;
        Ok(bytes.as_chunks().0.iter().map(|sum| BlockSum::decode(*sum)).collect())
    }

    fn set_sum(&self, address: u64, sum: BlockSum) -> io::Result<()> {
        write_all_at(&*self.sums, slot(address), &sum.encode())
    }

    /// Reads a block into `self.block`, filled up with zeros, whatever its checksum.
    fn load(&mut self, address: u64) -> io::Result<()> {
        self.loaded = None;
        let inside = self.data.len()?.saturating_sub(address).min(BASE_BLOCK) as usize;
        self.block[inside..].fill(0);
        read_exact_at(&*self.data, address, &mut self.block[..inside])
    }

    /// Reads a block and holds it against its checksum; whether that was known.
    pub(crate) fn check(&mut self, address: u64) -> io::Result<Result<bool, BlockDamaged>> {
        let sum = self.sum(address)?;
        self.load(address)?;
        if sum == BlockSum::Unknown {
            return Ok(Ok(false));
        }
        let right = sum == BlockSum::of(address, &self.block);
        self.loaded = right.then_some(address);
        Ok(if right { Ok(true) } else { Err(BlockDamaged { address }) })
    }

    /// Writes whole blocks of an initial copy with their checksums. Nothing rests on either before both are synced.
    pub(crate) fn write_initial(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.loaded = None;
        for (i, piece) in bytes.chunks(BLOCK).enumerate() {
            let address = offset + (i * BLOCK) as u64;
            self.block[..piece.len()].copy_from_slice(piece);
            self.block[piece.len()..].fill(0);
            let sum = BlockSum::of(address, &self.block);
            match sum {
                BlockSum::Zero => punch(&*self.data, address, piece.len() as u64)?,
                _ => write_all_at(&*self.data, address, piece)?,
            }
            self.set_sum(address, sum)?;
        }
        Ok(())
    }

    /// Likewise for blocks of zeros.
    pub(crate) fn zero_initial(&mut self, offset: u64, len: u64) -> io::Result<()> {
        self.loaded = None;
        punch(&*self.data, offset, len)?;
        punch(&*self.sums, slot(offset), len.div_ceil(BASE_BLOCK) * SUM as u64)
    }

    /// What a block holds, whatever its checksum says; `None` if the disk cannot read it.
    pub(crate) fn content(&mut self, address: u64) -> io::Result<Option<BlockSum>> {
        match self.load(address) {
            Err(err) if err.raw_os_error() == Some(EIO) => Ok(None),
            other => other.map(|()| Some(BlockSum::of(address, &self.block))),
        }
    }

    /// The block that was looked at last.
    pub(crate) fn loaded_block(&self) -> &[u8] {
        &self.block
    }

    /// Sets checksums of blocks in a row, but for those of which none is given. Writes only what changes, so that a
    /// sparse table stays sparse.
    pub(crate) fn set_sums(&self, address: u64, sums: &[Option<BlockSum>]) -> io::Result<()> {
        let old = self.sums(address, sums.len())?;
        let changed: Vec<_> = old.iter().zip(sums).map(|(old, new)| new.filter(|new| new != old)).collect();
        let mut index = 0;
        for group in changed.chunk_by(|a, b| a.is_some() == b.is_some()) {
            let at = slot(address) + (index * SUM) as u64;
            index += group.len();
            let bytes: Vec<u8> = group.iter().flatten().flat_map(|sum| sum.encode()).collect();
            write_all_at(&*self.sums, at, &bytes)?;
        }
        Ok(())
    }

    /// Before blocks are changed: checks those that are not wholly overwritten, then makes their checksums unknown.
    pub(crate) fn expose(&mut self, changed: &ExtentSet) -> io::Result<Result<(), BlockDamaged>> {
        for block in blocks(changed) {
            if !block.whole
                && let Err(damaged) = self.check(block.address)?
            {
                return Ok(Err(damaged));
            }
        }
        self.loaded = None;
        for block in blocks(changed) {
            self.set_sum(block.address, BlockSum::Unknown)?;
        }
        Ok(Ok(()))
    }

    /// After blocks were changed and synced: sets their checksums.
    pub(crate) fn settle(&mut self, changed: &ExtentSet) -> io::Result<()> {
        for block in blocks(changed) {
            self.load(block.address)?;
            self.set_sum(block.address, BlockSum::of(block.address, &self.block))?;
        }
        Ok(())
    }
}

fn slot(address: u64) -> u64 {
    address / BASE_BLOCK * SUM as u64
}

struct Touched {
    address: u64,
    /// Nothing of the block's old content stays.
    whole: bool,
}

/// The blocks that a set of extents touches, each once, in order.
fn blocks(changed: &ExtentSet) -> impl Iterator<Item = Touched> + '_ {
    let mut next = 0;
    changed.iter().flat_map(move |extent| {
        let first = (extent.offset / BASE_BLOCK * BASE_BLOCK).max(next);
        let end = extent.end().next_multiple_of(BASE_BLOCK);
        next = end.max(next);
        (first..end).step_by(BLOCK).map(move |address| Touched {
            address,
            whole: extent.offset <= address && extent.end() >= address + BASE_BLOCK,
        })
    })
}

/// What lies below the lowest run of a disk: the base, each block checked before any byte of it is used.
pub(crate) struct CheckedBase<V> {
    pub(crate) vm: V,
    pub(crate) base: SummedBase,
}

impl<V: Deref<Target = VmStore>> Below for CheckedBase<V> {
    fn read_below(&mut self, offset: u64, out: &mut [u8]) -> Result<(), ReadError> {
        let mut done = 0;
        while done < out.len() {
            let at = offset + done as u64;
            let address = at / BASE_BLOCK * BASE_BLOCK;
            let within = (at - address) as usize;
            let n = (out.len() - done).min(BLOCK - within);
            self.read_block(address, within, &mut out[done..done + n])?;
            done += n;
        }
        Ok(())
    }
}

impl<V: Deref<Target = VmStore>> CheckedBase<V> {
    fn read_block(&mut self, address: u64, within: usize, out: &mut [u8]) -> Result<(), ReadError> {
        // Checksum and block are looked at together, while nobody changes the one or the other.
        let _still = self.vm.base_io.read().expect("nothing panics while a base is changed");
        match self.base.sum(address).map_err(ReadError::Io)? {
            BlockSum::Zero => {
                out.fill(0);
                return Ok(());
            }
            BlockSum::Hash(_) if self.base.loaded == Some(address) => {}
            _ => {
                let checked = self.base.check(address).map_err(ReadError::Io)?;
                checked.map_err(|err| ReadError::Io(io::Error::new(io::ErrorKind::InvalidData, err)))?;
            }
        }
        out.copy_from_slice(&self.base.block[within..within + out.len()]);
        Ok(())
    }
}

/// The damaged block that an error of a [`CheckedBase`] tells of.
pub(crate) fn damaged_block(err: &ReadError) -> Option<&BlockDamaged> {
    match err {
        ReadError::Io(err) => err.get_ref()?.downcast_ref(),
        _ => None,
    }
}

/// A base while a run is written into it.
pub(crate) struct OpenBase<'a> {
    pub(crate) vm: &'a VmStore,
    pub(crate) data: FileRef,
}

impl BaseWrite for OpenBase<'_> {
    fn grow_to(&mut self, len: u64) -> io::Result<()> {
        if self.data.len()? < len { set_len(&*self.data, len) } else { Ok(()) }
    }

    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let _alone = self.vm.base_io.write().expect("nothing panics while a base is changed");
        write_all_at(&*self.data, offset, bytes)
    }

    fn write_zeros(&mut self, offset: u64, len: u64) -> io::Result<()> {
        let _alone = self.vm.base_io.write().expect("nothing panics while a base is changed");
        punch(&*self.data, offset, len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::{Files, MemFiles};
    use understudy_model::Extent;

    fn base(size: u64) -> (MemFiles, SummedBase) {
        let files = MemFiles::new();
        let (data, sums) = (files.create("data").unwrap(), files.create("sums").unwrap());
        data.set_len(size).unwrap();
        SummedBase::size_table(&sums, size).unwrap();
        (files, SummedBase::new(data, sums))
    }

    #[test]
    fn a_sparse_base_is_whole_and_its_table_takes_no_space() {
        let (files, mut base) = base(1 << 30);
        for address in [0, BASE_BLOCK, (1 << 30) - BASE_BLOCK] {
            assert!(base.check(address).unwrap().unwrap());
        }
        assert_eq!(files.used(), 0);
    }

    #[test]
    fn a_flipped_bit_is_found_and_the_last_short_block_counts() {
        let (files, mut base) = base(BASE_BLOCK + 512);
        base.write_initial(0, &vec![7; BLOCK + 512]).unwrap();
        assert!(base.check(0).unwrap().unwrap() && base.check(BASE_BLOCK).unwrap().unwrap());
        files.damage("data", BASE_BLOCK + 100, |b| b[0] ^= 1, 1).unwrap();
        assert_eq!(base.check(BASE_BLOCK).unwrap().unwrap_err().address, BASE_BLOCK);
        assert!(base.check(0).unwrap().is_ok());
        files.damage("sums", 5, |b| b[0] ^= 1, 1).unwrap();
        assert!(base.check(0).unwrap().is_err());
    }

    #[test]
    fn a_bit_in_what_should_be_zero_is_found() {
        let (files, mut base) = base(2 * BASE_BLOCK);
        base.write_initial(0, &vec![7; 2 * BLOCK]).unwrap();
        base.zero_initial(BASE_BLOCK, BASE_BLOCK).unwrap();
        assert!(base.check(BASE_BLOCK).unwrap().unwrap());
        files.damage("data", BASE_BLOCK + 9, |b| b[0] ^= 1, 1).unwrap();
        assert!(base.check(BASE_BLOCK).unwrap().is_err());
    }

    #[test]
    fn changed_blocks_are_unknown_until_they_are_settled() {
        let (_files, mut base) = base(4 * BASE_BLOCK);
        base.write_initial(0, &vec![7; 4 * BLOCK]).unwrap();
        let changed: ExtentSet = [Extent::new(100, 50), Extent::new(BASE_BLOCK, 2 * BASE_BLOCK)].into_iter().collect();
        base.expose(&changed).unwrap().unwrap();
        write_all_at(&*base.data, 100, &[8; 50]).unwrap();
        assert!(!base.check(0).unwrap().unwrap());
        assert!(base.check(3 * BASE_BLOCK).unwrap().unwrap());
        base.settle(&changed).unwrap();
        assert!((0..4).all(|i| base.check(i * BASE_BLOCK).unwrap().unwrap()));
    }

    #[test]
    fn damage_is_never_laundered_by_a_change_beside_it() {
        let (files, mut base) = base(BASE_BLOCK);
        base.write_initial(0, &vec![7; BLOCK]).unwrap();
        files.damage("data", 60_000, |b| b[0] ^= 1, 1).unwrap();
        let changed: ExtentSet = [Extent::new(0, 4096)].into_iter().collect();
        assert!(base.expose(&changed).unwrap().is_err());
    }

    #[test]
    fn each_touched_block_comes_once() {
        let changed: ExtentSet =
            [Extent::new(10, 10), Extent::new(100, BASE_BLOCK), Extent::new(BASE_BLOCK + 200, 5)].into_iter().collect();
        let touched: Vec<_> = blocks(&changed).map(|b| (b.address, b.whole)).collect();
        assert_eq!(touched, [(0, false), (BASE_BLOCK, false)]);
    }
}
