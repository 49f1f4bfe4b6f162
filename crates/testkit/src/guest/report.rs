//! What the workload in the guest reports, as values.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result};

/// A record the guest has announced as durable on its disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ack {
    /// The record's number, counted from 1 over all disks.
    pub number: u64,
    /// The guest's clock just before it was written.
    pub time_ns: u64,
}

impl Ack {
    /// Reads an `ACK number time` line.
    pub fn parse(line: &str) -> Option<Self> {
        let mut words = line.strip_prefix("ACK ")?.split(' ');
        let ack = Ack { number: words.next()?.parse().ok()?, time_ns: words.next()?.parse().ok()? };
        words.next().is_none().then_some(ack)
    }
}

/// One `GUEST-IO command key=value …` line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// Which command of the workload reported.
    pub command: String,
    values: BTreeMap<String, String>,
}

impl Report {
    /// The last report in a text.
    pub fn last_in(text: &str) -> Option<Self> {
        let line = text.lines().rev().find_map(|line| line.strip_prefix("GUEST-IO "))?;
        let (command, rest) = line.split_once(' ').unwrap_or((line, ""));
        let pairs = rest.split_whitespace().filter_map(|pair| pair.split_once('='));
        let values = pairs.map(|(key, value)| (key.to_string(), value.to_string())).collect();
        Some(Report { command: command.into(), values })
    }

    /// A reported word.
    pub fn word(&self, key: &str) -> Option<&str> {
        self.values.get(key).map(String::as_str)
    }

    /// A reported number.
    pub fn number(&self, key: &str) -> Result<u64> {
        let word = self.word(key).with_context(|| format!("{} did not report {key}", self.command))?;
        word.parse().with_context(|| format!("{key}={word} is no number"))
    }
}

/// What the guest found when it read its journal back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// True when the disks together are a state the guest really passed through.
    pub consistent: bool,
    /// Whole records found in their places.
    pub records: u64,
    /// The newest record and when it was written.
    pub last: Ack,
    /// Records below the newest of their disk that are not there.
    pub missing: u64,
    /// Damaged records, but for the one write that was under way.
    pub torn: u64,
    /// Records that name a predecessor the other disk does not have.
    pub order: u64,
    /// Records of another journal, or in another's place.
    pub strangers: u64,
    /// Which journal it is.
    pub run: u64,
}

impl Verdict {
    /// Reads the report of `guest-io verify`.
    pub fn from_report(report: &Report) -> Result<Self> {
        Ok(Verdict {
            consistent: report.number("consistent")? == 1,
            records: report.number("records")?,
            last: Ack { number: report.number("last")?, time_ns: report.number("last_time_ns")? },
            missing: report.number("missing")?,
            torn: report.number("torn")?,
            order: report.number("order")?,
            strangers: report.number("foreign")? + report.number("misplaced")?,
            run: report.number("run")?,
        })
    }

    /// How much of what was announced is not here: records, and time between the newest announced and the newest found.
    pub fn loss(&self, acked: Ack) -> (u64, Duration) {
        let records = acked.number.saturating_sub(self.last.number);
        let time = if records == 0 { 0 } else { acked.time_ns.saturating_sub(self.last.time_ns) };
        (records, Duration::from_nanos(time))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_verdict_is_read_from_the_line_the_workload_prints() {
        let text = "x\nGUEST-IO verify consistent=1 records=9 last=9 last_time_ns=5000000 missing=0 torn=0 torn_tail=1 \
                    order=0 foreign=0 misplaced=0 run=3 last_of=9,8\n";
        let verdict = Verdict::from_report(&Report::last_in(text).unwrap()).unwrap();
        assert!(verdict.consistent);
        assert_eq!(verdict.loss(Ack { number: 12, time_ns: 8_000_000 }), (3, Duration::from_millis(3)));
        assert_eq!(verdict.loss(Ack { number: 9, time_ns: 5_000_000 }), (0, Duration::ZERO));
        assert!(Verdict::from_report(&Report::last_in("GUEST-IO verify error=gone").unwrap()).is_err());
    }

    #[test]
    fn announcements_are_read_whole_or_not_at_all() {
        assert_eq!(Ack::parse("ACK 5 77"), Some(Ack { number: 5, time_ns: 77 }));
        for line in ["ACK 5", "ACK five 7", "ACK 5 7 x", "BACK 5 7"] {
            assert_eq!(Ack::parse(line), None, "{line}");
        }
    }
}
