//! The store's files in the shapes the run crate reads from and writes to.

use std::io;

use understudy_run::{RunSink, RunSource};

use crate::files::{FileRef, read_exact_at, write_all_at};

/// A run being read.
#[derive(Clone)]
pub struct FileSource(pub(crate) FileRef);

impl RunSource for FileSource {
    fn size(&self) -> io::Result<u64> {
        self.0.len()
    }

    fn read_at(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        read_exact_at(&*self.0, offset, out)
    }
}

/// A run being written.
pub(crate) struct FileSink(pub(crate) FileRef);

impl RunSink for FileSink {
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        write_all_at(&*self.0, offset, bytes)
    }
}
