//! Files beneath a directory of this machine.
//!
//! Each component of a path is opened relative to its parent's handle and without following symbolic links, so a link
//! planted in the store is an error and never a way out of it.

use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{
    self, Advice, AtFlags, CWD, Dir, FallocateFlags, FileType, FlockOperation, Mode, OFlags, SeekFrom, Stat,
};

use super::outside::{Origin, OutsideFile};
use super::{Access, Entry, EntryKind, File, FileRef, Files, Lock, check_path};

/// Readable by the service's user alone.
const FILE_MODE: Mode = Mode::RUSR.union(Mode::WUSR);
/// Likewise.
const DIR_MODE: Mode = Mode::RWXU;

/// A directory tree of this machine.
pub struct RealFiles {
    root: OwnedFd,
    path: PathBuf,
}

impl RealFiles {
    /// The tree beneath an existing directory. The path comes from the host's own configuration and may lead through
    /// links; everything beneath may not.
    pub fn open(path: &Path) -> io::Result<Self> {
        let root = fs::open(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        Ok(Self { root, path: path.canonicalize()? })
    }

    /// Calls `f` with the handle of the directory a path lies in and the path's last component.
    fn beneath<T>(&self, path: &str, f: impl FnOnce(&OwnedFd, &str) -> rustix::io::Result<T>) -> io::Result<T> {
        check_path(path)?;
        let Some((dir, name)) = path.rsplit_once('/') else { return Ok(f(&self.root, path)?) };
        let dir = self.dir(dir)?;
        Ok(f(&dir, name)?)
    }

    fn dir(&self, path: &str) -> io::Result<OwnedFd> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        if path.is_empty() {
            return Ok(fs::openat(&self.root, ".", flags, Mode::empty())?);
        }
        check_path(path)?;
        let mut names = path.split('/');
        let first = names.next().expect("a split has a first part");
        let mut dir = fs::openat(&self.root, first, flags, Mode::empty())?;
        for name in names {
            dir = fs::openat(&dir, name, flags, Mode::empty())?;
        }
        Ok(dir)
    }

    fn open_with(&self, path: &str, flags: OFlags) -> io::Result<FileRef> {
        // NONBLOCK: a FIFO planted under one of our names must not hang us before its type is seen.
        let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let fd = self.beneath(path, |dir, name| fs::openat(dir, name, flags, FILE_MODE))?;
        Ok(Arc::new(RealFile::checked(fd)?))
    }
}

impl Files for RealFiles {
    fn create(&self, path: &str) -> io::Result<FileRef> {
        self.open_with(path, OFlags::RDWR | OFlags::CREATE | OFlags::EXCL)
    }

    fn open(&self, path: &str, access: Access) -> io::Result<FileRef> {
        self.open_with(path, if access == Access::Read { OFlags::RDONLY } else { OFlags::RDWR })
    }

    fn make_dir(&self, path: &str) -> io::Result<()> {
        self.beneath(path, |dir, name| fs::mkdirat(dir, name, DIR_MODE))
    }

    fn remove_dir(&self, path: &str) -> io::Result<()> {
        self.beneath(path, |dir, name| fs::unlinkat(dir, name, AtFlags::REMOVEDIR))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        check_path(to)?;
        let (to_dir, to_name) = (self.dir(super::parent(to))?, to.rsplit('/').next().unwrap_or(to));
        self.beneath(from, |dir, name| fs::renameat(dir, name, &to_dir, to_name))
    }

    fn link(&self, from: &str, to: &str) -> io::Result<()> {
        check_path(to)?;
        let (to_dir, to_name) = (self.dir(super::parent(to))?, to.rsplit('/').next().unwrap_or(to));
        self.beneath(from, |dir, name| fs::linkat(dir, name, &to_dir, to_name, AtFlags::empty()))
    }

    fn unlink(&self, path: &str) -> io::Result<()> {
        self.beneath(path, |dir, name| fs::unlinkat(dir, name, AtFlags::empty()))
    }

    fn list(&self, dir: &str) -> io::Result<Vec<Entry>> {
        let mut out = Vec::new();
        for entry in Dir::read_from(self.dir(dir)?)? {
            let entry = entry?;
            // A name that is no UTF-8 is none of ours.
            let Ok(name) = entry.file_name().to_str() else { continue };
            if name == "." || name == ".." {
                continue;
            }
            let kind = match entry.file_type() {
                FileType::RegularFile => EntryKind::File,
                FileType::Directory => EntryKind::Dir,
                FileType::Unknown => self.kind_of(dir, name)?,
                _ => EntryKind::Other,
            };
            out.push(Entry { name: name.to_owned(), kind });
        }
        out.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(out)
    }

    fn sync_dir(&self, dir: &str) -> io::Result<()> {
        Ok(fs::fsync(self.dir(dir)?)?)
    }

    fn free_space(&self) -> io::Result<u64> {
        let stat = fs::fstatvfs(&self.root)?;
        Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
    }

    fn lock(&self, path: &str) -> io::Result<Box<dyn Lock>> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = self.beneath(path, |dir, name| fs::openat(dir, name, flags, FILE_MODE))?;
        fs::flock(&fd, FlockOperation::NonBlockingLockExclusive)?;
        Ok(Box::new(RealLock { fd }))
    }

    fn outside(&self, path: &str) -> PathBuf {
        self.path.join(path)
    }

    fn take(&self, from: &OutsideFile, to: &str) -> io::Result<()> {
        let Origin::Real { file, path } = &from.origin else { return Err(io::ErrorKind::Unsupported.into()) };
        check_path(to)?;
        let opened = fs::fstat(&file.fd)?;
        let is_ours = opened.st_nlink == 1 && opened.st_uid == rustix::process::geteuid().as_raw();
        if !is_ours {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        let exchanged = || io::Error::new(io::ErrorKind::NotFound, "the file was exchanged for another");
        if !is_same(&opened, &fs::statat(CWD, path, AtFlags::SYMLINK_NOFOLLOW)?) {
            return Err(exchanged());
        }
        fs::fchmod(&file.fd, FILE_MODE)?;
        let (to_dir, to_name) = (self.dir(super::parent(to))?, to.rsplit('/').next().unwrap_or(to));
        fs::renameat(CWD, path, &to_dir, to_name)?;
        if is_same(&opened, &fs::statat(&to_dir, to_name, AtFlags::SYMLINK_NOFOLLOW)?) {
            return Ok(());
        }
        // Somebody was quicker than the look just before: what is not the file that was opened goes back.
        fs::renameat(&to_dir, to_name, CWD, path)?;
        Err(exchanged())
    }

    fn share(&self, from: &OutsideFile, to: &str) -> io::Result<()> {
        let Origin::Real { file, .. } = &from.origin else { return Err(io::ErrorKind::Unsupported.into()) };
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let made = self.beneath(to, |dir, name| fs::openat(dir, name, flags, FILE_MODE))?;
        let Err(err) = fs::ioctl_ficlone(&made, &file.fd) else { return Ok(()) };
        self.unlink(to)?;
        use rustix::io::Errno;
        // What file systems say that know nothing of it, or not between these two files.
        let cannot = [Errno::OPNOTSUPP, Errno::NOTTY, Errno::INVAL, Errno::NOSYS, Errno::TXTBSY].contains(&err);
        Err(if cannot { io::ErrorKind::Unsupported.into() } else { err.into() })
    }
}

fn is_same(a: &Stat, b: &Stat) -> bool {
    (a.st_dev, a.st_ino) == (b.st_dev, b.st_ino)
}

impl RealFiles {
    /// Some file systems do not say in the listing what an entry is.
    fn kind_of(&self, dir: &str, name: &str) -> io::Result<EntryKind> {
        let dir = self.dir(dir)?;
        let stat = fs::statat(&dir, name, AtFlags::SYMLINK_NOFOLLOW)?;
        Ok(match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => EntryKind::File,
            FileType::Directory => EntryKind::Dir,
            _ => EntryKind::Other,
        })
    }
}

/// The lock is the open file's; the kernel gives it back with the last handle, however the process ends.
struct RealLock {
    fd: OwnedFd,
}

impl Lock for RealLock {}

impl Drop for RealLock {
    /// Closing alone would leave the lock with a child that was forked just now and has not yet become its program.
    fn drop(&mut self) {
        // A failure leaves what closing does.
        let _ = fs::flock(&self.fd, FlockOperation::Unlock);
    }
}

pub(super) struct RealFile {
    fd: OwnedFd,
}

impl RealFile {
    /// Opens a file of this machine for reading.
    pub(super) fn open_outside(path: &Path) -> io::Result<Self> {
        // NONBLOCK: as within the tree, a FIFO must not hang us before its type is seen.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
        Self::checked(fs::open(path, flags, Mode::empty())?)
    }

    fn checked(fd: OwnedFd) -> io::Result<Self> {
        if !FileType::from_raw_mode(fs::fstat(&fd)?.st_mode).is_file() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
        }
        Ok(Self { fd })
    }
}

impl File for RealFile {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        Ok(rustix::io::pread(&self.fd, buf, offset)?)
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<usize> {
        Ok(rustix::io::pwrite(&self.fd, bytes, offset)?)
    }

    fn sync(&self) -> io::Result<()> {
        Ok(fs::fdatasync(&self.fd)?)
    }

    fn len(&self) -> io::Result<u64> {
        let len = fs::fstat(&self.fd)?.st_size;
        u64::try_from(len).map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "a file of negative length"))
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        Ok(fs::ftruncate(&self.fd, len)?)
    }

    fn punch(&self, offset: u64, len: u64) -> io::Result<()> {
        if len == 0 {
            return Ok(());
        }
        match fs::fallocate(&self.fd, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, offset, len) {
            Err(rustix::io::Errno::OPNOTSUPP) => write_zeros(self, offset, len),
            other => Ok(other?),
        }
    }

    fn allocate(&self, len: u64) -> io::Result<()> {
        match fs::fallocate(self.fd.as_fd(), FallocateFlags::empty(), 0, len) {
            Err(rustix::io::Errno::OPNOTSUPP) => write_zeros(self, 0, len),
            other => Ok(other?),
        }
    }

    fn allocated(&self) -> io::Result<u64> {
        let blocks = fs::fstat(&self.fd)?.st_blocks;
        Ok(u64::try_from(blocks).unwrap_or(0).saturating_mul(512))
    }

    fn data_from(&self, offset: u64) -> io::Result<Option<Range<u64>>> {
        match fs::seek(&self.fd, SeekFrom::Data(offset)) {
            // Nothing but holes is left, or the offset is the end.
            Err(rustix::io::Errno::NXIO) => Ok(None),
            Err(err) => Err(err.into()),
            Ok(start) => Ok(Some(start..fs::seek(&self.fd, SeekFrom::Hole(start))?)),
        }
    }

    fn forget_cached(&self) -> io::Result<()> {
        Ok(fs::fadvise(&self.fd, 0, None, Advice::DontNeed)?)
    }
}

/// For file systems without holes.
fn write_zeros(file: &RealFile, offset: u64, len: u64) -> io::Result<()> {
    const PIECE: usize = 64 << 10;
    let zeros = [0; PIECE];
    // A hole never changes the length, so zeros must not either.
    let end = (offset + len).min(file.len()?.max(offset));
    let mut at = offset;
    while at < end {
        let n = (end - at).min(PIECE as u64);
        super::write_all_at(file, at, &zeros[..n as usize])?;
        at += n;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree() -> (tempfile::TempDir, RealFiles) {
        let dir = tempfile::tempdir().unwrap();
        let files = RealFiles::open(dir.path()).unwrap();
        (dir, files)
    }

    #[test]
    fn a_link_planted_in_the_tree_is_never_followed() {
        let (dir, files) = tree();
        let outside = tempfile::tempdir().unwrap();
        std::fs::write(outside.path().join("secret"), b"secret").unwrap();
        std::os::unix::fs::symlink(outside.path(), dir.path().join("vm")).unwrap();
        std::os::unix::fs::symlink(outside.path().join("secret"), dir.path().join("file")).unwrap();
        assert!(files.open("vm/secret", Access::Read).is_err());
        assert!(files.open("file", Access::Read).is_err());
        assert!(files.create("vm/new").is_err());
        assert!(files.list("vm").is_err());
        assert!(files.rename("file", "vm/file").is_err());
        assert!(files.lock("file").is_err());
        assert_eq!(files.list("").unwrap().iter().filter(|e| e.kind == EntryKind::Other).count(), 2);
    }

    #[test]
    fn what_is_no_regular_file_is_not_opened() {
        let (dir, files) = tree();
        rustix::fs::mknodat(rustix::fs::CWD, dir.path().join("pipe"), FileType::Fifo, FILE_MODE, 0).unwrap();
        assert!(files.open("pipe", Access::Read).is_err());
        files.make_dir("d").unwrap();
        assert!(files.open("d", Access::Read).is_err());
    }

    #[test]
    fn the_lock_is_held_by_one_at_a_time() {
        let (_dir, files) = tree();
        let held = files.lock("lock").unwrap();
        assert_eq!(files.lock("lock").err().unwrap().kind(), io::ErrorKind::WouldBlock);
        drop(held);
        files.lock("lock").unwrap();
    }

    fn outside(dir: &Path, name: &str, bytes: &[u8]) -> OutsideFile {
        std::fs::write(dir.join(name), bytes).unwrap();
        OutsideFile::open(&dir.join(name)).unwrap()
    }

    #[test]
    fn a_file_of_the_outside_is_moved_here_and_becomes_private() {
        use std::os::unix::fs::PermissionsExt;
        let (dir, files) = tree();
        files.make_dir("d").unwrap();
        let other = tempfile::tempdir_in(dir.path().parent().unwrap()).unwrap();
        let seed = outside(other.path(), "My Seed.raw", b"bytes");
        files.take(&seed, "d/f").unwrap();
        assert!(!other.path().join("My Seed.raw").exists());
        assert_eq!(std::fs::read(dir.path().join("d/f")).unwrap(), b"bytes");
        assert_eq!(std::fs::metadata(dir.path().join("d/f")).unwrap().permissions().mode() & 0o077, 0);
    }

    #[test]
    fn what_others_know_by_another_name_or_exchanged_meanwhile_is_not_taken() {
        let (dir, files) = tree();
        let other = tempfile::tempdir_in(dir.path().parent().unwrap()).unwrap();
        let linked = outside(other.path(), "linked", b"bytes");
        std::fs::hard_link(other.path().join("linked"), other.path().join("name")).unwrap();
        assert!(super::super::must_copy(&files.take(&linked, "f").unwrap_err()));
        let exchanged = outside(other.path(), "exchanged", b"bytes");
        std::fs::rename(other.path().join("exchanged"), other.path().join("old")).unwrap();
        std::fs::write(other.path().join("exchanged"), b"other").unwrap();
        assert!(!super::super::must_copy(&files.take(&exchanged, "f").unwrap_err()));
        std::os::unix::fs::symlink(other.path().join("linked"), other.path().join("link")).unwrap();
        assert!(OutsideFile::open(&other.path().join("link")).is_err());
        assert!(OutsideFile::open(other.path()).is_err());
        assert_eq!(files.list("").unwrap(), []);
        assert_eq!(std::fs::read(other.path().join("exchanged")).unwrap(), b"other");
    }

    #[test]
    fn sharing_bytes_works_or_leaves_nothing() {
        let (dir, files) = tree();
        let seed = outside(dir.path(), "seed", &[7; 10_000]);
        match files.share(&seed, "f") {
            Ok(()) => assert_eq!(std::fs::read(dir.path().join("f")).unwrap(), [7; 10_000]),
            Err(err) => assert!(super::super::must_copy(&err) && !dir.path().join("f").exists(), "{err}"),
        }
    }

    #[test]
    fn data_lies_where_something_was_written() {
        let (_dir, files) = tree();
        let file = files.create("f").unwrap();
        file.set_len(8 << 20).unwrap();
        super::super::write_all_at(&*file, 3 << 20, &[1; 100]).unwrap();
        let ranges: Vec<_> = super::super::data_ranges(&*file, 0).collect::<Result<_, _>>().unwrap();
        assert!(ranges.iter().any(|r| r.contains(&(3 << 20))) && ranges.iter().all(|r| r.end <= 8 << 20), "{ranges:?}");
        assert_eq!(file.data_from(8 << 20).unwrap(), None);
    }

    #[test]
    fn files_are_private_to_the_service() {
        use std::os::unix::fs::PermissionsExt;
        let (dir, files) = tree();
        files.make_dir("d").unwrap();
        files.create("d/f").unwrap();
        let mode = |p: &str| std::fs::metadata(dir.path().join(p)).unwrap().permissions().mode() & 0o7777;
        assert_eq!((mode("d") & 0o077, mode("d/f") & 0o077), (0, 0));
    }
}
