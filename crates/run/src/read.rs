//! Reads a sealed run through its own checksum table, never through its qcow2 tables, and follows no reference.
//!
//! [`Run::open`] checks the header, the footer and the directory; pages of the table are checked when they are first
//! needed and clusters each time they are read. So whatever comes out of a [`RunReader`] is what was put in, or an
//! error that names the damaged part. What nobody reads is [`crate::verify`]'s to look at.
//!
//! A run from elsewhere may be hostile: its hashes can all be right. Hence every number in it is checked against the
//! geometry and the file's length before memory is taken or a byte is read.

use std::fmt;
use std::io;
use std::ops::Range;
use std::sync::Arc;

use understudy_model::ErrorKind;
use zerocopy::FromBytes;

use crate::build::RunSummary;
use crate::codec::{CodecError, Decoder, Stored, is_zero};
use crate::digest::{OrderError, cluster_hash, stored_check};
use crate::entry::{Entry, EntryContent, RAW_ENTRY_LEN, RawEntry};
use crate::geometry::Geometry;
use crate::header::{self, Backing, HEADER_LEN};
use crate::io::{RunSource, io_kind};
use crate::record::{BatchWriter, Record, RecordContent};
use crate::trailer::{
    DIRECTORY_ENTRY_LEN, DirectoryEntry, FOOTER_LEN, Footer, FooterFault, PAGE_ENTRIES, TrailerLayout, directory_hash,
    page_hash,
};
use crate::window::Window;

/// A part of a run's file, as errors name it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// The first cluster.
    Header,
    /// The last bytes.
    Footer,
    /// The list of the checksum table's pages.
    Directory,
    /// A page of the checksum table.
    Page {
        /// Which one.
        number: usize,
    },
    /// A data cluster.
    Cluster {
        /// Its address on the disk.
        address: u64,
    },
    /// What alignment leaves between clusters.
    Padding {
        /// Where it begins in the file.
        offset: u64,
    },
    /// A qcow2 table.
    Table {
        /// Where the wrong piece begins in the file.
        offset: u64,
    },
    /// The whole: each part is right by itself, but they are not this run.
    Digest,
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Part::Header => f.write_str("header"),
            Part::Footer => f.write_str("footer"),
            Part::Directory => f.write_str("directory of the checksum table"),
            Part::Page { number } => write!(f, "page {number} of the checksum table"),
            Part::Cluster { address } => write!(f, "cluster at address {address}"),
            Part::Padding { offset } => write!(f, "padding at offset {offset}"),
            Part::Table { offset } => write!(f, "qcow2 table at offset {offset}"),
            Part::Digest => f.write_str("digest over all clusters"),
        }
    }
}

/// Why a run cannot be opened or read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// Reading failed.
    #[error("cannot read a run")]
    Io(#[source] io::Error),
    /// The file is something else, or was never finished.
    #[error("not a run")]
    NotARun,
    /// A run of a format that this program does not know.
    #[error("run of format version {version}, only version 1 is known")]
    Version {
        /// The version.
        version: u32,
    },
    /// The run is not what it was.
    #[error("the run is damaged: {part}")]
    Damaged {
        /// The first part found to be wrong.
        part: Part,
    },
    /// No memory for decompression.
    #[error("cannot set up decompression")]
    Codec(#[source] CodecError),
}

impl ReadError {
    /// What the caller does next.
    pub fn kind(&self) -> ErrorKind {
        match self {
            ReadError::Io(err) => io_kind(err),
            ReadError::NotARun | ReadError::Version { .. } => ErrorKind::Refused,
            ReadError::Damaged { .. } => ErrorKind::Corrupt,
            ReadError::Codec(err) => err.kind(),
        }
    }

    pub(crate) fn damaged(part: Part) -> Self {
        ReadError::Damaged { part }
    }
}

/// A sealed run, opened. Cheap to clone; holds the directory in memory, 40 bytes for every 256 entries.
pub struct Run<S> {
    pub(crate) inner: Arc<Inner<S>>,
}

pub(crate) struct Inner<S> {
    pub(crate) source: S,
    pub(crate) trailer: TrailerLayout,
    pub(crate) footer: Footer,
    directory: Vec<DirectoryEntry>,
    backing: Option<Backing>,
}

impl<S> Clone for Run<S> {
    fn clone(&self) -> Self {
        Self { inner: Arc::clone(&self.inner) }
    }
}

impl<S> fmt::Debug for Run<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Run").field("geometry", self.geometry()).field("summary", &self.summary()).finish()
    }
}

impl<S: RunSource> Run<S> {
    /// Opens a run: header, footer and directory must be whole and agree.
    pub fn open(source: S) -> Result<Self, ReadError> {
        let sector = read_header(&source)?;
        let (footer, trailer) = read_footer(&source).map_err(|err| match err {
            // Neither end is a run's: another program's file, or anything else.
            ReadError::Damaged { .. } if !header::claims_run(&sector) => ReadError::NotARun,
            err => err,
        })?;
        let backing = header::decode(&sector, &trailer.layout, trailer.footer_offset)
            .map_err(|()| ReadError::damaged(Part::Header))?;
        let directory = read_directory(&source, &trailer, &footer)?;
        Ok(Self { inner: Arc::new(Inner { source, trailer, footer, directory, backing }) })
    }

    /// A reader with its own buffers; several may read at once.
    pub fn reader(&self) -> Result<RunReader<S>, ReadError> {
        Ok(RunReader {
            run: self.clone(),
            decoder: Decoder::new().map_err(ReadError::Codec)?,
            page: None,
            window: Window::default(),
            cluster: Vec::new(),
            cluster_address: None,
        })
    }
}

impl<S> Run<S> {
    /// The disk's and the clusters' sizes.
    pub fn geometry(&self) -> &Geometry {
        &self.inner.trailer.layout.geometry
    }

    /// The file that the header names as the one below. For showing and checking; nothing in this crate opens it.
    pub fn backing(&self) -> Option<&Backing> {
        self.inner.backing.as_ref()
    }

    /// Digest and sizes, as the footer has them.
    pub fn summary(&self) -> RunSummary {
        self.inner.footer.summary(self.inner.trailer.file_len)
    }

    /// Where the file's bytes come from.
    pub fn source(&self) -> &S {
        &self.inner.source
    }
}

pub(crate) fn read_header(source: &impl RunSource) -> Result<[u8; HEADER_LEN], ReadError> {
    let mut sector = [0; HEADER_LEN];
    if source.size().map_err(ReadError::Io)? < (HEADER_LEN + FOOTER_LEN) as u64 {
        return Err(ReadError::NotARun);
    }
    source.read_at(0, &mut sector).map_err(ReadError::Io)?;
    // The header is written last: as long as it is not, nothing else counts.
    if is_zero(&sector) { Err(ReadError::NotARun) } else { Ok(sector) }
}

/// Reads the footer from the file's end.
pub(crate) fn read_footer(source: &impl RunSource) -> Result<(Footer, TrailerLayout), ReadError> {
    let file_len = source.size().map_err(ReadError::Io)?;
    let Some(offset) = file_len.checked_sub(FOOTER_LEN as u64) else { return Err(ReadError::NotARun) };
    let mut bytes = [0; FOOTER_LEN];
    source.read_at(offset, &mut bytes).map_err(ReadError::Io)?;
    Footer::decode(&bytes, file_len).map_err(|fault| match fault {
        FooterFault::Version(version) => ReadError::Version { version },
        FooterFault::Foreign | FooterFault::Damaged => ReadError::damaged(Part::Footer),
    })
}

pub(crate) fn read_directory(
    source: &impl RunSource,
    trailer: &TrailerLayout,
    footer: &Footer,
) -> Result<Vec<DirectoryEntry>, ReadError> {
    let mut bytes = vec![0; trailer.pages() * DIRECTORY_ENTRY_LEN];
    source.read_at(trailer.directory_offset, &mut bytes).map_err(ReadError::Io)?;
    let damaged = || ReadError::damaged(Part::Directory);
    if directory_hash(&bytes) != footer.directory_hash() {
        return Err(damaged());
    }
    let directory = <[DirectoryEntry]>::ref_from_bytes(&bytes).map_err(|_| damaged())?.to_vec();
    let ascending = directory.windows(2).all(|pair| pair[0].first.get() < pair[1].first.get());
    if ascending { Ok(directory) } else { Err(damaged()) }
}

/// Reads entries and clusters of one run, in any order; reading forward is fast.
pub struct RunReader<S> {
    run: Run<S>,
    decoder: Decoder,
    page: Option<(usize, Vec<Entry>)>,
    pub(crate) window: Window,
    /// The cluster last read, decompressed.
    cluster: Vec<u8>,
    cluster_address: Option<u64>,
}

impl<S: RunSource> RunReader<S> {
    /// The run being read.
    pub fn run(&self) -> &Run<S> {
        &self.run
    }

    /// The first entry that ends after `address`: the one that covers it, or else the next one.
    pub fn next_from(&mut self, address: u64) -> Result<Option<Entry>, ReadError> {
        let geometry = *self.run.geometry();
        let directory = &self.run.inner.directory;
        let (begun, pages) = (directory.partition_point(|page| page.first.get() <= address), directory.len());
        if let Some(number) = begun.checked_sub(1) {
            let page = self.load(number)?;
            let before = page.partition_point(|entry| entry.end(&geometry) <= address);
            if let Some(entry) = page.get(before) {
                return Ok(Some(*entry));
            }
        }
        if begun == pages {
            return Ok(None);
        }
        Ok(self.load(begun)?.first().copied())
    }

    /// A data cluster's bytes, decompressed and checked against the entry's hash.
    pub fn read_cluster(&mut self, entry: &Entry) -> Result<&[u8], ReadError> {
        let EntryContent::Data { stored, at, len, hash, .. } = entry.content else {
            panic!("a range of zeros has no bytes to read");
        };
        if self.cluster_address == Some(entry.address) {
            return Ok(&self.cluster);
        }
        self.cluster_address = None;
        let inner = &self.run.inner;
        let damaged = || ReadError::damaged(Part::Cluster { address: entry.address });
        let end = inner.trailer.layout.data_end;
        let bytes = self.window.bytes(&inner.source, at, len as usize, end).map_err(ReadError::Io)?;
        self.cluster.resize(self.run.geometry().cluster_size() as usize, 0);
        self.decoder.decode(stored, bytes, &mut self.cluster).map_err(|_| damaged())?;
        if cluster_hash(entry.address, &self.cluster) != hash {
            return Err(damaged());
        }
        self.cluster_address = Some(entry.address);
        Ok(&self.cluster)
    }

    /// An entry as the record in which it travels: the stored bytes as they are. They are checked, but not
    /// decompressed.
    pub fn record(&mut self, entry: &Entry) -> Result<Record<'_>, ReadError> {
        let address = entry.address;
        let EntryContent::Data { stored, at, len, check, hash } = entry.content else {
            return Ok(Record { address, content: RecordContent::Zeros { count: entry.clusters() } });
        };
        let inner = &self.run.inner;
        let end = inner.trailer.layout.data_end;
        let bytes = self.window.bytes(&inner.source, at, len as usize, end).map_err(ReadError::Io)?;
        let whole = match stored {
            Stored::Compressed => stored_check(address, bytes) == check,
            Stored::Plain => cluster_hash(address, bytes) == hash,
        };
        if !whole {
            return Err(ReadError::damaged(Part::Cluster { address }));
        }
        Ok(Record { address, content: RecordContent::Data { stored, bytes } })
    }

    /// A batch of about `target` bytes from the entries at and after `from`, and the address to go on from; `None` at
    /// the run's end. Every cluster is checked on its way out.
    pub fn batch(&mut self, from: u64, target: usize) -> Result<Option<(Vec<u8>, u64)>, ReadError> {
        let geometry = *self.run.geometry();
        let mut writer = BatchWriter::new(geometry, target);
        let mut position = from;
        while !writer.is_full() {
            let Some(entry) = self.next_from(position)? else { break };
            let disorder = |_: OrderError| ReadError::damaged(Part::Directory);
            match entry.content {
                // Resuming inside a range of zeros sends its rest.
                EntryContent::Zeros { .. } => {
                    let start = entry.address.max(position);
                    let count = (entry.end(&geometry) - start) >> geometry.cluster_bits();
                    writer.push_zeros(start, count).map_err(disorder)?;
                }
                EntryContent::Data { .. } => writer.push_record(&self.record(&entry)?).map_err(disorder)?,
            }
            position = entry.end(&geometry);
        }
        Ok(writer.take().map(|batch| (batch, position)))
    }

    /// Fills `out` with what this run says about the disk from `offset`; pushes onto `missing` the ranges on which it
    /// says nothing, as positions in `out` plus `shift`. Beyond its own disk's end a run says zeros, as QEMU does.
    pub(crate) fn fill(
        &mut self,
        offset: u64,
        out: &mut [u8],
        shift: usize,
        missing: &mut Vec<Range<usize>>,
    ) -> Result<(), ReadError> {
        let geometry = *self.run.geometry();
        let inside = geometry.virtual_size().saturating_sub(offset).min(out.len() as u64) as usize;
        let (out, beyond) = out.split_at_mut(inside);
        beyond.fill(0);
        let mut done = 0;
        while done < out.len() {
            let position = offset + done as u64;
            let entry = self.next_from(position)?;
            let start = entry.map_or(u64::MAX, |e| e.address);
            let gap_end = (start.max(position) - offset).min(out.len() as u64) as usize;
            if done < gap_end {
                missing.push(shift + done..shift + gap_end);
                done = gap_end;
                continue;
            }
            let Some(entry) = entry else { break };
            let end = (entry.end(&geometry) - offset).min(out.len() as u64) as usize;
            self.copy_out(&entry, position, &mut out[done..end])?;
            done = end;
        }
        Ok(())
    }

    /// Copies a part of one entry.
    fn copy_out(&mut self, entry: &Entry, position: u64, out: &mut [u8]) -> Result<(), ReadError> {
        if let EntryContent::Zeros { .. } = entry.content {
            out.fill(0);
            return Ok(());
        }
        let from = (position - entry.address) as usize;
        let cluster = self.read_cluster(entry)?;
        out.copy_from_slice(&cluster[from..from + out.len()]);
        Ok(())
    }

    /// The entries of a page, checked.
    pub(crate) fn load(&mut self, number: usize) -> Result<&[Entry], ReadError> {
        if self.page.as_ref().is_none_or(|(loaded, _)| *loaded != number) {
            self.page = None;
            self.page = Some((number, load_page(&self.run.inner, number)?));
        }
        Ok(self.page.as_ref().map(|(_, entries)| entries.as_slice()).unwrap_or_default())
    }
}

fn load_page<S: RunSource>(inner: &Inner<S>, number: usize) -> Result<Vec<Entry>, ReadError> {
    let (offset, count) = inner.trailer.page(number);
    let mut buffer = [0; PAGE_ENTRIES * RAW_ENTRY_LEN];
    let bytes = &mut buffer[..count * RAW_ENTRY_LEN];
    inner.source.read_at(offset, bytes).map_err(ReadError::Io)?;
    let damaged = || ReadError::damaged(Part::Page { number });
    if page_hash(bytes) != inner.directory[number].hash {
        return Err(damaged());
    }
    let raw = <[RawEntry]>::ref_from_bytes(bytes).map_err(|_| damaged())?;
    let limit = inner.directory.get(number + 1).map_or(u64::MAX, |next| next.first.get());
    check_page(raw, inner.directory[number].first.get(), limit, &inner.trailer).ok_or_else(damaged)
}

/// The entries of a page, if they ascend from `first` and end before `limit`.
fn check_page(raw: &[RawEntry], first: u64, limit: u64, trailer: &TrailerLayout) -> Option<Vec<Entry>> {
    let (geometry, data_end) = (trailer.layout.geometry, trailer.layout.data_end);
    let mut entries = Vec::with_capacity(raw.len());
    let (mut next, mut next_at) = (first, 0);
    for raw in raw {
        let entry = raw.check(&geometry, data_end)?;
        if entry.address < next {
            return None;
        }
        next = entry.end(&geometry);
        if let EntryContent::Data { at, len, .. } = entry.content {
            if at < next_at {
                return None;
            }
            next_at = at + u64::from(len);
        }
        entries.push(entry);
    }
    let in_place = entries.first().is_some_and(|entry| entry.address == first) && next <= limit;
    in_place.then_some(entries)
}
