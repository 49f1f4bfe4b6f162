//! The replica host: a disk that can lose power and fail, and the daemon that keeps the store on it.
//!
//! The daemon is a small synchronous counterpart of the real one: the real engine says who is let in and what a
//! failover may do, the real wire machine says which frames may come when, the real store receives, merges and opens.
//! It dies at any crash point of the store, at any change of a file, or between any two things it does.

use std::sync::Arc;

use understudy_engine::replica::Record;
use understudy_model::Millis;
use understudy_store::files::{Crash, FaultyFiles, Files, MemFiles};
use understudy_store::{StoreOptions, VmStore};

use crate::coverage::{self, Kind};
use crate::mutation::Mutation;
use crate::mutation::files::LyingFiles;
use crate::net::{Arrived, ConnId, End};
use crate::stage::{Alive, Stage};
use crate::world::Happening;

mod connection;
mod failover;
mod hook;
mod hub;
mod intake;
mod place;
mod upkeep;

pub use hook::Hook;

use hub::Hub;

/// Space held back for a bad day, in proportion to disks of a few hundred KiB.
const RESERVE: u64 = 256 << 10;
/// Receiving stops when less is free.
const RECEIVE_FLOOR: u64 = 512 << 10;

/// What the daemon on the replica can be woken for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Timer {
    /// The next piece of work of a connection.
    Intake(ConnId),
    /// A connection may have been silent for too long.
    Silence(ConnId),
    /// The store may need upkeep.
    Upkeep,
}

/// What is durable beside the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Durable {
    /// The engine's record.
    pub record: Record,
    /// The store's number of the failover under way or done.
    pub failover: Option<u64>,
}

/// The catalogue of the replica's daemon.
#[derive(Debug, Default)]
pub struct Book {
    /// What is recorded.
    pub durable: Option<Durable>,
    /// Whether it takes nothing at present.
    pub is_full: bool,
    /// The daemon dies at the write that this counts down to: before it, or after it.
    pub dies_at: Option<(u32, bool)>,
}

impl Book {
    /// Whether the daemon dies here.
    fn dies(&mut self, is_after: bool) -> bool {
        match &mut self.dies_at {
            Some((left, after)) if *after == is_after => {
                *left -= 1;
                let dies = *left == 0;
                if dies {
                    self.dies_at = None;
                }
                dies
            }
            _ => false,
        }
    }
}

/// The replica host.
pub struct ReplicaHost {
    /// The disk the store is on.
    pub disk: MemFiles,
    /// The same, with calls that fail.
    pub faulty: FaultyFiles,
    /// The catalogue.
    pub book: Book,
    /// Where the store's crash points lead.
    pub hook: Arc<Hook>,
    daemon: Option<Hub>,
    life: u32,
}

/// An operator's wish on the replica.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wish {
    /// Pause.
    Suspend,
    /// Go on.
    Resume,
    /// Take over from the newest state.
    FailOver,
    /// Take over from one of the points, counted from the oldest.
    FailOverTo(usize),
    /// Undo the failover.
    Revert,
    /// Make it final.
    Commit,
    /// A drill: a throw-away copy of a point.
    Test(usize),
    /// The drill is over.
    EndTest,
    /// End the relationship on this side.
    Remove,
}

impl ReplicaHost {
    /// A host with an empty disk of this size and no daemon yet.
    pub fn new(capacity: u64) -> Self {
        let disk = MemFiles::with_capacity(capacity);
        let faulty = FaultyFiles::over_memory(&disk);
        let hook = Arc::new(Hook::new(disk.clone()));
        Self { disk, faulty, book: Book::default(), hook, daemon: None, life: 0 }
    }

    /// Whether the daemon runs.
    pub fn is_up(&self) -> bool {
        self.daemon.is_some()
    }

    /// The store of the VM, if the daemon runs and it can be opened.
    pub fn store(&self) -> Option<Arc<VmStore>> {
        self.daemon.as_ref().and_then(Hub::vm)
    }

    /// Whether only the record is left of the replica.
    pub fn has_lost_its_files(&self) -> bool {
        self.daemon.as_ref().is_some_and(Hub::has_lost_its_files)
    }

    /// What the daemon holds, durable or not.
    pub fn durable(&self) -> Option<&Durable> {
        self.daemon.as_ref().and_then(Hub::durable)
    }

    /// The daemon starts; true if it could.
    pub fn start(&mut self, stage: &mut Stage) -> bool {
        self.life += 1;
        self.daemon = None;
        let options = StoreOptions { reserve: RESERVE, receive_floor: RECEIVE_FLOOR, checkpoints: self.hook.clone() };
        let files: Arc<dyn Files> = match stage.mutation {
            Some(lie @ (Mutation::FilesNotSynced | Mutation::NamesNotSynced | Mutation::FailedSyncIgnored)) => {
                Arc::new(LyingFiles::new(Arc::new(self.faulty.clone()), lie))
            }
            _ => Arc::new(self.faulty.clone()),
        };
        let opened = Hub::open(self.disk.clone(), files, options, self.life, self.book.durable.clone(), stage);
        match opened {
            Ok(hub) if self.is_alive() => {
                stage.say("replica", format_args!("starts"));
                self.daemon = Some(hub);
                self.with(stage, |hub, book, stage| hub.begin(book, stage));
            }
            Ok(_) => self.crash(stage, Crash::Killed, true),
            Err(cause) => {
                stage.say("replica", format_args!("cannot start: {cause}"));
                if !self.is_alive() {
                    self.crash(stage, Crash::Killed, true);
                }
            }
        }
        self.is_up()
    }

    /// The daemon ends without a word, and the disk keeps what `crash` leaves of it.
    pub fn crash(&mut self, stage: &mut Stage, crash: Crash, host_lives: bool) {
        if self.daemon.take().is_some() {
            stage.say("replica", format_args!("is gone: {crash:?}"));
            let how = match crash {
                Crash::Killed => coverage::REPLICA_KILLED,
                Crash::LostAll => coverage::REPLICA_POWER_ALL,
                Crash::Seed(_) => coverage::REPLICA_POWER_SOME,
            };
            stage.coverage.met(Kind::Crash, how);
        }
        if let Some(point) = self.hook.sprung() {
            stage.coverage.met(Kind::ReplicaPoint, point.name());
            stage.judge.died_at(point);
        }
        self.hook.disarm();
        self.disk.crash(crash);
        stage.judge.fault_struck();
        if host_lives {
            stage.net.close_all(End::Listener, &mut stage.agenda);
        }
    }

    /// The daemon ends in good order.
    pub fn stop(&mut self, stage: &mut Stage) {
        self.daemon = None;
        stage.say("replica", format_args!("stops"));
        stage.judge.fault_struck();
        stage.net.close_all(End::Listener, &mut stage.agenda);
    }

    /// Something is due.
    pub fn on_timer(&mut self, stage: &mut Stage, life: u32, timer: Timer) {
        if life == self.life && self.daemon.is_some() {
            self.with(stage, |hub, book, stage| hub.on_timer(timer, book, stage));
        }
    }

    /// Something came over a connection.
    pub fn on_arrival(&mut self, stage: &mut Stage, conn: ConnId, arrived: Arrived) {
        if self.daemon.is_some() {
            self.with(stage, |hub, book, stage| hub.on_arrival(conn, arrived, book, stage));
        } else if arrived == Arrived::Accepted {
            stage.net.answer(conn, false, &mut stage.agenda);
        } else {
            stage.net.close(conn, End::Listener, &mut stage.agenda);
        }
    }

    /// An operator asks for something, and gets an answer at once unless the daemon dies of it.
    pub fn wish(&mut self, stage: &mut Stage, wish: Wish) {
        if self.daemon.is_some() {
            self.with(stage, |hub, book, stage| hub.wish(wish, book, stage));
        }
    }

    fn is_alive(&self) -> bool {
        !self.hook.has_sprung() && self.disk.free_space().is_ok()
    }

    fn with(&mut self, stage: &mut Stage, act: impl FnOnce(&mut Hub, &mut Book, &mut Stage) -> Alive) {
        let Some(hub) = &mut self.daemon else { return };
        let outcome = act(hub, &mut self.book, stage);
        if outcome.is_err() || !self.is_alive() {
            let (crash, host_lives) = stage.draw_crash();
            self.crash(stage, crash, host_lives);
        }
    }
}

/// Wakes the daemon after a while.
fn wake(stage: &mut Stage, life: u32, wait: Millis, timer: Timer) {
    stage.agenda.after(wait, Happening::Replica(life, timer));
}
