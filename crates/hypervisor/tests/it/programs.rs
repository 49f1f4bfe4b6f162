//! QEMU's own programs, for tests that want a real one on the other side.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

/// The absolute path of an installed program. Without it a test cannot say anything, so it fails and says why.
#[track_caller]
pub fn program(name: &str) -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).map(|dir| dir.join(name)).find(|file| file.is_file());
    found.unwrap_or_else(|| panic!("cannot test against {name}: not installed (Debian: qemu-utils, qemu-system-x86)"))
}

/// Runs a program to its end, which must be a good one; returns what it wrote.
#[track_caller]
pub fn run(name: &str, arguments: &[&str]) -> String {
    let output = Command::new(program(name)).args(arguments).stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "{name} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// An NBD server on a unix socket in a directory of its own.
pub struct Server {
    directory: TempDir,
    pid: Pid,
}

impl Server {
    /// A `qemu-storage-daemon` with these arguments besides those for the socket. Ready when this returns.
    pub fn storage_daemon(arguments: &[String]) -> Self {
        let directory = TempDir::new().unwrap();
        let socket = directory.path().join("nbd");
        let listen = format!("addr.type=unix,addr.path={}", socket.display());
        let pidfile = directory.path().join("pid");
        let mut all = vec!["--daemonize", "--pidfile", pidfile.to_str().unwrap(), "--nbd-server", &listen];
        all.extend(arguments.iter().map(String::as_str));
        run("qemu-storage-daemon", &all);
        Self { pid: read_pid(&pidfile), directory }
    }

    /// A `qemu-nbd` that serves one image as the export `disk`. Ready when this returns.
    pub fn qemu_nbd(image: &Path, arguments: &[&str]) -> Self {
        let directory = TempDir::new().unwrap();
        let (socket, pidfile) = (directory.path().join("nbd"), directory.path().join("pid"));
        let (socket, pidfile) = (socket.to_str().unwrap(), pidfile.to_str().unwrap());
        let fixed = ["--fork", "--persistent", "--shared=0", "-x", "disk", "-k", socket, "--pid-file", pidfile];
        run("qemu-nbd", &[&fixed, arguments, &[image.to_str().unwrap()]].concat());
        Self { pid: read_pid(Path::new(pidfile)), directory }
    }

    pub fn socket(&self) -> PathBuf {
        self.directory.path().join("nbd")
    }

    /// Ends it as a power cut would.
    pub fn kill(&self) {
        let _ = kill_process(self.pid, Signal::KILL);
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

fn read_pid(pidfile: &Path) -> Pid {
    let text = std::fs::read_to_string(pidfile).unwrap();
    Pid::from_raw(text.trim().parse().unwrap()).unwrap()
}
