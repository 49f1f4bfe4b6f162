//! The settings of a relationship: what `Msvm_ReplicationSettingData` holds, in our own words and units.

use crate::id::DiskId;
use crate::time::Millis;

/// How often a cut becomes a recovery point.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PointEvery {
    /// Each cycle's cut is kept.
    Cycle,
    /// The first cut after each such span is kept. Hyper-V knows only one hour.
    Span(Millis),
}

/// Settings of one relationship.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Time between cuts: [`Settings::INTERVAL_MIN`] to [`Settings::INTERVAL_MAX`]. Hyper-V's are 30, 300, 900 s.
    pub interval: Millis,
    /// Recovery points kept beside the newest state, 0 to [`Settings::POINTS_MAX`] (`RecoveryHistory`).
    pub points: u16,
    /// Which cuts become recovery points.
    pub point_every: PointEvery,
    /// Time between application-consistent points; `None` is off (`ApplicationConsistentSnapshotInterval`).
    pub application_consistent_every: Option<Millis>,
    /// Whether data is compressed on its way and in runs.
    pub compression: bool,
    /// Disks that are not replicated.
    pub excluded_disks: Vec<DiskId>,
    /// Whether a resynchronisation that became necessary starts by itself.
    pub auto_resync: Option<ResyncWindow>,
}

/// The time of day in which a resynchronisation may start by itself, local time of the primary. A start later than
/// the end wraps past midnight.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ResyncWindow {
    /// Offset from midnight, below 24 h.
    pub start: Millis,
    /// Offset from midnight, below 24 h.
    pub end: Millis,
}

impl Settings {
    /// Shortest interval.
    pub const INTERVAL_MIN: Millis = Millis::from_secs(1);
    /// Longest interval: Hyper-V's longest, 15 minutes.
    pub const INTERVAL_MAX: Millis = Millis::from_secs(900);
    /// Most recovery points kept by count: `RecoveryHistory` is 0 to 24.
    pub const POINTS_MAX: u16 = 24;
    /// Shortest span between points.
    pub const POINT_SPAN_MIN: Millis = Millis::from_secs(1);
    /// Longest span between points: 31 days.
    pub const POINT_SPAN_MAX: Millis = Millis::from_secs(31 * 86_400);

    /// What is wrong with these settings, if anything.
    pub fn check(&self) -> Result<(), SettingsError> {
        if !(Self::INTERVAL_MIN..=Self::INTERVAL_MAX).contains(&self.interval) {
            return Err(SettingsError::Interval { given: self.interval });
        }
        if self.points > Self::POINTS_MAX {
            return Err(SettingsError::Points { given: self.points });
        }
        if let PointEvery::Span(span) = self.point_every
            && !(Self::POINT_SPAN_MIN..=Self::POINT_SPAN_MAX).contains(&span)
        {
            return Err(SettingsError::PointSpan { given: span });
        }
        if self.application_consistent_every.is_some() && self.points == 0 {
            return Err(SettingsError::ConsistentWithoutPoints);
        }
        if let Some(window) = self.auto_resync
            && (window.start >= DAY || window.end >= DAY)
        {
            return Err(SettingsError::Window);
        }
        Ok(())
    }
}

const DAY: Millis = Millis::from_secs(86_400);

impl Default for Settings {
    /// Hyper-V's defaults: 300 s, no additional points, hourly, compressed, every disk.
    fn default() -> Self {
        Self {
            interval: Millis::from_secs(300),
            points: 0,
            point_every: PointEvery::Span(Millis::from_secs(3600)),
            application_consistent_every: None,
            compression: true,
            excluded_disks: Vec::new(),
            auto_resync: None,
        }
    }
}

/// Why settings are refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SettingsError {
    /// The interval is out of range.
    #[error("a replication interval of {given} is outside 1 s to 900 s")]
    Interval {
        /// What was asked for.
        given: Millis,
    },
    /// Too many points.
    #[error("{given} recovery points are more than 24")]
    Points {
        /// What was asked for.
        given: u16,
    },
    /// The span between points is out of range.
    #[error("a recovery point every {given} is outside 1 s to 31 days")]
    PointSpan {
        /// What was asked for.
        given: Millis,
    },
    /// Application-consistent points without any points kept.
    #[error("application-consistent points need at least one recovery point to be kept")]
    ConsistentWithoutPoints,
    /// A window that is no time of day.
    #[error("the resynchronisation window must lie within one day")]
    Window,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_legal_and_the_borders_hold() {
        let ok = Settings::default();
        assert_eq!(ok.check(), Ok(()));
        let with = |f: fn(&mut Settings)| {
            let mut s = Settings::default();
            f(&mut s);
            s.check()
        };
        assert_eq!(with(|s| s.interval = Millis(1000)), Ok(()));
        assert_eq!(with(|s| s.interval = Millis(900_000)), Ok(()));
        assert_eq!(with(|s| s.interval = Millis(999)), Err(SettingsError::Interval { given: Millis(999) }));
        assert!(with(|s| s.interval = Millis(900_001)).is_err());
        assert_eq!(with(|s| s.points = 24), Ok(()));
        assert_eq!(with(|s| s.points = 25), Err(SettingsError::Points { given: 25 }));
        assert_eq!(
            with(|s| s.application_consistent_every = Some(Millis::from_secs(3600))),
            Err(SettingsError::ConsistentWithoutPoints)
        );
        assert!(with(|s| s.point_every = PointEvery::Span(Millis(0))).is_err());
    }
}
