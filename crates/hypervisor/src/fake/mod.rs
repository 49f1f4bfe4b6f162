//! A VM in memory, with the same rules as a real one: for simulation and for everybody's tests.
//!
//! [`FakeVm`] is synchronous and deterministic: no clock, no randomness, no tasks. It has a guest's side (write, discard,
//! freeze), a host's side (pause, quit, kill, start, resize, change the image while off) and replication's side, which is
//! [`crate::driver::Machine`] call by call. [`FakeMachine`] puts the real trait around it and fails where it is told to.
//!
//! Maps obey what QEMU's do: they have the real names, outlive an orderly end only on images that can hold them, are
//! inconsistent after a kill, and a frozen image serves only the neighbourhoods of what is due.

mod disk;
mod faults;
mod machine;
mod vm;

pub use disk::FakeDisk;
pub use faults::{Call, Fault, Faults};
pub use machine::FakeMachine;
pub use vm::{CutId, CutStep, FakeVm};
