//! Places in the primary's daemon at which it can die.
//!
//! The names are those of the crash points that every suite of this project visits; the store has its own for the
//! receiving side (`understudy_store::CrashPoint`).

use std::fmt;

macro_rules! points {
    ($($(#[$doc:meta])* $variant:ident = $name:literal,)*) => {
        /// A place in the primary's daemon.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Point { $($(#[$doc])* $variant,)* }

        impl Point {
            /// Every place.
            pub const ALL: &[Point] = &[$(Point::$variant,)*];

            /// Its name.
            pub const fn name(self) -> &'static str {
                match self { $(Point::$variant => $name,)* }
            }
        }
    };
}

points! {
    /// Tracking is about to begin.
    BeforeMapAdd = "initial/before_map_add",
    /// Tracking has begun; nobody knows.
    AfterMapAdd = "initial/after_map_add",
    /// The first piece of the copy is about to be sent.
    FirstExtent = "initial/first_extent",
    /// Another piece is about to be sent.
    MidExtent = "initial/mid_extent",
    /// The first cycle was acknowledged; the record does not say so.
    AckedBeforeState = "initial/acked_before_state",
    /// The cut's number is durable; the disks are not frozen.
    BeforeFreeze = "cut/before_freeze",
    /// The new maps were begun; nothing is frozen.
    NewMaps = "cut/new_maps",
    /// The disks are frozen; the old maps still record.
    Instant = "cut/instant",
    /// The disks are frozen; the engine does not know.
    FrozenBeforeRecord = "cut/frozen_before_record",
    /// The engine knows.
    Recorded = "cut/recorded",
    /// The first frame of a cycle is about to be sent.
    FirstFrame = "send/first_frame",
    /// Another one is.
    MidFrames = "send/mid_frames",
    /// The last one was; the digest is not recorded.
    LastFrame = "send/last_frame",
    /// The digest is durable; the target was not asked to seal.
    BeforeConclude = "send/before_conclude",
    /// An acknowledgement is durable; its maps are there.
    AckBeforeDrop = "send/ack_before_drop",
    /// The maps were dropped.
    AckDroppedMap = "send/ack_dropped_map",
    /// A cycle was given up; its maps have not been united.
    AbortBeforeMerge = "send/abort_before_merge",
    /// A record is about to be written.
    BeforePersist = "record/before_write",
    /// A record was written.
    AfterPersist = "record/written",
}

impl fmt::Display for Point {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The crash point that is armed, if one is.
#[derive(Debug, Default)]
pub struct Trap {
    armed: Option<(Point, u32)>,
    /// Every point that was ever passed, and how often: what a suite compares with the list.
    pub visits: std::collections::BTreeMap<Point, u64>,
}

impl Trap {
    /// The daemon dies at the `nth` visit of this point, counted from 1.
    pub fn arm(&mut self, point: Point, nth: u32) {
        self.armed = Some((point, nth.max(1)));
    }

    /// Nothing happens at any point.
    pub fn disarm(&mut self) {
        self.armed = None;
    }

    /// Counts a visit; true if it is the one to die at.
    pub fn springs(&mut self, point: Point) -> bool {
        *self.visits.entry(point).or_insert(0) += 1;
        let Some((armed, nth)) = &mut self.armed else { return false };
        if *armed != point {
            return false;
        }
        *nth -= 1;
        let springs = *nth == 0;
        if springs {
            self.armed = None;
        }
        springs
    }
}
