//! Builders shared by the tests.

pub mod daemon;
pub mod host;
