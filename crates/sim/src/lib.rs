//! A deterministic world around the real engine, wire, run and store crates, and the promises it checks.
//!
//! Everything comes from a seed: what the disks are like, what the guest writes, how long things take, what goes
//! wrong and what operators ask for. There is one thread, virtual time, no clock, no runtime and no map without order,
//! so a seed always gives the same trace. `docs/internals/simulation.md` tells what is covered and how to use it.

pub mod agenda;
pub mod campaign;
pub mod chance;
pub mod coverage;
pub mod fault;
pub mod guest;
pub mod image;
pub mod judge;
pub mod mutation;
pub mod net;
pub mod operator;
pub mod primary;
pub mod replica;
pub mod stage;
pub mod temper;
pub mod trace;
pub mod world;
