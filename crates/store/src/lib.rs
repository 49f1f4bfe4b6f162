//! The replica store: receives cycles, keeps recovery points, opens them, and gives space back.

pub mod checkpoints;
pub mod files;

pub use checkpoints::{Checkpoints, CrashPoint, NoCheckpoints};
