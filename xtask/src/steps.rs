//! Steps of a command: each is announced, timed and counted, and a failed one does not keep the others from telling what they know.

use std::process::ExitCode;
use std::time::Instant;

use anyhow::Result;

/// What tests and steps came to.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Counts {
    /// Passed.
    pub passed: u64,
    /// Failed.
    pub failed: u64,
    /// Not run, and said so.
    pub skipped: u64,
}

/// The steps so far.
#[derive(Debug)]
pub struct Steps {
    started: Instant,
    total: Counts,
    lines: Vec<String>,
}

impl Steps {
    /// No step yet.
    pub fn new() -> Self {
        Steps { started: Instant::now(), total: Counts::default(), lines: Vec::new() }
    }

    /// Runs one step. It counts as one, passed or failed, unless it counts tests itself.
    pub fn run(&mut self, name: &str, step: impl FnOnce(&mut Counts) -> Result<()>) {
        println!("==> {name}");
        let started = Instant::now();
        let mut counts = Counts::default();
        let outcome = step(&mut counts);
        if let Err(err) = &outcome {
            eprintln!("{name}: {err:#}");
            counts.failed = counts.failed.max(1);
        } else if counts == Counts::default() {
            counts.passed = 1;
        }
        let word = if counts.failed > 0 { "failed" } else { "ok" };
        let line = format!("{name:<14} {word:<7} {:>7.1} s", started.elapsed().as_secs_f64());
        println!("<== {line}");
        self.lines.push(line);
        self.add(counts);
    }

    /// Counts an error outside all steps.
    pub fn failed(&mut self, err: &anyhow::Error) {
        eprintln!("{err:#}");
        self.add(Counts { failed: 1, ..Counts::default() });
    }

    fn add(&mut self, counts: Counts) {
        self.total.passed += counts.passed;
        self.total.failed += counts.failed;
        self.total.skipped += counts.skipped;
    }

    /// Prints the steps with their times and the closing line.
    pub fn finish(self) -> ExitCode {
        println!();
        for line in &self.lines {
            println!("{line}");
        }
        let Counts { passed, failed, skipped } = self.total;
        let skipped = if skipped > 0 { format!(", {skipped} skipped") } else { String::new() };
        println!("{passed} passed, {failed} failed{skipped} in {:.1} s", self.started.elapsed().as_secs_f64());
        if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }
}
