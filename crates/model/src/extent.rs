//! Extents: half-open byte ranges of a disk, and sets of them.

/// A range of bytes of one disk, `offset..offset + len`. Never empty inside an [`ExtentSet`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Extent {
    /// First byte.
    pub offset: u64,
    /// Length in bytes.
    pub len: u64,
}

impl Extent {
    /// The range `offset..offset + len`.
    pub const fn new(offset: u64, len: u64) -> Self {
        Self { offset, len }
    }

    /// One past the last byte, saturating at the end of the address space.
    pub const fn end(self) -> u64 {
        self.offset.saturating_add(self.len)
    }
}

/// A set of bytes of one disk as sorted, disjoint, non-adjacent extents.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ExtentSet {
    extents: Vec<Extent>,
}

impl ExtentSet {
    /// The empty set.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a range. Amortised constant time when ranges arrive in ascending order, as dirty maps do.
    pub fn insert(&mut self, extent: Extent) {
        if extent.len == 0 {
            return;
        }
        match self.extents.last_mut() {
            Some(last) if extent.offset > last.end() => self.extents.push(extent),
            Some(last) if extent.offset >= last.offset => {
                last.len = last.end().max(extent.end()) - last.offset;
            }
            None => self.extents.push(extent),
            Some(_) => self.insert_inside(extent),
        }
    }

    fn insert_inside(&mut self, extent: Extent) {
        let from = self.extents.partition_point(|e| e.end() < extent.offset);
        let to = self.extents.partition_point(|e| e.offset <= extent.end());
        let joined = self.extents[from..to].iter().fold(extent, |all, e| {
            let offset = all.offset.min(e.offset);
            Extent::new(offset, all.end().max(e.end()) - offset)
        });
        self.extents.splice(from..to, [joined]);
    }

    /// Adds every byte of `other`.
    pub fn union(&mut self, other: &ExtentSet) {
        other.iter().for_each(|e| self.insert(e));
    }

    /// The ranges in ascending order.
    pub fn iter(&self) -> impl Iterator<Item = Extent> + '_ {
        self.extents.iter().copied()
    }

    /// Number of ranges.
    pub fn count(&self) -> usize {
        self.extents.len()
    }

    /// Whether no byte is in the set.
    pub fn is_empty(&self) -> bool {
        self.extents.is_empty()
    }

    /// Number of bytes in the set.
    pub fn bytes(&self) -> u64 {
        self.extents.iter().map(|e| e.len).sum()
    }

    /// Whether every byte of `extent` is in the set.
    pub fn contains(&self, extent: Extent) -> bool {
        extent.len == 0 || self.extents.iter().any(|e| e.offset <= extent.offset && extent.end() <= e.end())
    }

    /// The set widened to whole granules of `granule` bytes (a power of two), cut off at `limit`, the disk's size.
    pub fn aligned(&self, granule: u64, limit: u64) -> ExtentSet {
        debug_assert!(granule.is_power_of_two());
        let mut out = ExtentSet::new();
        for e in self.iter() {
            let start = e.offset & !(granule - 1);
            let end = e.end().saturating_add(granule - 1) & !(granule - 1);
            let end = end.min(limit);
            if start < end {
                out.insert(Extent::new(start, end - start));
            }
        }
        out
    }
}

impl FromIterator<Extent> for ExtentSet {
    fn from_iter<I: IntoIterator<Item = Extent>>(extents: I) -> Self {
        let mut set = Self::new();
        extents.into_iter().for_each(|e| set.insert(e));
        set
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn bits(set: &ExtentSet) -> Vec<bool> {
        let mut out = vec![false; 256];
        set.iter().for_each(|e| out[e.offset as usize..e.end() as usize].fill(true));
        out
    }

    proptest! {
        #[test]
        fn a_set_agrees_with_a_bitmap(ranges in proptest::collection::vec((0u64..200, 0u64..56), 0..30)) {
            let mut set = ExtentSet::new();
            let mut model = vec![false; 256];
            for (offset, len) in ranges {
                set.insert(Extent::new(offset, len));
                model[offset as usize..(offset + len) as usize].fill(true);
            }
            prop_assert_eq!(bits(&set), model.clone());
            prop_assert_eq!(set.bytes(), model.iter().filter(|b| **b).count() as u64);
            let list: Vec<_> = set.iter().collect();
            prop_assert!(list.windows(2).all(|w| w[0].end() < w[1].offset), "sorted, disjoint, not adjacent");
        }

        #[test]
        fn alignment_covers_the_set_and_stays_on_the_disk(ranges in proptest::collection::vec((0u64..200, 1u64..50), 0..9)) {
            let set: ExtentSet = ranges.into_iter().map(|(o, l)| Extent::new(o, l)).collect();
            let wide = set.aligned(16, 250);
            for e in set.iter().filter(|e| e.end() <= 250) {
                prop_assert!(wide.contains(e));
            }
            prop_assert!(wide.iter().all(|e| e.offset % 16 == 0 && (e.end() % 16 == 0 || e.end() == 250)));
        }
    }
}
