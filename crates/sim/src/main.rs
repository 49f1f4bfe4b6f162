//! `understudy-sim`: runs worlds from seeds, and replays one.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use clap::Parser;
use understudy_sim::campaign::{Verdict, run_seed};
use understudy_sim::judge::Rule;
use understudy_sim::trace::Keep;

/// Runs deterministic worlds around the replication engine, the wire, the run format and the store.
#[derive(Parser)]
#[command(name = "understudy-sim", version)]
struct Options {
    /// How many seeds to run.
    #[arg(long, default_value_t = 2000, conflicts_with = "seed")]
    seeds: u64,
    /// The first of them.
    #[arg(long, default_value_t = 0)]
    from: u64,
    /// Replays one seed.
    #[arg(long)]
    seed: Option<u64>,
    /// Prints the trace of the replayed seed.
    #[arg(long, requires = "seed")]
    trace: bool,
    /// Worlds at a time, each on a thread of its own.
    #[arg(long, default_value_t = 2)]
    threads: usize,
}

fn main() -> ExitCode {
    let options = Options::parse();
    match options.seed {
        Some(seed) => replay(seed, options.trace),
        None => campaign(&options),
    }
}

fn replay(seed: u64, with_trace: bool) -> ExitCode {
    let verdict = run_seed(seed, if with_trace { Keep::Print } else { Keep::Recent });
    if !with_trace && !verdict.violations.is_empty() {
        verdict.recent.iter().for_each(|line| println!("{line}"));
    }
    println!("{verdict}");
    exit(verdict.violations.is_empty())
}

fn campaign(options: &Options) -> ExitCode {
    let next = AtomicU64::new(options.from);
    let end = options.from.saturating_add(options.seeds);
    let totals = Mutex::new(Totals::default());
    std::thread::scope(|scope| {
        for _ in 0..options.threads.max(1) {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= end {
                        break;
                    }
                    let verdict = run_seed(seed, Keep::Digest);
                    totals.lock().expect("no thread panics while it adds up").add(&verdict);
                }
            });
        }
    });
    let totals = totals.into_inner().expect("no thread panics while it adds up");
    totals.print(options);
    exit(totals.failed.is_empty())
}

fn exit(is_well: bool) -> ExitCode {
    if is_well { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

#[derive(Default)]
struct Totals {
    runs: u64,
    counting: u64,
    acks: u64,
    checks: BTreeMap<Rule, (u64, u64)>,
    /// Order of completion depends on the threads, so the digests are kept by seed.
    digests: BTreeMap<u64, String>,
    failed: BTreeMap<u64, String>,
}

impl Totals {
    fn add(&mut self, verdict: &Verdict) {
        self.runs += 1;
        self.counting += u64::from(verdict.counts);
        self.acks += verdict.acks;
        for (rule, checks) in &verdict.checks {
            let (runs, times) = self.checks.entry(*rule).or_default();
            *runs += 1;
            *times += checks;
        }
        self.digests.insert(verdict.seed, verdict.digest.clone());
        if let Some(violation) = verdict.violations.first() {
            println!("seed {}: {violation}", verdict.seed);
            println!("    replay with: cargo run -p understudy-sim -- --seed {} --trace", verdict.seed);
            self.failed.insert(verdict.seed, violation.to_string());
        }
    }

    fn print(&self, options: &Options) {
        println!("rule   runs     looks  what");
        for (rule, (runs, times)) in &self.checks {
            println!("{:<5} {runs:>5} {times:>9}  {}", rule.to_string(), rule.text());
        }
        let mut hasher = blake3::Hasher::new();
        for (seed, digest) in &self.digests {
            hasher.update(&seed.to_le_bytes());
            hasher.update(digest.as_bytes());
        }
        println!(
            "{} seeds from {}: {} failed; {} count, having acknowledged cycles before and after a fault; {} cycles; \
             traces {}",
            self.runs,
            options.from,
            self.failed.len(),
            self.counting,
            self.acks,
            &hasher.finalize().to_hex()[..16]
        );
    }
}
