//! The store against a primary in memory: on disks that crash, fail, fill up and rot, and on real files with QEMU's
//! tools as judges.

mod image;
mod scenario;
mod support;

mod aside;
mod compare;
mod crash;
mod damage;
mod failures;
mod full;
mod import;
mod model;
mod power;
mod qemu;
mod receive;
mod seed;
mod together;
