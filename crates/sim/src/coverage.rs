//! What a campaign has really met: faults that struck, places at which a daemon died, deeds that were done, promises
//! that were looked at. A simulator that never gets to a place proves nothing about it, so every name must be met.

use std::collections::BTreeMap;
use std::fmt;

use understudy_store::CrashPoint;
use understudy_store::files::{Call, Fault as Failing};

use crate::fault::Fault;
use crate::judge::Rule;
use crate::net::Mangle;
use crate::operator::DONE;
use crate::primary::points::Point;

/// A kind of thing that can be met.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// A fault struck.
    Fault,
    /// Calls of a kind were made to fail on the replica's disk.
    DiskCall,
    /// Calls failed in this way.
    DiskFault,
    /// Frames were changed in this way.
    Mangle,
    /// How a daemon came to its end.
    Crash,
    /// The primary's daemon died at this place.
    PrimaryPoint,
    /// The replica's daemon died at this place.
    ReplicaPoint,
    /// An operator asked for this and got it.
    Deed,
    /// A promise was looked at.
    Rule,
}

impl Kind {
    const ALL: [Kind; 9] = [
        Kind::Fault,
        Kind::DiskCall,
        Kind::DiskFault,
        Kind::Mangle,
        Kind::Crash,
        Kind::PrimaryPoint,
        Kind::ReplicaPoint,
        Kind::Deed,
        Kind::Rule,
    ];

    /// All names of the kind.
    fn names(self) -> Vec<String> {
        fn debug<T: fmt::Debug>(items: impl IntoIterator<Item = T>) -> Vec<String> {
            items.into_iter().map(|item| format!("{item:?}")).collect()
        }
        match self {
            Kind::Fault => debug(Fault::KINDS.iter().map(|(fault, _)| fault)),
            Kind::DiskCall => debug(Call::ALL),
            Kind::DiskFault => debug(Failing::ALL),
            Kind::Mangle => debug(Mangle::ALL),
            Kind::Crash => CRASHES.iter().map(|&name| name.to_owned()).collect(),
            Kind::PrimaryPoint => Point::ALL.iter().map(|point| point.name().to_owned()).collect(),
            Kind::ReplicaPoint => CrashPoint::ALL.iter().map(|point| point.name().to_owned()).collect(),
            Kind::Deed => DONE.iter().map(|&name| name.to_owned()).collect(),
            Kind::Rule => Rule::ALL.iter().map(ToString::to_string).collect(),
        }
    }

    fn title(self) -> &'static str {
        match self {
            Kind::Fault => "faults that struck",
            Kind::DiskCall => "calls that failed on the replica's disk",
            Kind::DiskFault => "how they failed",
            Kind::Mangle => "what became of frames",
            Kind::Crash => "how daemons ended",
            Kind::PrimaryPoint => "places at which the primary's daemon died",
            Kind::ReplicaPoint => "places at which the replica's daemon died",
            Kind::Deed => "what operators asked for and got",
            Kind::Rule => "promises looked at",
        }
    }
}

/// The primary's daemon was killed, its host lives on.
pub const PRIMARY_KILLED: &str = "primary killed";
/// The primary's host lost power.
pub const PRIMARY_POWER: &str = "primary without power";
/// The replica's daemon was killed; the kernel has what it wrote.
pub const REPLICA_KILLED: &str = "replica killed";
/// The replica's host lost power, and with it everything that was not synced.
pub const REPLICA_POWER_ALL: &str = "replica without power, all unsynced lost";
/// The replica's host lost power; of what was not synced some is lost, some kept, some torn.
pub const REPLICA_POWER_SOME: &str = "replica without power, unsynced lost or torn";
/// The replica's daemon died while it recovered from a death.
pub const REPLICA_RECOVERING: &str = "replica while it recovered";

const CRASHES: [&str; 6] =
    [PRIMARY_KILLED, PRIMARY_POWER, REPLICA_KILLED, REPLICA_POWER_ALL, REPLICA_POWER_SOME, REPLICA_RECOVERING];

/// How often everything was met.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Coverage {
    counts: BTreeMap<(Kind, String), u64>,
}

impl Coverage {
    /// Something was met.
    pub fn met(&mut self, kind: Kind, name: impl Into<String>) {
        self.met_often(kind, name, 1);
    }

    /// Something was met this often.
    pub fn met_often(&mut self, kind: Kind, name: impl Into<String>, times: u64) {
        *self.counts.entry((kind, name.into())).or_insert(0) += times;
    }

    /// Adds what another run met.
    pub fn add(&mut self, other: &Coverage) {
        for ((kind, name), times) in &other.counts {
            self.met_often(*kind, name.clone(), *times);
        }
    }

    /// What was never met.
    pub fn missing(&self) -> Vec<String> {
        let all = Kind::ALL.into_iter().flat_map(|kind| kind.names().into_iter().map(move |name| (kind, name)));
        all.filter(|key| !self.counts.contains_key(key))
            .map(|(kind, name)| format!("{}: {name}", kind.title()))
            .collect()
    }
}

impl fmt::Display for Coverage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for kind in Kind::ALL.into_iter().filter(|kind| *kind != Kind::Rule) {
            writeln!(f, "{}:", kind.title())?;
            for name in kind.names() {
                let times = self.counts.get(&(kind, name.clone())).copied().unwrap_or(0);
                writeln!(f, "  {times:>7}  {name}")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_never_met_is_named() {
        let mut coverage = Coverage::default();
        let all = coverage.missing().len();
        coverage.met(Kind::Deed, DONE[0]);
        coverage.met(Kind::Deed, DONE[0]);
        assert_eq!(coverage.missing().len(), all - 1);
        assert!(coverage.missing().contains(&format!("what operators asked for and got: {}", DONE[1])));
    }
}
