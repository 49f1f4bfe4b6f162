//! Whether a cycle may go on top of what is here: asked of the manifest alone.

use understudy_model::{CutDigest, DiskSpec};
use understudy_run::Geometry;

use super::super::session::{self, Session};
use super::{CycleDisk, CycleError, CycleHeader, Receiving};
use crate::manifest::{CutRecord, LINKS_MAX, Manifest, Object};

/// Whether a cycle may go on top of what is here. Asked at its beginning and again when it is sealed.
pub(super) fn check_cycle(m: &Manifest, session: Session, header: &CycleHeader) -> Result<(), CycleError> {
    if m.active().is_some() || m.committed().is_some() {
        return Err(CycleError::FailedOver);
    }
    session::check(m, session)?;
    if header.generation > session.generation {
        return Err(CycleError::FutureGeneration { given: header.generation, session: session.generation });
    }
    if m.all_links().count() >= LINKS_MAX {
        return Err(CycleError::ChainTooLong);
    }
    let newest = m.tip().map_or(CutDigest::ZERO, CutRecord::digest);
    if header.parent != newest {
        let awaited = m.waiting.iter().flat_map(|w| w.links.iter().map(|l| &l.record).chain([&w.record]));
        let known = m.height_of(header.parent).is_some()
            || header.parent == CutDigest::ZERO
            || awaited.map(CutRecord::digest).any(|cut| cut == header.parent);
        let parent = header.parent;
        return Err(if known {
            CycleError::ParentNotNewest { parent, newest }
        } else {
            CycleError::UnknownParent { parent }
        });
    }
    match m.tip() {
        Some(tip) => check_successor(m, tip, header),
        None => check_initial(m),
    }
}

fn check_successor(m: &Manifest, tip: &CutRecord, header: &CycleHeader) -> Result<(), CycleError> {
    let damage = match m.top() {
        Some(top) => m.damage_below(top),
        // Nothing but runs that wait is there to be damaged.
        None => m.damage.iter().find(|d| matches!(d.object, Object::Run { .. })),
    };
    if let Some(damage) = damage {
        return Err(CycleError::Damaged { object: damage.object.to_string(), what: damage.what.clone() });
    }
    let newest = tip.cut.id;
    if (header.generation, header.number) <= (newest.generation, newest.number) {
        return Err(CycleError::NumberReused { generation: header.generation, number: header.number });
    }
    Ok(())
}

fn check_initial(m: &Manifest) -> Result<(), CycleError> {
    for spec in m.current_disks() {
        let initial = m.initial.iter().flatten().find(|i| i.disk == spec.id);
        let position = initial.map_or(0, |i| i.position);
        if initial.is_none() || position < spec.size {
            return Err(CycleError::BaseIncomplete { disk: spec.id, position, size: spec.size });
        }
    }
    Ok(())
}

pub(super) fn check_disks(m: &Manifest, header: &CycleHeader) -> Result<Vec<Receiving>, CycleError> {
    if header.disks.is_empty() || header.disks.len() > DiskSpec::COUNT_MAX {
        return Err(CycleError::Disks { what: "their number is out of range" });
    }
    let mut disks = header.disks.clone();
    disks.sort_by_key(|d| d.spec.id);
    if disks.windows(2).any(|w| w[0].spec.id == w[1].spec.id) {
        return Err(CycleError::Disks { what: "one is listed twice" });
    }
    let unlisted = disks.iter().filter(|d| m.disks.iter().all(|known| known.spec.id != d.spec.id)).count();
    if m.disks.len() + unlisted > DiskSpec::COUNT_MAX {
        return Err(CycleError::Disks { what: "the VM has had too many" });
    }
    disks.into_iter().map(|disk| check_disk(m, disk)).collect()
}

fn check_disk(m: &Manifest, disk: CycleDisk) -> Result<Receiving, CycleError> {
    let spec = &disk.spec;
    let changed = |what| Err(CycleError::DiskChanged { disk: spec.id, what });
    if spec.size > DiskSpec::SIZE_MAX {
        return Err(CycleError::Disks { what: "one is too large" });
    }
    if let Some(known) = m.disks.iter().find(|d| d.spec.id == spec.id) {
        if known.removed {
            return changed("its number belonged to a disk that was removed");
        }
        if known.spec.key != spec.key {
            return changed("it was exchanged");
        }
        if spec.size < known.spec.size {
            return changed("it has shrunk");
        }
    }
    let geometry = Geometry::new(spec.size, disk.cluster_bits);
    let geometry = geometry.map_err(|err| CycleError::Geometry { disk: spec.id, err })?;
    let below = m.below_next(spec.id);
    Ok(Receiving { disk, geometry, below, builder: None })
}
