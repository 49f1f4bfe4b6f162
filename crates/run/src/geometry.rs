//! The measures of a run: how long the disk is and how it is cut into clusters.
//!
//! Every reader and writer starts from a [`Geometry`], so that the limits are checked once, before any memory is taken
//! for what a foreign header claims.

use std::ops::RangeInclusive;

use understudy_model::ErrorKind;

/// Cluster sizes we build and read: 4 KiB, the smallest that fits file systems' blocks, to 256 KiB.
pub const CLUSTER_BITS: RangeInclusive<u32> = 12..=18;

/// QEMU refuses images whose level 1 table is longer (its `QCOW_MAX_L1_SIZE`).
pub const L1_BYTES_MAX: u64 = 32 << 20;

/// Disks are made of sectors of this many bytes; QEMU knows no smaller unit.
pub const SECTOR: u64 = 512;

/// Why a disk cannot be cut into clusters in the wanted way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum GeometryError {
    /// Not one of [`CLUSTER_BITS`].
    #[error("clusters of 2^{bits} bytes are not supported")]
    ClusterBits {
        /// What was asked for.
        bits: u32,
    },
    /// Empty, or no whole number of sectors.
    #[error("a disk of {size} bytes is not a whole number of sectors")]
    Size {
        /// What was asked for.
        size: u64,
    },
    /// The level 1 table would be longer than QEMU accepts.
    #[error("a disk of {size} bytes needs clusters larger than 2^{bits} bytes")]
    Level1TooLong {
        /// Size of the disk.
        size: u64,
        /// Cluster size asked for.
        bits: u32,
    },
}

impl GeometryError {
    /// What the caller does next: nothing, the request makes no sense.
    pub fn kind(&self) -> ErrorKind {
        ErrorKind::Refused
    }
}

/// A disk's size and its cluster size, checked against each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Geometry {
    virtual_size: u64,
    cluster_bits: u32,
}

impl Geometry {
    /// A disk of `virtual_size` bytes in clusters of `2^cluster_bits` bytes.
    pub fn new(virtual_size: u64, cluster_bits: u32) -> Result<Self, GeometryError> {
        if !CLUSTER_BITS.contains(&cluster_bits) {
            return Err(GeometryError::ClusterBits { bits: cluster_bits });
        }
        if virtual_size == 0 || !virtual_size.is_multiple_of(SECTOR) {
            return Err(GeometryError::Size { size: virtual_size });
        }
        let geometry = Self { virtual_size, cluster_bits };
        if geometry.l1_entries() * 8 > L1_BYTES_MAX {
            return Err(GeometryError::Level1TooLong { size: virtual_size, bits: cluster_bits });
        }
        Ok(geometry)
    }

    /// The disk's size in bytes.
    pub fn virtual_size(&self) -> u64 {
        self.virtual_size
    }

    /// Base-2 logarithm of the cluster size.
    pub fn cluster_bits(&self) -> u32 {
        self.cluster_bits
    }

    /// Bytes in a cluster.
    pub fn cluster_size(&self) -> u64 {
        1 << self.cluster_bits
    }

    /// Number of clusters; the last one may lie partly beyond the disk's end.
    pub fn clusters(&self) -> u64 {
        self.virtual_size.div_ceil(self.cluster_size())
    }

    /// How many of the bytes of the cluster at `address` belong to the disk; the rest is padding and zero.
    pub fn len_at(&self, address: u64) -> u64 {
        self.cluster_size().min(self.virtual_size.saturating_sub(address))
    }

    /// Whether `address` is where a cluster of this disk begins.
    pub fn is_cluster(&self, address: u64) -> bool {
        address < self.virtual_size && address & (self.cluster_size() - 1) == 0
    }

    /// Descriptors in a level 2 table: it fills one cluster.
    pub(crate) fn l2_entries(&self) -> u64 {
        self.cluster_size() / 8
    }

    /// Entries of the level 1 table.
    pub(crate) fn l1_entries(&self) -> u64 {
        self.clusters().div_ceil(self.l2_entries())
    }

    /// `bytes` rounded up to whole clusters.
    pub(crate) fn round_up(&self, bytes: u64) -> u64 {
        bytes.next_multiple_of(self.cluster_size())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_too_large_for_its_clusters_is_refused() {
        assert!(Geometry::new(8 << 40, 12).is_ok());
        assert_eq!(
            Geometry::new((8 << 40) + 512, 12),
            Err(GeometryError::Level1TooLong { size: (8 << 40) + 512, bits: 12 })
        );
        assert!(Geometry::new(64 << 40, 14).is_ok());
        assert!(Geometry::new(!511, 18).is_err());
    }

    #[test]
    fn sizes_that_are_no_disk_are_refused() {
        assert!(Geometry::new(0, 16).is_err());
        assert!(Geometry::new(513, 16).is_err());
        assert!(Geometry::new(512, 11).is_err());
        assert!(Geometry::new(512, 19).is_err());
    }

    #[test]
    fn the_last_cluster_may_be_partial() {
        let g = Geometry::new(10 * 512 + 4096, 12).unwrap();
        assert_eq!(g.clusters(), 3);
        assert_eq!(g.len_at(4096), 4096);
        assert_eq!(g.len_at(8192), 1024);
        assert!(g.is_cluster(8192) && !g.is_cluster(12288) && !g.is_cluster(512));
    }
}
