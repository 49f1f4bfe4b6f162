//! The truth about one VM's replica: which cuts it holds, in which files they lie, who may write.
//!
//! A chain reads upwards: the base, then links, each standing for one cut and holding one run per changed disk. How
//! high one stands in it is a [`Height`]. The manifest is replaced as a whole and in one instant ([`mod@file`]); what
//! it does not name does not exist. Its form on disk is [`mod@format`]'s.

pub(crate) mod file;
mod format;

use std::collections::BTreeSet;

use understudy_model::{Cut, CutDigest, CutNumber, DiskId, DiskSpec, Extent, Generation, SessionNumber, VmId};
use understudy_run::RunDigest;

use crate::paths::FileNumber;

/// Most links of a chain: more means that upkeep has been starved for days, and receiving must wait for it.
pub(crate) const LINKS_MAX: usize = 16_384;
/// Most failovers of one VM at a time, tests included.
pub(crate) const FAILOVERS_MAX: usize = 64;
/// Most definitions kept; more than links cannot be referred to.
const DEFINITIONS_MAX: usize = LINKS_MAX + 1;
/// Most blobs that one definition refers to: a kernel, an initial RAM disk, firmware and its variables, some spare.
pub(crate) const BLOBS_MAX: usize = 16;
/// Most damaged objects recorded; past it the picture is clear.
pub(crate) const DAMAGE_MAX: usize = 1024;

/// Most ranges of one object that are known to be damaged and covered; past it, it is simply damaged.
pub(crate) const COVERED_MAX: usize = 256;

/// How many links above the base: 0 is the base itself.
pub(crate) type Height = usize;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Manifest {
    /// Rises with each version that is written; of two valid copies the higher one counts.
    pub(crate) sequence: u64,
    pub(crate) vm: VmId,
    /// Lower generations are refused for ever.
    pub(crate) generation: Generation,
    /// The newest session admitted in this generation.
    pub(crate) session: SessionNumber,
    /// The next number for a file.
    pub(crate) next_file: u64,
    /// The relationship was removed and the points were kept: nothing is received any more.
    pub(crate) detached: bool,
    /// Every disk the VM ever had here; their numbers are not given out again.
    pub(crate) disks: Vec<DiskRecord>,
    /// Disks whose staged base is worth comparing with and belongs to no attempt: a seed, or what an attempt that was
    /// given up has left.
    pub(crate) seeds: Vec<DiskId>,
    /// The initial copy that is under way in staging.
    pub(crate) initial: Option<Vec<InitialDisk>>,
    /// What is received on top of a base that is still to be imported.
    pub(crate) waiting: Option<Waiting>,
    /// The bottom of the chain; none before the first cycle was sealed.
    pub(crate) base: Option<Base>,
    /// The chain above the base, oldest first.
    pub(crate) links: Vec<Link>,
    pub(crate) definitions: Vec<DefinitionRecord>,
    pub(crate) failovers: Vec<FailoverRecord>,
    /// Renames that belong to this manifest; they are done again at every opening until a later one drops them.
    pub(crate) pending: Vec<PendingRename>,
    /// What is known to be damaged and therefore not served.
    pub(crate) damage: Vec<DamageRecord>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DiskRecord {
    /// Identity, key and size as of the newest cut.
    pub(crate) spec: DiskSpec,
    /// It left the VM; cuts from before may still have it.
    pub(crate) removed: bool,
}

/// One disk of an initial copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct InitialDisk {
    pub(crate) disk: DiskId,
    /// The map that tracking began with before this copy did. A store that was put back to an older copy shows by it
    /// that its data is not that of the attempt under way.
    pub(crate) attempt: CutNumber,
    /// Everything below is durable.
    pub(crate) position: u64,
}

/// A chain without its bottom: invisible until an import brings it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Waiting {
    /// The cut that the import stands for.
    pub(crate) record: CutRecord,
    /// What was received on top of it, oldest first.
    pub(crate) links: Vec<Link>,
}

/// What is known of a cut that the chain can be read at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct CutRecord {
    pub(crate) cut: Cut,
    /// Digest of the cut below in the chain: the cut's parent, until merging takes cuts out in between.
    pub(crate) follows: CutDigest,
    /// It is a recovery point.
    pub(crate) kept: bool,
    /// It may not be dropped.
    pub(crate) locked: bool,
    pub(crate) definition: Option<FileNumber>,
    /// The disks it froze, with their sizes, by disk.
    pub(crate) sizes: Vec<(DiskId, u64)>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Base {
    /// The cut the base files stand for; none while they are an initial copy that only the first link makes whole.
    pub(crate) record: Option<CutRecord>,
    pub(crate) files: Vec<BaseFile>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct BaseFile {
    pub(crate) disk: DiskId,
    /// Length of the raw image.
    pub(crate) size: u64,
    /// An empty run over the base that bears the name of the last run committed into it, for the sake of the file
    /// above that refers to the name.
    pub(crate) stub: Option<Stub>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stub {
    pub(crate) number: FileNumber,
    pub(crate) len: u64,
    pub(crate) digest: RunDigest,
}

/// One step up in the chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Link {
    pub(crate) record: CutRecord,
    /// How often its content was merged; see the plan of upkeep.
    pub(crate) level: u8,
    /// For each disk of the cut, what changed since the cut below.
    pub(crate) runs: Vec<RunRecord>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RunRecord {
    pub(crate) disk: DiskId,
    pub(crate) cluster_bits: u32,
    pub(crate) digest: RunDigest,
    /// None if nothing changed.
    pub(crate) file: Option<RunFile>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RunFile {
    pub(crate) number: FileNumber,
    pub(crate) len: u64,
    /// What its header names as the file below.
    pub(crate) below: Below,
}

/// What lies below a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Below {
    /// The raw base.
    Base,
    /// The run, or stub, of this number.
    Run(FileNumber),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DefinitionRecord {
    pub(crate) number: FileNumber,
    pub(crate) extension: String,
    pub(crate) len: u64,
    pub(crate) hash: [u8; 32],
    /// Hashes of the blobs it refers to.
    pub(crate) blobs: Vec<[u8; 32]>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct FailoverRecord {
    pub(crate) number: FileNumber,
    pub(crate) cut: CutDigest,
    pub(crate) stage: FailoverStage,
}

/// What a failover is, and how far it got.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FailoverStage {
    /// A throw-away copy.
    Test,
    /// In earnest; can be reverted.
    Active,
    /// Made final: its overlays are the VM's disks.
    Committed,
}

/// A rename that completes a manifest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PendingRename {
    /// A staged run takes the place of the run that bears a name.
    Run { disk: DiskId, staged: FileNumber, name: FileNumber },
    /// A staged base and its checksums become the disk's.
    Base { disk: DiskId },
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DamageRecord {
    pub(crate) object: Object,
    pub(crate) what: String,
    /// What covers it, if that is known.
    pub(crate) covered: Option<Covered>,
}

/// Damage that nobody sees who reads at a cut or above it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Covered {
    /// The lowest cut at which runs of higher links hide all of it.
    pub(crate) by: CutDigest,
    /// All that is damaged of the object.
    pub(crate) extents: Vec<Extent>,
}

/// A thing of the store that can be damaged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Object {
    /// A run.
    Run {
        /// Its disk.
        disk: DiskId,
        /// Its number.
        number: FileNumber,
    },
    /// A raw base, or its checksums.
    Base {
        /// Its disk.
        disk: DiskId,
    },
    /// A definition of the VM.
    Definition {
        /// Its number.
        number: FileNumber,
    },
    /// A blob of a definition.
    Blob {
        /// Its hash.
        hash: [u8; 32],
    },
    /// The overlay of a failover.
    Overlay {
        /// The failover.
        failover: FileNumber,
        /// The disk.
        disk: DiskId,
    },
    /// How the links of the chain follow each other, at one cut.
    Linkage {
        /// The cut.
        cut: CutDigest,
    },
}

impl std::fmt::Display for Object {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        use crate::paths;
        match self {
            Object::Run { disk, number } => f.write_str(&paths::run(*disk, *number)),
            Object::Base { disk } => f.write_str(&paths::base(*disk)),
            Object::Definition { number } => write!(f, "{}/{number}", paths::DEFINITIONS),
            Object::Blob { hash } => f.write_str(&paths::blob(hash)),
            Object::Overlay { failover, disk } => f.write_str(&paths::overlay(*failover, *disk)),
            Object::Linkage { cut } => write!(f, "the chain at cut {cut}"),
        }
    }
}

impl CutRecord {
    pub(crate) fn digest(&self) -> CutDigest {
        self.cut.id.digest
    }

    pub(crate) fn size(&self, disk: DiskId) -> Option<u64> {
        self.sizes.iter().find(|(d, _)| *d == disk).map(|(_, size)| *size)
    }
}

impl Link {
    pub(crate) fn run(&self, disk: DiskId) -> Option<&RunRecord> {
        self.runs.iter().find(|r| r.disk == disk)
    }

    /// The link's run files, with their disks.
    pub(crate) fn files(&self) -> impl Iterator<Item = (DiskId, RunFile)> + '_ {
        self.runs.iter().filter_map(|r| r.file.map(|file| (r.disk, file)))
    }

    /// Length of all its run files.
    pub(crate) fn len(&self) -> u64 {
        self.files().map(|(_, file)| file.len).sum()
    }
}

impl Waiting {
    /// The newest cut on top of what is awaited, or that itself.
    pub(crate) fn newest(&self) -> &CutRecord {
        self.links.last().map_or(&self.record, |l| &l.record)
    }
}

/// The uppermost run of a disk among links.
fn top_of(links: &[Link], disk: DiskId) -> Option<FileNumber> {
    links.iter().rev().filter_map(|l| l.run(disk)?.file).map(|f| f.number).next()
}

impl Base {
    pub(crate) fn file(&self, disk: DiskId) -> Option<&BaseFile> {
        self.files.iter().find(|f| f.disk == disk)
    }
}

impl Manifest {
    pub(crate) fn new(vm: VmId, generation: Generation, disks: &[DiskSpec]) -> Self {
        let record = |spec: &DiskSpec| DiskRecord { spec: spec.clone(), removed: false };
        Self {
            sequence: 0,
            vm,
            generation,
            session: SessionNumber(0),
            next_file: 1,
            detached: false,
            disks: disks.iter().map(record).collect(),
            seeds: Vec::new(),
            initial: None,
            waiting: None,
            base: None,
            links: Vec::new(),
            definitions: Vec::new(),
            failovers: Vec::new(),
            pending: Vec::new(),
            damage: Vec::new(),
        }
    }

    /// The attempt whose initial copy lies in staging.
    pub(crate) fn attempt(&self) -> Option<CutNumber> {
        self.initial.as_ref().and_then(|disks| disks.first()).map(|initial| initial.attempt)
    }

    /// The disks the VM has now.
    pub(crate) fn current_disks(&self) -> impl Iterator<Item = &DiskSpec> {
        self.disks.iter().filter(|d| !d.removed).map(|d| &d.spec)
    }

    /// The height of the newest cut; none before the first.
    pub(crate) fn top(&self) -> Option<Height> {
        self.base.as_ref().map(|_| self.links.len())
    }

    /// The cut at a height; none where the base is no cut by itself.
    pub(crate) fn record(&self, height: Height) -> Option<&CutRecord> {
        match height.checked_sub(1) {
            None => self.base.as_ref()?.record.as_ref(),
            Some(link) => self.links.get(link).map(|l| &l.record),
        }
    }

    pub(crate) fn record_mut(&mut self, height: Height) -> Option<&mut CutRecord> {
        match height.checked_sub(1) {
            None => self.base.as_mut()?.record.as_mut(),
            Some(link) => self.links.get_mut(link).map(|l| &mut l.record),
        }
    }

    pub(crate) fn newest(&self) -> Option<&CutRecord> {
        self.record(self.top()?)
    }

    /// The newest cut received, whether or not it can be seen.
    pub(crate) fn tip(&self) -> Option<&CutRecord> {
        self.newest().or(self.waiting.as_ref().map(Waiting::newest))
    }

    /// What the next cycle's run of a disk lies on.
    pub(crate) fn below_next(&self, disk: DiskId) -> Below {
        match &self.waiting {
            Some(waiting) => top_of(&waiting.links, disk).map_or(Below::Base, Below::Run),
            None => self.top_file(disk, self.links.len()),
        }
    }

    /// Every link, of the chain and of what waits for its bottom.
    pub(crate) fn all_links(&self) -> impl Iterator<Item = &Link> {
        self.links.iter().chain(self.waiting.iter().flat_map(|w| &w.links))
    }

    /// Every height at which the chain is a cut, oldest first.
    pub(crate) fn heights(&self) -> impl Iterator<Item = Height> + '_ {
        (0..=self.links.len()).filter(|h| self.record(*h).is_some())
    }

    pub(crate) fn height_of(&self, cut: CutDigest) -> Option<Height> {
        self.heights().find(|h| self.record(*h).is_some_and(|r| r.digest() == cut))
    }

    pub(crate) fn failover_on(&self, cut: CutDigest) -> bool {
        self.failovers.iter().any(|f| f.cut == cut)
    }

    /// Whether the cut at a height may be shown and opened: a recovery point, the newest, or one in use. The others
    /// wait to be merged away, and what the base was may be half overwritten already.
    pub(crate) fn is_open(&self, height: Height) -> bool {
        let Some(record) = self.record(height) else { return false };
        record.kept || self.top() == Some(height) || self.failover_on(record.digest())
    }

    /// The committed failover, once there is one.
    pub(crate) fn committed(&self) -> Option<&FailoverRecord> {
        self.failovers.iter().find(|f| f.stage == FailoverStage::Committed)
    }

    /// The failover in earnest that can still be reverted.
    pub(crate) fn active(&self) -> Option<&FailoverRecord> {
        self.failovers.iter().find(|f| f.stage == FailoverStage::Active)
    }

    /// The uppermost file of a disk at a height.
    pub(crate) fn top_file(&self, disk: DiskId, height: Height) -> Below {
        let stub = || self.base.as_ref()?.file(disk)?.stub.map(|s| s.number);
        top_of(&self.links[..height], disk).or_else(stub).map_or(Below::Base, Below::Run)
    }

    /// Every run and stub that the manifest names.
    pub(crate) fn run_files(&self) -> BTreeSet<(DiskId, FileNumber)> {
        let runs = self.all_links().flat_map(Link::files).map(|(disk, file)| (disk, file.number));
        runs.chain(self.stubs()).collect()
    }

    fn stubs(&self) -> impl Iterator<Item = (DiskId, FileNumber)> + '_ {
        let files = self.base.iter().flat_map(|b| &b.files);
        files.filter_map(|f| f.stub.map(|stub| (f.disk, stub.number)))
    }

    /// What is known to be wrong with something that reading at a height needs.
    pub(crate) fn damage_below(&self, height: Height) -> Option<&DamageRecord> {
        let disks: Vec<DiskId> = self.record(height)?.sizes.iter().map(|(disk, _)| *disk).collect();
        let needs = |object: &Object| match object {
            Object::Run { disk, number } => {
                let of_links = self.links[..height].iter().flat_map(Link::files).map(|(d, f)| (d, f.number));
                disks.contains(disk) && of_links.chain(self.stubs()).any(|file| file == (*disk, *number))
            }
            Object::Base { disk } => disks.contains(disk),
            Object::Linkage { cut } => self.height_of(*cut).is_some_and(|at| at <= height),
            Object::Definition { .. } | Object::Blob { .. } | Object::Overlay { .. } => false,
        };
        self.damage.iter().find(|d| needs(&d.object))
    }

    /// Forgets definitions that no cut refers to any more. Their files are unlinked by whoever recorded the change.
    pub(crate) fn drop_unused_definitions(&mut self) {
        let waiting = self.waiting.iter().flat_map(|w| &w.links).map(|l| &l.record);
        let records = self.heights().filter_map(|h| self.record(h)).chain(waiting);
        let used: BTreeSet<FileNumber> = records.filter_map(|r| r.definition).collect();
        self.definitions.retain(|d| used.contains(&d.number));
    }

    /// No import is awaited any more, and what was received on top of it is of no use.
    pub(crate) fn drop_waiting(&mut self) {
        self.waiting = None;
        self.drop_unused_definitions();
    }

    /// Forgets damage of what is no longer there.
    pub(crate) fn drop_stale_damage(&mut self) {
        let runs = self.run_files();
        let here: Vec<bool> = self.damage.iter().map(|d| self.has(&d.object, &runs)).collect();
        let mut here = here.into_iter();
        self.damage.retain(|_| here.next().expect("one answer each"));
    }

    fn has(&self, object: &Object, runs: &BTreeSet<(DiskId, FileNumber)>) -> bool {
        match object {
            Object::Run { disk, number } => runs.contains(&(*disk, *number)),
            Object::Base { disk } => self.base.as_ref().is_some_and(|b| b.file(*disk).is_some()),
            Object::Definition { number } => self.definitions.iter().any(|d| d.number == *number),
            Object::Blob { hash } => self.definitions.iter().any(|d| d.blobs.contains(hash)),
            Object::Overlay { failover, .. } => self.failovers.iter().any(|f| f.number == *failover),
            Object::Linkage { cut } => self.height_of(*cut).is_some(),
        }
    }

    /// What contradicts itself, if anything. A manifest whose checksum is right and that fails here is our mistake.
    pub(crate) fn contradiction(&self) -> Option<&'static str> {
        let ordered = |ids: Vec<DiskId>| ids.windows(2).all(|w| w[0] < w[1]);
        let known = |disk: DiskId| self.disks.iter().any(|d| d.spec.id == disk);
        let awaited = self.waiting.iter().flat_map(|w| w.links.iter().map(|l| &l.record).chain([&w.record]));
        let records: Vec<&CutRecord> = self.heights().filter_map(|h| self.record(h)).chain(awaited).collect();
        if self.base.is_none() && !self.links.is_empty() {
            return Some("links without a base");
        }
        let beside = self.base.is_some() || self.initial.is_some() || !self.seeds.is_empty();
        if self.waiting.is_some() && beside {
            return Some("an import awaited beside a base or a copy");
        }
        if self.base.is_some() && self.initial.is_some() {
            return Some("an initial copy beside a base");
        }
        if self.base.is_some() && !self.seeds.is_empty() || self.initial.is_some() && !self.seeds.is_empty() {
            return Some("seeds beside a base or a copy");
        }
        if self.initial.iter().flatten().any(|disk| Some(disk.attempt) != self.attempt()) {
            return Some("an initial copy of two attempts");
        }
        if !ordered(self.disks.iter().map(|d| d.spec.id).collect()) {
            return Some("disks out of order");
        }
        if !records.iter().all(|r| !r.sizes.is_empty() && r.sizes.iter().all(|(d, _)| known(*d))) {
            return Some("a cut with unknown disks");
        }
        if !records.iter().all(|r| ordered(r.sizes.iter().map(|(d, _)| *d).collect())) {
            return Some("a cut with disks out of order");
        }
        if !self.all_links().all(|l| {
            l.runs.len() == l.record.sizes.len() && l.runs.iter().zip(&l.record.sizes).all(|(r, (d, _))| r.disk == *d)
        }) {
            return Some("a link whose runs are not those of its disks");
        }
        if !self
            .links
            .iter()
            .flat_map(|l| &l.runs)
            .all(|r| self.base.as_ref().is_some_and(|b| b.file(r.disk).is_some()))
        {
            return Some("a run without a base");
        }
        self.unlinked().map(|_| "links that do not follow each other").or_else(|| self.dangling())
    }

    /// The first cut that does not follow the one below it.
    pub(crate) fn unlinked(&self) -> Option<CutDigest> {
        let bottom = self.base.as_ref().and_then(|b| b.record.as_ref());
        let bottom = bottom.or(self.waiting.as_ref().map(|w| &w.record)).map_or(CutDigest::ZERO, CutRecord::digest);
        self.all_links()
            .scan(bottom, |below, link| {
                let expected = std::mem::replace(below, link.record.digest());
                Some((expected == link.record.follows, link.record.digest()))
            })
            .find(|(follows, _)| !follows)
            .map(|(_, cut)| cut)
    }

    fn dangling(&self) -> Option<&'static str> {
        // So no chain of names has a loop or leads into another's.
        let on_top = |height: usize, disk, file: RunFile| file.below == self.top_file(disk, height);
        if !self.links.iter().enumerate().all(|(i, link)| link.files().all(|(disk, file)| on_top(i, disk, file))) {
            return Some("a run over something else than what lies below it");
        }
        let waiting = self.waiting.as_ref().map_or(&[][..], |w| &w.links);
        let awaits = |i: usize, disk| top_of(&waiting[..i], disk).map_or(Below::Base, Below::Run);
        if !waiting.iter().enumerate().all(|(i, link)| link.files().all(|(disk, f)| f.below == awaits(i, disk))) {
            return Some("a run over something else than what it was received on");
        }
        if self.run_files().len() != self.all_links().flat_map(Link::files).count() + self.stubs().count() {
            return Some("two runs of one name");
        }
        if !self.failovers.iter().all(|f| self.height_of(f.cut).is_some()) {
            return Some("a failover on a cut that is not there");
        }
        let defined = |number: FileNumber| self.definitions.iter().any(|d| d.number == number);
        let awaited = waiting.iter().filter_map(|l| l.record.definition);
        if !self.heights().filter_map(|h| self.record(h)?.definition).chain(awaited).all(defined) {
            return Some("a definition that is not there");
        }
        None
    }
}
