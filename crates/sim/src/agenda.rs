//! What happens when: virtual time, and everything that is due in it.
//!
//! Time moves only from one entry to the next. Entries of the same instant come in the order in which they were made,
//! so a run depends on nothing but its seed.

use std::collections::BTreeMap;

use understudy_model::{Millis, Timestamp};

/// The entries of a world, and its clock.
#[derive(Debug)]
pub struct Agenda<T> {
    now: Timestamp,
    made: u64,
    entries: BTreeMap<(Timestamp, u64), T>,
}

impl<T> Default for Agenda<T> {
    fn default() -> Self {
        Self { now: Timestamp(0), made: 0, entries: BTreeMap::new() }
    }
}

impl<T> Agenda<T> {
    /// The present, on a clock that never jumps.
    pub fn now(&self) -> Timestamp {
        self.now
    }

    /// Puts something down for an instant; one that has passed means at once.
    pub fn at(&mut self, when: Timestamp, what: T) {
        self.made += 1;
        self.entries.insert((when.max(self.now), self.made), what);
    }

    /// Puts something down for after a while.
    pub fn after(&mut self, wait: Millis, what: T) {
        self.at(self.now + wait, what);
    }

    /// Goes on to the next entry, if there is one no later than `end`.
    pub fn next(&mut self, end: Timestamp) -> Option<T> {
        let entry = self.entries.first_entry()?;
        let (when, _) = *entry.key();
        if when > end {
            return None;
        }
        self.now = when;
        Some(entry.remove())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_come_by_time_and_then_in_the_order_they_were_made() {
        let mut agenda = Agenda::default();
        agenda.after(Millis(5), 'c');
        agenda.after(Millis(1), 'a');
        agenda.after(Millis(5), 'd');
        agenda.at(Timestamp(2), 'b');
        agenda.after(Millis(9), 'e');
        let come: String = std::iter::from_fn(|| agenda.next(Timestamp(8))).collect();
        assert_eq!((come.as_str(), agenda.now()), ("abcd", Timestamp(5)));
        agenda.at(Timestamp(0), 'f');
        assert_eq!((agenda.next(Timestamp(8)), agenda.now()), (Some('f'), Timestamp(5)), "the past means now");
    }
}
