//! The `qemu-storage-daemon` that serves a stopped VM's images to us alone.
//!
//! It ends with us where it can: when it is dropped, and when the runtime goes. Where we are killed it stays behind,
//! holding no lock; its process id is in the directory, and the next one that is started there ends it first.

use std::fs::{DirBuilder, File};
use std::io::{self, Read};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::process::{Child, Command};
use tokio::time::{sleep, timeout};

use super::OfflineError;
use crate::nbd::{Client, NbdError, Options};
use crate::process::Held;

/// How long it may take to be ready: it opens the images and loads their bitmaps.
const START_PATIENCE: Duration = Duration::from_secs(60);
/// How long a killed one may take to be gone.
const KILL_PATIENCE: Duration = Duration::from_secs(20);
/// How long one that hung up may take to end, if that is why.
const END_PATIENCE: Duration = Duration::from_millis(500);
/// Pause between two looks whether it is ready: short against the 20 ms that it takes.
const LOOK_EVERY: Duration = Duration::from_millis(5);
/// Longest path of a unix socket that Linux takes, its final zero apart.
const SOCKET_PATH_MAX: usize = 107;
/// Most of what it said that is told on.
const SAID_MAX: u64 = 2000;

pub(super) struct Server {
    child: Child,
    directory: PathBuf,
}

impl Server {
    /// Starts one in `directory`, after ending what an earlier one left there.
    pub async fn start(
        program: &Path,
        directory: &Path,
        nodes: Vec<Value>,
        exports: Vec<Value>,
    ) -> Result<Self, OfflineError> {
        let socket = directory.join("nbd");
        if !program.is_absolute() || !directory.is_absolute() || socket.as_os_str().len() > SOCKET_PATH_MAX {
            let what = "the program's or the directory's path is not absolute, or too long for a socket";
            return Err(OfflineError::Misuse(what.to_owned()));
        }
        own_directory(directory)?;
        end_leftover(directory).await?;
        let arguments = arguments(directory, nodes, exports)?;
        let said = File::create(directory.join("log")).map_err(host("write the log of qemu-storage-daemon"))?;
        let child = Command::new(program)
            .args(arguments)
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(said)
            .kill_on_drop(true)
            .spawn()
            .map_err(host(format!("run {}", program.display())))?;
        Ok(Self { child, directory: directory.to_owned() })
    }

    /// Connects to one of its exports, once it is ready.
    pub async fn connect(&mut self, options: &Options) -> Result<Client, OfflineError> {
        let socket = self.directory.join("nbd");
        let connected = async {
            loop {
                match Client::connect(&socket, options).await {
                    Err(NbdError::Connect { .. }) => sleep(LOOK_EVERY).await,
                    other => return other,
                }
            }
        };
        let outcome = tokio::select! {
            outcome = timeout(START_PATIENCE, connected) => outcome,
            ended = self.child.wait() => return Err(ended_early(&self.directory, ended)),
        };
        match outcome {
            Ok(Ok(client)) => Ok(client),
            Ok(Err(err)) => Err(self.why(options, err).await),
            Err(_) => Err(OfflineError::Server(format!("not ready within {START_PATIENCE:?}"))),
        }
    }

    /// What lies behind a connection that failed: it hangs up as well when it is just ending.
    async fn why(&mut self, options: &Options, err: NbdError) -> OfflineError {
        match timeout(END_PATIENCE, self.child.wait()).await {
            Ok(ended) => ended_early(&self.directory, ended),
            Err(_) => OfflineError::Nbd { export: options.export.clone(), err },
        }
    }

    /// Ends it and takes its traces away.
    pub async fn stop(mut self) {
        // It holds nothing that it would have to write.
        if let Err(err) = self.child.kill().await {
            tracing::warn!(error = %err, "a qemu-storage-daemon could not be ended");
        }
        for name in ["nbd", "pid", "log"] {
            let _ = std::fs::remove_file(self.directory.join(name));
        }
    }
}

fn arguments(directory: &Path, nodes: Vec<Value>, exports: Vec<Value>) -> Result<Vec<String>, OfflineError> {
    let text = |name: &str| {
        let path = directory.join(name);
        let text = path.to_str().map(str::to_owned);
        text.ok_or_else(|| OfflineError::Misuse(format!("{} is not UTF-8", path.display())))
    };
    let address = json!({ "addr": { "type": "unix", "path": text("nbd")? } });
    let mut all = vec!["--pidfile".to_owned(), text("pid")?, "--nbd-server".to_owned(), address.to_string()];
    all.extend(nodes.into_iter().flat_map(|node| ["--blockdev".to_owned(), node.to_string()]));
    all.extend(exports.into_iter().flat_map(|export| ["--export".to_owned(), export.to_string()]));
    Ok(all)
}

/// A directory that is ours alone.
fn own_directory(directory: &Path) -> Result<(), OfflineError> {
    match DirBuilder::new().mode(0o700).create(directory) {
        Err(err) if err.kind() != io::ErrorKind::AlreadyExists => {
            return Err(host(format!("make {}", directory.display()))(err));
        }
        _ => {}
    }
    let found = std::fs::symlink_metadata(directory).map_err(host(format!("look at {}", directory.display())))?;
    if !found.is_dir() || found.uid() != rustix::process::geteuid().as_raw() || found.permissions().mode() & 0o077 != 0
    {
        return Err(OfflineError::Misuse(format!("{} is not a directory of ours alone", directory.display())));
    }
    Ok(())
}

/// Ends the server that an earlier life of ours left in `directory`, if there is one.
pub(super) async fn end_leftover(directory: &Path) -> Result<(), OfflineError> {
    let left = Held::by_file(&directory.join("pid")).map_err(host("look for an earlier qemu-storage-daemon"))?;
    if let Some(left) = left {
        left.kill().map_err(host(format!("end process {}", left.pid())))?;
        if !left.ended(KILL_PATIENCE).await {
            return Err(OfflineError::Server(format!("an earlier one, process {}, does not end", left.pid())));
        }
    }
    for name in ["nbd", "pid"] {
        match std::fs::remove_file(directory.join(name)) {
            Err(err) if err.kind() != io::ErrorKind::NotFound => return Err(host(format!("remove {name}"))(err)),
            _ => {}
        }
    }
    Ok(())
}

fn ended_early(directory: &Path, ended: io::Result<ExitStatus>) -> OfflineError {
    match ended {
        Ok(status) => OfflineError::Server(said(directory, &status.to_string())),
        Err(err) => host("wait for qemu-storage-daemon")(err),
    }
}

/// What it said last, or `otherwise`.
fn said(directory: &Path, otherwise: &str) -> String {
    let mut text = Vec::new();
    let read = File::open(directory.join("log")).and_then(|file| file.take(SAID_MAX).read_to_end(&mut text));
    let text = String::from_utf8_lossy(&text);
    let text: String = text.trim().chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    if read.is_err() || text.is_empty() { otherwise.to_owned() } else { text }
}

fn host(what: impl Into<String>) -> impl FnOnce(io::Error) -> OfflineError {
    move |err| OfflineError::Host { what: what.into(), err }
}
