//! The `understudy` program: the daemon (`understudy serve`), and everything people ask of it.
//!
//! Each command is a client of the API on the daemon's unix socket and holds no truth of its own. With `--json` it
//! prints the API's objects as they came. What goes wrong goes to standard error, the chain of causes first, then a
//! hint; the exit code tells the kinds of failure apart.

mod arguments;
mod client;
mod command;
mod failure;
mod follow;
#[cfg(test)]
mod reference;
mod serve;
mod show;

use std::process::ExitCode;

use clap::Parser;

use arguments::{Arguments, Command};
use failure::Failure;

fn main() -> ExitCode {
    end_quietly_on_closed_pipe();
    let arguments = Arguments::parse();
    let json = arguments.json;
    match run(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            failure.print(json);
            failure.exit_code()
        }
    }
}

fn run(arguments: Arguments) -> Result<(), Failure> {
    let runtime = |threads: bool| {
        let mut builder = if threads {
            tokio::runtime::Builder::new_multi_thread()
        } else {
            tokio::runtime::Builder::new_current_thread()
        };
        builder.enable_all().build().map_err(|err| Failure::Other(anyhow::Error::new(err).context("cannot start")))
    };
    match arguments.command {
        Command::Serve(flags) => runtime(true)?.block_on(serve::run(flags, arguments.socket)),
        Command::Openapi => {
            print!("{}", understudy_daemon::faces::rest::document());
            Ok(())
        }
        Command::Guard => guard(),
        command => runtime(false)?.block_on(command::run(command, arguments.socket, arguments.json)),
    }
}

/// `understudy vm list | head -1`: whoever reads has seen enough. The standard library panics over that, and has no other
/// way to be told so without unsafe code.
fn end_quietly_on_closed_pipe() {
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        let text = panic.payload_as_str().unwrap_or_default();
        if text.starts_with("failed printing to stdout: Broken pipe") {
            std::process::exit(0);
        }
        usual(panic);
    }));
}

fn guard() -> Result<(), Failure> {
    use std::os::fd::AsFd;
    let input = std::io::stdin().as_fd().try_clone_to_owned();
    let ended = input.and_then(understudy_hypervisor::guard::run);
    ended.map_err(|err| Failure::Other(anyhow::Error::new(err).context("the guard ended")))
}
