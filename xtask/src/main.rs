//! `cargo xtask …`: the one door to everything people and CI run, needing nothing but cargo.
//!
//! Each command is a list of steps (see `steps`); a step prints how long it took, and the last line says how many passed and failed.
//! What a command needs of the machine is installed by `setup`, which says what it does.

mod cargo;
mod check;
mod clients;
mod dependencies;
mod fuzz;
mod licence;
mod programs;
mod setup;
mod specification;
mod steps;
mod tidy;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

use steps::Steps;

#[derive(Parser)]
#[command(about = "Everything people and CI run", disable_help_subcommand = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Format, lints and tidiness: the inner loop
    Check,
    /// Everything that must pass, but for the checks of `check`
    Test,
    /// What CI runs: check, dependencies, test
    Ci,
    /// Licences, sources and the list of dependencies
    Dependencies,
    /// The deterministic world: one seed, or many
    Sim(programs::Sim),
    /// End-to-end tests with real guests, all or those whose name contains NAME
    E2e {
        /// Part of a test's name
        name: Option<String>,
    },
    /// Two hosts and a real guest: replicate, lose the primary, fail over, verify
    Demo {
        /// Passed on to the demo
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        rest: Vec<String>,
    },
    /// Ratios against other programs, measured in the same run
    Bench {
        /// Which bench, and its options; all without
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        rest: Vec<String>,
    },
    /// Refreshes what is generated and committed
    Golden,
    /// Feeds random bytes to a parser
    Fuzz(fuzz::Fuzz),
    /// Installs what is missing on this machine, and makes the test guest
    Setup {
        /// Also what the benches compare with: rsync, sshd, virtnbdbackup with libvirt
        #[arg(long)]
        bench: bool,
    },
}

fn main() -> ExitCode {
    let mut steps = Steps::new();
    if let Err(err) = run(Arguments::parse().command, &mut steps) {
        steps.failed(&err);
    }
    steps.finish()
}

fn run(command: Command, steps: &mut Steps) -> Result<()> {
    match command {
        Command::Check => check::all(steps),
        Command::Dependencies => steps.run("dependencies", |_| dependencies::check()),
        Command::Test => test(steps),
        Command::Ci => {
            check::all(steps);
            steps.run("dependencies", |_| dependencies::check());
            test(steps);
        }
        Command::Sim(sim) => steps.run("sim", |counts| programs::sim(&sim, counts)),
        Command::E2e { name } => {
            setup(steps);
            steps.run("e2e", |counts| cargo::end_to_end(name.as_deref(), counts));
        }
        Command::Demo { rest } => {
            setup(steps);
            steps.run("demo", |counts| programs::demo(&rest, counts));
        }
        Command::Bench { rest } => {
            setup(steps);
            steps.run("bench setup", |_| setup::install_for_bench());
            steps.run("bench", |counts| programs::bench(&rest, counts));
        }
        Command::Golden => steps.run("golden", cargo::golden),
        Command::Fuzz(fuzz) => steps.run("fuzz", |_| fuzz.run()),
        Command::Setup { bench } => {
            setup(steps);
            steps.run("clients", |_| clients::install());
            if bench {
                steps.run("bench setup", |_| setup::install_for_bench());
            }
        }
    }
    Ok(())
}

fn setup(steps: &mut Steps) {
    steps.run("setup", |_| setup::install());
    steps.run("guest", |_| setup::guest());
}

fn test(steps: &mut Steps) {
    setup(steps);
    steps.run("clients", |_| clients::install());
    steps.run("build", |_| cargo::build());
    steps.run("test", cargo::workspace);
    steps.run("sim", |counts| programs::sim(&programs::Sim::for_ci(), counts));
    steps.run("e2e", |counts| cargo::end_to_end(None, counts));
}
