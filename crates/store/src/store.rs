//! All replicas of one directory.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};

use understudy_model::{DiskSpec, ErrorKind, Generation, VmId};

use crate::checkpoints::{Checkpoints, NoCheckpoints};
use crate::error::{At, ChangeError, FileError};
use crate::files::{EntryKind, Files, Lock};
use crate::manifest::{FailoverStage, Manifest, file};
use crate::paths;
use crate::place::Place;
use crate::reserve::Reserve;
use crate::vm::open::{self, OpenError};
use crate::vm::{Space, VmStore};

/// How a store behaves.
#[derive(Clone)]
pub struct StoreOptions {
    /// Bytes held back for the day the disk is full; 0 for none.
    pub reserve: u64,
    /// Receiving stops when fewer bytes are free.
    pub receive_floor: u64,
    /// Who is told of crash points.
    pub checkpoints: Arc<dyn Checkpoints>,
}

impl Default for StoreOptions {
    /// 64 MiB in reserve: the manifests of a thousand VMs, or the stubs and overlays of dozens. Receiving leaves four
    /// times that to upkeep.
    fn default() -> Self {
        Self { reserve: 64 << 20, receive_floor: 256 << 20, checkpoints: Arc::new(NoCheckpoints) }
    }
}

/// What all VMs of a store share.
pub(crate) struct Shared {
    pub(crate) options: StoreOptions,
    pub(crate) reserve: Reserve,
    pub(crate) checkpoints: Arc<dyn Checkpoints>,
}

/// A directory of replicas, opened by one process at a time.
pub struct Store {
    root: Place,
    shared: Arc<Shared>,
    vms: Mutex<Vms>,
    _lock: Box<dyn Lock>,
}

#[derive(Default)]
struct Vms {
    open: BTreeMap<VmId, Arc<VmStore>>,
    closed: BTreeMap<VmId, OpenError>,
}

/// What becomes of a replica whose relationship is removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Removal {
    /// Nothing is received any more; the points stay and can be opened.
    KeepPoints,
    /// All points go. Refused while a failover stands on one of them or a point is locked.
    DestroyPoints,
    /// Everything goes, also the disks of a VM whose failover was committed.
    DestroyDisks,
}

/// Why a store cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Another process has it open.
    #[error("the store is in use by another process")]
    InUse,
    /// A file could not be used.
    #[error("cannot open the store")]
    File(#[from] FileError),
}

impl StoreError {
    /// What the caller does next.
    pub fn kind(&self) -> ErrorKind {
        match self {
            StoreError::InUse => ErrorKind::Operator,
            StoreError::File(err) => err.kind(),
        }
    }
}

/// Why a replica is not made.
#[derive(Debug, thiserror::Error)]
pub enum CreateError {
    /// There is one already.
    #[error("there is a replica of {vm} already")]
    Exists {
        /// The VM.
        vm: VmId,
    },
    /// The list of disks makes no sense.
    #[error("cannot make a replica with these disks: {what}")]
    Disks {
        /// What is wrong with it.
        what: &'static str,
    },
    /// A file could not be used.
    #[error("cannot make a replica")]
    File(#[from] FileError),
}

impl CreateError {
    /// What the caller does next.
    pub fn kind(&self) -> ErrorKind {
        match self {
            CreateError::File(err) => err.kind(),
            _ => ErrorKind::Refused,
        }
    }
}

/// Why a replica is not removed.
#[derive(Debug, thiserror::Error)]
pub enum RemoveError {
    /// There is none.
    #[error("there is no replica of {vm}")]
    Unknown {
        /// The VM.
        vm: VmId,
    },
    /// A failover or test stands on its points.
    #[error("a failover or test stands on the points of {vm}")]
    InUse {
        /// The VM.
        vm: VmId,
    },
    /// A point is locked.
    #[error("a recovery point of {vm} is locked")]
    Locked {
        /// The VM.
        vm: VmId,
    },
    /// A file could not be used.
    #[error("cannot remove a replica")]
    File(#[from] FileError),
    /// It could not be recorded.
    #[error("cannot record the removal of a replica")]
    Change(#[from] ChangeError),
}

impl RemoveError {
    /// What the caller does next.
    pub fn kind(&self) -> ErrorKind {
        match self {
            RemoveError::File(err) => err.kind(),
            RemoveError::Change(err) => err.kind(),
            _ => ErrorKind::Refused,
        }
    }
}

impl Store {
    /// Opens a store and every replica in it; recovery runs by itself. A replica that cannot be opened does not keep
    /// the others closed: see [`Store::unopened`].
    pub fn open(files: Arc<dyn Files>, options: StoreOptions) -> Result<Self, StoreError> {
        let lock = crate::files::again(|| files.lock(paths::LOCK)).map_err(|err| match err.kind() {
            io::ErrorKind::WouldBlock => StoreError::InUse,
            _ => FileError::new("lock", paths::LOCK, err).into(),
        })?;
        let root = Place::new(files.clone(), String::new());
        let reserve = Reserve::new(files, options.reserve);
        let checkpoints = options.checkpoints.clone();
        let store = Self {
            root,
            shared: Arc::new(Shared { options, reserve, checkpoints }),
            vms: Mutex::default(),
            _lock: lock,
        };
        store.open_all()?;
        store.shared.reserve.refill();
        Ok(store)
    }

    fn open_all(&self) -> Result<(), StoreError> {
        for entry in self.root.list("")? {
            if entry.kind != EntryKind::Dir {
                continue;
            }
            if paths::is_half(&entry.name) {
                self.remove_tree(&entry.name)?;
            } else if let Some(vm) = paths::parse_vm(&entry.name) {
                self.open_vm(vm, &mut self.vms());
            }
        }
        // What a killed process renamed is shown only once it is durable.
        Ok(self.root.sync_dir("")?)
    }

    fn open_vm(&self, vm: VmId, vms: &mut Vms) {
        let place = Place::new(self.root.files().clone(), paths::vm_dir(vm));
        vms.closed.remove(&vm);
        match open::open(place, self.shared.clone(), vm) {
            Ok(store) => drop(vms.open.insert(vm, Arc::new(store))),
            Err(err) => {
                open::log_unopened(vm, &err);
                vms.closed.insert(vm, err);
            }
        }
    }

    fn vms(&self) -> MutexGuard<'_, Vms> {
        self.vms.lock().expect("nothing panics while the list of replicas is held")
    }

    /// Makes the place for a replica.
    pub fn create_vm(&self, vm: VmId, generation: Generation, disks: &[DiskSpec]) -> Result<Arc<VmStore>, CreateError> {
        let mut disks = disks.to_vec();
        disks.sort_by_key(|d| d.id);
        check_disks(&disks)?;
        let mut vms = self.vms();
        if vms.open.contains_key(&vm) || vms.closed.contains_key(&vm) {
            return Err(CreateError::Exists { vm });
        }
        let manifest = Manifest::new(vm, generation, &disks);
        let half = paths::creating(vm);
        if let Err(err) = self.build(&half, &manifest) {
            // What cannot be removed now goes at the next opening.
            let _ = self.remove_tree(&half);
            return Err(err.into());
        }
        self.root.rename(&half, &paths::vm_dir(vm))?;
        self.root.sync_dir("")?;
        let place = Place::new(self.root.files().clone(), paths::vm_dir(vm));
        let store = Arc::new(VmStore::new(place, self.shared.clone(), manifest));
        vms.open.insert(vm, store.clone());
        Ok(store)
    }

    fn build(&self, dir: &str, manifest: &Manifest) -> Result<(), FileError> {
        self.remove_tree(dir)?;
        self.root.make_dir(dir)?;
        let place = Place::new(self.root.files().clone(), dir.to_owned());
        for sub in [paths::STAGING, paths::DEFINITIONS, paths::FAILOVER] {
            place.make_dir(sub)?;
        }
        for disk in &manifest.disks {
            place.make_dir(&paths::disk_dir(disk.spec.id))?;
        }
        file::prepare(&place, manifest)?;
        file::publish(&place)
    }

    /// An open replica.
    pub fn vm(&self, vm: VmId) -> Option<Arc<VmStore>> {
        self.vms().open.get(&vm).cloned()
    }

    /// Every open replica.
    pub fn list(&self) -> Vec<Arc<VmStore>> {
        self.vms().open.values().cloned().collect()
    }

    /// Replicas that could not be opened, and why.
    pub fn unopened(&self) -> Vec<(VmId, String, ErrorKind)> {
        let vms = self.vms();
        vms.closed.iter().map(|(vm, err)| (*vm, crate::error::chain_of(err), err.kind())).collect()
    }

    /// Opens a replica anew, with all that recovery does, after it stopped or could not be opened. What still holds
    /// the old one gets refusals. None if it cannot be opened, or is not here.
    pub fn reopen(&self, vm: VmId) -> Option<Arc<VmStore>> {
        let mut vms = self.vms();
        if let Some(old) = vms.open.remove(&vm) {
            let _still = old.lock();
            old.end_for_removal();
        } else if !vms.closed.contains_key(&vm) {
            return None;
        }
        self.open_vm(vm, &mut vms);
        vms.open.get(&vm).cloned()
    }

    /// Removes a replica, or ends its relationship and keeps its points.
    pub fn remove(&self, vm: VmId, removal: Removal) -> Result<(), RemoveError> {
        let mut vms = self.vms();
        let store = vms.open.get(&vm).ok_or(RemoveError::Unknown { vm })?.clone();
        if removal == Removal::KeepPoints {
            return store.detach();
        }
        let gone = paths::removing(vm);
        {
            let _still = store.lock();
            store.check_going()?;
            check_removal(&store.manifest(), vm, removal)?;
            self.remove_tree(&gone)?;
            self.root.rename(&paths::vm_dir(vm), &gone)?;
            self.root.sync_dir("")?;
            store.end_for_removal();
        }
        vms.open.remove(&vm);
        // From here on the replica does not exist; what is left of its files also goes at the next opening.
        if let Err(err) = self.remove_tree(&gone) {
            tracing::warn!(%vm, error = %crate::error::chain_of(&err), "leftovers stay until the next opening");
        }
        Ok(())
    }

    /// Removes a directory of one of our forms with all that is in it.
    fn remove_tree(&self, dir: &str) -> Result<(), FileError> {
        for entry in self.root.list_if_there(dir)? {
            let path = format!("{dir}/{}", entry.name);
            match entry.kind {
                EntryKind::Dir => self.remove_tree(&path)?,
                EntryKind::File | EntryKind::Other => drop(self.root.unlink_if_there(&path)?),
            }
        }
        match self.root.remove_dir(dir) {
            Err(err) if err.err.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        }
    }

    /// Whether the reserve is there. Without it a full disk may keep upkeep and failover from finishing.
    pub fn has_reserve(&self) -> bool {
        self.shared.reserve.is_held()
    }

    /// Bytes that can still be written.
    pub fn free_space(&self) -> Result<u64, FileError> {
        self.root.files().free_space().at("measure the space of", "the store")
    }
}

impl VmStore {
    /// Ends the relationship on this side: nothing is received any more, the points stay.
    fn detach(&self) -> Result<(), RemoveError> {
        self.change(Space::Reserved, |m| {
            m.detached = true;
            m.initial = None;
            Ok(())
        })
    }

    /// Takes up a relationship again whose points were kept.
    pub fn attach(&self) -> Result<(), ChangeError> {
        self.change(Space::Reserved, |m| {
            m.detached = false;
            Ok(())
        })
    }
}

fn check_disks(disks: &[DiskSpec]) -> Result<(), CreateError> {
    let wrong = |what| Err(CreateError::Disks { what });
    if disks.is_empty() || disks.len() > DiskSpec::COUNT_MAX {
        return wrong("their number is out of range");
    }
    if disks.windows(2).any(|w| w[0].id == w[1].id) {
        return wrong("one is listed twice");
    }
    let legal = |d: &DiskSpec| d.size > 0 && d.size <= DiskSpec::SIZE_MAX && d.size.is_multiple_of(512);
    if !disks.iter().all(legal) {
        return wrong("one has an impossible size");
    }
    Ok(())
}

fn check_removal(m: &Manifest, vm: VmId, removal: Removal) -> Result<(), RemoveError> {
    let in_use = |stage| match removal {
        Removal::DestroyDisks => stage != FailoverStage::Committed,
        _ => true,
    };
    if m.failovers.iter().any(|f| in_use(f.stage)) {
        return Err(RemoveError::InUse { vm });
    }
    if m.heights().filter_map(|h| m.record(h)).any(|r| r.locked) {
        return Err(RemoveError::Locked { vm });
    }
    Ok(())
}
