//! Application-consistent cuts: the guest agent freezes the guest's file systems for the instant of the cut.
//!
//! A freeze is dangerous: the guest stands still until the thaw. So the guard knows of it, it has a time limit, and the
//! thaw is sent on every path, also after an answer that never came: a freeze whose answer was lost may have happened.

use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout_at};

use crate::guard::{Duty, GuardClient, Watch};
use crate::qmp::{Agent, QmpError};

/// How long things may take.
#[derive(Debug, Clone, Copy)]
struct Limits {
    /// To reach the agent at all: most guests have none running.
    reach: Duration,
    /// For the freeze itself; the rest of `frozen` is for the cut.
    freezing: Duration,
    /// From asking for the freeze to asking for the thaw. Windows' writers give up after 10 s as well.
    frozen: Duration,
    /// To thaw, before it is asked again.
    thawing: Duration,
}

const LIMITS: Limits = Limits {
    reach: Duration::from_secs(2),
    freezing: Duration::from_secs(7),
    frozen: Duration::from_secs(10),
    thawing: Duration::from_secs(5),
};

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
    limits: Limits,
    since: Instant,
}

/// Freezes the guest. On failure the guest is thawed, or being thawed, and the text says what went wrong.
///
/// `runtime_dir` is where a note is left for a later life of ours.
pub async fn freeze(socket: &Path, runtime_dir: &Path, guard: &GuardClient) -> Result<Frozen, String> {
    freeze_within(LIMITS, socket, runtime_dir, guard).await
}

async fn freeze_within(
    limits: Limits,
    socket: &Path,
    runtime_dir: &Path,
    guard: &GuardClient,
) -> Result<Frozen, String> {
    let agent = Agent::connect(socket, token(), limits.reach).await;
    let mut agent = agent.map_err(|err| shortfall("does not answer", &err))?;
    // A freeze of somebody else's must not be ended by our thaw.
    match agent.is_frozen(limits.reach).await {
        Ok(false) => {}
        Ok(true) => return Err("another tool holds the guest's file systems frozen".into()),
        Err(err) => return Err(shortfall("does not tell whether it holds a freeze", &err)),
    }
    let watch = guard.arm(Duty::Thaw { agent: socket.into() }).await;
    let watch = watch.map_err(|err| format!("no guard would thaw the guest if we died: {err}"))?;
    let marker = marker(runtime_dir);
    std::fs::write(&marker, b"").map_err(|err| format!("cannot note the freeze: {err}"))?;
    let mut frozen =
        Frozen { socket: socket.into(), marker, agent: None, watch: Some(watch), limits, since: Instant::now() };
    match agent.freeze(limits.freezing).await {
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
        let deadline = self.since + self.limits.frozen;
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
            && agent.thaw(self.limits.thawing).await.is_ok()
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
        let (socket, marker, limits) = (self.socket.clone(), self.marker.clone(), self.limits);
        // Without a runtime the watch is dropped here, and the guard thaws.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move {
                if keep_thawing(limits, &socket).await {
                    forget(&marker);
                    watch.done();
                }
            });
        }
    }
}

/// Asks for a thaw until one is answered. If none is, the guard is left to go on trying.
async fn keep_thawing(limits: Limits, socket: &Path) -> bool {
    let deadline = Instant::now() + THAW_TRIED_FOR;
    loop {
        let outcome = timeout_at(deadline, thaw_once(limits, socket)).await;
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

async fn thaw_once(limits: Limits, socket: &Path) -> Result<(), QmpError> {
    let mut agent = Agent::connect(socket, token(), limits.thawing).await?;
    agent.thaw(limits.thawing).await.map(drop)
}

/// Thaws what an earlier life of ours left frozen. The guard has done so long before; this is for when both were killed.
pub async fn thaw_leftover(socket: &Path, runtime_dir: &Path) {
    let marker = marker(runtime_dir);
    if marker.exists() && keep_thawing(LIMITS, socket).await {
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

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use serde_json::{Value, json};
    use tempfile::TempDir;
    use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
    use tokio::net::{UnixListener, UnixStream};

    use super::*;

    const SHORT: Limits = Limits {
        reach: Duration::from_secs(20),
        freezing: Duration::from_millis(100),
        frozen: Duration::from_millis(200),
        thawing: Duration::from_secs(20),
    };

    type Seen = Arc<Mutex<Vec<String>>>;

    /// An agent that answers everything, a freeze only if it may.
    async fn serve(stream: UnixStream, freezes: bool, seen: Seen) {
        let mut stream = BufReader::new(stream);
        let mut line = Vec::new();
        while stream.read_until(b'\n', &mut line).await.is_ok_and(|n| n > 0) {
            let start = line.iter().rposition(|b| *b == 0xff).map_or(0, |at| at + 1);
            let command: Value = serde_json::from_slice(&line[start..]).unwrap();
            let name = command["execute"].as_str().unwrap().trim_start_matches("guest-").to_owned();
            seen.lock().unwrap().push(name.clone());
            let answer = match name.as_str() {
                "sync-delimited" => command["arguments"]["id"].clone(),
                "fsfreeze-status" => json!("thawed"),
                "fsfreeze-freeze" if !freezes => std::future::pending().await,
                _ => json!(1),
            };
            stream.get_mut().write_all(format!("{}\n", json!({ "return": answer })).as_bytes()).await.unwrap();
            line.clear();
        }
    }

    fn agent(directory: &TempDir, freezes: bool) -> (PathBuf, Seen) {
        let path = directory.path().join("agent");
        let listener = UnixListener::bind(&path).unwrap();
        let seen = Seen::default();
        let notes = seen.clone();
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                tokio::spawn(serve(stream, freezes, notes.clone()));
            }
        });
        (path, seen)
    }

    /// A guard that is never needed: it takes its orders and forgets them.
    fn guard() -> GuardClient {
        GuardClient::new("/bin/sh", ["-c", "echo ready; cat > /dev/null"])
    }

    async fn until_thawed(seen: &Seen, marker: &Path) {
        while seen.lock().unwrap().last().is_none_or(|last| last != "fsfreeze-thaw") || marker.exists() {
            sleep(Duration::from_millis(2)).await;
        }
    }

    #[tokio::test]
    async fn a_freeze_that_is_never_answered_is_given_up_and_thawed() {
        let directory = TempDir::new().unwrap();
        let (socket, seen) = agent(&directory, false);
        let err = freeze_within(SHORT, &socket, directory.path(), &guard()).await.unwrap_err();
        assert!(err.contains("no answer to guest-fsfreeze-freeze"), "{err}");
        until_thawed(&seen, &marker(directory.path())).await;
    }

    #[tokio::test]
    async fn a_guest_is_thawed_in_time_however_long_the_work_takes() {
        let directory = TempDir::new().unwrap();
        let (socket, seen) = agent(&directory, true);
        let frozen = freeze_within(SHORT, &socket, directory.path(), &guard()).await.unwrap();
        assert!(marker(directory.path()).exists());
        let thawed = async {
            until_thawed(&seen, &marker(directory.path())).await;
            7
        };
        assert_eq!(frozen.during(thawed).await, (7, false), "it was thawed while the work went on, which is said");
    }

    #[tokio::test]
    async fn a_freeze_that_is_let_fall_is_thawed() {
        let directory = TempDir::new().unwrap();
        let (socket, seen) = agent(&directory, true);
        drop(freeze_within(SHORT, &socket, directory.path(), &guard()).await.unwrap());
        until_thawed(&seen, &marker(directory.path())).await;
    }

    #[tokio::test]
    async fn what_an_earlier_life_froze_is_thawed_and_nothing_else() {
        let directory = TempDir::new().unwrap();
        let (socket, seen) = agent(&directory, true);
        thaw_leftover(&socket, directory.path()).await;
        assert!(seen.lock().unwrap().is_empty());
        std::fs::write(marker(directory.path()), b"").unwrap();
        thaw_leftover(&socket, directory.path()).await;
        until_thawed(&seen, &marker(directory.path())).await;
    }
}
