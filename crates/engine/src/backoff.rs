//! When to try again after a failure: soon at first, then ever later up to a bound, spread by chance.

use understudy_model::{Millis, Timestamp};

/// First pause. A daemon that restarts is back within a second.
pub const FIRST: Millis = Millis(1000);
/// Longest pause. Replication must go on within two intervals and 60 s after a fault is over; half of that is left
/// for the attempt itself.
pub const LONGEST: Millis = Millis(30_000);

/// A back-off in progress.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Backoff {
    failures: u32,
}

impl Backoff {
    /// Counts a failure and says when the next attempt is due. `random` is any number; it spreads attempts over the
    /// second half of the pause, so that many relationships do not knock at the same instant.
    pub fn fail(&mut self, now: Timestamp, random: u64) -> Timestamp {
        let pause = (FIRST.0 << self.failures.min(16)).min(LONGEST.0);
        self.failures = self.failures.saturating_add(1);
        now + Millis(pause / 2 + random % (pause / 2 + 1))
    }

    /// Forgets earlier failures.
    pub fn succeed(&mut self) {
        self.failures = 0;
    }

    /// Failures in a row.
    pub fn failures(&self) -> u32 {
        self.failures
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_up_to_the_bound_and_start_over_after_success() {
        let mut backoff = Backoff::default();
        let pauses: Vec<u64> = (0..8).map(|_| backoff.fail(Timestamp(0), u64::MAX / 2).0).collect();
        assert!(pauses.iter().all(|p| *p <= LONGEST.0) && pauses[0] <= FIRST.0);
        assert!(pauses[7] >= LONGEST.0 / 2);
        backoff.succeed();
        assert!(backoff.fail(Timestamp(0), 3).0 <= FIRST.0);
    }
}
