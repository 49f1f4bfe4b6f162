//! `understudy-sim`: runs worlds from seeds, and replays one.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use clap::Parser;
use understudy_sim::campaign::{Verdict, run_seed, run_with};
use understudy_sim::coverage::Coverage;
use understudy_sim::judge::Rule;
use understudy_sim::mutation::{Mutation, SEEDS_MAX, find, quietly};
use understudy_sim::trace::Keep;

/// Runs deterministic worlds around the replication engine, the wire, the run format and the store.
#[derive(Parser)]
#[command(name = "understudy-sim", version)]
struct Options {
    /// How many seeds to run.
    #[arg(long, default_value_t = 2000, conflicts_with = "seed")]
    seeds: u64,
    /// The first of them; without it they are fresh, and named at the end.
    #[arg(long)]
    from: Option<u64>,
    /// Replays one seed.
    #[arg(long)]
    seed: Option<u64>,
    /// Prints the trace of the replayed seed.
    #[arg(long, requires = "seed")]
    trace: bool,
    /// Worlds at a time, each on a thread of its own; without it one for each processor.
    #[arg(long)]
    threads: Option<usize>,
    /// Makes a mistake on purpose in the replayed world.
    #[arg(long, requires = "seed")]
    mutation: Option<String>,
    /// Makes every mistake on purpose, and fails if one is not noticed.
    #[arg(long, conflicts_with_all = ["seed", "from"])]
    mutations: bool,
}

/// Seeds from which on everything that has a name must have been met.
const SEEDS_TO_MEET_ALL: u64 = 2000;

fn main() -> ExitCode {
    let options = Options::parse();
    match options.seed {
        Some(seed) => replay(seed, &options),
        None if options.mutations => mutations(),
        None => campaign(&options),
    }
}

fn replay(seed: u64, options: &Options) -> ExitCode {
    let with_trace = options.trace;
    let named = |name: &String| Mutation::ALL.iter().copied().find(|m| m.to_string() == *name);
    let mutation = options.mutation.as_ref().map(|name| named(name).ok_or(name));
    let Ok(mutation) = mutation.transpose() else {
        eprintln!("there is no such mutation; there are {:?}", Mutation::ALL);
        return ExitCode::FAILURE;
    };
    let verdict = run_with(seed, if with_trace { Keep::Print } else { Keep::Recent }, mutation);
    if !with_trace && !verdict.violations.is_empty() {
        verdict.recent.iter().for_each(|line| println!("{line}"));
    }
    println!("{verdict}");
    exit(verdict.violations.is_empty())
}

fn mutations() -> ExitCode {
    let mut missed = 0;
    for mutation in Mutation::ALL {
        match quietly(|| find(*mutation)) {
            Some(verdict) => {
                println!("{mutation:<22} noticed at seed {:>3}: {}", verdict.seed, verdict.violations[0]);
            }
            None => {
                println!("{mutation:<22} NOT NOTICED in {SEEDS_MAX} seeds");
                missed += 1;
            }
        }
    }
    exit(missed == 0)
}

/// A first seed that was hardly ever used before.
fn fresh() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    // A campaign of a second's worth of seeds never meets the next one's.
    since.as_secs() * 10_000
}

fn campaign(options: &Options) -> ExitCode {
    let from = options.from.unwrap_or_else(fresh);
    let threads = options.threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(2, usize::from));
    let next = AtomicU64::new(from);
    let end = from.saturating_add(options.seeds);
    let totals = Mutex::new(Totals::default());
    std::thread::scope(|scope| {
        for _ in 0..threads.max(1) {
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
    totals.print(from);
    exit(totals.failed.is_empty() & totals.has_met_all())
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
    coverage: Coverage,
    /// Order of completion depends on the threads, so the digests are kept by seed.
    digests: BTreeMap<u64, String>,
    failed: BTreeMap<u64, String>,
}

impl Totals {
    fn add(&mut self, verdict: &Verdict) {
        self.runs += 1;
        self.counting += u64::from(verdict.counts);
        self.acks += verdict.acks;
        self.coverage.add(&verdict.coverage);
        for (rule, checks) in &verdict.checks {
            let (runs, times) = self.checks.entry(*rule).or_default();
            *runs += 1;
            *times += checks;
        }
        self.digests.insert(verdict.seed, verdict.digest.clone());
        if let Some(violation) = verdict.violations.first() {
            println!("seed {}: {violation}", verdict.seed);
            println!("    replay with: cargo xtask sim --seed {} -- --trace", verdict.seed);
            self.failed.insert(verdict.seed, violation.to_string());
        }
    }

    /// Whether everything was met that has a name; a short campaign need not.
    fn has_met_all(&self) -> bool {
        let missing = if self.runs < SEEDS_TO_MEET_ALL { Vec::new() } else { self.coverage.missing() };
        missing.iter().for_each(|name| println!("NEVER MET  {name}"));
        missing.is_empty()
    }

    fn print(&self, from: u64) {
        print!("{}", self.coverage);
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
            from,
            self.failed.len(),
            self.counting,
            self.acks,
            &hasher.finalize().to_hex()[..16]
        );
    }
}
