//! Puts bulk frames that travelled over several connections back into the order in which they were made.

use std::collections::BTreeMap;

/// Why a frame does not fit into the order.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReorderError {
    /// The sender is further ahead than both sides agreed.
    #[error("bulk frame {sequence} is beyond the window that begins at {expected}")]
    BeyondWindow {
        /// What arrived.
        sequence: u64,
        /// What is expected next.
        expected: u64,
    },
}

/// A bounded window of frames waiting for their predecessors.
///
/// Invariant: at most `window` frames are held, all numbered above `next`.
#[derive(Debug)]
pub struct Reorder<T> {
    next: u64,
    window: usize,
    waiting: BTreeMap<u64, T>,
}

impl<T> Reorder<T> {
    /// Expects number 0 first and holds at most `window` later ones.
    pub fn new(window: usize) -> Self {
        Self { next: 0, window, waiting: BTreeMap::new() }
    }

    /// Takes a frame in. A frame seen before is dropped without a word: repeats do no harm.
    pub fn push(&mut self, sequence: u64, frame: T) -> Result<(), ReorderError> {
        if sequence < self.next {
            return Ok(());
        }
        if sequence - self.next >= self.window as u64 {
            return Err(ReorderError::BeyondWindow { sequence, expected: self.next });
        }
        self.waiting.entry(sequence).or_insert(frame);
        Ok(())
    }

    /// The next frame in order, if it has arrived.
    pub fn pop(&mut self) -> Option<T> {
        let frame = self.waiting.remove(&self.next)?;
        self.next += 1;
        Some(frame)
    }

    /// How many frames came out in order so far.
    pub fn delivered(&self) -> u64 {
        self.next
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_order_within_the_window_comes_out_sorted(keys in proptest::collection::vec(any::<u16>(), 1..64)) {
            let mut order: Vec<usize> = (0..keys.len()).collect();
            order.sort_by_key(|i| keys[*i]);
            let mut reorder = Reorder::new(64);
            let mut out = Vec::new();
            for i in order {
                reorder.push(i as u64, i).unwrap();
                reorder.push(i as u64, usize::MAX).unwrap();
                out.extend(std::iter::from_fn(|| reorder.pop()));
            }
            prop_assert_eq!(out, (0..keys.len()).collect::<Vec<_>>());
        }
    }

    #[test]
    fn a_frame_beyond_the_window_is_refused() {
        let mut reorder = Reorder::new(4);
        assert!(reorder.push(3, ()).is_ok());
        assert_eq!(reorder.push(4, ()), Err(ReorderError::BeyondWindow { sequence: 4, expected: 0 }));
        assert!(reorder.push(u64::MAX, ()).is_err());
    }
}
