//! One connection from a source: greeting, one request or a session, data.
//!
//! What may come when is decided by `wire::target`; whether it is let in by the engine's record. Data is put into a
//! queue and dealt with piece by piece, also after the connection has ended: what was taken in is not forgotten.

use understudy_engine::primary::Failure;
use understudy_model::{ErrorKind, Generation, Millis, RelationshipId, SessionNumber, Timestamp};
use understudy_store::{CreateError, Removal};
use understudy_wire::message::{self, Open, Opened, Position, Prepare, Refused, convert};
use understudy_wire::target::{Incoming, Target, choose_version};
use understudy_wire::{Decoder, Frame, Message, target};

use super::hub::{Active, Fault, Hub, outcome};
use super::intake::{Intake, Work};
use super::{Book, Durable, Timer, wake};
use crate::mutation::Mutation;
use crate::net::{ConnId, End};
use crate::primary::failure;
use crate::stage::{Alive, Stage};

/// Time a source has to greet.
pub const GREETING: Millis = Millis::from_secs(10);
/// Silence after which a connection is given up.
const SILENCE: Millis = Millis::from_secs(60);

/// See the module's description.
pub struct Connection {
    pub(super) id: ConnId,
    decoder: Decoder,
    machine: Target,
    pub(super) session: Option<SessionNumber>,
    pub(super) intake: Intake,
    is_greeted: bool,
    is_reading: bool,
    heard_at: Timestamp,
}

impl Connection {
    /// A connection that was just taken.
    pub fn new(id: ConnId, now: Timestamp) -> Self {
        Self {
            id,
            decoder: Decoder::new(),
            machine: Target::new(),
            session: None,
            intake: Intake::default(),
            is_greeted: false,
            is_reading: true,
            heard_at: now,
        }
    }
}

impl Hub {
    pub(super) fn on_bytes(&mut self, id: ConnId, bytes: &[u8], book: &mut Book, stage: &mut Stage) -> Alive {
        let Some(mut conn) = self.conns.remove(&id) else {
            stage.net.close(id, End::Listener, &mut stage.agenda);
            return Ok(());
        };
        conn.heard_at = stage.now();
        conn.decoder.buffer().extend_from_slice(bytes);
        while conn.is_reading {
            let goes_on = match conn.decoder.next_frame() {
                Ok(Some(frame)) => self.on_frame(&mut conn, frame, book, stage)?,
                Ok(None) => break,
                Err(err) => {
                    stage.say("replica", format_args!("{id}: {err}"));
                    false
                }
            };
            if !goes_on {
                self.end(&mut conn, stage);
            }
        }
        self.keep(conn, stage);
        Ok(())
    }

    /// Keeps a connection for as long as it is read or its data is being dealt with.
    pub(super) fn keep(&mut self, conn: Connection, stage: &mut Stage) {
        if conn.is_reading || !conn.intake.is_idle() {
            self.conns.insert(conn.id, conn);
            return;
        }
        if self.active.as_ref().is_some_and(|a| a.conn == conn.id) {
            self.active = None;
        }
        stage.net.close(conn.id, End::Listener, &mut stage.agenda);
    }

    fn end(&mut self, conn: &mut Connection, stage: &mut Stage) {
        conn.is_reading = false;
        stage.net.close(conn.id, End::Listener, &mut stage.agenda);
    }

    /// A newer session took over, or the session was ended here.
    pub(super) fn stop_reading(&mut self, id: ConnId, stage: &mut Stage) {
        if let Some(mut conn) = self.conns.remove(&id) {
            self.end(&mut conn, stage);
            self.keep(conn, stage);
        }
    }

    pub(super) fn on_closed(&mut self, id: ConnId, stage: &mut Stage) -> Alive {
        self.stop_reading(id, stage);
        Ok(())
    }

    pub(super) fn on_silence(&mut self, id: ConnId, stage: &mut Stage) -> Alive {
        let Some(conn) = self.conns.get(&id) else { return Ok(()) };
        let limit = if conn.is_greeted { SILENCE } else { GREETING };
        let silent = stage.now() - conn.heard_at;
        if conn.is_reading && silent >= limit {
            stage.say("replica", format_args!("{id} was silent for too long"));
            self.stop_reading(id, stage);
        } else {
            wake(stage, self.life, Millis(limit.0.saturating_sub(silent.0).max(1000)), Timer::Silence(id));
        }
        Ok(())
    }

    /// Deals with a frame; false ends the connection.
    fn on_frame(&mut self, conn: &mut Connection, frame: Frame, book: &mut Book, stage: &mut Stage) -> Alive<bool> {
        match conn.machine.accept(frame) {
            Ok(Incoming::Message(message)) => self.on_message(conn, message, book, stage),
            Ok(Incoming::Base(disk, records)) => Ok(self.feed(conn, Work::Base(disk, records), stage)),
            Ok(Incoming::Cycle(disk, batch)) => Ok(self.feed(conn, Work::Batch(disk, batch), stage)),
            Ok(Incoming::Blob(..) | Incoming::Carried(_)) => Ok(false),
            Err(err) => {
                stage.say("replica", format_args!("{}: {}", conn.id, failure::chain(&err)));
                if !conn.is_greeted {
                    self.refuse(conn, &failure::failure(ErrorKind::Refused, &err), stage);
                }
                Ok(false)
            }
        }
    }

    fn feed(&mut self, conn: &mut Connection, work: Work, stage: &mut Stage) -> bool {
        let is_first = conn.intake.put(work);
        if is_first {
            let pause = Millis(stage.chance.below(5));
            wake(stage, self.life, pause, Timer::Intake(conn.id));
        }
        true
    }

    fn on_message(
        &mut self,
        conn: &mut Connection,
        message: Message,
        book: &mut Book,
        stage: &mut Stage,
    ) -> Alive<bool> {
        let work = match message {
            Message::Hello(hello) => return Ok(self.greet(conn, &hello, stage)),
            Message::Ping(ping) => {
                self.tell(conn, &Message::Pong(ping), stage);
                return Ok(true);
            }
            Message::Test => {
                self.tell(conn, &Message::Done, stage);
                return Ok(true);
            }
            Message::Prepare(prepare) => {
                let prepared = outcome(self.prepare(&prepare, book, stage))?;
                return Ok(self.answer(conn, prepared.map(|()| Message::Done), stage));
            }
            Message::Open(open) => return self.open_session(conn, &open, book, stage),
            Message::Settings(settings) => {
                let changed = outcome(self.set_settings(&settings, book, stage))?;
                return Ok(self.answer(conn, changed.map(|()| Message::Done), stage));
            }
            Message::BaseBegin(begin) => Work::BaseBegin(begin),
            Message::BaseSync(sync) => Work::BaseSync(sync),
            Message::CycleBegin(begin) => Work::CycleBegin(begin),
            Message::CycleEnd(end) => Work::CycleEnd(end),
            Message::CycleAbandon(_) => Work::CycleAbandon,
            _ => return Ok(false),
        };
        Ok(self.feed(conn, work, stage))
    }

    fn greet(&mut self, conn: &mut Connection, hello: &message::Hello, stage: &mut Stage) -> bool {
        let Ok(version) = choose_version(hello) else { return false };
        let mut welcome = target::hello("understudy-sim", "replica");
        (welcome.version_min, welcome.version_max) = (version, version);
        conn.is_greeted = true;
        self.tell(conn, &Message::Welcome(welcome), stage);
        true
    }

    /// Answers, or turns the source away.
    fn answer(&mut self, conn: &Connection, answer: Result<Message, Failure>, stage: &mut Stage) -> bool {
        match answer {
            Ok(message) => {
                self.tell(conn, &message, stage);
                true
            }
            Err(failure) => {
                self.refuse(conn, &failure, stage);
                false
            }
        }
    }

    pub(super) fn tell(&self, conn: &Connection, message: &Message, stage: &mut Stage) {
        self.say(conn.id, message, conn.session.map_or(0, |s| s.0), stage);
    }

    pub(super) fn refuse(&self, conn: &Connection, failure: &Failure, stage: &mut Stage) {
        stage.say("replica", format_args!("{} refused: {:?}: {}", conn.id, failure.kind, failure.refusal));
        let Message::Refused(plain) = Message::refused(&failure.refusal, failure.kind) else {
            unreachable!("a refusal is made as a refusal")
        };
        let refused = Message::Refused(Refused {
            generation: failure.generation.map(|g| g.0),
            session: failure.session.map(|s| s.0),
            handed_back: failure.is_handed_back,
            ..plain
        });
        self.tell(conn, &refused, stage);
    }

    fn prepare(&mut self, prepare: &Prepare, book: &mut Book, stage: &mut Stage) -> Result<(), Fault> {
        let unreadable = |e: convert::ConvertError| failure::failure(ErrorKind::Refused, &e);
        let id = RelationshipId::try_from(prepare.relationship).map_err(unreadable)?;
        let disks = convert::disks(&prepare.disks).map_err(unreadable)?;
        let settings = (&prepare.settings).try_into().map_err(unreadable)?;
        let generation = Generation(prepare.generation);
        if let Some(durable) = &self.durable {
            let is_fresh = self.vm().is_some_and(|vm| vm.newest().is_none() && vm.report().disks == disks);
            if is_fresh && durable.record.id == id && durable.record.generation == generation {
                return Ok(());
            }
            let reason = format!("the host has a replica of VM {} already", id.vm);
            return Err(failure::refused(&reason).into());
        }
        let made = self.store.create_vm(id.vm, generation, &disks).map(drop);
        self.survive()?;
        if let Err(CreateError::Exists { .. }) = made {
            // A place that was made and never recorded: a crash came between. It holds nothing.
            let removed = self.store.remove(id.vm, Removal::DestroyPoints);
            self.survive()?;
            removed.map_err(|e| failure::failure(e.kind(), &e))?;
            return Err(failure::retry("a half-made place was in the way").into());
        }
        made.map_err(|e| failure::failure(e.kind(), &e))?;
        let record = understudy_engine::replica::Record::new(id, generation, settings);
        self.change(Durable { record, failover: None }, book, stage)
    }

    fn open_session(&mut self, conn: &mut Connection, open: &Open, book: &mut Book, stage: &mut Stage) -> Alive<bool> {
        let opened = match outcome(self.try_open(conn.id, open, book, stage))? {
            Ok(opened) => opened,
            Err(failure) => {
                self.refuse(conn, &failure, stage);
                return Ok(false);
            }
        };
        // The answer still bears no session; everything after it does.
        self.tell(conn, &Message::Opened(opened), stage);
        conn.machine.granted(open.session, false);
        conn.session = Some(SessionNumber(open.session));
        Ok(true)
    }

    fn try_open(&mut self, id: ConnId, open: &Open, book: &mut Book, stage: &mut Stage) -> Result<Opened, Fault> {
        let unreadable = |e: convert::ConvertError| failure::failure(ErrorKind::Bug, &e);
        let relationship = open.relationship.try_into().map_err(unreadable)?;
        let settings: understudy_model::Settings = (&open.settings).try_into().map_err(unreadable)?;
        let (generation, number) = (Generation(open.generation), SessionNumber(open.session));
        let durable = self.record(relationship)?;
        let admitted = match durable.record.admit(generation, number) {
            Err(_) if stage.makes(Mutation::AnyoneLetIn) && durable.record.failover.is_some() => {
                let session_last = number.max(durable.record.session_last.next());
                understudy_engine::replica::Record { session_last, ..durable.record.clone() }
            }
            admitted => admitted?,
        };
        let before = durable.record.clone();
        let next = Durable { record: admitted.with_settings(settings), ..durable.clone() };
        let vm = self.served()?;
        self.change(next, book, stage)?;
        // The store keeps a fence of its own; who is to be let in by mistake comes in under its generation.
        let is_fence_open = stage.makes(Mutation::AnyoneLetIn);
        let shown = if is_fence_open { generation.max(vm.report().generation) } else { generation };
        let session = vm.admit_session(shown, number);
        self.survive()?;
        let session = session.map_err(|e| failure::failure(e.kind(), &e))?;
        stage.judge.session_granted(&before, generation, number);
        stage.say("replica", format_args!("{id} is session {number} of generation {generation}"));
        let old = self.active.replace(Active { number, store: session, conn: id });
        if let Some(old) = old {
            self.stop_reading(old.conn, stage);
        }
        Ok(self.opened())
    }

    fn opened(&self) -> Opened {
        let vm = self.vm();
        let newest = vm.as_ref().and_then(|vm| vm.newest()).map(|cut| message::CutRef::from(&cut.id));
        let positions = vm.as_ref().and_then(|vm| vm.base_positions());
        let attempt = vm.as_ref().and_then(|vm| vm.base_attempt());
        let base = attempt.zip(positions).map(|(attempt, positions)| message::BasePositions {
            attempt: attempt.0,
            positions: positions.into_iter().map(Position::from).collect(),
        });
        let state = self.durable.as_ref().map(|d| d.record.state);
        Opened { newest, base, suspended: state == Some(understudy_model::State::Suspended) }
    }

    fn set_settings(&mut self, settings: &message::Settings, book: &mut Book, stage: &mut Stage) -> Result<(), Fault> {
        let settings = settings.try_into().map_err(|e: convert::ConvertError| failure::failure(ErrorKind::Bug, &e))?;
        let Some(durable) = &self.durable else { return Err(failure::retry("the replica is gone").into()) };
        let next = Durable { record: durable.record.with_settings(settings), ..durable.clone() };
        self.change(next, book, stage)
    }
}
