//! The operations of a replica as steps that can be cut short anywhere, and what must hold after any of them.

use std::collections::BTreeMap;
use std::sync::Arc;

use understudy_model::{Cut, CutDigest, CutNumber, DiskId, Generation};
use understudy_store::files::{FaultyFiles, Files, MemFiles, OutsideFile};
use understudy_store::{
    BaseBytes, BaseMode, Definition, FailoverId, FailoverPurpose, FailoverStage, Removal, SeedFile, Store,
    StoreOptions, UpkeepStep, VmStore,
};

use understudy_store::files::write_all_at;

use crate::support::*;

pub type Failure = Box<dyn std::error::Error>;

/// A disk for an operation, and what lies on it beside the store.
pub struct Disk {
    files: Arc<dyn Files>,
    memory: MemFiles,
    faulty: Option<FaultyFiles>,
}

impl From<MemFiles> for Disk {
    fn from(memory: MemFiles) -> Self {
        Self { files: Arc::new(memory.clone()), memory, faulty: None }
    }
}

impl From<(FaultyFiles, MemFiles)> for Disk {
    fn from((faulty, memory): (FaultyFiles, MemFiles)) -> Self {
        Self { files: Arc::new(faulty.clone()), memory, faulty: Some(faulty) }
    }
}

impl Disk {
    fn seed(&self) -> Result<OutsideFile, Failure> {
        Ok(self.failing(self.memory.as_outside(SEED)?))
    }

    fn failing(&self, seed: OutsideFile) -> OutsideFile {
        match &self.faulty {
            Some(faulty) => faulty.failing(seed),
            None => seed,
        }
    }
}

/// A file beside the store, not a whole number of blocks long and shorter than the disk.
const SEED: &str = "incoming/seed.raw";
const SEED_LEN: usize = 200_000;

/// One operation on a small VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    Create,
    InitialCopy,
    FirstCycle,
    Cycle,
    Retain,
    Merge,
    Commit,
    Test,
    EndTest,
    FailOver,
    Revert,
    CommitFailover,
    Remove,
    Reopen,
    PlantSeed,
    ShareSeed,
    TakeSeed,
    SeededCopy,
    Replace,
    AwaitImport,
    AwaitAnother,
    AwaitingCycle,
    ImportFirst,
    ImportLast,
}

impl Operation {
    pub const ALL: [Operation; 24] = [
        Operation::Create,
        Operation::InitialCopy,
        Operation::FirstCycle,
        Operation::Cycle,
        Operation::Retain,
        Operation::Merge,
        Operation::Commit,
        Operation::Test,
        Operation::EndTest,
        Operation::FailOver,
        Operation::Revert,
        Operation::CommitFailover,
        Operation::Remove,
        Operation::Reopen,
        Operation::PlantSeed,
        Operation::ShareSeed,
        Operation::TakeSeed,
        Operation::SeededCopy,
        Operation::Replace,
        Operation::AwaitImport,
        Operation::AwaitAnother,
        Operation::AwaitingCycle,
        Operation::ImportFirst,
        Operation::ImportLast,
    ];

    fn is_seeded(self) -> bool {
        use Operation::*;
        matches!(self, PlantSeed | ShareSeed | TakeSeed | SeededCopy)
    }

    fn is_import(self) -> bool {
        use Operation::*;
        matches!(self, AwaitImport | AwaitAnother | AwaitingCycle | ImportFirst | ImportLast)
    }

    /// Whether it may leave a part of an initial copy.
    fn copies(self) -> bool {
        matches!(self, Operation::InitialCopy | Operation::SeededCopy)
    }
}

/// What may be there after an operation was cut short: one of these, whole.
#[derive(Clone, Default, PartialEq)]
pub struct Expected {
    /// There is a replica.
    pub exists: bool,
    /// Its points, with their images.
    pub points: BTreeMap<CutDigest, Images>,
    pub generation: u64,
    /// Stages and cuts of failovers.
    pub failovers: Vec<(FailoverStage, CutDigest)>,
    /// Bytes of an initial copy that must be there; `None` if none is under way.
    pub copied: Option<u64>,
    /// Seeds that were planted, as long as their disks.
    pub seeds: Vec<(DiskId, Vec<u8>)>,
    /// The seed is where the operator put it.
    pub seed_outside: bool,
    /// What is awaited, and the newest cut on top of it.
    pub awaited: Option<(CutDigest, CutDigest)>,
    /// Points of replicas that were set aside.
    pub aside: Vec<Option<usize>>,
}

/// A disk on which everything is ready for an operation.
pub struct Stage {
    pub files: MemFiles,
    pub primary: Primary,
    operation: Operation,
    cuts: Vec<(CutDigest, Images)>,
    failover: Option<FailoverId>,
    import: Option<MemoryImport>,
    cycle: Option<Cycle>,
    /// The disks as an initial copy found them.
    copied: Images,
    pub before: Expected,
    pub after: Expected,
}

impl Stage {
    /// Prepares a disk. Everything so far is durable and was acknowledged.
    pub fn new(operation: Operation) -> Self {
        let files = MemFiles::new();
        let mut primary = Primary::small();
        (0..16).for_each(|i| primary.write(i % 2, i as u64 * 12_288, 9_000, i as u64 + 1));
        let mut stage = Self {
            files,
            primary,
            operation,
            cuts: Vec::new(),
            failover: None,
            import: None,
            cycle: None,
            copied: Vec::new(),
            before: Expected { generation: 1, ..Expected::default() },
            after: Expected::default(),
        };
        stage.copied = stage.primary.images.clone();
        stage.prepare();
        stage.after = stage.expect_after();
        stage
    }

    fn prepare(&mut self) {
        let store = open(&self.files);
        if self.operation == Operation::Create {
            return;
        }
        let vm = store.create_vm(self.primary.vm, Generation(1), &self.primary.specs).unwrap();
        self.before.exists = true;
        if self.operation.is_seeded() {
            return self.prepare_seed(&vm);
        }
        if self.operation.is_import() {
            return self.prepare_import(&vm);
        }
        let session = self.primary.admit(&vm);
        if self.operation == Operation::InitialCopy {
            return;
        }
        self.primary.send_base(&vm, session);
        self.before.copied = Some(DISK);
        if self.operation == Operation::FirstCycle {
            self.primary.write(1, 0, 30_000, 50);
            self.next_cycle();
            return;
        }
        (0..6).for_each(|i| self.replicate(&vm, i));
        self.prepare_replica(&vm);
        self.before.copied = None;
        if self.operation == Operation::Replace {
            store.remove(self.primary.vm, Removal::KeepPoints).unwrap();
        }
        self.before.points = self.points(&vm);
        self.before.failovers = vm.failovers().iter().map(|f| (f.stage, f.cut)).collect();
        self.before.generation = vm.report().generation.0;
    }

    /// The seed has every other block of the disk, and something else in the others.
    fn seed(&self) -> Vec<u8> {
        let block =
            |(i, block): (usize, &[u8])| if i.is_multiple_of(2) { block.to_vec() } else { vec![i as u8; block.len()] };
        let mut seed: Vec<u8> = self.primary.images[0].chunks(65_536).enumerate().flat_map(block).collect();
        seed.truncate(SEED_LEN);
        seed
    }

    fn prepare_seed(&mut self, vm: &Arc<VmStore>) {
        self.files.make_dir("incoming").unwrap();
        let file = self.files.create(SEED).unwrap();
        write_all_at(&*file, 0, &self.seed()).unwrap();
        file.sync().unwrap();
        self.files.sync_dir("incoming").unwrap();
        self.files.sync_dir("").unwrap();
        self.before.seed_outside = true;
        if self.operation == Operation::SeededCopy {
            plant(vm, &self.files.clone().into(), false).unwrap();
            self.before.seeds = self.planted();
        }
    }

    fn prepare_import(&mut self, vm: &Arc<VmStore>) {
        let session = self.primary.admit(vm);
        let import = self.primary.export();
        self.cuts.push((import.cut.id.digest, self.primary.images.clone()));
        let waits = !matches!(self.operation, Operation::AwaitImport | Operation::ImportFirst);
        if waits {
            vm.await_base(session, &import.cut, &import.disks).unwrap();
            (0..2).for_each(|i| self.replicate(vm, i));
            let newest = self.cuts.last().unwrap().0;
            self.before.awaited = Some((import.cut.id.digest, newest));
        }
        if self.operation == Operation::AwaitingCycle {
            self.primary.write(0, 30_000, 70_000, 90);
            self.next_cycle();
        }
        self.import = Some(import);
        if self.operation == Operation::AwaitAnother {
            self.import = Some(self.primary.export());
        }
    }

    fn planted(&self) -> Vec<(DiskId, Vec<u8>)> {
        let mut seed = self.seed();
        seed.resize(DISK as usize, 0);
        vec![(DiskId(0), seed)]
    }

    fn replicate(&mut self, vm: &Arc<VmStore>, i: u64) {
        self.primary.write((i % 2) as usize, i * 20_000, 15_000, 60 + i);
        self.primary.write(0, i * 8_192, 4_096, i % 3);
        self.primary.cluster_bits = 12 + (i % 2) as u32;
        let extension = "json".to_owned();
        self.primary.definition = Some(Definition { extension, bytes: vec![i as u8 / 2; 100], blobs: vec![] });
        let cut = self.primary.replicate(vm, true);
        self.cuts.push((cut.id.digest, self.primary.images.clone()));
    }

    fn prepare_replica(&mut self, vm: &Arc<VmStore>) {
        let keep = |cuts: &[usize]| {
            let points: Vec<_> = cuts.iter().map(|i| self.cuts[*i].0.point()).collect();
            vm.retain(&points).unwrap();
        };
        let take_over = FailoverPurpose::TakeOver { generation: Generation(2) };
        match self.operation {
            Operation::Cycle => {
                // Something committed and something merged lies below already.
                keep(&[2, 5]);
                upkeep(vm);
                self.primary.write(0, 3_000, 70_000, 90);
                self.primary.write(1, 100_000, 4_096, 91);
                self.primary.definition.as_mut().unwrap().bytes = b"new".to_vec();
                self.next_cycle();
            }
            Operation::Merge => {
                // The base holds the first cut, which stays; those up to the fifth become one.
                keep(&[0, 4]);
                assert!(matches!(vm.upkeep(&mut unpaced), Ok(UpkeepStep::Committed { .. })));
            }
            Operation::Commit => {
                // Once before, so that a stub is there to be replaced.
                keep(&[4]);
                assert!(matches!(vm.upkeep(&mut unpaced), Ok(UpkeepStep::Committed { .. })));
            }
            Operation::EndTest => {
                self.failover = Some(vm.begin_failover(self.point(3), FailoverPurpose::Test).unwrap());
            }
            Operation::Replace => vm.retain(&[self.point(2), self.point(5)]).unwrap(),
            Operation::Revert | Operation::CommitFailover => {
                self.failover = Some(vm.begin_failover(self.point(3), take_over).unwrap());
            }
            _ => {}
        }
    }

    fn point(&self, cut: usize) -> understudy_model::PointId {
        self.cuts[cut].0.point()
    }

    fn next_cycle(&mut self) {
        self.cycle = Some(self.primary.cut());
    }

    fn points(&self, vm: &VmStore) -> BTreeMap<CutDigest, Images> {
        let images = |digest| self.cuts.iter().find(|(d, _)| *d == digest).unwrap().1.clone();
        vm.points().iter().map(|p| (p.cut.id.digest, images(p.cut.id.digest))).collect()
    }

    fn expect_after(&self) -> Expected {
        let mut after = self.before.clone();
        let cut = |i: usize| self.cuts[i].0;
        match self.operation {
            Operation::Create => after.exists = true,
            Operation::InitialCopy => after.copied = Some(DISK),
            Operation::PlantSeed | Operation::ShareSeed => after.seeds = self.planted(),
            Operation::TakeSeed => (after.seeds, after.seed_outside) = (self.planted(), false),
            Operation::SeededCopy => (after.seeds, after.copied) = (Vec::new(), Some(DISK)),
            Operation::Replace => {
                after = Expected { exists: true, generation: 7, aside: vec![Some(2)], ..Expected::default() }
            }
            Operation::AwaitImport | Operation::AwaitAnother => {
                let cut = self.import.as_ref().unwrap().cut.id.digest;
                after.awaited = Some((cut, cut));
            }
            Operation::AwaitingCycle => {
                after.awaited = after.awaited.map(|(import, _)| (import, self.cycle.as_ref().unwrap().digest));
            }
            Operation::ImportFirst | Operation::ImportLast => {
                after.awaited = None;
                after.points = self.cuts.iter().cloned().collect();
            }
            Operation::FirstCycle | Operation::Cycle => {
                let cycle = self.cycle.as_ref().unwrap();
                after.copied = None;
                after.points.insert(cycle.digest, cycle.images.clone());
            }
            Operation::Retain => after.points.retain(|d, _| [cut(1), cut(5)].contains(d)),
            Operation::Test => after.failovers.push((FailoverStage::Test, cut(3))),
            Operation::FailOver => {
                after.failovers.push((FailoverStage::Active, cut(3)));
                after.generation = 2;
            }
            Operation::EndTest | Operation::Revert => after.failovers.clear(),
            Operation::CommitFailover => {
                after.failovers = vec![(FailoverStage::Committed, cut(3))];
                after.points.retain(|d, _| ![cut(4), cut(5)].contains(d));
            }
            Operation::Remove => after = Expected { generation: 1, ..Expected::default() },
            Operation::Merge | Operation::Commit | Operation::Reopen => {}
        }
        after
    }

    /// Opens the store on `files`, a copy of this stage's disk behind whatever fails, and carries the operation out.
    pub fn run(&self, disk: Disk, options: StoreOptions) -> Result<(), Failure> {
        let store = Store::open(disk.files.clone(), options)?;
        self.run_on(&store, &disk)
    }

    pub fn run_on(&self, store: &Store, disk: &Disk) -> Result<(), Failure> {
        if let Operation::Create | Operation::Replace = self.operation {
            let generation = if self.operation == Operation::Create { 1 } else { 7 };
            store.create_vm(self.primary.vm, Generation(generation), &self.primary.specs)?;
            return Ok(());
        }
        let vm = store.vm(self.primary.vm).ok_or("the replica cannot be opened")?;
        let mut primary = self.primary.clone();
        match self.operation {
            Operation::Create | Operation::Replace | Operation::Reopen => {}
            Operation::InitialCopy => copy(&mut primary, &vm)?,
            Operation::PlantSeed => {
                // From another file system, so that it has to be copied.
                let file = disk.failing(self.files.fork().as_outside(SEED)?);
                vm.plant_seed(DiskId(0), &SeedFile { file, take: true }, &mut unpaced)?;
            }
            Operation::ShareSeed => plant(&vm, disk, false)?,
            Operation::TakeSeed => plant(&vm, disk, true)?,
            Operation::SeededCopy => copy_comparing(&mut primary, &vm)?,
            Operation::AwaitImport | Operation::AwaitAnother => {
                primary.session = primary.session.next();
                let session = vm.admit_session(primary.generation, primary.session)?;
                let import = self.import.as_ref().unwrap();
                vm.await_base(session, &import.cut, &import.disks)?;
            }
            Operation::ImportFirst | Operation::ImportLast => {
                vm.adopt_import(self.import.as_ref().unwrap(), &mut unpaced)?;
            }
            Operation::FirstCycle | Operation::Cycle | Operation::AwaitingCycle => {
                primary.session = primary.session.next();
                let session = vm.admit_session(primary.generation, primary.session)?;
                send(&vm, session, self.cycle.as_ref().unwrap(), true)?;
            }
            Operation::Retain => vm.retain(&[self.point(1), self.point(5)])?,
            Operation::Merge | Operation::Commit => {
                vm.upkeep(&mut unpaced)?;
            }
            Operation::Test => {
                vm.begin_failover(self.point(3), FailoverPurpose::Test)?;
            }
            Operation::FailOver => {
                vm.begin_failover(self.point(3), FailoverPurpose::TakeOver { generation: Generation(2) })?;
            }
            Operation::EndTest | Operation::Revert => vm.revert_failover(self.failover.unwrap())?,
            Operation::CommitFailover => vm.commit_failover(self.failover.unwrap())?,
            Operation::Remove => store.remove(self.primary.vm, Removal::DestroyPoints)?,
        }
        Ok(())
    }

    /// What is there after recovery must be what was before the operation or what is after it, and if the operation
    /// had reported success, the latter. Everything must go on working from there.
    pub fn judge(&self, files: &MemFiles, succeeded: bool) {
        self.judge_state(files, succeeded, false);
        self.go_on(files, &open(files));
    }

    /// Likewise without going on. `doubts`: the disk may have seemed damaged for a while.
    pub fn judge_state(&self, files: &MemFiles, succeeded: bool, doubts: bool) {
        let store = open(files);
        assert_eq!(store.unopened(), [], "{:?}", self.operation);
        if let Some(vm) = store.vm(self.primary.vm)
            && doubts
        {
            // What could not be read was set aside; it is whole and comes back.
            assert_eq!(vm.check(&mut unpaced).unwrap().damage, []);
        }
        let found = self.found(files, &store);
        let done = found == self.after;
        let initial = self.operation.copies() && !succeeded;
        // A seed is there until a copy has taken it over.
        let kept = found.seeds == self.before.seeds || found.copied.is_some();
        let undone = found == self.before || (initial && found.points.is_empty() && kept);
        assert!(done || (undone && !succeeded), "{:?}: {}", self.operation, describe(&found));
    }

    /// Opens the store; whether it shows the operation as done.
    pub fn is_done(&self, files: &MemFiles) -> bool {
        self.found(files, &open(files)) == self.after
    }

    fn found(&self, files: &MemFiles, store: &Store) -> Expected {
        let aside = store.set_aside().unwrap().iter().map(|aside| aside.points).collect();
        let Some(vm) = store.vm(self.primary.vm) else {
            return Expected { generation: 1, aside, ..Expected::default() };
        };
        let report = vm.report();
        assert_eq!(report.damage, [] as [String; 0], "{:?}", self.operation);
        assert_no_leftovers(files, &vm);
        let read = |path: &str| files.content(path).unwrap();
        for failover in vm.failovers() {
            let image = &self.cuts.iter().find(|(d, _)| *d == failover.cut).unwrap().1;
            for ((_, path), image) in vm.overlay_paths(failover.id).unwrap().iter().zip(image) {
                let path = path.strip_prefix("/memory").unwrap().to_str().unwrap();
                assert!(crate::image::read_qcow2(&read, path) == *image);
            }
        }
        for (disk, position) in report.initial.iter().flatten() {
            let staged = read(&format!("{}/staging/{disk}-base.raw", vm.id()));
            let position = *position as usize;
            assert!(staged[..position] == self.copied[usize::from(disk.0)][..position], "what is durable is there");
        }
        let points = report.points.iter().map(|p| (p.cut.id.digest, images_of(files, &vm, p.cut.point())));
        Expected {
            exists: true,
            points: points.collect(),
            generation: report.generation.0,
            failovers: report.failovers.iter().map(|f| (f.stage, f.cut)).collect(),
            copied: report.initial.map(|positions| positions.iter().map(|(_, at)| *at).min().unwrap()),
            seeds: vm.seeds().into_iter().map(|disk| (disk, staged(files, &vm, disk))).collect(),
            seed_outside: files.content(SEED).is_ok_and(|bytes| bytes == self.seed()),
            awaited: report.awaited.map(|(import, newest)| (import.id.digest, newest.id.digest)),
            aside,
        }
    }

    /// Finishes what can be finished, then a cycle, upkeep and a check on top.
    pub fn go_on(&self, files: &MemFiles, store: &Store) {
        let Some(vm) = store.vm(self.primary.vm) else { return };
        let mut primary = self.primary.clone();
        let report = vm.report();
        if report.generation != primary.generation {
            return assert_eq!(vm.check(&mut unpaced).unwrap().damage, []);
        }
        primary.session = report.session;
        if report.detached {
            vm.attach().unwrap();
        }
        let mut newest = report.newest.clone();
        if self.operation.is_import() && newest.is_none() {
            newest = Some(self.go_on_importing(&mut primary, &vm));
        } else if newest.is_none() {
            match self.operation.is_seeded() {
                true => copy_comparing(&mut primary, &vm).unwrap(),
                false => copy(&mut primary, &vm).unwrap(),
            }
        }
        primary.parent = newest.as_ref().map_or(CutDigest::ZERO, |c| c.id.digest);
        primary.number.0 += 10;
        let cut = primary.replicate(&vm, true);
        assert!(images_of(files, &vm, cut.point()) == primary.images, "{:?}: the next cycle", self.operation);
        upkeep(&vm);
        assert!(images_of(files, &vm, cut.point()) == primary.images, "{:?}: after upkeep", self.operation);
        let report = vm.check(&mut unpaced).unwrap();
        assert_eq!((report.damage, report.unknown_blocks), (vec![], 0), "{:?}", self.operation);
    }
}

impl Stage {
    /// Brings the import in, whatever came of the operation; the newest cut then.
    fn go_on_importing(&self, primary: &mut Primary, vm: &Arc<VmStore>) -> Cut {
        let import = match vm.awaited_import() {
            Some(cut) if self.import.as_ref().is_some_and(|import| import.cut != cut) => {
                // Another export was awaited and still is; the newest one takes its place.
                let session = primary.admit(vm);
                let import = self.import.as_ref().unwrap();
                vm.await_base(session, &import.cut, &import.disks).unwrap();
                import
            }
            _ => self.import.as_ref().unwrap(),
        };
        let cut = vm.adopt_import(import, &mut unpaced).unwrap();
        assert_eq!(cut, import.cut);
        assert!(vm.points().iter().any(|p| p.cut == cut), "the import is a recovery point");
        vm.newest().unwrap()
    }
}

fn describe(found: &Expected) -> String {
    let Expected { exists, points, generation, failovers, copied, seeds, seed_outside, awaited, aside } = found;
    let seeds: Vec<_> = seeds.iter().map(|(disk, _)| disk).collect();
    let points = points.keys();
    format!("{exists} {points:?} {generation} {failovers:?} {copied:?} {seeds:?} {seed_outside} {awaited:?} {aside:?}")
}

/// Sends the whole disks, resuming where an earlier attempt was durable.
fn copy(primary: &mut Primary, vm: &Arc<VmStore>) -> Result<(), Failure> {
    primary.session = primary.session.next();
    let session = vm.admit_session(primary.generation, primary.session)?;
    let base = vm.begin_base(session, CutNumber(1))?;
    let half = (DISK / 2) as usize;
    for (spec, image) in primary.specs.iter().zip(&primary.images) {
        base.write(spec.id, 0, BaseBytes::Data(&image[..half]))?;
    }
    base.sync()?;
    for (spec, image) in primary.specs.iter().zip(&primary.images) {
        base.write(spec.id, half as u64, BaseBytes::Data(&image[half..]))?;
    }
    base.sync()?;
    Ok(())
}

fn plant(vm: &Arc<VmStore>, disk: &Disk, take: bool) -> Result<(), Failure> {
    vm.plant_seed(DiskId(0), &SeedFile { file: disk.seed()?, take }, &mut unpaced)?;
    Ok(())
}

/// A staged disk as it will be compared: a seed that was moved may still lack the zeros at its end.
fn staged(files: &MemFiles, vm: &VmStore, disk: DiskId) -> Vec<u8> {
    let mut bytes = files.content(&format!("{}/staging/{disk}-base.raw", vm.id())).unwrap();
    bytes.resize(DISK as usize, 0);
    bytes
}

/// Offers the whole disks and sends what is wanted, in two halves.
fn copy_comparing(primary: &mut Primary, vm: &Arc<VmStore>) -> Result<(), Failure> {
    primary.session = primary.session.next();
    let session = vm.admit_session(primary.generation, primary.session)?;
    let base = vm.begin_base_in(session, CutNumber(1), &BaseMode::Compare { lenders: Vec::new() })?;
    for half in 0..2 {
        for (spec, image) in primary.specs.iter().zip(&primary.images) {
            let from = half * DISK / 2;
            offer(&base, spec.id, from, &image[from as usize..(from + DISK / 2) as usize])?;
        }
        base.sync()?;
    }
    Ok(())
}
