//! Runs cargo, shows what it prints as it comes, and adds up what its test programs report.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use understudy_testkit::skip;

use crate::steps::Counts;

/// The package whose tests need real guests; they run apart from the others, which are quick.
const END_TO_END: &str = "understudy-e2e";
/// Set for tests that compare with a committed file: write the file instead.
const GOLDEN_VARIABLE: &str = "UNDERSTUDY_GOLDEN";

/// A cargo command of this workspace, with the lock file as it is.
pub fn cargo(words: &[&str]) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(words).arg("--locked").current_dir(understudy_testkit::cache::source_dir());
    command
}

/// Builds the programs and every test, so that a failure to compile is not mistaken for a failing test.
pub fn build() -> Result<()> {
    run(cargo(&["build", "--workspace"]))?;
    run(cargo(&["test", "--workspace", "--no-run"]))
}

/// All tests but the end-to-end ones.
pub fn workspace(counts: &mut Counts) -> Result<()> {
    counted(cargo(&["test", "--workspace", "--exclude", END_TO_END, "--no-fail-fast"]), counts)
}

/// The end-to-end tests, all or those whose name contains a word.
pub fn end_to_end(name: Option<&str>, counts: &mut Counts) -> Result<()> {
    run(cargo(&["build", "--bin", "understudy"]))?;
    let mut command = cargo(&["test", "--package", END_TO_END, "--no-fail-fast"]);
    if let Some(name) = name {
        command.args(["--", "--nocapture", name]);
    }
    counted(command, counts)?;
    match name {
        Some(name) if counts.passed == 0 => bail!("no end-to-end test has {name} in its name"),
        _ => Ok(()),
    }
}

/// Runs every test with the word to write what it would compare.
pub fn golden(counts: &mut Counts) -> Result<()> {
    let mut command = cargo(&["test", "--workspace", "--exclude", END_TO_END, "--no-fail-fast"]);
    command.env(GOLDEN_VARIABLE, "write");
    counted(command, counts)
}

/// Runs a command to its end; its output goes to ours.
pub fn run(mut command: Command) -> Result<()> {
    let status = command.status().with_context(|| format!("cannot run {command:?}"))?;
    if !status.success() {
        bail!("{} ended with {status}", shown(&command));
    }
    Ok(())
}

/// As [`run`], and adds up the lines in which test programs report.
pub fn counted(mut command: Command, counts: &mut Counts) -> Result<()> {
    let mut child = command.stdout(Stdio::piped()).spawn().with_context(|| format!("cannot run {command:?}"))?;
    let output = child.stdout.take().context("no pipe from cargo")?;
    let mut tally = Tally::default();
    for line in BufReader::new(output).split(b'\n') {
        let line = String::from_utf8_lossy(&line?).into_owned();
        println!("{line}");
        tally.line(&line);
    }
    *counts = tally.counts;
    let status = child.wait()?;
    if !status.success() {
        bail!("{} ended with {status}", shown(&command));
    }
    Ok(())
}

fn shown(command: &Command) -> String {
    let words = command.get_args().map(|word| word.to_string_lossy());
    format!("cargo {}", words.collect::<Vec<_>>().join(" "))
}

/// Adds up lines like `test result: ok. 3 passed; 1 failed; 2 ignored; …`.
///
/// The runner takes a test that skipped itself for one that passed; the line in which it said so comes before the runner's.
#[derive(Debug, Default)]
struct Tally {
    counts: Counts,
    said_skipped: u64,
}

impl Tally {
    fn line(&mut self, line: &str) {
        self.said_skipped += u64::from(line.starts_with(skip::WORD));
        let Some((_, report)) = line.split_once("test result: ") else { return };
        let number = |word: &str| {
            let part = report.split([';', '.']).find(|part| part.trim().ends_with(word));
            part.and_then(|part| part.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or(0)
        };
        let skipped = std::mem::take(&mut self.said_skipped);
        self.counts.passed += number("passed").saturating_sub(skipped);
        self.counts.failed += number("failed");
        self.counts.skipped += number("ignored") + skipped;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_of_test_programs_are_added_up() {
        let mut tally = Tally::default();
        let lines = [
            "test result: ok. 16 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.2s",
            "running 9 passed; tests",
            "SKIPPED a_test: needs root",
            "test result: FAILED. 3 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out",
        ];
        lines.iter().for_each(|line| tally.line(line));
        assert_eq!(tally.counts, Counts { passed: 18, failed: 2, skipped: 2 });
    }
}
