//! Gathers small pieces into large writes and leaves holes where whole blocks are zero.

use std::io;

use crate::codec::is_zero;
use crate::io::RunSink;

/// Bytes gathered before they are written: few system calls, and little next to what a run holds.
const GATHER: usize = 1 << 20;

/// Blocks of file systems: a smaller hole saves nothing.
const BLOCK: usize = 4096;

/// The zeros that alignment asks for are written up to this length; longer gaps become holes.
const GAP_MAX: u64 = BLOCK as u64;

/// A sink with a buffer in front.
pub(crate) struct Output<S> {
    sink: S,
    start: u64,
    buffer: Vec<u8>,
}

impl<S: RunSink> Output<S> {
    pub(crate) fn new(sink: S) -> Self {
        Self { sink, start: 0, buffer: Vec::with_capacity(GATHER) }
    }

    /// Writes `bytes` at `offset`, which is not below anything written so far; what lies between reads as zero.
    pub(crate) fn put(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let end = self.start + self.buffer.len() as u64;
        debug_assert!(offset >= end || self.buffer.is_empty(), "output ascends");
        if !self.buffer.is_empty() && offset > end && offset - end <= GAP_MAX {
            self.buffer.resize((offset - self.start) as usize, 0);
        } else if offset != end {
            self.flush()?;
            self.start = offset;
        }
        self.buffer.extend_from_slice(bytes);
        if self.buffer.len() >= GATHER { self.flush() } else { Ok(()) }
    }

    /// Like [`Self::put`], for whole clusters that may hold large stretches of zeros: those become holes.
    pub(crate) fn put_sparse(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        for (i, block) in bytes.chunks(BLOCK).enumerate() {
            if !is_zero(block) {
                self.put(offset + (i * BLOCK) as u64, block)?;
            }
        }
        Ok(())
    }

    /// Makes the file at least `len` bytes long, also when its tail is zero, and hands everything to the sink.
    pub(crate) fn finish_at(&mut self, len: u64) -> io::Result<()> {
        if self.start + (self.buffer.len() as u64) < len {
            self.put(len - 1, &[0])?;
        }
        self.flush()
    }

    /// Hands all gathered bytes to the sink.
    pub(crate) fn flush(&mut self) -> io::Result<()> {
        if !self.buffer.is_empty() {
            self.sink.write_at(self.start, &self.buffer)?;
            self.start += self.buffer.len() as u64;
            self.buffer.clear();
        }
        Ok(())
    }

    /// The sink, once everything gathered was flushed.
    pub(crate) fn into_sink(self) -> S {
        debug_assert!(self.buffer.is_empty(), "output is flushed before it ends");
        self.sink
    }
}
