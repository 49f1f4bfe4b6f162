//! The workload that runs inside the test guest: it writes in ways whose loss, tearing or reordering can be proven later.
//!
//! Every command prints one line `GUEST-IO <command> key=value …` when it is done, which is what the harness reads; `journal`
//! also prints one `ACK` line for each record once it is durable. Nothing here knows about replication.
//!
//! Invariant: a record is announced only after `fdatasync` on its disk has returned.

mod args;
mod checksum;
mod disk;
mod journal;
mod load;
mod record;
mod verify;

use std::process::ExitCode;

use args::Args;

/// What a command ended with, beside its printed line.
type Outcome = Result<ExitCode, String>;

const USAGE: &str = "\
usage: guest-io COMMAND
  journal DISK [DISK]  [--rate N] [--count N] [--seconds N] [--slots N] [--ack-ms N] [--run ID] [--new]
  verify  DISK [DISK]  [--slots N]
  dirty   DISK --clusters N [--cluster-size BYTES] [--from BYTES] [--seed N]
  heavy   DISK [--seconds N] [--block BYTES] [--sync-every N] [--from BYTES] [--seed N]
  latency DISK [--count N] [--seconds N] [--span BYTES] [--from BYTES] [--seed N]
  fill    DISK --bytes N [--pattern random|text|zero] [--from BYTES] [--seed N]";

fn main() -> ExitCode {
    let mut words = std::env::args().skip(1);
    let command = words.next().unwrap_or_default();
    let outcome = Args::parse(words).and_then(|args| match command.as_str() {
        "journal" => journal::run(args),
        "verify" => verify::run(args),
        "dirty" => load::dirty(args),
        "heavy" => load::heavy(args),
        "latency" => load::latency(args),
        "fill" => load::fill(args),
        _ => Err(USAGE.to_string()),
    });
    match outcome {
        Ok(code) => code,
        Err(why) => {
            disk::say(&format!("GUEST-IO {command} error={}", why.replace(char::is_whitespace, "_")));
            eprintln!("{why}");
            ExitCode::from(64)
        }
    }
}
