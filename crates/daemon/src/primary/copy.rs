//! The copy of an initial replication: the live disks, from a durable position on, into the target's staging.
//!
//! What is read here is some state each part of a disk had since tracking began; the first cycle makes it consistent.
//! Every few seconds the target is asked to make what it has durable. The copy does not wait for that: positions come
//! back while data flows.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use tokio::task::JoinHandle;
use understudy_engine::primary::{Failure, Progress};
use understudy_hypervisor::driver::{DiskReader, Machine};
use understudy_model::{CutNumber, DiskId, DiskSpec, Extent};
use understudy_run::{Encoded, cluster_hash};
use understudy_wire::bulk::{BaseWriter, Coding};
use understudy_wire::limits::BASE_RECORD_MAX;
use understudy_wire::message::{BaseBegin, BasePositions, BaseSync, Disk, Position};
use understudy_wire::{FrameKind, Message};

use super::encode::{Effort, encoder};
use super::failure::{bug, driver};
use super::offer::{ask, prepare, windows};
use super::pieces::{Jobs, Piece, STATUS_WINDOW, split};
use super::session::{Session, unexpected};
use super::throttle::Budget;

/// Jobs under way at once.
const JOBS_AT_ONCE: usize = 4;
/// Bytes of the disks after which the target is asked to make them durable: what the target's crash costs at most. A
/// broken connection costs less, since the target then makes durable what it has.
const SYNC_BYTES: u64 = 64 << 20;
/// Time after which the target is asked in any case.
const SYNC_EVERY: Duration = Duration::from_secs(1);
/// Offers of a seeded copy prepared ahead.
const OFFERS_AHEAD: usize = 2;
/// Holes are cut at 64 KiB: the replica keeps a checksum for each such block of its base, and takes whole ones.
const HOLE_UNIT: u64 = 64 << 10;

/// A copy to be made.
pub struct Copy<'a> {
    /// Names the span of change tracking it rests on.
    pub attempt: CutNumber,
    /// The disks.
    pub disks: &'a [DiskSpec],
    /// Whether to compress.
    pub compression: bool,
    /// Whether the target holds something like the disks already, so that only what differs is sent.
    pub is_seeded: bool,
    /// Told how far it is.
    pub progress: &'a (dyn Fn(Progress) + Send + Sync),
}

/// Copies everything and sees it durable on the target.
pub async fn copy_base(
    session: &Arc<Session>,
    machine: &dyn Machine,
    copy: &Copy<'_>,
    effort: &Arc<Effort>,
    budget: &Budget,
) -> Result<(), Failure> {
    let disks: Vec<Disk> = copy.disks.iter().map(Disk::from).collect();
    let begin = Message::BaseBegin(BaseBegin { attempt: copy.attempt.0, disks, seeded: copy.is_seeded });
    let durable = positions(session.request(&begin).await?, copy.attempt)?;
    let total = copy.disks.iter().map(|d| d.size).sum();
    let mut feed = Feed {
        session,
        copy,
        effort,
        budget,
        frames: 0,
        since_sync: 0,
        last_sync: Instant::now(),
        sent: copy.disks.iter().map(|d| (d.id, position_of(&durable, d))).collect(),
        total,
        reported: Instant::now(),
    };
    feed.report(true);
    for spec in copy.disks {
        feed.copy_disk(machine, spec).await?;
    }
    let answer = session.request(&feed.sync_request()).await?;
    let durable = positions(answer, copy.attempt)?;
    feed.report(true);
    let is_whole = copy.disks.iter().all(|d| position_of(&durable, d) == d.size);
    if is_whole { Ok(()) } else { Err(bug("the target did not make the whole copy durable")) }
}

fn positions(answer: Message, attempt: CutNumber) -> Result<Vec<Position>, Failure> {
    match answer {
        Message::BasePositions(BasePositions { attempt: a, positions }) if a == attempt.0 => Ok(positions),
        other => Err(unexpected(&other)),
    }
}

fn position_of(positions: &[Position], disk: &DiskSpec) -> u64 {
    positions.iter().find(|p| p.disk == disk.id.0).map_or(0, |p| p.offset.min(disk.size))
}

struct Feed<'a> {
    session: &'a Arc<Session>,
    copy: &'a Copy<'a>,
    effort: &'a Arc<Effort>,
    budget: &'a Budget,
    frames: u64,
    since_sync: u64,
    last_sync: Instant,
    /// Up to where each disk was sent without a gap.
    sent: Vec<(DiskId, u64)>,
    total: u64,
    reported: Instant,
}

/// A job's records, ready to be sent.
struct Packet {
    payloads: Vec<Bytes>,
    end: u64,
}

impl Feed<'_> {
    async fn copy_disk(&mut self, machine: &dyn Machine, spec: &DiskSpec) -> Result<(), Failure> {
        let mut at = self.position(spec.id);
        if at >= spec.size {
            return Ok(());
        }
        let reader = machine.read_live(spec).await.map_err(|e| driver(&e))?;
        if self.copy.is_seeded {
            return self.copy_differing(&*reader, spec, at).await;
        }
        while at < spec.size {
            let window = Extent::new(at, STATUS_WINDOW.min(spec.size - at));
            let mut jobs = Jobs::default();
            for piece in split(&*reader, window, HOLE_UNIT).await? {
                jobs.push(piece, BASE_RECORD_MAX as u64);
            }
            self.send_jobs(&*reader, spec, jobs.finish()).await?;
            at = window.end();
        }
        Ok(())
    }

    /// Offers the disk from `from` on, and sends what the target wants of it.
    async fn copy_differing(&mut self, reader: &dyn DiskReader, spec: &DiskSpec, from: u64) -> Result<(), Failure> {
        let budget = self.budget;
        for group in windows(from, spec.size) {
            let offers: Vec<_> = group.into_iter().map(|window| prepare(reader, spec.id, window, budget)).collect();
            let mut offers = stream::iter(offers).buffered(OFFERS_AHEAD);
            while let Some((window, offer)) = offers.try_next().await? {
                let wanted = ask(self.session, offer, spec.size).await?;
                self.send_wanted(reader, spec, wanted).await?;
                self.advance(spec.id, window.end())?;
                self.report(false);
            }
        }
        Ok(())
    }

    async fn send_wanted(
        &mut self,
        reader: &dyn DiskReader,
        spec: &DiskSpec,
        wanted: Vec<Extent>,
    ) -> Result<(), Failure> {
        let mut jobs = Jobs::default();
        for extent in wanted {
            jobs.push(Piece::Read(extent), BASE_RECORD_MAX as u64);
        }
        self.send_jobs(reader, spec, jobs.finish()).await?;
        if self.is_sync_due() {
            let request = self.sync_request();
            positions(self.session.request(&request).await?, self.copy.attempt)?;
        }
        Ok(())
    }

    async fn send_jobs(
        &mut self,
        reader: &dyn DiskReader,
        spec: &DiskSpec,
        jobs: Vec<Vec<Piece>>,
    ) -> Result<(), Failure> {
        let (effort, budget, compression) = (self.effort, self.budget, self.copy.compression);
        let work = |job| pack_job(reader, spec.id, job, compression, effort, budget);
        let packed: Vec<_> = jobs.into_iter().map(work).collect();
        let mut packed = stream::iter(packed).buffered(JOBS_AT_ONCE);
        // The last request for durability, while it is outstanding: a task of its own, since the connection is shared
        // and a request half sent must not wait for us.
        let mut syncing: Option<JoinHandle<Result<Message, Failure>>> = None;
        loop {
            let waiting = Instant::now();
            let Some(packet) = packed.try_next().await? else { break };
            self.effort.waited_for_encoding(waiting.elapsed());
            self.send_packet(spec.id, packet).await?;
            self.report(false);
            if syncing.as_ref().is_some_and(JoinHandle::is_finished) {
                self.settle(syncing.take()).await?;
            }
            if syncing.is_none() && self.is_sync_due() {
                let (session, request) = (self.session.clone(), self.sync_request());
                syncing = Some(tokio::spawn(async move { session.request(&request).await }));
            }
        }
        self.settle(syncing).await
    }

    async fn settle(&self, syncing: Option<JoinHandle<Result<Message, Failure>>>) -> Result<(), Failure> {
        if let Some(request) = syncing {
            let answer = request.await.map_err(|_| bug("a request for durability panicked"))??;
            positions(answer, self.copy.attempt)?;
        }
        Ok(())
    }

    async fn send_packet(&mut self, disk: DiskId, packet: Packet) -> Result<(), Failure> {
        let waiting = Instant::now();
        for payload in packet.payloads {
            self.session.bulk(FrameKind::BaseData, payload).await?;
            self.frames += 1;
        }
        self.effort.waited_for_link(waiting.elapsed());
        self.advance(disk, packet.end)
    }

    fn advance(&mut self, disk: DiskId, end: u64) -> Result<(), Failure> {
        let sent = self.sent.iter_mut().find(|(d, _)| *d == disk);
        let (_, position) = sent.ok_or_else(|| bug("a disk is missing from the copy"))?;
        self.since_sync += end.saturating_sub(*position);
        *position = end;
        Ok(())
    }

    fn is_sync_due(&self) -> bool {
        self.since_sync >= SYNC_BYTES || self.last_sync.elapsed() >= SYNC_EVERY
    }

    fn sync_request(&mut self) -> Message {
        self.since_sync = 0;
        self.last_sync = Instant::now();
        let positions = self.sent.iter().map(|p| Position::from(*p)).collect();
        Message::BaseSync(BaseSync { frames: self.frames, positions })
    }

    fn position(&self, disk: DiskId) -> u64 {
        self.sent.iter().find(|(d, _)| *d == disk).map_or(0, |(_, at)| *at)
    }

    fn report(&mut self, is_due: bool) {
        if is_due || self.reported.elapsed() >= Duration::from_millis(250) {
            self.reported = Instant::now();
            let done = self.sent.iter().map(|(_, at)| at).sum();
            (self.copy.progress)(Progress { done, total: self.total });
        }
    }
}

async fn pack_job(
    reader: &dyn DiskReader,
    disk: DiskId,
    job: Vec<Piece>,
    compression: bool,
    effort: &Arc<Effort>,
    budget: &Budget,
) -> Result<Packet, Failure> {
    let _share = budget.job().await;
    let read = async |piece: &Piece| match piece {
        Piece::Zero(_) => Ok(Bytes::new()),
        Piece::Read(extent) => reader.read(*extent).await.map_err(|e| driver(&e)),
    };
    let data = futures::future::try_join_all(job.iter().map(read)).await?;
    let effort = effort.clone();
    let packing = move || pack(disk, &job, &data, compression, &effort);
    tokio::task::spawn_blocking(packing).await.map_err(|_| bug("packing a part of a disk panicked"))
}

fn pack(disk: DiskId, job: &[Piece], data: &[Bytes], compression: bool, effort: &Effort) -> Packet {
    let mut encoder = encoder(compression, effort);
    let mut writer = BaseWriter::new(disk);
    let mut payloads = Vec::with_capacity(2);
    for (piece, bytes) in job.iter().zip(data) {
        let Extent { offset, len } = piece.extent();
        let full = match piece {
            Piece::Zero(_) => writer.push(offset, len, Coding::Zero, [0; 32], &[]),
            Piece::Read(_) => match encoder.encode(bytes) {
                Encoded::Zero => writer.push(offset, len, Coding::Zero, [0; 32], &[]),
                Encoded::Compressed(packed) => {
                    writer.push(offset, len, Coding::Zstd, cluster_hash(offset, bytes).0, packed)
                }
                Encoded::Plain => writer.push(offset, len, Coding::Plain, cluster_hash(offset, bytes).0, bytes),
            },
        };
        payloads.extend(full);
    }
    payloads.extend(writer.finish());
    Packet { payloads, end: job.last().map_or(0, |p| p.extent().end()) }
}
