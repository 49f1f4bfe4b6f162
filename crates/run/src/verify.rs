//! Looks at every byte of a run, as the scrub does.
//!
//! Clusters are decompressed and hashed, the digest is computed again, the qcow2 tables are generated again from the
//! checksum table and compared, and what should be zero is seen to be zero. So no byte of the file is outside all
//! checks: a single flipped bit is found, wherever it is.

use crate::build::RunSummary;
use crate::codec::is_zero;
use crate::digest::{OrderError, RunDigester};
use crate::entry::{Entry, EntryContent};
use crate::header::{self, HEADER_LEN};
use crate::io::RunSource;
use crate::pace::{Pace, Pacer};
use crate::read::{Part, ReadError, Run, RunReader, read_directory, read_footer, read_header};
use crate::tables::{self, EntrySeq, TableError, TableOut};
use crate::window::Window;

use understudy_model::ErrorKind;

/// Why a run was not found to be whole.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// It could not be read, or is damaged.
    #[error("cannot verify a run")]
    Read(#[from] ReadError),
    /// The pace said to stop.
    #[error("verification was cancelled")]
    Cancelled,
}

impl VerifyError {
    /// What the caller does next.
    pub fn kind(&self) -> ErrorKind {
        match self {
            VerifyError::Read(err) => err.kind(),
            VerifyError::Cancelled => ErrorKind::Retry,
        }
    }
}

impl From<OrderError> for VerifyError {
    fn from(_: OrderError) -> Self {
        damaged(Part::Digest)
    }
}

impl From<TableError> for VerifyError {
    fn from(_: TableError) -> Self {
        damaged(Part::Footer)
    }
}

fn damaged(part: Part) -> VerifyError {
    VerifyError::Read(ReadError::damaged(part))
}

impl<S: RunSource> Run<S> {
    /// Checks every byte of the file. Reads it anew, the parts that [`Run::open`] has seen included.
    pub fn verify(&self, pace: &mut Pace<'_>) -> Result<RunSummary, VerifyError> {
        let mut check = Check { run: self, reader: self.reader()?, pacer: Pacer::new(pace) };
        check.ends()?;
        check.clusters()?;
        check.tables()?;
        Ok(self.summary())
    }
}

struct Check<'a, S> {
    run: &'a Run<S>,
    reader: RunReader<S>,
    pacer: Pacer<'a>,
}

impl<S: RunSource> Check<'_, S> {
    /// The first cluster, the directory and the footer, as they are in the file now.
    fn ends(&mut self) -> Result<(), VerifyError> {
        let inner = &self.run.inner;
        let (footer, trailer) = read_footer(&inner.source)?;
        if footer != inner.footer {
            return Err(damaged(Part::Footer));
        }
        read_directory(&inner.source, &trailer, &footer)?;
        let sector = read_header(&inner.source).map_err(|err| match err {
            ReadError::NotARun => ReadError::damaged(Part::Header),
            err => err,
        })?;
        // Who lies below may have changed since the run was opened; that the sector is whole may not.
        header::decode(&sector, &trailer.layout, trailer.footer_offset).map_err(|()| damaged(Part::Header))?;
        let size = self.run.geometry().cluster_size();
        self.zeros(HEADER_LEN as u64, size, Part::Header)
    }

    /// All clusters and what lies between them, the digest, and the counts in the footer.
    fn clusters(&mut self) -> Result<(), VerifyError> {
        let geometry = *self.run.geometry();
        let mut digester = RunDigester::new(geometry);
        let mut tally = Tally { file_position: geometry.cluster_size(), ..Tally::default() };
        let mut position = 0;
        while let Some(entry) = self.reader.next_from(position)? {
            position = entry.end(&geometry);
            self.entry(&entry, &mut digester, &mut tally)?;
        }
        let layout = &self.run.inner.trailer.layout;
        if tally.file_position != layout.data_end {
            return Err(damaged(Part::Footer));
        }
        self.zeros(layout.data_end, layout.l2_offset, Part::Padding { offset: layout.data_end })?;
        let expected = self.run.summary();
        let counted = (tally.data_clusters, tally.zero_clusters, tally.stored_bytes);
        if counted != (expected.data_clusters, expected.zero_clusters, expected.stored_bytes) {
            return Err(damaged(Part::Footer));
        }
        if digester.finish() == expected.digest { Ok(()) } else { Err(damaged(Part::Digest)) }
    }

    fn entry(&mut self, entry: &Entry, digester: &mut RunDigester, tally: &mut Tally) -> Result<(), VerifyError> {
        let EntryContent::Data { at, len, hash, .. } = entry.content else {
            digester.push_zeros(entry.address, entry.clusters())?;
            tally.zero_clusters += entry.clusters();
            return Ok(());
        };
        if at < tally.file_position {
            return Err(damaged(Part::Cluster { address: entry.address }));
        }
        self.zeros(tally.file_position, at, Part::Padding { offset: tally.file_position })?;
        let inside = self.run.geometry().len_at(entry.address) as usize;
        // Two frames may hold the same bytes: that this is the one which was put here, its check says.
        self.reader.record(entry)?;
        let cluster = self.reader.read_cluster(entry)?;
        if is_zero(cluster) || !is_zero(&cluster[inside..]) {
            return Err(damaged(Part::Cluster { address: entry.address }));
        }
        digester.push_data(entry.address, &hash)?;
        tally.file_position = at + u64::from(len);
        tally.data_clusters += 1;
        tally.stored_bytes += u64::from(len);
        self.pace(u64::from(len))
    }

    /// The qcow2 tables, against those that the entries give.
    fn tables(&mut self) -> Result<(), VerifyError> {
        let mut entries = RunEntries { reader: self.run.reader()? };
        let mut compare = CompareTables { source: &self.run.inner.source, window: Window::default(), limit: 0 };
        compare.limit = self.run.inner.trailer.layout.trailer_offset;
        let mut paced = PacedTables { compare, pacer: &mut self.pacer };
        tables::emit(&self.run.inner.trailer.layout, &mut entries, &mut paced)
    }

    /// Sees that a stretch of the file is zero.
    fn zeros(&mut self, from: u64, to: u64, part: Part) -> Result<(), VerifyError> {
        const PIECE: u64 = 64 << 10;
        let source = &self.run.inner.source;
        let mut offset = from;
        while offset < to {
            let len = PIECE.min(to - offset) as usize;
            let bytes = self.reader.window.bytes(source, offset, len, to).map_err(ReadError::Io)?;
            if !is_zero(bytes) {
                return Err(damaged(part));
            }
            offset += len as u64;
            self.pace(len as u64)?;
        }
        Ok(())
    }

    fn pace(&mut self, bytes: u64) -> Result<(), VerifyError> {
        if self.pacer.add(bytes).is_break() { Err(VerifyError::Cancelled) } else { Ok(()) }
    }
}

#[derive(Default)]
struct Tally {
    file_position: u64,
    data_clusters: u64,
    zero_clusters: u64,
    stored_bytes: u64,
}

/// A run's entries, gone through once for each kind of table.
struct RunEntries<S> {
    reader: RunReader<S>,
}

impl<S: RunSource> EntrySeq<VerifyError> for RunEntries<S> {
    fn visit(&mut self, each: &mut dyn FnMut(&Entry) -> Result<(), VerifyError>) -> Result<(), VerifyError> {
        for number in 0..self.reader.run().inner.trailer.pages() {
            self.reader.load(number)?.iter().try_for_each(&mut *each)?;
        }
        Ok(())
    }
}

/// Compares generated tables with those in the file.
struct CompareTables<'a, S> {
    source: &'a S,
    window: Window,
    limit: u64,
}

struct PacedTables<'a, 'b, S> {
    compare: CompareTables<'a, S>,
    pacer: &'a mut Pacer<'b>,
}

impl<S: RunSource> TableOut<VerifyError> for PacedTables<'_, '_, S> {
    fn put(&mut self, offset: u64, bytes: &[u8]) -> Result<(), VerifyError> {
        let compare = &mut self.compare;
        let found = compare.window.bytes(compare.source, offset, bytes.len(), compare.limit).map_err(ReadError::Io)?;
        if found != bytes {
            return Err(damaged(Part::Table { offset }));
        }
        if self.pacer.add(bytes.len() as u64).is_break() { Err(VerifyError::Cancelled) } else { Ok(()) }
    }
}
