//! Builds and runs a fuzz target of `fuzz/`.
//!
//! The compiler's own coverage instrumentation is enough for the fuzzer to find its way, so neither a nightly compiler nor another cargo
//! command is needed. Without a nightly there is no address sanitizer; the code under test has no unsafe blocks for it to watch.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, bail};
use clap::Args;
use understudy_testkit::cache;

use crate::cargo::run;

/// Instrumentation that the fuzzer's runtime expects.
const FLAGS: &str = "--cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares -Ccodegen-units=1 -Cdebug-assertions -Coverflow-checks";
/// Named, so that build scripts are not instrumented.
const TRIPLE: &str = "x86_64-unknown-linux-gnu";

/// What to fuzz and for how long.
#[derive(Debug, Args)]
pub struct Fuzz {
    /// A file of fuzz/fuzz_targets
    target: String,
    /// How long; without, until something is found
    #[arg(long)]
    seconds: Option<u64>,
    /// Passed on to libFuzzer
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    rest: Vec<String>,
}

impl Fuzz {
    /// Builds the target, and runs it from its corpus. What it finds goes to the target directory; an input worth keeping is
    /// moved to the committed corpus by hand.
    pub fn run(&self) -> Result<()> {
        let root = cache::source_dir().join("fuzz");
        if !root.join("fuzz_targets").join(format!("{}.rs", self.target)).is_file() {
            bail!("no target {} in fuzz/fuzz_targets", self.target);
        }
        let found = cache::target_dir()?.join("fuzz/found").join(&self.target);
        std::fs::create_dir_all(&found)?;
        let program = self.build(&root)?;
        let mut command = Command::new(program);
        command.arg(&found).current_dir(&root).arg(format!("-artifact_prefix={}/failed-", found.display()));
        command.args(Some(root.join("corpus").join(&self.target)).filter(|corpus| corpus.is_dir()));
        command.args(self.seconds.map(|seconds| format!("-max_total_time={seconds}"))).args(&self.rest);
        run(command)
    }

    fn build(&self, root: &Path) -> Result<PathBuf> {
        let target = cache::target_dir()?.join("fuzz");
        let mut command = Command::new("cargo");
        command.args(["build", "--release", "--bin", &self.target, "--target", TRIPLE, "--target-dir"]);
        command.arg(&target).current_dir(root).env("RUSTFLAGS", FLAGS);
        run(command)?;
        Ok(target.join(TRIPLE).join("release").join(&self.target))
    }
}
