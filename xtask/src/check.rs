//! Format, lints and tidiness.

use anyhow::Result;

use crate::cargo::{cargo, run};
use crate::steps::Steps;
use crate::{specification, tidy};

/// All checks that need no test to run.
pub fn all(steps: &mut Steps) {
    steps.run("format", |_| format());
    steps.run("tidy", |_| tidy::check());
    steps.run("specification", |_| specification::check());
    steps.run("clippy", |_| run(cargo(&["clippy", "--workspace", "--all-targets"]).deny_warnings()));
    steps.run("docs", |_| docs());
}

fn format() -> Result<()> {
    let mut command = std::process::Command::new("cargo");
    command.args(["fmt", "--all", "--check"]).current_dir(understudy_testkit::cache::source_dir());
    run(command)
}

/// Links between items that lead nowhere are errors, also in what only the project itself reads.
fn docs() -> Result<()> {
    let mut command = cargo(&["doc", "--workspace", "--no-deps", "--document-private-items", "--quiet"]);
    command.env("RUSTDOCFLAGS", "-D warnings -A rustdoc::private-intra-doc-links");
    run(command)
}

trait DenyWarnings {
    fn deny_warnings(self) -> Self;
}

impl DenyWarnings for std::process::Command {
    /// Undocumented public items are warnings while one works, and errors here.
    fn deny_warnings(mut self) -> Self {
        self.args(["--", "-D", "warnings"]);
        self
    }
}
