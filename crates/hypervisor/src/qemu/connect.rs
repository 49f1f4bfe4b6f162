//! Reaching the monitor.

use std::ops::{Deref, DerefMut};

use serde_json::Value;
use tokio::sync::MutexGuard;

use super::Shared;
use super::answer::failed;
use crate::driver::{Error, Result};
use crate::qmp::{Monitor, QmpError, Version};

/// A connection to the monitor, together with the right to use it: of ours, one call at a time does. Two of them in one
/// another's way would each wait until the other is taken for hung.
pub struct Session<'a> {
    monitor: Monitor,
    // Given back after the monitor was hung up.
    _turn: MutexGuard<'a, ()>,
}

impl Deref for Session<'_> {
    type Target = Monitor;
    fn deref(&self) -> &Monitor {
        &self.monitor
    }
}

impl DerefMut for Session<'_> {
    fn deref_mut(&mut self) -> &mut Monitor {
        &mut self.monitor
    }
}

impl Shared {
    /// A connection to the monitor; `None` if no QEMU listens there, which is what a VM that is off looks like.
    pub async fn try_monitor(&self) -> Result<Option<Session<'_>>> {
        let turn = self.turn.lock().await;
        match Monitor::connect(&self.config.monitor, self.config.patience).await {
            Ok(monitor) => Ok(Some(Session { monitor, _turn: turn })),
            Err(QmpError::Absent { .. }) => Ok(None),
            Err(err) => Err(failed("reach the VM", err)),
        }
    }

    /// A connection to the monitor of a VM that must be on for this.
    pub async fn monitor_to(&self, what: &str) -> Result<Session<'_>> {
        let monitor = self.try_monitor().await?;
        monitor.ok_or_else(|| Error::Busy(format!("the VM is off: to {what} waits until it is started")))
    }
}

/// Refuses a QEMU that cannot freeze disks without harm.
pub fn check_version(version: Version) -> Result<()> {
    if version >= super::VERSION_MIN {
        return Ok(());
    }
    Err(Error::Unsupported {
        what: format!("QEMU {version} cannot freeze a disk without risk to the guest"),
        remedy: format!("run the VM with QEMU {} or newer", super::VERSION_MIN),
    })
}

/// What `query-status` says of a VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RunState {
    /// Its processors run.
    Running,
    /// They do not, and the block layer is at rest.
    Standing,
    /// On its way from or to somewhere.
    Moving,
}

/// Reads the answer to `query-status`. States that are not known count as moving: nothing is done then.
pub fn run_state(status: &Value) -> RunState {
    match status.get("status").and_then(Value::as_str).unwrap_or_default() {
        "running" => RunState::Running,
        "paused" | "prelaunch" | "shutdown" | "io-error" | "internal-error" | "watchdog" | "guest-panicked"
        | "suspended" | "debug" => RunState::Standing,
        _ => RunState::Moving,
    }
}
