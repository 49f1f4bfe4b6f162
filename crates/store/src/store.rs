//! All replicas of one directory.

pub(crate) mod aside;

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, Weak};

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
    pub(crate) neighbours: Neighbours,
}

/// The open replicas, for those that may borrow from each other. Holds none of them open.
#[derive(Default)]
pub(crate) struct Neighbours(Mutex<BTreeMap<VmId, Weak<VmStore>>>);

impl Neighbours {
    pub(crate) fn find(&self, vm: VmId) -> Option<Arc<VmStore>> {
        self.list().get(&vm).and_then(Weak::upgrade)
    }

    fn add(&self, store: &Arc<VmStore>) {
        self.list().insert(store.vm, Arc::downgrade(store));
    }

    fn list(&self) -> MutexGuard<'_, BTreeMap<VmId, Weak<VmStore>>> {
        self.0.lock().expect("nothing panics while the list of neighbours is held")
    }
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
    /// The one that would have to make room is in use: by a failover, a test, or somebody who reads it or still sends.
    #[error("the points that were kept of {vm} are in use")]
    InUse {
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
    /// It was written by a newer program, which alone knows what may be destroyed.
    #[error("the replica of {vm} is of a newer format and is not destroyed unseen")]
    Newer {
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
            shared: Arc::new(Shared { options, reserve, checkpoints, neighbours: Neighbours::default() }),
            vms: Mutex::default(),
            _lock: lock,
        };
        store.open_all()?;
        store.shared.reserve.refill();
        Ok(store)
    }

    fn open_all(&self) -> Result<(), StoreError> {
        self.undo_replacing()?;
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
            Ok(store) => self.add(vms, Arc::new(store)),
            Err(err) => {
                open::log_unopened(vm, &err);
                vms.closed.insert(vm, err);
            }
        }
    }

    fn add(&self, vms: &mut Vms, store: Arc<VmStore>) {
        self.shared.neighbours.add(&store);
        vms.open.insert(store.vm, store);
    }

    fn vms(&self) -> MutexGuard<'_, Vms> {
        self.vms.lock().expect("nothing panics while the list of replicas is held")
    }

    /// Makes the place for a replica. One whose relationship was removed and whose points were kept makes room: it is
    /// set aside (see [`Store::set_aside`]).
    pub fn create_vm(&self, vm: VmId, generation: Generation, disks: &[DiskSpec]) -> Result<Arc<VmStore>, CreateError> {
        let mut disks = disks.to_vec();
        disks.sort_by_key(|d| d.id);
        check_disks(&disks)?;
        let mut vms = self.vms();
        if vms.closed.contains_key(&vm) {
            return Err(CreateError::Exists { vm });
        }
        let manifest = Manifest::new(vm, generation, &disks);
        match vms.open.get(&vm).cloned() {
            Some(old) => self.replace(&old, &manifest)?,
            None => self.make(&manifest)?,
        }
        let place = Place::new(self.root.files().clone(), paths::vm_dir(vm));
        let store = Arc::new(VmStore::new(place, self.shared.clone(), manifest));
        self.add(&mut vms, store.clone());
        Ok(store)
    }

    /// Makes a directory under the name of a half, then gives it its own.
    fn make(&self, manifest: &Manifest) -> Result<(), FileError> {
        let (half, dir) = (paths::creating(manifest.vm), paths::vm_dir(manifest.vm));
        let made = self.build(&half, manifest).and_then(|()| self.root.rename(&half, &dir));
        if let Err(err) = made {
            // What cannot be removed now goes at the next opening.
            let _ = self.remove_tree(&half);
            return Err(err);
        }
        self.root.sync_dir("").inspect_err(|_| {
            // It may or may not be durable; nobody was told of it.
            let _ = self.root.rename(&dir, &half).and_then(|()| self.remove_tree(&half));
        })
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
        if let Err(err) = self.root.sync_dir("") {
            vms.closed.insert(vm, OpenError::File { vm, err });
            return None;
        }
        self.open_vm(vm, &mut vms);
        vms.open.get(&vm).cloned()
    }

    /// Removes a replica, or ends its relationship and keeps its points. One that cannot be opened is set aside rather
    /// than kept in its place.
    pub fn remove(&self, vm: VmId, removal: Removal) -> Result<(), RemoveError> {
        let mut vms = self.vms();
        let Some(store) = vms.open.get(&vm).cloned() else { return self.remove_unopened(&mut vms, vm, removal) };
        if removal == Removal::KeepPoints {
            return store.detach();
        }
        let removed = {
            let _still = store.lock();
            store.check_going()?;
            check_removal(&store.manifest(), vm, removal)?;
            let removed = self.unname(vm, &paths::vm_dir(vm))?;
            store.end_for_removal();
            removed
        };
        vms.open.remove(&vm);
        self.clear_away(vm, &removed);
        Ok(())
    }

    fn remove_unopened(&self, vms: &mut Vms, vm: VmId, removal: Removal) -> Result<(), RemoveError> {
        let why = vms.closed.get(&vm).ok_or(RemoveError::Unknown { vm })?;
        let dir = paths::vm_dir(vm);
        match removal {
            Removal::KeepPoints => {
                let aside = paths::aside(vm, self.next_aside(vm)?);
                self.root.rename(&dir, &aside)?;
                self.root.sync_dir("")?;
                vms.closed.remove(&vm);
            }
            Removal::DestroyPoints | Removal::DestroyDisks => {
                if matches!(why, OpenError::Newer { .. }) {
                    return Err(RemoveError::Newer { vm });
                }
                let removed = self.unname(vm, &dir)?;
                vms.closed.remove(&vm);
                self.clear_away(vm, &removed);
            }
        }
        Ok(())
    }

    /// Gives a directory the name of one that is being taken apart: from here on it does not exist.
    pub(super) fn unname(&self, vm: VmId, dir: &str) -> Result<String, FileError> {
        let gone = paths::removing(vm);
        self.remove_tree(&gone)?;
        self.root.rename(dir, &gone)?;
        self.root.sync_dir("")?;
        Ok(gone)
    }

    /// Removes what does not exist any more; what is left of it also goes at the next opening.
    pub(super) fn clear_away(&self, vm: VmId, removed: &str) {
        if let Err(err) = self.remove_tree(removed) {
            tracing::warn!(%vm, error = %crate::error::chain_of(&err), "leftovers stay until the next opening");
        }
    }

    /// Removes a directory of one of our forms with all that is in it.
    pub(super) fn remove_tree(&self, dir: &str) -> Result<(), FileError> {
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
            m.seeds.clear();
            m.drop_waiting();
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
