//! A cut of a VM that has written nothing since the base, be it on or off: nothing was put into it, and nothing is to be
//! read.

use std::collections::HashMap;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::OwnedMutexGuard;
use understudy_model::{Consistency, DiskId, DiskSpec, Extent, ExtentSet, Timestamp};

use super::capture::{Plan, now};
use super::disks::Disk;
use super::images;
use crate::driver::{Content, CutRequest, DiskReader, Error, FrozenCut, ImageRecord, Result};

/// See the module.
pub struct Idle {
    taken_at: Timestamp,
    consistency: Consistency,
    shortfall: Option<String>,
    disks: HashMap<DiskId, IdleDisk>,
    images: Vec<ImageRecord>,
    /// Held like that of any cut: one at a time is what callers can rely on.
    _slot: OwnedMutexGuard<()>,
}

struct IdleDisk {
    key: String,
    size: u64,
    due: ExtentSet,
}

impl Idle {
    pub fn new(plan: &Plan<'_>, request: &CutRequest, slot: OwnedMutexGuard<()>) -> Self {
        let youngest = |disk: &Disk| disk.maps_of(&request.owner).youngest();
        let images = images::records(plan.each(|spec, disk| (spec.id, disk.info.clone(), youngest(disk))));
        Self::of(&request.disks, now(), request.consistency, None, images, slot)
    }

    pub fn of(
        disks: &[DiskSpec],
        taken_at: Timestamp,
        consistency: Consistency,
        shortfall: Option<String>,
        images: Vec<ImageRecord>,
        slot: OwnedMutexGuard<()>,
    ) -> Self {
        let disk = |spec: &DiskSpec| IdleDisk { key: spec.key.clone(), size: spec.size, due: ExtentSet::new() };
        let disks = disks.iter().map(|spec| (spec.id, disk(spec))).collect();
        Self { taken_at, consistency, shortfall, disks, images, _slot: slot }
    }
}

impl IdleDisk {
    fn nothing<T>(&self) -> Result<T> {
        Err(Error::Misuse(format!("nothing of disk {} is due", self.key)))
    }
}

#[async_trait]
impl DiskReader for IdleDisk {
    fn size(&self) -> u64 {
        self.size
    }

    async fn status(&self, _extent: Extent) -> Result<Vec<(Extent, Content)>> {
        self.nothing()
    }

    async fn read(&self, _extent: Extent) -> Result<Bytes> {
        self.nothing()
    }
}

#[async_trait]
impl FrozenCut for Idle {
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
        Ok(())
    }

    fn images(&self) -> &[ImageRecord] {
        &self.images
    }

    async fn release(self: Box<Self>) -> Result<()> {
        Ok(())
    }
}
