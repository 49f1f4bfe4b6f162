//! The manifest as JSON: types of its own, so that renaming a field of ours never changes a byte on disk.
//!
//! `docs/formats/store.md` describes every field. Fields are never added or changed without a new version.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use understudy_model::id::parse_hex32;
use understudy_model::{
    Consistency, Cut, CutDigest, CutNumber, CutRef, DiskId, DiskSpec, Extent, Generation, SessionNumber, Timestamp,
};
use understudy_run::RunDigest;

use super::file;
use super::{
    BLOBS_MAX, Base, BaseFile, Below, COVERED_MAX, Covered, CutRecord, DAMAGE_MAX, DEFINITIONS_MAX, DamageRecord,
    DefinitionRecord, DiskRecord, FAILOVERS_MAX, FailoverRecord, FailoverStage, InitialDisk, LINKS_MAX, Link, Manifest,
    Object, PendingRename, RunFile, RunRecord, Stub, Waiting,
};
use crate::paths::{FileNumber, is_extension};

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ManifestForm {
    sequence: u64,
    vm: String,
    generation: u64,
    session: u64,
    next_file: u64,
    detached: bool,
    disks: Vec<DiskForm>,
    seeds: Vec<u16>,
    initial: Option<Vec<InitialForm>>,
    waiting: Option<WaitingForm>,
    base: Option<BaseForm>,
    links: Vec<LinkForm>,
    definitions: Vec<DefinitionForm>,
    failovers: Vec<FailoverForm>,
    pending: Vec<PendingForm>,
    damage: Vec<DamageForm>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct DiskForm {
    id: u16,
    key: String,
    size: u64,
    removed: bool,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct InitialForm {
    disk: u16,
    attempt: u64,
    position: u64,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct WaitingForm {
    cut: CutForm,
    links: Vec<LinkForm>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct CutForm {
    digest: String,
    generation: u64,
    number: u64,
    parent: String,
    follows: String,
    taken_at_ms: u64,
    consistency: String,
    kept: bool,
    locked: bool,
    definition: Option<u64>,
    sizes: Vec<(u16, u64)>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct BaseForm {
    cut: Option<CutForm>,
    files: Vec<BaseFileForm>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct BaseFileForm {
    disk: u16,
    size: u64,
    stub: Option<StubForm>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct StubForm {
    number: u64,
    len: u64,
    digest: String,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct LinkForm {
    cut: CutForm,
    level: u8,
    runs: Vec<RunForm>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RunForm {
    disk: u16,
    cluster_bits: u32,
    digest: String,
    file: Option<RunFileForm>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RunFileForm {
    number: u64,
    len: u64,
    /// The number of the run below; none for the base.
    below: Option<u64>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct DefinitionForm {
    number: u64,
    extension: String,
    len: u64,
    blake3: String,
    blobs: Vec<String>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct FailoverForm {
    number: u64,
    cut: String,
    stage: String,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
enum PendingForm {
    Run { disk: u16, staged: u64, name: u64 },
    Base { disk: u16 },
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct DamageForm {
    object: ObjectForm,
    what: String,
    covered: Option<CoveredForm>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct CoveredForm {
    by: String,
    extents: Vec<(u64, u64)>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
enum ObjectForm {
    Run { disk: u16, number: u64 },
    Base { disk: u16 },
    Definition { number: u64 },
    Blob { hash: String },
    Overlay { failover: u64, disk: u16 },
    Linkage { cut: String },
}

pub(super) fn write(m: &Manifest) -> ManifestForm {
    ManifestForm {
        sequence: m.sequence,
        vm: m.vm.to_string(),
        generation: m.generation.0,
        session: m.session.0,
        next_file: m.next_file,
        detached: m.detached,
        disks: m.disks.iter().map(write_disk).collect(),
        seeds: m.seeds.iter().map(|disk| disk.0).collect(),
        initial: m.initial.as_ref().map(|disks| disks.iter().map(write_initial).collect()),
        waiting: m.waiting.as_ref().map(write_waiting),
        base: m.base.as_ref().map(write_base),
        links: m.links.iter().map(write_link).collect(),
        definitions: m.definitions.iter().map(write_definition).collect(),
        failovers: m.failovers.iter().map(write_failover).collect(),
        pending: m.pending.iter().map(write_pending).collect(),
        damage: m.damage.iter().map(write_damage).collect(),
    }
}

fn write_disk(d: &DiskRecord) -> DiskForm {
    DiskForm { id: d.spec.id.0, key: d.spec.key.clone(), size: d.spec.size, removed: d.removed }
}

fn write_initial(d: &InitialDisk) -> InitialForm {
    InitialForm { disk: d.disk.0, attempt: d.attempt.0, position: d.position }
}

fn write_waiting(w: &Waiting) -> WaitingForm {
    WaitingForm { cut: write_cut(&w.record), links: w.links.iter().map(write_link).collect() }
}

fn write_cut(r: &CutRecord) -> CutForm {
    CutForm {
        digest: r.cut.id.digest.to_string(),
        generation: r.cut.id.generation.0,
        number: r.cut.id.number.0,
        parent: r.cut.parent.to_string(),
        follows: r.follows.to_string(),
        taken_at_ms: r.cut.taken_at.0,
        consistency: consistency_name(r.cut.consistency).to_owned(),
        kept: r.kept,
        locked: r.locked,
        definition: r.definition.map(|n| n.0),
        sizes: r.sizes.iter().map(|(disk, size)| (disk.0, *size)).collect(),
    }
}

fn write_base(b: &Base) -> BaseForm {
    let stub = |s: &Stub| StubForm { number: s.number.0, len: s.len, digest: s.digest.to_string() };
    let file = |f: &BaseFile| BaseFileForm { disk: f.disk.0, size: f.size, stub: f.stub.as_ref().map(stub) };
    BaseForm { cut: b.record.as_ref().map(write_cut), files: b.files.iter().map(file).collect() }
}

fn write_link(l: &Link) -> LinkForm {
    LinkForm { cut: write_cut(&l.record), level: l.level, runs: l.runs.iter().map(write_run).collect() }
}

fn write_run(r: &RunRecord) -> RunForm {
    let below = |b: Below| match b {
        Below::Base => None,
        Below::Run(number) => Some(number.0),
    };
    let file = |f: RunFile| RunFileForm { number: f.number.0, len: f.len, below: below(f.below) };
    RunForm { disk: r.disk.0, cluster_bits: r.cluster_bits, digest: r.digest.to_string(), file: r.file.map(file) }
}

fn write_definition(d: &DefinitionRecord) -> DefinitionForm {
    DefinitionForm {
        number: d.number.0,
        extension: d.extension.clone(),
        len: d.len,
        blake3: hex(&d.hash),
        blobs: d.blobs.iter().map(hex).collect(),
    }
}

fn write_failover(f: &FailoverRecord) -> FailoverForm {
    FailoverForm { number: f.number.0, cut: f.cut.to_string(), stage: stage_name(f.stage).to_owned() }
}

fn write_pending(p: &PendingRename) -> PendingForm {
    match p {
        PendingRename::Run { disk, staged, name } => PendingForm::Run { disk: disk.0, staged: staged.0, name: name.0 },
        PendingRename::Base { disk } => PendingForm::Base { disk: disk.0 },
    }
}

fn write_damage(d: &DamageRecord) -> DamageForm {
    let object = match d.object {
        Object::Run { disk, number } => ObjectForm::Run { disk: disk.0, number: number.0 },
        Object::Base { disk } => ObjectForm::Base { disk: disk.0 },
        Object::Definition { number } => ObjectForm::Definition { number: number.0 },
        Object::Blob { hash } => ObjectForm::Blob { hash: hex(&hash) },
        Object::Overlay { failover, disk } => ObjectForm::Overlay { failover: failover.0, disk: disk.0 },
        Object::Linkage { cut } => ObjectForm::Linkage { cut: cut.to_string() },
    };
    DamageForm { object, what: d.what.clone(), covered: d.covered.as_ref().map(write_covered) }
}

fn write_covered(c: &Covered) -> CoveredForm {
    CoveredForm { by: c.by.to_string(), extents: c.extents.iter().map(|e| (e.offset, e.len)).collect() }
}

/// Reads the form back; `None` if a text in it is no such thing or a table is too long.
pub(super) fn read(m: ManifestForm) -> Option<Manifest> {
    let too_long = m.disks.len() > DiskSpec::COUNT_MAX
        || m.seeds.len() > DiskSpec::COUNT_MAX
        || m.links.len() > LINKS_MAX
        || m.waiting.as_ref().is_some_and(|w| w.links.len() > LINKS_MAX)
        || m.definitions.len() > DEFINITIONS_MAX
        || m.failovers.len() > FAILOVERS_MAX
        || m.damage.len() > DAMAGE_MAX;
    if too_long {
        return None;
    }
    Some(Manifest {
        sequence: m.sequence,
        vm: m.vm.parse().ok()?,
        generation: Generation(m.generation),
        session: SessionNumber(m.session),
        next_file: m.next_file,
        detached: m.detached,
        disks: all(m.disks, read_disk)?,
        seeds: m.seeds.into_iter().map(DiskId).collect(),
        initial: optional(m.initial, |disks| all(disks, read_initial))?,
        waiting: optional(m.waiting, read_waiting)?,
        base: optional(m.base, read_base)?,
        links: all(m.links, read_link)?,
        definitions: all(m.definitions, read_definition)?,
        failovers: all(m.failovers, read_failover)?,
        pending: all(m.pending, read_pending)?,
        damage: all(m.damage, read_damage)?,
    })
}

fn all<T, U>(list: Vec<T>, f: impl FnMut(T) -> Option<U>) -> Option<Vec<U>> {
    list.into_iter().map(f).collect()
}

/// Reads what may be absent; the outer `None` means that it is there and makes no sense.
fn optional<T, U>(value: Option<T>, f: impl FnOnce(T) -> Option<U>) -> Option<Option<U>> {
    match value {
        None => Some(None),
        Some(value) => f(value).map(Some),
    }
}

fn read_disk(d: DiskForm) -> Option<DiskRecord> {
    let legal = d.size > 0 && d.size <= DiskSpec::SIZE_MAX && d.size.is_multiple_of(512);
    let spec = DiskSpec { id: DiskId(d.id), key: d.key, size: d.size };
    legal.then_some(DiskRecord { spec, removed: d.removed })
}

fn read_initial(d: InitialForm) -> Option<InitialDisk> {
    Some(InitialDisk { disk: DiskId(d.disk), attempt: CutNumber(d.attempt), position: d.position })
}

fn read_waiting(w: WaitingForm) -> Option<Waiting> {
    Some(Waiting { record: read_cut(w.cut)?, links: all(w.links, read_link)? })
}

fn read_cut(c: CutForm) -> Option<CutRecord> {
    let digest = c.digest.parse().ok()?;
    let id = CutRef { generation: Generation(c.generation), number: CutNumber(c.number), digest };
    Some(CutRecord {
        cut: Cut {
            id,
            parent: c.parent.parse().ok()?,
            taken_at: Timestamp(c.taken_at_ms),
            consistency: CONSISTENCIES.into_iter().find(|x| consistency_name(*x) == c.consistency)?,
        },
        follows: c.follows.parse().ok()?,
        kept: c.kept,
        locked: c.locked,
        definition: c.definition.map(FileNumber),
        sizes: c.sizes.into_iter().map(|(disk, size)| (DiskId(disk), size)).collect(),
    })
}

fn read_base(b: BaseForm) -> Option<Base> {
    let stub = |s: StubForm| Some(Stub { number: FileNumber(s.number), len: s.len, digest: digest(&s.digest)? });
    let file = |f: BaseFileForm| Some(BaseFile { disk: DiskId(f.disk), size: f.size, stub: optional(f.stub, stub)? });
    Some(Base { record: optional(b.cut, read_cut)?, files: all(b.files, file)? })
}

fn read_link(l: LinkForm) -> Option<Link> {
    Some(Link { record: read_cut(l.cut)?, level: l.level, runs: all(l.runs, read_run)? })
}

fn read_run(r: RunForm) -> Option<RunRecord> {
    let below = |b: Option<u64>| b.map_or(Below::Base, |n| Below::Run(FileNumber(n)));
    let file = |f: RunFileForm| RunFile { number: FileNumber(f.number), len: f.len, below: below(f.below) };
    Some(RunRecord {
        disk: DiskId(r.disk),
        cluster_bits: r.cluster_bits,
        digest: digest(&r.digest)?,
        file: r.file.map(file),
    })
}

fn read_definition(d: DefinitionForm) -> Option<DefinitionRecord> {
    if !is_extension(&d.extension) || d.blobs.len() > BLOBS_MAX {
        return None;
    }
    Some(DefinitionRecord {
        number: FileNumber(d.number),
        extension: d.extension,
        len: d.len,
        hash: parse_hex32(&d.blake3)?,
        blobs: all(d.blobs, |b| parse_hex32(&b))?,
    })
}

fn read_failover(f: FailoverForm) -> Option<FailoverRecord> {
    let stage = STAGES.into_iter().find(|s| stage_name(*s) == f.stage)?;
    Some(FailoverRecord { number: FileNumber(f.number), cut: f.cut.parse().ok()?, stage })
}

fn read_pending(p: PendingForm) -> Option<PendingRename> {
    Some(match p {
        PendingForm::Run { disk, staged, name } => {
            PendingRename::Run { disk: DiskId(disk), staged: FileNumber(staged), name: FileNumber(name) }
        }
        PendingForm::Base { disk } => PendingRename::Base { disk: DiskId(disk) },
    })
}

fn read_damage(d: DamageForm) -> Option<DamageRecord> {
    let object = match d.object {
        ObjectForm::Run { disk, number } => Object::Run { disk: DiskId(disk), number: FileNumber(number) },
        ObjectForm::Base { disk } => Object::Base { disk: DiskId(disk) },
        ObjectForm::Definition { number } => Object::Definition { number: FileNumber(number) },
        ObjectForm::Blob { hash } => Object::Blob { hash: parse_hex32(&hash)? },
        ObjectForm::Overlay { failover, disk } => {
            Object::Overlay { failover: FileNumber(failover), disk: DiskId(disk) }
        }
        ObjectForm::Linkage { cut } => Object::Linkage { cut: cut.parse().ok()? },
    };
    Some(DamageRecord { object, what: d.what, covered: optional(d.covered, read_covered)? })
}

fn read_covered(c: CoveredForm) -> Option<Covered> {
    if c.extents.len() > COVERED_MAX {
        return None;
    }
    let extent = |(offset, len): (u64, u64)| offset.checked_add(len).map(|_| Extent::new(offset, len));
    Some(Covered { by: c.by.parse().ok()?, extents: all(c.extents, extent)? })
}

/// Brings the body of an older version up to the present one; `None` if it is no such body.
pub(super) fn upgrade(version: u32, body: &str) -> Option<ManifestForm> {
    if version == file::VERSION {
        return serde_json::from_str(body).ok();
    }
    let mut body: Map<String, Value> = serde_json::from_str(body).ok()?;
    if version == 1 {
        // Seeds, imports and damage that is covered were unknown to it.
        let mut add = |name: &str, value: Value| body.insert(name.to_owned(), value).is_none();
        let fresh = add("seeds", Value::Array(Vec::new())) && add("waiting", Value::Null);
        let damage = body.get_mut("damage")?.as_array_mut()?;
        let covered = |d: &mut Value| Some(d.as_object_mut()?.insert("covered".to_owned(), Value::Null).is_none());
        if !fresh || !damage.iter_mut().all(|d| covered(d) == Some(true)) {
            return None;
        }
    }
    serde_json::from_value(Value::Object(body)).ok()
}

const CONSISTENCIES: [Consistency; 3] = [Consistency::Standard, Consistency::Application, Consistency::Planned];

fn consistency_name(c: Consistency) -> &'static str {
    match c {
        Consistency::Standard => "standard",
        Consistency::Application => "application",
        Consistency::Planned => "planned",
    }
}

const STAGES: [FailoverStage; 3] = [FailoverStage::Test, FailoverStage::Active, FailoverStage::Committed];

fn stage_name(s: FailoverStage) -> &'static str {
    match s {
        FailoverStage::Test => "test",
        FailoverStage::Active => "active",
        FailoverStage::Committed => "committed",
    }
}

fn hex(bytes: &[u8; 32]) -> String {
    CutDigest(*bytes).to_string()
}

fn digest(text: &str) -> Option<RunDigest> {
    parse_hex32(text).map(RunDigest)
}

#[cfg(test)]
pub(super) fn sample() -> Manifest {
    use understudy_model::VmId;
    let specs = [0, 1].map(|i| DiskSpec { id: DiskId(i), key: format!("serial-{i}"), size: 1 << 20 });
    let record = |n: u8, follows: u8, definition| CutRecord {
        cut: Cut {
            id: CutRef { generation: Generation(2), number: CutNumber(n.into()), digest: CutDigest([n; 32]) },
            parent: CutDigest([n - 1; 32]),
            taken_at: Timestamp(1000 * u64::from(n)),
            consistency: CONSISTENCIES[usize::from(n) % 3],
        },
        follows: CutDigest([follows; 32]),
        kept: n.is_multiple_of(2),
        locked: n == 2,
        definition,
        sizes: vec![(DiskId(0), 1 << 20), (DiskId(1), 1 << 20)],
    };
    let run = |disk, number, below| RunRecord {
        disk: DiskId(disk),
        cluster_bits: 12,
        digest: RunDigest([disk as u8; 32]),
        file: Some(RunFile { number: FileNumber(number), len: 4096, below }),
    };
    let stub = Stub { number: FileNumber(3), len: 512, digest: RunDigest([9; 32]) };
    let mut m = Manifest::new(VmId(uuid::Uuid::from_u128(7)), Generation(2), &specs);
    m.sequence = 41;
    m.next_file = 20;
    m.base = Some(Base {
        record: Some(record(2, 1, None)),
        files: vec![
            BaseFile { disk: DiskId(0), size: 1 << 20, stub: Some(stub) },
            BaseFile { disk: DiskId(1), size: 1 << 20, stub: None },
        ],
    });
    let unchanged = RunRecord { disk: DiskId(1), cluster_bits: 16, digest: RunDigest([8; 32]), file: None };
    m.links = vec![Link {
        record: record(4, 2, Some(FileNumber(5))),
        level: 1,
        runs: vec![run(0, 6, Below::Run(FileNumber(3))), unchanged],
    }];
    m.definitions = vec![DefinitionRecord {
        number: FileNumber(5),
        extension: "xml".to_owned(),
        len: 100,
        hash: [1; 32],
        blobs: vec![[2; 32]],
    }];
    m.failovers = vec![FailoverRecord { number: FileNumber(11), cut: CutDigest([4; 32]), stage: FailoverStage::Test }];
    m.pending = vec![
        PendingRename::Run { disk: DiskId(0), staged: FileNumber(10), name: FileNumber(6) },
        PendingRename::Base { disk: DiskId(1) },
    ];
    let objects = [
        Object::Run { disk: DiskId(0), number: FileNumber(6) },
        Object::Base { disk: DiskId(0) },
        Object::Definition { number: FileNumber(5) },
        Object::Blob { hash: [2; 32] },
        Object::Overlay { failover: FileNumber(11), disk: DiskId(0) },
        Object::Linkage { cut: CutDigest([4; 32]) },
    ];
    m.damage = objects.map(|object| DamageRecord { object, what: "bits flipped".to_owned(), covered: None }).into();
    let extents = vec![Extent::new(65_536, 65_536)];
    m.damage[1].covered = Some(Covered { by: CutDigest([4; 32]), extents });
    m
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manifest_reads_back_as_it_was_written() {
        let m = sample();
        assert_eq!(m.contradiction(), None);
        let text = serde_json::to_string(&write(&m)).unwrap();
        assert_eq!(read(serde_json::from_str(&text).unwrap()), Some(m));
    }

    #[test]
    fn what_is_not_of_this_version_is_refused() {
        let text = serde_json::to_string(&write(&sample())).unwrap();
        assert!(
            serde_json::from_str::<ManifestForm>(&text.replacen("\"sequence\"", "\"x\":1,\"sequence\"", 1)).is_err()
        );
        for (from, to) in [("\"planned\"", "\"other\""), ("\"xml\"", "\"../x\""), ("\"test\"", "\"real\"")] {
            let text = text.replacen(from, to, 1);
            assert!(serde_json::from_str(&text).ok().and_then(read).is_none(), "{to}");
        }
        let form = |initial| ManifestForm { initial, ..write(&sample()) };
        assert!(read(form(None)).is_some());
    }

    #[test]
    fn contradictions_are_noticed() {
        let broken = |f: fn(&mut Manifest)| {
            let mut m = sample();
            f(&mut m);
            m.contradiction()
        };
        assert!(broken(|m| m.links[0].record.follows = CutDigest([7; 32])).is_some());
        assert!(broken(|m| m.base = None).is_some());
        assert!(broken(|m| m.base.as_mut().unwrap().files[0].stub = None).is_some());
        assert!(broken(|m| m.definitions.clear()).is_some());
        assert!(broken(|m| m.failovers[0].cut = CutDigest([7; 32])).is_some());
        assert!(broken(|m| m.links[0].runs.truncate(1)).is_some());
        assert!(broken(|m| m.initial = Some(Vec::new())).is_some());
        assert!(broken(|m| m.disks.reverse()).is_some());
        assert!(broken(|m| m.disks.truncate(1)).is_some());
    }
}
