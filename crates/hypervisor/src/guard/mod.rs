//! The guard: a small process of its own that undoes what we did to a VM when we die before undoing it ourselves.
//!
//! A cut of several disks stops the VM for some milliseconds, and an application-consistent one freezes the guest's file
//! systems. If our process is killed in between, nobody would let the guest go on. So a duty is handed to the guard
//! beforehand and called off afterwards; when the guard's input closes with duties open, it carries them out.
//!
//! ```text
//! daemon ── pipe ──> guard        arm 7: resume VM behind this monitor   (before `stop`)
//!                                 done 7                                 (after `cont`)
//! daemon killed: the kernel closes the pipe and our monitor connections; the guard connects and sends `cont`
//! ```
//!
//! What the daemon wrote into the pipe before it died is still there to be read, so nothing needs to be acknowledged
//! but the guard's start. The guard is the same program started with a hidden subcommand, so it cannot be missing.

mod client;
mod duty;
mod run;

use serde::{Deserialize, Serialize};

pub use client::{GuardClient, GuardError, Watch};
pub use duty::Duty;
pub use run::run;

/// Longest line of the pipe: a path is at most 4096 bytes, in JSON at most six times that.
const LINE_MAX: usize = 32 << 10;

/// What the guard says when it is ready to be told duties.
const READY: &str = "ready\n";

/// What the daemon tells the guard.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
enum Message {
    /// From now on until called off: this is to be done if we die.
    Arm { id: u64, duty: Duty },
    /// It is no longer needed.
    Done { id: u64 },
    /// Do it now: we lost track of it.
    Act { id: u64 },
}
