//! The owner of the relationship: holds the engine's state machine and carries its actions out in order.
//!
//! Making the record durable is a barrier: until it has succeeded nothing after it happens, and no other event is
//! looked at. A command is answered after everything it asked for has been carried out.

use std::collections::VecDeque;

use understudy_engine::primary::{Action, Actions, Command, Event, Record, Relationship, Report, Token};
use understudy_hypervisor::driver::{ImageRecord, MapOwner};
use understudy_model::{Millis, SessionNumber, Timestamp};
use understudy_wire::Message;
use understudy_wire::message::Settings;

use super::dial::{Dial, HANDSHAKE, Outcome, Wanted};
use super::failure::gone;
use super::lane::{Facts, Lane, Step};
use super::points::Point;
use super::session::{Asker, Heard, PING_EVERY, Session};
use super::{Answer, Desk, Timer};
use crate::coverage::Kind;
use crate::mutation::Mutation;
use crate::net::{Arrived, ConnId, End};
use crate::operator::name_of_command;
use crate::stage::Alive;
use crate::world::Happening;

/// Pause between attempts to write the record while the state directory refuses it.
const PERSIST_RETRY: Millis = Millis::from_secs(2);

/// Names a command, so that its answer is recognised.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ticket(pub u64);

enum Input {
    Event(Event),
    Command(Ticket, Command),
    Opened(Token, Box<Outcome>),
}

enum Todo {
    Act(Action),
    Answer(Ticket, Answer),
}

/// See the module's description.
pub struct Owner {
    life: u32,
    /// The images as they were at the last acknowledged cut.
    images: Vec<ImageRecord>,
    engine: Relationship,
    todo: VecDeque<Todo>,
    inbox: VecDeque<Input>,
    /// The record could not be written; everything waits.
    is_blocked: bool,
    dials: Vec<Dial>,
    /// The handshake whose outcome counts.
    opening: Option<Token>,
    session: Option<Session>,
    lane: Lane,
    deadline: Option<Timestamp>,
    is_gone: bool,
}

impl Owner {
    /// Takes the recorded relationship up.
    pub fn new(record: Record, images: Vec<ImageRecord>, life: u32, now: Timestamp, seed: u64) -> Self {
        Self {
            life,
            images,
            engine: Relationship::new(record, now, seed),
            todo: VecDeque::new(),
            inbox: VecDeque::new(),
            is_blocked: false,
            dials: Vec::new(),
            opening: None,
            session: None,
            lane: Lane::new(),
            deadline: None,
            is_gone: false,
        }
    }

    /// What the engine holds.
    pub fn record(&self) -> &Record {
        self.engine.record()
    }

    /// What an operator sees.
    pub fn report(&self, now: Timestamp) -> Report {
        self.engine.report(now)
    }

    /// Whether the relationship was removed.
    pub fn is_gone(&self) -> bool {
        self.is_gone
    }

    /// The first look around.
    pub fn begin(&mut self, desk: &mut Desk<'_>) -> Alive {
        self.tell(desk, Event::Tick)
    }

    /// An operator asks for something.
    pub fn ask(&mut self, desk: &mut Desk<'_>, ticket: Ticket, command: Command) -> Alive {
        self.inbox.push_back(Input::Command(ticket, command));
        self.pump(desk)
    }

    /// Something is due.
    pub fn on_timer(&mut self, desk: &mut Desk<'_>, timer: Timer) -> Alive {
        match timer {
            Timer::Deadline => {
                self.deadline = None;
                self.tell(desk, Event::Tick)
            }
            Timer::Lane(number) => {
                let event = self.lane.on_timer(number, desk, self.session.as_mut(), self.life)?;
                self.tell_all(desk, event)
            }
            Timer::Ping(conn) => self.ping(desk, conn),
            Timer::Handshake(conn) => self.give_up_handshake(desk, conn),
            Timer::Persist => {
                self.is_blocked = false;
                self.pump(desk)
            }
        }
    }

    /// Something came over a connection.
    pub fn on_arrival(&mut self, desk: &mut Desk<'_>, conn: ConnId, arrived: Arrived) -> Alive {
        if let Some(index) = self.dials.iter().position(|d| d.conn == conn) {
            if let Some(outcome) = self.dials[index].on_arrival(arrived, desk.stage) {
                let dial = self.dials.remove(index);
                if outcome.is_err() {
                    desk.stage.net.close(conn, End::Dialer, &mut desk.stage.agenda);
                }
                self.inbox.push_back(Input::Opened(dial.token, Box::new(outcome)));
                return self.pump(desk);
            }
            return Ok(());
        }
        if self.session.as_ref().is_none_or(|s| s.conn() != conn) {
            return Ok(());
        }
        match arrived {
            Arrived::Bytes(bytes) => {
                let Some(session) = &mut self.session else { return Ok(()) };
                let heard = session.hear(&bytes, desk.stage);
                self.on_heard(desk, heard)
            }
            _ => self.on_lost(desk),
        }
    }

    fn on_heard(&mut self, desk: &mut Desk<'_>, heard: Vec<Heard>) -> Alive {
        for heard in heard {
            match heard {
                Heard::Event(event) => self.tell(desk, event)?,
                Heard::Answer(answer) => {
                    let event = self.lane.on_answer(answer, desk, self.session.as_mut(), self.life)?;
                    self.tell_all(desk, event)?;
                }
                Heard::Lost => return self.on_lost(desk),
            }
        }
        Ok(())
    }

    /// The session's connection is gone: whoever waits on it and the engine learn it, in either order.
    fn on_lost(&mut self, desk: &mut Desk<'_>) -> Alive {
        let Some(session) = self.session.take() else { return Ok(()) };
        desk.stage.say("primary", format_args!("session {} is lost", session.number()));
        desk.stage.net.close(session.conn(), End::Dialer, &mut desk.stage.agenda);
        let failed = self.lane.on_lost(session.last_word(), desk, self.life).map(Input::Event);
        let lost = Some(Input::Event(Event::LinkLost { session: session.number() }));
        let order = if desk.stage.chance.percent(50) { [failed, lost] } else { [lost, failed] };
        self.inbox.extend(order.into_iter().flatten());
        self.pump(desk)
    }

    fn ping(&mut self, desk: &mut Desk<'_>, conn: ConnId) -> Alive {
        let Some(session) = self.session.as_mut().filter(|s| s.conn() == conn) else { return Ok(()) };
        if !session.ping(desk.stage) {
            return self.on_lost(desk);
        }
        desk.stage.agenda.after(PING_EVERY, Happening::Primary(self.life, Timer::Ping(conn)));
        Ok(())
    }

    fn give_up_handshake(&mut self, desk: &mut Desk<'_>, conn: ConnId) -> Alive {
        let Some(index) = self.dials.iter().position(|d| d.conn == conn) else { return Ok(()) };
        let dial = self.dials.remove(index);
        desk.stage.net.close(conn, End::Dialer, &mut desk.stage.agenda);
        self.inbox.push_back(Input::Opened(dial.token, Box::new(Err(gone()))));
        self.pump(desk)
    }

    fn tell(&mut self, desk: &mut Desk<'_>, event: Event) -> Alive {
        self.inbox.push_back(Input::Event(event));
        self.pump(desk)
    }

    fn tell_all(&mut self, desk: &mut Desk<'_>, event: Option<Event>) -> Alive {
        self.inbox.extend(event.map(Input::Event));
        self.pump(desk)
    }

    /// Carries out what is to be done and takes in what has come, until neither is left.
    fn pump(&mut self, desk: &mut Desk<'_>) -> Alive {
        while !self.is_blocked {
            if let Some(todo) = self.todo.pop_front() {
                self.act(desk, todo)?;
            } else if self.is_gone {
                return Ok(());
            } else if let Some(input) = self.inbox.pop_front() {
                self.take(desk, input)?;
            } else {
                break;
            }
        }
        self.set_deadline(desk);
        Ok(())
    }

    fn set_deadline(&mut self, desk: &mut Desk<'_>) {
        if self.is_blocked {
            // Nothing is looked at meanwhile; a deadline that has passed counts when the record is written.
            return;
        }
        let next = self.engine.next_deadline();
        if let Some(at) = next
            && self.deadline != Some(at)
        {
            desk.stage.agenda.at(at, Happening::Primary(self.life, Timer::Deadline));
        }
        self.deadline = next;
    }

    fn take(&mut self, desk: &mut Desk<'_>, input: Input) -> Alive {
        let now = desk.stage.now();
        let mut actions = Actions::new();
        match input {
            Input::Event(event) => {
                if matches!(event, Event::CycleAcked { .. }) && self.record().acked.is_none() {
                    desk.stage.pass(Point::AckedBeforeState)?;
                }
                if matches!(event, Event::CycleAcked { .. })
                    && let Some(images) = self.lane.take_images()
                {
                    self.images = images;
                }
                let is_cut = matches!(event, Event::CutTaken { .. });
                if !matches!(event, Event::Tick) {
                    desk.stage.say("primary", format_args!("{event:?}"));
                }
                self.engine.handle(now, event, &mut actions);
                self.put(actions, None);
                if is_cut {
                    desk.stage.pass(Point::Recorded)?;
                }
            }
            Input::Command(ticket, command) => {
                let before = self.engine.record().clone();
                let job = if let Command::Start { transfer_job, .. } = command { Some(transfer_job) } else { None };
                let name = name_of_command(&command);
                let answer = self.engine.command(now, command, &mut actions);
                if answer.is_ok() {
                    desk.stage.coverage.met(Kind::Deed, name);
                }
                if answer.is_err() {
                    if let Some(job) = job {
                        desk.book.finish_job(job, answer.clone());
                    }
                    desk.stage.judge.refused_command(&before, self.engine.record(), actions.len());
                }
                self.put(actions, Some((ticket, answer)));
            }
            Input::Opened(token, outcome) => self.take_session(desk, token, *outcome)?,
        }
        Ok(())
    }

    fn put(&mut self, actions: Actions, answer: Option<(Ticket, Answer)>) {
        self.todo.extend(actions.into_iter().map(Todo::Act));
        self.todo.extend(answer.map(|(ticket, answer)| Todo::Answer(ticket, answer)));
    }

    /// A handshake has ended. One that the engine gave up meanwhile is closed again and never becomes the session.
    fn take_session(&mut self, desk: &mut Desk<'_>, token: Token, outcome: Outcome) -> Alive {
        let now = desk.stage.now();
        let mut actions = Actions::new();
        let is_wanted = self.opening == Some(token);
        if is_wanted {
            self.opening = None;
        }
        match outcome {
            Ok((session, _)) if !is_wanted => {
                desk.stage.net.close(session.conn(), End::Dialer, &mut desk.stage.agenda);
            }
            Ok((mut session, report)) => {
                let (number, conn) = (session.number(), session.conn());
                desk.stage.say("primary", format_args!("session {number} on {conn}: {report:?}"));
                let heard = session.hear_frames(desk.stage);
                self.replace_session(desk, Some(session));
                desk.stage.agenda.after(PING_EVERY, Happening::Primary(self.life, Timer::Ping(conn)));
                self.engine.handle(now, Event::Opened { token, session: number, report }, &mut actions);
                self.put(actions, None);
                return self.on_heard(desk, heard);
            }
            Err(failure) => {
                desk.stage.say("primary", format_args!("no session: {:?}: {}", failure.kind, failure.refusal));
                self.engine.handle(now, Event::OpenFailed { token, failure }, &mut actions);
            }
        }
        self.put(actions, None);
        Ok(())
    }

    fn replace_session(&mut self, desk: &mut Desk<'_>, session: Option<Session>) {
        if let Some(old) = std::mem::replace(&mut self.session, session) {
            desk.stage.net.close(old.conn(), End::Dialer, &mut desk.stage.agenda);
        }
    }

    fn act(&mut self, desk: &mut Desk<'_>, todo: Todo) -> Alive {
        let action = match todo {
            Todo::Act(action) => action,
            Todo::Answer(ticket, answer) => {
                let record = self.engine.record().clone();
                desk.stage.say("operator", format_args!("primary: {ticket:?}: {answer:?}"));
                desk.stage.judge.answered(ticket, &answer, &record, desk.book.record());
                return Ok(());
            }
        };
        match action {
            Action::Persist(record) => return self.persist(desk, record),
            Action::Open { token, generation, session } => self.open(desk, token, generation, session),
            Action::CloseLink => self.close(desk),
            Action::BeginTracking { token, first_map } => self.step(desk, Step::BeginTracking(token, first_map)),
            Action::EndTracking => self.step(desk, Step::EndTracking),
            Action::CopyBase { token, attempt, .. } => match self.session_number() {
                Some(session) => self.step(desk, Step::CopyBase(token, attempt, session)),
                None => self.inbox.push_back(Input::Event(Event::BaseFailed { token, failure: gone() })),
            },
            Action::Abandon => self.lane.cancel(desk, self.life),
            Action::Compare { token, .. } => {
                // Nobody in this world asks for a resynchronisation yet.
                let failure = super::failure::bug("this world compares nothing");
                self.inbox.push_back(Input::Event(Event::CompareFailed { token, failure }));
            }
            Action::ForgetComparison => {}
            Action::TakeCut { token, number, must_cover, consistency, .. } => {
                self.step(desk, Step::TakeCut(token, number, must_cover, consistency));
            }
            Action::SendCycle { token, number, parent } => match self.session_number() {
                Some(session) => self.step(desk, Step::SendCycle(token, number, parent, session)),
                None => self.inbox.push_back(Input::Event(Event::CycleFailed { token, failure: gone() })),
            },
            Action::ConcludeCycle { token } => {
                desk.stage.pass(Point::BeforeConclude)?;
                let event = self.lane.conclude(token, desk, self.session.as_mut(), self.life)?;
                self.inbox.extend(event.map(Input::Event));
            }
            Action::DropMaps { below } => self.step(desk, Step::DropMaps(below)),
            Action::FoldMaps => self.step(desk, Step::FoldMaps),
            Action::SendSettings => self.send_settings(desk),
            Action::Progress { .. } => {}
            Action::FinishJob { .. } if desk.stage.makes(Mutation::JobEndForgotten) => {}
            Action::FinishJob { job, result } => {
                desk.stage.judge.job_finished(job, &result);
                desk.book.finish_job(job, result);
            }
            Action::CycleDone { cut, cut_at, .. } => {
                let age = desk.stage.now() - cut_at;
                desk.stage.say("primary", format_args!("cut {} acknowledged after {age}", cut.number));
                desk.stage.judge.primary_learnt_ack(cut);
            }
            Action::Forget => {
                self.close(desk);
                desk.book.forget();
                desk.stage.judge.primary_forgot();
                self.is_gone = true;
                self.lane.finish(desk)?;
            }
        }
        Ok(())
    }

    fn persist(&mut self, desk: &mut Desk<'_>, record: Box<Record>) -> Alive {
        desk.stage.pass(Point::BeforePersist)?;
        if !self.save(desk, &record) {
            self.todo.push_front(Todo::Act(Action::Persist(record)));
            self.is_blocked = true;
            desk.stage.agenda.after(PERSIST_RETRY, Happening::Primary(self.life, Timer::Persist));
            return Ok(());
        }
        desk.stage.judge.persisted(&record);
        desk.stage.pass(Point::AfterPersist)
    }

    /// Writes the record, or makes the mistake that is to be made.
    fn save(&self, desk: &mut Desk<'_>, record: &Record) -> bool {
        match desk.stage.mutation {
            Some(Mutation::RecordNotWritten) if desk.stage.chance.percent(30) => true,
            Some(Mutation::NumberNotDurable) => {
                let cut_last = desk.book.record().map_or(record.cut_last, |r| r.cut_last);
                let stale = Record { cut_last, ..record.clone() };
                desk.book.save(&stale, &self.images)
            }
            _ => desk.book.save(record, &self.images),
        }
    }

    fn session_number(&self) -> Option<SessionNumber> {
        self.session.as_ref().map(Session::number)
    }

    fn open(
        &mut self,
        desk: &mut Desk<'_>,
        token: Token,
        generation: understudy_model::Generation,
        session: SessionNumber,
    ) {
        let record = self.engine.record();
        let wanted = Wanted { relationship: record.id, generation, session, settings: record.settings.clone() };
        let dial = Dial::begin(token, wanted, desk.stage);
        desk.stage.agenda.after(HANDSHAKE, Happening::Primary(self.life, Timer::Handshake(dial.conn)));
        self.opening = Some(token);
        self.dials.push(dial);
    }

    fn close(&mut self, desk: &mut Desk<'_>) {
        self.opening = None;
        self.lane.cancel(desk, self.life);
        self.replace_session(desk, None);
    }

    fn step(&mut self, desk: &mut Desk<'_>, step: Step) {
        let record = self.engine.record();
        let facts = Facts {
            vm: record.id.vm,
            generation: record.generation,
            owner: MapOwner { relationship: record.id, generation: record.map_generation },
            disks: record.disks.clone(),
            compression: record.settings.compression,
            images: self.images.clone(),
        };
        self.lane.put(step, facts, self.life, desk.stage);
    }

    fn send_settings(&mut self, desk: &mut Desk<'_>) {
        let settings = Settings::from(&self.engine.record().settings);
        if let Some(session) = &mut self.session {
            // If this is lost, the next handshake tells them again.
            let _ = session.request(Asker::Nobody, Message::Settings(settings), desk.stage);
        }
    }
}
