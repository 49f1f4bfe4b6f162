//! A disk as a chain shows it: runs, newest on top, over a raw base.
//!
//! Which runs and which base belong together is the caller's knowledge; the names in the headers are not looked at.

use std::ops::Range;

use crate::io::RunSource;
use crate::read::{ReadError, Run, RunReader};

/// What lies below a run: a disk's bytes at the cut the run follows. Beyond its end it reads as zeros.
pub trait Below {
    /// Fills `out` with the disk's bytes from `offset`.
    fn read_below(&mut self, offset: u64, out: &mut [u8]) -> Result<(), ReadError>;
}

/// Below a run that stands on nothing: zeros.
#[derive(Debug, Clone, Copy, Default)]
pub struct Nothing;

impl Below for Nothing {
    fn read_below(&mut self, _offset: u64, out: &mut [u8]) -> Result<(), ReadError> {
        out.fill(0);
        Ok(())
    }
}

/// A raw base.
#[derive(Debug)]
pub struct RawBase<S> {
    source: S,
    size: u64,
}

impl<S: RunSource> RawBase<S> {
    /// The base that `source` holds, of the length it has now.
    pub fn new(source: S) -> Result<Self, ReadError> {
        let size = source.size().map_err(ReadError::Io)?;
        Ok(Self { source, size })
    }
}

impl<S: RunSource> Below for RawBase<S> {
    fn read_below(&mut self, offset: u64, out: &mut [u8]) -> Result<(), ReadError> {
        let inside = self.size.saturating_sub(offset).min(out.len() as u64) as usize;
        let (out, beyond) = out.split_at_mut(inside);
        beyond.fill(0);
        if out.is_empty() {
            return Ok(());
        }
        self.source.read_at(offset, out).map_err(ReadError::Io)
    }
}

/// Reads the disk that a chain of runs makes of what lies below it.
pub struct ChainReader<S, B> {
    runs: Vec<RunReader<S>>,
    below: B,
}

impl<S: RunSource, B: Below> ChainReader<S, B> {
    /// A reader of `runs`, newest first, over `below`.
    pub fn new(runs: &[Run<S>], below: B) -> Result<Self, ReadError> {
        Ok(Self { runs: runs.iter().map(Run::reader).collect::<Result<_, _>>()?, below })
    }

    /// Fills `out` with the disk's bytes from `offset`. Every cluster is checked; a damaged one is an error and never
    /// read through.
    pub fn read_at(&mut self, offset: u64, out: &mut [u8]) -> Result<(), ReadError> {
        read_through(self.runs.iter_mut(), &mut self.below, offset, out)
    }
}

impl<S: RunSource, B: Below> Below for ChainReader<S, B> {
    fn read_below(&mut self, offset: u64, out: &mut [u8]) -> Result<(), ReadError> {
        self.read_at(offset, out)
    }
}

/// Fills `out` from the newest run that says something about each byte, else from below.
pub(crate) fn read_through<'a, S: RunSource + 'a>(
    newest_first: impl Iterator<Item = &'a mut RunReader<S>>,
    below: &mut impl Below,
    offset: u64,
    out: &mut [u8],
) -> Result<(), ReadError> {
    let whole = 0..out.len();
    let mut missing: Vec<Range<usize>> = vec![whole];
    for run in newest_first {
        let mut still = Vec::new();
        for gap in missing {
            run.fill(offset + gap.start as u64, &mut out[gap.clone()], gap.start, &mut still)?;
        }
        missing = still;
        if missing.is_empty() {
            return Ok(());
        }
    }
    for gap in missing {
        below.read_below(offset + gap.start as u64, &mut out[gap])?;
    }
    Ok(())
}
