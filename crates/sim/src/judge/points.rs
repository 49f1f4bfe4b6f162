//! Looks at the store from outside: which points it shows, and whether each is what it says.

use std::collections::BTreeSet;
use std::sync::Arc;

use understudy_model::{CutDigest, DiskId};
use understudy_store::files::{Files, MemFiles};
use understudy_store::{FailoverId, FailoverStage, PointReport, VmStore};

use super::{CutTruth, Judge, Rule, qcow2};
use crate::image::Image;

/// How closely the store is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Depth {
    /// The list of points, and the newest one's content.
    Newest,
    /// The content of all points.
    All,
    /// The content of all points, read by the store and by a reader that shares no code with it.
    Twice,
}

impl Judge {
    /// Compares what the store shows with the truth.
    pub fn check_points(&mut self, vm: &Arc<VmStore>, disk: &MemFiles, depth: Depth) {
        let before = self.violations.len();
        self.look_at_points(vm, disk, depth);
        if self.violations.len() == before {
            if self.were_repeats {
                self.kept(Rule::I10);
            }
            if depth != Depth::Newest && std::mem::take(&mut self.was_merge_cut_short) {
                self.kept(Rule::I24);
            }
        }
    }

    fn look_at_points(&mut self, vm: &Arc<VmStore>, disk: &MemFiles, depth: Depth) {
        self.note_commit(vm);
        let points = vm.points();
        self.check_list(&points);
        self.replica.looks += 1;
        let last = points.len().saturating_sub(1);
        for (index, point) in points.iter().enumerate() {
            let is_wanted = index == last || depth != Depth::Newest;
            if is_wanted && point.damaged.is_none() {
                self.check_content(vm, disk, point, depth == Depth::Twice);
            }
        }
    }

    /// A failover that was made final drops what lay above it, by decision.
    fn note_commit(&mut self, vm: &VmStore) {
        let committed = vm.failovers().into_iter().find(|f| f.stage == FailoverStage::Committed);
        if let Some(failover) = committed {
            (self.replica.newest, self.replica.acked) = (Some(failover.cut), Some(failover.cut));
            self.replica.kept.clear();
        }
    }

    /// Whether these are exactly the points there should be.
    pub fn check_list(&mut self, points: &[PointReport]) {
        let newest = points.last().map(|p| p.cut.id.digest);
        let ancestors = self.ancestors(newest);
        for point in points {
            let (number, digest) = (point.cut.id.number, point.cut.id.digest);
            let is_sealed = self.replica.seals_begun.contains(&digest);
            self.expect(Rule::I05, is_sealed, || format!("cut {number} shows and was never to be sealed"));
            let is_linked = ancestors.contains(&digest);
            self.expect(Rule::I08, is_linked, || format!("cut {number} is not in the history of the newest one"));
            let truth = self.truth.cut(digest).map(|t| (t.number, t.parent, t.taken_at));
            let told = (number, point.cut.parent, point.cut.taken_at);
            self.expect(Rule::I03, truth == Some(told), || format!("cut {told:?} shows and {truth:?} was taken"));
        }
        self.check_newest(newest, &ancestors);
        self.check_kept(points);
    }

    fn ancestors(&self, newest: Option<CutDigest>) -> BTreeSet<CutDigest> {
        let mut all = BTreeSet::new();
        let mut next = newest;
        while let Some(truth) = next.and_then(|d| self.truth.cut(d)) {
            all.extend(next);
            next = Some(truth.parent).filter(|p| !all.contains(p));
        }
        all
    }

    fn check_newest(&mut self, newest: Option<CutDigest>, ancestors: &BTreeSet<CutDigest>) {
        let acked = self.replica.acked;
        self.expect(Rule::I02, acked.is_none_or(|d| ancestors.contains(&d)), || {
            format!("cut {acked:?} was acknowledged and is not in the history of the newest cut {newest:?}")
        });
        let before = self.replica.newest;
        let parent = newest.and_then(|d| self.truth.cut(d)).map(|t| t.parent).filter(|p| *p != CutDigest::ZERO);
        let follows = newest == before || (newest.is_some() && parent == before);
        self.expect(Rule::I03, follows, || format!("the newest cut was {before:?} and is now {newest:?}"));
        self.replica.newest = newest;
    }

    fn check_kept(&mut self, points: &[PointReport]) {
        let shown: BTreeSet<_> = points.iter().map(|p| p.cut.point()).collect();
        let expected = &self.replica.kept - &self.replica.dropped;
        let lost: Vec<_> = expected.difference(&shown).copied().collect();
        self.expect(Rule::I22, lost.is_empty(), || format!("points are gone that nobody let go: {lost:?}"));
        self.replica.kept = points.iter().filter(|p| p.kept).map(|p| p.cut.point()).collect();
    }

    fn check_content(&mut self, vm: &Arc<VmStore>, disk: &MemFiles, point: &PointReport, twice: bool) {
        let digest = point.cut.id.digest;
        let Some(truth) = self.truth.cut(digest).cloned() else { return };
        let disks: Vec<_> = truth.images.iter().map(|(disk, image)| (*disk, image.size())).collect();
        let number = point.cut.id.number;
        self.expect(Rule::I04, point.disks == disks, || {
            format!("cut {number} has the disks {:?} and was taken of {disks:?}", point.disks)
        });
        // While the disk fails reads, or the store has stopped, only the reader that goes past both looks.
        let by_store = !self.reads_may_fail && vm.stopped().is_none();
        let read = if by_store { read_by_store(vm, point, &truth) } else { Ok(()) };
        if let Err(what) = read {
            return self.misread(Rule::I04, disk, what.of(&format!("cut {number}")));
        }
        if (twice || !by_store)
            && let Err(what) = read_by_others(vm, disk, point, &truth)
        {
            return self.misread(Rule::I04, disk, what.of(&format!("cut {number}, read by its files alone")));
        }
        self.kept(Rule::I04);
        self.kept(Rule::I06);
        if disks.len() > 1 {
            self.kept(Rule::I15);
        }
    }

    /// A point that cannot be read is a broken promise unless the disk fails; wrong content always is.
    fn misread(&mut self, rule: Rule, disk: &MemFiles, what: Misread) {
        match what {
            // The host lost power in the middle of the look: it is looked at again once it is back.
            Misread::Error(_) if disk.free_space().is_err() => {}
            Misread::Error(_) if self.reads_may_fail => {}
            Misread::Error(what) | Misread::Wrong(what) => self.fail(rule, what),
        }
    }

    /// The overlays of a failover or test: opened by themselves they read as their cut.
    pub fn check_overlays(&mut self, vm: &Arc<VmStore>, disk: &MemFiles, id: FailoverId) {
        let Some(failover) = vm.failovers().into_iter().find(|f| f.id == id) else { return };
        let Some(truth) = self.truth.cut(failover.cut).cloned() else {
            return self.fail(Rule::I31, format!("failover {id} stands on a cut nobody took"));
        };
        let Ok(paths) = vm.overlay_paths(id) else { return };
        for (disk_id, path) in paths {
            let read = qcow2::read(disk, &path.to_string_lossy(), false);
            match read.map_err(Misread::Error).and_then(|bytes| compare(&truth, disk_id, &bytes)) {
                Ok(()) => self.kept(Rule::I31),
                Err(what) => self.misread(Rule::I31, disk, what),
            }
        }
    }
}

/// How reading came out.
enum Misread {
    /// It could not be read.
    Error(String),
    /// It was read and is not what it should be.
    Wrong(String),
}

impl Misread {
    /// The same, saying of what.
    fn of(self, whose: &str) -> Self {
        match self {
            Misread::Error(what) => Misread::Error(format!("{whose}: {what}")),
            Misread::Wrong(what) => Misread::Wrong(format!("{whose}: {what}")),
        }
    }
}

fn read_by_store(vm: &Arc<VmStore>, point: &PointReport, truth: &CutTruth) -> Result<(), Misread> {
    let failed = |e: understudy_store::PointReadError| Misread::Error(crate::primary::chain(&e));
    let reader = vm.open_point(point.cut.point()).map_err(failed)?;
    for (disk, size) in reader.disks().to_vec() {
        let mut bytes = vec![0; size as usize];
        reader.disk(disk).and_then(|mut d| d.read_at(0, &mut bytes)).map_err(failed)?;
        compare(truth, disk, &bytes)?;
    }
    Ok(())
}

fn read_by_others(vm: &Arc<VmStore>, files: &MemFiles, point: &PointReport, truth: &CutTruth) -> Result<(), Misread> {
    let chains = vm.chain(point.cut.point()).map_err(|e| Misread::Error(crate::primary::chain(&e)))?;
    for chain in chains {
        let Some(top) = chain.files.first() else { return Err(Misread::Wrong("a chain without files".to_owned())) };
        let bytes = qcow2::read(files, &top.path.to_string_lossy(), top.is_raw);
        let mut bytes = bytes.map_err(Misread::Error)?;
        // A raw base may be longer or shorter than the disk at a later cut.
        bytes.resize(chain.size as usize, 0);
        compare(truth, chain.disk, &bytes)?;
    }
    Ok(())
}

fn compare(truth: &CutTruth, disk: DiskId, bytes: &[u8]) -> Result<(), Misread> {
    let Some(image) = truth.images.get(&disk) else {
        return Err(Misread::Wrong(format!("{disk} was none of the VM's disks")));
    };
    if bytes.len() as u64 != image.size() {
        return Err(Misread::Wrong(format!("{disk} has {} bytes and had {}", bytes.len(), image.size())));
    }
    let mut found = Image::new(image.size());
    found.write(0, bytes);
    let difference = found.difference(image);
    if difference.is_empty() {
        return Ok(());
    }
    Err(Misread::Wrong(format!("{disk} differs from what was frozen at {:?}", difference.iter().collect::<Vec<_>>())))
}
