//! Mistakes that are made on purpose, one at a time: a simulator that finds nothing must be shown to find something.
//!
//! Each breaks one promise, in the world around the crates under test or between them. `find` runs seeds until one of
//! them shows it.

use std::fmt;
use std::panic;

use crate::campaign::{Verdict, run_with};
use crate::trace::Keep;

pub mod files;

/// A mistake.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Mutation {
    /// The replica acknowledges a cycle that it throws away.
    AcknowledgeUnsealed,
    /// The replica's files are never synced, and say that they are.
    FilesNotSynced,
    /// The replica's names are never synced, and say that they are.
    NamesNotSynced,
    /// A sync that fails is taken for one that succeeded.
    FailedSyncIgnored,
    /// The primary removes a cycle's map when the cycle is cut, not when it is acknowledged.
    MapDroppedEarly,
    /// The maps of a cycle that was given up are removed and not united.
    MapsNotUnited,
    /// The primary sends what the disks hold at present, not what they held at the cut.
    LiveDataSent,
    /// Lost maps are begun anew, and replication goes on.
    LostTrackingIgnored,
    /// The record of the primary is written now and then only.
    RecordNotWritten,
    /// The number of a cut is not durable before the cut.
    NumberNotDurable,
    /// A source of any generation is let in, also after a failover.
    AnyoneLetIn,
    /// Retention lets the newest point go too.
    NewestPointDropped,
    /// Merging changes a byte of the base.
    MergeSpoilsData,
    /// The end of a job is not told.
    JobEndForgotten,
    /// Health is always shown as good.
    HealthAlwaysOk,
    /// After a lost acknowledgement the primary believes that the cycle arrived.
    LostAckBelieved,
}

impl Mutation {
    /// All of them.
    pub const ALL: &[Mutation] = &[
        Mutation::AcknowledgeUnsealed,
        Mutation::FilesNotSynced,
        Mutation::NamesNotSynced,
        Mutation::FailedSyncIgnored,
        Mutation::MapDroppedEarly,
        Mutation::MapsNotUnited,
        Mutation::LiveDataSent,
        Mutation::LostTrackingIgnored,
        Mutation::RecordNotWritten,
        Mutation::NumberNotDurable,
        Mutation::AnyoneLetIn,
        Mutation::NewestPointDropped,
        Mutation::MergeSpoilsData,
        Mutation::JobEndForgotten,
        Mutation::HealthAlwaysOk,
        Mutation::LostAckBelieved,
    ];
}

impl fmt::Display for Mutation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{self:?}"))
    }
}

/// Seeds within which every mistake must show. The hardest needs some sixty.
pub const SEEDS_MAX: u64 = 400;

/// The first seed whose world shows the mistake, if one of the first [`SEEDS_MAX`] does.
pub fn find(mutation: Mutation) -> Option<Verdict> {
    (0..SEEDS_MAX).map(|seed| run_with(seed, Keep::Digest, Some(mutation))).find(|v| !v.violations.is_empty())
}

/// Runs `act` without a message for each panic: a mutated world may also end in one, which shows the mistake as well.
pub fn quietly<T>(act: impl FnOnce() -> T) -> T {
    let before = panic::take_hook();
    panic::set_hook(Box::new(|_| {}));
    let value = act();
    panic::set_hook(before);
    value
}
