//! One VM's replica: its state, and the one way in which it changes.
//!
//! Everything durable about it is its [`Manifest`]. A change copies the manifest, edits the copy, writes it, and only
//! then shows it to others ([`VmStore::change`]); readers hold on to the version they began with. What a change needs
//! is durable before the change, and what it makes superfluous is unlinked after it.
//!
//! Who may meet whom:
//!
//! | at once | what makes it safe |
//! |---|---|
//! | receive, receive | one receiver; a newer session supersedes it, and sealing looks again |
//! | receive, upkeep | a file keeps its name and, seen through the chain, its content, so what a run is built on stays |
//! | compare, upkeep | it pins the newest cut, as a read does |
//! | read, upkeep | a read pins its cut: nothing at or below a pinned cut is merged, committed or unlinked |
//! | failover, upkeep | the same, durably |
//! | failover, receive | a failover raises the generation, so the receiver's session is no longer the current one |
//! | upkeep, upkeep | one at a time |

pub(crate) mod adopt;
pub(crate) mod awaiting;
pub(crate) mod base;
pub(crate) mod check;
pub(crate) mod compare;
pub(crate) mod definition;
pub(crate) mod failover;
pub(crate) mod open;
pub(crate) mod points;
pub(crate) mod reader;
pub(crate) mod receive;
pub(crate) mod report;
pub(crate) mod session;
pub(crate) mod sums;
pub(crate) mod upkeep;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, RwLock};

use tracing::{error, warn};
use understudy_model::{CutDigest, VmId};

use crate::checkpoints::CrashPoint;
use crate::error::{ChangeError, FileError, chain_of};
use crate::manifest::{Height, Manifest, PendingRename, file};
use crate::paths::{self, FileNumber};
use crate::place::Place;
use crate::store::Shared;
use session::Session;

/// The replica of one VM. Shared by whoever receives, reads and keeps it up.
pub struct VmStore {
    pub(crate) vm: VmId,
    pub(crate) place: Place,
    pub(crate) shared: Arc<Shared>,
    /// The manifest as it is durable.
    committed: RwLock<Arc<Manifest>>,
    /// Held by whoever changes the manifest, and by whoever pins a cut.
    writer: Mutex<Writer>,
    /// Why nothing may be written any more.
    end: Mutex<Option<End>>,
    /// The next number for a file; ahead of the manifest's while files are in staging.
    next_file: AtomicU64,
    /// Held during a step of upkeep or a check.
    pub(crate) busy: Mutex<()>,
    /// Held for writing while a base and its checksums disagree for a moment.
    pub(crate) base_io: RwLock<()>,
    /// Who fills staging.
    receiving: Mutex<Receiving>,
}

/// Who fills staging: a receiver, or operators who plant seeds.
#[derive(Default)]
struct Receiving {
    /// The receiver at work: its claim, the session it came in, and what it brings.
    receiver: Option<(u64, Session, Transfer)>,
    /// Seeds being planted, and an import being adopted: nobody else may begin with a base meanwhile.
    planting: usize,
    importing: bool,
}

/// What a receiver brings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Transfer {
    /// A base, or the word that one will be imported.
    Base,
    /// A cycle.
    Cycle,
}

/// Keeps receivers of bases away while it lives.
pub(crate) struct Importing {
    vm: Arc<VmStore>,
}

impl Drop for Importing {
    fn drop(&mut self) {
        self.vm.receiving().importing = false;
    }
}

/// Keeps receivers away while it lives.
pub(crate) struct Planting {
    vm: Arc<VmStore>,
}

impl Drop for Planting {
    fn drop(&mut self) {
        self.vm.receiving().planting -= 1;
    }
}

/// What only the holder of the writer's lock knows.
#[derive(Default)]
pub(crate) struct Writer {
    /// Cuts that are being read, and how often.
    pins: BTreeMap<CutDigest, u32>,
}

#[derive(Clone)]
enum End {
    Stopped(String),
    Removed,
}

/// Whether a change may use the reserve when space has run out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Space {
    /// What frees space, or must not fail.
    Reserved,
    /// What can wait: receiving.
    Spare,
}

/// Crash points that lie around the replacement of the manifest.
#[derive(Default)]
pub(crate) struct Marks {
    pub(crate) before: Option<CrashPoint>,
    pub(crate) written: Option<CrashPoint>,
    pub(crate) synced: Option<CrashPoint>,
    pub(crate) swapped: Option<CrashPoint>,
    pub(crate) before_unlink: Option<CrashPoint>,
    pub(crate) unlinked: Option<CrashPoint>,
}

impl VmStore {
    pub(crate) fn new(place: Place, shared: Arc<Shared>, manifest: Manifest) -> Self {
        Self {
            vm: manifest.vm,
            place,
            shared,
            next_file: AtomicU64::new(manifest.next_file),
            committed: RwLock::new(Arc::new(manifest)),
            writer: Mutex::default(),
            end: Mutex::new(None),
            busy: Mutex::new(()),
            base_io: RwLock::new(()),
            receiving: Mutex::default(),
        }
    }

    /// The VM.
    pub fn id(&self) -> VmId {
        self.vm
    }

    /// Tells the listener of crash points that a place was reached that lies outside this crate, such as the sending
    /// of an acknowledgement.
    pub fn passed(&self, point: CrashPoint) -> Result<(), FileError> {
        self.reached(point)
    }

    pub(crate) fn reached(&self, point: CrashPoint) -> Result<(), FileError> {
        let visit = self.shared.checkpoints.reached(point);
        visit.map_err(|err| FileError::new("pass", format!("{} at {point}", self.place.path("")), err))
    }

    fn reached_if(&self, point: Option<CrashPoint>) -> Result<(), FileError> {
        point.map_or(Ok(()), |point| self.reached(point))
    }

    pub(crate) fn manifest(&self) -> Arc<Manifest> {
        self.committed.read().expect("nothing panics while the manifest is swapped").clone()
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, Writer> {
        self.writer.lock().expect("no change panics half-way")
    }

    pub(crate) fn next_number(&self) -> FileNumber {
        FileNumber(self.next_file.fetch_add(1, Ordering::SeqCst))
    }

    /// Nothing is written any more until the VM was reopened: it is unknown what is durable.
    pub(crate) fn stop(&self, cause: &(dyn std::error::Error + 'static)) {
        let mut end = self.end.lock().expect("nothing panics while the end is noted");
        if end.is_none() {
            let cause = chain_of(cause);
            error!(vm = %self.vm, %cause, "the replica stopped; it must be reopened");
            *end = Some(End::Stopped(cause));
        }
    }

    pub(crate) fn end_for_removal(&self) {
        *self.end.lock().expect("nothing panics while the end is noted") = Some(End::Removed);
    }

    /// Why the replica stopped, if it did. [`crate::Store::reopen`] checks it and goes on.
    pub fn stopped(&self) -> Option<String> {
        match &*self.end.lock().expect("nothing panics while the end is noted") {
            Some(End::Stopped(cause)) => Some(cause.clone()),
            Some(End::Removed) => Some("it was removed".to_owned()),
            None => None,
        }
    }

    pub(crate) fn check_going(&self) -> Result<(), ChangeError> {
        match self.end.lock().expect("nothing panics while the end is noted").clone() {
            None => Ok(()),
            Some(End::Stopped(cause)) => Err(ChangeError::Stopped { vm: self.vm, cause }),
            Some(End::Removed) => Err(ChangeError::Removed { vm: self.vm }),
        }
    }

    /// Looks at a failed write or sync of replica data: unless space or patience ran out, the disk can no longer be
    /// trusted with it, and everything stops until a checked reopening.
    pub(crate) fn judge(&self, err: FileError) -> FileError {
        let passing = err.is_no_space() || err.kind() == understudy_model::ErrorKind::Retry;
        if err.what.starts_with("sync") || (err.what == "write" && !passing) {
            self.stop(&err);
        }
        err
    }

    /// Makes a change durable, then visible.
    pub(crate) fn change<T, E: From<ChangeError>>(
        &self,
        space: Space,
        edit: impl FnOnce(&mut Manifest) -> Result<T, E>,
    ) -> Result<T, E> {
        self.change_marked(&mut self.lock(), space, &Marks::default(), edit)
    }

    /// Makes a change durable, then visible, then unlinks what it made superfluous.
    pub(crate) fn change_marked<T, E: From<ChangeError>>(
        &self,
        _writer: &mut Writer,
        space: Space,
        marks: &Marks,
        edit: impl FnOnce(&mut Manifest) -> Result<T, E>,
    ) -> Result<T, E> {
        self.check_going()?;
        let old = self.manifest();
        let mut new = (*old).clone();
        // Their renames were done when they were recorded, else the replica would have stopped.
        new.pending.clear();
        let out = edit(&mut new)?;
        new.sequence += 1;
        new.next_file = self.next_file.load(Ordering::SeqCst);
        new.drop_stale_damage();
        if let Some(what) = new.contradiction() {
            unreachable!("a change that contradicts itself: {what}");
        }
        self.record(&new, space, marks)?;
        let new = Arc::new(new);
        *self.committed.write().expect("nothing panics while the manifest is swapped") = new.clone();
        self.reached_if(marks.swapped).map_err(ChangeError::File)?;
        self.collect(&old, &new, marks).map_err(ChangeError::File)?;
        Ok(out)
    }

    fn record(&self, new: &Manifest, space: Space, marks: &Marks) -> Result<(), ChangeError> {
        self.reached_if(marks.before)?;
        match file::prepare(&self.place, new) {
            Err(err) if err.is_no_space() && space == Space::Reserved && self.shared.reserve.release() => {
                warn!(vm = %self.vm, "no space left: using the reserve");
                file::prepare(&self.place, new).map_err(|err| self.judge(err))?;
            }
            other => other.map_err(|err| self.judge(err))?,
        }
        self.reached_if(marks.written)?;
        // From here on either version may be the durable one.
        let publish = file::publish(&self.place).and_then(|()| self.reached_if(marks.synced));
        publish.and_then(|()| complete(&self.place, &new.pending)).map_err(|err| {
            self.stop(&err);
            err.into()
        })
    }

    /// Unlinks what the old manifest named and the new one does not. What cannot be unlinked now is a leftover that
    /// the next opening clears away.
    fn collect(&self, old: &Manifest, new: &Manifest, marks: &Marks) -> Result<(), FileError> {
        let superfluous = superfluous(old, new);
        if superfluous.is_empty() {
            return Ok(());
        }
        self.reached_if(marks.before_unlink)?;
        for path in &superfluous {
            if let Err(err) = self.place.unlink_if_there(path) {
                warn!(vm = %self.vm, error = %chain_of(&err), "a leftover stays until the next opening");
            }
        }
        self.reached_if(marks.unlinked)?;
        let dirs: BTreeSet<&str> = superfluous.iter().map(|path| crate::files::parent(path)).collect();
        for dir in dirs {
            // Nothing rests on it: a name that comes back after a crash is a leftover.
            if let Err(err) = self.place.sync_dir(dir) {
                warn!(vm = %self.vm, error = %chain_of(&err), "unlinked names may come back");
            }
        }
        Ok(())
    }

    /// The greatest height that a read or a failover is using.
    pub(crate) fn in_use(&self, writer: &Writer, manifest: &Manifest) -> Option<Height> {
        let failovers = manifest.failovers.iter().map(|f| f.cut);
        writer.pins.keys().copied().chain(failovers).filter_map(|cut| manifest.height_of(cut)).max()
    }

    /// Becomes the one receiver and answers its claim; a receiver of an older session is superseded.
    pub(crate) fn claim_receiving(&self, session: Session, transfer: Transfer) -> Option<u64> {
        let mut receiving = self.receiving();
        let taken = receiving.planting > 0 || (receiving.importing && transfer == Transfer::Base);
        if taken || receiving.receiver.is_some_and(|(_, other, _)| other == session) {
            return None;
        }
        let claim = self.next_number().0;
        receiving.receiver = Some((claim, session, transfer));
        Some(claim)
    }

    fn receiving(&self) -> MutexGuard<'_, Receiving> {
        self.receiving.lock().expect("nothing panics while receiving is claimed")
    }

    pub(crate) fn is_receiving(&self, claim: u64) -> bool {
        self.receiving().receiver.is_some_and(|(other, ..)| other == claim)
    }

    pub(crate) fn end_receiving(&self, claim: u64) {
        let mut receiving = self.receiving();
        if receiving.receiver.is_some_and(|(other, ..)| other == claim) {
            receiving.receiver = None;
        }
    }

    /// Whether nobody fills staging.
    pub(crate) fn is_idle(&self) -> bool {
        let receiving = self.receiving();
        receiving.receiver.is_none() && receiving.planting == 0 && !receiving.importing
    }

    /// Keeps receivers of bases away while an import is adopted. Cycles may come on top of it meanwhile.
    pub(crate) fn claim_importing(self: &Arc<Self>) -> Option<Importing> {
        let mut receiving = self.receiving();
        let base = receiving.receiver.is_some_and(|(.., transfer)| transfer == Transfer::Base);
        if base || receiving.planting > 0 || receiving.importing {
            return None;
        }
        receiving.importing = true;
        Some(Importing { vm: self.clone() })
    }

    /// Keeps receivers away while a seed is planted, unless one is at work.
    pub(crate) fn claim_planting(self: &Arc<Self>) -> Option<Planting> {
        let mut receiving = self.receiving();
        if receiving.receiver.is_some() || receiving.importing {
            return None;
        }
        receiving.planting += 1;
        Some(Planting { vm: self.clone() })
    }

    /// Unlinks files that came to nothing. Not once the replica stopped: the manifest may name them after all.
    pub(crate) fn discard(&self, paths: &[String]) {
        if self.stopped().is_some() {
            return;
        }
        for path in paths {
            if let Err(err) = self.place.unlink_if_there(path) {
                warn!(vm = %self.vm, error = %chain_of(&err), "a leftover stays until the next opening");
            }
        }
    }
}

impl Writer {
    /// Whether anything is being read.
    pub(crate) fn has_pins(&self) -> bool {
        !self.pins.is_empty()
    }

    pub(crate) fn pin(&mut self, cut: CutDigest) {
        *self.pins.entry(cut).or_insert(0) += 1;
    }

    pub(crate) fn unpin(&mut self, cut: CutDigest) {
        if let Some(n) = self.pins.get_mut(&cut) {
            *n -= 1;
            if *n == 0 {
                self.pins.remove(&cut);
            }
        }
    }
}

/// Carries out the renames that belong to a manifest. May be repeated: a name that is no longer in staging has been
/// renamed before.
pub(crate) fn complete(place: &Place, pending: &[PendingRename]) -> Result<(), FileError> {
    let mut dirs = BTreeSet::new();
    for rename in pending {
        for (from, to) in names_of(rename) {
            match place.rename(&from, &to) {
                Err(err) if err.err.kind() == std::io::ErrorKind::NotFound => {}
                other => other?,
            }
            dirs.insert(crate::files::parent(&to).to_owned());
        }
    }
    if !dirs.is_empty() {
        dirs.insert(paths::STAGING.to_owned());
    }
    dirs.iter().try_for_each(|dir| place.sync_dir(dir))
}

/// The staged and the final names.
pub(crate) fn names_of(rename: &PendingRename) -> Vec<(String, String)> {
    match *rename {
        PendingRename::Run { disk, staged, name } => {
            vec![(paths::staged_run(disk, staged), paths::run(disk, name))]
        }
        PendingRename::Base { disk } => {
            vec![(paths::staged_base_sums(disk), paths::base_sums(disk)), (paths::staged_base(disk), paths::base(disk))]
        }
    }
}

/// Paths that the old manifest names and the new one does not.
fn superfluous(old: &Manifest, new: &Manifest) -> Vec<String> {
    let (files, bases) = (new.run_files(), base_disks(new));
    let runs = old.run_files().into_iter().filter(|file| !files.contains(file));
    let mut out: Vec<String> = runs.map(|(disk, number)| paths::run(disk, number)).collect();
    for disk in base_disks(old).difference(&bases) {
        out.extend([paths::base(*disk), paths::base_sums(*disk)]);
    }
    let kept: BTreeSet<FileNumber> = new.definitions.iter().map(|d| d.number).collect();
    let dropped = old.definitions.iter().filter(|d| !kept.contains(&d.number));
    out.extend(dropped.map(|d| paths::definition(d.number, &d.extension)));
    let blobs = blobs(new);
    out.extend(self::blobs(old).difference(&blobs).map(paths::blob));
    out
}

fn base_disks(manifest: &Manifest) -> BTreeSet<understudy_model::DiskId> {
    manifest.base.iter().flat_map(|b| &b.files).map(|f| f.disk).collect()
}

/// Every blob that a definition refers to.
pub(crate) fn blobs(manifest: &Manifest) -> BTreeSet<[u8; 32]> {
    manifest.definitions.iter().flat_map(|d| d.blobs.iter().copied()).collect()
}
