//! A VM that was started here: finding it again after our own restart, asking its state, stopping it.
//!
//! The process outlives the daemon. It is known by the process id in its runtime directory, by having been started with
//! that very file, and by its monitor telling the uuid that is looked for.

use std::io;
use std::path::Path;
use std::time::Duration;

use serde_json::Value;
use understudy_model::ErrorKind;
use uuid::Uuid;

use super::launch::RuntimeFiles;
use crate::driver::Power;
use crate::process::Held;
use crate::qmp::{Command, Monitor, Patience, QmpError};

/// How long a killed process may take to be gone: until its last system call returns.
const KILL_PATIENCE: Duration = Duration::from_secs(20);

/// Why it is not known whether, or how, a VM runs.
#[derive(Debug, thiserror::Error)]
pub enum FindError {
    /// The host's file system or process table is in the way.
    #[error("cannot {what}")]
    Host {
        /// What was being done.
        what: String,
        /// Why it failed.
        #[source]
        err: io::Error,
    },
    /// A process is there, and its monitor does not answer.
    #[error("process {pid} was found and its monitor does not answer")]
    Monitor {
        /// The process.
        pid: u32,
        /// Why not.
        #[source]
        err: QmpError,
    },
    /// A process is there, and it is another VM.
    #[error("process {pid} is VM {found}, not {expected}")]
    OtherVm {
        /// The process.
        pid: u32,
        /// Who it says it is.
        found: String,
        /// Who was looked for.
        expected: Uuid,
    },
    /// It does not end.
    #[error("process {pid} was killed and has not ended within {waited:?}")]
    Immortal {
        /// The process.
        pid: u32,
        /// How long was waited.
        waited: Duration,
    },
}

impl FindError {
    /// What the caller does next.
    pub fn kind(&self) -> ErrorKind {
        match self {
            FindError::Monitor { .. } => ErrorKind::Retry,
            _ => ErrorKind::Operator,
        }
    }

    fn host(what: String, err: impl Into<io::Error>) -> Self {
        FindError::Host { what, err: err.into() }
    }
}

/// A QEMU process started from a runtime directory, held so that its id cannot come to mean another one.
#[derive(Debug)]
pub struct Running {
    process: Held,
    files: RuntimeFiles,
}

impl Running {
    /// The VM `uuid` that was started with `runtime`, if it runs. "No" is certain, and where it cannot be, that is an
    /// error; but for a start that our own death cut short: QEMU writes its process id some 100 ms later. Until then, and
    /// always, the locks on its images keep a second one out.
    pub async fn find(runtime: &Path, uuid: Uuid) -> Result<Option<Self>, FindError> {
        let Some(running) = Self::process(runtime)? else { return Ok(None) };
        match running.uuid().await {
            Ok(found) if Uuid::try_parse(&found) == Ok(uuid) => Ok(Some(running)),
            Ok(found) => Err(FindError::OtherVm { pid: running.pid(), found, expected: uuid }),
            // It may have ended while it was asked; then it does not run.
            Err(_) if running.process.has_ended() => Ok(None),
            Err(err) => Err(err),
        }
    }

    /// The process that was started with `runtime`, if it runs, whoever it is.
    pub(super) fn process(runtime: &Path) -> Result<Option<Self>, FindError> {
        let files = RuntimeFiles::of(runtime);
        let found = Held::by_file(&files.pid());
        let found =
            found.map_err(|err| FindError::host(format!("look for the process of {}", runtime.display()), err))?;
        Ok(found.map(|process| Self { process, files }))
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Where its sockets and logs are.
    pub fn files(&self) -> &RuntimeFiles {
        &self.files
    }

    /// Whether it runs, stands still, or has ended.
    pub async fn power(&self) -> Result<Power, FindError> {
        match self.ask("query-status").await {
            Ok(status) => Ok(power_of(status.get("status").and_then(Value::as_str).unwrap_or_default())),
            Err(_) if self.process.has_ended() => Ok(Power::Off),
            Err(err) => Err(err),
        }
    }

    /// Lets its processors run.
    pub async fn resume(&self) -> Result<(), FindError> {
        self.ask("cont").await.map(drop)
    }

    /// Presses its power button. Whether the guest heeds it shows in [`Running::ended`].
    pub async fn press_power_button(&self) -> Result<(), FindError> {
        self.ask("system_powerdown").await.map(drop)
    }

    /// Waits until the process has ended; false if it still runs when the time is over.
    pub async fn ended(&self, patience: Duration) -> bool {
        self.process.ended(patience).await
    }

    /// Ends it at once, as unplugging a machine does, but with everything it was told to write handed to the host: it is
    /// asked to quit, and killed if it has not within `patience`.
    pub async fn stop(self, patience: Duration) -> Result<(), FindError> {
        // Without an answer it may still be on its way out, writing what it holds; then it gets its time as well.
        let asked = self.ask("quit").await;
        if self.ended(patience).await {
            return Ok(());
        }
        tracing::warn!(pid = self.pid(), asked = asked.is_ok(), "a VM did not quit and is killed");
        self.kill().await
    }

    /// Ends it by force.
    pub async fn kill(self) -> Result<(), FindError> {
        self.process.kill().map_err(|err| FindError::host(format!("kill process {}", self.pid()), err))?;
        match self.ended(KILL_PATIENCE).await {
            true => Ok(()),
            false => Err(FindError::Immortal { pid: self.pid(), waited: KILL_PATIENCE }),
        }
    }

    async fn uuid(&self) -> Result<String, FindError> {
        let answer = self.ask("query-uuid").await?;
        Ok(answer.get("UUID").and_then(Value::as_str).unwrap_or_default().chars().take(64).collect())
    }

    async fn ask(&self, command: &'static str) -> Result<Value, FindError> {
        let answer = async {
            let mut monitor = Monitor::connect(&self.files.monitor(), Patience::default()).await?;
            monitor.execute(Command::bare(command)).await
        };
        answer.await.map_err(|err| FindError::Monitor { pid: self.pid(), err })
    }
}

fn power_of(status: &str) -> Power {
    match status {
        "running" => Power::Running,
        "inmigrate" | "postmigrate" | "finish-migrate" | "save-vm" | "restore-vm" | "colo" => Power::Unsettled,
        _ => Power::Paused,
    }
}
