//! What happened, line by line: for people who replay a seed, and as a digest that tells two runs apart.

use std::fmt;

use understudy_model::Timestamp;

/// Most lines kept when nobody reads along: enough to see what led to a failure.
const KEPT_MAX: usize = 400;

/// The trace of one run.
pub struct Trace {
    hasher: blake3::Hasher,
    lines: u64,
    recent: std::collections::VecDeque<String>,
    keep: Keep,
}

/// How much of a trace is kept as text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keep {
    /// Only the digest.
    Digest,
    /// The last lines.
    Recent,
    /// Printed as it comes.
    Print,
}

impl Trace {
    /// An empty trace.
    pub fn new(keep: Keep) -> Self {
        Self { hasher: blake3::Hasher::new(), lines: 0, recent: std::collections::VecDeque::new(), keep }
    }

    /// Adds a line.
    pub fn line(&mut self, now: Timestamp, who: &str, what: fmt::Arguments<'_>) {
        let line = format!("{:>9}.{:03} {who:<8} {what}", now.0 / 1000, now.0 % 1000);
        self.hasher.update(line.as_bytes());
        self.hasher.update(b"\n");
        self.lines += 1;
        match self.keep {
            Keep::Digest => {}
            Keep::Print => println!("{line}"),
            Keep::Recent => {
                if self.recent.len() == KEPT_MAX {
                    self.recent.pop_front();
                }
                self.recent.push_back(line);
            }
        }
    }

    /// Names the whole trace so far.
    pub fn digest(&self) -> String {
        self.hasher.finalize().to_hex()[..16].to_owned()
    }

    /// How many lines there were.
    pub fn lines(&self) -> u64 {
        self.lines
    }

    /// The last lines, oldest first.
    pub fn recent(&self) -> Vec<String> {
        self.recent.iter().cloned().collect()
    }
}
