//! The benches: what replication costs, beside other programs that move the same bytes, measured in the same run on the same image.
//!
//! Two network namespaces stand for two hosts; all contenders send over the same wire between them, whose counters say how much they
//! sent. They take turns, in another order each time, and medians are printed with the least and the most, and as ratios to
//! ours. Nothing is asserted about time: a busy machine makes figures worse for all, and fails nobody. What is asserted is that each
//! copy is equal to the original.
//!
//! See docs/performance.md for what each contender is told to do, and how its data is made durable.

mod content;
mod delta;
mod empty;
mod full;
mod lab;
mod latency;
mod meter;
mod peers;
mod table;
mod takeover;

use anyhow::{Result, bail};
use clap::{Parser, ValueEnum};
use understudy_testkit::net::Net;

use lab::Lab;

/// Ratios against other programs, measured in the same run
#[derive(Debug, Clone, Parser)]
pub struct Options {
    /// Which benches; all without
    #[arg(value_enum)]
    benches: Vec<Bench>,
    /// Size of the image, in MiB
    #[arg(long, value_name = "MIB", default_value_t = 2048)]
    size: u64,
    /// What is written between two cycles, in MiB
    #[arg(long, value_name = "MIB", default_value_t = 64)]
    dirty: u64,
    /// How often each contender takes its turn
    #[arg(long, value_name = "N", default_value_t = 3)]
    repetitions: u64,
    /// How long latencies are sampled each time, in seconds
    #[arg(long, value_name = "N", default_value_t = 10)]
    seconds: u64,
    /// Seed of the image's content and of what is written to it
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// Only ours, to be looked at with a profiler
    #[arg(long)]
    alone: bool,
    /// Everything small and once: shows in about a minute that the benches work
    #[arg(long)]
    quick: bool,
}

/// What can be measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Bench {
    /// The initial copy of a running VM's disk
    Full,
    /// What a VM wrote since the last copy
    Delta,
    /// The initial copy of an empty disk of 1 TiB
    Empty,
    /// What the guest's writes take while cuts are made
    Latency,
    /// From the word to take over to a running guest
    Failover,
}

impl Options {
    fn settled(mut self) -> Self {
        if self.benches.is_empty() {
            self.benches = Bench::value_variants().to_vec();
        }
        if self.quick {
            (self.size, self.dirty, self.repetitions, self.seconds) = (256, 8, 1, 3);
        }
        self
    }

    fn image_bytes(&self) -> u64 {
        self.size << 20
    }

    fn dirty_bytes(&self) -> u64 {
        self.dirty << 20
    }
}

fn main() -> Result<()> {
    let options = Options::parse().settled();
    if Net::must_skip("bench") {
        bail!("the benches need two network namespaces");
    }
    let lab = Lab::new(&options)?;
    println!("{}", lab.describe()?);
    for bench in &options.benches {
        match bench {
            Bench::Full => full::run(&lab)?,
            Bench::Delta => delta::run(&lab)?,
            Bench::Empty => empty::run(&lab)?,
            Bench::Latency => latency::run(&lab)?,
            Bench::Failover => takeover::run(&lab)?,
        }
    }
    Ok(())
}
