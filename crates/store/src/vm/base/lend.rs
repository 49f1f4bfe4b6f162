//! Blocks that another replica of this store has at the same address: machines made from one template share most of
//! their system disks.
//!
//! Only a few bases are asked at a time, those that were of use lately, so that the question stays cheap however many
//! replicas there are. What is read there is hashed before anything is made of it.

use std::collections::VecDeque;
use std::sync::{Arc, Weak};

use understudy_model::{DiskId, DiskSpec};

use super::BaseMode;
use crate::files::Access;
use crate::vm::VmStore;
use crate::vm::sums::{BASE_BLOCK, BlockSum, SummedBase};

/// Bases that are asked at a time: two open files each.
const ASKED_MAX: usize = 4;
/// A base that was of no use in so many stretches of a disk gives its place to the next.
const PATIENCE: u32 = 8;

/// The bases that may be asked for blocks of one disk.
pub(super) struct Lenders {
    asked: Vec<Lender>,
    waiting: VecDeque<Source>,
}

/// A disk of another replica.
#[derive(Clone)]
struct Source {
    vm: Weak<VmStore>,
    disk: DiskId,
}

struct Lender {
    source: Source,
    base: SummedBase,
    /// Checksums of the stretch of the disk that is being looked at.
    sums: Option<Vec<BlockSum>>,
    hits: u32,
    misses: u32,
}

impl Lenders {
    /// Those that a mode names, likely ones first: a disk of the same size, then one of the same number.
    pub(super) fn find(vm: &VmStore, mode: &BaseMode, spec: &DiskSpec) -> Self {
        let ids = match mode {
            BaseMode::Fresh => &[][..],
            BaseMode::Compare { lenders } => lenders,
        };
        let mut found: Vec<(bool, bool, Source)> = Vec::new();
        for other in ids.iter().filter(|id| **id != vm.vm).filter_map(|id| vm.shared.neighbours.find(*id)) {
            for file in other.manifest().base.iter().flat_map(|base| &base.files) {
                let source = Source { vm: Arc::downgrade(&other), disk: file.disk };
                found.push((file.size != spec.size, file.disk != spec.id, source));
            }
        }
        found.sort_by_key(|(size, number, _)| (*size, *number));
        let mut lenders = Self { asked: Vec::new(), waiting: found.into_iter().map(|(.., source)| source).collect() };
        lenders.fill();
        lenders
    }

    fn fill(&mut self) {
        while self.asked.len() < ASKED_MAX
            && let Some(source) = self.waiting.pop_front()
        {
            self.asked.extend(source.open());
        }
    }

    /// A block of this hash from the stretch of `count` blocks at `offset`, if one of the bases has it.
    pub(super) fn borrow(&mut self, offset: u64, count: usize, address: u64, hash: &[u8; 32]) -> Option<&[u8]> {
        let wanted = BlockSum::Hash(*hash);
        let index = ((address - offset) / BASE_BLOCK) as usize;
        let found = self.asked.iter_mut().position(|lender| lender.has(offset, count, index, address, wanted))?;
        Some(self.asked[found].base.loaded_block())
    }

    /// The stretch is done: whoever was asked in vain for long makes room.
    pub(super) fn end_stretch(&mut self) {
        for lender in &mut self.asked {
            if lender.sums.take().is_none() {
                continue;
            }
            lender.misses = if lender.hits == 0 { lender.misses + 1 } else { 0 };
            lender.hits = 0;
        }
        if self.waiting.is_empty() {
            return;
        }
        let (stay, go): (Vec<_>, Vec<_>) = self.asked.drain(..).partition(|lender| lender.misses < PATIENCE);
        self.asked = stay;
        self.fill();
        self.waiting.extend(go.into_iter().map(|lender| lender.source));
    }
}

impl Source {
    fn open(self) -> Option<Lender> {
        let vm = self.vm.upgrade().filter(|vm| vm.check_going().is_ok())?;
        let base = vm.open_base(self.disk, Access::Read).ok()?;
        Some(Lender { source: self, base, sums: None, hits: 0, misses: 0 })
    }
}

impl Lender {
    /// Whether it has the block, which is then loaded. What cannot be read there is not had: its owner finds that out.
    fn has(&mut self, offset: u64, count: usize, index: usize, address: u64, wanted: BlockSum) -> bool {
        let Some(vm) = self.source.vm.upgrade().filter(|vm| vm.check_going().is_ok()) else { return false };
        // Whoever changes that base just now may wait for somebody who waits for us: never wait here.
        let Ok(_still) = vm.base_io.try_read() else { return false };
        let base = &self.base;
        let sums = self.sums.get_or_insert_with(|| base.sums(offset, count).unwrap_or_default());
        let has =
            sums.get(index) == Some(&wanted) && matches!(self.base.content(address), Ok(Some(sum)) if sum == wanted);
        self.hits += u32::from(has);
        has
    }
}
