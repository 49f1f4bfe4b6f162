//! Opening a replica: recovery, which needs nobody, changes nothing that was promised, and may be cut short and
//! repeated any number of times.
//!
//! In this order: read the manifest, carry out the renames that belong to it, write it again if its copies differ or
//! renames were carried out, clear away what it does not name, look at what it does name.

use std::collections::BTreeSet;
use std::sync::Arc;

use tracing::warn;
use understudy_model::{ErrorKind, VmId};

use super::{VmStore, blobs, complete};
use crate::error::{FileError, chain_of};
use crate::files::{Access, EntryKind};
use crate::manifest::file::{self, LoadError, Loaded};
use crate::manifest::{DAMAGE_MAX, DamageRecord, Manifest, Object};
use crate::paths::{self, FileNumber};
use crate::place::Place;
use crate::store::Shared;

/// Why a replica cannot be opened. Its files are untouched.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Written by a newer program.
    #[error("the replica of {vm} is of format version {found}; this program knows {known}")]
    Newer {
        /// The VM.
        vm: VmId,
        /// Its version.
        found: u32,
        /// Ours.
        known: u32,
    },
    /// Both copies of its manifest are damaged.
    #[error("the manifest of {vm} cannot be used: {what}")]
    Manifest {
        /// The VM.
        vm: VmId,
        /// What is wrong with it.
        what: String,
    },
    /// The directory is another VM's.
    #[error("the directory of {vm} holds the replica of {found}")]
    OtherVm {
        /// The directory's VM.
        vm: VmId,
        /// The manifest's.
        found: VmId,
    },
    /// A file could not be used.
    #[error("cannot open the replica of {vm}")]
    File {
        /// The VM.
        vm: VmId,
        /// Why.
        #[source]
        err: FileError,
    },
}

impl OpenError {
    /// What the caller does next.
    pub fn kind(&self) -> ErrorKind {
        match self {
            OpenError::Newer { .. } => ErrorKind::Refused,
            OpenError::Manifest { .. } | OpenError::OtherVm { .. } => ErrorKind::Corrupt,
            OpenError::File { err, .. } => match err.kind() {
                ErrorKind::Corrupt => ErrorKind::Operator,
                kind => kind,
            },
        }
    }
}

/// Opens the replica in a directory of the store.
pub(crate) fn open(place: Place, shared: Arc<Shared>, vm: VmId) -> Result<VmStore, OpenError> {
    let Loaded { manifest, copies_agree } = file::load(&place).map_err(|err| load_error(vm, err))?;
    if manifest.vm != vm {
        return Err(OpenError::OtherVm { vm, found: manifest.vm });
    }
    recover(place, shared, manifest, copies_agree).map_err(|err| OpenError::File { vm, err })
}

fn load_error(vm: VmId, err: LoadError) -> OpenError {
    match err {
        LoadError::Newer { found } => OpenError::Newer { vm, found, known: file::VERSION },
        LoadError::File(err) => OpenError::File { vm, err },
        err @ (LoadError::Damaged | LoadError::Contradiction { .. }) => {
            OpenError::Manifest { vm, what: err.to_string() }
        }
    }
}

fn recover(
    place: Place,
    shared: Arc<Shared>,
    mut manifest: Manifest,
    copies_agree: bool,
) -> Result<VmStore, FileError> {
    complete(&place, &manifest.pending)?;
    let pending = !manifest.pending.is_empty();
    manifest.pending.clear();
    let lost = drop_lost(&place, &mut manifest)?;
    let found = damage(&place, &manifest)?;
    let known = manifest.damage.len();
    manifest.damage.extend(found);
    manifest.damage.truncate(DAMAGE_MAX);
    if copies_agree && !pending && !lost && manifest.damage.len() == known {
        // A killed process may have renamed without syncing. What is shown must be durable.
        place.sync_dir("")?;
    } else {
        manifest.sequence += 1;
        write(&place, &shared, &manifest)?;
    }
    clear(&place, &manifest)?;
    Ok(VmStore::new(place, shared, manifest))
}

/// Forgets a copy and seeds whose files are gone; whether there were any.
fn drop_lost(place: &Place, manifest: &mut Manifest) -> Result<bool, FileError> {
    let mut lost = manifest.initial.is_some() && !has_staged_bases(place, manifest)?;
    if lost {
        warn!(vm = %manifest.vm, "an initial copy lost its files and begins again");
        manifest.initial = None;
    }
    for disk in manifest.seeds.clone() {
        // A crash before a seed was moved leaves it where it was; that is no loss.
        if place.open_if_there(&paths::staged_base(disk), Access::Read)?.is_none() {
            manifest.seeds.retain(|other| *other != disk);
            lost = true;
        }
    }
    Ok(lost)
}

/// Whether the files that the positions of an initial copy were measured on are there.
fn has_staged_bases(place: &Place, manifest: &Manifest) -> Result<bool, FileError> {
    for initial in manifest.initial.iter().flatten() {
        let path = paths::staged_base(initial.disk);
        let Some(file) = place.open_if_there(&path, Access::Read)? else { return Ok(false) };
        let size = manifest.current_disks().find(|spec| spec.id == initial.disk).map(|spec| spec.size);
        let sums = place.open_if_there(&paths::staged_base_sums(initial.disk), Access::Read)?;
        if sums.is_none() || Some(place.len(&file, &path)?) != size {
            return Ok(false);
        }
    }
    Ok(true)
}

fn write(place: &Place, shared: &Shared, manifest: &Manifest) -> Result<(), FileError> {
    match file::prepare(place, manifest) {
        Err(err) if err.is_no_space() && shared.reserve.release() => file::prepare(place, manifest)?,
        other => other?,
    }
    file::publish(place)
}

/// Clears away what the manifest does not name: staging but for a resumable copy, and leftovers of what was cut short.
/// Only names of the form we make; whatever else lies here is somebody's.
fn clear(place: &Place, manifest: &Manifest) -> Result<(), FileError> {
    for dir in [paths::STAGING, paths::DEFINITIONS, paths::FAILOVER] {
        place.ensure_dir(dir)?;
    }
    for new in paths::MANIFESTS_NEW {
        place.unlink_if_there(new)?;
    }
    clear_dir(place, paths::STAGING, &staged(manifest), |_| true)?;
    clear_disks(place, manifest)?;
    clear_dir(place, paths::DEFINITIONS, &defined(manifest), |_| true)?;
    clear_failovers(place, manifest)
}

fn clear_dir(place: &Place, dir: &str, keep: &BTreeSet<String>, ours: impl Fn(&str) -> bool) -> Result<(), FileError> {
    let mut cleared = false;
    for entry in place.list_if_there(dir)? {
        let path = format!("{dir}/{}", entry.name);
        if entry.kind == EntryKind::File
            && !keep.contains(&path)
            && crate::files::is_name(&entry.name)
            && ours(&entry.name)
        {
            place.unlink_if_there(&path)?;
            cleared = true;
        }
    }
    if cleared { place.sync_dir(dir) } else { Ok(()) }
}

fn staged(manifest: &Manifest) -> BTreeSet<String> {
    let disks = manifest.initial.iter().flatten().map(|i| i.disk).chain(manifest.seeds.iter().copied());
    disks.flat_map(|disk| [paths::staged_base(disk), paths::staged_base_sums(disk)]).collect()
}

fn defined(manifest: &Manifest) -> BTreeSet<String> {
    let definitions = manifest.definitions.iter().map(|d| paths::definition(d.number, &d.extension));
    definitions.chain(blobs(manifest).iter().map(paths::blob)).collect()
}

fn clear_disks(place: &Place, manifest: &Manifest) -> Result<(), FileError> {
    let runs = manifest.run_files().into_iter().map(|(disk, number)| paths::run(disk, number));
    let bases = manifest.base.iter().flat_map(|b| &b.files).map(|f| f.disk);
    let keep: BTreeSet<String> =
        runs.chain(bases.flat_map(|disk| [paths::base(disk), paths::base_sums(disk)])).collect();
    let is_ours = |name: &str| paths::parse_run_name(name).is_some() || name == paths::BASE || name == paths::BASE_SUMS;
    for entry in place.list("")? {
        if entry.kind == EntryKind::Dir && paths::parse_disk_dir(&entry.name).is_some() {
            clear_dir(place, &entry.name, &keep, is_ours)?;
        }
    }
    Ok(())
}

fn clear_failovers(place: &Place, manifest: &Manifest) -> Result<(), FileError> {
    let recorded: BTreeSet<FileNumber> = manifest.failovers.iter().map(|f| f.number).collect();
    for entry in place.list_if_there(paths::FAILOVER)? {
        let number = paths::parse_failover_dir(&entry.name).filter(|n| !recorded.contains(n));
        if let (EntryKind::Dir, Some(number)) = (entry.kind, number) {
            super::failover::remove_overlays(place, number)?;
        }
    }
    Ok(())
}

/// What is plainly missing or too short. Everything else is found by reading.
fn damage(place: &Place, manifest: &Manifest) -> Result<Vec<DamageRecord>, FileError> {
    let mut out = Vec::new();
    let mut look = |object: Object, path: &str, len: u64| -> Result<(), FileError> {
        let found = match place.open_if_there(path, Access::Read)? {
            None => Some("it is missing".to_owned()),
            Some(file) => {
                let found = place.len(&file, path)?;
                (found < len).then(|| format!("it is {found} bytes long and not {len}"))
            }
        };
        if let Some(what) = found
            && !manifest.damage.iter().any(|d| d.object == object)
        {
            warn!(vm = %manifest.vm, %object, what, "damage found");
            out.push(DamageRecord { object, what, covered: None });
        }
        Ok(())
    };
    for (disk, file) in manifest.all_links().flat_map(|l| l.files()) {
        look(Object::Run { disk, number: file.number }, &paths::run(disk, file.number), file.len)?;
    }
    for base in manifest.base.iter().flat_map(|b| &b.files) {
        look(Object::Base { disk: base.disk }, &paths::base(base.disk), base.size)?;
        if let Some(stub) = base.stub {
            let object = Object::Run { disk: base.disk, number: stub.number };
            look(object, &paths::run(base.disk, stub.number), stub.len)?;
        }
    }
    Ok(out)
}

/// Logs why a replica stays closed; the others are served.
pub(crate) fn log_unopened(vm: VmId, err: &OpenError) {
    warn!(%vm, error = %chain_of(err), "a replica cannot be opened");
}
