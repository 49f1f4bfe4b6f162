//! Taking what is here already: the source offers a hash of each block, and what is equal need not travel.
//!
//! Nothing is known of what lies in staging, so everything offered is read and hashed; holes are zero without reading. A
//! block that the source has zero becomes zero here; one that another replica has is copied from there and hashed
//! before it is written. The rest is wanted, and comes as data.

use std::collections::VecDeque;
use std::io;
use std::ops::Range;

use understudy_model::{DiskId, Extent};

use super::{BaseDisk, BaseError, BaseReceiver, PIECES_MAX};
use crate::checkpoints::CrashPoint;
use crate::files::{FileRef, data_ranges};
use crate::vm::compare::{BlockClaim, CLAIMS_MAX};
use crate::vm::sums::{BASE_BLOCK, BlockSum};

const BLOCK: usize = BASE_BLOCK as usize;

/// What becomes of one offered block.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// It was durable before.
    Durable,
    /// It is what the source has.
    Equal(BlockSum),
    /// It was made what the source has.
    Made,
    Wanted,
}

impl BaseReceiver {
    /// Holds staged blocks against what the source claims of its own: one answer for each from the one at `offset` on,
    /// whether it is wanted. Wanted blocks come through [`BaseReceiver::write`]; all others count as written.
    pub fn offer(&self, disk: DiskId, offset: u64, claims: &[BlockClaim]) -> Result<Vec<bool>, BaseError> {
        if !self.compares {
            return Err(BaseError::NotComparing);
        }
        let mut entry = self.admit(disk)?;
        let _still = self.still()?;
        check_claims(offset, claims.len(), entry.size)?;
        self.vm.reached(CrashPoint::SeedMidCompare)?;
        entry.begun = true;
        let fates = entry.judge(offset, claims).map_err(|err| self.failed(disk, err))?;
        self.settle(disk, &mut entry, offset, &fates)?;
        Ok(fates.iter().map(|fate| *fate == Fate::Wanted).collect())
    }

    /// Records checksums of equal blocks, and counts all that need not come.
    fn settle(&self, disk: DiskId, entry: &mut BaseDisk, offset: u64, fates: &[Fate]) -> Result<(), BaseError> {
        let mut index = 0;
        for group in fates.chunk_by(|a, b| is_settled(a) == is_settled(b)) {
            let (from, len) = (offset + index as u64 * BASE_BLOCK, group.len() as u64 * BASE_BLOCK);
            index += group.len();
            if !is_settled(&group[0]) {
                continue;
            }
            let known = |fate: &Fate| if let Fate::Equal(sum) = fate { Some(*sum) } else { None };
            let sums: Vec<_> = group.iter().map(known).collect();
            entry.base.set_sums(from, &sums).map_err(|err| self.failed(disk, err))?;
            let len = len.min(entry.size - from);
            entry.account(Extent::new(from, len))?;
        }
        Ok(())
    }
}

fn is_settled(fate: &Fate) -> bool {
    matches!(fate, Fate::Equal(_) | Fate::Made)
}

fn check_claims(offset: u64, count: usize, size: u64) -> Result<(), BaseError> {
    let end = (count as u64).checked_mul(BASE_BLOCK).and_then(|len| offset.checked_add(len));
    let inside = end.is_some_and(|end| end <= size.next_multiple_of(BASE_BLOCK));
    let whole = offset.is_multiple_of(BASE_BLOCK) && count <= CLAIMS_MAX;
    if inside && whole { Ok(()) } else { Err(BaseError::Claims { offset, count }) }
}

impl BaseDisk {
    fn judge(&mut self, offset: u64, claims: &[BlockClaim]) -> io::Result<Vec<Fate>> {
        let end = offset + claims.len() as u64 * BASE_BLOCK;
        let mut holes = Holes::find(&self.base.data, offset, end)?;
        let mut fates = Vec::with_capacity(claims.len());
        for (address, claim) in (offset..).step_by(BLOCK).zip(claims) {
            let fate = self.judge_block(address, *claim, &mut holes)?;
            let borrowed = match claim {
                BlockClaim::Hash(hash) if fate == Fate::Wanted => self.borrow(offset, claims.len(), address, hash)?,
                _ => false,
            };
            fates.push(if borrowed { Fate::Made } else { fate });
        }
        self.lenders.end_stretch();
        Ok(fates)
    }

    fn borrow(&mut self, offset: u64, count: usize, address: u64, hash: &[u8; 32]) -> io::Result<bool> {
        let Some(block) = self.lenders.borrow(offset, count, address, hash) else { return Ok(false) };
        let inside = (self.size - address).min(BASE_BLOCK) as usize;
        self.base.write_initial(address, &block[..inside])?;
        Ok(true)
    }

    fn judge_block(&mut self, address: u64, claim: BlockClaim, holes: &mut Holes) -> io::Result<Fate> {
        if address + BASE_BLOCK <= self.durable || self.size <= self.durable {
            return Ok(Fate::Durable);
        }
        let staged = match holes.is_hole(address) {
            true => Some(BlockSum::Zero),
            false => self.base.content(address)?,
        };
        if staged == Some(claim.sum()) {
            return Ok(Fate::Equal(claim.sum()));
        }
        if claim == BlockClaim::Zero {
            self.base.zero_initial(address, (self.size - address).min(BASE_BLOCK))?;
            return Ok(Fate::Made);
        }
        Ok(Fate::Wanted)
    }
}

/// Where a stretch of a file has no bytes.
struct Holes {
    /// In order.
    data: VecDeque<Range<u64>>,
}

impl Holes {
    fn find(file: &FileRef, from: u64, to: u64) -> io::Result<Self> {
        let mut data = VecDeque::new();
        for range in data_ranges(&**file, from) {
            let range = range?;
            if range.start >= to {
                break;
            }
            if data.len() >= PIECES_MAX {
                data.push_back(range.start..to);
                break;
            }
            data.push_back(range);
        }
        Ok(Self { data })
    }

    /// Whether the block at an address, which ascends from call to call, is a hole.
    fn is_hole(&mut self, address: u64) -> bool {
        while self.data.front().is_some_and(|range| range.end <= address) {
            self.data.pop_front();
        }
        self.data.front().is_none_or(|range| range.start >= address + BASE_BLOCK)
    }
}
