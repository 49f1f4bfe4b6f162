//! What end-to-end tests, the demo and the benches share: hosts with a daemon each, pairs of them, and a link between that can be made
//! to misbehave.
//!
//! The hosts are processes on one machine, with directories of their own. Everything is asked and told through the command line, as
//! people do it. See `understudy_testkit` for guests, links and judges.

mod pair;
pub mod replication;
mod site;

pub use pair::Pair;
pub use site::Site;
