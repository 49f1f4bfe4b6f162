//! A primary in memory, and stores to send its cycles to.

use std::collections::BTreeMap;
use std::io;
use std::ops::ControlFlow;
use std::sync::Arc;

use understudy_model::{
    Consistency, Cut, CutDigest, CutNumber, CutRef, DiskId, DiskSpec, Extent, ExtentSet, Generation, PointId,
    SessionNumber, Timestamp, VmId,
};
use understudy_run::{
    Backing, BackingFormat, BatchWriter, ClusterKind, Decoder, Encoded, Encoder, Geometry, ReadError, Run, RunBuilder,
    RunDigester, RunParams, RunSource, cluster_hash, cut_digest, digest::CutHeader,
};
use understudy_store::files::{Files, MemFiles};
use understudy_store::{
    BASE_BLOCK, BaseBytes, BaseError, BaseReceiver, BlockClaim, CycleDisk, CycleError, CycleHeader, Definition, Import,
    ImportRun, NoCheckpoints, Session, Store, StoreOptions, UpkeepStep, VmStore,
};
use uuid::Uuid;

use crate::image;

pub const GRANULE: u64 = 4096;
/// 64 granules.
pub const DISK: u64 = 64 * GRANULE;

/// One image per disk.
pub type Images = Vec<Vec<u8>>;

pub fn vm_id() -> VmId {
    VmId(Uuid::from_u128(0x5707_e000_0000_4000_8000_0000_0000_0001))
}

pub fn spec(disk: u16, size: u64) -> DiskSpec {
    DiskSpec { id: DiskId(disk), key: format!("serial-{disk}"), size }
}

pub fn unpaced(_bytes: u64) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

/// No reserve and no floor: tests of full disks set their own.
pub fn options() -> StoreOptions {
    StoreOptions { reserve: 0, receive_floor: 0, checkpoints: Arc::new(NoCheckpoints) }
}

pub fn open(files: &(impl Files + Clone + 'static)) -> Store {
    Store::open(Arc::new(files.clone()), options()).unwrap()
}

/// A cycle on its way.
#[derive(Clone)]
pub struct Cycle {
    pub header: CycleHeader,
    pub batches: Vec<(DiskId, Vec<u8>)>,
    pub digest: CutDigest,
    pub images: Images,
    pub definition: Option<Definition>,
}

/// The sending side: disks, what changed since the last acknowledged cut, and the numbers.
#[derive(Clone)]
pub struct Primary {
    pub vm: VmId,
    pub generation: Generation,
    pub session: SessionNumber,
    pub number: CutNumber,
    pub parent: CutDigest,
    pub specs: Vec<DiskSpec>,
    pub images: Images,
    dirty: Vec<ExtentSet>,
    pub cluster_bits: u32,
    pub definition: Option<Definition>,
}

impl Primary {
    pub fn new(sizes: &[u64]) -> Self {
        Self {
            vm: vm_id(),
            generation: Generation(1),
            session: SessionNumber(0),
            number: CutNumber(0),
            parent: CutDigest::ZERO,
            specs: sizes.iter().enumerate().map(|(i, size)| spec(i as u16, *size)).collect(),
            images: sizes.iter().map(|size| vec![0; *size as usize]).collect(),
            dirty: vec![ExtentSet::new(); sizes.len()],
            cluster_bits: 12,
            definition: None,
        }
    }

    /// Two disks of 64 granules.
    pub fn small() -> Self {
        Self::new(&[DISK, DISK])
    }

    /// Writes what a guest might: text that says where and when it was written, or zeros for stamp 0.
    pub fn write(&mut self, disk: usize, offset: u64, len: u64, stamp: u64) {
        let len = len.min(self.images[disk].len() as u64 - offset);
        let range = offset as usize..(offset + len) as usize;
        match stamp {
            0 => self.images[disk][range].fill(0),
            _ => {
                let text = format!("disk {disk} offset {offset} stamp {stamp:016x} ");
                let bytes: Vec<u8> = text.bytes().cycle().take(len as usize).collect();
                self.images[disk][range].copy_from_slice(&bytes);
            }
        }
        self.dirty[disk].insert(Extent::new(offset, len));
    }

    pub fn grow(&mut self, disk: usize, size: u64) {
        self.images[disk].resize(size as usize, 0);
        self.specs[disk].size = size;
    }

    pub fn add_disk(&mut self, size: u64) -> usize {
        self.specs.push(spec(self.specs.len() as u16, size));
        self.images.push(vec![0; size as usize]);
        self.dirty.push(ExtentSet::new());
        self.specs.len() - 1
    }

    pub fn remove_disk(&mut self, disk: usize) {
        self.specs.remove(disk);
        self.images.remove(disk);
        self.dirty.remove(disk);
    }

    /// Freezes the disks. Each call makes a cut of a new number.
    pub fn cut(&mut self) -> Cycle {
        self.number = self.number.next();
        let header = CycleHeader {
            generation: self.generation,
            number: self.number,
            parent: self.parent,
            taken_at: Timestamp(1_000 * self.number.0),
            consistency: Consistency::Standard,
            disks: self.specs.iter().map(|s| CycleDisk { spec: s.clone(), cluster_bits: self.cluster_bits }).collect(),
        };
        let (mut batches, mut runs) = (Vec::new(), Vec::new());
        for (i, spec) in self.specs.iter().enumerate() {
            let (parts, digest) = encode(&self.images[i], &self.dirty[i], spec.size, self.cluster_bits);
            batches.extend(parts.into_iter().map(|batch| (spec.id, batch)));
            runs.push((spec.id, spec.size, digest));
        }
        let says = CutHeader {
            vm: self.vm,
            generation: header.generation,
            number: header.number,
            taken_at: header.taken_at,
            consistency: header.consistency,
        };
        let digest = cut_digest(self.parent, &says, &runs);
        Cycle { header, batches, digest, images: self.images.clone(), definition: self.definition.clone() }
    }

    /// Writes the whole disks out, in two runs each: what a copy of the running VM had, and what changed meanwhile. The
    /// cut is the parent of the next cycle.
    pub fn export(&mut self) -> MemoryImport {
        self.number = self.number.next();
        let (mut disks, mut runs) = (Vec::new(), Vec::new());
        for (i, spec) in self.specs.iter().enumerate() {
            let mut before = self.images[i].clone();
            before[..9_000].fill(0xee);
            let whole: ExtentSet = [Extent::new(0, spec.size)].into_iter().collect();
            let since: ExtentSet = [Extent::new(0, 9_000)].into_iter().collect();
            let (batches, _) = encode(&before, &whole, spec.size, 16);
            let first = build(spec.size, 16, None, &batches);
            let (batches, digest) = encode(&self.images[i], &since, spec.size, 12);
            let below = Backing::new("000001.qcow2", BackingFormat::Qcow2).unwrap();
            disks.push(vec![build(spec.size, 12, Some(below), &batches), first]);
            runs.push((spec.id, spec.size, digest));
        }
        let (generation, number) = (self.generation, self.number);
        let (taken_at, consistency) = (Timestamp(1_000 * number.0), Consistency::Standard);
        let says = CutHeader { vm: self.vm, generation, number, taken_at, consistency };
        let digest = cut_digest(CutDigest::ZERO, &says, &runs);
        let id = CutRef { generation, number, digest };
        self.acknowledged(digest);
        let cut = Cut { id, parent: CutDigest::ZERO, taken_at, consistency };
        let blob = b"a boot image".to_vec();
        let blobs = vec![*blake3::hash(&blob).as_bytes()];
        let definition = Some(Definition { extension: "json".into(), bytes: b"exported".to_vec(), blobs });
        MemoryImport { vm: self.vm, cut, disks: self.specs.clone(), runs: disks, definition, blob }
    }

    /// The replica has the cycle: what it carried is no longer dirty. Nothing was written since the cut.
    pub fn acknowledged(&mut self, digest: CutDigest) {
        self.parent = digest;
        self.dirty.iter_mut().for_each(|d| *d = ExtentSet::new());
    }

    /// Makes the place and sends the whole disks.
    pub fn start(&mut self, store: &Store) -> Arc<VmStore> {
        let vm = store.create_vm(self.vm, self.generation, &self.specs).unwrap();
        let session = self.admit(&vm);
        self.send_base(&vm, session);
        vm
    }

    pub fn admit(&mut self, vm: &VmStore) -> Session {
        self.session = self.session.next();
        vm.admit_session(self.generation, self.session).unwrap()
    }

    pub fn send_base(&mut self, vm: &Arc<VmStore>, session: Session) {
        let base = vm.begin_base(session, CutNumber(1)).unwrap();
        for (spec, image) in self.specs.iter().zip(&self.images) {
            base.write(spec.id, 0, BaseBytes::Data(image)).unwrap();
        }
        base.sync().unwrap();
        self.dirty.iter_mut().for_each(|d| *d = ExtentSet::new());
    }

    /// Cuts, sends and acknowledges.
    pub fn replicate(&mut self, vm: &Arc<VmStore>, keep: bool) -> Cut {
        let session = self.admit(vm);
        let cycle = self.cut();
        let cut = send(vm, session, &cycle, keep).unwrap();
        self.acknowledged(cut.id.digest);
        cut
    }
}

pub fn send(vm: &Arc<VmStore>, session: Session, cycle: &Cycle, keep: bool) -> Result<Cut, CycleError> {
    let mut receiver = vm.begin_cycle(session, cycle.header.clone())?;
    for (disk, batch) in &cycle.batches {
        receiver.push(*disk, batch)?;
    }
    receiver.seal(cycle.digest, keep, cycle.definition.as_ref())
}

/// An export that lies in memory.
#[derive(Clone)]
pub struct MemoryImport {
    pub vm: VmId,
    pub cut: Cut,
    pub disks: Vec<DiskSpec>,
    /// For each disk its run files, newest first.
    pub runs: Vec<Vec<Vec<u8>>>,
    pub definition: Option<Definition>,
    pub blob: Vec<u8>,
}

impl Import for MemoryImport {
    fn vm(&self) -> VmId {
        self.vm
    }

    fn cut(&self) -> &Cut {
        &self.cut
    }

    fn disks(&self) -> &[DiskSpec] {
        &self.disks
    }

    fn runs(&self, disk: DiskId) -> Result<Vec<ImportRun>, ReadError> {
        let index = self.disks.iter().position(|d| d.id == disk).unwrap();
        let open = |bytes: &Vec<u8>| Run::open(Arc::new(bytes.clone()) as Arc<dyn RunSource + Send + Sync>);
        self.runs[index].iter().map(open).collect()
    }

    fn definition(&self) -> io::Result<Option<Definition>> {
        Ok(self.definition.clone())
    }

    fn blob_len(&self, _hash: &[u8; 32]) -> io::Result<u64> {
        Ok(self.blob.len() as u64)
    }

    fn blob(&self, _hash: &[u8; 32], take: &mut dyn FnMut(&[u8]) -> io::Result<()>) -> io::Result<()> {
        self.blob.chunks(5).try_for_each(take)
    }
}

fn build(size: u64, cluster_bits: u32, backing: Option<Backing>, batches: &[Vec<u8>]) -> Vec<u8> {
    let mut builder = RunBuilder::new(Vec::new(), RunParams { virtual_size: size, cluster_bits, backing }).unwrap();
    let mut decoder = Decoder::new().unwrap();
    batches.iter().for_each(|batch| builder.accept_batch(batch, &mut decoder).unwrap());
    builder.finish().unwrap().1
}

/// Offers a piece of a disk and sends what of it is wanted; how many blocks that were.
pub fn offer(base: &BaseReceiver, disk: DiskId, offset: u64, piece: &[u8]) -> Result<usize, BaseError> {
    let block = BASE_BLOCK as usize;
    let claims: Vec<_> = piece
        .chunks(block)
        .zip((offset..).step_by(block))
        .map(|(bytes, at)| BlockClaim::of(at, &[bytes, &vec![0; block - bytes.len()]].concat()))
        .collect();
    let wanted = base.offer(disk, offset, &claims)?;
    for (i, bytes) in piece.chunks(block).enumerate().filter(|(i, _)| wanted[*i]) {
        base.write(disk, offset + (i * block) as u64, BaseBytes::Data(bytes))?;
    }
    Ok(wanted.iter().filter(|wanted| **wanted).count())
}

/// A disk's changed clusters as batches, small ones so that there are several.
fn encode(image: &[u8], dirty: &ExtentSet, size: u64, bits: u32) -> (Vec<Vec<u8>>, understudy_run::RunDigest) {
    let geometry = Geometry::new(size, bits).unwrap();
    let (mut writer, mut digester) = (BatchWriter::new(geometry, 20_000), RunDigester::new(geometry));
    let mut encoder = Encoder::new(1).unwrap();
    let (mut batches, cluster) = (Vec::new(), 1u64 << bits);
    for extent in dirty.aligned(cluster, u64::MAX).iter() {
        for address in (extent.offset..extent.end()).step_by(cluster as usize).filter(|a| *a < size) {
            let mut raw = vec![0; cluster as usize];
            let end = (address + cluster).min(size) as usize;
            raw[..end - address as usize].copy_from_slice(&image[address as usize..end]);
            let encoded = encoder.encode(&raw);
            let kind = match encoded {
                Encoded::Zero => ClusterKind::Zero,
                _ => ClusterKind::Data(cluster_hash(address, &raw)),
            };
            digester.push(address, kind).unwrap();
            writer.push_encoded(address, encoded, &raw).unwrap();
            if writer.is_full() {
                batches.extend(writer.take());
            }
        }
    }
    batches.extend(writer.take());
    (batches, digester.finish())
}

/// Carries out upkeep until nothing is left to do; the number of steps.
pub fn upkeep(vm: &VmStore) -> usize {
    let mut steps = 0;
    while vm.upkeep(&mut unpaced).unwrap() != UpkeepStep::Idle {
        steps += 1;
        assert!(steps < 10_000, "upkeep comes to an end");
    }
    steps
}

/// A point's disks as a reader sees them that shares no code with the store.
pub fn images_of(files: &MemFiles, vm: &VmStore, point: PointId) -> Images {
    let chains = vm.chain(point).unwrap();
    let read = |path: &str| files.content(path).unwrap_or_else(|err| panic!("{path}: {err}"));
    chains
        .iter()
        .map(|chain| {
            let top = &chain.files[0];
            let path = top.path.strip_prefix("/memory").unwrap().to_str().unwrap();
            let mut bytes = if top.is_raw { read(path) } else { image::read_qcow2(&read, path) };
            bytes.resize(chain.size as usize, 0);
            bytes
        })
        .collect()
}

/// A point's disks as the store reads them, in uneven pieces.
pub fn images_read(vm: &Arc<VmStore>, point: PointId) -> Images {
    let reader = vm.open_point(point).unwrap();
    let disks: Vec<_> = reader.disks().to_vec();
    disks
        .into_iter()
        .map(|(disk, size)| {
            let mut disk = reader.disk(disk).unwrap();
            let mut bytes = vec![0; size as usize];
            bytes.chunks_mut(70_000).enumerate().for_each(|(i, piece)| disk.read_at(i as u64 * 70_000, piece).unwrap());
            bytes
        })
        .collect()
}

/// What must be true of a replica: exactly these cuts, each whole.
pub fn assert_points(files: &MemFiles, vm: &Arc<VmStore>, expected: &BTreeMap<CutDigest, Images>) {
    let found: Vec<_> = vm.points().iter().map(|p| p.cut.id.digest).collect();
    assert_eq!(found.len(), expected.len(), "points {found:?} instead of {:?}", expected.keys());
    for (digest, images) in expected {
        assert!(found.contains(digest), "{digest} is missing");
        assert!(images_of(files, vm, digest.point()) == *images, "{digest} is not what it was");
    }
}

/// Staging and disk directories hold nothing that the manifest does not name.
pub fn assert_no_leftovers(files: &MemFiles, vm: &VmStore) {
    let prefix = format!("{}/", vm.id());
    let named: Vec<_> = vm
        .points()
        .iter()
        .filter_map(|p| vm.chain(p.cut.point()).ok())
        .flatten()
        .flat_map(|c| c.files)
        .map(|f| f.path.strip_prefix("/memory").unwrap().to_str().unwrap().to_owned())
        .collect();
    for path in files.tree() {
        let Some(inner) = path.strip_prefix(&prefix) else { continue };
        assert!(!inner.ends_with(".new"), "{path}");
        if inner.starts_with("staging/") {
            let begun = vm.base_positions().is_some() || !vm.seeds().is_empty();
            assert!(begun && inner.contains("-base."), "{path}");
        }
        let shown = vm.report().links < 2 && vm.report().awaited.is_none();
        if inner.starts_with("disk-") && inner.ends_with(".qcow2") && shown {
            assert!(named.contains(&path), "{path} is no part of any chain");
        }
    }
}

/// A manifest said to be of another version, with its body changed.
pub fn of_version(manifest: &[u8], version: u32, change: impl FnOnce(&str) -> String) -> String {
    let text = String::from_utf8(manifest.to_vec()).unwrap();
    let body = change(text.split_once("\"body\":").unwrap().1.strip_suffix('}').unwrap());
    let mut hasher = blake3::Hasher::new_derive_key("understudy store manifest v1");
    hasher.update(&version.to_le_bytes()).update(body.as_bytes());
    let hash = hasher.finalize().to_hex();
    format!(r#"{{"format":"understudy-store","version":{version},"blake3":"{hash}","body":{body}}}"#)
}
