//! Writes a run into the raw base below it, so that the base becomes what the run made of it.
//!
//! Safe at any crash and any number of times: until somebody says otherwise the run still lies on top and hides what
//! was written. Every cluster is checked before it is written. Syncing the base, and then saying otherwise, is the
//! caller's part.

use std::io;

use understudy_model::ErrorKind;

use crate::entry::{Entry, EntryContent};
use crate::io::{BaseWrite, RunSource, io_kind};
use crate::pace::{Pace, Pacer};
use crate::read::{ReadError, Run, RunReader};

/// Neighbouring clusters gather up to this length before they are written.
const GATHER: usize = 1 << 20;

/// Why a run was not written into its base. Parts of it may have been.
#[derive(Debug, thiserror::Error)]
pub enum CommitError {
    /// The run cannot be read, or is damaged.
    #[error("cannot read the run to be committed")]
    Read(#[from] ReadError),
    /// The base cannot be written.
    #[error("cannot write the base")]
    Write(#[source] io::Error),
    /// The pace said to stop.
    #[error("commit was cancelled")]
    Cancelled,
}

impl CommitError {
    /// What the caller does next.
    pub fn kind(&self) -> ErrorKind {
        match self {
            CommitError::Read(err) => err.kind(),
            CommitError::Write(err) => io_kind(err),
            CommitError::Cancelled => ErrorKind::Retry,
        }
    }
}

/// Writes all clusters of `run` into `base`, growing it to the run's disk size first; zeros give their space back.
pub fn commit<S: RunSource>(run: &Run<S>, base: &mut impl BaseWrite, pace: &mut Pace<'_>) -> Result<(), CommitError> {
    let virtual_size = run.geometry().virtual_size();
    base.grow_to(virtual_size).map_err(CommitError::Write)?;
    let mut writer = BaseWriter { base, start: 0, gathered: Vec::with_capacity(GATHER) };
    let mut reader = run.reader()?;
    let mut pacer = Pacer::new(pace);
    let mut position = 0;
    while let Some(entry) = reader.next_from(position)? {
        position = entry.end(run.geometry());
        let end = position.min(virtual_size);
        commit_entry(&entry, end, &mut reader, &mut writer)?;
        let cost = if matches!(entry.content, EntryContent::Data { .. }) { end - entry.address } else { 4096 };
        if pacer.add(cost).is_break() {
            return Err(CommitError::Cancelled);
        }
    }
    writer.flush().map_err(CommitError::Write)
}

fn commit_entry<S: RunSource>(
    entry: &Entry,
    end: u64,
    reader: &mut RunReader<S>,
    writer: &mut BaseWriter<'_, impl BaseWrite>,
) -> Result<(), CommitError> {
    let len = end - entry.address;
    match entry.content {
        EntryContent::Zeros { .. } => writer.zeros(entry.address, len),
        EntryContent::Data { .. } => writer.data(entry.address, &reader.read_cluster(entry)?[..len as usize]),
    }
    .map_err(CommitError::Write)
}

/// Joins neighbouring clusters into longer writes.
struct BaseWriter<'a, B> {
    base: &'a mut B,
    start: u64,
    gathered: Vec<u8>,
}

impl<B: BaseWrite> BaseWriter<'_, B> {
    fn data(&mut self, address: u64, bytes: &[u8]) -> io::Result<()> {
        let adjacent = self.start + self.gathered.len() as u64 == address;
        if !adjacent || self.gathered.len() + bytes.len() > GATHER {
            self.flush()?;
            self.start = address;
        }
        self.gathered.extend_from_slice(bytes);
        Ok(())
    }

    fn zeros(&mut self, address: u64, len: u64) -> io::Result<()> {
        self.flush()?;
        self.base.write_zeros(address, len)
    }

    fn flush(&mut self) -> io::Result<()> {
        if !self.gathered.is_empty() {
            self.base.write_at(self.start, &self.gathered)?;
            self.start += self.gathered.len() as u64;
            self.gathered.clear();
        }
        Ok(())
    }
}
