//! The harness against real programs: a guest that boots, writes, is killed and comes back.

mod daemon;
mod guest;
mod link;
mod net;
