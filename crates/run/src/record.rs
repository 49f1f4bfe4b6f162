//! The form in which a run's clusters travel: batches of records.
//!
//! ```text
//! batch   version (1 byte, 1), cluster bits (1 byte), records
//! record  head: a number, skipped clusters * 4 + kind
//!         kind 0, zeros:       count: a number, at least 1
//!         kind 1, compressed:  length: a number, then that many bytes: one zstd frame
//!         kind 2, plain:       the cluster's bytes
//! number  little-endian base 128: seven bits a byte, the high bit says that more follow, shortest form only
//! ```
//!
//! A batch stands for itself: its first record skips from the disk's beginning, each other from the end of the record
//! before. Records ascend, so what is repeated, overlaps or goes back is refused. No hashes travel: the receiver
//! computes them from what it holds.

use understudy_model::ErrorKind;

use crate::codec::{Encoded, Stored};
use crate::digest::OrderError;
use crate::geometry::Geometry;

/// A writer that is asked for batches of this size makes none longer than it, plus one cluster and its head.
pub const BATCH_TARGET_MAX: usize = 1 << 20;

/// Longest batch a reader looks at: the target, the largest cluster, and room for heads.
pub const BATCH_LEN_MAX: usize = BATCH_TARGET_MAX + (256 << 10) + 64;

const BATCH_VERSION: u8 = 1;
const KIND_ZEROS: u64 = 0;
const KIND_COMPRESSED: u64 = 1;
const KIND_PLAIN: u64 = 2;

/// One part of a run on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Record<'a> {
    /// Where it begins on the disk, in bytes.
    pub address: u64,
    /// What it is.
    pub content: RecordContent<'a>,
}

/// What a [`Record`] carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RecordContent<'a> {
    /// Clusters that read as zeros.
    Zeros {
        /// How many.
        count: u64,
    },
    /// One cluster of data.
    Data {
        /// How its bytes are kept.
        stored: Stored,
        /// The stored bytes.
        bytes: &'a [u8],
    },
}

/// Why bytes are no batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BatchError {
    /// Longer than [`BATCH_LEN_MAX`].
    #[error("a batch of {len} bytes is too long")]
    TooLong {
        /// Its length.
        len: usize,
    },
    /// Of a version that this program does not know.
    #[error("batch of version {version}, only version 1 is known")]
    Version {
        /// The version.
        version: u8,
    },
    /// Cut for another cluster size than the run has.
    #[error("batch for clusters of 2^{found} bytes in a run of 2^{expected}")]
    ClusterBits {
        /// What the batch says.
        found: u8,
        /// What the run has.
        expected: u32,
    },
    /// Ends inside a record.
    #[error("batch ends inside a record")]
    Truncated,
    /// A number that is too large or not in its shortest form.
    #[error("malformed number in a batch")]
    Number,
    /// A kind of record that does not exist.
    #[error("record of unknown kind {kind}")]
    Kind {
        /// The kind.
        kind: u8,
    },
    /// A frame of a length that no kept frame has.
    #[error("record with a frame of {len} bytes")]
    FrameLength {
        /// The length.
        len: u64,
    },
    /// Back to, or over, what was there already; or beyond the disk's end.
    #[error("record out of order")]
    Order(#[source] OrderError),
}

impl BatchError {
    /// What the caller does next.
    pub fn kind(&self) -> ErrorKind {
        match self {
            BatchError::Version { .. } => ErrorKind::Refused,
            _ => ErrorKind::Corrupt,
        }
    }
}

/// Gathers clusters into batches of bounded size.
pub struct BatchWriter {
    geometry: Geometry,
    target: usize,
    bytes: Vec<u8>,
    /// End of the last record in the batch.
    position: u64,
    /// Lowest cluster that may come next, over all batches.
    next: u64,
}

impl BatchWriter {
    /// A writer of batches of about `target` bytes, at most [`BATCH_TARGET_MAX`].
    pub fn new(geometry: Geometry, target: usize) -> Self {
        Self { geometry, target: target.min(BATCH_TARGET_MAX), bytes: Vec::new(), position: 0, next: 0 }
    }

    /// Adds a cluster as the encoder gave it back; `raw` is what the encoder was given.
    pub fn push_encoded(&mut self, address: u64, encoded: Encoded<'_>, raw: &[u8]) -> Result<(), OrderError> {
        match encoded {
            Encoded::Zero => self.push_zeros(address, 1),
            Encoded::Compressed(frame) => self.push(address, Stored::Compressed, frame),
            Encoded::Plain => self.push(address, Stored::Plain, raw),
        }
    }

    /// Adds a data cluster by its stored bytes.
    pub fn push(&mut self, address: u64, stored: Stored, bytes: &[u8]) -> Result<(), OrderError> {
        let cluster = self.check(address, 1)?;
        let size = self.geometry.cluster_size() as usize;
        match stored {
            Stored::Compressed => {
                debug_assert!(!bytes.is_empty() && bytes.len() < size, "frames are shorter than clusters");
                self.head(cluster, KIND_COMPRESSED);
                put_number(&mut self.bytes, bytes.len() as u64);
            }
            Stored::Plain => {
                debug_assert!(bytes.len() == size, "plain clusters are whole");
                self.head(cluster, KIND_PLAIN);
            }
        }
        self.bytes.extend_from_slice(bytes);
        self.advance(cluster, 1);
        Ok(())
    }

    /// Adds `count` zero clusters in a row.
    pub fn push_zeros(&mut self, address: u64, count: u64) -> Result<(), OrderError> {
        if count == 0 {
            return Ok(());
        }
        let cluster = self.check(address, count)?;
        self.head(cluster, KIND_ZEROS);
        put_number(&mut self.bytes, count);
        self.advance(cluster, count);
        Ok(())
    }

    /// Adds a record.
    pub fn push_record(&mut self, record: &Record<'_>) -> Result<(), OrderError> {
        match record.content {
            RecordContent::Zeros { count } => self.push_zeros(record.address, count),
            RecordContent::Data { stored, bytes } => self.push(record.address, stored, bytes),
        }
    }

    /// Whether the batch has reached its size and should be taken before more is pushed.
    pub fn is_full(&self) -> bool {
        self.bytes.len() >= self.target
    }

    /// The batch so far, if anything is in it; the next one begins.
    pub fn take(&mut self) -> Option<Vec<u8>> {
        if self.bytes.is_empty() {
            return None;
        }
        self.position = 0;
        Some(std::mem::take(&mut self.bytes))
    }

    fn check(&self, address: u64, count: u64) -> Result<u64, OrderError> {
        let cluster = address >> self.geometry.cluster_bits();
        let left = self.geometry.clusters().saturating_sub(cluster);
        if cluster < self.next || count > left || !self.geometry.is_cluster(address) {
            return Err(OrderError { address, next: self.next << self.geometry.cluster_bits() });
        }
        Ok(cluster)
    }

    fn head(&mut self, cluster: u64, kind: u64) {
        if self.bytes.is_empty() {
            self.bytes.reserve(self.target + self.geometry.cluster_size() as usize + 64);
            self.bytes.extend_from_slice(&[BATCH_VERSION, self.geometry.cluster_bits() as u8]);
        }
        put_number(&mut self.bytes, (cluster - self.position) << 2 | kind);
    }

    fn advance(&mut self, cluster: u64, count: u64) {
        self.position = cluster + count;
        self.next = self.position;
    }
}

/// Reads a batch that came from elsewhere: every length is checked against the batch, every address against the disk
/// and against what came before.
pub struct BatchReader<'a> {
    geometry: Geometry,
    rest: &'a [u8],
    /// End of the last record.
    position: u64,
    /// Lowest cluster that may come next.
    next: u64,
}

impl<'a> BatchReader<'a> {
    /// A reader of one batch of a run; `from` is the lowest address that may occur.
    pub fn new(batch: &'a [u8], geometry: Geometry, from: u64) -> Result<Self, BatchError> {
        if batch.len() > BATCH_LEN_MAX {
            return Err(BatchError::TooLong { len: batch.len() });
        }
        let Some(([version, bits], rest)) = batch.split_first_chunk().map(|(head, rest)| (*head, rest)) else {
            return Err(BatchError::Truncated);
        };
        if version != BATCH_VERSION {
            return Err(BatchError::Version { version });
        }
        if u32::from(bits) != geometry.cluster_bits() {
            return Err(BatchError::ClusterBits { found: bits, expected: geometry.cluster_bits() });
        }
        Ok(Self { geometry, rest, position: 0, next: from.div_ceil(geometry.cluster_size()) })
    }

    /// The next record, or `None` at the batch's end. After an error nothing more should be read.
    pub fn next_record(&mut self) -> Result<Option<Record<'a>>, BatchError> {
        if self.rest.is_empty() {
            return Ok(None);
        }
        let head = self.number()?;
        let content = match head & 3 {
            KIND_ZEROS => RecordContent::Zeros { count: self.number()? },
            KIND_COMPRESSED => {
                let len = self.number()?;
                if len == 0 || len >= self.geometry.cluster_size() {
                    return Err(BatchError::FrameLength { len });
                }
                RecordContent::Data { stored: Stored::Compressed, bytes: self.bytes(len as usize)? }
            }
            KIND_PLAIN => {
                let size = self.geometry.cluster_size() as usize;
                RecordContent::Data { stored: Stored::Plain, bytes: self.bytes(size)? }
            }
            kind => return Err(BatchError::Kind { kind: kind as u8 }),
        };
        let count = if let RecordContent::Zeros { count } = content { count } else { 1 };
        let address = self.step(head >> 2, count)?;
        Ok(Some(Record { address, content }))
    }

    fn step(&mut self, skip: u64, count: u64) -> Result<u64, BatchError> {
        let bits = self.geometry.cluster_bits();
        let cluster = self.position.saturating_add(skip);
        let end = cluster.saturating_add(count);
        if cluster < self.next || count == 0 || end > self.geometry.clusters() {
            let address = cluster.saturating_mul(self.geometry.cluster_size());
            return Err(BatchError::Order(OrderError { address, next: self.next << bits }));
        }
        self.position = end;
        self.next = end;
        Ok(cluster << bits)
    }

    fn bytes(&mut self, len: usize) -> Result<&'a [u8], BatchError> {
        let (bytes, rest) = self.rest.split_at_checked(len).ok_or(BatchError::Truncated)?;
        self.rest = rest;
        Ok(bytes)
    }

    fn number(&mut self) -> Result<u64, BatchError> {
        let mut value = 0u64;
        for (i, byte) in self.rest.iter().enumerate() {
            let bits = u64::from(byte & 0x7f);
            // The tenth byte holds the 64th bit, and no last byte but the first is zero.
            if i == 9 && *byte > 1 || i > 0 && *byte == 0 {
                return Err(BatchError::Number);
            }
            value |= bits << (7 * i);
            if byte & 0x80 == 0 {
                self.rest = &self.rest[i + 1..];
                return Ok(value);
            }
        }
        Err(BatchError::Truncated)
    }
}

fn put_number(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}
