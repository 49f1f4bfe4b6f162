//! Replicas that were set aside: their relationship was removed and their points kept, or they could not be opened, and
//! another replica of the same VM has taken, or may take, their place. Nothing opens them any more; QEMU's tools can.
//!
//! Setting aside is a rename of the directory. Where another takes the place at once, that one bears a name until then
//! which tells recovery what to put back.

use understudy_model::VmId;

use super::{CreateError, RemoveError, Store, check_removal};
use crate::Removal;
use crate::error::FileError;
use crate::files::EntryKind;
use crate::manifest::{Manifest, file};
use crate::paths::{self, FileNumber};
use crate::place::Place;
use crate::vm::{VmStore, report};

/// A replica that was set aside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SetAside {
    /// The VM.
    pub vm: VmId,
    /// Tells several of one VM apart.
    pub number: FileNumber,
    /// Bytes of disk space it takes.
    pub bytes: u64,
    /// How many recovery points it has; none if its manifest cannot be read.
    pub points: Option<usize>,
}

impl Store {
    /// Every replica that was set aside. Looks at every file of them.
    pub fn set_aside(&self) -> Result<Vec<SetAside>, FileError> {
        let mut out = Vec::new();
        for (vm, number) in self.asides()? {
            let place = Place::new(self.root.files().clone(), paths::aside(vm, number));
            let points = |m: &Manifest| m.heights().filter(|h| m.is_open(*h)).count();
            let points = file::load(&place).ok().map(|loaded| points(&loaded.manifest));
            out.push(SetAside { vm, number, bytes: report::usage_of(&place, "")?, points });
        }
        Ok(out)
    }

    /// Destroys a replica that was set aside. Refused while one of its points is locked.
    pub fn discard_set_aside(&self, vm: VmId, number: FileNumber) -> Result<(), RemoveError> {
        let _still = self.vms();
        if !self.asides()?.contains(&(vm, number)) {
            return Err(RemoveError::Unknown { vm });
        }
        let dir = paths::aside(vm, number);
        let loaded = file::load(&Place::new(self.root.files().clone(), dir.clone()));
        match loaded {
            Ok(loaded) => check_removal(&loaded.manifest, vm, Removal::DestroyDisks)?,
            Err(file::LoadError::Newer { .. }) => return Err(RemoveError::Newer { vm }),
            Err(file::LoadError::File(err)) => return Err(err.into()),
            Err(_) => {}
        }
        let removed = self.unname(vm, &dir)?;
        self.clear_away(vm, &removed);
        Ok(())
    }

    fn asides(&self) -> Result<Vec<(VmId, FileNumber)>, FileError> {
        let dirs = self.root.list("")?.into_iter().filter(|entry| entry.kind == EntryKind::Dir);
        Ok(dirs.filter_map(|entry| paths::parse_aside(&entry.name)).collect())
    }

    /// A number under which nothing of the VM was set aside.
    pub(super) fn next_aside(&self, vm: VmId) -> Result<FileNumber, FileError> {
        let taken = self.asides()?.into_iter().filter(|(other, _)| *other == vm).map(|(_, number)| number.0);
        Ok(FileNumber(taken.max().map_or(1, |last| last.saturating_add(1))))
    }

    /// Sets a replica aside and makes another in its place.
    pub(super) fn replace(&self, old: &VmStore, manifest: &Manifest) -> Result<(), CreateError> {
        let vm = old.vm;
        if !old.manifest().detached {
            return Err(CreateError::Exists { vm });
        }
        let number = self.next_aside(vm)?;
        let (half, dir, aside) = (paths::replacing(vm, number), paths::vm_dir(vm), paths::aside(vm, number));
        self.build(&half, manifest).inspect_err(|_| drop(self.remove_tree(&half)))?;
        let writer = old.lock();
        let exchanged = check_replaced(old, &writer).and_then(|()| Ok(self.exchange(&half, &dir, &aside)?));
        if exchanged.is_err() {
            // What cannot be removed now goes at the next opening.
            let _ = self.remove_tree(&half);
        } else {
            old.end_for_removal();
        }
        exchanged
    }

    fn exchange(&self, half: &str, dir: &str, aside: &str) -> Result<(), FileError> {
        self.root.rename(dir, aside)?;
        let named = self.root.rename(half, dir);
        let durable = named.and_then(|()| self.root.sync_dir("").inspect_err(|_| drop(self.root.rename(dir, half))));
        durable.inspect_err(|_| {
            // Back to where it was; if that fails too, the next opening does it.
            let _ = self.root.rename(aside, dir);
        })
    }

    /// Puts back what was set aside for a replica whose making was cut short.
    pub(super) fn undo_replacing(&self) -> Result<(), FileError> {
        for entry in self.root.list("")?.into_iter().filter(|entry| entry.kind == EntryKind::Dir) {
            let Some((vm, number)) = paths::parse_replacing(&entry.name) else { continue };
            let (dir, aside) = (paths::vm_dir(vm), paths::aside(vm, number));
            let names: Vec<String> = self.root.list("")?.into_iter().map(|entry| entry.name).collect();
            if !names.contains(&dir) && names.contains(&aside) {
                self.root.rename(&aside, &dir)?;
                // Only then may go what says that it has to be put back.
                self.root.sync_dir("")?;
            }
            self.remove_tree(&entry.name)?;
        }
        Ok(())
    }
}

fn check_replaced(old: &VmStore, writer: &crate::vm::Writer) -> Result<(), CreateError> {
    let (vm, manifest) = (old.vm, old.manifest());
    if !manifest.detached {
        return Err(CreateError::Exists { vm });
    }
    if !manifest.failovers.is_empty() || writer.has_pins() || !old.is_idle() {
        return Err(CreateError::InUse { vm });
    }
    Ok(())
}
