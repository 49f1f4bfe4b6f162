//! One seed from beginning to end, and what came of it.

use std::collections::BTreeMap;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::coverage::Coverage;
use crate::fault::Fault;
use crate::judge::{Rule, Violation};
use crate::mutation::Mutation;
use crate::trace::Keep;
use crate::world::World;

/// What came of a run.
#[derive(Debug, Clone)]
pub struct Verdict {
    /// The seed.
    pub seed: u64,
    /// Promises that were broken.
    pub violations: Vec<Violation>,
    /// How often each rule was looked at and found kept.
    pub checks: BTreeMap<Rule, u64>,
    /// Whether cycles were acknowledged before and after a fault.
    pub counts: bool,
    /// Cycles acknowledged.
    pub acks: u64,
    /// Faults that struck.
    pub faults: Vec<Fault>,
    /// What was met.
    pub coverage: Coverage,
    /// Names the trace.
    pub digest: String,
    /// Lines of the trace.
    pub lines: u64,
    /// The last lines of the trace, where they were kept.
    pub recent: Vec<String>,
    /// Virtual seconds it took.
    pub seconds: u64,
}

/// Runs the world of a seed.
pub fn run_seed(seed: u64, keep: Keep) -> Verdict {
    run_with(seed, keep, None)
}

/// The same, with a mistake made on purpose.
pub fn run_with(seed: u64, keep: Keep, mutation: Option<Mutation>) -> Verdict {
    let mut world = World::new(seed, keep, mutation);
    let ended = catch_unwind(AssertUnwindSafe(|| world.run()));
    if let Err(panic) = ended {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
        world.broken(Rule::I51, format!("panicked: {}", text.unwrap_or_default()));
    }
    let judge = world.judge();
    Verdict {
        seed,
        violations: judge.violations().to_vec(),
        checks: judge.checks().clone(),
        counts: judge.counts(),
        acks: judge.acks().len() as u64,
        faults: world.struck().to_vec(),
        coverage: world.coverage(),
        digest: world.trace().digest(),
        lines: world.trace().lines(),
        recent: world.trace().recent(),
        seconds: world.now().0 / 1000,
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "seed {}: {} virtual seconds, {} cycles, trace {}",
            self.seed, self.seconds, self.acks, self.digest
        )?;
        writeln!(f, "faults: {:?}", self.faults)?;
        let rules: Vec<String> = self.checks.iter().map(|(rule, n)| format!("{rule} {n}")).collect();
        writeln!(f, "looked at: {}", rules.join(", "))?;
        if !self.counts {
            writeln!(f, "does not count: no cycle was acknowledged both before and after a fault")?;
        }
        for violation in &self.violations {
            writeln!(f, "BROKEN {violation}")?;
        }
        write!(f, "{}", if self.violations.is_empty() { "all promises were kept" } else { "promises were broken" })
    }
}
