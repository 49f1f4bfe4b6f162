//! Files that lie about having been synced.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use understudy_store::files::{Access, Entry, File, FileRef, Files, Lock};

use super::Mutation;

/// Files over others, with one of the mistakes about syncing.
pub struct LyingFiles {
    inner: Arc<dyn Files>,
    lie: Mutation,
}

impl LyingFiles {
    /// Over these files.
    pub fn new(inner: Arc<dyn Files>, lie: Mutation) -> Self {
        Self { inner, lie }
    }

    fn file(&self, inner: FileRef) -> FileRef {
        Arc::new(LyingFile { inner, lie: self.lie })
    }
}

/// The outcome of a sync as it is told.
fn told(lie: Mutation, all: Mutation, sync: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
    match lie {
        lie if lie == all => Ok(()),
        Mutation::FailedSyncIgnored => {
            let _ = sync();
            Ok(())
        }
        _ => sync(),
    }
}

impl Files for LyingFiles {
    fn create(&self, path: &str) -> io::Result<FileRef> {
        Ok(self.file(self.inner.create(path)?))
    }

    fn open(&self, path: &str, access: Access) -> io::Result<FileRef> {
        Ok(self.file(self.inner.open(path, access)?))
    }

    fn make_dir(&self, path: &str) -> io::Result<()> {
        self.inner.make_dir(path)
    }

    fn remove_dir(&self, path: &str) -> io::Result<()> {
        self.inner.remove_dir(path)
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.inner.rename(from, to)
    }

    fn link(&self, from: &str, to: &str) -> io::Result<()> {
        self.inner.link(from, to)
    }

    fn unlink(&self, path: &str) -> io::Result<()> {
        self.inner.unlink(path)
    }

    fn list(&self, dir: &str) -> io::Result<Vec<Entry>> {
        self.inner.list(dir)
    }

    fn sync_dir(&self, dir: &str) -> io::Result<()> {
        told(self.lie, Mutation::NamesNotSynced, || self.inner.sync_dir(dir))
    }

    fn free_space(&self) -> io::Result<u64> {
        self.inner.free_space()
    }

    fn lock(&self, path: &str) -> io::Result<Box<dyn Lock>> {
        self.inner.lock(path)
    }

    fn outside(&self, path: &str) -> PathBuf {
        self.inner.outside(path)
    }
}

struct LyingFile {
    inner: FileRef,
    lie: Mutation,
}

impl File for LyingFile {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        self.inner.read_at(offset, buf)
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<usize> {
        self.inner.write_at(offset, bytes)
    }

    fn sync(&self) -> io::Result<()> {
        told(self.lie, Mutation::FilesNotSynced, || self.inner.sync())
    }

    fn len(&self) -> io::Result<u64> {
        self.inner.len()
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.inner.set_len(len)
    }

    fn punch(&self, offset: u64, len: u64) -> io::Result<()> {
        self.inner.punch(offset, len)
    }

    fn allocate(&self, len: u64) -> io::Result<()> {
        self.inner.allocate(len)
    }

    fn allocated(&self) -> io::Result<u64> {
        self.inner.allocated()
    }
}
