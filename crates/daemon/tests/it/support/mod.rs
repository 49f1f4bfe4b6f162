//! Builders shared by the tests.

pub mod host;
