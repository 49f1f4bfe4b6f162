//! Giving up what a frozen image need not serve any more: the filter then no longer copies the guest's first write there,
//! and scratch space it took is free again.
//!
//! Only whole neighbourhoods are given up. The first one that is due is kept to the end: reading it once more is how a
//! cut proves that it is still whole.

use understudy_model::{Extent, ExtentSet};

use super::serve::Source;
use crate::driver::NEIGHBOURHOOD;

/// Progress is given up in steps of this many due bytes: one request then costs a thousandth of the reading.
const STEP: u64 = 4 << 20;
/// Most pieces that may be done ahead of the first that is not. Beyond, nothing more is given up: it is only a courtesy.
const AHEAD_MAX: usize = 4096;

/// Gives up all that is not due, the largest gaps first: they are where the guest is most likely to write.
pub async fn give_up_rest(source: &Source, due: &ExtentSet, size: u64) {
    let mut gaps: Vec<_> = gaps(due, size).collect();
    gaps.sort_unstable_by_key(|gap| std::cmp::Reverse(gap.len));
    for gap in gaps {
        // Refused or broken: the reads will tell.
        if source.trim(gap).await.is_err() {
            return;
        }
    }
}

/// The whole neighbourhoods in which nothing is due.
fn gaps(due: &ExtentSet, size: u64) -> impl Iterator<Item = Extent> {
    let due = due.aligned(NEIGHBOURHOOD, size);
    let ends: Vec<_> = due.iter().map(|e| (e.offset, e.end())).chain([(size, size)]).collect();
    let mut from = 0;
    ends.into_iter().filter_map(move |(start, end)| {
        let gap = Extent::new(from, start - from);
        from = end;
        (gap.len > 0).then_some(gap)
    })
}

/// The reading's progress over one disk.
#[derive(Debug)]
pub struct Progress {
    size: u64,
    /// How many of the due extents, from the first on, are done without a gap.
    done: usize,
    /// Done beyond that.
    ahead: ExtentSet,
    /// Everything below, the first due neighbourhood apart, was given up.
    given_up: u64,
    /// Due bytes done since.
    pending: u64,
}

impl Progress {
    pub fn new(due: &ExtentSet, size: u64) -> Self {
        let given_up = due.iter().next().map_or(size, |first| kept(first).end().min(size));
        Self { size, done: 0, ahead: ExtentSet::new(), given_up, pending: 0 }
    }

    /// Notes that `extent` is done; answers what can be given up now.
    pub fn note(&mut self, due: &ExtentSet, extent: Extent) -> Option<Extent> {
        if self.ahead.count() >= AHEAD_MAX {
            return None;
        }
        self.ahead.insert(extent);
        let before = self.done;
        // The set keeps its extents in a slice, so stepping into it costs nothing.
        for next in due.iter().skip(self.done).take_while(|next| self.ahead.contains(*next)) {
            self.done += 1;
            self.pending += next.len;
        }
        if self.done == before {
            return None;
        }
        let reached = due.iter().nth(self.done).map_or(self.size, |next| next.offset);
        self.ahead = self.ahead.iter().filter(|e| e.end() > reached).collect();
        let until = reached - reached % NEIGHBOURHOOD;
        let until = if reached == self.size { self.size } else { until };
        let is_worth_it = self.pending >= STEP || reached == self.size;
        if !is_worth_it || until <= self.given_up {
            return None;
        }
        let part = Extent::new(self.given_up, until - self.given_up);
        (self.given_up, self.pending) = (until, 0);
        Some(part)
    }
}

/// The neighbourhood that is kept, given the first due extent.
fn kept(first: Extent) -> Extent {
    Extent::new(first.offset - first.offset % NEIGHBOURHOOD, NEIGHBOURHOOD)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SIZE: u64 = 1000 * NEIGHBOURHOOD - 512;

    fn due(ranges: &[(u64, u64)]) -> ExtentSet {
        let granules = ranges.iter().map(|(at, len)| Extent::new(at * 4096, len * 4096));
        granules.filter(|e| e.end() <= SIZE).collect()
    }

    fn overlaps(a: Extent, b: Extent) -> bool {
        a.offset < b.end() && b.offset < a.end()
    }

    proptest! {
        #[test]
        fn nothing_due_is_given_up_beforehand_and_everything_else_is(
            ranges in proptest::collection::vec((0u64..15_900, 1u64..64), 0..50),
        ) {
            let due = due(&ranges);
            let gaps: Vec<_> = gaps(&due, SIZE).collect();
            for gap in &gaps {
                prop_assert!(due.iter().all(|d| !overlaps(d, *gap)));
                prop_assert!(gap.offset % NEIGHBOURHOOD == 0);
            }
            let wide = due.aligned(NEIGHBOURHOOD, SIZE).bytes();
            prop_assert_eq!(wide + gaps.iter().map(|g| g.len).sum::<u64>(), SIZE);
        }

        #[test]
        fn only_what_is_done_is_given_up_and_never_the_proof(
            ranges in proptest::collection::vec((0u64..15_900, 1u64..64), 1..50),
            order in proptest::collection::vec(any::<prop::sample::Index>(), 0..80),
        ) {
            let due = due(&ranges);
            prop_assume!(!due.is_empty());
            let all: Vec<_> = due.iter().collect();
            let mut progress = Progress::new(&due, SIZE);
            let mut done = ExtentSet::new();
            let picks: Vec<_> = order.iter().map(|i| *i.get(&all)).chain(all.iter().copied()).collect();
            let mut given_up = ExtentSet::new();
            for extent in picks {
                done.insert(extent);
                if let Some(part) = progress.note(&due, extent) {
                    for d in all.iter().filter(|d| overlaps(**d, part)) {
                        prop_assert!(done.contains(*d), "{d:?} was given up unread");
                    }
                    prop_assert!(!overlaps(part, kept(all[0])));
                    given_up.insert(part);
                }
            }
            let rest = kept(all[0]).end().min(SIZE);
            prop_assert!(given_up.contains(Extent::new(rest, SIZE - rest)), "all done, all given up");
        }
    }
}
