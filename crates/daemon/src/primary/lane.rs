//! Does the work of one relationship, one step after another, in the order the engine asked for it.
//!
//! A step that is no longer wanted is told so and ends at its next safe place; the step after it begins only then. So
//! a cut is always released before the next one is taken, and maps are never dropped under a transfer.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use understudy_engine::primary::{Event, Failure, Progress, Token};
use understudy_hypervisor::driver::{CutRequest, Description, FrozenCut, ImageRecord, Machine, MapInventory, MapOwner};
use understudy_model::{
    Consistency, CutDigest, CutNumber, CutRef, DiskId, DiskSpec, ErrorKind, ExtentSet, Generation, ReturnCode,
    SessionNumber, Timestamp, VmId,
};
use understudy_wire::message::{Blob, Blobs, CycleAcked, CycleEnd, Definition};
use understudy_wire::{Message, bulk};

use super::compare::{Compare, compare};
use super::copy::{Copy, copy_base};
use super::encode::Effort;
use super::failure::{bug, chain, driver};
use super::ledger::Ledger;
use super::send::{Cycle, send_cycle};
use super::session::{Session, unexpected};
use super::throttle::Budget;

/// The language of definitions, as the wire names it.
pub const DEFINITION_FORMAT: &str = "understudy-machine";

/// Something to do.
pub enum Step {
    /// Begin tracking afresh.
    BeginTracking(Token, CutNumber),
    /// End tracking.
    EndTracking,
    /// Copy the base; by difference from what is there, if it is a seeded one.
    CopyBase {
        /// Names the outcome.
        token: Token,
        /// The attempt.
        attempt: CutNumber,
        /// Whether by difference.
        is_seeded: bool,
        /// Over this session.
        session: Arc<Session>,
    },
    /// Compare with the target's newest cut.
    Compare {
        /// Names the outcome.
        token: Token,
        /// The attempt.
        attempt: CutNumber,
        /// The cut.
        against: CutRef,
        /// Over this session.
        session: Arc<Session>,
    },
    /// Forget what comparisons found.
    ForgetComparison,
    /// Take a cut.
    TakeCut {
        /// Names the outcome.
        token: Token,
        /// The cut.
        number: CutNumber,
        /// What the maps must reach back to.
        must_cover: CutNumber,
        /// What to try for.
        consistency: Consistency,
        /// The comparison whose findings are carried as well.
        differing: Option<CutNumber>,
    },
    /// Send what the cut holds.
    SendCycle(Token, CutNumber, CutDigest, Arc<Session>),
    /// Remove maps.
    DropMaps(CutNumber),
    /// Unite maps.
    FoldMaps,
}

/// What a step needs to know about its relationship. Replaced as a whole when it changes.
#[derive(Debug, Clone)]
pub struct Facts {
    /// The VM.
    pub vm: VmId,
    /// Current generation.
    pub generation: Generation,
    /// Whose maps.
    pub owner: MapOwner,
    /// The replicated disks.
    pub disks: Vec<DiskSpec>,
    /// Whether to compress.
    pub compression: bool,
    /// The images as last recorded.
    pub images: Vec<ImageRecord>,
    /// Most scratch space of a cut.
    pub scratch_limit: u64,
}

/// What comes out of the lane.
pub enum Outcome {
    /// Something the engine should know.
    Event(Event),
    /// Tracking was begun afresh; this is where the images lie.
    Begun {
        /// The event.
        event: Event,
        /// The images.
        images: Vec<ImageRecord>,
    },
    /// A cycle was sent and may be sealed; this is to be recorded with its cut once that is what the replica holds.
    Computed {
        /// The event.
        event: Event,
        /// What belongs to the cut.
        cut: CutFacts,
    },
}

/// What is to be remembered of a cut, should the replica come to hold it.
#[derive(Debug, Clone)]
pub struct CutFacts {
    /// Which cut.
    pub number: CutNumber,
    /// The images at the cut.
    pub images: Vec<ImageRecord>,
    /// Bytes of the guest that were carried over.
    pub changed: u64,
    /// When the disks were frozen, by the wall clock.
    pub taken_at: Timestamp,
}

/// Where a definition and its blobs come from.
pub trait DefinitionSource: Send + Sync {
    /// The VM's present definition, if there is one.
    fn definition(&self) -> Option<Definition>;
    /// The bytes of one of its blobs.
    fn blob(&self, hash: &str) -> std::io::Result<Vec<u8>>;
}

/// A step with what belongs to it.
pub struct Order {
    /// What to do.
    pub step: Step,
    /// About what.
    pub facts: Facts,
    /// Cancelled when nobody wants the outcome any more.
    pub cancel: CancellationToken,
}

/// What a lane works with.
pub struct Tools {
    /// The VM.
    pub machine: Arc<dyn Machine>,
    /// Its definition.
    pub definitions: Arc<dyn DefinitionSource>,
    /// The host's memory for jobs.
    pub budget: Budget,
    /// Compression level.
    pub effort: Arc<Effort>,
    /// Where comparisons are noted.
    pub ledger: Ledger,
}

/// The lane of one relationship.
pub struct Lane {
    tools: Tools,
    outcomes: mpsc::UnboundedSender<Outcome>,
    conclusions: mpsc::UnboundedReceiver<Token>,
    held: Option<Box<dyn FrozenCut>>,
    /// The session that has been told the definition, and which one.
    told: Option<(SessionNumber, Definition)>,
}

/// The door to a lane.
#[derive(Clone)]
pub struct LaneHandle {
    orders: mpsc::UnboundedSender<Order>,
    conclusions: mpsc::UnboundedSender<Token>,
}

impl LaneHandle {
    /// Puts a step behind those already there.
    pub fn put(&self, order: Order) {
        // The lane ends only with its owner.
        let _ = self.orders.send(order);
    }

    /// Lets the cycle with this token be sealed.
    pub fn conclude(&self, token: Token) {
        let _ = self.conclusions.send(token);
    }
}

impl Lane {
    /// Starts a lane. It ends when the handle and all its clones are gone, releasing what it holds.
    pub fn start(tools: Tools, outcomes: mpsc::UnboundedSender<Outcome>) -> LaneHandle {
        let (orders, mut queue) = mpsc::unbounded_channel::<Order>();
        let (conclude, conclusions) = mpsc::unbounded_channel();
        let mut lane = Lane { tools, outcomes, conclusions, held: None, told: None };
        tokio::spawn(async move {
            while let Some(order) = queue.recv().await {
                lane.carry_out(order).await;
            }
            lane.release().await;
        });
        LaneHandle { orders, conclusions: conclude }
    }

    async fn carry_out(&mut self, order: Order) {
        let Order { step, facts, cancel } = order;
        match step {
            Step::EndTracking => {
                self.release().await;
                note("end tracking", self.tools.machine.end_tracking(&facts.owner).await);
            }
            Step::ForgetComparison => {
                if let Err(err) = self.tools.ledger.forget() {
                    tracing::debug!(cause = chain(&err), "what a comparison found stays until the next one");
                }
            }
            Step::DropMaps(below) => {
                note("drop maps", self.tools.machine.drop_maps(&facts.owner, below).await);
            }
            Step::FoldMaps => {
                self.release().await;
                note("unite maps", self.tools.machine.fold_maps(&facts.owner).await);
            }
            _ if cancel.is_cancelled() => self.release().await,
            Step::BeginTracking(token, first) => self.begin_tracking(token, first, &facts).await,
            Step::CopyBase { token, attempt, is_seeded, session } => {
                self.copy(token, attempt, is_seeded, &session, &facts, &cancel).await;
            }
            Step::Compare { token, attempt, against, session } => {
                self.compare(token, attempt, against, &session, &facts, &cancel).await;
            }
            Step::TakeCut { token, number, must_cover, consistency, differing } => {
                let request = request(&facts, number, must_cover, consistency);
                self.take_cut(token, request, differing, &cancel).await;
            }
            Step::SendCycle(token, number, parent, session) => {
                self.send(token, number, parent, &session, &facts, &cancel).await;
            }
        }
    }

    fn tell(&self, event: Event) {
        // The owner may be gone, then nobody needs to know.
        let _ = self.outcomes.send(Outcome::Event(event));
    }

    async fn release(&mut self) {
        if let Some(cut) = self.held.take() {
            note("release the cut", cut.release().await);
        }
    }

    async fn begin_tracking(&mut self, token: Token, first: CutNumber, facts: &Facts) {
        self.release().await;
        let machine = &self.tools.machine;
        note("tidy up", machine.tidy(&facts.owner).await);
        if let Err(err) = machine.begin_tracking(&facts.owner, &facts.disks, first).await {
            return self.tell(Event::TrackingFailed { token, failure: driver(&err) });
        }
        let images = match machine.describe().await {
            Ok(found) => images_of(&found, &facts.disks, first),
            // Should the VM be off at the first cut, that then waits until it is on.
            Err(err) => {
                tracing::debug!(cause = chain(&err), "where the images lie is not known yet");
                Vec::new()
            }
        };
        let _ = self.outcomes.send(Outcome::Begun { event: Event::TrackingBegun { token }, images });
    }

    async fn copy(
        &mut self,
        token: Token,
        attempt: CutNumber,
        is_seeded: bool,
        session: &Arc<Session>,
        facts: &Facts,
        cancel: &CancellationToken,
    ) {
        let progress = self.progress_of(token);
        let (disks, compression) = (&facts.disks[..], facts.compression);
        let copy = Copy { attempt, disks, compression, is_seeded, progress: &progress };
        let copying = async {
            let maps = self.tools.machine.maps(&facts.owner).await.map_err(|e| driver(&e))?;
            covers(&maps, &facts.disks, attempt)?;
            copy_base(session, &*self.tools.machine, &copy, &self.tools.effort, &self.tools.budget).await
        };
        let result = tokio::select! {
            result = copying => result,
            () = cancel.cancelled() => return,
        };
        self.tell(match result {
            Ok(()) => Event::BaseCopied { token },
            Err(failure) => Event::BaseFailed { token, failure },
        });
    }

    fn progress_of(&self, token: Token) -> impl Fn(Progress) + Send + Sync + use<> {
        let outcomes = self.outcomes.clone();
        move |progress| {
            let _ = outcomes.send(Outcome::Event(Event::BaseProgress { token, progress }));
        }
    }

    async fn compare(
        &mut self,
        token: Token,
        attempt: CutNumber,
        against: CutRef,
        session: &Arc<Session>,
        facts: &Facts,
        cancel: &CancellationToken,
    ) {
        let progress = self.progress_of(token);
        let job = Compare { attempt, against, disks: &facts.disks, ledger: &self.tools.ledger, progress: &progress };
        let comparing = async {
            let maps = self.tools.machine.maps(&facts.owner).await.map_err(|e| driver(&e))?;
            covers(&maps, &facts.disks, attempt)?;
            compare(session, &*self.tools.machine, &job, &self.tools.budget).await
        };
        let result = tokio::select! {
            result = comparing => result,
            () = cancel.cancelled() => return,
        };
        self.tell(match result {
            Ok(()) => Event::Compared { token },
            Err(failure) => Event::CompareFailed { token, failure },
        });
    }

    /// What the comparison of this attempt found.
    async fn found(&self, attempt: CutNumber, disks: &[DiskSpec]) -> Result<BTreeMap<DiskId, ExtentSet>, Failure> {
        let ledger = self.tools.ledger.clone();
        let found = tokio::task::spawn_blocking(move || ledger.load(attempt)).await;
        let found = found.map_err(|_| bug("reading a ledger panicked"))?.filter(|found| found.is_complete(disks));
        let lost = || {
            let reason = "what the comparison found is not known any more";
            Failure::new(ErrorKind::Resync, ReturnCode::Failed, reason)
        };
        Ok(found.ok_or_else(lost)?.disks.into_iter().map(|d| (d.disk, d.differing)).collect())
    }

    async fn take_cut(
        &mut self,
        token: Token,
        mut request: CutRequest,
        differing: Option<CutNumber>,
        cancel: &CancellationToken,
    ) {
        self.release().await;
        if let Some(attempt) = differing {
            match self.found(attempt, &request.disks).await {
                Ok(also) => request.also = also,
                Err(failure) => return self.tell(Event::CutFailed { token, failure }),
            }
        }
        // Not cut short: taking a cut has its own time limits, and is cleaner to undo than to interrupt.
        match self.tools.machine.cut(request).await {
            Ok(cut) => {
                if let Some(shortfall) = cut.shortfall() {
                    tracing::info!(shortfall, "the cut is less consistent than asked for");
                }
                self.held = Some(cut);
                if cancel.is_cancelled() {
                    return self.release().await;
                }
                self.tell(Event::CutTaken { token });
            }
            Err(err) => self.tell(Event::CutFailed { token, failure: driver(&err) }),
        }
    }

    async fn send(
        &mut self,
        token: Token,
        number: CutNumber,
        parent: CutDigest,
        session: &Arc<Session>,
        facts: &Facts,
        cancel: &CancellationToken,
    ) {
        let Some(cut) = self.held.take() else {
            let failure = bug("there is no cut to send");
            return self.tell(Event::CycleFailed { token, failure });
        };
        let (images, taken_at) = (cut.images().to_vec(), cut.taken_at());
        let before = session.bytes();
        let result = tokio::select! {
            result = self.stream(&*cut, number, parent, session, facts) => Some(result),
            () = cancel.cancelled() => None,
        };
        note("release the cut", cut.release().await);
        let Some(result) = result else { return };
        let outcome = match result {
            Ok(sent) => {
                let event = Event::CycleComputed { token, digest: sent.digest };
                let cut = CutFacts { number, images, changed: sent.changed, taken_at };
                let _ = self.outcomes.send(Outcome::Computed { event, cut });
                self.conclude(token, number, sent, session, cancel).await
            }
            Err(failure) => Err(failure),
        };
        match outcome {
            Ok(None) => {}
            Ok(Some(digest)) => {
                self.tell(Event::CycleAcked { token, digest, bytes: session.bytes() - before });
            }
            Err(failure) => self.tell(Event::CycleFailed { token, failure }),
        }
    }

    async fn stream(
        &mut self,
        cut: &dyn FrozenCut,
        number: CutNumber,
        parent: CutDigest,
        session: &Arc<Session>,
        facts: &Facts,
    ) -> Result<super::send::Sent, Failure> {
        let definition = self.news_of_definition(session).await?;
        let cycle = Cycle {
            vm: facts.vm,
            generation: facts.generation,
            number,
            parent,
            disks: &facts.disks,
            compression: facts.compression,
            definition,
        };
        send_cycle(session, cut, &cycle, &self.tools.effort, &self.tools.budget).await
    }

    /// Waits for leave, has the cycle sealed, and gives the digest the target computed. `None` if nobody wants it.
    async fn conclude(
        &mut self,
        token: Token,
        number: CutNumber,
        sent: super::send::Sent,
        session: &Session,
        cancel: &CancellationToken,
    ) -> Result<Option<CutDigest>, Failure> {
        loop {
            tokio::select! {
                leave = self.conclusions.recv() => match leave {
                    Some(given) if given == token => break,
                    Some(_) => {}
                    None => return Ok(None),
                },
                () = cancel.cancelled() => return Ok(None),
            }
        }
        let end = CycleEnd { number: number.0, frames: sent.frames, digest: sent.digest.to_string() };
        match session.request(&Message::CycleEnd(end)).await? {
            Message::CycleAcked(CycleAcked { number: n, digest }) if n == number.0 => {
                digest.parse().map(Some).map_err(|_| bug("the acknowledgement names no digest"))
            }
            other => Err(unexpected(&other)),
        }
    }

    /// The definition, if this session has not been told it yet; its blobs are sent ahead.
    async fn news_of_definition(&mut self, session: &Arc<Session>) -> Result<Option<Definition>, Failure> {
        let id = session.number();
        let Some(definition) = self.tools.definitions.definition() else { return Ok(None) };
        if self.told.as_ref().is_some_and(|(s, d)| *s == id && *d == definition) {
            return Ok(None);
        }
        if !definition.blobs.is_empty() {
            let asked = Message::Blobs(Blobs { blobs: definition.blobs.clone() });
            match session.request(&asked).await? {
                Message::Missing(missing) => {
                    for blob in &missing.blobs {
                        self.send_blob(session, blob).await?;
                    }
                }
                other => return Err(unexpected(&other)),
            }
        }
        self.told = Some((id, definition.clone()));
        Ok(Some(definition))
    }

    async fn send_blob(&self, session: &Session, blob: &Blob) -> Result<(), Failure> {
        let (definitions, hash) = (self.tools.definitions.clone(), blob.hash.clone());
        let read = tokio::task::spawn_blocking(move || definitions.blob(&hash)).await;
        let bytes = read.map_err(|_| bug("reading a boot image panicked"))?.map_err(|e| {
            let reason = format!("a boot image of the VM cannot be read: {}", chain(&e));
            Failure::new(ErrorKind::Operator, ReturnCode::FileNotFound, reason)
        })?;
        let name = understudy_model::id::parse_hex32(&blob.hash).ok_or_else(|| bug("a blob's name is no hash"))?;
        let chunk = 1 << 20;
        for (i, piece) in bytes.chunks(chunk).enumerate() {
            let payload = bulk::write_blob(name, (i * chunk) as u64, piece);
            session.blob(payload).await?;
        }
        Ok(())
    }
}

fn request(facts: &Facts, number: CutNumber, must_cover: CutNumber, consistency: Consistency) -> CutRequest {
    CutRequest {
        owner: facts.owner,
        number,
        base: must_cover,
        disks: facts.disks.clone(),
        consistency,
        scratch_limit: facts.scratch_limit,
        images: facts.images.clone(),
        also: Default::default(),
    }
}

/// Where the images of these disks lie, right after tracking began with map `first`.
fn images_of(found: &Description, disks: &[DiskSpec], first: CutNumber) -> Vec<ImageRecord> {
    let record = |spec: &DiskSpec| {
        let disk = found.disk(&spec.key)?;
        Some(ImageRecord {
            disk: spec.id,
            path: disk.path.clone()?,
            format: disk.format,
            stamp: None,
            map: Some(first),
            held: None,
        })
    };
    disks.iter().filter_map(record).collect()
}

/// Whether every disk's maps reach back to `base`.
fn covers(maps: &MapInventory, disks: &[DiskSpec], base: CutNumber) -> Result<(), Failure> {
    for spec in disks {
        let lost = match maps.disk(&spec.key) {
            Some(disk) => disk.covers(base).err(),
            None => Some(understudy_hypervisor::driver::LostTracking::Missing),
        };
        if let Some(lost) = lost {
            return Err(driver(&understudy_hypervisor::driver::Error::tracking(spec.key.clone(), lost)));
        }
    }
    Ok(())
}

/// Housekeeping that failed leaves maps in place, which is safe: the next cycle carries more than it must.
fn note(what: &'static str, result: Result<(), understudy_hypervisor::driver::Error>) {
    if let Err(err) = result {
        tracing::debug!(cause = chain(&err), what, "housekeeping in the hypervisor will be repeated");
    }
}
