//! The disks as they are, and as they were at every cut.

use std::collections::BTreeMap;
use std::sync::Arc;

use understudy_model::{CutDigest, CutNumber, DiskId, Extent, Generation, Timestamp};

use super::{Judge, Rule};
use crate::image::Image;

/// The disks of the VM at one instant.
pub type Images = Arc<BTreeMap<DiskId, Image>>;

/// What a cut truly was.
#[derive(Debug, Clone)]
pub struct CutTruth {
    /// Its relationship, counted by the judge.
    pub epoch: u64,
    /// The generation it was taken in.
    pub generation: Generation,
    /// Its number.
    pub number: CutNumber,
    /// The cut it follows.
    pub parent: CutDigest,
    /// When it was taken, by the primary's wall clock.
    pub taken_at: Timestamp,
    /// The disks.
    pub images: Images,
}

/// See the module's description.
#[derive(Default)]
pub struct Truth {
    /// The disks now.
    pub disks: BTreeMap<DiskId, Image>,
    frozen: BTreeMap<(u64, CutNumber), (Generation, Timestamp, Images)>,
    cuts: BTreeMap<CutDigest, CutTruth>,
}

impl Truth {
    /// The guest writes.
    pub fn write(&mut self, disk: DiskId, offset: u64, bytes: &[u8]) {
        self.disks.get_mut(&disk).expect("the guest writes to its own disks").write(offset, bytes);
    }

    /// The guest discards, or writes zeros.
    pub fn zero(&mut self, disk: DiskId, extent: Extent) {
        self.disks.get_mut(&disk).expect("the guest writes to its own disks").zero(extent);
    }

    /// What the cut with this digest truly was.
    pub fn cut(&self, digest: CutDigest) -> Option<&CutTruth> {
        self.cuts.get(&digest)
    }
}

impl Judge {
    /// All disks were frozen at this instant.
    pub fn cut_taken(&mut self, generation: Generation, number: CutNumber, taken_at: Timestamp) {
        let durable = self.primary.durable.as_ref().map(|r| r.cut_last);
        self.expect(Rule::I09, durable.is_some_and(|last| number <= last), || {
            format!("cut {number} was taken while {durable:?} was the last number on record")
        });
        let is_new = self.primary.cut_numbers.insert((self.epoch, number));
        self.expect(Rule::I09, is_new, || format!("cut number {number} was used twice"));
        // A VM that is off needs no maps where its images are proven to be as they were.
        let is_lost = self.primary.is_tracking_lost && !self.is_as_acknowledged();
        self.expect(Rule::I16, !is_lost, || format!("cut {number} was taken although tracking had been lost"));
        let images = Arc::new(self.truth.disks.clone());
        self.truth.frozen.insert((self.epoch, number), (generation, taken_at, images));
    }

    /// Whether the disks are now as they were at the cut that was acknowledged last.
    fn is_as_acknowledged(&self) -> bool {
        let acked = self.primary.durable.as_ref().and_then(|r| r.acked).and_then(|cut| self.truth.cut(cut.digest));
        acked.is_some_and(|truth| *truth.images == self.truth.disks)
    }

    /// The primary computed the digest of a cycle.
    pub fn cycle_computed(&mut self, generation: Generation, number: CutNumber, parent: CutDigest, digest: CutDigest) {
        let frozen = self.truth.frozen.get(&(self.epoch, number)).cloned();
        let Some((frozen_in, taken_at, images)) = frozen else {
            return self.fail(Rule::I15, format!("cycle {number} has a digest, and no cut of that number was taken"));
        };
        self.expect(Rule::I09, frozen_in == generation, || {
            format!("cut {number} was taken in generation {frozen_in} and digested in {generation}")
        });
        let truth = CutTruth { epoch: self.epoch, generation, number, parent, taken_at, images };
        let known = self.truth.cuts.insert(digest, truth);
        self.expect(Rule::I09, known.is_none(), || format!("the digest of cut {number} stands for another cut too"));
    }
}
