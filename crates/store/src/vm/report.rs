//! What an operator sees of a replica.

use understudy_model::{Cut, DiskId, DiskSpec, Generation, SessionNumber, VmId};

use super::VmStore;
use super::failover::FailoverReport;
use super::points::PointReport;
use crate::error::{At, FileError};
use crate::files::{Access, EntryKind};
use crate::manifest::Link;
use crate::place::Place;

/// A replica, as it is durable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VmReport {
    /// The VM.
    pub vm: VmId,
    /// The highest generation seen.
    pub generation: Generation,
    /// The newest session admitted in it.
    pub session: SessionNumber,
    /// The relationship was removed and its points were kept.
    pub detached: bool,
    /// The VM's disks as of the newest cut.
    pub disks: Vec<DiskSpec>,
    /// The initial copy under way: how far each disk is.
    pub initial: Option<Vec<(DiskId, u64)>>,
    /// The cut of the export whose import is awaited, and the newest one received on top of it.
    pub awaited: Option<(Cut, Cut)>,
    /// The newest cut.
    pub newest: Option<Cut>,
    /// Every cut that can be opened, oldest first.
    pub points: Vec<PointReport>,
    /// Links in the chain above the base.
    pub links: usize,
    /// Bytes in run files, of those too that wait for an import.
    pub run_bytes: u64,
    /// Failovers and tests.
    pub failovers: Vec<FailoverReport>,
    /// What is known to be damaged.
    pub damage: Vec<String>,
    /// Why the replica stopped, if it did.
    pub stopped: Option<String>,
    /// Whether upkeep has something to do.
    pub needs_upkeep: bool,
}

impl VmStore {
    /// Bytes of disk space that the replica takes, overlays and what is arriving included. Looks at every file.
    pub fn disk_usage(&self) -> Result<u64, FileError> {
        usage_of(&self.place, "")
    }

    /// The replica as it is now.
    pub fn report(&self) -> VmReport {
        let m = self.manifest();
        VmReport {
            vm: self.vm,
            generation: m.generation,
            session: m.session,
            detached: m.detached,
            disks: m.current_disks().cloned().collect(),
            initial: self.base_positions(),
            awaited: m.waiting.as_ref().map(|w| (w.record.cut.clone(), w.newest().cut.clone())),
            newest: self.newest(),
            points: self.points(),
            links: m.links.len(),
            run_bytes: m.all_links().map(Link::len).sum(),
            failovers: self.failovers(),
            damage: m.damage.iter().map(|d| format!("{}: {}", d.object, d.what)).collect(),
            stopped: self.stopped(),
            needs_upkeep: self.needs_upkeep(),
        }
    }
}

/// Bytes that the files beneath a directory take.
pub(crate) fn usage_of(place: &Place, dir: &str) -> Result<u64, FileError> {
    let mut bytes = 0;
    for entry in place.list_if_there(dir)? {
        let path = if dir.is_empty() { entry.name } else { format!("{dir}/{}", entry.name) };
        bytes += match entry.kind {
            EntryKind::Dir => usage_of(place, &path)?,
            EntryKind::Other => 0,
            // What was unlinked between the listing and now takes nothing.
            EntryKind::File => match place.open_if_there(&path, Access::Read)? {
                Some(file) => file.allocated().at("measure", &place.path(&path))?,
                None => 0,
            },
        };
    }
    Ok(bytes)
}
