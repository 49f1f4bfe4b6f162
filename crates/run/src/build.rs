//! Builds a run: the clusters of one disk that changed between two cuts, as a qcow2 file any tool can open.
//!
//! Clusters arrive in ascending order, already compressed, and are appended as they are. Nothing here decides which
//! runs to keep, opens files or makes them durable (see `store`). Memory: a mebibyte of output, and for each data
//! cluster and each range of zeros 64 bytes, or less than one with a spool; never in proportion to the disk.
//!
//! Invariant: the header is written last, so a run that was cut short is never mistaken for a whole one.

use std::io;

use understudy_model::ErrorKind;
use zerocopy::IntoBytes;

use crate::codec::{CodecError, Decoder, Stored, is_zero};
use crate::digest::{ClusterHash, OrderError, RunDigest, RunDigester, cluster_hash, stored_check};
use crate::entry::{Entry, EntryContent};
use crate::geometry::{Geometry, GeometryError};
use crate::header::{self, Backing};
use crate::io::{RunSink, io_kind};
use crate::layout::Layout;
use crate::log::{EntryLog, LogReader, Spool, grow_zeros};
use crate::output::Output;
use crate::record::{BatchError, BatchReader, Record, RecordContent};
use crate::tables::{self, Level2Counter, TableError, TableOut};
use crate::trailer::{ENTRIES_MAX, Footer, TrailerLayout, directory_hash};

/// What is known of a run before its first cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunParams {
    /// Size of the disk in bytes.
    pub virtual_size: u64,
    /// Base-2 logarithm of the cluster size.
    pub cluster_bits: u32,
    /// The file below; `None` for a run that stands on nothing.
    pub backing: Option<Backing>,
}

/// What is known of a run after its last cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RunSummary {
    /// Digest of its content.
    pub digest: RunDigest,
    /// Clusters with bytes of their own.
    pub data_clusters: u64,
    /// Clusters that read as zero.
    pub zero_clusters: u64,
    /// Bytes of the data clusters as they are stored.
    pub stored_bytes: u64,
    /// Length of the file.
    pub file_len: u64,
}

/// Why a run cannot be built.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// The disk or cluster size is impossible.
    #[error("cannot build a run of this shape")]
    Geometry(#[from] GeometryError),
    /// A cluster came out of order, twice, or is none of the disk's.
    #[error("cannot add a cluster to a run")]
    Order(#[from] OrderError),
    /// A batch of records makes no sense.
    #[error("cannot read a batch of records")]
    Batch(#[from] BatchError),
    /// A cluster's stored bytes are no cluster.
    #[error("cannot take the cluster at {address}")]
    Cluster {
        /// Its address.
        address: u64,
        /// What is wrong with it.
        #[source]
        err: CodecError,
    },
    /// A cluster of zeros came as data, or bytes beyond the disk's end are not zero: the same content would have two
    /// digests.
    #[error("the cluster at {address} is not in its canonical form: {what}")]
    NotCanonical {
        /// Its address.
        address: u64,
        /// What should have been different.
        what: &'static str,
    },
    /// The run has outgrown what its format can hold.
    #[error("a run with clusters of 2^{cluster_bits} bytes cannot hold that much")]
    TooLarge {
        /// Base-2 logarithm of its cluster size.
        cluster_bits: u32,
    },
    /// Writing failed.
    #[error("cannot write a run")]
    Write(#[source] io::Error),
    /// The spool failed, or gave back other bytes than it was given.
    #[error("cannot keep the entries of a run aside")]
    Spool(#[source] io::Error),
    /// Something failed before, and the run can no longer be finished.
    #[error("the run failed earlier and cannot be continued")]
    Poisoned,
}

impl BuildError {
    /// What the caller does next.
    pub fn kind(&self) -> ErrorKind {
        match self {
            BuildError::Geometry(err) => err.kind(),
            BuildError::Order(err) => err.kind(),
            BuildError::Batch(err) => err.kind(),
            BuildError::Cluster { err, .. } => err.kind(),
            BuildError::NotCanonical { .. } => ErrorKind::Corrupt,
            BuildError::TooLarge { .. } => ErrorKind::Refused,
            BuildError::Write(err) | BuildError::Spool(err) => io_kind(err),
            BuildError::Poisoned => ErrorKind::Bug,
        }
    }
}

/// Builds one run into a sink. After any error it takes nothing more: the caller gives the run up.
pub struct RunBuilder<S> {
    geometry: Geometry,
    backing: Option<Backing>,
    output: Output<S>,
    digester: RunDigester,
    log: EntryLog,
    zeros: Option<Entry>,
    level2: Level2Counter,
    /// End of what was placed so far.
    data_end: u64,
    /// How many clusters touch the cluster of the file in which `data_end - 1` lies.
    tail_sharers: u32,
    next: u64,
    data_clusters: u64,
    zero_clusters: u64,
    stored_bytes: u64,
    poisoned: bool,
}

impl<S: RunSink> RunBuilder<S> {
    /// Begins a run. The sink is empty.
    pub fn new(sink: S, params: RunParams) -> Result<Self, BuildError> {
        Self::begin(sink, params, None)
    }

    /// Begins a run of many millions of clusters, such as an export's: what is known of them is kept in `spool`
    /// until the end.
    pub fn with_spool(sink: S, params: RunParams, spool: Box<dyn Spool + Send>) -> Result<Self, BuildError> {
        Self::begin(sink, params, Some(spool))
    }

    fn begin(sink: S, params: RunParams, spool: Option<Box<dyn Spool + Send>>) -> Result<Self, BuildError> {
        let geometry = Geometry::new(params.virtual_size, params.cluster_bits)?;
        Ok(Self {
            geometry,
            backing: params.backing,
            output: Output::new(sink),
            digester: RunDigester::new(geometry),
            log: EntryLog::new(spool),
            zeros: None,
            level2: Level2Counter::default(),
            data_end: geometry.cluster_size(),
            tail_sharers: 0,
            next: 0,
            data_clusters: 0,
            zero_clusters: 0,
            stored_bytes: 0,
            poisoned: false,
        })
    }

    /// The disk's and the clusters' sizes.
    pub fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    /// Lowest address that may come next.
    pub fn next_address(&self) -> u64 {
        self.next
    }

    /// Length the file would have if the run ended here, for quotas and reserves.
    pub fn projected_len(&self) -> u64 {
        let entries = self.log.len() + u64::from(self.zeros.is_some());
        let trailer = Layout::new(self.geometry, self.data_end, self.level2.tables)
            .and_then(|layout| TrailerLayout::new(layout, entries));
        trailer.map_or(u64::MAX, |trailer| trailer.file_len)
    }

    /// Appends one data cluster whose stored bytes and hash the caller vouches for: it has compressed and hashed them
    /// itself, or read them checked from another run.
    pub fn push(&mut self, address: u64, stored: Stored, bytes: &[u8], hash: &ClusterHash) -> Result<(), BuildError> {
        self.guarded(|builder| builder.append(address, stored, bytes, hash))
    }

    /// Appends `count` zero clusters in a row.
    pub fn push_zeros(&mut self, address: u64, count: u64) -> Result<(), BuildError> {
        self.guarded(|builder| builder.append_zeros(address, count))
    }

    /// Appends a record from elsewhere: decompresses it, refuses what is not canonical, and hashes what it holds.
    pub fn accept(&mut self, record: &Record<'_>, decoder: &mut Decoder) -> Result<(), BuildError> {
        self.guarded(|builder| builder.append_record(record, decoder))
    }

    /// Appends all records of a batch from elsewhere, as [`Self::accept`] does.
    pub fn accept_batch(&mut self, batch: &[u8], decoder: &mut Decoder) -> Result<(), BuildError> {
        self.guarded(|builder| {
            let mut records = BatchReader::new(batch, builder.geometry, builder.next)?;
            while let Some(record) = records.next_record()? {
                builder.append_record(&record, decoder)?;
            }
            Ok(())
        })
    }

    /// Writes the tables, the trailer and, last of all, the header. Hands back the sink: the run exists once its owner
    /// has synced it.
    pub fn finish(mut self) -> Result<(RunSummary, S), BuildError> {
        if self.poisoned {
            return Err(BuildError::Poisoned);
        }
        self.settle_zeros()?;
        let too_large = BuildError::TooLarge { cluster_bits: self.geometry.cluster_bits() };
        let Some(layout) = Layout::new(self.geometry, self.data_end, self.level2.tables) else { return Err(too_large) };
        let Some(trailer) = TrailerLayout::new(layout, self.log.len()) else { return Err(too_large) };
        let mut entries = LogReader { log: &self.log, geometry: self.geometry, data_end: self.data_end };
        tables::emit(&layout, &mut entries, &mut SparseTables(&mut self.output))?;
        let summary = RunSummary {
            digest: self.digester.finish(),
            data_clusters: self.data_clusters,
            zero_clusters: self.zero_clusters,
            stored_bytes: self.stored_bytes,
            file_len: trailer.file_len,
        };
        write_trailer(&mut self.output, &trailer, self.log, &summary)?;
        let mut sink = self.output.into_sink();
        let header = header::encode(&layout, trailer.footer_offset, self.backing.as_ref());
        sink.write_at(0, &header).map_err(BuildError::Write)?;
        Ok((summary, sink))
    }

    fn guarded(&mut self, step: impl FnOnce(&mut Self) -> Result<(), BuildError>) -> Result<(), BuildError> {
        if std::mem::replace(&mut self.poisoned, true) {
            return Err(BuildError::Poisoned);
        }
        step(self)?;
        self.poisoned = false;
        Ok(())
    }

    fn append_record(&mut self, record: &Record<'_>, decoder: &mut Decoder) -> Result<(), BuildError> {
        let address = record.address;
        let RecordContent::Data { stored, bytes } = record.content else {
            let RecordContent::Zeros { count } = record.content else { unreachable!("a record is data or zeros") };
            return self.append_zeros(address, count);
        };
        let size = self.geometry.cluster_size() as usize;
        let raw = decoder.cluster(stored, bytes, size).map_err(|err| BuildError::Cluster { address, err })?;
        if is_zero(raw) {
            return Err(BuildError::NotCanonical { address, what: "zeros came as data" });
        }
        if !is_zero(&raw[self.geometry.len_at(address) as usize..]) {
            return Err(BuildError::NotCanonical { address, what: "bytes beyond the disk's end are not zero" });
        }
        let hash = cluster_hash(address, raw);
        self.append(address, stored, bytes, &hash)
    }

    fn append(&mut self, address: u64, stored: Stored, bytes: &[u8], hash: &ClusterHash) -> Result<(), BuildError> {
        self.check_length(address, stored, bytes.len())?;
        self.digester.push_data(address, hash)?;
        self.settle_zeros()?;
        let at = self.place(stored, bytes.len() as u64);
        self.output.put(at, bytes).map_err(BuildError::Write)?;
        let len = bytes.len() as u32;
        let check = if stored == Stored::Compressed { stored_check(address, bytes) } else { 0 };
        self.log(&Entry { address, content: EntryContent::Data { stored, at, len, check, hash: *hash } })?;
        self.advance(address, 1);
        self.data_clusters += 1;
        self.stored_bytes += bytes.len() as u64;
        Ok(())
    }

    fn append_zeros(&mut self, address: u64, count: u64) -> Result<(), BuildError> {
        if count == 0 {
            return Ok(());
        }
        self.digester.push_zeros(address, count)?;
        let grown = self.zeros.as_mut().is_some_and(|last| grow_zeros(last, address, count, &self.geometry));
        if !grown {
            self.settle_zeros()?;
            self.zeros = Some(Entry { address, content: EntryContent::Zeros { count } });
        }
        self.advance(address, count);
        self.zero_clusters += count;
        Ok(())
    }

    fn check_length(&self, address: u64, stored: Stored, len: usize) -> Result<(), BuildError> {
        let cluster_size = self.geometry.cluster_size() as usize;
        let fits = match stored {
            Stored::Compressed => len > 0 && len < cluster_size,
            Stored::Plain => len == cluster_size,
        };
        let err = CodecError::StoredLength { len, cluster_size };
        if fits { Ok(()) } else { Err(BuildError::Cluster { address, err }) }
    }

    fn advance(&mut self, address: u64, count: u64) {
        let bits = self.geometry.cluster_bits();
        self.level2.add(address >> bits, count, self.geometry.l2_entries());
        self.next = address + (count << bits);
    }

    /// Chooses where the next `len` bytes go: plain clusters at the next boundary, frames right behind the last one.
    fn place(&mut self, stored: Stored, len: u64) -> u64 {
        let bits = self.geometry.cluster_bits();
        let shared_out = self.tail_sharers >= u32::from(u16::MAX);
        let at = match stored {
            Stored::Compressed if !shared_out => self.data_end,
            _ => self.geometry.round_up(self.data_end),
        };
        let starts_in_tail = at >> bits == (self.data_end - 1) >> bits;
        let ends_where_it_starts = (at + len - 1) >> bits == at >> bits;
        self.tail_sharers = if starts_in_tail && ends_where_it_starts { self.tail_sharers + 1 } else { 1 };
        self.data_end = at + len;
        at
    }

    fn settle_zeros(&mut self) -> Result<(), BuildError> {
        match self.zeros.take() {
            Some(entry) => self.log(&entry),
            None => Ok(()),
        }
    }

    fn log(&mut self, entry: &Entry) -> Result<(), BuildError> {
        if self.log.len() == ENTRIES_MAX {
            return Err(BuildError::TooLarge { cluster_bits: self.geometry.cluster_bits() });
        }
        self.log.push(entry)
    }
}

/// Tables on their way into a file, with holes where they are empty.
struct SparseTables<'a, S>(&'a mut Output<S>);

impl<S: RunSink> TableOut<BuildError> for SparseTables<'_, S> {
    fn put(&mut self, offset: u64, bytes: &[u8]) -> Result<(), BuildError> {
        self.0.put_sparse(offset, bytes).map_err(BuildError::Write)
    }
}

impl From<TableError> for BuildError {
    fn from(err: TableError) -> Self {
        unreachable!("the builder counts as it places: {err:?}")
    }
}

fn write_trailer<S: RunSink>(
    output: &mut Output<S>,
    trailer: &TrailerLayout,
    log: EntryLog,
    summary: &RunSummary,
) -> Result<(), BuildError> {
    let mut offset = trailer.layout.trailer_offset;
    log.visit_pages(&mut |page| {
        output.put(offset, page.as_bytes()).map_err(BuildError::Write)?;
        offset += size_of_val(page) as u64;
        Ok(())
    })?;
    let directory = log.into_directory();
    let directory = directory.as_bytes();
    let footer = Footer::new(&trailer.layout, trailer.entries, summary, directory_hash(directory));
    output.put(offset, directory).map_err(BuildError::Write)?;
    output.put(trailer.footer_offset, footer.as_bytes()).map_err(BuildError::Write)?;
    output.flush().map_err(BuildError::Write)
}
