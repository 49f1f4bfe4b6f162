//! rsync over ssh, to an sshd of its own on the other host. It reads the image's file beside the running QEMU: a copy that is of use
//! only while the guest is idle, as it is here.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use understudy_testkit::guest::Guest;
use understudy_testkit::process::{self, Owned};
use understudy_testkit::wait::wait_for;

use super::{Contender, same, sync, word};
use crate::lab::Lab;

const PORT: u16 = 2222;
const LISTEN_BOUND: Duration = Duration::from_secs(20);
/// Of those ssh has, the fastest where processors know AES.
const CIPHER: &str = "aes128-gcm@openssh.com";
/// Debian's sshd gives up its rights in here.
const EMPTY_DIRECTORY: &str = "/run/sshd";

/// An sshd with a key and a configuration of its own.
#[derive(Debug)]
pub struct Ssh {
    directory: PathBuf,
    port: u16,
    process: Owned,
}

impl Ssh {
    /// Starts it on host `b` and waits until it listens. `name` is that of its directory.
    pub fn start(lab: &Lab, name: &str, port: u16) -> Result<Self> {
        let directory = lab.path(name);
        let program = process::run("sh", ["-c", "PATH=$PATH:/usr/sbin:/sbin command -v sshd"]);
        let program = program.context("sshd is not installed")?;
        fs::create_dir_all(&directory).context("cannot create a directory for sshd")?;
        fs::create_dir_all(EMPTY_DIRECTORY).context("cannot create sshd's empty directory")?;
        for key in ["host", "user"] {
            let file = directory.join(key);
            if !file.exists() {
                process::run("ssh-keygen", ["-q", "-t", "ed25519", "-N", "", "-f", word(&file)?])?;
            }
        }
        fs::copy(directory.join("user.pub"), directory.join("authorized"))?;
        let address = lab.net.b.address();
        let host_key = fs::read_to_string(directory.join("host.pub"))?;
        fs::write(directory.join("known"), format!("[{address}]:{port} {host_key}"))?;
        let (config, pid) = (directory.join("config"), directory.join("pid"));
        fs::write(&config, configuration(&directory, &format!("{address}:{port}")))?;
        if pid.exists() {
            fs::remove_file(&pid)?;
        }
        let log = fs::File::create(directory.join("log")).context("cannot create sshd's log")?;
        let words = ["-D", "-e", "-f", word(&config)?];
        let mut process = lab.net.b.start(program.trim(), &words, |command| {
            command.stderr(log);
        })?;
        wait_for("sshd to listen", LISTEN_BOUND, || {
            anyhow::ensure!(process.ended()?.is_none(), "sshd has ended: see {}", directory.display());
            Ok(pid.exists().then_some(()))
        })?;
        Ok(Ssh { directory, port, process })
    }

    /// Its process.
    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// The client and its options, as one line.
    pub fn client(&self) -> String {
        let file = |name: &str| self.directory.join(name).display().to_string();
        format!(
            "ssh -F none -p {} -i {} -o UserKnownHostsFile={} -o BatchMode=yes -o IdentitiesOnly=yes -c {CIPHER}",
            self.port,
            file("user"),
            file("known")
        )
    }
}

fn configuration(directory: &Path, address: &str) -> String {
    let at = directory.display();
    format!(
        "ListenAddress {address}\nHostKey {at}/host\nAuthorizedKeysFile {at}/authorized\nPidFile {at}/pid\n\
         PasswordAuthentication no\nKbdInteractiveAuthentication no\nUsePAM no\nStrictModes no\nPermitRootLogin yes\n\
         Ciphers {CIPHER}\n"
    )
}

/// How it is told to work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// Everything, as it is or compressed.
    Whole { compressed: bool },
    /// Both sides read everything, what differs is sent and written in place.
    Again,
}

/// A copy by rsync.
#[derive(Debug)]
pub struct Rsync<'a> {
    lab: &'a Lab,
    way: Way,
    original: PathBuf,
    target: PathBuf,
    ssh: Option<Ssh>,
}

impl<'a> Rsync<'a> {
    /// A full copy.
    pub fn new(lab: &'a Lab, original: &Path, compressed: bool) -> Self {
        Self::with(lab, original, Way::Whole { compressed })
    }

    /// What differs from a first copy that is not measured.
    pub fn again(lab: &'a Lab, original: &Path) -> Self {
        Self::with(lab, original, Way::Again)
    }

    fn with(lab: &'a Lab, original: &Path, way: Way) -> Self {
        Rsync { lab, way, original: original.into(), target: lab.path("rsync-target.raw"), ssh: None }
    }

    fn remove(&self) -> Result<()> {
        if self.target.exists() {
            fs::remove_file(&self.target).context("cannot remove the target")?;
        }
        Ok(())
    }
}

impl Contender for Rsync<'_> {
    fn name(&self) -> String {
        match self.way {
            Way::Whole { compressed: false } => "rsync, ssh".into(),
            Way::Whole { compressed: true } => "rsync -z (zstd), ssh".into(),
            Way::Again => "rsync --inplace, ssh".into(),
        }
    }

    fn prepare(&mut self, _guest: &mut Guest) -> Result<()> {
        self.remove()?;
        if self.way == Way::Again {
            process::run("cp", ["--sparse=always", word(&self.original)?, word(&self.target)?])?;
        }
        self.ssh = Some(Ssh::start(self.lab, "rsync-ssh", PORT)?);
        Ok(())
    }

    fn servers(&self) -> Vec<u32> {
        self.ssh.iter().map(Ssh::id).collect()
    }

    fn run(&mut self, _guest: &mut Guest) -> Result<()> {
        let client = self.ssh.as_ref().context("sshd does not run")?.client();
        let mut command = self.lab.net.a.command("rsync");
        command.args(["--rsh", &client]);
        match self.way {
            Way::Whole { compressed } => {
                command.args(["--whole-file", "--sparse"]);
                command.args(compressed.then_some(["--compress", "--compress-choice=zstd"]).into_iter().flatten());
            }
            Way::Again => {
                command.args(["--no-whole-file", "--inplace", "--ignore-times"]);
            }
        }
        command.arg(&self.original).arg(format!("root@{}:{}", self.lab.net.b.address(), self.target.display()));
        process::run_command(command)?;
        sync(&self.target)
    }

    fn check(&mut self, original: &Path) -> Result<()> {
        same(&self.target, original)
    }

    fn finish(&mut self, _guest: &mut Guest) -> Result<()> {
        self.ssh = None;
        self.remove()
    }
}
