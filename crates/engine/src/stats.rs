//! What is counted about a relationship's cycles, for health and for the statistics of the API.

use understudy_model::{Millis, Timestamp};

/// Cycles that the share of missed ones is taken over: an hour of 30-second cycles.
const WINDOW: usize = 120;

/// How one interval went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Success,
    Missed,
}

/// Counters since the last reset, and a short memory for the share of missed cycles.
#[derive(Debug, Clone, Default)]
pub struct Stats {
    /// Cycles acknowledged.
    pub successes: u64,
    /// Intervals in which no cycle was acknowledged in time.
    pub misses: u64,
    /// Attempts that failed, whatever the cause.
    pub failures: u64,
    /// Attempts that failed because the link did.
    pub network_failures: u64,
    /// Bytes sent, as they went over the wire.
    pub bytes_sent: u64,
    /// Largest cycle, in bytes sent.
    pub bytes_max: u64,
    /// Sum of the time from cut to acknowledgement.
    pub latency_total: Millis,
    /// Longest time from cut to acknowledgement.
    pub latency_max: Millis,
    recent: std::collections::VecDeque<Outcome>,
}

impl Stats {
    /// A cycle was acknowledged.
    pub fn acked(&mut self, cut_at: Timestamp, now: Timestamp, bytes: u64, interval: Millis) {
        let latency = now - cut_at;
        self.successes += 1;
        self.bytes_sent += bytes;
        self.bytes_max = self.bytes_max.max(bytes);
        self.latency_total = Millis(self.latency_total.0.saturating_add(latency.0));
        self.latency_max = self.latency_max.max(latency);
        let missed = if interval.0 == 0 { 0 } else { latency.0 / interval.0.max(1) };
        for _ in 0..missed.min(WINDOW as u64) {
            self.note(Outcome::Missed);
        }
        self.misses += missed;
        self.note(Outcome::Success);
    }

    /// An attempt failed.
    pub fn failed(&mut self, network: bool) {
        self.failures += 1;
        self.network_failures += u64::from(network);
        self.misses += 1;
        self.note(Outcome::Missed);
    }

    /// Share of missed cycles in the recent past, in percent.
    pub fn missed_percent(&self) -> u64 {
        let missed = self.recent.iter().filter(|o| **o == Outcome::Missed).count();
        (missed * 100).checked_div(self.recent.len()).unwrap_or(0) as u64
    }

    fn note(&mut self, outcome: Outcome) {
        if self.recent.len() == WINDOW {
            self.recent.pop_front();
        }
        self.recent.push_back(outcome);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slow_cycle_counts_the_intervals_it_swallowed() {
        let mut stats = Stats::default();
        stats.acked(Timestamp(0), Timestamp(3500), 10, Millis(1000));
        assert_eq!((stats.successes, stats.misses, stats.missed_percent()), (1, 3, 75));
        (0..200).for_each(|_| stats.acked(Timestamp(0), Timestamp(1), 20, Millis(1000)));
        assert_eq!((stats.missed_percent(), stats.bytes_max, stats.latency_max), (0, 20, Millis(3500)));
    }
}
