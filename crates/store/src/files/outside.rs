//! A file outside of the store's tree, opened so that its bytes can be brought in: a seed, mostly.
//!
//! Its path comes from an operator. It is used once more, to move the file, and then only while it still leads to the
//! file that was opened.

use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::real::RealFile;
use super::{File, FileRef, MemFiles};

/// A file of the outside, open for reading.
pub struct OutsideFile {
    pub(super) file: FileRef,
    pub(super) origin: Origin,
}

/// Where such a file is, for whoever can bring it in without copying.
pub(super) enum Origin {
    Real { file: Arc<RealFile>, path: PathBuf },
    Memory { files: MemFiles, path: String },
}

impl OutsideFile {
    /// Opens a regular file of this machine. The last part of the path may be no symbolic link.
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = Arc::new(RealFile::open_outside(path)?);
        let path = std::path::absolute(path)?;
        Ok(Self { file: file.clone(), origin: Origin::Real { file, path } })
    }

    /// Where it was found.
    pub fn path(&self) -> &Path {
        match &self.origin {
            Origin::Real { path, .. } => path,
            Origin::Memory { path, .. } => Path::new(path),
        }
    }

    /// Its length.
    pub fn size(&self) -> io::Result<u64> {
        self.file.len()
    }

    pub(crate) fn file(&self) -> &dyn File {
        &*self.file
    }
}

/// Whether bringing a file in without copying failed only because it cannot be done: on another file system, not ours,
/// known by a second name, or nothing that this file system knows of.
pub(crate) fn must_copy(err: &io::Error) -> bool {
    matches!(err.kind(), io::ErrorKind::Unsupported | io::ErrorKind::CrossesDevices | io::ErrorKind::PermissionDenied)
}

/// The pieces of a file that may hold something else than zeros, from an offset on.
pub(crate) fn data_ranges(file: &dyn File, from: u64) -> impl Iterator<Item = io::Result<Range<u64>>> + '_ {
    let mut at = Some(from);
    std::iter::from_fn(move || {
        let from = at?;
        let found = super::again(|| file.data_from(from));
        at = found.as_ref().ok().and_then(|range| range.as_ref()).map(|range| range.end);
        found.transpose()
    })
}
