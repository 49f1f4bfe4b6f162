//! The primary host: a guest in its QEMU, and the daemon that replicates it.
//!
//! The daemon here is a small synchronous counterpart of the real one's executor: it carries out the engine's actions
//! one after another, over virtual connections, and dies at any of its crash points. What it decides is decided by the
//! real engine; what it sends is built by the real run and wire crates; what it reads comes from the hypervisor
//! crate's fake VM. QEMU outlives the daemon.

use understudy_engine::primary::{Command, Failure, Record};
use understudy_hypervisor::fake::FakeVm;
use understudy_model::Refusal;

use crate::coverage::{self, Kind};
use crate::net::{Arrived, ConnId, End};
use crate::stage::{Alive, Stage};
use crate::world::Happening;

pub mod points;

mod book;
mod copy;
mod create;
mod dial;
pub mod failure;
mod lane;
mod owner;
mod send;
mod session;

pub use book::Book;
pub use failure::chain;
pub use owner::Ticket;

use create::Create;
use owner::Owner;

/// What a daemon on the primary can be woken for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Timer {
    /// The engine's deadline.
    Deadline,
    /// The lane's next step; the number tells a step that was given up from the present one.
    Lane(u64),
    /// A sign of life is due on a session.
    Ping(ConnId),
    /// A handshake has taken too long.
    Handshake(ConnId),
    /// The record is to be written once more.
    Persist,
}

/// The primary host.
pub struct PrimaryHost {
    /// The guest's hypervisor.
    pub vm: FakeVm,
    /// What the daemon made durable.
    pub book: Book,
    daemon: Option<Owner>,
    /// A relationship that is being created.
    creating: Option<Create>,
    /// Whether the process runs, with or without a relationship.
    is_running: bool,
    /// Rises with each start of the daemon: what an earlier one was to be woken for is forgotten.
    life: u32,
}

impl PrimaryHost {
    /// A host with this VM and no daemon yet.
    pub fn new(vm: FakeVm) -> Self {
        Self { vm, book: Book::default(), daemon: None, creating: None, is_running: false, life: 0 }
    }

    /// Whether the daemon runs.
    pub fn is_up(&self) -> bool {
        self.is_running
    }

    /// Asks the replica for a place, unless that is being done already or there is a relationship.
    pub fn create(&mut self, record: Record, stage: &mut Stage) {
        if self.is_running && self.daemon.is_none() && self.creating.is_none() {
            let create = Create::begin(record, stage);
            stage.agenda.after(create::PATIENCE, Happening::Primary(self.life, Timer::Handshake(create.conn)));
            self.creating = Some(create);
        }
    }

    fn on_created(&mut self, stage: &mut Stage, outcome: Result<Record, Failure>) {
        if let Some(create) = self.creating.take() {
            stage.net.close(create.conn, End::Dialer, &mut stage.agenda);
        }
        match outcome {
            Ok(record) if self.book.save(&record, &[]) => {
                stage.judge.persisted(&record);
                stage.coverage.met(Kind::Deed, "Create");
                self.start(stage);
            }
            Ok(_) => stage.say("primary", format_args!("the relationship cannot be recorded")),
            Err(failure) => stage.say("primary", format_args!("no place: {}", failure.refusal)),
        }
    }

    /// What the engine holds at the moment, durable or not.
    pub fn record(&self) -> Option<&Record> {
        self.daemon.as_ref().map(Owner::record)
    }

    /// What an operator sees.
    pub fn report(&self, stage: &Stage) -> Option<understudy_engine::primary::Report> {
        self.daemon.as_ref().map(|owner| owner.report(stage.now()))
    }

    /// The daemon starts, and takes up what is recorded.
    pub fn start(&mut self, stage: &mut Stage) {
        self.life += 1;
        self.is_running = true;
        self.daemon = None;
        let record = self.book.record().cloned();
        for job in self.book.settle_orphans(record.as_ref().and_then(|r| r.transfer_job)) {
            stage.judge.job_orphaned(job);
        }
        let Some(record) = record else { return };
        stage.say("primary", format_args!("starts, {} at cut {:?}", record.state, record.acked.map(|c| c.number.0)));
        let seed = stage.chance.number();
        let images = self.book.images().to_vec();
        self.daemon = Some(Owner::new(record, images, self.life, stage.now(), seed));
        self.with(stage, |owner, desk| owner.begin(desk));
    }

    /// The daemon ends without a word. Whether its connections' ends are told depends on whether the host lives on.
    pub fn crash(&mut self, stage: &mut Stage, host_lives: bool) {
        self.creating = None;
        if std::mem::take(&mut self.is_running) {
            self.daemon = None;
            self.vm.lose_daemon();
            let how = if host_lives { coverage::PRIMARY_KILLED } else { coverage::PRIMARY_POWER };
            stage.coverage.met(Kind::Crash, how);
            stage.say("primary", format_args!("is gone"));
            stage.judge.fault_struck();
        }
        if host_lives {
            stage.net.close_all(End::Dialer, &mut stage.agenda);
        }
    }

    /// An operator asks for something. The answer reaches the judge when the daemon has made it durable.
    pub fn command(&mut self, stage: &mut Stage, ticket: Ticket, command: Command) {
        if self.daemon.is_none() {
            return;
        }
        self.with(stage, |owner, desk| owner.ask(desk, ticket, command));
    }

    /// Something is due.
    pub fn on_timer(&mut self, stage: &mut Stage, life: u32, timer: Timer) {
        if life != self.life || !self.is_running {
            return;
        }
        if self.creating.as_ref().is_some_and(|c| timer == Timer::Handshake(c.conn)) {
            return self.on_created(stage, Err(failure::gone()));
        }
        self.with(stage, |owner, desk| owner.on_timer(desk, timer));
    }

    /// Something came over a connection.
    pub fn on_arrival(&mut self, stage: &mut Stage, conn: ConnId, arrived: Arrived) {
        if let Some(create) = self.creating.as_mut().filter(|c| c.conn == conn) {
            if let Some(outcome) = create.on_arrival(arrived, stage) {
                self.on_created(stage, outcome);
            }
            return;
        }
        self.with(stage, |owner, desk| owner.on_arrival(desk, conn, arrived));
    }

    fn with(&mut self, stage: &mut Stage, act: impl FnOnce(&mut Owner, &mut Desk<'_>) -> Alive) {
        let Some(owner) = &mut self.daemon else { return };
        let mut desk = Desk { vm: &mut self.vm, book: &mut self.book, stage };
        let outcome = act(owner, &mut desk);
        let is_gone = owner.is_gone();
        if outcome.is_err() {
            self.crash(stage, true);
        } else if is_gone {
            self.daemon = None;
        }
    }
}

/// What the daemon works with.
struct Desk<'a> {
    vm: &'a mut FakeVm,
    book: &'a mut Book,
    stage: &'a mut Stage,
}

/// An operator's answer.
pub type Answer = Result<(), Refusal>;
