//! The crate's tests that need more than one module, in one binary.

mod agent;
mod boot_sector;
mod corpora;
mod fake_model;
mod guard;
mod machine_derive;
mod machine_document;
mod machine_launch;
mod machine_vm;
mod nbd_handshake;
mod nbd_peer;
mod nbd_real;
mod nbd_replies;
mod offline_real;
mod programs;
mod qemu_cut;
mod qemu_guest;
mod qemu_hostile;
mod qemu_off;
mod qemu_trouble;
mod qmp_peer;
mod qmp_talk;
mod vm;
