//! Reading ahead: a run is mostly read forward, in pieces of a kilobyte or two.

use std::io;

use crate::io::RunSource;

/// Bytes read at once at most.
const AHEAD_MAX: usize = 1 << 20;
/// Bytes read ahead when reading forward begins; doubled each time.
const AHEAD_MIN: usize = 16 << 10;
/// A jump forward of up to this much still counts as reading forward.
const JUMP: u64 = 256 << 10;

/// A stretch of a file in memory. Grows only when reads follow each other, so many idle readers cost little.
#[derive(Default)]
pub(crate) struct Window {
    start: u64,
    buffer: Vec<u8>,
    ahead: usize,
}

impl Window {
    /// The `len` bytes at `offset`; reads ahead no further than `limit`, unless asked for.
    pub(crate) fn bytes(&mut self, source: &impl RunSource, offset: u64, len: usize, limit: u64) -> io::Result<&[u8]> {
        let end = self.start + self.buffer.len() as u64;
        if offset < self.start || offset + len as u64 > end {
            let forward = !self.buffer.is_empty() && offset >= self.start && offset.saturating_sub(end) <= JUMP;
            self.ahead = if forward { (self.ahead * 2).clamp(AHEAD_MIN, AHEAD_MAX) } else { 0 };
            let ahead = limit.saturating_sub(offset).min(self.ahead as u64) as usize;
            self.refill(source, offset, len.max(ahead))?;
        }
        let from = (offset - self.start) as usize;
        Ok(&self.buffer[from..from + len])
    }

    fn refill(&mut self, source: &impl RunSource, offset: u64, len: usize) -> io::Result<()> {
        self.buffer.resize(len, 0);
        self.start = offset;
        let done = source.read_at(offset, &mut self.buffer);
        if done.is_err() {
            self.buffer.clear();
        }
        done
    }
}
