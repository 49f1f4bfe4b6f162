//! What tests stand on: a small real guest, links and networks that misbehave on command, the program under test as a
//! process, and oracles that know nothing of it.
//!
//! | module | gives a test |
//! |---|---|
//! | [`guest`] | a running QEMU with a Linux guest that can be asked to write, verified, killed and booted again |
//! | [`image`] | that guest's kernel and initramfs, made once and kept under `target/guest` |
//! | [`emulator`] | which QEMU to run: the installed one, or Debian 12's own beside it |
//! | [`disk`] | disk images made on the host, and the independent judges `qemu-img check` and `qemu-img compare` |
//! | [`daemon`] | the program under test: start, kill, restart, its log and its command line |
//! | [`golden`] | comparing with a committed file |
//! | [`link`] | a TCP proxy with delay, rate, stall and cuts at a byte |
//! | [`net`] | two network namespaces with a wire between them |
//! | [`skip`] | saying that a test cannot run here |
//! | [`wait`] | waiting for a state, with a bound |
//! | [`process`] | processes that end when their owner ends |
//! | [`packages`] | Debian's packages: installed by `setup`, or only unpacked into the cache |
//!
//! Everything is synchronous: tests of asynchronous code call it from a blocking thread or a multi-threaded runtime.
//!
//! Invariant: only processes, namespaces and directories made here are ever ended or removed, each by its own id or name, also when a
//! test panics or its process is killed.

pub mod cache;
pub mod daemon;
pub mod disk;
pub mod emulator;
pub mod golden;
pub mod guest;
pub mod image;
pub mod link;
pub mod net;
pub mod packages;
pub mod process;
pub mod skip;
pub mod wait;
