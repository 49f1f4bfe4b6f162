//! What lies behind the last reference-counted cluster, where QEMU neither reads nor writes: the checksum table.
//!
//! ```text
//! pages      entries of 64 bytes in the order of addresses, 256 to a page, the last page shorter
//! directory  for each page: address of its first entry (8), its hash (32)
//! footer     192 bytes, the last of the file, little-endian as all of the trailer
//! ```
//!
//! The footer's hash covers the footer, which covers the directory, which covers the pages, which cover the clusters.
//! So opening a run reads the footer and the directory only, and a page is checked when it is used.

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::build::RunSummary;
use crate::digest::RunDigest;
use crate::entry::RAW_ENTRY_LEN;
use crate::geometry::Geometry;
use crate::layout::Layout;

/// Entries in a page: small enough to read for one cluster, large enough that the directory is small.
pub(crate) const PAGE_ENTRIES: usize = 256;
const PAGE_LEN: u64 = (PAGE_ENTRIES * RAW_ENTRY_LEN) as u64;

/// Entries a run may have: the directory, which readers hold in memory, then takes at most 40 MiB. That is 16 TiB of
/// data in clusters of 64 KiB; more goes into several runs.
pub(crate) const ENTRIES_MAX: u64 = 1 << 28;

/// The layout of everything this crate writes. Another one is another program's.
pub(crate) const FORMAT_VERSION: u32 = 1;

const FOOTER_MAGIC: [u8; 8] = *b"undrtrlr";
pub(crate) const FOOTER_CONTEXT: &str = "understudy run footer v1";
const DIRECTORY_CONTEXT: &str = "understudy run directory v1";
const PAGE_CONTEXT: &str = "understudy run page v1";

/// The last bytes of a run.
#[derive(Debug, Clone, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct Footer {
    magic: [u8; 8],
    version: U32,
    cluster_bits: U32,
    virtual_size: U64,
    data_end: U64,
    l2_tables: U64,
    entries: U64,
    data_clusters: U64,
    zero_clusters: U64,
    /// Bytes of all data clusters as they are stored, without what alignment adds.
    stored_bytes: U64,
    reserved: [u8; 24],
    run_digest: [u8; 32],
    directory_hash: [u8; 32],
    /// Hash of the 160 bytes before.
    hash: [u8; 32],
}

pub(crate) const FOOTER_LEN: usize = 192;
const _: () = assert!(size_of::<Footer>() == FOOTER_LEN);

/// One page of entries, as the directory knows it.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct DirectoryEntry {
    pub(crate) first: U64,
    pub(crate) hash: [u8; 32],
}

pub(crate) const DIRECTORY_ENTRY_LEN: usize = 40;
const _: () = assert!(size_of::<DirectoryEntry>() == DIRECTORY_ENTRY_LEN);

/// Why bytes are not the footer of a run that this program can read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FooterFault {
    /// They do not begin like one.
    Foreign,
    /// A whole footer of another version.
    Version(u32),
    /// They begin like one, but do not match their hash or contradict themselves.
    Damaged,
}

impl Footer {
    pub(crate) fn new(layout: &Layout, entries: u64, summary: &RunSummary, directory_hash: [u8; 32]) -> Self {
        let mut footer = Self {
            magic: FOOTER_MAGIC,
            version: U32::new(FORMAT_VERSION),
            cluster_bits: U32::new(layout.geometry.cluster_bits()),
            virtual_size: U64::new(layout.geometry.virtual_size()),
            data_end: U64::new(layout.data_end),
            l2_tables: U64::new(layout.l2_tables),
            entries: U64::new(entries),
            data_clusters: U64::new(summary.data_clusters),
            zero_clusters: U64::new(summary.zero_clusters),
            stored_bytes: U64::new(summary.stored_bytes),
            reserved: [0; 24],
            run_digest: summary.digest.0,
            directory_hash,
            hash: [0; 32],
        };
        footer.hash = footer.own_hash();
        footer
    }

    fn own_hash(&self) -> [u8; 32] {
        blake3::derive_key(FOOTER_CONTEXT, &self.as_bytes()[..FOOTER_LEN - 32])
    }

    /// Reads a footer, the last bytes of a file of `file_len` bytes, and checks all that it says against itself and
    /// the file's length.
    pub(crate) fn decode(bytes: &[u8; FOOTER_LEN], file_len: u64) -> Result<(Self, TrailerLayout), FooterFault> {
        let footer = Self::read_from_bytes(bytes).expect("a footer is an array of bytes");
        if footer.magic != FOOTER_MAGIC {
            return Err(FooterFault::Foreign);
        }
        if footer.hash != footer.own_hash() {
            return Err(FooterFault::Damaged);
        }
        if footer.version.get() != FORMAT_VERSION {
            return Err(FooterFault::Version(footer.version.get()));
        }
        let trailer = footer.trailer_layout().ok_or(FooterFault::Damaged)?;
        if trailer.file_len != file_len || footer.reserved != [0; 24] {
            return Err(FooterFault::Damaged);
        }
        Ok((footer, trailer))
    }

    fn trailer_layout(&self) -> Option<TrailerLayout> {
        let geometry = Geometry::new(self.virtual_size.get(), self.cluster_bits.get()).ok()?;
        let layout = Layout::new(geometry, self.data_end.get(), self.l2_tables.get())?;
        let (data, zeros) = (self.data_clusters.get(), self.zero_clusters.get());
        let covered = data.checked_add(zeros)?;
        let entries = self.entries.get();
        if covered > geometry.clusters() || entries > covered || entries < data {
            return None;
        }
        TrailerLayout::new(layout, entries)
    }

    pub(crate) fn summary(&self, file_len: u64) -> RunSummary {
        RunSummary {
            digest: RunDigest(self.run_digest),
            data_clusters: self.data_clusters.get(),
            zero_clusters: self.zero_clusters.get(),
            stored_bytes: self.stored_bytes.get(),
            file_len,
        }
    }

    pub(crate) fn directory_hash(&self) -> [u8; 32] {
        self.directory_hash
    }
}

/// Where the parts of a trailer lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TrailerLayout {
    pub(crate) layout: Layout,
    pub(crate) entries: u64,
    pub(crate) directory_offset: u64,
    pub(crate) footer_offset: u64,
    pub(crate) file_len: u64,
}

impl TrailerLayout {
    pub(crate) fn new(layout: Layout, entries: u64) -> Option<Self> {
        if entries > ENTRIES_MAX {
            return None;
        }
        let directory_offset = layout.trailer_offset + entries * RAW_ENTRY_LEN as u64;
        let pages = entries.div_ceil(PAGE_ENTRIES as u64);
        let footer_offset = directory_offset + pages * DIRECTORY_ENTRY_LEN as u64;
        Some(Self { layout, entries, directory_offset, footer_offset, file_len: footer_offset + FOOTER_LEN as u64 })
    }

    pub(crate) fn pages(&self) -> usize {
        self.entries.div_ceil(PAGE_ENTRIES as u64) as usize
    }

    /// Offset and number of entries of a page.
    pub(crate) fn page(&self, number: usize) -> (u64, usize) {
        let before = number as u64 * PAGE_ENTRIES as u64;
        let entries = (self.entries - before).min(PAGE_ENTRIES as u64);
        (self.layout.trailer_offset + number as u64 * PAGE_LEN, entries as usize)
    }
}

/// Hash of the directory's bytes.
pub(crate) fn directory_hash(bytes: &[u8]) -> [u8; 32] {
    blake3::derive_key(DIRECTORY_CONTEXT, bytes)
}

/// Hash of a page's bytes.
pub(crate) fn page_hash(bytes: &[u8]) -> [u8; 32] {
    blake3::derive_key(PAGE_CONTEXT, bytes)
}
