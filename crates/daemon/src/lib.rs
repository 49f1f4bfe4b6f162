//! The daemon: where the engine's decisions, the store, the hypervisor and the wire meet, one process per host.
//!
//! A request's way through: a face ([`faces`]) translates it, an operation ([`operations`]) checks it, answers and
//! starts a job ([`jobs`]); the owner of the relationship carries the work out. What must survive a crash is in the
//! [`catalogue`] before anybody is shown it. No face calls past the operations.

pub mod assembly;
pub mod audit;
pub mod catalogue;
pub mod channel;
pub mod clock;
pub mod config;
pub mod entropy;
pub mod events;
pub mod faces;
pub mod jobs;
pub mod link;
pub mod metrics;
pub mod names;
pub mod operations;
pub mod owners;
pub mod primary;
pub mod replica;
pub mod service;
pub mod state_dir;
pub mod vms;

/// An error and its causes as one text, for places where nobody walks the chain.
pub fn chain(err: &dyn std::error::Error) -> String {
    let mut text = err.to_string();
    let mut next = err.source();
    while let Some(cause) = next {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        next = cause.source();
    }
    text
}
