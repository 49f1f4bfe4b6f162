//! The entries of a run under construction, as the pages that will end in its trailer.
//!
//! Kept in pages rather than in one vector, so that growing never copies a million entries and the memory is what the
//! entries take: 56 bytes for each data cluster and for each range of zeros.

use crate::entry::{Entry, EntryContent, RawEntry};
use crate::geometry::Geometry;
use crate::tables::EntrySeq;
use crate::trailer::PAGE_ENTRIES;

/// All entries pushed so far.
#[derive(Default)]
pub(crate) struct EntryLog {
    pages: Vec<Vec<RawEntry>>,
    len: u64,
}

impl EntryLog {
    pub(crate) fn push(&mut self, entry: &Entry) {
        match self.pages.last_mut() {
            Some(page) if page.len() < PAGE_ENTRIES => page.push(RawEntry::new(entry)),
            _ => {
                let mut page = Vec::with_capacity(PAGE_ENTRIES);
                page.push(RawEntry::new(entry));
                self.pages.push(page);
            }
        }
        self.len += 1;
    }

    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    pub(crate) fn pages(&self) -> impl Iterator<Item = &[RawEntry]> {
        self.pages.iter().map(Vec::as_slice)
    }
}

/// A log read back for a run whose data ends at `data_end`.
pub(crate) struct LogReader<'a> {
    pub(crate) log: &'a EntryLog,
    pub(crate) geometry: Geometry,
    pub(crate) data_end: u64,
}

impl<E> EntrySeq<E> for LogReader<'_> {
    fn visit(&mut self, each: &mut dyn FnMut(&Entry) -> Result<(), E>) -> Result<(), E> {
        for raw in self.log.pages().flatten() {
            let entry =
                raw.check(&self.geometry, self.data_end).expect("the builder logs only entries that make sense");
            each(&entry)?;
        }
        Ok(())
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
