//! The lane of a relationship: its work, one step after another, in the order the engine asked for it.
//!
//! A step that is no longer wanted ends at its next safe place; the step after it begins only then. So a cut is always
//! released before the next one is taken, and maps are never dropped under a transfer. Steps take virtual time, and
//! the world goes on meanwhile.

use std::collections::VecDeque;

use understudy_engine::primary::{Event, Failure, Token};
use understudy_hypervisor::driver::{CutRequest, Error, ImageRecord, LostTracking, MapInventory, MapOwner};
use understudy_hypervisor::fake::{CutId, CutStep};
use understudy_model::{
    Consistency, CutDigest, CutNumber, DiskSpec, Generation, Millis, SessionNumber, Timestamp, VmId,
};
use understudy_wire::Message;

use super::copy::Copy;
use super::failure::{bug, driver, gone};
use super::points::Point;
use super::send::Send;
use super::session::Session;
use super::{Desk, Timer};
use crate::mutation::Mutation;
use crate::stage::{Alive, Stage};
use crate::world::Happening;

/// Something to do.
#[derive(Debug, Clone)]
pub enum Step {
    /// Begin tracking afresh.
    BeginTracking(Token, CutNumber),
    /// End tracking.
    EndTracking,
    /// Copy the base.
    CopyBase(Token, CutNumber, SessionNumber),
    /// Take a cut.
    TakeCut(Token, CutNumber, CutNumber, Consistency),
    /// Send what the cut holds.
    SendCycle(Token, CutNumber, CutDigest, SessionNumber),
    /// Remove maps.
    DropMaps(CutNumber),
    /// Unite maps.
    FoldMaps,
}

/// What a step needs to know about its relationship, as it was when the step was asked for.
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
    /// The images as they were at the last acknowledged cut.
    pub images: Vec<ImageRecord>,
}

/// A cut that is held open.
#[derive(Debug, Clone)]
pub struct Frozen {
    /// Its name in the VM.
    pub id: CutId,
    /// When it was taken, by the wall clock.
    pub taken_at: Timestamp,
    /// The images as they were.
    pub images: Vec<ImageRecord>,
}

/// A step with what belongs to it.
#[derive(Debug, Clone)]
struct Order {
    step: Step,
    facts: Facts,
    /// The lane's count of cancellations when it was put; a later one means that nobody wants it any more.
    wanted: u64,
}

/// What is being done.
enum Doing {
    Nothing,
    /// A step is about to have its effect.
    Due(Order),
    Copying(Box<Copy>),
    Sending(Box<Send>),
}

/// What a transfer does next.
pub enum Next {
    /// Goes on after a while.
    Again(Millis),
    /// Waits for an answer or for leave.
    Wait,
    /// Has ended.
    Done(Event),
}

/// See the module's description.
pub struct Lane {
    queue: VecDeque<Order>,
    doing: Doing,
    held: Option<Frozen>,
    cancellations: u64,
    /// Names the timer that counts.
    timer: u64,
    /// Whether what an earlier life left in the VM was taken out.
    is_tidy: bool,
    /// The images at the cut that was acknowledged last.
    images: Option<Vec<ImageRecord>>,
}

impl Lane {
    /// A lane with nothing to do.
    pub fn new() -> Self {
        Self {
            queue: VecDeque::new(),
            doing: Doing::Nothing,
            held: None,
            cancellations: 0,
            timer: 0,
            is_tidy: false,
            images: None,
        }
    }

    /// The images at the cut that was acknowledged just now.
    pub fn take_images(&mut self) -> Option<Vec<ImageRecord>> {
        self.images.take()
    }

    /// Puts a step behind those already there.
    pub fn put(&mut self, step: Step, facts: Facts, life: u32, stage: &mut Stage) {
        self.queue.push_back(Order { step, facts, wanted: self.cancellations });
        self.wake(life, stage);
    }

    /// What is under way is not wanted any more, nor what is queued of its kind.
    pub fn cancel(&mut self, desk: &mut Desk<'_>, life: u32) {
        self.cancellations += 1;
        match std::mem::replace(&mut self.doing, Doing::Nothing) {
            Doing::Copying(_) => {}
            Doing::Sending(send) => self.give_back(send.into_cut(), desk),
            other => self.doing = other,
        }
        self.wake(life, desk.stage);
    }

    fn give_back(&self, cut: Option<Frozen>, desk: &mut Desk<'_>) {
        if let Some(cut) = cut {
            desk.vm.release(cut.id);
        }
    }

    fn release(&mut self, desk: &mut Desk<'_>) {
        let held = self.held.take();
        self.give_back(held, desk);
    }

    fn wake(&mut self, life: u32, stage: &mut Stage) {
        if !matches!(self.doing, Doing::Nothing) {
            return;
        }
        let Some(order) = self.queue.pop_front() else { return };
        self.doing = Doing::Due(order);
        let pause = Millis(stage.chance.below(12));
        self.again(pause, life, stage);
    }

    fn again(&mut self, pause: Millis, life: u32, stage: &mut Stage) {
        self.timer += 1;
        stage.agenda.after(pause, Happening::Primary(life, Timer::Lane(self.timer)));
    }

    /// The next step, or the next piece of it, is due.
    pub fn on_timer(
        &mut self,
        timer: u64,
        desk: &mut Desk<'_>,
        session: Option<&mut Session>,
        life: u32,
    ) -> Alive<Option<Event>> {
        if timer != self.timer {
            return Ok(None);
        }
        match std::mem::replace(&mut self.doing, Doing::Nothing) {
            Doing::Nothing => Ok(None),
            Doing::Due(order) => self.perform(order, desk, session, life),
            transfer => {
                self.doing = transfer;
                self.go_on(desk, session, life)
            }
        }
    }

    /// The relationship is gone: the housekeeping that is left is done at once.
    pub fn finish(&mut self, desk: &mut Desk<'_>) -> Alive {
        let due = match std::mem::replace(&mut self.doing, Doing::Nothing) {
            Doing::Due(order) => Some(order),
            _ => None,
        };
        let rest: Vec<Order> = due.into_iter().chain(self.queue.drain(..)).collect();
        for order in rest {
            self.perform_one(order, desk, None)?;
        }
        self.release(desk);
        Ok(())
    }

    /// The target answered the transfer's question.
    pub fn on_answer(
        &mut self,
        answer: Result<Message, Failure>,
        desk: &mut Desk<'_>,
        session: Option<&mut Session>,
        life: u32,
    ) -> Alive<Option<Event>> {
        let next = match &mut self.doing {
            Doing::Copying(copy) => copy.on_answer(answer, desk),
            Doing::Sending(send) => send.on_answer(answer),
            _ => return Ok(None),
        };
        self.follow(next, desk, session, life)
    }

    /// The connection under the transfer is gone.
    pub fn on_lost(&mut self, failure: Failure, desk: &mut Desk<'_>, life: u32) -> Option<Event> {
        let event = match std::mem::replace(&mut self.doing, Doing::Nothing) {
            Doing::Copying(copy) => Some(copy.failed(failure)),
            Doing::Sending(send) => {
                let is_believed = desk.stage.makes(Mutation::LostAckBelieved);
                let event = if is_believed { send.believed() } else { send.failed(failure) };
                self.give_back(send.into_cut(), desk);
                Some(event)
            }
            other => {
                self.doing = other;
                None
            }
        };
        self.wake(life, desk.stage);
        event
    }

    /// The digest is durable: the cycle may be sealed.
    pub fn conclude(
        &mut self,
        token: Token,
        desk: &mut Desk<'_>,
        session: Option<&mut Session>,
        life: u32,
    ) -> Alive<Option<Event>> {
        let Doing::Sending(send) = &mut self.doing else { return Ok(None) };
        let next = match session {
            Some(session) => send.conclude(token, session, desk.stage),
            None => Next::Done(send.failed(gone())),
        };
        self.follow(next, desk, None, life)
    }

    fn go_on(&mut self, desk: &mut Desk<'_>, session: Option<&mut Session>, life: u32) -> Alive<Option<Event>> {
        let Some(session) = session else { return Ok(self.on_lost(gone(), desk, life)) };
        let next = match &mut self.doing {
            Doing::Copying(copy) => copy.go_on(desk, session)?,
            Doing::Sending(send) => send.go_on(desk, session)?,
            _ => return Ok(None),
        };
        self.follow(next, desk, Some(session), life)
    }

    fn follow(
        &mut self,
        next: Next,
        desk: &mut Desk<'_>,
        _session: Option<&mut Session>,
        life: u32,
    ) -> Alive<Option<Event>> {
        match next {
            Next::Again(pause) => {
                self.again(pause, life, desk.stage);
                Ok(None)
            }
            Next::Wait => Ok(match &mut self.doing {
                Doing::Sending(send) => {
                    let (event, cut) = send.computed();
                    self.give_back(cut, desk);
                    event
                }
                _ => None,
            }),
            Next::Done(event) => {
                if let Doing::Sending(send) = std::mem::replace(&mut self.doing, Doing::Nothing) {
                    self.images = Some(send.images().to_vec());
                    self.give_back(send.into_cut(), desk);
                }
                self.wake(life, desk.stage);
                Ok(Some(event))
            }
        }
    }

    fn perform(
        &mut self,
        order: Order,
        desk: &mut Desk<'_>,
        session: Option<&mut Session>,
        life: u32,
    ) -> Alive<Option<Event>> {
        let event = self.perform_one(order, desk, session)?;
        if matches!(self.doing, Doing::Nothing) {
            self.wake(life, desk.stage);
        } else {
            self.again(Millis(0), life, desk.stage);
        }
        Ok(event)
    }

    fn perform_one(
        &mut self,
        order: Order,
        desk: &mut Desk<'_>,
        session: Option<&mut Session>,
    ) -> Alive<Option<Event>> {
        let Order { step, facts, wanted } = order;
        self.tidy(desk, &facts);
        match step {
            Step::EndTracking => {
                self.release(desk);
                note("end tracking", desk.vm.end_tracking(&facts.owner), desk.stage);
                Ok(None)
            }
            Step::DropMaps(below) => {
                desk.stage.pass(Point::AckBeforeDrop)?;
                desk.vm.drop_maps(&facts.owner, below);
                desk.stage.pass(Point::AckDroppedMap)?;
                Ok(None)
            }
            Step::FoldMaps => {
                self.release(desk);
                desk.stage.pass(Point::AbortBeforeMerge)?;
                if desk.stage.makes(Mutation::MapsNotUnited) {
                    desk.vm.drop_maps(&facts.owner, CutNumber(u64::MAX));
                }
                note("unite maps", desk.vm.fold_maps(&facts.owner), desk.stage);
                Ok(None)
            }
            _ if wanted != self.cancellations => {
                self.release(desk);
                Ok(None)
            }
            Step::BeginTracking(token, first) => self.begin_tracking(token, first, &facts, desk).map(Some),
            Step::TakeCut(token, number, base, consistency) => {
                let request = CutRequest {
                    owner: facts.owner,
                    number,
                    base,
                    disks: facts.disks.clone(),
                    consistency,
                    scratch_limit: desk.stage.scratch_limit,
                    images: facts.images.clone(),
                    also: Default::default(),
                };
                self.take_cut(token, &request, &facts, desk).map(Some)
            }
            Step::CopyBase(token, attempt, number) => Ok(self.begin_copy(token, attempt, number, facts, desk, session)),
            Step::SendCycle(token, number, parent, wanted) => {
                Ok(self.begin_send(Send::begin(token, number, parent, facts), wanted, session))
            }
        }
    }

    fn tidy(&mut self, desk: &mut Desk<'_>, _facts: &Facts) {
        if !self.is_tidy {
            self.is_tidy = desk.vm.tidy().is_ok();
        }
    }

    fn begin_tracking(&mut self, token: Token, first: CutNumber, facts: &Facts, desk: &mut Desk<'_>) -> Alive<Event> {
        self.release(desk);
        desk.stage.pass(Point::BeforeMapAdd)?;
        let begun = desk.vm.begin_tracking(&facts.owner, &facts.disks, first);
        if begun.is_ok() {
            desk.stage.judge.tracking_begun(first);
        }
        desk.stage.pass(Point::AfterMapAdd)?;
        Ok(match begun {
            Ok(()) => Event::TrackingBegun { token },
            Err(err) => Event::TrackingFailed { token, failure: driver(&err) },
        })
    }

    fn take_cut(&mut self, token: Token, request: &CutRequest, facts: &Facts, desk: &mut Desk<'_>) -> Alive<Event> {
        self.release(desk);
        desk.stage.pass(Point::BeforeFreeze)?;
        for (point, step) in [(Point::NewMaps, CutStep::NewMaps), (Point::Instant, CutStep::Instant)] {
            if let Err(died) = desk.stage.pass(point) {
                // What it came to does not matter: whoever would learn of it is dead.
                let _ = desk.vm.cut_dying_after(request, step);
                return Err(died);
            }
        }
        let taken_at = desk.stage.primary_wall();
        let mut taken = desk.vm.cut(request);
        if taken.is_err() && desk.stage.makes(Mutation::LostTrackingIgnored) {
            // Begun anew as if nothing had been lost.
            let _ = desk.vm.begin_tracking(&request.owner, &request.disks, request.base);
            taken = desk.vm.cut(request);
        }
        match taken {
            Ok(id) => {
                desk.stage.say("primary", format_args!("cut {} frozen", request.number));
                desk.stage.judge.cut_taken(facts.generation, request.number, taken_at);
                let images = desk.vm.images(id).unwrap_or_default();
                self.held = Some(Frozen { id, taken_at, images });
                if desk.stage.makes(Mutation::MapDroppedEarly) {
                    desk.vm.drop_maps(&facts.owner, request.number);
                }
                desk.stage.pass(Point::FrozenBeforeRecord)?;
                Ok(Event::CutTaken { token })
            }
            Err(err) => {
                let failure = driver(&err);
                desk.stage.say("primary", format_args!("cut {} failed: {}", request.number, failure.refusal));
                Ok(Event::CutFailed { token, failure })
            }
        }
    }

    fn begin_copy(
        &mut self,
        token: Token,
        attempt: CutNumber,
        number: SessionNumber,
        facts: Facts,
        desk: &mut Desk<'_>,
        session: Option<&mut Session>,
    ) -> Option<Event> {
        let fail = |failure| Some(Event::BaseFailed { token, failure });
        if session.is_none_or(|s| s.number() != number) {
            return fail(gone());
        }
        let maps = desk.vm.maps(&facts.owner).map_err(|e| driver(&e));
        if let Err(failure) = maps.and_then(|maps| covers(&maps, &facts.disks, attempt)) {
            return fail(failure);
        }
        self.doing = Doing::Copying(Box::new(Copy::new(token, attempt, facts)));
        None
    }

    fn begin_send(&mut self, send: Send, wanted: SessionNumber, session: Option<&mut Session>) -> Option<Event> {
        let Some(cut) = self.held.take() else { return Some(send.failed(bug("there is no cut to send"))) };
        if session.is_none_or(|s| s.number() != wanted) {
            self.held = Some(cut);
            return Some(send.failed(gone()));
        }
        self.doing = Doing::Sending(Box::new(send.with(cut)));
        None
    }
}

/// Whether every disk's maps reach back to `base`.
fn covers(maps: &MapInventory, disks: &[DiskSpec], base: CutNumber) -> Result<(), Failure> {
    for spec in disks {
        let lost = match maps.disk(&spec.key) {
            Some(disk) => disk.covers(base).err(),
            None => Some(LostTracking::Missing),
        };
        if let Some(lost) = lost {
            return Err(driver(&Error::tracking(spec.key.clone(), lost)));
        }
    }
    Ok(())
}

/// Housekeeping that failed leaves maps in place, which is safe: the next cycle carries more than it must.
fn note(what: &str, result: Result<(), Error>, stage: &mut Stage) {
    if let Err(err) = result {
        stage.say("primary", format_args!("cannot {what}: {err}"));
    }
}
