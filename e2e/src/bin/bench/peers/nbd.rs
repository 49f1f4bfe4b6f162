//! `qemu-img convert` and `nbdcopy`, from the live QEMU's own export to `qemu-nbd` on the other host, over TLS.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::json;
use understudy_testkit::guest::Guest;
use understudy_testkit::process::{self, Owned};
use understudy_testkit::wait::wait_for;

use super::{Contender, empty_target, same, sync, word};
use crate::lab::Lab;

/// The port servers listen on, in their namespace.
pub const PORT: u16 = 10_809;
/// Name of the export on both sides.
pub const EXPORT: &str = "disk";
/// Who the client says it is; its key is in the file.
const USER: &str = "bench";
/// A server listens within tenths of a second.
const LISTEN_BOUND: Duration = Duration::from_secs(20);
/// Requests in flight, and connections: as many as the server takes from one client by default settings of `nbdcopy`.
const REQUESTS: &str = "16";
const CONNECTIONS: &str = "4";

/// Which program copies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tool {
    /// `qemu-img convert`
    QemuImg,
    /// `nbdcopy`
    NbdCopy,
}

/// `qemu-nbd` on host `b`, with a file behind it.
#[derive(Debug)]
pub struct Server {
    /// The process.
    pub process: Owned,
}

impl Server {
    /// Starts it and waits until it listens.
    pub fn start(lab: &Lab, target: &Path) -> Result<Self> {
        let (keys, pid) = (keys(lab)?, lab.path("qemu-nbd.pid"));
        if pid.exists() {
            std::fs::remove_file(&pid)?;
        }
        let tls = format!("tls-creds-psk,id=tls,endpoint=server,dir={}", keys.display());
        let (address, port) = (lab.net.b.address().to_string(), PORT.to_string());
        let words = [
            "--persistent",
            "--format=raw",
            "--discard=unmap",
            "--shared",
            CONNECTIONS,
            "--object",
            &tls,
            "--tls-creds",
            "tls",
            "--export-name",
            EXPORT,
            "--bind",
            &address,
            "--port",
            &port,
            "--pid-file",
            word(&pid)?,
            word(target)?,
        ];
        let mut process = lab.net.b.start("qemu-nbd", &words, |_| {})?;
        wait_for("qemu-nbd to listen", LISTEN_BOUND, || {
            anyhow::ensure!(process.ended()?.is_none(), "qemu-nbd has ended");
            Ok(pid.exists().then_some(()))
        })?;
        Ok(Server { process })
    }
}

/// The directory with the key both ends share: encryption of the data is the same as with certificates.
pub fn keys(lab: &Lab) -> Result<PathBuf> {
    let directory = lab.path("keys");
    if !directory.exists() {
        std::fs::create_dir(&directory).context("cannot create a directory for keys")?;
        let mut key = [0u8; 32];
        std::io::Read::read_exact(&mut std::fs::File::open("/dev/urandom")?, &mut key)?;
        let digits: String = key.iter().map(|byte| format!("{byte:02x}")).collect();
        std::fs::write(directory.join("keys.psk"), format!("{USER}:{digits}\n"))?;
    }
    Ok(directory)
}

/// Words of QEMU for the client's end of TLS.
pub fn client_credentials(lab: &Lab) -> Result<String> {
    Ok(format!("tls-creds-psk,id=tls,endpoint=client,username={USER},dir={}", keys(lab)?.display()))
}

/// The same, as a monitor takes them.
pub fn client_credentials_object(lab: &Lab) -> Result<serde_json::Value> {
    Ok(json!({"qom-type": "tls-creds-psk", "id": "tls", "endpoint": "client", "username": USER, "dir": keys(lab)?}))
}

/// A copy by one of the tools.
#[derive(Debug)]
pub struct Nbd<'a> {
    lab: &'a Lab,
    tool: Tool,
    bytes: u64,
    target: PathBuf,
    server: Option<Server>,
}

impl<'a> Nbd<'a> {
    /// With servers yet to be started.
    pub fn new(lab: &'a Lab, tool: Tool, original: &Path) -> Result<Self> {
        let bytes = std::fs::metadata(original).context("cannot size the image")?.len();
        Ok(Nbd { lab, tool, bytes, target: lab.path("nbd-target.raw"), server: None })
    }

    fn source(guest: &Guest) -> PathBuf {
        guest.config().directory().join("export.sock")
    }
}

impl Contender for Nbd<'_> {
    fn name(&self) -> String {
        match self.tool {
            Tool::QemuImg => "qemu-img convert, TLS".into(),
            Tool::NbdCopy => "nbdcopy, TLS".into(),
        }
    }

    fn prepare(&mut self, guest: &mut Guest) -> Result<()> {
        empty_target(&self.target, self.bytes)?;
        self.server = Some(Server::start(self.lab, &self.target)?);
        let socket = Self::source(guest);
        let qmp = guest.qmp();
        qmp.execute("nbd-server-start", json!({"addr": {"type": "unix", "data": {"path": socket}}}))?;
        let export = json!({"type": "nbd", "id": "bench", "node-name": "disk0", "name": EXPORT, "writable": false});
        qmp.execute("block-export-add", export).map(drop)
    }

    fn servers(&self) -> Vec<u32> {
        self.server.iter().map(|server| server.process.id()).collect()
    }

    fn run(&mut self, guest: &mut Guest) -> Result<()> {
        let from = format!("nbd+unix:///{EXPORT}?socket={}", Self::source(guest).display());
        let host = self.lab.net.b.address();
        let mut command = match self.tool {
            Tool::QemuImg => {
                let to = format!(
                    "driver=raw,file.driver=nbd,file.host={host},file.port={PORT},file.export={EXPORT},file.tls-creds=tls"
                );
                let mut command = self.lab.net.a.command("qemu-img");
                command.args(["convert", "--object", &client_credentials(self.lab)?]);
                // Everything that helps it: the target is known to be empty, many requests at once, in any order.
                command.args(["-n", "--target-is-zero", "-W", "-m", REQUESTS, "-f", "raw", &from]);
                command.args(["--target-image-opts", &to]);
                command
            }
            Tool::NbdCopy => {
                let keys = keys(self.lab)?.join("keys.psk");
                let to = format!("nbds://{USER}@{host}:{PORT}/{EXPORT}?tls-psk-file={}", keys.display());
                let mut command = self.lab.net.a.command("nbdcopy");
                command.args(["--flush", "--destination-is-zero", "--connections", CONNECTIONS, &from, &to]);
                command
            }
        };
        command.current_dir("/");
        process::run_command(command)?;
        sync(&self.target)
    }

    fn check(&mut self, original: &Path) -> Result<()> {
        same(&self.target, original)
    }

    fn finish(&mut self, guest: &mut Guest) -> Result<()> {
        self.server = None;
        guest.qmp().execute("nbd-server-stop", json!({}))?;
        std::fs::remove_file(&self.target).context("cannot remove the target")
    }
}
