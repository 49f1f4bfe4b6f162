//! Starts the project's own programs that prove something: the simulator, the demo, the benches.

use std::process::Command;

use anyhow::{Context, Result, bail};
use clap::Args;
use serde_json::Value;
use understudy_testkit::cache;

use crate::cargo::{cargo, run};
use crate::steps::Counts;

/// What the simulator is asked for.
#[derive(Debug, Default, Args)]
pub struct Sim {
    /// One world, as a failure named it
    #[arg(long, conflicts_with = "seeds")]
    seed: Option<u64>,
    /// So many worlds, from random seeds
    #[arg(long)]
    seeds: Option<u64>,
    /// Built for speed: worth it for thousands of worlds
    #[arg(long)]
    release: bool,
    /// Passed on to the simulator
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    rest: Vec<String>,
}

/// Worlds in CI: two minutes of two processors, and enough that everything the simulator can meet is met.
const SEEDS_IN_CI: u64 = 2_000;

impl Sim {
    /// What CI asks for: seeds that no other commit has, and the same ones whenever this commit is looked at.
    pub fn for_ci() -> Self {
        let rest = first_seed().map(|seed| format!("--from={seed}")).into_iter().collect();
        Sim { seeds: Some(SEEDS_IN_CI), rest, ..Sim::default() }
    }
}

/// A first seed made from the commit; without one the simulator draws its own.
fn first_seed() -> Option<u64> {
    let mut command = Command::new("git");
    let output =
        command.args(["-c", "safe.directory=*", "rev-parse", "HEAD"]).current_dir(cache::source_dir()).output().ok()?;
    let commit = String::from_utf8(output.stdout).ok().filter(|_| output.status.success())?;
    let digits = commit.get(..SEED_DIGITS)?;
    u64::from_str_radix(digits, 16).ok()
}

/// Digits of a commit's name that make a seed: short enough to be typed.
const SEED_DIGITS: usize = 10;

/// Runs the simulator.
pub fn sim(sim: &Sim, counts: &mut Counts) -> Result<()> {
    let mut words = Vec::new();
    words.extend(sim.seed.map(|seed| format!("--seed={seed}")));
    words.extend(sim.seeds.map(|seeds| format!("--seeds={seeds}")));
    words.extend(sim.rest.iter().cloned());
    program("understudy-sim", "understudy-sim", sim.release, &words, counts)
}

/// Runs the demo.
pub fn demo(rest: &[String], counts: &mut Counts) -> Result<()> {
    run(cargo(&["build", "--bin", "understudy"]))?;
    program("understudy-e2e", "demo", false, rest, counts)
}

/// Runs the benches, built as they would be shipped.
pub fn bench(rest: &[String], counts: &mut Counts) -> Result<()> {
    run(cargo(&["build", "--release", "--bin", "understudy"]))?;
    program("understudy-e2e", "bench", true, rest, counts)
}

/// Runs a program of the workspace; one that does not exist counts as skipped, and is said to be.
fn program(package: &str, name: &str, release: bool, words: &[String], counts: &mut Counts) -> Result<()> {
    if !exists(package, name)? {
        println!("SKIPPED: {package} has no program {name}");
        counts.skipped += 1;
        return Ok(());
    }
    let mut command = cargo(&["run", "--package", package, "--bin", name]);
    if release {
        command.arg("--release");
    }
    command.arg("--").args(words);
    run(command)
}

fn exists(package: &str, name: &str) -> Result<bool> {
    let mut command = cargo(&["metadata", "--format-version", "1", "--no-deps"]);
    let output = command.output().context("cannot run cargo metadata")?;
    if !output.status.success() {
        bail!("cargo metadata failed: {}", String::from_utf8_lossy(&output.stderr));
    }
    let metadata: Value = serde_json::from_slice(&output.stdout).context("cargo metadata gave no JSON")?;
    let packages = metadata["packages"].as_array().context("cargo metadata names no packages")?;
    let targets = packages.iter().filter(|p| p["name"] == package).filter_map(|p| p["targets"].as_array()).flatten();
    let mut programs = targets.filter(|target| target["kind"][0] == "bin");
    Ok(programs.any(|target| target["name"] == name))
}
