//! The VM: power, guest, and replication's calls, all synchronous.

use understudy_model::{Consistency, CutNumber, DiskId, DiskSpec, Extent, ExtentSet};

use super::disk::FakeDisk;
use crate::driver::{
    Content, CutRequest, Description, Error, ImageFormat, ImageRecord, LostTracking, MapInfo, MapInventory, MapOwner,
    Power, READ_LEN_MAX, Result,
};

/// Names an open cut. One that is over is not served any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct CutId(u64);

/// A place inside a cut at which the daemon may die.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CutStep {
    /// The new maps were begun, nothing is frozen.
    NewMaps,
    /// The disks are frozen, the old maps still record.
    Instant,
    /// The old maps have ended.
    OldMaps,
}

/// An open cut.
#[derive(Debug, Clone)]
struct OpenCut {
    id: CutId,
    disks: Vec<(DiskId, usize)>,
    scratch_limit: u64,
    scratch: u64,
    /// Why it serves nothing any more.
    ended: Option<String>,
    /// Nobody of ours knows of it: it is a leftover.
    is_orphan: bool,
    consistency: Consistency,
    shortfall: Option<String>,
    images: Vec<ImageRecord>,
}

/// A VM in memory.
#[derive(Debug, Clone)]
pub struct FakeVm {
    power: Power,
    disks: Vec<FakeDisk>,
    open: Option<OpenCut>,
    last_cut: u64,
    has_agent: bool,
}

impl FakeVm {
    /// A running VM with these disks.
    pub fn new(disks: impl IntoIterator<Item = FakeDisk>) -> Self {
        let disks = disks.into_iter().collect();
        Self { power: Power::Running, disks, open: None, last_cut: 0, has_agent: true }
    }

    // --- the guest's side ---

    /// The disks.
    pub fn disks(&self) -> &[FakeDisk] {
        &self.disks
    }

    /// The guest writes. A VM that does not run writes nothing; answers whether it did. A cut that has no room for the
    /// old content ends: the guest's writes come first.
    pub fn write(&mut self, disk: usize, offset: u64, bytes: &[u8]) -> bool {
        if self.power != Power::Running {
            return false;
        }
        let saved = self.disks[disk].write(offset, bytes);
        if let Some(open) = &mut self.open {
            open.scratch += saved;
            if open.scratch > open.scratch_limit && open.ended.is_none() {
                self.end_cut("its scratch space ran out");
            }
        }
        true
    }

    /// The guest discards, which reads as zeros afterwards.
    pub fn discard(&mut self, disk: usize, extent: Extent) -> bool {
        self.write(disk, extent.offset, &vec![0; extent.len as usize])
    }

    /// Whether the guest has an agent that freezes its file systems.
    pub fn set_agent(&mut self, has_agent: bool) {
        self.has_agent = has_agent;
    }

    // --- the host's side ---

    /// Whether it runs.
    pub fn power(&self) -> Power {
        self.power
    }

    /// Somebody pauses it.
    pub fn pause(&mut self) {
        if self.power == Power::Running {
            self.power = Power::Paused;
        }
    }

    /// Somebody lets it go on.
    pub fn resume(&mut self) {
        if self.power == Power::Paused {
            self.power = Power::Running;
        }
    }

    /// The hypervisor ends in good order: maps that images can hold are stored.
    pub fn quit(&mut self) {
        self.end_hypervisor(true);
    }

    /// The hypervisor is killed.
    pub fn kill(&mut self) {
        self.end_hypervisor(false);
    }

    fn end_hypervisor(&mut self, in_good_order: bool) {
        if self.power != Power::Off {
            self.power = Power::Off;
            self.open = None;
            self.disks.iter_mut().for_each(|d| d.lose_hypervisor(in_good_order));
        }
    }

    /// The hypervisor is started again.
    pub fn start(&mut self) {
        if self.power == Power::Off {
            self.power = Power::Running;
            // An open cut of a VM that was off has nothing to hold on to.
            self.end_cut("the VM was started");
            self.disks.iter_mut().for_each(|d| d.frozen = None);
        }
    }

    /// Somebody changes an image while the VM is off.
    pub fn alter_image(&mut self, disk: usize, offset: u64, bytes: &[u8]) {
        assert_eq!(self.power, Power::Off, "an image in use cannot be changed from outside");
        self.disks[disk].alter(offset, bytes);
    }

    /// A disk gets another size.
    pub fn resize(&mut self, disk: usize, size: u64) {
        self.disks[disk].resize(size);
    }

    /// Another tool takes a map away. Answers whether it was there.
    pub fn lose_map(&mut self, disk: usize, owner: &MapOwner, number: CutNumber) -> bool {
        self.disks[disk].remove_map(owner, number)
    }

    /// The open cut ends, as on full or hung scratch.
    pub fn end_cut(&mut self, why: &str) {
        if let Some(open) = &mut self.open {
            open.ended.get_or_insert_with(|| why.into());
        }
    }

    /// Our daemon dies: an open cut stays in the VM until it is tidied away.
    pub fn lose_daemon(&mut self) {
        if let Some(open) = &mut self.open {
            open.is_orphan = true;
        }
    }

    /// Whether parts of a cut are in the VM.
    pub fn has_leftovers(&self) -> bool {
        self.open.is_some()
    }

    // --- replication's side: `Machine`, call by call ---

    /// See [`crate::driver::Machine::describe`].
    pub fn describe(&self) -> Description {
        Description {
            power: self.power,
            version: (self.power != Power::Off).then_some((10, 0, 0)),
            disks: self.disks.iter().map(FakeDisk::info).collect(),
            left_out: Vec::new(),
        }
    }

    /// See [`crate::driver::Machine::maps`].
    pub fn maps(&self, owner: &MapOwner) -> Result<MapInventory> {
        self.check_on()?;
        Ok(MapInventory { disks: self.disks.iter().map(|d| d.maps_of(owner)).collect() })
    }

    /// See [`crate::driver::Machine::begin_tracking`].
    pub fn begin_tracking(&mut self, owner: &MapOwner, specs: &[DiskSpec], first: CutNumber) -> Result<()> {
        self.check_on()?;
        let found = self.find_all(specs)?;
        for (_, at) in found {
            self.disks[at].remove_maps(|other, _| owner.supersedes(&other));
            self.disks[at].begin_map(owner.map_name(first));
        }
        Ok(())
    }

    /// See [`crate::driver::Machine::cut`].
    pub fn cut(&mut self, request: &CutRequest) -> Result<CutId> {
        self.cut_until(request, CutStep::OldMaps)
    }

    /// A cut during which the daemon dies right after `step`.
    pub fn cut_dying_after(&mut self, request: &CutRequest, step: CutStep) -> Result<()> {
        self.cut_until(request, step)?;
        if step == CutStep::NewMaps {
            self.open = None;
        }
        self.lose_daemon();
        Ok(())
    }

    fn cut_until(&mut self, request: &CutRequest, step: CutStep) -> Result<CutId> {
        match &self.open {
            Some(open) if open.is_orphan || open.ended.is_some() => self.remove_cut(),
            Some(_) => return Err(Error::Busy("another cut of this VM is open".into())),
            None => {}
        }
        if request.disks.is_empty() {
            return Err(Error::Misuse("a cut of no disk".into()));
        }
        let found = self.find_all(&request.disks)?;
        let due = match self.power {
            Power::Off => self.due_while_off(request, &found)?,
            _ => self.due_while_on(request, &found)?,
        };
        let due: Vec<ExtentSet> =
            found.iter().zip(due).map(|((disk, _), due)| with_more(due, request, *disk)).collect();
        let is_idle = due.iter().all(ExtentSet::is_empty) && request.consistency != Consistency::Application;
        if self.power != Power::Off && !is_idle {
            let name = request.owner.map_name(request.number);
            found.iter().for_each(|(_, at)| self.disks[*at].begin_map(name.clone()));
        }
        if step != CutStep::NewMaps {
            found.iter().zip(due).for_each(|((_, at), due)| self.disks[*at].freeze(due));
        }
        if step == CutStep::OldMaps && self.power != Power::Off && !is_idle {
            found.iter().for_each(|(_, at)| self.disks[*at].end_maps(&request.owner, request.number));
        }
        Ok(self.open_cut(request, found))
    }

    fn open_cut(&mut self, request: &CutRequest, disks: Vec<(DiskId, usize)>) -> CutId {
        self.last_cut += 1;
        let id = CutId(self.last_cut);
        let fell_short =
            request.consistency == Consistency::Application && (!self.has_agent || self.power != Power::Running);
        let images = disks.iter().map(|(disk, at)| self.record(*disk, *at)).collect();
        self.open = Some(OpenCut {
            id,
            disks,
            scratch_limit: request.scratch_limit,
            scratch: 0,
            ended: None,
            is_orphan: false,
            consistency: if fell_short { Consistency::Standard } else { request.consistency },
            shortfall: fell_short.then(|| "the guest agent does not answer".into()),
            images,
        });
        id
    }

    fn record(&self, disk: DiskId, at: usize) -> ImageRecord {
        let found = &self.disks[at];
        let stamp = (self.power == Power::Off).then(|| found.stamp());
        // Nobody puts the images of this VM back.
        ImageRecord { disk, path: found.path(), format: found.format(), stamp, map: None, held: None }
    }

    fn due_while_on(&self, request: &CutRequest, found: &[(DiskId, usize)]) -> Result<Vec<ExtentSet>> {
        let due = found.iter().map(|(_, at)| {
            let disk = &self.disks[*at];
            let maps = disk.maps_of(&request.owner);
            maps.covers(request.base).map_err(|lost| Error::tracking(disk.key(), lost))?;
            if maps.maps.iter().any(|m| m.number == request.number) {
                return Err(Error::tracking(disk.key(), LostTracking::NumberTaken { number: request.number }));
            }
            Ok(disk.union(&request.owner))
        });
        due.collect()
    }

    /// Unchanged since the last look: nothing is due. Else what the stored maps say, if there are any to be trusted.
    fn due_while_off(&self, request: &CutRequest, found: &[(DiskId, usize)]) -> Result<Vec<ExtentSet>> {
        let due = found.iter().map(|(id, at)| {
            let disk = &self.disks[*at];
            let known = request.images.iter().find(|image| image.disk == *id).and_then(|image| image.stamp);
            if known == Some(disk.stamp()) {
                return Ok(ExtentSet::new());
            }
            if known.is_some() || disk.format() != ImageFormat::Qcow2 {
                return Err(Error::tracking(disk.key(), LostTracking::ChangedWhileOff));
            }
            let maps = disk.maps_of(&request.owner);
            maps.covers(request.base).map_err(|lost| Error::tracking(disk.key(), lost))?;
            Ok(disk.union(&request.owner))
        });
        due.collect()
    }

    fn opened(&self, id: CutId) -> Result<&OpenCut> {
        let open = self.open.as_ref().filter(|open| open.id == id && !open.is_orphan);
        let open = open.ok_or_else(|| Error::CutEnded("it was taken out of the VM".into()))?;
        match &open.ended {
            Some(why) => Err(Error::CutEnded(why.clone())),
            None => Ok(open),
        }
    }

    fn frozen(&self, id: CutId, disk: DiskId) -> Result<&FakeDisk> {
        let open = self.opened(id)?;
        let at = open.disks.iter().find(|(other, _)| *other == disk);
        let (_, at) = at.ok_or_else(|| Error::Misuse(format!("{disk} is not in the cut")))?;
        Ok(&self.disks[*at])
    }

    /// What is due on a disk of an open cut.
    pub fn dirty(&self, id: CutId, disk: DiskId) -> Result<ExtentSet> {
        let disk = self.frozen(id, disk)?;
        Ok(disk.frozen.as_ref().map(|f| f.due.clone()).unwrap_or_default())
    }

    /// What was reached, and why not more.
    pub fn consistency(&self, id: CutId) -> Result<(Consistency, Option<String>)> {
        self.opened(id).map(|open| (open.consistency, open.shortfall.clone()))
    }

    /// See [`crate::driver::FrozenCut::images`].
    pub fn images(&self, id: CutId) -> Result<Vec<ImageRecord>> {
        self.opened(id).map(|open| open.images.clone())
    }

    /// Reads a frozen disk.
    pub fn read_frozen(&self, id: CutId, disk: DiskId, extent: Extent) -> Result<Vec<u8>> {
        check_read(extent)?;
        self.frozen(id, disk)?.read_frozen(extent).ok_or_else(|| not_served(extent))
    }

    /// What a part of a frozen disk holds.
    pub fn frozen_content(&self, id: CutId, disk: DiskId, extent: Extent) -> Result<Vec<(Extent, Content)>> {
        self.frozen(id, disk)?.frozen_content(extent).ok_or_else(|| not_served(extent))
    }

    /// See [`crate::driver::FrozenCut::ensure_intact`].
    pub fn ensure_intact(&self, id: CutId) -> Result<()> {
        self.opened(id).map(drop)
    }

    /// See [`crate::driver::FrozenCut::release`]. A cut that is over already is none of our business, and one whose daemon
    /// died is the next daemon's.
    pub fn release(&mut self, id: CutId) {
        if self.open.as_ref().is_some_and(|open| open.id == id && !open.is_orphan) {
            self.remove_cut();
        }
    }

    fn remove_cut(&mut self) {
        self.open = None;
        self.disks.iter_mut().for_each(|d| d.frozen = None);
    }

    /// See [`crate::driver::Machine::drop_maps`].
    pub fn drop_maps(&mut self, owner: &MapOwner, below: CutNumber) {
        if self.power != Power::Off {
            let is_spent = |other, map: MapInfo| other == *owner && map.number < below && !map.recording;
            self.disks.iter_mut().for_each(|d| d.remove_maps(is_spent));
        }
    }

    /// See [`crate::driver::Machine::fold_maps`].
    pub fn fold_maps(&mut self, owner: &MapOwner) -> Result<()> {
        match self.power {
            Power::Off => Ok(()),
            _ => self.disks.iter_mut().try_for_each(|d| d.fold_maps(owner)),
        }
    }

    /// See [`crate::driver::Machine::end_tracking`].
    pub fn end_tracking(&mut self, owner: &MapOwner) -> Result<()> {
        self.check_on()?;
        self.disks.iter_mut().for_each(|d| d.remove_maps(|other, _| owner.supersedes(&other)));
        Ok(())
    }

    /// Reads the live disk.
    pub fn read_live(&self, spec: &DiskSpec, extent: Extent) -> Result<Vec<u8>> {
        check_read(extent)?;
        Ok(self.live(spec)?.read(extent))
    }

    /// What a part of the live disk holds.
    pub fn live_content(&self, spec: &DiskSpec, extent: Extent) -> Result<Vec<(Extent, Content)>> {
        Ok(self.live(spec)?.content(extent))
    }

    pub(super) fn live(&self, spec: &DiskSpec) -> Result<&FakeDisk> {
        self.check_on()?;
        self.find(spec).map(|at| &self.disks[at])
    }

    /// See [`crate::driver::Machine::tidy`].
    pub fn tidy(&mut self) -> Result<()> {
        match &self.open {
            Some(open) if !open.is_orphan => Err(Error::Busy("a cut of this VM is open".into())),
            _ => {
                self.remove_cut();
                Ok(())
            }
        }
    }

    fn check_on(&self) -> Result<()> {
        match self.power {
            Power::Off => Err(Error::Unreachable { what: "reach the VM".into(), source: "it is off".into() }),
            _ => Ok(()),
        }
    }

    fn find_all(&self, specs: &[DiskSpec]) -> Result<Vec<(DiskId, usize)>> {
        specs.iter().map(|spec| Ok((spec.id, self.find(spec)?))).collect()
    }

    fn find(&self, spec: &DiskSpec) -> Result<usize> {
        let at = self
            .disks
            .iter()
            .position(|d| d.key() == spec.key)
            .ok_or_else(|| Error::DiskMissing { disk: spec.key.clone(), why: "it was removed".into() })?;
        match self.disks[at].size() {
            found if found == spec.size => Ok(at),
            found => Err(Error::Resized { disk: spec.key.clone(), expected: spec.size, found }),
        }
    }
}

fn check_read(extent: Extent) -> Result<()> {
    match extent.len {
        0 => Err(Error::Misuse("a read of nothing".into())),
        len if len > READ_LEN_MAX => Err(Error::Misuse(format!("a read of {len} bytes"))),
        _ => Ok(()),
    }
}

fn not_served(extent: Extent) -> Error {
    Error::CutEnded(format!("{}+{} is not served", extent.offset, extent.len))
}

fn with_more(mut due: ExtentSet, request: &CutRequest, disk: DiskId) -> ExtentSet {
    request.also(disk).into_iter().for_each(|also| due.union(also));
    due
}
