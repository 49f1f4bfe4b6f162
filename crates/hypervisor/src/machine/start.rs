//! Starts a VM: prepares its runtime directory, runs QEMU in a session of its own, waits until it answers.
//!
//! QEMU is a child of ours that does not end with us. It is not told to daemonize itself: that needs a right to start
//! processes which it otherwise gives away at once, and what it has to say later would be lost. So `setsid`, a tool of
//! util-linux, makes the session and becomes QEMU. (A service manager that ends whole groups of processes must be told to
//! leave it alone.)

use std::fs::{DirBuilder, File, Permissions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use tokio::process::{Child, Command};
use tokio::time::{sleep, timeout};

use super::arguments::arguments;
use super::blob::{Role, verify};
use super::definition::Firmware;
use super::launch::{Emulator, Launch, LaunchError, RuntimeFiles};
use super::running::{FindError, Running};

/// Most of what QEMU said that is told on.
const SAID_MAX: u64 = 2000;
/// Pause between two looks whether QEMU is ready: short against the 100 ms that it takes.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// Starts the VM and waits until QEMU is ready, at most `patience`. Dropped half-way, it ends what it started.
pub async fn launch(launch: &Launch, emulator: &Emulator, patience: Duration) -> Result<Running, LaunchError> {
    let files = RuntimeFiles::of(&launch.runtime);
    files.check()?;
    if let Some(running) = Running::process(&launch.runtime)? {
        return Err(LaunchError::Running { pid: running.pid() });
    }
    let arguments = arguments(launch, emulator)?;
    let prepared = {
        let (launch, emulator) = (launch.clone(), emulator.clone());
        tokio::task::spawn_blocking(move || prepare(&launch, &emulator)).await
    };
    let (log, said_from) = prepared.expect("preparing a directory does not panic")?;
    let mut start = Start(Some(spawn(emulator, arguments, log)?));
    let uuid = launch.identity.as_ref().map_or(launch.definition.uuid, |identity| identity.uuid);
    let ready = async {
        tokio::select! {
            ended = start.ended() => Err(LaunchError::Refused { said: said(&files, said_from, &ended?.to_string()) }),
            running = answers(&launch.runtime, uuid) => running,
        }
    };
    let running = timeout(patience, ready).await.unwrap_or(Err(LaunchError::Late { waited: patience }))?;
    start.is_done();
    Ok(running)
}

/// A QEMU that is not ready yet: ended when this is dropped.
struct Start(Option<Child>);

impl Start {
    async fn ended(&mut self) -> Result<ExitStatus, LaunchError> {
        match &mut self.0 {
            Some(child) => child.wait().await.map_err(host("wait for QEMU")),
            None => std::future::pending().await,
        }
    }

    /// From now on it lives by itself. The runtime still notices its end, so that no dead process is left standing.
    fn is_done(&mut self) {
        drop(self.0.take());
    }
}

impl Drop for Start {
    fn drop(&mut self) {
        if let Some(child) = &mut self.0 {
            // It fails only when the process has ended.
            let _ = child.start_kill();
        }
    }
}

fn spawn(emulator: &Emulator, arguments: Vec<String>, log: File) -> Result<Child, LaunchError> {
    if let Some(program) = [&emulator.setsid, &emulator.program].into_iter().find(|program| !program.is_absolute()) {
        return Err(LaunchError::Misuse(format!("{} is not an absolute path", program.display())));
    }
    let mut command = Command::new(&emulator.setsid);
    command.arg(&emulator.program).args(arguments).env_clear().current_dir("/");
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
    command.spawn().map_err(host(format!("run {}", emulator.program.display())))
}

/// Waits until the QEMU of a runtime directory answers in its monitor. It does so once everything it needs was there.
async fn answers(runtime: &Path, uuid: uuid::Uuid) -> Result<Running, LaunchError> {
    loop {
        match Running::find(runtime, uuid).await {
            Ok(Some(running)) => return Ok(running),
            // Not there yet, not listening yet, or just ending: whoever waits beside us knows when it is over.
            Ok(None) | Err(FindError::Monitor { .. }) => sleep(LOOK_EVERY).await,
            Err(err) => return Err(err.into()),
        }
    }
}

/// Everything on disk that must be there before QEMU runs. Returns its log, and where in it this start begins. Blocking.
fn prepare(launch: &Launch, emulator: &Emulator) -> Result<(File, u64), LaunchError> {
    let files = RuntimeFiles::of(&launch.runtime);
    own_directory(&launch.runtime)?;
    for socket in files.sockets() {
        gone(&socket)?;
    }
    if let Some(kernel) = &launch.definition.kernel {
        let parts = [(Some(&kernel.image), Role::Kernel), (kernel.initrd.as_ref(), Role::Initrd)];
        for (name, role) in parts {
            if let Some((name, path)) = name.and_then(|name| Some((name, launch.blobs.get(name)?))) {
                verify(path, name, role)?;
            }
        }
    }
    if let (Firmware::Uefi, Some(uefi)) = (launch.definition.firmware, &emulator.uefi) {
        fresh_variables(&uefi.variables, &files.uefi_variables())?;
    }
    let log = File::options().create(true).append(true).mode(0o600).open(files.log());
    let log = log.map_err(host(format!("open {}", files.log().display())))?;
    let end = log.metadata().map_err(host("look at the VM's log"))?.len();
    Ok((log, end))
}

/// A directory that is ours alone.
fn own_directory(directory: &Path) -> Result<(), LaunchError> {
    match DirBuilder::new().mode(0o700).create(directory) {
        Err(err) if err.kind() != io::ErrorKind::AlreadyExists => {
            return Err(host(format!("make {}", directory.display()))(err));
        }
        _ => {}
    }
    let found = std::fs::symlink_metadata(directory).map_err(host(format!("look at {}", directory.display())))?;
    if !found.is_dir() || found.uid() != rustix::process::geteuid().as_raw() {
        return Err(LaunchError::Misuse(format!("{} is not a directory of ours", directory.display())));
    }
    std::fs::set_permissions(directory, Permissions::from_mode(0o700))
        .map_err(host(format!("close {} to others", directory.display())))
}

/// The VM's own UEFI variables: those it has, or fresh ones.
fn fresh_variables(template: &Path, file: &Path) -> Result<(), LaunchError> {
    if file.exists() {
        return Ok(());
    }
    // Copied under another name first, so that half a copy is never taken for the whole.
    let part = file.with_extension("part");
    let copied = std::fs::copy(template, &part)
        .and_then(|_| std::fs::set_permissions(&part, Permissions::from_mode(0o600)))
        .and_then(|()| std::fs::rename(&part, file));
    copied.map_err(host(format!("copy {}", template.display())))
}

fn gone(file: &Path) -> Result<(), LaunchError> {
    match std::fs::remove_file(file) {
        Err(err) if err.kind() != io::ErrorKind::NotFound => Err(host(format!("remove {}", file.display()))(err)),
        _ => Ok(()),
    }
}

/// What QEMU said since `from`, or `otherwise`.
fn said(files: &RuntimeFiles, from: u64, otherwise: &str) -> String {
    let mut text = Vec::new();
    let read = File::open(files.log()).and_then(|mut file| {
        file.seek(SeekFrom::Start(from))?;
        file.take(SAID_MAX).read_to_end(&mut text)
    });
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    match read.is_ok() && !lines.is_empty() {
        true => lines.join("; ").chars().map(|c| if c.is_control() { ' ' } else { c }).collect(),
        false => otherwise.to_owned(),
    }
}

fn host(what: impl Into<String>) -> impl FnOnce(io::Error) -> LaunchError {
    move |err| LaunchError::Host { what: what.into(), err }
}
