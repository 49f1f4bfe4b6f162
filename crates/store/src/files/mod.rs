//! The seam between the store and the file system: a few small, synchronous calls, relative to one root directory.
//!
//! Three versions stand behind it: [`RealFiles`] (a directory of this machine), [`MemFiles`] (a disk in memory that
//! can lose power) and [`FaultyFiles`] (any other version, with the n-th call of a kind failing). Nothing above this
//! module touches a file in any other way, so a crash or a failing disk can be played at every single call.
//!
//! Paths are texts we made ourselves ([`check_path`]): relative, of a closed alphabet, without `.` or `..`. A name
//! from outside never gets here. No version follows a symbolic link.

mod faulty;
mod memory;
mod outside;
mod real;

use std::io;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

pub use faulty::{Call, Fault, FaultPlan, FaultyFiles};
pub use memory::{Crash, MemFiles};
pub use outside::OutsideFile;
pub(crate) use outside::{data_ranges, must_copy};
pub use real::RealFiles;

/// An open file, shared by whoever reads or writes it.
pub type FileRef = Arc<dyn File>;

/// What an entry of a directory is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EntryKind {
    /// A regular file.
    File,
    /// A directory.
    Dir,
    /// Anything else: never ours, never opened.
    Other,
}

/// One entry of a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its name within the directory.
    pub name: String,
    /// What it is.
    pub kind: EntryKind,
}

/// How a file is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// For reading alone.
    Read,
    /// For reading and writing.
    Write,
}

/// A lock on the whole store; given back when dropped, also by a crash.
pub trait Lock: Send + Sync {}

/// A directory tree. Every path is relative to its root.
///
/// What a call did to names (create, rename, unlink, link, make or remove a directory) survives a power cut only
/// after [`Files::sync_dir`] of each directory it touched; what it did to bytes, only after [`File::sync`]. A sync
/// that failed proves nothing, and neither does a later one that succeeds.
pub trait Files: Send + Sync {
    /// Makes a new, empty file. Fails if the name exists.
    fn create(&self, path: &str) -> io::Result<FileRef>;
    /// Opens a regular file.
    fn open(&self, path: &str, access: Access) -> io::Result<FileRef>;
    /// Makes a directory. Fails if the name exists.
    fn make_dir(&self, path: &str) -> io::Result<()>;
    /// Removes an empty directory.
    fn remove_dir(&self, path: &str) -> io::Result<()>;
    /// Gives a file or directory another name, at once replacing a file that bore it.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;
    /// Gives a file a second name. Fails if that name exists.
    fn link(&self, from: &str, to: &str) -> io::Result<()>;
    /// Takes a file's name away; open handles go on working.
    fn unlink(&self, path: &str) -> io::Result<()>;
    /// The entries of a directory, by name; the root is the empty path.
    fn list(&self, dir: &str) -> io::Result<Vec<Entry>>;
    /// Makes what happened to names in a directory durable; the root is the empty path.
    fn sync_dir(&self, dir: &str) -> io::Result<()>;
    /// Bytes that can still be written.
    fn free_space(&self) -> io::Result<u64>;
    /// Takes the lock that a file of this name stands for, making the file if need be. Fails with
    /// [`io::ErrorKind::WouldBlock`] while somebody else holds it.
    fn lock(&self, path: &str) -> io::Result<Box<dyn Lock>>;
    /// Where an outsider finds a path.
    fn outside(&self, path: &str) -> PathBuf;
    /// Moves a file of the outside to a path here, at once, replacing a file that bore the name. Fails with
    /// [`io::ErrorKind::Unsupported`], [`io::ErrorKind::CrossesDevices`] or [`io::ErrorKind::PermissionDenied`], and
    /// leaves the file where it is, if that cannot be done without copying or the file is not the store's to take.
    fn take(&self, _from: &OutsideFile, _to: &str) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
    /// Makes a new file that shares its bytes with one of the outside until either is written to. Fails with
    /// [`io::ErrorKind::Unsupported`] or [`io::ErrorKind::CrossesDevices`], and leaves no file, if that cannot be done
    /// without copying. Fails if the name exists.
    fn share(&self, _from: &OutsideFile, _to: &str) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

/// An open file. All calls may be made from several threads at once.
pub trait File: Send + Sync {
    /// Reads at an offset. May give less than asked for; nothing means the end of the file.
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize>;
    /// Writes at an offset, growing the file if need be. May take less than given.
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<usize>;
    /// Makes the file's bytes and length durable.
    fn sync(&self) -> io::Result<()>;
    /// The length.
    fn len(&self) -> io::Result<u64>;
    /// Whether the length is zero.
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }
    /// Cuts or extends (with zeros, taking no space).
    fn set_len(&self, len: u64) -> io::Result<()>;
    /// Makes a range read as zeros and gives its space back where the file system can. Never changes the length.
    fn punch(&self, offset: u64, len: u64) -> io::Result<()>;
    /// Takes space for the first `len` bytes, so that writing there cannot fail for want of it.
    fn allocate(&self, len: u64) -> io::Result<()>;
    /// Bytes of space the file takes.
    fn allocated(&self) -> io::Result<u64>;
    /// The first range at or after an offset that may hold something else than zeros; none if there is none before the
    /// end. Whoever knows nothing of holes answers with all that is left.
    fn data_from(&self, offset: u64) -> io::Result<Option<Range<u64>>> {
        let len = self.len()?;
        Ok((offset < len).then_some(offset..len))
    }
    /// Lets go of what is remembered of the file's synced bytes, so that reading shows what the disk has: after a sync
    /// that failed, these are not the same.
    fn forget_cached(&self) -> io::Result<()> {
        Ok(())
    }
}

/// Reads exactly `buf.len()` bytes; [`io::ErrorKind::UnexpectedEof`] if the file ends before.
pub fn read_exact_at(file: &dyn File, mut offset: u64, mut buf: &mut [u8]) -> io::Result<()> {
    while !buf.is_empty() {
        match again(|| file.read_at(offset, buf))? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            n => {
                buf = &mut buf[n..];
                offset += n as u64;
            }
        }
    }
    Ok(())
}

/// Writes all of `bytes`.
pub fn write_all_at(file: &dyn File, mut offset: u64, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match again(|| file.write_at(offset, bytes))? {
            0 => return Err(io::ErrorKind::WriteZero.into()),
            n => {
                bytes = &bytes[n..];
                offset += n as u64;
            }
        }
    }
    Ok(())
}

/// [`File::set_len`], whatever signals come.
pub fn set_len(file: &dyn File, len: u64) -> io::Result<()> {
    again(|| file.set_len(len))
}

/// [`File::punch`], whatever signals come.
pub fn punch(file: &dyn File, offset: u64, len: u64) -> io::Result<()> {
    again(|| file.punch(offset, len))
}

/// Repeats a call for as long as a signal interrupts it, [`INTERRUPTS_MAX`] times at most.
pub fn again<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    for _ in 0..INTERRUPTS_MAX {
        match call() {
            Err(err) if err.kind() == io::ErrorKind::Interrupted => {}
            other => return other,
        }
    }
    call()
}

/// A signal that interrupts one call this often is no signal: give up rather than spin.
const INTERRUPTS_MAX: usize = 100;

/// Whether a failure means that space (or quota) ran out.
pub fn is_no_space(err: &io::Error) -> bool {
    matches!(err.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge)
}

/// Longest name of one path component; ours are shorter.
const NAME_MAX: usize = 100;
/// Deepest path: `<vm>/failover/<id>/<file>`.
const DEPTH_MAX: usize = 4;

/// Refuses a path that this crate could not have made.
pub fn check_path(path: &str) -> io::Result<()> {
    let well_made = !path.is_empty() && path.split('/').count() <= DEPTH_MAX && path.split('/').all(is_name);
    if well_made { Ok(()) } else { Err(io::Error::new(io::ErrorKind::InvalidInput, "not a path of the store")) }
}

/// Whether a text is a name this crate could have made: lower-case letters, digits, `-` and single inner dots.
pub fn is_name(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= NAME_MAX
        && !name.starts_with('.')
        && !name.contains("..")
        && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'.'))
}

/// The directory part of a path; empty for a name in the root.
pub fn parent(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(dir, _)| dir)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_paths_we_could_have_made_are_taken() {
        for good in ["lock", "7f2c0b6e-0000-4000-8000-0123456789ab/disk-0/000001.qcow2", "a/b/c/d"] {
            check_path(good).unwrap();
        }
        let bad =
            ["", "/etc/passwd", "a/../b", "..", ".", "a//b", "a/", "A", "a b", "a/b/c/d/e", "a\0b", "é", "~", "a..b"];
        for path in bad {
            assert!(check_path(path).is_err(), "{path:?}");
        }
        assert!(check_path(&"a".repeat(101)).is_err());
    }
}
