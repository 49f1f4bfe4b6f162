//! The clock seam: wall time for labels, a steady clock for deadlines and ages.
//!
//! Invariant: nothing but labels people read (and the expiry of invitations, which must survive a restart) comes from
//! the wall clock, so that a changed wall clock changes no decision.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use understudy_model::{Millis, Timestamp};

/// Where time comes from.
pub trait Clock: Send + Sync + 'static {
    /// The wall clock: for labels.
    fn wall(&self) -> Timestamp;
    /// A clock that never jumps and begins anywhere: for deadlines and ages within one run of the program.
    fn steady(&self) -> Timestamp;
}

/// The machine's clocks.
#[derive(Debug)]
pub struct SystemClock {
    start: Instant,
}

impl SystemClock {
    /// The machine's clocks; the steady one begins now.
    pub fn new() -> Self {
        Self { start: Instant::now() }
    }
}

impl Default for SystemClock {
    fn default() -> Self {
        Self::new()
    }
}

impl Clock for SystemClock {
    fn wall(&self) -> Timestamp {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Timestamp(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
    }

    fn steady(&self) -> Timestamp {
        Timestamp(u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX))
    }
}

/// A wall-clock time for people and logs, in UTC with milliseconds (RFC 3339).
pub fn label(at: Timestamp) -> String {
    let ms = i64::try_from(at.0).unwrap_or(i64::MAX);
    jiff::Timestamp::from_millisecond(ms).unwrap_or(jiff::Timestamp::MAX).to_string()
}

/// A clock that stands still until it is moved. Both clocks move together; [`ManualClock::set_wall`] makes the wall
/// clock jump alone.
#[derive(Debug)]
pub struct ManualClock {
    wall: AtomicU64,
    steady: AtomicU64,
}

impl ManualClock {
    /// A clock whose wall time is `wall`.
    pub fn new(wall: Timestamp) -> Self {
        Self { wall: AtomicU64::new(wall.0), steady: AtomicU64::new(0) }
    }

    /// Lets time pass.
    pub fn advance(&self, span: Millis) {
        self.wall.fetch_add(span.0, Ordering::SeqCst);
        self.steady.fetch_add(span.0, Ordering::SeqCst);
    }

    /// Sets the wall clock, as an administrator or a time server would.
    pub fn set_wall(&self, wall: Timestamp) {
        self.wall.store(wall.0, Ordering::SeqCst);
    }
}

impl Clock for ManualClock {
    fn wall(&self) -> Timestamp {
        Timestamp(self.wall.load(Ordering::SeqCst))
    }

    fn steady(&self) -> Timestamp {
        Timestamp(self.steady.load(Ordering::SeqCst))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_jump_of_the_wall_clock_leaves_the_steady_clock_alone() {
        let clock = ManualClock::new(Timestamp(1_000_000));
        clock.advance(Millis(5));
        clock.set_wall(Timestamp(0));
        assert_eq!((clock.wall(), clock.steady()), (Timestamp(0), Timestamp(5)));
    }

    #[test]
    fn the_steady_clock_of_the_machine_never_goes_back() {
        let clock = SystemClock::new();
        let (first, second) = (clock.steady(), clock.steady());
        assert!(second >= first);
        assert!(clock.wall() > Timestamp(1_700_000_000_000), "the wall clock counts from 1970");
    }
}
