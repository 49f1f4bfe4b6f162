//! The first sector of a run: the qcow2 header, our extension, and the name of the file below.
//!
//! ```text
//!   0  qcow2 version 3 header, 112 bytes, compression type zstd          (big-endian, as all of this sector)
//! 112  extension 0x756e6472 "undr", 40 bytes: offset of the footer (8), blake3 of this sector (32)
//! 160  with a backing file: extension 0xe2792aca, its format's name in 8 bytes
//! 176  (160 without) end of extensions, 8 bytes of zero
//! 184  the backing file's name, at most 255 bytes; zeros to byte 512
//! ```
//!
//! All of it fits the first sector on purpose: who lies below a run changes when runs are merged or committed, and
//! one sector is written wholly or not at all. The hash is computed with its own field zero.

use zerocopy::big_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use understudy_model::ErrorKind;

use crate::layout::Layout;

/// Bytes of the sector that holds everything the header says.
pub(crate) const HEADER_LEN: usize = 512;
/// `QFI` and 0xfb.
pub(crate) const QCOW2_MAGIC: u32 = 0x5146_49fb;
const OUR_EXTENSION: u32 = 0x756e_6472;
const FORMAT_EXTENSION: u32 = 0xe279_2aca;
const HASH_RANGE: std::ops::Range<usize> = 128..160;
const NAME_OFFSET: usize = 184;
const SECTOR_CONTEXT: &str = "understudy run header v1";

/// Incompatible feature bit 3: the compression type field counts.
const COMPRESSION_TYPE_BIT: u64 = 1 << 3;
const COMPRESSION_ZSTD: u8 = 1;
/// 2^4 bits for each reference count.
const REFCOUNT_ORDER: u32 = 4;

/// The qcow2 header as it lies in the file.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct Qcow2Header {
    pub(crate) magic: U32,
    pub(crate) version: U32,
    pub(crate) backing_offset: U64,
    pub(crate) backing_len: U32,
    pub(crate) cluster_bits: U32,
    pub(crate) virtual_size: U64,
    pub(crate) crypt_method: U32,
    pub(crate) l1_entries: U32,
    pub(crate) l1_offset: U64,
    pub(crate) refcount_table_offset: U64,
    pub(crate) refcount_table_clusters: U32,
    pub(crate) snapshots: U32,
    pub(crate) snapshots_offset: U64,
    pub(crate) incompatible: U64,
    pub(crate) compatible: U64,
    pub(crate) autoclear: U64,
    pub(crate) refcount_order: U32,
    pub(crate) header_len: U32,
    pub(crate) compression_type: u8,
    pub(crate) padding: [u8; 7],
}

const _: () = assert!(size_of::<Qcow2Header>() == 112);

/// Format of the file below.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum BackingFormat {
    /// A raw image: the base.
    Raw,
    /// A run, or any other qcow2 file.
    Qcow2,
}

impl BackingFormat {
    fn name(self) -> &'static [u8] {
        match self {
            BackingFormat::Raw => b"raw",
            BackingFormat::Qcow2 => b"qcow2",
        }
    }
}

/// The file below, as a header names it: relative to the directory of the file that says so. Our own readers never
/// follow it; it is for QEMU and for people.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Backing {
    name: String,
    format: BackingFormat,
}

/// A name that no backing file of ours has.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{name:?} cannot name a backing file")]
pub struct BackingError {
    /// What was given, cut to a printable length.
    pub name: String,
}

impl BackingError {
    /// What the caller does next.
    pub fn kind(&self) -> ErrorKind {
        ErrorKind::Refused
    }
}

impl Backing {
    /// Longest name that surely fits the sector.
    pub const NAME_LEN_MAX: usize = 255;

    /// A backing file of this name: a relative path of plain names (letters, digits, `.`, `_`, `-`, not beginning with
    /// a dot or a dash), which may climb with leading `..`. No name of this form has a protocol, a query or a
    /// quotation in QEMU's eyes.
    pub fn new(name: impl Into<String>, format: BackingFormat) -> Result<Self, BackingError> {
        let name = name.into();
        let plain = |part: &&str| {
            part.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_')
                && part.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
        };
        let mut parts = name.split('/').skip_while(|part| *part == "..").peekable();
        if name.len() > Self::NAME_LEN_MAX || parts.peek().is_none() || !parts.all(|part| plain(&part)) {
            return Err(BackingError { name: name.chars().take(80).collect() });
        }
        Ok(Self { name, format })
    }

    /// The relative path.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The file's format.
    pub fn format(&self) -> BackingFormat {
        self.format
    }
}

/// The whole header sector of a run.
pub(crate) fn encode(layout: &Layout, footer_offset: u64, backing: Option<&Backing>) -> [u8; HEADER_LEN] {
    let mut header = qcow2_header(layout, backing);
    header.incompatible = U64::new(COMPRESSION_TYPE_BIT);
    header.compression_type = COMPRESSION_ZSTD;
    let mut sector = [0; HEADER_LEN];
    sector[..112].copy_from_slice(header.as_bytes());
    sector[112..116].copy_from_slice(&OUR_EXTENSION.to_be_bytes());
    sector[116..120].copy_from_slice(&40u32.to_be_bytes());
    sector[120..128].copy_from_slice(&footer_offset.to_be_bytes());
    put_backing(&mut sector, 160, backing);
    let hash = sector_hash(&sector);
    sector[HASH_RANGE].copy_from_slice(&hash);
    sector
}

/// The header sector of a writable overlay: no extension of ours, no promise of a trailer.
pub(crate) fn encode_overlay(layout: &Layout, backing: Option<&Backing>) -> [u8; HEADER_LEN] {
    let mut sector = [0; HEADER_LEN];
    sector[..112].copy_from_slice(qcow2_header(layout, backing).as_bytes());
    put_backing(&mut sector, 112, backing);
    sector
}

fn qcow2_header(layout: &Layout, backing: Option<&Backing>) -> Qcow2Header {
    let geometry = layout.geometry;
    let fits = "a layout's tables are bounded far below 2^32 entries";
    Qcow2Header {
        magic: U32::new(QCOW2_MAGIC),
        version: U32::new(3),
        backing_offset: U64::new(if backing.is_some() { NAME_OFFSET as u64 } else { 0 }),
        backing_len: U32::new(backing.map_or(0, |b| b.name.len() as u32)),
        cluster_bits: U32::new(geometry.cluster_bits()),
        virtual_size: U64::new(geometry.virtual_size()),
        crypt_method: U32::ZERO,
        l1_entries: U32::new(u32::try_from(geometry.l1_entries()).expect(fits)),
        l1_offset: U64::new(layout.l1_offset),
        refcount_table_offset: U64::new(layout.table_offset),
        refcount_table_clusters: U32::new(u32::try_from(layout.table_clusters).expect(fits)),
        snapshots: U32::ZERO,
        snapshots_offset: U64::ZERO,
        incompatible: U64::ZERO,
        compatible: U64::ZERO,
        autoclear: U64::ZERO,
        refcount_order: U32::new(REFCOUNT_ORDER),
        header_len: U32::new(112),
        compression_type: 0,
        padding: [0; 7],
    }
}

/// Puts the format's extension at `at` and the name at its place.
fn put_backing(sector: &mut [u8; HEADER_LEN], at: usize, backing: Option<&Backing>) {
    let Some(backing) = backing else { return };
    let format = backing.format.name();
    sector[at..at + 4].copy_from_slice(&FORMAT_EXTENSION.to_be_bytes());
    sector[at + 4..at + 8].copy_from_slice(&(format.len() as u32).to_be_bytes());
    sector[at + 8..at + 8 + format.len()].copy_from_slice(format);
    sector[NAME_OFFSET..NAME_OFFSET + backing.name.len()].copy_from_slice(backing.name.as_bytes());
}

fn sector_hash(sector: &[u8; HEADER_LEN]) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new_derive_key(SECTOR_CONTEXT);
    hasher.update(&sector[..HASH_RANGE.start]);
    hasher.update(&[0; 32]);
    hasher.update(&sector[HASH_RANGE.end..]);
    *hasher.finalize().as_bytes()
}

/// Whether the sector claims to belong to a run.
pub(crate) fn claims_run(sector: &[u8; HEADER_LEN]) -> bool {
    sector[..4] == QCOW2_MAGIC.to_be_bytes() && sector[112..116] == OUR_EXTENSION.to_be_bytes()
}

/// The backing file named in a sector that is equal, byte for byte, to the one that `layout` and that name give; `Err`
/// when no name makes them equal.
pub(crate) fn decode(sector: &[u8; HEADER_LEN], layout: &Layout, footer_offset: u64) -> Result<Option<Backing>, ()> {
    let backing = read_backing(sector).map_err(|_| ())?;
    if encode(layout, footer_offset, backing.as_ref()) == *sector { Ok(backing) } else { Err(()) }
}

fn read_backing(sector: &[u8; HEADER_LEN]) -> Result<Option<Backing>, BackingError> {
    let (header, _) = Qcow2Header::ref_from_prefix(sector).expect("a sector is longer than a header");
    let len = header.backing_len.get() as usize;
    if len == 0 {
        return Ok(None);
    }
    let name = sector.get(NAME_OFFSET..NAME_OFFSET.saturating_add(len)).unwrap_or_default();
    let name = String::from_utf8_lossy(name);
    let format = if sector[168..173] == *b"qcow2" { BackingFormat::Qcow2 } else { BackingFormat::Raw };
    Backing::new(name, format).map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_relative_names_are_backing_files() {
        for good in ["base.raw", "000001.qcow2", "../../disk-0/000003.qcow2", "a/b", "_x", &"n".repeat(255)] {
            assert!(Backing::new(good, BackingFormat::Raw).is_ok(), "{good}");
        }
        for bad in [
            "",
            "..",
            "../",
            "/etc/passwd",
            "a/../b",
            "a//b",
            "json:{}",
            "nbd:host",
            "-rf",
            ".hidden",
            "a b",
            "a\n",
            "ä",
            &"n".repeat(256),
        ] {
            assert!(Backing::new(bad, BackingFormat::Raw).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_longest_name_fits_the_sector() {
        const { assert!(NAME_OFFSET + Backing::NAME_LEN_MAX <= HEADER_LEN) };
    }
}
