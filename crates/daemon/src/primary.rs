//! Carries out what the engine decides for the sending side: one owner task per relationship.
//!
//! - [`owner`]: the task that holds the engine's state machine, and its door to the rest of the daemon.
//! - [`lane`]: does the work one step after another: track, copy, cut, send, drop.
//! - [`dial`]: connects, greets, opens sessions; [`session`]: an open one.
//! - [`copy`], [`send`]: the two transfers, made of [`pieces`], packed by [`encode`], within [`throttle`]'s bounds.

pub mod dial;
pub mod encode;
pub mod failure;
pub mod lane;
pub mod ledger;
pub mod owner;
pub mod record;
pub mod schedule;
pub mod service;
pub mod session;
pub mod throttle;

mod compare;
mod copy;
mod offer;
mod pieces;
mod send;
