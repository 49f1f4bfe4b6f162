//! Any files, with the n-th call of a kind failing: once, or from then on for ever.

use std::io;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use super::{Access, Entry, File, FileRef, Files, Lock, MemFiles, OutsideFile};

/// The kinds of calls that can be made to fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Call {
    /// Creating or opening a file, making a directory.
    Open,
    /// Reading.
    Read,
    /// Writing, punching, changing the length.
    Write,
    /// Syncing a file or a directory.
    Sync,
    /// Renaming.
    Rename,
    /// Unlinking a file or removing a directory.
    Unlink,
    /// Taking space.
    Allocate,
    /// Linking.
    Link,
    /// Listing a directory.
    List,
}

impl Call {
    /// Every kind.
    pub const ALL: [Call; 9] = [
        Call::Open,
        Call::Read,
        Call::Write,
        Call::Sync,
        Call::Rename,
        Call::Unlink,
        Call::Allocate,
        Call::Link,
        Call::List,
    ];
}

/// How a call fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The disk answers with an error.
    Io,
    /// No space is left.
    NoSpace,
    /// A signal came first.
    Interrupted,
    /// Less is read or written than asked for. Only reads and writes can be short.
    Short,
}

impl Fault {
    /// Every way.
    pub const ALL: [Fault; 4] = [Fault::Io, Fault::NoSpace, Fault::Interrupted, Fault::Short];

    fn error(self) -> io::Error {
        match self {
            Fault::Io | Fault::Short => io::Error::from_raw_os_error(5),
            Fault::NoSpace => io::ErrorKind::StorageFull.into(),
            Fault::Interrupted => io::ErrorKind::Interrupted.into(),
        }
    }
}

/// Which call fails, how, and whether it goes on failing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FaultPlan {
    /// The kind of call.
    pub call: Call,
    /// How it fails.
    pub fault: Fault,
    /// Which call of that kind, counted from 1.
    pub nth: u64,
    /// Whether all later ones fail too.
    pub for_ever: bool,
}

struct State {
    plan: Mutex<Option<FaultPlan>>,
    /// Calls of the planned kind so far.
    seen: AtomicU64,
    /// Calls that were made to fail.
    failed: AtomicU64,
    /// The disk beneath, if it is one in memory: a failed sync loses data there as it does on Linux.
    memory: Option<MemFiles>,
}

impl State {
    /// The fault that hits this call, if any.
    fn next(&self, call: Call) -> Option<Fault> {
        let plan = (*self.plan.lock().expect("no panic while the plan is held")).filter(|p| p.call == call)?;
        let seen = self.seen.fetch_add(1, Ordering::SeqCst) + 1;
        let hit = seen == plan.nth || (plan.for_ever && seen > plan.nth);
        let hit = hit && (plan.fault != Fault::Short || matches!(call, Call::Read | Call::Write));
        if hit {
            self.failed.fetch_add(1, Ordering::SeqCst);
        }
        hit.then_some(plan.fault)
    }

    fn check(&self, call: Call) -> io::Result<()> {
        self.next(call).map_or(Ok(()), |fault| Err(fault.error()))
    }

    fn sync(&self, sync: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        match (self.next(Call::Sync), &self.memory) {
            (None, _) => sync(),
            (Some(Fault::Io | Fault::NoSpace), Some(memory)) => {
                memory.lose_next_sync();
                sync()
            }
            (Some(fault), _) => Err(fault.error()),
        }
    }
}

/// Files with a plan for failing.
#[derive(Clone)]
pub struct FaultyFiles {
    inner: Arc<dyn Files>,
    state: Arc<State>,
}

impl FaultyFiles {
    /// Over any files. A sync that is made to fail is simply not carried out.
    pub fn new(inner: Arc<dyn Files>) -> Self {
        Self::with(inner, None)
    }

    /// Over a disk in memory. A sync that fails with an I/O error loses what it should have stored.
    pub fn over_memory(memory: &MemFiles) -> Self {
        Self::with(Arc::new(memory.clone()), Some(memory.clone()))
    }

    fn with(inner: Arc<dyn Files>, memory: Option<MemFiles>) -> Self {
        let state = State { plan: Mutex::new(None), seen: AtomicU64::new(0), failed: AtomicU64::new(0), memory };
        Self { inner, state: Arc::new(state) }
    }

    /// Sets the plan, or none, and starts counting anew.
    pub fn plan(&self, plan: Option<FaultPlan>) {
        *self.state.plan.lock().expect("no panic while the plan is held") = plan;
        self.state.seen.store(0, Ordering::SeqCst);
        self.state.failed.store(0, Ordering::SeqCst);
    }

    /// How many calls the plan has hit.
    pub fn failures(&self) -> u64 {
        self.state.failed.load(Ordering::SeqCst)
    }

    /// A file of the outside whose reads fail as planned.
    pub fn failing(&self, outside: OutsideFile) -> OutsideFile {
        OutsideFile { file: self.file(outside.file), origin: outside.origin }
    }

    fn file(&self, inner: FileRef) -> FileRef {
        Arc::new(FaultyFile { inner, state: self.state.clone() })
    }
}

impl Files for FaultyFiles {
    fn create(&self, path: &str) -> io::Result<FileRef> {
        self.state.check(Call::Open)?;
        Ok(self.file(self.inner.create(path)?))
    }

    fn open(&self, path: &str, access: Access) -> io::Result<FileRef> {
        self.state.check(Call::Open)?;
        Ok(self.file(self.inner.open(path, access)?))
    }

    fn make_dir(&self, path: &str) -> io::Result<()> {
        self.state.check(Call::Open)?;
        self.inner.make_dir(path)
    }

    fn remove_dir(&self, path: &str) -> io::Result<()> {
        self.state.check(Call::Unlink)?;
        self.inner.remove_dir(path)
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.state.check(Call::Rename)?;
        self.inner.rename(from, to)
    }

    fn link(&self, from: &str, to: &str) -> io::Result<()> {
        self.state.check(Call::Link)?;
        self.inner.link(from, to)
    }

    fn unlink(&self, path: &str) -> io::Result<()> {
        self.state.check(Call::Unlink)?;
        self.inner.unlink(path)
    }

    fn list(&self, dir: &str) -> io::Result<Vec<Entry>> {
        self.state.check(Call::List)?;
        self.inner.list(dir)
    }

    fn sync_dir(&self, dir: &str) -> io::Result<()> {
        self.state.sync(|| self.inner.sync_dir(dir))
    }

    fn free_space(&self) -> io::Result<u64> {
        self.inner.free_space()
    }

    fn lock(&self, path: &str) -> io::Result<Box<dyn Lock>> {
        self.state.check(Call::Open)?;
        self.inner.lock(path)
    }

    fn outside(&self, path: &str) -> PathBuf {
        self.inner.outside(path)
    }

    fn take(&self, from: &OutsideFile, to: &str) -> io::Result<()> {
        self.state.check(Call::Rename)?;
        self.inner.take(from, to)
    }

    fn share(&self, from: &OutsideFile, to: &str) -> io::Result<()> {
        self.state.check(Call::Open)?;
        self.inner.share(from, to)
    }
}

struct FaultyFile {
    inner: FileRef,
    state: Arc<State>,
}

impl File for FaultyFile {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        match self.state.next(Call::Read) {
            Some(Fault::Short) if buf.len() > 1 => {
                let half = buf.len() / 2;
                self.inner.read_at(offset, &mut buf[..half])
            }
            Some(Fault::Short) | None => self.inner.read_at(offset, buf),
            Some(fault) => Err(fault.error()),
        }
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<usize> {
        match self.state.next(Call::Write) {
            Some(Fault::Short) if bytes.len() > 1 => self.inner.write_at(offset, &bytes[..bytes.len() / 2]),
            Some(Fault::Short) | None => self.inner.write_at(offset, bytes),
            Some(fault) => Err(fault.error()),
        }
    }

    fn sync(&self) -> io::Result<()> {
        self.state.sync(|| self.inner.sync())
    }

    fn len(&self) -> io::Result<u64> {
        self.inner.len()
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.hard(|| self.inner.set_len(len))
    }

    fn punch(&self, offset: u64, len: u64) -> io::Result<()> {
        self.hard(|| self.inner.punch(offset, len))
    }

    fn allocate(&self, len: u64) -> io::Result<()> {
        self.state.check(Call::Allocate)?;
        self.inner.allocate(len)
    }

    fn allocated(&self) -> io::Result<u64> {
        self.inner.allocated()
    }

    fn data_from(&self, offset: u64) -> io::Result<Option<Range<u64>>> {
        self.inner.data_from(offset)
    }

    fn forget_cached(&self) -> io::Result<()> {
        self.inner.forget_cached()
    }
}

impl FaultyFile {
    /// A change that is made whole or not at all.
    fn hard(&self, change: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        match self.state.next(Call::Write) {
            Some(Fault::Short) | None => change(),
            Some(fault) => Err(fault.error()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{read_exact_at, write_all_at};
    use super::*;

    #[test]
    fn the_planned_call_fails_once_or_for_ever() {
        let files = FaultyFiles::new(Arc::new(MemFiles::new()));
        let plan = FaultPlan { call: Call::Open, fault: Fault::NoSpace, nth: 2, for_ever: false };
        files.plan(Some(plan));
        assert!(files.create("a").is_ok());
        assert!(super::super::is_no_space(&files.create("b").err().unwrap()));
        assert!(files.create("b").is_ok());
        assert_eq!(files.failures(), 1);
        files.plan(Some(FaultPlan { for_ever: true, ..plan }));
        assert!(files.create("c").is_ok());
        assert!(files.create("d").is_err());
        assert!(files.create("d").is_err());
        files.plan(None);
        assert!(files.create("d").is_ok());
    }

    #[test]
    fn short_and_interrupted_calls_are_only_delay() {
        for fault in [Fault::Short, Fault::Interrupted] {
            for call in [Call::Read, Call::Write] {
                let files = FaultyFiles::new(Arc::new(MemFiles::new()));
                let file = files.create("a").unwrap();
                files.plan(Some(FaultPlan { call, fault, nth: 1, for_ever: false }));
                write_all_at(&*file, 0, b"some bytes").unwrap();
                let mut back = [0; 10];
                read_exact_at(&*file, 0, &mut back).unwrap();
                assert_eq!(&back, b"some bytes");
                assert_eq!(files.failures(), 1);
            }
        }
    }

    #[test]
    fn a_signal_that_never_ends_is_an_error_and_no_endless_loop() {
        let files = FaultyFiles::new(Arc::new(MemFiles::new()));
        let file = files.create("a").unwrap();
        files.plan(Some(FaultPlan { call: Call::Write, fault: Fault::Interrupted, nth: 1, for_ever: true }));
        assert_eq!(write_all_at(&*file, 0, b"x").unwrap_err().kind(), io::ErrorKind::Interrupted);
    }
}
