//! What a session's data goes through: decode, check, write, seal; on a thread of its own while data flows.
//!
//! The thread begins with the first work and ends when a cycle is sealed or nothing came for a while, so that hundreds
//! of idle sessions cost no threads. The queue to it is short: when the disk is slow, the source feels it.
//!
//! Invariant: an acknowledgement is sent only after the store has returned from sealing.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use understudy_engine::primary::Failure;
use understudy_model::{CutNumber, DiskId, ErrorKind, ReturnCode, SessionNumber, Timestamp, VmId};
use understudy_run::{Decoder, Stored, cluster_hash};
use understudy_store::{
    BaseBytes, BaseMode, BaseReceiver, BlobReceiver, BlockClaim, Comparison, CycleDisk, CycleHeader, CycleReceiver,
};
use understudy_wire::Message;
use understudy_wire::bulk::{BaseRecord, Coding};
use understudy_wire::message::offer::Claim;
use understudy_wire::message::{
    self, BaseBegin, BasePositions, BaseSync, Blobs, CompareBegin, CycleAcked, CycleBegin, CycleEnd, Offer, OfferParts,
    Position, Wanted, WantedParts, convert,
};

use super::connection::refused;
use super::place::Place;
use crate::channel::Sender;
use crate::primary::failure::{bug, failure};

/// Work waiting for the thread: bulk frames of at most 1.5 MiB each.
const QUEUE: usize = 4;
/// Time without work after which the thread ends.
const IDLE: Duration = Duration::from_secs(5);

/// Something a session brought.
pub enum Work {
    /// Begin or go on with an initial replication; with it, the other replicas whose blocks a seeded one may borrow.
    BaseBegin(BaseBegin, Vec<VmId>),
    /// Begin or go on with a comparison.
    CompareBegin(CompareBegin),
    /// Which of these blocks differ?
    Offer(Offer),
    /// Which of these parts of blocks differ?
    OfferParts(OfferParts),
    /// Data of it.
    Base(DiskId, Vec<BaseRecord>),
    /// Make it durable.
    BaseSync(BaseSync),
    /// Begin a cycle.
    CycleBegin(Box<CycleBegin>),
    /// Data of it.
    Batch(DiskId, Bytes),
    /// Seal it.
    CycleEnd(CycleEnd),
    /// Forget it.
    CycleAbandon,
    /// Which of these blobs are missing?
    Blobs(Blobs),
    /// Data of one.
    Blob([u8; 32], u64, Bytes),
}

/// The way in.
pub struct Intake {
    state: Arc<Mutex<State>>,
    queue: Option<mpsc::Sender<Work>>,
    thread: Option<JoinHandle<()>>,
}

impl Intake {
    /// For one session.
    pub fn new(place: Arc<Place>, session: SessionNumber, sender: Arc<Sender>) -> Self {
        let state = State {
            place,
            session,
            sender,
            base: None,
            comparison: None,
            cycle: None,
            frames: 0,
            blobs: Vec::new(),
            gave_up: false,
        };
        Self { state: Arc::new(Mutex::new(state)), queue: None, thread: None }
    }

    /// Hands work over, waiting while the queue is full.
    pub async fn put(&mut self, work: Work) -> Result<(), ()> {
        let work = match &self.queue {
            Some(queue) => match queue.send(work).await {
                Ok(()) => return Ok(()),
                Err(mpsc::error::SendError(work)) => work,
            },
            None => work,
        };
        self.join().await;
        let (queue, works) = mpsc::channel(QUEUE);
        let (state, runtime) = (self.state.clone(), Handle::current());
        self.thread = Some(tokio::task::spawn_blocking(move || run(&state, works, &runtime)));
        let sent = queue.send(work).await.map_err(|_| ());
        self.queue = Some(queue);
        sent
    }

    async fn join(&mut self) {
        if let Some(thread) = self.thread.take() {
            // A panic of the thread poisoned the state; the next work finds that out.
            let _ = thread.await;
        }
    }

    /// Waits until everything handed over is dealt with, then gives up what is unfinished. A copy goes on from what
    /// arrived: it is made durable.
    pub async fn finish(mut self) {
        self.queue = None;
        self.join().await;
        let state = self.state;
        // Syncs and removes files.
        let _ = tokio::task::spawn_blocking(move || end(&state)).await;
    }
}

fn run(state: &Mutex<State>, mut works: mpsc::Receiver<Work>, runtime: &Handle) {
    let Ok(mut state) = state.lock() else { return };
    let mut next = || runtime.block_on(async { tokio::time::timeout(IDLE, works.recv()).await.ok().flatten() });
    while let Some(work) = next() {
        let ends = matches!(work, Work::CycleEnd(_) | Work::CycleAbandon);
        state.handle(work, runtime);
        if ends {
            break;
        }
    }
    // What came in between the last look and now would be lost with the queue: take it before it closes.
    works.close();
    while let Ok(work) = works.try_recv() {
        state.handle(work, runtime);
    }
}

fn end(state: &Mutex<State>) {
    let Ok(mut state) = state.lock() else { return };
    (state.comparison, state.cycle) = (None, None);
    if let Some((_, base)) = state.base.take()
        && let Err(err) = base.sync()
    {
        tracing::info!(relationship = %state.place.id(), %err, "copy goes on from an older position");
    }
}

struct State {
    place: Arc<Place>,
    session: SessionNumber,
    sender: Arc<Sender>,
    base: Option<(CutNumber, BaseReceiver)>,
    comparison: Option<Comparison>,
    cycle: Option<Cycle>,
    /// Bulk frames of the transfer under way.
    frames: u64,
    blobs: Vec<(BlobProgress, BlobReceiver)>,
    /// The source was told that this session goes no further; whatever still comes is thrown away.
    gave_up: bool,
}

struct Cycle {
    receiver: CycleReceiver,
    definition: Option<message::Definition>,
}

struct BlobProgress {
    hash: [u8; 32],
    next: u64,
    len: u64,
}

impl State {
    fn handle(&mut self, work: Work, runtime: &Handle) {
        if self.gave_up {
            return;
        }
        let answer = match self.work(work, runtime) {
            Ok(None) => return,
            Ok(Some(answer)) => answer,
            Err(failure) => {
                tracing::info!(
                    relationship = %self.place.id(), session = %self.session, cause = %failure.refusal, "data refused"
                );
                self.gave_up = true;
                (self.base, self.comparison, self.cycle) = (None, None, None);
                refused(&failure)
            }
        };
        // If the source is gone, the next handshake tells it.
        let _ = runtime.block_on(self.sender.message(&answer));
    }

    fn work(&mut self, work: Work, runtime: &Handle) -> Result<Option<Message>, Failure> {
        match work {
            Work::BaseBegin(begin, lenders) => self.begin_base(&begin, lenders).map(Some),
            Work::CompareBegin(begin) => self.begin_comparison(&begin).map(Some),
            Work::Offer(offer) => self.answer_offer(&offer).map(Some),
            Work::OfferParts(offer) => self.answer_parts(&offer).map(Some),
            Work::Base(disk, records) => self.take_base(disk, &records),
            Work::BaseSync(sync) => self.sync_base(&sync).map(Some),
            Work::CycleBegin(begin) => self.begin_cycle(*begin),
            Work::Batch(disk, batch) => self.take_batch(disk, &batch),
            Work::CycleEnd(end) => self.end_cycle(&end, runtime).map(Some),
            Work::CycleAbandon => {
                self.cycle = None;
                Ok(None)
            }
            Work::Blobs(blobs) => self.missing(&blobs).map(Some),
            Work::Blob(name, offset, bytes) => self.take_blob(name, offset, &bytes),
        }
    }

    fn begin_base(&mut self, begin: &BaseBegin, lenders: Vec<VmId>) -> Result<Message, Failure> {
        let attempt = CutNumber(begin.attempt);
        self.base = None;
        let disks = convert::disks(&begin.disks).map_err(|e| failure(ErrorKind::Refused, &e))?;
        let mode = if begin.seeded { BaseMode::Compare { lenders } } else { BaseMode::Fresh };
        let receiver = self.place.begin_base(self.session, attempt, &disks, &mode)?;
        let positions = receiver.positions();
        self.base = Some((attempt, receiver));
        self.frames = 0;
        Ok(base_positions(attempt, positions))
    }

    fn take_base(&mut self, disk: DiskId, records: &[BaseRecord]) -> Result<Option<Message>, Failure> {
        let (_, receiver) = self.base.as_ref().ok_or_else(|| bug("base data came without its beginning"))?;
        let mut decoder = Decoder::new().map_err(|e| failure(e.kind(), &e))?;
        let mut buffer = Vec::new();
        for record in records {
            let bytes = match record.coding {
                Coding::Zero => BaseBytes::Zeros(record.len),
                _ => BaseBytes::Data(open_record(record, &mut decoder, &mut buffer)?),
            };
            receiver.write(disk, record.offset, bytes).map_err(|e| failure(e.kind(), &e))?;
        }
        self.frames += 1;
        Ok(None)
    }

    fn sync_base(&mut self, sync: &BaseSync) -> Result<Message, Failure> {
        let (attempt, receiver) = self.base.as_ref().ok_or_else(|| bug("a sync came without a copy"))?;
        // Data goes on while the source waits for this: more than it names may have come before it.
        if sync.frames > self.frames {
            return Err(lost_frames(sync.frames, self.frames));
        }
        let positions = receiver.sync().map_err(|e| failure(e.kind(), &e))?;
        Ok(base_positions(*attempt, positions))
    }

    fn begin_comparison(&mut self, begin: &CompareBegin) -> Result<Message, Failure> {
        self.comparison = None;
        let against = convert::digest("cut digest", &begin.against).map_err(|e| failure(ErrorKind::Refused, &e))?;
        self.comparison = Some(self.place.begin_comparison(self.session, against)?);
        Ok(Message::Done)
    }

    /// In a copy, what is equal counts as copied from here on; in a comparison nothing is changed.
    fn answer_offer(&mut self, offer: &Offer) -> Result<Message, Failure> {
        let claims = offer.claims().map_err(|e| failure(ErrorKind::Refused, &e))?;
        let claims: Vec<BlockClaim> = claims.into_iter().map(claim).collect();
        let disk = DiskId(offer.disk);
        let wanted = match (&self.base, &self.comparison) {
            (Some((_, base)), _) => base.offer(disk, offer.offset, &claims).map_err(|e| failure(e.kind(), &e))?,
            (None, Some(comparison)) => {
                let differing = comparison.differing(disk, offer.offset, &claims);
                differing.map_err(|e| failure(e.kind(), &e))?
            }
            (None, None) => return Err(bug("an offer came without its beginning")),
        };
        Ok(Message::Wanted(Wanted::new(&wanted)))
    }

    fn answer_parts(&mut self, offer: &OfferParts) -> Result<Message, Failure> {
        let comparison = self.comparison.as_ref().ok_or_else(|| bug("an offer came without its comparison"))?;
        let blocks = offer.parts().map_err(|e| failure(ErrorKind::Refused, &e))?;
        let mask = |(offset, parts)| comparison.differing_parts(DiskId(offer.disk), offset, &parts);
        let masks = blocks.into_iter().map(mask).collect::<Result<_, _>>();
        Ok(Message::WantedParts(WantedParts { masks: masks.map_err(|e| failure(e.kind(), &e))? }))
    }

    fn begin_cycle(&mut self, begin: CycleBegin) -> Result<Option<Message>, Failure> {
        // The copy's files are published by the cycle: nobody may hold them open for writing then.
        self.base = None;
        self.comparison = None;
        self.cycle = None;
        let header = self.header(&begin)?;
        let receiver = self.place.begin_cycle(self.session, header)?;
        self.cycle = Some(Cycle { receiver, definition: begin.definition });
        self.frames = 0;
        Ok(None)
    }

    fn header(&self, begin: &CycleBegin) -> Result<CycleHeader, Failure> {
        let unreadable = |e: convert::ConvertError| failure(ErrorKind::Refused, &e);
        let known = self.place.disks();
        let mut disks = Vec::with_capacity(begin.disks.len());
        for disk in &begin.disks {
            let id = DiskId(disk.id);
            convert::check_disk_size(id, disk.size).map_err(unreadable)?;
            let spec = known.iter().find(|d| d.id == id).ok_or_else(|| {
                let reason = format!("{id} is not a disk of this replica");
                Failure::new(ErrorKind::Refused, ReturnCode::InvalidParameter, reason)
            })?;
            if spec.size != disk.size {
                let reason = format!("{id} has {} bytes on the primary and {} here", disk.size, spec.size);
                return Err(Failure::new(ErrorKind::Refused, ReturnCode::InvalidState, reason));
            }
            disks.push(CycleDisk { spec: spec.clone(), cluster_bits: u32::from(disk.cluster_bits) });
        }
        Ok(CycleHeader {
            generation: self.place.generation(),
            number: CutNumber(begin.number),
            parent: convert::digest("parent", &begin.parent).map_err(unreadable)?,
            taken_at: Timestamp(begin.taken_at),
            consistency: convert::consistency(&begin.consistency).map_err(unreadable)?,
            disks,
        })
    }

    fn take_batch(&mut self, disk: DiskId, batch: &Bytes) -> Result<Option<Message>, Failure> {
        let cycle = self.cycle.as_mut().ok_or_else(|| bug("cycle data came without its beginning"))?;
        cycle.receiver.push(disk, batch).map_err(|e| failure(e.kind(), &e))?;
        self.frames += 1;
        Ok(None)
    }

    fn end_cycle(&mut self, end: &CycleEnd, runtime: &Handle) -> Result<Message, Failure> {
        let cycle = self.cycle.take().ok_or_else(|| bug("a cycle ended without its beginning"))?;
        if end.frames != self.frames {
            return Err(lost_frames(end.frames, self.frames));
        }
        let digest = convert::digest("digest", &end.digest).map_err(|e| failure(ErrorKind::Refused, &e))?;
        let cut = self.place.seal(self.session, cycle.receiver, digest, cycle.definition, runtime)?;
        Ok(Message::CycleAcked(CycleAcked { number: cut.id.number.0, digest: cut.id.digest.to_string() }))
    }

    fn missing(&mut self, blobs: &Blobs) -> Result<Message, Failure> {
        self.blobs.clear();
        let mut missing = Vec::new();
        for blob in &blobs.blobs {
            let hash = understudy_model::id::parse_hex32(&blob.hash).ok_or_else(|| {
                Failure::new(ErrorKind::Refused, ReturnCode::InvalidParameter, "a blob's name is no hash")
            })?;
            if let Some(receiver) = self.place.begin_blob(hash, blob.len)? {
                self.blobs.push((BlobProgress { hash, next: 0, len: blob.len }, receiver));
                missing.push(blob.clone());
            }
        }
        Ok(Message::Missing(Blobs { blobs: missing }))
    }

    fn take_blob(&mut self, name: [u8; 32], offset: u64, bytes: &Bytes) -> Result<Option<Message>, Failure> {
        let unasked =
            || Failure::new(ErrorKind::Refused, ReturnCode::InvalidParameter, "a blob came that nobody asked for");
        let index = self.blobs.iter().position(|(b, _)| b.hash == name && b.next == offset).ok_or_else(unasked)?;
        let (progress, receiver) = &mut self.blobs[index];
        receiver.push(bytes).map_err(|e| failure(e.kind(), &e))?;
        progress.next += bytes.len() as u64;
        if progress.next >= progress.len {
            let (_, receiver) = self.blobs.swap_remove(index);
            receiver.finish().map_err(|e| failure(e.kind(), &e))?;
        }
        Ok(None)
    }
}

fn claim(claim: Claim) -> BlockClaim {
    match claim {
        Claim::Zero => BlockClaim::Zero,
        Claim::Hash(hash) => BlockClaim::Hash(hash),
    }
}

fn base_positions(attempt: CutNumber, positions: Vec<(DiskId, u64)>) -> Message {
    let positions = positions.into_iter().map(Position::from).collect();
    Message::BasePositions(BasePositions { attempt: attempt.0, positions })
}

fn lost_frames(sent: u64, received: u64) -> Failure {
    let reason = format!("{sent} parts of the transfer were sent and {received} arrived");
    Failure::new(ErrorKind::Retry, ReturnCode::Failed, reason)
}

/// Decodes a record and compares it with the hash that was made where it was read.
fn open_record<'a>(
    record: &'a BaseRecord,
    decoder: &mut Decoder,
    buffer: &'a mut Vec<u8>,
) -> Result<&'a [u8], Failure> {
    let bytes: &[u8] = match record.coding {
        Coding::Plain => &record.stored,
        _ => {
            buffer.resize(record.len as usize, 0);
            decoder.decode(Stored::Compressed, &record.stored, buffer).map_err(|e| failure(ErrorKind::Corrupt, &e))?;
            buffer
        }
    };
    if cluster_hash(record.offset, bytes).0 == record.hash {
        return Ok(bytes);
    }
    let reason = format!("{} bytes at {} arrived damaged", record.len, record.offset);
    Err(Failure::new(ErrorKind::Corrupt, ReturnCode::Failed, reason))
}
