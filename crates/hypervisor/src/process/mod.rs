//! Processes of QEMU's programs that are known by a file with their id: our own from an earlier life, and others' that
//! say more on their command line than in their monitor.

mod arguments;
mod held;

pub(crate) use arguments::Arguments;
pub(crate) use held::Held;
