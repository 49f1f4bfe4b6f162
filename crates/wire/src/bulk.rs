//! Bulk payloads: data on its way. Binary, little-endian, cut into frames by their writers.
//!
//! ```text
//! BaseData   0  2 disk     2  6 zero     8 … records
//!            record: 0 8 offset  8 8 length  16 4 stored  20 1 kind  21 3 zero  24 32 hash  56 … stored bytes
//! CycleData  0  2 disk     2  6 zero     8 … a batch of run records (see the run format)
//! BlobData   0 32 name    32  8 offset  40 … bytes
//! ```
//!
//! The hash of a base record is made where the guest's bytes are read, over the bytes *before* compression with
//! their address mixed in, and compared after decompression on the other side.

use bytes::{Bytes, BytesMut};
use understudy_model::DiskId;
use zerocopy::byteorder::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::limits;

/// Payload size at which a writer ends a batch.
pub const BATCH_TARGET: usize = 1 << 20;

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy)]
#[repr(C)]
struct DiskPrefix {
    disk: U16,
    zero: [u8; 6],
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy)]
#[repr(C)]
struct RecordHeader {
    offset: U64,
    len: U64,
    stored: U32,
    kind: u8,
    zero: [u8; 3],
    hash: [u8; 32],
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy)]
#[repr(C)]
struct BlobPrefix {
    name: [u8; 32],
    offset: U64,
}

const DISK_PREFIX: usize = size_of::<DiskPrefix>();
const RECORD_HEADER: usize = size_of::<RecordHeader>();
const BLOB_PREFIX: usize = size_of::<BlobPrefix>();
const _: () = assert!(DISK_PREFIX == 8 && RECORD_HEADER == 56 && BLOB_PREFIX == 40);

/// Why a bulk payload is refused. The peer is faulty or hostile; the connection is closed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BulkError {
    /// Bytes are missing.
    #[error("a bulk payload ends in the middle of a {0}")]
    Truncated(&'static str),
    /// A kind nobody defined.
    #[error("a base record has the unknown kind {0}")]
    Kind(u8),
    /// Lengths that contradict each other or a limit.
    #[error("a base record of {len} bytes at {offset}, stored in {stored}, is not possible")]
    Lengths {
        /// Where it would go.
        offset: u64,
        /// How long it claims to be.
        len: u64,
        /// How many bytes carry it.
        stored: u32,
    },
}

/// How the bytes of a record are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Coding {
    /// All zero: nothing is stored.
    Zero = 0,
    /// One zstd frame.
    Zstd = 1,
    /// As they are.
    Plain = 2,
}

/// One record of an initial replication.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BaseRecord {
    /// Where on the disk.
    pub offset: u64,
    /// How many bytes of the disk. At most [`limits::BASE_RECORD_MAX`] unless all zero.
    pub len: u64,
    /// How they are stored.
    pub coding: Coding,
    /// Hash of the bytes with their address; zeros for [`Coding::Zero`].
    pub hash: [u8; 32],
    /// The stored bytes.
    pub stored: Bytes,
}

impl BaseRecord {
    fn check(header: &RecordHeader) -> Result<Coding, BulkError> {
        let (offset, len, stored) = (header.offset.get(), header.len.get(), header.stored.get());
        let fits = |ok: bool| if ok { Ok(()) } else { Err(BulkError::Lengths { offset, len, stored }) };
        fits(len > 0 && offset.checked_add(len).is_some())?;
        let short = len <= limits::BASE_RECORD_MAX as u64;
        match header.kind {
            0 => fits(stored == 0).map(|()| Coding::Zero),
            1 => fits(short && stored > 0 && u64::from(stored) < len).map(|()| Coding::Zstd),
            2 => fits(short && u64::from(stored) == len).map(|()| Coding::Plain),
            kind => Err(BulkError::Kind(kind)),
        }
    }
}

/// Collects base records of one disk into payloads.
#[derive(Debug)]
pub struct BaseWriter {
    disk: DiskId,
    buffer: BytesMut,
}

impl BaseWriter {
    /// A writer for records of `disk`.
    pub fn new(disk: DiskId) -> Self {
        Self { disk, buffer: BytesMut::new() }
    }

    /// Appends a record. Returns a finished payload when the batch has reached its target size.
    pub fn push(&mut self, offset: u64, len: u64, coding: Coding, hash: [u8; 32], stored: &[u8]) -> Option<Bytes> {
        if self.buffer.is_empty() {
            self.buffer.reserve(BATCH_TARGET + RECORD_HEADER + limits::BASE_RECORD_MAX);
            self.buffer.extend_from_slice(prefix(self.disk).as_bytes());
        }
        let header = RecordHeader {
            offset: U64::new(offset),
            len: U64::new(len),
            stored: U32::new(stored.len() as u32),
            kind: coding as u8,
            zero: [0; 3],
            hash,
        };
        self.buffer.extend_from_slice(header.as_bytes());
        self.buffer.extend_from_slice(stored);
        if self.buffer.len() >= BATCH_TARGET { self.finish() } else { None }
    }

    /// What is left, if anything.
    pub fn finish(&mut self) -> Option<Bytes> {
        if self.buffer.is_empty() { None } else { Some(self.buffer.split().freeze()) }
    }
}

fn prefix(disk: DiskId) -> DiskPrefix {
    DiskPrefix { disk: U16::new(disk.0), zero: [0; 6] }
}

/// Reads a BaseData payload: the disk and its records.
pub fn read_base(payload: &Bytes) -> Result<(DiskId, Vec<BaseRecord>), BulkError> {
    let (disk, mut rest) = read_cycle(payload)?;
    let mut records = Vec::new();
    while !rest.is_empty() {
        let (header, _) = RecordHeader::read_from_prefix(&rest).map_err(|_| BulkError::Truncated("record header"))?;
        let coding = BaseRecord::check(&header)?;
        let _ = rest.split_to(RECORD_HEADER);
        let stored = header.stored.get() as usize;
        if rest.len() < stored {
            return Err(BulkError::Truncated("record"));
        }
        let stored = rest.split_to(stored);
        records.push(BaseRecord {
            offset: header.offset.get(),
            len: header.len.get(),
            coding,
            hash: header.hash,
            stored,
        });
    }
    Ok((disk, records))
}

/// Makes a CycleData payload from a batch of run records.
pub fn write_cycle(disk: DiskId, batch: &[u8]) -> Bytes {
    let mut out = BytesMut::with_capacity(DISK_PREFIX + batch.len());
    out.extend_from_slice(prefix(disk).as_bytes());
    out.extend_from_slice(batch);
    out.freeze()
}

/// Reads a CycleData payload: the disk and the batch.
pub fn read_cycle(payload: &Bytes) -> Result<(DiskId, Bytes), BulkError> {
    let (prefix, _) = DiskPrefix::read_from_prefix(payload).map_err(|_| BulkError::Truncated("disk prefix"))?;
    Ok((DiskId(prefix.disk.get()), payload.slice(DISK_PREFIX..)))
}

/// Makes a BlobData payload: `bytes` of the blob `name` from `offset` on.
pub fn write_blob(name: [u8; 32], offset: u64, bytes: &[u8]) -> Bytes {
    let mut out = BytesMut::with_capacity(BLOB_PREFIX + bytes.len());
    out.extend_from_slice(BlobPrefix { name, offset: U64::new(offset) }.as_bytes());
    out.extend_from_slice(bytes);
    out.freeze()
}

/// Reads a BlobData payload: name, offset, bytes.
pub fn read_blob(payload: &Bytes) -> Result<([u8; 32], u64, Bytes), BulkError> {
    let (prefix, _) = BlobPrefix::read_from_prefix(payload).map_err(|_| BulkError::Truncated("blob prefix"))?;
    Ok((prefix.name, prefix.offset.get(), payload.slice(BLOB_PREFIX..)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn records_come_back_as_they_were_written() {
        let mut writer = BaseWriter::new(DiskId(2));
        assert_eq!(writer.push(0, 1 << 40, Coding::Zero, [0; 32], &[]), None);
        assert_eq!(writer.push(1 << 40, 4096, Coding::Zstd, [7; 32], &[1, 2, 3]), None);
        assert_eq!(writer.push(1 << 41, 5, Coding::Plain, [8; 32], b"hello"), None);
        let payload = writer.finish().expect("three records were pushed");
        assert_eq!(writer.finish(), None);
        let (disk, records) = read_base(&payload).unwrap();
        assert_eq!(disk, DiskId(2));
        assert_eq!(records.len(), 3);
        assert_eq!((records[0].len, records[0].coding), (1 << 40, Coding::Zero));
        assert_eq!((records[1].hash, &records[1].stored[..]), ([7; 32], &[1u8, 2, 3][..]));
        assert_eq!((records[2].offset, &records[2].stored[..]), (1 << 41, &b"hello"[..]));
    }

    #[test]
    fn a_batch_ends_at_its_target_and_below_the_limit() {
        let mut writer = BaseWriter::new(DiskId(0));
        let block = vec![1; limits::BASE_RECORD_MAX];
        let mut sizes = Vec::new();
        for i in 0..40 {
            let out = writer.push(i << 18, block.len() as u64, Coding::Plain, [0; 32], &block);
            sizes.extend(out.map(|p| p.len()));
        }
        assert!(sizes.len() >= 8 && sizes.iter().all(|s| (BATCH_TARGET..=limits::BULK_MAX).contains(s)));
    }

    #[test]
    fn impossible_lengths_are_refused() {
        let bad = |len: u64, coding: Coding, stored: &[u8]| {
            let mut writer = BaseWriter::new(DiskId(0));
            writer.push(0, len, coding, [0; 32], stored);
            read_base(&writer.finish().unwrap()).unwrap_err()
        };
        assert!(matches!(bad(0, Coding::Zero, &[]), BulkError::Lengths { .. }));
        assert!(matches!(bad(9, Coding::Zero, &[0]), BulkError::Lengths { .. }));
        assert!(matches!(bad(1 << 30, Coding::Zstd, &[1]), BulkError::Lengths { .. }));
        assert!(matches!(bad(3, Coding::Zstd, &[1, 2, 3]), BulkError::Lengths { .. }));
        assert!(matches!(bad(4, Coding::Plain, &[1, 2, 3]), BulkError::Lengths { .. }));
    }

    proptest! {
        #[test]
        fn foreign_payloads_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let payload = Bytes::from(bytes);
            let _ = (read_base(&payload), read_cycle(&payload), read_blob(&payload));
        }
    }
}
