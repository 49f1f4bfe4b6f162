//! What a guard may have to do, and how it does it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::time::{Instant, sleep};

use crate::qmp::{Agent, Command, Monitor, Patience, QmpError};

/// How long a duty is tried. Another client may hold the monitor, or QEMU may hang on its storage for a while.
const TRIED_FOR: Duration = Duration::from_secs(300);
/// Between two tries.
const PAUSE: Duration = Duration::from_millis(20);
/// For one try. Shorter than usual: QEMU closes a dead client's connection at its next look.
const PATIENCE: Patience = Patience { connect: Duration::from_secs(2), command: Duration::from_secs(10) };
/// For one try at the agent, which runs in the guest.
const AGENT_PATIENCE: Duration = Duration::from_secs(5);

/// Something to be undone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Duty {
    /// Let the VM behind this monitor run on, if it is paused.
    Resume {
        /// The monitor's socket.
        monitor: PathBuf,
    },
    /// Thaw the file systems of the guest behind this agent socket.
    Thaw {
        /// The agent's socket.
        agent: PathBuf,
    },
}

impl Duty {
    /// Carries it out, however long that takes within bounds. Says what happened, for the log.
    pub(super) async fn carry_out(&self) -> Result<(), QmpError> {
        let deadline = Instant::now() + TRIED_FOR;
        loop {
            let outcome = match self {
                Duty::Resume { monitor } => resume(monitor).await,
                Duty::Thaw { agent } => thaw(agent).await,
            };
            match outcome {
                Ok(()) => return Ok(()),
                // Nobody listens there any more: the VM itself is gone.
                Err(QmpError::Absent { .. }) => return Ok(()),
                Err(err) if Instant::now() >= deadline => return Err(err),
                Err(_) => sleep(PAUSE).await,
            }
        }
    }
}

/// Sends `cont` if the VM is paused. Any other state is none that `stop` leaves, and none of our business.
async fn resume(socket: &Path) -> Result<(), QmpError> {
    let mut monitor = Monitor::connect(socket, PATIENCE).await?;
    let status = monitor.execute(Command::bare("query-status")).await?;
    if status.get("status").and_then(Value::as_str) == Some("paused") {
        monitor.execute(Command::bare("cont")).await?;
    }
    Ok(())
}

async fn thaw(socket: &Path) -> Result<(), QmpError> {
    let token = u64::from(std::process::id()) << 16 | 0x7a77;
    let mut agent = Agent::connect(socket, token, AGENT_PATIENCE).await?;
    agent.thaw(AGENT_PATIENCE).await.map(drop)
}
