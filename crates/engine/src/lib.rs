//! Decisions: what should be done next for one relationship, given what has happened.
//!
//! Nothing here reads a clock, draws a random number, opens a file or a socket, or sees a byte of a disk. Events come
//! in with the time; actions come out, and whoever carries them out (`daemon`, or `sim` in its deterministic world)
//! reports their outcome as the next event. A seed and a list of events reproduce everything.
//!
//! - [`primary`]: the sending side of a relationship, a state machine.
//! - [`replica`]: the receiving side: who is let in, what a failover may do.
//! - [`retention`]: which cuts become recovery points and which points go.
//! - [`health`]: the rules behind the three colours.
//! - [`backoff`]: when to try again.

pub mod backoff;
pub mod health;
pub mod primary;
pub mod replica;
pub mod retention;
pub mod stats;
