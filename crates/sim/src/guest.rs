//! The guest: keeps writing to its disks, and the world keeps a true copy of what it wrote.

use understudy_hypervisor::fake::FakeVm;
use understudy_model::{DiskId, Extent, Millis};

use crate::chance::Chance;
use crate::image::GRANULE;
use crate::judge::Truth;

/// A guest's habits, and where it is in them.
#[derive(Debug)]
pub struct Guest {
    chance: Chance,
    disks: Vec<(DiskId, u64)>,
    /// Granules it comes back to again and again.
    hot: Vec<(DiskId, u64)>,
    pause: u64,
    writes: u64,
}

impl Guest {
    /// A guest with these disks.
    pub fn new(disks: Vec<(DiskId, u64)>, pause: u64, mut chance: Chance) -> Self {
        let hot = (0..4)
            .map(|_| {
                let (disk, size) = *chance.pick(&disks);
                (disk, chance.below(size.div_ceil(GRANULE as u64)))
            })
            .collect();
        Self { chance, disks, hot, pause, writes: 0 }
    }

    /// Writes something, and says when it wants to write again.
    pub fn act(&mut self, vm: &mut FakeVm, truth: &mut Truth) -> Millis {
        let count = match self.chance.below(10) {
            0 => self.chance.between(8, 40),
            1..=3 => self.chance.between(2, 8),
            _ => 1,
        };
        for _ in 0..count {
            self.write_one(vm, truth);
        }
        let long = if self.chance.percent(8) { 10 } else { 1 };
        Millis(1 + self.chance.below(self.pause * long))
    }

    fn write_one(&mut self, vm: &mut FakeVm, truth: &mut Truth) {
        self.writes += 1;
        let (disk, granule) = if self.chance.percent(40) { *self.chance.pick(&self.hot) } else { self.anywhere() };
        let size = self.disks.iter().find(|(d, _)| *d == disk).map_or(0, |(_, size)| *size);
        let extent = self.extent(granule * GRANULE as u64, size);
        if self.chance.percent(15) {
            // Zeros, whether written or discarded: both must read as zeros.
            truth.zero(disk, extent);
            vm.discard(usize::from(disk.0), extent);
            return;
        }
        let bytes = self.content(disk, extent);
        truth.write(disk, extent.offset, &bytes);
        vm.write(usize::from(disk.0), extent.offset, &bytes);
    }

    fn anywhere(&mut self) -> (DiskId, u64) {
        let (disk, size) = *self.chance.pick(&self.disks);
        (disk, self.chance.below(size.div_ceil(GRANULE as u64)))
    }

    /// Whole granules mostly; now and then a few sectors, or a stretch of many granules.
    fn extent(&mut self, start: u64, size: u64) -> Extent {
        let (offset, len) = match self.chance.below(6) {
            0 => (start + self.chance.below(8) * 512, self.chance.between(1, 8) * 512),
            1 => (start, self.chance.between(2, 20) * GRANULE as u64),
            _ => (start, GRANULE as u64),
        };
        let offset = offset.min(size - 512);
        Extent::new(offset, len.min(size - offset))
    }

    /// Each sector says where it belongs and when it was written; the rest shrinks well, or not at all.
    fn content(&mut self, disk: DiskId, extent: Extent) -> Vec<u8> {
        let mut bytes = vec![0; extent.len as usize];
        if self.chance.percent(50) {
            self.chance.fill(&mut bytes);
        } else {
            bytes.fill((self.writes % 251) as u8);
        }
        for (i, sector) in bytes.chunks_mut(512).enumerate() {
            sector[..8].copy_from_slice(&(u64::from(disk.0) + 1).to_le_bytes());
            sector[8..16].copy_from_slice(&(extent.offset + i as u64 * 512).to_le_bytes());
            sector[16..24].copy_from_slice(&self.writes.to_le_bytes());
        }
        bytes
    }
}
