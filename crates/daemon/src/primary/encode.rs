//! Hashing and compressing, on the blocking pool: one piece of a disk in, ready records out.
//!
//! The level follows the link. Whoever waits longer is the bottleneck: if the socket does, more is spent on
//! compression; if compression does, less.

use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};
use std::time::Duration;

use understudy_run::{ClusterHash, Encoder};

/// Levels from cheap to thorough. Measured per core on a file system image: -5 packs 0.50 GB/s to 44 %, -1 0.39 GB/s
/// to 35 %, 1 0.35 GB/s to 32 %, 3 0.25 GB/s to 30 %.
const LEVELS: [i32; 4] = [-5, -1, 1, 3];
/// Waiting after which the level is looked at again.
const WINDOW: Duration = Duration::from_millis(250);

/// The compression level in force, shared by a session's transfers.
#[derive(Debug)]
pub struct Effort {
    index: AtomicI32,
    encode_ns: AtomicU64,
    send_ns: AtomicU64,
}

impl Default for Effort {
    fn default() -> Self {
        Self { index: AtomicI32::new(2), encode_ns: AtomicU64::new(0), send_ns: AtomicU64::new(0) }
    }
}

impl Effort {
    /// The level to compress with now.
    pub fn level(&self) -> i32 {
        LEVELS[self.index.load(Ordering::Relaxed).clamp(0, LEVELS.len() as i32 - 1) as usize]
    }

    /// Notes how long the pipeline waited for compressed data.
    pub fn waited_for_encoding(&self, waited: Duration) {
        self.encode_ns.fetch_add(waited.as_nanos() as u64, Ordering::Relaxed);
        self.reconsider();
    }

    /// Notes how long the pipeline waited for the link.
    pub fn waited_for_link(&self, waited: Duration) {
        self.send_ns.fetch_add(waited.as_nanos() as u64, Ordering::Relaxed);
        self.reconsider();
    }

    fn reconsider(&self) {
        let (encode, send) = (self.encode_ns.load(Ordering::Relaxed), self.send_ns.load(Ordering::Relaxed));
        if u128::from(encode + send) < WINDOW.as_nanos() {
            return;
        }
        self.encode_ns.store(0, Ordering::Relaxed);
        self.send_ns.store(0, Ordering::Relaxed);
        let step = if encode > 2 * send { -1 } else { i32::from(send > 2 * encode) };
        let next = (self.index.load(Ordering::Relaxed) + step).clamp(0, LEVELS.len() as i32 - 1);
        self.index.store(next, Ordering::Relaxed);
    }
}

/// An encoder of this level, or one that keeps everything as it is.
pub fn encoder(compression: bool, effort: &Effort) -> Encoder {
    if compression { Encoder::new(effort.level()).unwrap_or_else(|_| Encoder::plain()) } else { Encoder::plain() }
}

/// A piece of a disk, hashed and packed.
#[derive(Debug)]
pub enum Packed {
    /// All zero.
    Zero,
    /// Worth compressing.
    Compressed(ClusterHash, Vec<u8>),
    /// Kept as it is.
    Plain(ClusterHash),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slow_link_gets_more_compression_and_a_fast_one_less() {
        let effort = Effort::default();
        assert_eq!(effort.level(), 1);
        (0..9).for_each(|_| effort.waited_for_link(WINDOW));
        assert_eq!(effort.level(), 3);
        (0..9).for_each(|_| effort.waited_for_encoding(WINDOW));
        assert_eq!(effort.level(), -5);
        effort.waited_for_encoding(WINDOW / 2);
        effort.waited_for_link(WINDOW / 2);
        assert_eq!(effort.level(), -5, "balance changes nothing");
    }
}
