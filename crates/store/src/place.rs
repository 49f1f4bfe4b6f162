//! A VM's directory: the calls of [`Files`] with paths relative to it and errors that say what was being done.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use crate::error::{At, FileError};
use crate::files::{Access, Entry, FileRef, Files, again};

/// A directory of the store.
#[derive(Clone)]
pub(crate) struct Place {
    files: Arc<dyn Files>,
    dir: String,
}

impl Place {
    pub(crate) fn new(files: Arc<dyn Files>, dir: String) -> Self {
        Self { files, dir }
    }

    /// The path from the store's root; the empty path is the directory itself.
    pub(crate) fn path(&self, path: &str) -> String {
        match (self.dir.is_empty(), path.is_empty()) {
            (true, _) => path.to_owned(),
            (_, true) => self.dir.clone(),
            _ => format!("{}/{path}", self.dir),
        }
    }

    fn call<T>(&self, what: &'static str, path: &str, f: impl Fn(&str) -> io::Result<T>) -> Result<T, FileError> {
        let full = self.path(path);
        again(|| f(&full)).at(what, &full)
    }

    pub(crate) fn create(&self, path: &str) -> Result<FileRef, FileError> {
        self.call("create", path, |p| self.files.create(p))
    }

    /// Makes a file anew, whatever bore the name.
    pub(crate) fn create_anew(&self, path: &str) -> Result<FileRef, FileError> {
        self.unlink_if_there(path)?;
        self.create(path)
    }

    pub(crate) fn open(&self, path: &str, access: Access) -> Result<FileRef, FileError> {
        self.call("open", path, |p| self.files.open(p, access))
    }

    /// Opens a file; `None` if there is none of that name.
    pub(crate) fn open_if_there(&self, path: &str, access: Access) -> Result<Option<FileRef>, FileError> {
        if_there(self.open(path, access))
    }

    pub(crate) fn make_dir(&self, path: &str) -> Result<(), FileError> {
        self.call("make the directory", path, |p| self.files.make_dir(p))
    }

    /// Makes a directory unless it is there.
    pub(crate) fn ensure_dir(&self, path: &str) -> Result<(), FileError> {
        match self.make_dir(path) {
            Err(err) if err.err.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            other => other,
        }
    }

    pub(crate) fn remove_dir(&self, path: &str) -> Result<(), FileError> {
        self.call("remove the directory", path, |p| self.files.remove_dir(p))
    }

    pub(crate) fn rename(&self, from: &str, to: &str) -> Result<(), FileError> {
        let to = self.path(to);
        self.call("rename", from, |p| self.files.rename(p, &to))
    }

    pub(crate) fn unlink(&self, path: &str) -> Result<(), FileError> {
        self.call("unlink", path, |p| self.files.unlink(p))
    }

    pub(crate) fn unlink_if_there(&self, path: &str) -> Result<bool, FileError> {
        Ok(if_there(self.unlink(path))?.is_some())
    }

    pub(crate) fn list(&self, path: &str) -> Result<Vec<Entry>, FileError> {
        self.call("list", path, |p| self.files.list(p))
    }

    /// Lists a directory; nothing if it is not there.
    pub(crate) fn list_if_there(&self, path: &str) -> Result<Vec<Entry>, FileError> {
        Ok(if_there(self.list(path))?.unwrap_or_default())
    }

    pub(crate) fn sync_dir(&self, path: &str) -> Result<(), FileError> {
        self.call("sync the directory", path, |p| self.files.sync_dir(p))
    }

    pub(crate) fn sync(&self, file: &FileRef, path: &str) -> Result<(), FileError> {
        self.call("sync", path, |_| file.sync())
    }

    pub(crate) fn len(&self, file: &FileRef, path: &str) -> Result<u64, FileError> {
        self.call("measure", path, |_| file.len())
    }

    pub(crate) fn outside(&self, path: &str) -> PathBuf {
        self.files.outside(&self.path(path))
    }

    pub(crate) fn files(&self) -> &Arc<dyn Files> {
        &self.files
    }
}

/// Turns "not there" into `None`.
fn if_there<T>(result: Result<T, FileError>) -> Result<Option<T>, FileError> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(err) if err.err.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(err) => Err(err),
    }
}
