//! Runs against the judges: QEMU's own tools, and models of a few lines.

mod batches;
mod chains;
mod damage;
mod merging;
mod qemu;
mod shapes;
mod support;
