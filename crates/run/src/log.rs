//! The entries of a run under construction, as the pages that will end in its trailer.
//!
//! Kept in pages rather than in one vector, so that growing never copies a million entries. Without a spool the memory
//! is what the entries take, 64 bytes each; with one, full pages go there, and 40 bytes remain of every 256 entries.
//! Pages that come back from a spool are checked against their hashes.

use std::io;

use zerocopy::little_endian::U64;
use zerocopy::{FromBytes, IntoBytes};

use crate::build::BuildError;
use crate::entry::{Entry, EntryContent, RAW_ENTRY_LEN, RawEntry};
use crate::geometry::Geometry;
use crate::io::{RunSink, RunSource};
use crate::tables::EntrySeq;
use crate::trailer::{DirectoryEntry, PAGE_ENTRIES, page_hash};

/// Scratch space that is written and read back: an unnamed file, mostly. Empty at first, worthless afterwards.
pub trait Spool: RunSource + RunSink {}

impl<T: RunSource + RunSink> Spool for T {}

const PAGE_LEN: usize = PAGE_ENTRIES * RAW_ENTRY_LEN;

/// All entries pushed so far.
pub(crate) struct EntryLog {
    spool: Option<Box<dyn Spool + Send>>,
    /// Full pages, unless there is a spool for them.
    full: Vec<Box<[RawEntry]>>,
    /// What the trailer's directory will say of the full pages.
    directory: Vec<DirectoryEntry>,
    last: Vec<RawEntry>,
}

impl EntryLog {
    pub(crate) fn new(spool: Option<Box<dyn Spool + Send>>) -> Self {
        Self { spool, full: Vec::new(), directory: Vec::new(), last: Vec::with_capacity(PAGE_ENTRIES) }
    }

    pub(crate) fn push(&mut self, entry: &Entry) -> Result<(), BuildError> {
        self.last.push(RawEntry::new(entry));
        if self.last.len() == PAGE_ENTRIES { self.turn_page() } else { Ok(()) }
    }

    pub(crate) fn len(&self) -> u64 {
        (self.directory.len() * PAGE_ENTRIES + self.last.len()) as u64
    }

    fn turn_page(&mut self) -> Result<(), BuildError> {
        let number = self.directory.len();
        self.directory.push(directory_entry(&self.last));
        match &mut self.spool {
            Some(spool) => {
                spool.write_at((number * PAGE_LEN) as u64, self.last.as_bytes()).map_err(BuildError::Spool)?;
            }
            None => self.full.push(self.last.as_slice().into()),
        }
        self.last.clear();
        Ok(())
    }

    /// Calls `each` for every page, the last one too unless it is empty.
    pub(crate) fn visit_pages(
        &self,
        each: &mut dyn FnMut(&[RawEntry]) -> Result<(), BuildError>,
    ) -> Result<(), BuildError> {
        match &self.spool {
            Some(spool) => self.visit_spooled(spool.as_ref(), each)?,
            None => self.full.iter().try_for_each(|page| each(page))?,
        }
        if self.last.is_empty() { Ok(()) } else { each(&self.last) }
    }

    fn visit_spooled(
        &self,
        spool: &dyn Spool,
        each: &mut dyn FnMut(&[RawEntry]) -> Result<(), BuildError>,
    ) -> Result<(), BuildError> {
        let mut buffer = vec![0; PAGE_LEN];
        for (number, known) in self.directory.iter().enumerate() {
            spool.read_at((number * PAGE_LEN) as u64, &mut buffer).map_err(BuildError::Spool)?;
            if page_hash(&buffer) != known.hash {
                return Err(BuildError::Spool(io::ErrorKind::InvalidData.into()));
            }
            each(<[RawEntry]>::ref_from_bytes(&buffer).expect("a page is an array of entries"))?;
        }
        Ok(())
    }

    /// The whole directory of the trailer.
    pub(crate) fn into_directory(mut self) -> Vec<DirectoryEntry> {
        if !self.last.is_empty() {
            self.directory.push(directory_entry(&self.last));
        }
        self.directory
    }
}

fn directory_entry(page: &[RawEntry]) -> DirectoryEntry {
    DirectoryEntry { first: U64::new(page[0].address.get()), hash: page_hash(page.as_bytes()) }
}

/// A log read back for a run whose data ends at `data_end`.
pub(crate) struct LogReader<'a> {
    pub(crate) log: &'a EntryLog,
    pub(crate) geometry: Geometry,
    pub(crate) data_end: u64,
}

impl EntrySeq<BuildError> for LogReader<'_> {
    fn visit(&mut self, each: &mut dyn FnMut(&Entry) -> Result<(), BuildError>) -> Result<(), BuildError> {
        self.log.visit_pages(&mut |page| {
            page.iter().try_for_each(|raw| {
                let entry = raw.check(&self.geometry, self.data_end);
                each(&entry.expect("the builder logs only entries that make sense"))
            })
        })
    }
}

/// Grows a range of zeros by what directly follows it; `false` when it does not follow.
pub(crate) fn grow_zeros(last: &mut Entry, address: u64, more: u64, geometry: &Geometry) -> bool {
    let adjacent = last.end(geometry) == address;
    match &mut last.content {
        EntryContent::Zeros { count } if adjacent => {
            *count += more;
            true
        }
        _ => false,
    }
}
