//! A disk in memory that can lose power.
//!
//! It keeps what was synced apart from what was only written, and its directories' durable names apart from the
//! current ones. A crash ([`MemFiles::crash`]) ends every handle and lock and lets the seed decide, page by page and
//! name by name, what of the unsynced survived: nothing, all, an older version, or a page torn between sectors.
//! Names follow a journal: a change of a name is kept or lost whole, and never without the changes it builds on.
//!
//! Deterministic: the same calls and the same seed leave the same disk. No clock, no thread, no hash order.

mod inode;
mod names;
mod rng;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};

use inode::Inode;
use names::{Ino, Names, ROOT};
use rng::Rng;

use super::outside::{Origin, OutsideFile};
use super::{Access, Entry, EntryKind, File, FileRef, Files, Lock, check_path};

/// What a crash leaves of what was not synced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Crash {
    /// The process was killed: the kernel still has everything.
    Killed,
    /// Power went, and nothing unsynced had reached the disk.
    LostAll,
    /// Power went, and the seed decides for each page and name.
    Seed(u64),
}

/// A disk in memory. Clones share the disk.
#[derive(Clone)]
pub struct MemFiles {
    disk: Arc<Mutex<Disk>>,
}

#[derive(Clone)]
struct Disk {
    /// Rises with each crash; handles from before are dead.
    epoch: u64,
    inodes: BTreeMap<Ino, Arc<Inode>>,
    names: Names,
    next: Ino,
    /// Open handles of each inode.
    opens: BTreeMap<Ino, u32>,
    locks: BTreeSet<Ino>,
    /// Bytes that fit.
    capacity: u64,
    /// Changing calls so far: what a test counts to name a moment.
    changes: u64,
    power: Power,
    /// The next sync fails and loses what it should have stored, as Linux does after an I/O error.
    sync_loses: bool,
    /// A copy of the disk after each changing call, while recording.
    recording: Option<Vec<Disk>>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Power {
    On,
    /// Goes off when this many changes have been made.
    OffAt(u64),
    Off,
}

impl Default for MemFiles {
    fn default() -> Self {
        Self::new()
    }
}

impl MemFiles {
    /// An empty disk without a limit.
    pub fn new() -> Self {
        Self::with_capacity(u64::MAX)
    }

    /// An empty disk that holds this many bytes.
    pub fn with_capacity(capacity: u64) -> Self {
        let inodes = BTreeMap::from([(ROOT, Arc::new(Inode::dir()))]);
        Self::over(Disk {
            epoch: 0,
            inodes,
            names: Names::new(),
            next: ROOT + 1,
            opens: BTreeMap::new(),
            locks: BTreeSet::new(),
            capacity,
            changes: 0,
            power: Power::On,
            sync_loses: false,
            recording: None,
        })
    }

    fn over(disk: Disk) -> Self {
        Self { disk: Arc::new(Mutex::new(disk)) }
    }

    fn disk(&self) -> MutexGuard<'_, Disk> {
        self.disk.lock().expect("no call of the memory disk panics while it holds the lock")
    }

    /// A disk of its own with the same content, unsynced state included; handles and locks stay with the original.
    pub fn fork(&self) -> Self {
        Self::over(self.disk().detached())
    }

    /// Changes how much fits. What is stored already stays.
    pub fn set_capacity(&self, capacity: u64) {
        self.disk().capacity = capacity;
    }

    /// Bytes in use.
    pub fn used(&self) -> u64 {
        self.disk().used()
    }

    /// How many changing calls were made.
    pub fn changes(&self) -> u64 {
        self.disk().changes
    }

    /// Lets `changes` more changing calls through; every call after that fails until [`MemFiles::crash`].
    pub fn power_off_after(&self, changes: u64) {
        let mut disk = self.disk();
        disk.power = Power::OffAt(disk.changes + changes);
    }

    /// Every call fails from now on, until [`MemFiles::crash`].
    pub fn power_off(&self) {
        self.disk().power = Power::Off;
    }

    /// Lets the next sync fail and forget, as Linux does: what it should have stored counts as clean and is not stored.
    pub fn lose_next_sync(&self) {
        self.disk().sync_loses = true;
    }

    /// Ends every handle and lock, decides what survived, and turns the power back on.
    pub fn crash(&self, crash: Crash) {
        self.disk().crash(crash);
    }

    /// Starts keeping a copy of the disk after each changing call.
    pub fn record(&self) {
        self.disk().recording = Some(Vec::new());
    }

    /// Ends the recording: the disk as it was after the first change, the second, and so on.
    pub fn recorded(&self) -> Vec<MemFiles> {
        self.disk().recording.take().unwrap_or_default().into_iter().map(Self::over).collect()
    }

    /// Changes bytes behind everybody's back, durably: what a failing disk does.
    pub fn damage(&self, path: &str, offset: u64, change: impl FnOnce(&mut [u8]), len: usize) -> io::Result<()> {
        let mut disk = self.disk();
        let ino = disk.names.resolve(path)?;
        let inode = Arc::make_mut(disk.inodes.get_mut(&ino).ok_or(io::ErrorKind::NotFound)?);
        let mut bytes = vec![0; len];
        inode.read(offset, &mut bytes);
        change(&mut bytes);
        inode.write(offset, &bytes);
        inode.sync();
        Ok(())
    }

    /// The whole content of a file, for tests that look behind the store.
    pub fn content(&self, path: &str) -> io::Result<Vec<u8>> {
        let disk = self.disk();
        let ino = disk.names.resolve(path)?;
        let inode = disk.inodes.get(&ino).ok_or(io::ErrorKind::NotFound)?;
        let mut bytes = vec![0; usize::try_from(inode.len()).map_err(io::Error::other)?];
        inode.read(0, &mut bytes);
        Ok(bytes)
    }

    /// Opens a file of this disk as one of the outside: whoever keeps a store on it may be given it.
    pub fn as_outside(&self, path: &str) -> io::Result<OutsideFile> {
        Ok(OutsideFile {
            file: self.open(path, Access::Read)?,
            origin: Origin::Memory { files: self.clone(), path: path.to_owned() },
        })
    }

    /// Every path, directories included, in order: for tests that look behind the store.
    pub fn tree(&self) -> Vec<String> {
        self.disk().names.tree()
    }
}

impl MemFiles {
    /// The path of a file of the outside, if it is on this disk.
    fn path_here<'a>(&self, outside: &'a OutsideFile) -> io::Result<&'a str> {
        match &outside.origin {
            Origin::Memory { files, path } if Arc::ptr_eq(&files.disk, &self.disk) => Ok(path),
            _ => Err(io::ErrorKind::CrossesDevices.into()),
        }
    }
}

/// What every call answers once the power is off.
fn dead() -> io::Error {
    io::Error::other("the disk has lost power")
}

impl Disk {
    fn detached(&self) -> Disk {
        let mut copy = Disk { recording: None, ..self.clone() };
        copy.opens.clear();
        copy.locks.clear();
        copy
    }

    fn alive(&self, epoch: u64) -> io::Result<()> {
        let off = self.power == Power::Off || matches!(self.power, Power::OffAt(n) if self.changes >= n);
        if off || epoch != self.epoch { Err(dead()) } else { Ok(()) }
    }

    /// Counts a change that was made, and records the disk as it now is.
    fn changed(&mut self) {
        self.changes += 1;
        if let Some(mut states) = self.recording.take() {
            states.push(self.detached());
            self.recording = Some(states);
        }
    }

    fn used(&self) -> u64 {
        let named = self.names.current_inodes();
        let held = |ino: &Ino| named.contains(ino) || self.opens.contains_key(ino);
        self.inodes.iter().filter(|(ino, _)| held(ino)).map(|(_, inode)| inode.allocated()).sum()
    }

    fn check_room(&self, growth: u64) -> io::Result<()> {
        if self.capacity != u64::MAX && growth > 0 && self.used().saturating_add(growth) > self.capacity {
            return Err(io::ErrorKind::StorageFull.into());
        }
        Ok(())
    }

    fn inode(&mut self, ino: Ino) -> &mut Inode {
        Arc::make_mut(self.inodes.get_mut(&ino).expect("an open inode is never collected"))
    }

    fn add(&mut self, inode: Inode) -> Ino {
        let ino = self.next;
        self.next += 1;
        self.inodes.insert(ino, Arc::new(inode));
        ino
    }

    /// Forgets inodes that neither a name, now or after a crash, nor a handle leads to.
    fn collect(&mut self) {
        let named = self.names.all_inodes();
        let opens = &self.opens;
        self.inodes.retain(|ino, _| *ino == ROOT || named.contains(ino) || opens.contains_key(ino));
    }

    fn crash(&mut self, crash: Crash) {
        let mut rng = match crash {
            Crash::Seed(seed) => Some(Rng::new(seed)),
            Crash::Killed | Crash::LostAll => None,
        };
        match (crash, &mut rng) {
            (Crash::Killed, _) => {}
            (_, Some(rng)) => {
                // Drawn per crash, so that seeds also reach the corners where nearly all or nearly nothing survived.
                let odds = [10, 50, 90][rng.below(3) as usize];
                self.names.crash(|| rng.below(100) < odds);
                self.inodes.values_mut().for_each(|inode| Arc::make_mut(inode).crash(Some((rng, odds))));
            }
            _ => {
                self.names.crash(|| false);
                self.inodes.values_mut().for_each(|inode| Arc::make_mut(inode).crash(None));
            }
        }
        self.epoch += 1;
        self.opens.clear();
        self.locks.clear();
        self.power = Power::On;
        self.sync_loses = false;
        self.collect();
    }

    fn fail_sync(&mut self) -> io::Result<()> {
        if std::mem::take(&mut self.sync_loses) { Err(io::Error::from_raw_os_error(EIO)) } else { Ok(()) }
    }
}

/// What a disk answers when it cannot.
const EIO: i32 = 5;

impl MemFiles {
    fn handle(&self, disk: &mut Disk, ino: Ino, access: Access) -> FileRef {
        *disk.opens.entry(ino).or_insert(0) += 1;
        Arc::new(MemFile { disk: self.disk.clone(), ino, epoch: disk.epoch, access })
    }

    /// Runs a change of names if the power is on.
    fn change<T>(&self, f: impl FnOnce(&mut Disk) -> io::Result<T>) -> io::Result<T> {
        let mut disk = self.disk();
        let epoch = disk.epoch;
        disk.alive(epoch)?;
        let out = f(&mut disk)?;
        disk.changed();
        Ok(out)
    }
}

impl Files for MemFiles {
    fn create(&self, path: &str) -> io::Result<FileRef> {
        check_path(path)?;
        let ino = self.change(|disk| {
            disk.names.must_be_free(path)?;
            let ino = disk.add(Inode::file());
            disk.names.set(path, Some(ino))?;
            Ok(ino)
        })?;
        let mut disk = self.disk();
        Ok(self.handle(&mut disk, ino, Access::Write))
    }

    fn open(&self, path: &str, access: Access) -> io::Result<FileRef> {
        check_path(path)?;
        let mut disk = self.disk();
        disk.alive(disk.epoch)?;
        let ino = disk.names.resolve(path)?;
        if disk.inodes[&ino].is_dir() {
            return Err(io::ErrorKind::IsADirectory.into());
        }
        Ok(self.handle(&mut disk, ino, access))
    }

    fn make_dir(&self, path: &str) -> io::Result<()> {
        check_path(path)?;
        self.change(|disk| {
            disk.names.must_be_free(path)?;
            let ino = disk.add(Inode::dir());
            disk.names.set(path, Some(ino))?;
            disk.names.add_dir(ino);
            Ok(())
        })
    }

    fn remove_dir(&self, path: &str) -> io::Result<()> {
        check_path(path)?;
        self.change(|disk| {
            disk.names.must_be_empty(path)?;
            disk.names.set(path, None)
        })
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        check_path(from)?;
        check_path(to)?;
        self.change(|disk| {
            disk.names.rename(from, to)?;
            disk.collect();
            Ok(())
        })
    }

    fn link(&self, from: &str, to: &str) -> io::Result<()> {
        check_path(from)?;
        check_path(to)?;
        self.change(|disk| {
            disk.names.must_be_free(to)?;
            if disk.inodes[&disk.names.resolve(from)?].is_dir() {
                return Err(io::ErrorKind::IsADirectory.into());
            }
            disk.names.link(from, to)
        })
    }

    fn unlink(&self, path: &str) -> io::Result<()> {
        check_path(path)?;
        self.change(|disk| {
            if disk.inodes[&disk.names.resolve(path)?].is_dir() {
                return Err(io::ErrorKind::IsADirectory.into());
            }
            disk.names.set(path, None)?;
            disk.collect();
            Ok(())
        })
    }

    fn list(&self, dir: &str) -> io::Result<Vec<Entry>> {
        let disk = self.disk();
        disk.alive(disk.epoch)?;
        let kind = |ino: &Ino| if disk.inodes[ino].is_dir() { EntryKind::Dir } else { EntryKind::File };
        let entries = disk.names.list(dir)?;
        Ok(entries.into_iter().map(|(name, ino)| Entry { name, kind: kind(&ino) }).collect())
    }

    fn sync_dir(&self, dir: &str) -> io::Result<()> {
        self.change(|disk| {
            disk.fail_sync()?;
            disk.names.sync(dir)?;
            disk.collect();
            Ok(())
        })
    }

    fn free_space(&self) -> io::Result<u64> {
        let disk = self.disk();
        disk.alive(disk.epoch)?;
        Ok(disk.capacity.saturating_sub(disk.used()))
    }

    fn lock(&self, path: &str) -> io::Result<Box<dyn Lock>> {
        let file = match self.open(path, Access::Write) {
            Err(err) if err.kind() == io::ErrorKind::NotFound => self.create(path)?,
            other => other?,
        };
        let mut disk = self.disk();
        let ino = disk.names.resolve(path)?;
        if !disk.locks.insert(ino) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        Ok(Box::new(MemLock { disk: self.disk.clone(), ino, epoch: disk.epoch, _file: file }))
    }

    fn outside(&self, path: &str) -> PathBuf {
        PathBuf::from("/memory").join(path)
    }

    fn take(&self, from: &OutsideFile, to: &str) -> io::Result<()> {
        self.rename(self.path_here(from)?, to)
    }

    fn share(&self, from: &OutsideFile, to: &str) -> io::Result<()> {
        let path = self.path_here(from)?;
        check_path(to)?;
        self.change(|disk| {
            disk.names.must_be_free(to)?;
            let copy = disk.inodes[&disk.names.resolve(path)?].unsynced_copy();
            let ino = disk.add(copy);
            disk.names.set(to, Some(ino))
        })
    }
}

struct MemLock {
    disk: Arc<Mutex<Disk>>,
    ino: Ino,
    epoch: u64,
    _file: FileRef,
}

impl Lock for MemLock {}

impl Drop for MemLock {
    fn drop(&mut self) {
        if let Ok(mut disk) = self.disk.lock()
            && disk.epoch == self.epoch
        {
            disk.locks.remove(&self.ino);
        }
    }
}

struct MemFile {
    disk: Arc<Mutex<Disk>>,
    ino: Ino,
    epoch: u64,
    access: Access,
}

impl MemFile {
    fn read<T>(&self, f: impl FnOnce(&Inode) -> T) -> io::Result<T> {
        let disk = self.disk.lock().expect("no call of the memory disk panics while it holds the lock");
        disk.alive(self.epoch)?;
        Ok(f(&disk.inodes[&self.ino]))
    }

    fn change(&self, f: impl FnOnce(&mut Disk) -> io::Result<()>) -> io::Result<()> {
        let mut disk = self.disk.lock().expect("no call of the memory disk panics while it holds the lock");
        disk.alive(self.epoch)?;
        if self.access == Access::Read {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        f(&mut disk)?;
        disk.changed();
        Ok(())
    }
}

impl Drop for MemFile {
    fn drop(&mut self) {
        let Ok(mut disk) = self.disk.lock() else { return };
        if disk.epoch != self.epoch {
            return;
        }
        if let Some(n) = disk.opens.get_mut(&self.ino) {
            *n -= 1;
            if *n == 0 {
                disk.opens.remove(&self.ino);
            }
        }
    }
}

impl File for MemFile {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        self.read(|inode| inode.read(offset, buf))
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<usize> {
        self.change(|disk| {
            let growth = disk.inode(self.ino).growth(offset, bytes.len() as u64);
            disk.check_room(growth)?;
            disk.inode(self.ino).write(offset, bytes);
            Ok(())
        })?;
        Ok(bytes.len())
    }

    fn sync(&self) -> io::Result<()> {
        let mut disk = self.disk.lock().expect("no call of the memory disk panics while it holds the lock");
        disk.alive(self.epoch)?;
        if let Err(err) = disk.fail_sync() {
            disk.inode(self.ino).forget();
            disk.changed();
            return Err(err);
        }
        disk.inode(self.ino).sync();
        disk.changed();
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        self.read(Inode::len)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.change(|disk| {
            disk.inode(self.ino).set_len(len);
            Ok(())
        })
    }

    fn punch(&self, offset: u64, len: u64) -> io::Result<()> {
        self.change(|disk| {
            disk.inode(self.ino).punch(offset, len);
            Ok(())
        })
    }

    fn allocate(&self, len: u64) -> io::Result<()> {
        self.change(|disk| {
            let growth = disk.inode(self.ino).growth(0, len);
            disk.check_room(growth)?;
            disk.inode(self.ino).allocate(len);
            Ok(())
        })
    }

    fn allocated(&self) -> io::Result<u64> {
        self.read(Inode::allocated)
    }

    fn data_from(&self, offset: u64) -> io::Result<Option<Range<u64>>> {
        self.read(|inode| inode.data_from(offset))
    }

    fn forget_cached(&self) -> io::Result<()> {
        let mut disk = self.disk.lock().expect("no call of the memory disk panics while it holds the lock");
        disk.alive(self.epoch)?;
        disk.inode(self.ino).forget_cached();
        Ok(())
    }
}

#[cfg(test)]
mod tests;
