//! Hypervisor drivers: what replication needs of a running, paused or stopped VM, behind one set of traits.
//!
//! [`driver`] is the contract. `qemu` fulfils it for a QEMU that somebody else started, through its monitor; `fake` in
//! memory, for simulation and for everybody's tests. `guard` is the small process that lets a VM run on when we die at
//! the wrong moment. `offline` reads the images of a VM that is off; `machine` says what a VM is, and starts one from
//! that. What is done with the bytes (hashing, packing, sending) is not known here.

pub mod driver;
pub mod fake;
pub mod guard;
pub mod machine;
pub mod nbd;
pub mod offline;
mod process;
pub mod qemu;
pub mod qmp;
