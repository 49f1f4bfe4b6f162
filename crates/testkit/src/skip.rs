//! Saying that a test cannot run on this machine.
//!
//! The test runner knows only passed and failed, so the word goes past it to the standard output, where `cargo xtask` counts it and takes
//! the test out of those that passed.

use std::io::Write;

/// Begins the line.
pub const WORD: &str = "SKIPPED ";

/// Says that this test is skipped, and why. The test then returns.
pub fn say(test: &str, why: &str) {
    // Not `println!`, which the test runner keeps to itself.
    let mut stdout = std::io::stdout().lock();
    writeln!(stdout, "\n{WORD}{test}: {why}").expect("a test without an output tells nobody anything");
}
