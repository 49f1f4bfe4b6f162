//! Real clients of other people against the kit, over loopback HTTP. They judge what we send; we check what they understood.
//!
//! `cargo xtask setup` installs them. Where one is missing its test fails and says so: what no client looked at has not been tested.

#[path = "../toy/mod.rs"]
#[allow(dead_code)] // Unit tests use the rest.
mod toy;

mod cimxml;
mod programs;
mod server;
mod world;
mod wsman;
