//! A disk's true content, kept by the world beside the system under test and never by way of it.
//!
//! Granules are shared between copies, so remembering every cut of a run costs little. All-zero granules are always
//! `None`: equal content is equal by value.

use std::sync::Arc;

use understudy_model::{Extent, ExtentSet};

/// Bytes of a granule: the finest that maps track.
pub const GRANULE: usize = 4096;

type Granule = Arc<[u8; GRANULE]>;

/// What a disk holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    size: u64,
    granules: Vec<Option<Granule>>,
}

impl Image {
    /// A disk of zeros.
    pub fn new(size: u64) -> Self {
        Self { size, granules: vec![None; size.div_ceil(GRANULE as u64) as usize] }
    }

    /// The disk's size in bytes; the last granule may be shorter than the others.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Writes bytes.
    ///
    /// # Panics
    /// If they do not fit on the disk.
    pub fn write(&mut self, offset: u64, bytes: &[u8]) {
        assert!(offset + bytes.len() as u64 <= self.size, "the guest writes inside its disk");
        let mut rest = bytes;
        let mut at = offset;
        while !rest.is_empty() {
            let (index, start) = place(at);
            let len = rest.len().min(GRANULE - start);
            let granule = self.granules[index].get_or_insert_with(|| Arc::new([0; GRANULE]));
            Arc::make_mut(granule)[start..start + len].copy_from_slice(&rest[..len]);
            if granule.iter().all(|b| *b == 0) {
                self.granules[index] = None;
            }
            rest = &rest[len..];
            at += len as u64;
        }
    }

    /// Makes a range read as zeros.
    pub fn zero(&mut self, extent: Extent) {
        let mut at = extent.offset;
        while at < extent.end() {
            let (_, start) = place(at);
            let len = (extent.end() - at).min((GRANULE - start) as u64);
            self.write(at, &[0; GRANULE][..len as usize]);
            at += len;
        }
    }

    /// Reads bytes; beyond the end of the disk there are zeros.
    pub fn read(&self, offset: u64, out: &mut [u8]) {
        let mut done = 0;
        while done < out.len() {
            let (index, start) = place(offset + done as u64);
            let len = (out.len() - done).min(GRANULE - start);
            match self.granules.get(index).and_then(Option::as_ref) {
                Some(granule) => out[done..done + len].copy_from_slice(&granule[start..start + len]),
                None => out[done..done + len].fill(0),
            }
            done += len;
        }
    }

    /// The granules in which two disks differ; all of them if the sizes do.
    pub fn difference(&self, other: &Image) -> ExtentSet {
        if self.size != other.size {
            return [Extent::new(0, self.size.max(other.size))].into_iter().collect();
        }
        let same = |a: &Option<Granule>, b: &Option<Granule>| match (a, b) {
            (Some(a), Some(b)) => Arc::ptr_eq(a, b) || a == b,
            (a, b) => a.is_none() && b.is_none(),
        };
        let differs = |i: &usize| !same(&self.granules[*i], &other.granules[*i]);
        (0..self.granules.len()).filter(differs).map(|i| self.extent(i)).collect()
    }

    fn extent(&self, granule: usize) -> Extent {
        let offset = (granule * GRANULE) as u64;
        Extent::new(offset, (self.size - offset).min(GRANULE as u64))
    }
}

fn place(offset: u64) -> (usize, usize) {
    ((offset / GRANULE as u64) as usize, (offset % GRANULE as u64) as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_write_changes_its_bytes_and_copies_stay_as_they_were() {
        let mut image = Image::new(3 * 4096 + 512);
        let before = image.clone();
        image.write(4090, &[7; 20]);
        image.write(3 * 4096, &[9; 512]);
        let mut out = [1; 22];
        image.read(4089, &mut out);
        assert_eq!((out[0], &out[1..21], out[21]), (0, &[7; 20][..], 0));
        let changed: Vec<_> = image.difference(&before).iter().collect();
        assert_eq!(changed, [Extent::new(0, 8192), Extent::new(12288, 512)]);
        image.zero(Extent::new(0, 3 * 4096 + 512));
        assert_eq!(image, before, "zeros are zeros however they came");
    }

    #[test]
    fn disks_of_other_sizes_differ_as_a_whole() {
        assert_eq!(Image::new(4096).difference(&Image::new(8192)).bytes(), 8192);
    }
}
