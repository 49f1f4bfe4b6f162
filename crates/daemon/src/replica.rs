//! Serves the receiving side: lets sources in, receives what they send, fails over.
//!
//! - [`hub`]: every replica of this host, by VM.
//! - [`place`]: one replica: the engine's record, the store, the session in force, its upkeep.
//! - [`connection`]: one connection from a source, frame by frame; [`intake`]: its data, on a thread of its own.
//! - [`failover`]: carries out failovers, reverts and commits.

pub mod connection;
pub mod failover;
pub mod hub;
pub mod owner;
pub mod place;

pub mod record;
pub mod upkeep;

mod intake;
mod mux;
