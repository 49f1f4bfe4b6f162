//! Application-consistent cuts: the guest agent freezes the guest's file systems for the instant of the cut.
//!
//! A freeze is dangerous: the guest stands still until the thaw. So the guard knows of it, it has a time limit, and the
//! thaw is sent on every path, also after an answer that never came: a freeze whose answer was lost may have happened.

use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout_at};

use crate::guard::{Duty, GuardClient, Watch};
use crate::qmp::{Agent, QmpError};

/// Longest time from asking for the freeze to asking for the thaw. Windows' writers give up after 10 s as well.
const FROZEN_MAX: Duration = Duration::from_secs(10);
/// How long of that the freeze itself may take; the rest is for the cut.
const FREEZING_MAX: Duration = Duration::from_secs(7);
/// How long an agent may take to be reached at all: most guests have none running.
const REACH: Duration = Duration::from_secs(2);
/// How long an agent may take to thaw before it is asked again.
const THAWING: Duration = Duration::from_secs(5);
/// How long thawing is tried.
const THAW_TRIED_FOR: Duration = Duration::from_secs(60);
/// Between two tries.
const PAUSE: Duration = Duration::from_millis(250);

/// A guest whose file systems are frozen, or may be. Thaws when dropped, in the background; better is [`Frozen::thaw`].
#[derive(Debug)]
pub struct Frozen {
    socket: PathBuf,
    /// A file that is there while the guest is frozen by us: a later life of ours must not thaw what others froze.
    marker: PathBuf,
    agent: Option<Agent>,
    watch: Option<Watch>,
    since: Instant,
}

/// Freezes the guest. On failure the guest is thawed, or being thawed, and the text says what went wrong.
///
/// `runtime_dir` is where a note is left for a later life of ours.
pub async fn freeze(socket: &Path, runtime_dir: &Path, guard: &GuardClient) -> Result<Frozen, String> {
    let mut agent = Agent::connect(socket, token(), REACH).await.map_err(|err| shortfall("does not answer", &err))?;
    // A freeze of somebody else's must not be ended by our thaw.
    match agent.is_frozen(REACH).await {
        Ok(false) => {}
        Ok(true) => return Err("another tool holds the guest's file systems frozen".into()),
        Err(err) => return Err(shortfall("does not tell whether it holds a freeze", &err)),
    }
    let watch = guard.arm(Duty::Thaw { agent: socket.into() }).await;
    let watch = watch.map_err(|err| format!("no guard would thaw the guest if we died: {err}"))?;
    let marker = marker(runtime_dir);
    std::fs::write(&marker, b"").map_err(|err| format!("cannot note the freeze: {err}"))?;
    let mut frozen = Frozen { socket: socket.into(), marker, agent: None, watch: Some(watch), since: Instant::now() };
    match agent.freeze(FREEZING_MAX).await {
        Ok(_) => {
            frozen.agent = Some(agent);
            Ok(frozen)
        }
        Err(err) => {
            // The agent works through its commands in order, so a thaw sent now follows a freeze that is late.
            frozen.agent = err.leaves_connection_usable().then_some(agent);
            drop(frozen);
            Err(shortfall("could not freeze the guest's file systems", &err))
        }
    }
}

impl Frozen {
    /// Waits for `work` and thaws. If the work takes too long the guest is thawed in the middle of it; the answer then
    /// says that it was not frozen all the time.
    pub async fn during<T>(self, work: impl Future<Output = T>) -> (T, bool) {
        let deadline = self.since + FROZEN_MAX;
        let mut work = std::pin::pin!(work);
        match timeout_at(deadline, &mut work).await {
            Ok(result) => {
                let in_time = Instant::now() < deadline;
                self.thaw().await;
                (result, in_time)
            }
            Err(_) => {
                self.thaw().await;
                (work.await, false)
            }
        }
    }

    /// Thaws the guest. Answers once it is thawed, or once the first try has failed and others are made in the
    /// background.
    async fn thaw(mut self) {
        if let Some(mut agent) = self.agent.take()
            && agent.thaw(THAWING).await.is_ok()
        {
            self.thawed();
        }
    }

    fn thawed(&mut self) {
        forget(&self.marker);
        if let Some(watch) = self.watch.take() {
            watch.done();
        }
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        let Some(watch) = self.watch.take() else { return };
        // Hung up first: the agent's socket takes one client.
        self.agent = None;
        let (socket, marker) = (self.socket.clone(), self.marker.clone());
        // Without a runtime the watch is dropped here, and the guard thaws.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move {
                if keep_thawing(&socket).await {
                    forget(&marker);
                    watch.done();
                }
            });
        }
    }
}

/// Asks for a thaw until one is answered. If none is, the guard is left to go on trying.
async fn keep_thawing(socket: &Path) -> bool {
    let deadline = Instant::now() + THAW_TRIED_FOR;
    loop {
        let outcome = timeout_at(deadline, thaw_once(socket)).await;
        match outcome {
            Ok(Ok(())) => return true,
            // The VM is gone, and with it the freeze.
            Ok(Err(QmpError::Absent { .. })) => return true,
            Ok(Err(_)) if Instant::now() < deadline => sleep(PAUSE).await,
            _ => {
                tracing::error!(agent = %socket.display(), "the guest's file systems may be frozen: thaw them");
                return false;
            }
        }
    }
}

async fn thaw_once(socket: &Path) -> Result<(), QmpError> {
    let mut agent = Agent::connect(socket, token(), THAWING).await?;
    agent.thaw(THAWING).await.map(drop)
}

/// Thaws what an earlier life of ours left frozen. The guard has done so long before; this is for when both were killed.
pub async fn thaw_leftover(socket: &Path, runtime_dir: &Path) {
    let marker = marker(runtime_dir);
    if marker.exists() && keep_thawing(socket).await {
        tracing::warn!(agent = %socket.display(), "thawed a guest that may have been left frozen");
        forget(&marker);
    }
}

fn marker(runtime_dir: &Path) -> PathBuf {
    runtime_dir.join("frozen")
}

fn forget(marker: &Path) {
    if let Err(err) = std::fs::remove_file(marker) {
        tracing::warn!(marker = %marker.display(), %err, "a note of a freeze stays behind");
    }
}

/// A number for synchronising that was not used shortly before.
fn token() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    now.as_nanos() as u64 & 0x7fff_ffff_ffff
}

fn shortfall(what: &str, err: &QmpError) -> String {
    format!("the guest agent {what}: {err}")
}
