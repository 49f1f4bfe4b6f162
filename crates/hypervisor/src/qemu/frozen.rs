//! An open cut of a running VM: reading it, watching over it, ending it.
//!
//! How we know that nothing newer than the instant was read: QEMU's filter either copies a cluster to scratch before the
//! guest's write reaches it, or, when it cannot, notes an error that it never forgets, and from then on refuses to serve
//! anything. A read that was under way at that moment may have got the new bytes. So one more read after all others
//! tells: if it is served, the error did not happen before, and everything read earlier was of the instant. That is
//! [`FrozenCut::ensure_intact`], together with a look whether our filter still stands where we put it.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::OwnedMutexGuard;
use tokio::task::JoinHandle;
use tokio::time::sleep;
use understudy_model::{Consistency, DiskId, DiskSpec, Extent, ExtentSet, Timestamp};

use super::Shared;
use super::answer::{execute, list, text};
use super::capture::Taken;
use super::names::{DUE_MAP, Part};
use super::scratch::Scratch;
use super::serve::Source;
use super::trim::{Progress, give_up_rest};
use crate::driver::{Content, DiskReader, Error, FrozenCut, ImageRecord, NEIGHBOURHOOD, READ_LEN_MAX, Result};
use crate::nbd::{ALLOCATION_CONTEXT, Client, DirtyBounds, NbdError, Options, errno};
use crate::qmp::{Command, Version};

/// Between two looks at the scratch files. A guest that writes 1 GB/s overshoots the limit by a tenth of that.
const SCRATCH_LOOK: Duration = Duration::from_millis(100);
/// Between two tries to take a cut out of a VM whose monitor cannot be had.
const RELEASE_PAUSE: Duration = Duration::from_secs(1);
/// To which granule a map with too many extents may be rounded where the filter guards the whole disk.
const COARSEST: u64 = 1 << 20;
/// How much is read to see whether the filter still serves: a sector of the largest size there is.
const PROBE: u64 = 4096;

/// Where a frozen disk is shown.
pub struct Export<'a> {
    pub socket: &'a Path,
    pub id: &'a str,
    /// Of the QEMU that shows it.
    pub version: Version,
}

/// One disk of a cut.
pub struct FrozenDisk {
    spec: DiskSpec,
    due: ExtentSet,
    /// None if nothing is due: then there is nothing to be read either.
    source: Option<Source>,
    progress: Mutex<Progress>,
    ended: Arc<OnceLock<String>>,
}

impl FrozenDisk {
    /// Most extents of one disk's map: 16 MiB of memory, and 4 GiB of changes if no two of them touch. Maps with more
    /// are rounded, or else the tracking counts as lost: comparing the whole disk costs no more then.
    pub const EXTENTS_MAX: usize = 1 << 20;

    /// A disk that did not change.
    pub fn untouched(spec: &DiskSpec) -> Self {
        Self::new(spec, ExtentSet::new(), None)
    }

    /// What changed since the base.
    pub fn due(&self) -> &ExtentSet {
        &self.due
    }

    fn new(spec: &DiskSpec, due: ExtentSet, source: Option<Source>) -> Self {
        let progress = Mutex::new(Progress::new(&due, spec.size));
        Self { spec: spec.clone(), due, source, progress, ended: Arc::default() }
    }

    /// Reads the map and opens the disk for reading. Two connections: on one that knows the allocation too, asking for
    /// the map would ask about parts that the frozen image does not serve.
    ///
    /// `also` is due beside what the map holds.
    pub async fn connect(spec: &DiskSpec, at: &Export<'_>, is_narrow: bool, also: Option<&ExtentSet>) -> Result<Self> {
        let (socket, export) = (at.socket, at.id);
        let failed = |err: NbdError| nbd_error(&spec.key, "open a frozen disk", err);
        let map = Client::connect(socket, &Options::new(export).bitmap(DUE_MAP)).await.map_err(failed)?;
        if map.export().size != spec.size {
            return Err(Error::Resized { disk: spec.key.clone(), expected: spec.size, found: map.export().size });
        }
        let granule_max = if is_narrow { NEIGHBOURHOOD } else { COARSEST };
        let bounds = DirtyBounds { extents_max: Self::EXTENTS_MAX, granule_max };
        let mut due = map.dirty(bounds).await.map_err(failed)?;
        also.into_iter().for_each(|also| due.union(also));
        map.disconnect().await;
        let options = Options::new(export).context(ALLOCATION_CONTEXT);
        let client = Client::connect(socket, &options).await.map_err(failed)?;
        Ok(Self::new(spec, due, Some(Source::new(client, at.version))))
    }

    /// The connection, unless the cut was ended or there is nothing to read.
    fn serving(&self) -> Result<&Source> {
        if let Some(why) = self.ended.get() {
            return Err(Error::CutEnded(why.clone()));
        }
        let nothing = || Error::Misuse(format!("nothing of disk {} is due", self.spec.key));
        self.source.as_ref().ok_or_else(nothing)
    }

    fn failed(&self, extent: Extent, err: NbdError) -> Error {
        if let Some(why) = self.ended.get() {
            return Error::CutEnded(why.clone());
        }
        match &err {
            NbdError::Request { error, .. } if error.errno == errno::EINVAL => Error::CutEnded(format!(
                "disk {} is no longer served: the guest's writes came first, or these bytes were never due",
                self.spec.key
            )),
            NbdError::Request { .. } => Error::Read { disk: self.spec.key.clone(), extent, source: Box::new(err) },
            _ => nbd_error(&self.spec.key, "read a frozen disk", err),
        }
    }

    /// Reads once more a little that has been served from the first moment on.
    async fn probe(&self) -> Result<()> {
        let (Some(source), Some(first)) = (&self.source, self.due.iter().next()) else { return Ok(()) };
        let extent = Extent::new(first.offset, first.len.min(PROBE));
        match source.read(extent).await {
            Ok(_) => Ok(()),
            Err(err) => Err(Error::CutEnded(format!("disk {} is no longer served: {err}", self.spec.key))),
        }
    }
}

/// An error of the NBD client as a driver's.
pub fn nbd_error(disk: &str, what: &str, err: NbdError) -> Error {
    match err {
        NbdError::Misuse(what) => Error::Misuse(what),
        NbdError::TooFragmented { limit } => {
            Error::tracking(disk, crate::driver::LostTracking::TooFragmented { limit })
        }
        err => Error::Unreachable { what: what.into(), source: Box::new(err) },
    }
}

#[async_trait]
impl DiskReader for FrozenDisk {
    fn size(&self) -> u64 {
        self.spec.size
    }

    async fn status(&self, extent: Extent) -> Result<Vec<(Extent, Content)>> {
        self.serving()?.allocation(extent).await.map_err(|err| self.failed(extent, err))
    }

    async fn read(&self, extent: Extent) -> Result<Bytes> {
        if extent.len > READ_LEN_MAX {
            return Err(Error::Misuse(format!("a read of {} bytes", extent.len)));
        }
        let bytes = self.serving()?.read(extent).await.map_err(|err| self.failed(extent, err))?;
        // Read before the cut was ended, or not: nobody can tell any more.
        self.serving().map(|_| bytes)
    }
}

/// An open cut.
pub struct Frozen {
    inner: Option<Inner>,
    taken_at: Timestamp,
    consistency: Consistency,
    shortfall: Option<String>,
    images: Vec<ImageRecord>,
}

/// What must be taken out of the VM again.
struct Inner {
    shared: Arc<Shared>,
    disks: Arc<HashMap<DiskId, FrozenDisk>>,
    scratch: Arc<Vec<Scratch>>,
    tasks: Vec<JoinHandle<()>>,
    slot: OwnedMutexGuard<()>,
}

impl Frozen {
    pub fn new(shared: Arc<Shared>, slot: OwnedMutexGuard<()>, taken: Taken) -> Self {
        let ended = Arc::<OnceLock<String>>::default();
        let disks = taken.disks.into_iter().map(|(id, disk)| (id, FrozenDisk { ended: ended.clone(), ..disk }));
        let disks = Arc::new(disks.collect::<HashMap<_, _>>());
        let scratch = Arc::new(taken.scratch);
        let watch = watch_scratch(shared.clone(), scratch.clone(), taken.scratch_limit, ended);
        let mut tasks = vec![tokio::spawn(watch)];
        if !taken.is_narrow {
            tasks.push(tokio::spawn(narrow(disks.clone())));
        }
        Self {
            inner: Some(Inner { shared, disks, scratch, tasks, slot }),
            taken_at: taken.taken_at,
            consistency: taken.consistency,
            shortfall: taken.shortfall,
            images: taken.images,
        }
    }

    fn inner(&self) -> &Inner {
        self.inner.as_ref().expect("a cut is taken apart only when it is given up")
    }
}

/// With the wide way the filters guard the whole disks; this gives up what is not due.
async fn narrow(disks: Arc<HashMap<DiskId, FrozenDisk>>) {
    for disk in disks.values() {
        if let Some(source) = &disk.source {
            give_up_rest(source, &disk.due, disk.spec.size).await;
        }
    }
}

/// Ends the cut when its scratch files have grown past the limit.
async fn watch_scratch(shared: Arc<Shared>, scratch: Arc<Vec<Scratch>>, limit: u64, ended: Arc<OnceLock<String>>) {
    loop {
        sleep(SCRATCH_LOOK).await;
        let taken = scratch.iter().map(Scratch::taken).sum::<std::io::Result<u64>>();
        let why = match taken {
            Ok(taken) if taken <= limit => continue,
            Ok(taken) => format!("it took {taken} bytes of scratch space, and {limit} are allowed"),
            Err(err) => format!("its scratch files cannot be watched: {err}"),
        };
        // Said first: from here on no read is believed.
        let _ = ended.set(why);
        remove_until_gone(&shared).await;
        return;
    }
}

/// Takes the cut out of the VM, however often that must be tried. While it is in, the guest pays for it.
async fn remove_until_gone(shared: &Shared) {
    let mut has_failed = false;
    while let Err(err) = remove(shared).await {
        // A QEMU that is just ending hangs up once, and takes the cut with it.
        if has_failed {
            tracing::warn!(monitor = %shared.config.monitor.display(), %err, "a cut is still in the VM; trying again");
        }
        has_failed = true;
        sleep(RELEASE_PAUSE).await;
    }
}

/// Takes the cut out of the VM.
pub async fn remove(shared: &Shared) -> Result<()> {
    match shared.try_monitor().await? {
        Some(mut monitor) => shared.remove_cut(&mut monitor).await,
        // The VM is off, and all of it with it.
        None => Ok(()),
    }
}

impl Inner {
    /// Stops what is under way and takes the cut out. On failure goes on trying in the background.
    async fn release(self) -> Result<()> {
        self.tasks.iter().for_each(JoinHandle::abort);
        // The tasks hold the disks as well; they end at their next wait, and the connections with them. It does not
        // matter if that is later: removing an export cuts its readers off.
        drop(self.disks);
        let outcome = remove(&self.shared).await;
        if outcome.is_err() {
            let (shared, scratch, slot) = (self.shared, self.scratch, self.slot);
            tokio::spawn(async move {
                remove_until_gone(&shared).await;
                drop((scratch, slot));
            });
        }
        outcome
    }

    /// Whether each disk's requests still go through our filter.
    async fn check_filters(&self) -> Result<()> {
        let monitor = self.shared.try_monitor().await?;
        let mut monitor = monitor.ok_or_else(|| Error::CutEnded("the VM was shut down".into()))?;
        let blocks = execute(&mut monitor, "list its disks", Command::bare("query-block")).await?;
        let roots: Vec<_> = list(&blocks).iter().map(|b| text(b, "/inserted/node-name")).collect();
        for (id, disk) in self.disks.iter().filter(|(_, disk)| disk.source.is_some()) {
            if !roots.contains(&Part::Filter.name(*id).as_str()) {
                let key = &disk.spec.key;
                return Err(Error::CutEnded(format!("somebody took the filter away from disk {key}")));
            }
        }
        Ok(())
    }
}

#[async_trait]
impl FrozenCut for Frozen {
    fn taken_at(&self) -> Timestamp {
        self.taken_at
    }

    fn consistency(&self) -> Consistency {
        self.consistency
    }

    fn shortfall(&self) -> Option<&str> {
        self.shortfall.as_deref()
    }

    fn dirty(&self, disk: DiskId) -> Option<&ExtentSet> {
        self.inner().disks.get(&disk).map(|d| &d.due)
    }

    fn reader(&self, disk: DiskId) -> Option<&dyn DiskReader> {
        self.inner().disks.get(&disk).map(|d| d as &dyn DiskReader)
    }

    async fn done_with(&self, disk: DiskId, extent: Extent) {
        let Some(disk) = self.inner().disks.get(&disk) else { return };
        let part = {
            let mut progress = disk.progress.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
            progress.note(&disk.due, extent)
        };
        if let (Some(part), Some(source)) = (part, &disk.source) {
            // Refused or broken: the reads will tell.
            let _ = source.trim(part).await;
        }
    }

    async fn ensure_intact(&self) -> Result<()> {
        let inner = self.inner();
        for disk in inner.disks.values().filter(|d| d.source.is_some()) {
            disk.serving()?;
            disk.probe().await?;
        }
        inner.check_filters().await?;
        // Not ended while we looked.
        inner.disks.values().filter(|d| d.source.is_some()).try_for_each(|d| d.serving().map(drop))
    }

    fn images(&self) -> &[ImageRecord] {
        &self.images
    }

    async fn release(mut self: Box<Self>) -> Result<()> {
        match self.inner.take() {
            Some(inner) => inner.release().await,
            None => Ok(()),
        }
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        let Some(inner) = self.inner.take() else { return };
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move {
                if let Err(err) = inner.release().await {
                    tracing::warn!(%err, "a cut that was dropped is not yet out of the VM");
                }
            });
        }
    }
}
