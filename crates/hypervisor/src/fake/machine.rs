//! The driver's traits around a [`FakeVm`].

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};

use async_trait::async_trait;
use bytes::Bytes;
use understudy_model::{Consistency, CutNumber, DiskId, DiskSpec, Extent, ExtentSet, Timestamp};

use super::faults::{Call, Faults};
use super::vm::{CutId, FakeVm};
use crate::driver::{
    Content, CutRequest, Description, DiskReader, FrozenCut, ImageRecord, Machine, MapInventory, MapOwner, Result,
};

/// A [`FakeVm`] behind the real traits. Clones share the VM.
#[derive(Debug, Clone)]
pub struct FakeMachine {
    vm: Arc<Mutex<FakeVm>>,
    faults: Faults,
    clock: Arc<Mutex<Timestamp>>,
}

impl FakeMachine {
    /// A machine around this VM.
    pub fn new(vm: FakeVm) -> Self {
        Self { vm: Arc::new(Mutex::new(vm)), faults: Faults::default(), clock: Arc::default() }
    }

    /// The VM, for playing its guest and its host. Not to be held over an `await`.
    pub fn vm(&self) -> MutexGuard<'_, FakeVm> {
        lock(&self.vm)
    }

    /// What is to go wrong.
    pub fn faults(&self) -> &Faults {
        &self.faults
    }

    /// What the wall clock says when the next cuts are taken.
    pub fn set_clock(&self, now: Timestamp) {
        *lock(&self.clock) = now;
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

#[async_trait]
impl Machine for FakeMachine {
    async fn describe(&self) -> Result<Description> {
        self.faults.around(Call::Describe, || Ok(self.vm().describe())).await
    }

    async fn maps(&self, owner: &MapOwner) -> Result<MapInventory> {
        self.faults.around(Call::Maps, || self.vm().maps(owner)).await
    }

    async fn begin_tracking(&self, owner: &MapOwner, disks: &[DiskSpec], first: CutNumber) -> Result<()> {
        self.faults.around(Call::BeginTracking, || self.vm().begin_tracking(owner, disks, first)).await
    }

    async fn cut(&self, request: CutRequest) -> Result<Box<dyn FrozenCut>> {
        let take = || FakeCut::take(self, &request);
        let cut = self.faults.around(Call::Cut, take).await?;
        Ok(Box::new(cut))
    }

    async fn drop_maps(&self, owner: &MapOwner, below: CutNumber) -> Result<()> {
        let drop_maps = || {
            self.vm().drop_maps(owner, below);
            Ok(())
        };
        self.faults.around(Call::DropMaps, drop_maps).await
    }

    async fn fold_maps(&self, owner: &MapOwner) -> Result<()> {
        self.faults.around(Call::FoldMaps, || self.vm().fold_maps(owner)).await
    }

    async fn end_tracking(&self, owner: &MapOwner) -> Result<()> {
        self.faults.around(Call::EndTracking, || self.vm().end_tracking(owner)).await
    }

    async fn read_live(&self, disk: &DiskSpec) -> Result<Box<dyn DiskReader>> {
        let open = || self.vm().live(disk).map(drop);
        self.faults.around(Call::ReadLive, open).await?;
        Ok(Box::new(LiveReader { machine: self.clone(), spec: disk.clone() }))
    }

    async fn tidy(&self, _owner: &MapOwner) -> Result<()> {
        self.faults.around(Call::Tidy, || self.vm().tidy()).await
    }
}

struct LiveReader {
    machine: FakeMachine,
    spec: DiskSpec,
}

#[async_trait]
impl DiskReader for LiveReader {
    fn size(&self) -> u64 {
        self.spec.size
    }

    async fn status(&self, extent: Extent) -> Result<Vec<(Extent, Content)>> {
        self.machine.faults.around(Call::Status, || self.machine.vm().live_content(&self.spec, extent)).await
    }

    async fn read(&self, extent: Extent) -> Result<Bytes> {
        let read = || self.machine.vm().read_live(&self.spec, extent).map(Bytes::from);
        self.machine.faults.around(Call::Read, read).await
    }
}

/// An open cut. Dropping it releases it, as the contract says.
struct FakeCut {
    machine: FakeMachine,
    id: CutId,
    taken_at: Timestamp,
    consistency: Consistency,
    shortfall: Option<String>,
    images: Vec<ImageRecord>,
    disks: BTreeMap<DiskId, FrozenReader>,
}

struct FrozenReader {
    machine: FakeMachine,
    id: CutId,
    spec: DiskSpec,
    due: ExtentSet,
}

impl FakeCut {
    fn take(machine: &FakeMachine, request: &CutRequest) -> Result<Self> {
        let mut vm = machine.vm();
        let id = vm.cut(request)?;
        let reader = |spec: &DiskSpec| {
            let due = vm.dirty(id, spec.id)?;
            Ok((spec.id, FrozenReader { machine: machine.clone(), id, spec: spec.clone(), due }))
        };
        let disks = request.disks.iter().map(reader).collect::<Result<_>>()?;
        let (consistency, shortfall) = vm.consistency(id)?;
        let taken_at = *lock(&machine.clock);
        let images = vm.images(id)?;
        drop(vm);
        Ok(Self { machine: machine.clone(), id, taken_at, consistency, shortfall, images, disks })
    }
}

#[async_trait]
impl DiskReader for FrozenReader {
    fn size(&self) -> u64 {
        self.spec.size
    }

    async fn status(&self, extent: Extent) -> Result<Vec<(Extent, Content)>> {
        let status = || self.machine.vm().frozen_content(self.id, self.spec.id, extent);
        self.machine.faults.around(Call::Status, status).await
    }

    async fn read(&self, extent: Extent) -> Result<Bytes> {
        let read = || self.machine.vm().read_frozen(self.id, self.spec.id, extent).map(Bytes::from);
        self.machine.faults.around(Call::Read, read).await
    }
}

#[async_trait]
impl FrozenCut for FakeCut {
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
        self.disks.get(&disk).map(|d| &d.due)
    }

    fn reader(&self, disk: DiskId) -> Option<&dyn DiskReader> {
        self.disks.get(&disk).map(|d| d as &dyn DiskReader)
    }

    async fn done_with(&self, _disk: DiskId, _extent: Extent) {}

    async fn ensure_intact(&self) -> Result<()> {
        self.machine.faults.around(Call::EnsureIntact, || self.machine.vm().ensure_intact(self.id)).await
    }

    fn images(&self) -> &[ImageRecord] {
        &self.images
    }

    async fn release(self: Box<Self>) -> Result<()> {
        self.machine.faults.around(Call::Release, || Ok(())).await
    }
}

impl Drop for FakeCut {
    fn drop(&mut self) {
        self.machine.vm().release(self.id);
    }
}
