//! Sends a cycle: what the frozen maps hold, packed in the clusters that suit its shape.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use understudy_engine::primary::Failure;
use understudy_hypervisor::driver::{DiskReader, FrozenCut};
use understudy_model::{CutDigest, CutNumber, DiskId, DiskSpec, Extent, Generation, VmId};
use understudy_run::digest::{ClusterKind, CutHeader};
use understudy_run::geometry::Geometry;
use understudy_run::record::{BATCH_TARGET_MAX, BatchWriter};
use understudy_run::{ClusterHash, Encoded, RunDigest, RunDigester, choose_cluster_bits, cluster_hash, cut_digest};
use understudy_wire::message::{CycleBegin, CycleDisk, Definition, convert};
use understudy_wire::{FrameKind, Message, bulk};

use super::encode::{Effort, encoder};
use super::failure::{bug, driver, failure};
use super::pieces::{Jobs, Piece, split};
use super::session::Session;
use super::throttle::Budget;

/// Jobs of one transfer under way at once. With up to 256 pieces each, enough requests are in flight; a link that stalls holds back at most this many packed jobs.
const JOBS_AT_ONCE: usize = 4;

/// What a cycle is about.
pub struct Cycle<'a> {
    /// The VM.
    pub vm: VmId,
    /// Generation of the cut.
    pub generation: Generation,
    /// Number of the cut.
    pub number: CutNumber,
    /// Digest of the cut before.
    pub parent: CutDigest,
    /// The replicated disks.
    pub disks: &'a [DiskSpec],
    /// Whether to compress.
    pub compression: bool,
    /// The VM's definition, if the target should learn it now.
    pub definition: Option<Definition>,
}

/// What was sent.
pub struct Sent {
    /// Digest of the cut.
    pub digest: CutDigest,
    /// Bulk frames.
    pub frames: u64,
    /// Bytes of the guest that were read and carried over.
    pub changed: u64,
}

/// Streams the whole cycle and computes its digest. The target is not asked to seal it here.
pub async fn send_cycle(
    session: &Session,
    cut: &dyn FrozenCut,
    cycle: &Cycle<'_>,
    effort: &Arc<Effort>,
    budget: &Budget,
) -> Result<Sent, Failure> {
    let plans = plan(cut, cycle.disks)?;
    session.tell(&begin(cut, cycle, &plans)).await?;
    let mut stream = CycleStream { session, effort, budget, compression: cycle.compression, frames: 0, changed: 0 };
    let mut runs = Vec::with_capacity(plans.len());
    for plan in &plans {
        let digest = stream.send_disk(cut, plan).await?;
        runs.push((plan.disk, plan.geometry.virtual_size(), digest));
    }
    cut.ensure_intact().await.map_err(|e| driver(&e))?;
    let header = CutHeader {
        vm: cycle.vm,
        generation: cycle.generation,
        number: cycle.number,
        taken_at: cut.taken_at(),
        consistency: cut.consistency(),
    };
    let digest = cut_digest(cycle.parent, &header, &runs);
    Ok(Sent { digest, frames: stream.frames, changed: stream.changed })
}

/// One disk's part of the cycle.
struct DiskPlan {
    disk: DiskId,
    geometry: Geometry,
}

fn plan(cut: &dyn FrozenCut, disks: &[DiskSpec]) -> Result<Vec<DiskPlan>, Failure> {
    let mut plans = Vec::with_capacity(disks.len());
    for spec in disks {
        let dirty = cut.dirty(spec.id).ok_or_else(|| bug("a replicated disk is missing from the cut"))?;
        let bits = choose_cluster_bits(dirty, spec.size);
        let geometry = Geometry::new(spec.size, bits).map_err(|e| failure(e.kind(), &e))?;
        plans.push(DiskPlan { disk: spec.id, geometry });
    }
    Ok(plans)
}

fn begin(cut: &dyn FrozenCut, cycle: &Cycle<'_>, plans: &[DiskPlan]) -> Message {
    let disk = |p: &DiskPlan| CycleDisk {
        id: p.disk.0,
        size: p.geometry.virtual_size(),
        cluster_bits: p.geometry.cluster_bits() as u8,
    };
    Message::CycleBegin(Box::new(CycleBegin {
        number: cycle.number.0,
        parent: cycle.parent.to_string(),
        taken_at: cut.taken_at().0,
        consistency: convert::consistency_word(cut.consistency()).to_owned(),
        disks: plans.iter().map(disk).collect(),
        definition: cycle.definition.clone(),
    }))
}

struct CycleStream<'a> {
    session: &'a Session,
    effort: &'a Arc<Effort>,
    budget: &'a Budget,
    compression: bool,
    frames: u64,
    changed: u64,
}

/// A job's clusters: what the digest covers, and the batch that carries them.
struct Batch {
    clusters: Vec<(u64, u64, ClusterKind)>,
    bytes: Vec<u8>,
    extents: Vec<Extent>,
}

impl CycleStream<'_> {
    async fn send_disk(&mut self, cut: &dyn FrozenCut, plan: &DiskPlan) -> Result<RunDigest, Failure> {
        let missing = || bug("a frozen disk has no reader");
        let reader = cut.reader(plan.disk).ok_or_else(missing)?;
        let dirty = cut.dirty(plan.disk).ok_or_else(missing)?;
        let clusters = dirty.aligned(plan.geometry.cluster_size(), plan.geometry.virtual_size());
        let mut digester = RunDigester::new(plan.geometry);
        // Jobs are planned in portions, so that a map of a million extents is not held twice.
        let extents: Vec<Extent> = clusters.iter().collect();
        for portion in extents.chunks(4096) {
            let jobs = self.plan_jobs(reader, portion, &plan.geometry).await?;
            let work = |job| self.pack(reader, job, plan.geometry);
            let packed: Vec<_> = jobs.into_iter().map(work).collect();
            let mut packed = stream::iter(packed).buffered(JOBS_AT_ONCE);
            let mut frames = self.frames;
            let mut changed = 0;
            loop {
                let waiting = Instant::now();
                let Some(batch) = packed.try_next().await? else { break };
                self.effort.waited_for_encoding(waiting.elapsed());
                for (address, count, kind) in &batch.clusters {
                    push(&mut digester, *address, *count, *kind).map_err(|e| failure(e.kind(), &e))?;
                }
                changed += batch.extents.iter().map(|e| e.len).sum::<u64>();
                let waiting = Instant::now();
                let payload = bulk::write_cycle(plan.disk, &batch.bytes);
                self.session.bulk(FrameKind::CycleData, payload).await?;
                self.effort.waited_for_link(waiting.elapsed());
                frames += 1;
                for extent in &batch.extents {
                    cut.done_with(plan.disk, *extent).await;
                }
            }
            drop(packed);
            self.frames = frames;
            self.changed += changed;
        }
        Ok(digester.finish())
    }

    async fn plan_jobs(
        &self,
        reader: &dyn DiskReader,
        extents: &[Extent],
        geometry: &Geometry,
    ) -> Result<Vec<Vec<Piece>>, Failure> {
        let mut jobs = Jobs::default();
        for extent in extents {
            for piece in split(reader, *extent, geometry.cluster_size()).await? {
                jobs.push(piece, super::pieces::JOB_BYTES);
            }
        }
        Ok(jobs.finish())
    }

    async fn pack(&self, reader: &dyn DiskReader, job: Vec<Piece>, geometry: Geometry) -> Result<Batch, Failure> {
        let _share = self.budget.job().await;
        let read = async |piece: &Piece| match piece {
            Piece::Zero(_) => Ok(Bytes::new()),
            Piece::Read(extent) => reader.read(*extent).await.map_err(|e| driver(&e)),
        };
        let data = futures::future::try_join_all(job.iter().map(read)).await?;
        let (effort, compression) = (self.effort.clone(), self.compression);
        let packing = move || pack(&job, &data, geometry, compression, &effort);
        tokio::task::spawn_blocking(packing).await.map_err(|_| bug("packing a batch panicked"))?
    }
}

fn push(
    d: &mut RunDigester,
    address: u64,
    count: u64,
    kind: ClusterKind,
) -> Result<(), understudy_run::digest::OrderError> {
    match kind {
        ClusterKind::Zero => d.push_zeros(address, count),
        ClusterKind::Data(hash) => d.push_data(address, &hash),
    }
}

/// Packs what was read into one batch.
fn pack(
    job: &[Piece],
    data: &[Bytes],
    geometry: Geometry,
    compression: bool,
    effort: &Effort,
) -> Result<Batch, Failure> {
    let mut encoder = encoder(compression, effort);
    let mut writer = BatchWriter::new(geometry, BATCH_TARGET_MAX);
    let mut clusters = Vec::new();
    let wrong = |e: understudy_run::digest::OrderError| failure(e.kind(), &e);
    let size = geometry.cluster_size() as usize;
    let mut padded = Vec::new();
    for (piece, bytes) in job.iter().zip(data) {
        let extent = piece.extent();
        if let Piece::Zero(_) = piece {
            let count = extent.len.div_ceil(geometry.cluster_size());
            writer.push_zeros(extent.offset, count).map_err(wrong)?;
            clusters.push((extent.offset, count, ClusterKind::Zero));
            continue;
        }
        if bytes.len() as u64 != extent.len {
            return Err(bug("a read returned another number of bytes than asked for"));
        }
        for (i, raw) in bytes.chunks(size).enumerate() {
            let address = extent.offset + (i * size) as u64;
            let raw = whole_cluster(raw, size, &mut padded);
            let encoded = encoder.encode(raw);
            let kind = match encoded {
                Encoded::Zero => ClusterKind::Zero,
                _ => ClusterKind::Data(hash(address, raw)),
            };
            writer.push_encoded(address, encoded, raw).map_err(wrong)?;
            clusters.push((address, 1, kind));
        }
    }
    let bytes = writer.take().unwrap_or_default();
    Ok(Batch { clusters, bytes, extents: job.iter().map(|p| p.extent()).collect() })
}

fn hash(address: u64, raw: &[u8]) -> ClusterHash {
    cluster_hash(address, raw)
}

/// The last cluster of a disk may be cut short by its end; it is padded with zeros.
fn whole_cluster<'a>(raw: &'a [u8], size: usize, padded: &'a mut Vec<u8>) -> &'a [u8] {
    if raw.len() == size {
        return raw;
    }
    padded.clear();
    padded.extend_from_slice(raw);
    padded.resize(size, 0);
    padded
}
