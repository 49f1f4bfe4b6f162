//! What every actor of a world can reach: time, the network, chance, the trace, the judge.

use std::fmt;

use understudy_model::Timestamp;
use understudy_store::files::Crash;

use crate::agenda::Agenda;
use crate::chance::Chance;
use crate::coverage::{Coverage, Kind};
use crate::judge::Judge;
use crate::mutation::Mutation;
use crate::net::Net;
use crate::primary::points::{Point, Trap};
use crate::trace::Trace;
use crate::world::Happening;

/// A process came to its end at once, at a crash point.
#[derive(Debug)]
pub struct Died;

/// Something that may end in the process's death.
pub type Alive<T = ()> = Result<T, Died>;

/// The wall clocks of the two hosts: they differ, and they jump.
#[derive(Debug, Clone, Copy)]
pub struct WallClocks {
    /// What to add to virtual time on the primary.
    pub primary: u64,
    /// What to add to virtual time on the replica.
    pub replica: u64,
}

/// 2025-06-01: where the wall clocks of all worlds begin.
pub const EPOCH: u64 = 1_748_736_000_000;

impl Default for WallClocks {
    fn default() -> Self {
        Self { primary: EPOCH, replica: EPOCH }
    }
}

/// See the module's description.
pub struct Stage {
    /// Time, and what is due in it.
    pub agenda: Agenda<Happening>,
    /// The connections.
    pub net: Net,
    /// How long things take, and other chance of the daemons.
    pub chance: Chance,
    /// The record of what happened.
    pub trace: Trace,
    /// What must hold.
    pub judge: Judge,
    /// Labels.
    pub wall: WallClocks,
    /// The crash point that is armed on the primary.
    pub trap: Trap,
    /// Most scratch space of a cut.
    pub scratch_limit: u64,
    /// What was met so far.
    pub coverage: Coverage,
    /// The mistake that is made on purpose, if one is.
    pub mutation: Option<Mutation>,
    /// How slow the replica's disk is at present, as a factor.
    pub slowness: u64,
}

impl Stage {
    /// The present, on the clock that never jumps.
    pub fn now(&self) -> Timestamp {
        self.agenda.now()
    }

    /// The primary's wall clock.
    pub fn primary_wall(&self) -> Timestamp {
        Timestamp(self.now().0 + self.wall.primary)
    }

    /// Adds a line to the trace.
    pub fn say(&mut self, who: &str, what: fmt::Arguments<'_>) {
        self.trace.line(self.agenda.now(), who, what);
    }

    /// How a daemon of the replica ends: whether its disk keeps what was not synced, and whether its host says so.
    pub fn draw_crash(&mut self) -> (Crash, bool) {
        match self.chance.below(4) {
            0 | 1 => (Crash::Killed, true),
            2 => (Crash::LostAll, false),
            _ => (Crash::Seed(self.chance.number()), false),
        }
    }

    /// Whether this mistake is made on purpose.
    pub fn makes(&self, mutation: Mutation) -> bool {
        self.mutation == Some(mutation)
    }

    /// The primary's daemon passes a crash point.
    pub fn pass(&mut self, point: Point) -> Alive {
        if self.trap.springs(point) {
            self.coverage.met(Kind::PrimaryPoint, point.name());
            self.say("primary", format_args!("dies at {point}"));
            return Err(Died);
        }
        Ok(())
    }
}
