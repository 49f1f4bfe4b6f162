//! One line of a run's checksum table: a data cluster or a range of zero clusters.

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::codec::Stored;
use crate::digest::ClusterHash;
use crate::geometry::Geometry;

/// A part of a run, in the order of addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// Where it begins on the disk, in bytes.
    pub address: u64,
    /// What it is.
    pub content: EntryContent,
}

/// What an [`Entry`] stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EntryContent {
    /// Clusters that read as zeros.
    Zeros {
        /// How many.
        count: u64,
    },
    /// One cluster of data.
    Data {
        /// How its bytes are kept.
        stored: Stored,
        /// Where they begin in the file.
        at: u64,
        /// How many they are.
        len: u32,
        /// Check of a frame's bytes; 0 for plain bytes, which the hash covers.
        check: u64,
        /// Hash of the decompressed cluster and its address.
        hash: ClusterHash,
    },
}

impl Entry {
    /// Number of clusters.
    pub fn clusters(&self) -> u64 {
        match self.content {
            EntryContent::Zeros { count } => count,
            EntryContent::Data { .. } => 1,
        }
    }

    /// First address after it; the end of a last, partial cluster lies beyond the disk's end.
    pub fn end(&self, geometry: &Geometry) -> u64 {
        self.address + (self.clusters() << geometry.cluster_bits())
    }
}

/// An entry as it lies in the trailer.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct RawEntry {
    /// Address on the disk.
    pub(crate) address: U64,
    /// Data: offset in the file. Zeros: number of clusters.
    at_or_count: U64,
    /// Data: number of stored bytes. Zeros: 0.
    len: U32,
    /// One of the `KIND` constants.
    kind: U32,
    /// Compressed: the frame's check. Otherwise 0.
    check: U64,
    /// Data: the cluster's hash. Zeros: 0.
    hash: [u8; 32],
}

pub(crate) const RAW_ENTRY_LEN: usize = 64;
const _: () = assert!(size_of::<RawEntry>() == RAW_ENTRY_LEN);

const KIND_ZEROS: u32 = 0;
const KIND_COMPRESSED: u32 = 1;
const KIND_PLAIN: u32 = 2;

impl RawEntry {
    pub(crate) fn new(entry: &Entry) -> Self {
        let address = U64::new(entry.address);
        match entry.content {
            EntryContent::Zeros { count } => Self {
                address,
                at_or_count: U64::new(count),
                len: U32::ZERO,
                kind: U32::new(KIND_ZEROS),
                check: U64::ZERO,
                hash: [0; 32],
            },
            EntryContent::Data { stored, at, len, check, hash } => Self {
                address,
                at_or_count: U64::new(at),
                len: U32::new(len),
                kind: U32::new(if stored == Stored::Compressed { KIND_COMPRESSED } else { KIND_PLAIN }),
                check: U64::new(check),
                hash: hash.0,
            },
        }
    }

    /// The entry, if it makes sense by itself: on the disk, its bytes inside the file's data.
    pub(crate) fn check(&self, geometry: &Geometry, data_end: u64) -> Option<Entry> {
        let address = self.address.get();
        if !geometry.is_cluster(address) {
            return None;
        }
        let content = match self.kind.get() {
            KIND_ZEROS => self.check_zeros(geometry)?,
            KIND_COMPRESSED => self.check_data(geometry, data_end, Stored::Compressed)?,
            KIND_PLAIN => self.check_data(geometry, data_end, Stored::Plain)?,
            _ => return None,
        };
        Some(Entry { address, content })
    }

    fn check_zeros(&self, geometry: &Geometry) -> Option<EntryContent> {
        let count = self.at_or_count.get();
        let left = geometry.clusters() - (self.address.get() >> geometry.cluster_bits());
        let fits = count >= 1 && count <= left && self.len.get() == 0 && self.check.get() == 0 && self.hash == [0; 32];
        fits.then_some(EntryContent::Zeros { count })
    }

    fn check_data(&self, geometry: &Geometry, data_end: u64, stored: Stored) -> Option<EntryContent> {
        let (at, len, check) = (self.at_or_count.get(), self.len.get(), self.check.get());
        let size = geometry.cluster_size();
        let whole = match stored {
            Stored::Compressed => len >= 1 && u64::from(len) < size,
            Stored::Plain => u64::from(len) == size && at & (size - 1) == 0 && check == 0,
        };
        let inside = at >= size && at.checked_add(u64::from(len)).is_some_and(|end| end <= data_end);
        (whole && inside).then_some(EntryContent::Data { stored, at, len, check, hash: ClusterHash(self.hash) })
    }
}
