//! What starting a VM needs besides its definition: this host's disks, blobs, networks, and places for sockets.
//!
//! Everything here is the replica host's own. A definition only refers to it: by disk number, blob name, network name.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use understudy_model::{DiskId, ErrorKind};
use uuid::Uuid;

use super::blob::BlobError;
use super::definition::Definition;
use super::text::{BlobName, Mac, NetworkName, VmName};
use crate::driver::ImageFormat;

/// Longest path of a unix socket that Linux takes, its final zero apart.
const SOCKET_PATH_MAX: usize = 107;

/// The QEMU of this host.
#[derive(Debug, Clone)]
pub struct Emulator {
    /// The absolute path of `qemu-system-x86_64`.
    pub program: PathBuf,
    /// The absolute path of `setsid` (util-linux), which starts it in a session of its own.
    pub setsid: PathBuf,
    /// Where UEFI comes from; without it, UEFI guests are not started.
    pub uefi: Option<UefiFiles>,
    /// Whether QEMU locks itself in (seccomp). On, unless this QEMU was built without it.
    pub sandbox: bool,
}

/// UEFI for guests, as OVMF's packages bring it.
#[derive(Debug, Clone)]
pub struct UefiFiles {
    /// The code.
    pub code: PathBuf,
    /// Fresh variables, copied for each VM.
    pub variables: PathBuf,
}

/// One VM to be started.
#[derive(Debug, Clone)]
pub struct Launch {
    /// What it is.
    pub definition: Definition,
    /// Who it is, when it must not be taken for the original.
    pub identity: Option<Identity>,
    /// The writable image of each of its disks.
    pub images: BTreeMap<DiskId, DiskImage>,
    /// Where its blobs are. They are compared with their names before they are used.
    pub blobs: BTreeMap<BlobName, PathBuf>,
    /// What its networks are on this host.
    pub networks: Networks,
    /// Where its serial console goes.
    pub console: Console,
    /// A directory of its own, made if it is missing: sockets, process id, logs, UEFI variables. The VM is found again
    /// by it.
    pub runtime: PathBuf,
    /// Whether its processors wait for [`super::Running::resume`].
    pub paused: bool,
}

/// Another identity for a copy that runs beside the original.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// Its name.
    pub name: VmName,
    /// Its uuid.
    pub uuid: Uuid,
    /// The addresses of its network cards, in the definition's order, as many as it has.
    pub macs: Vec<Mac>,
}

/// The image of a disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskImage {
    /// Its absolute path. Its backing files, if it has any, are those its header names: made by our own store.
    pub path: PathBuf,
    /// The format it is opened in, whatever it looks like.
    pub format: ImageFormat,
}

/// What a VM's networks are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Networks {
    /// Nothing at all, whatever the definition says: the cards have their links up and lead nowhere.
    Isolated,
    /// These; cards of other networks, or of none, lead nowhere.
    Attached(BTreeMap<NetworkName, Attachment>),
}

/// What a network is on this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Attachment {
    /// Nothing: the link is up and leads nowhere.
    Nothing,
    /// QEMU's user-mode network: out by the host's address, nothing in.
    User,
    /// A bridge, by QEMU's bridge helper, which must be installed and allow it.
    Bridge(InterfaceName),
    /// A tap interface that is there and set up.
    Tap(InterfaceName),
}

/// The name of a network interface of Linux.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct InterfaceName(String);

impl InterfaceName {
    /// Checks a name: 1 to 15 letters, digits, `.`, `_`, `-`, `@`.
    pub fn new(name: &str) -> Option<Self> {
        let allowed = |b: u8| b.is_ascii_alphanumeric() || b"._-@".contains(&b);
        let sound = (1..=15).contains(&name.len()) && name.bytes().all(allowed) && !name.chars().all(|c| c == '.');
        sound.then(|| Self(name.to_owned()))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Where a serial console goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Console {
    /// To `console.sock` in the runtime directory; what nobody reads is lost.
    Socket,
    /// To the file `console.log` in the runtime directory, which a guest can make as long as it likes.
    File,
}

/// The names in a runtime directory.
#[derive(Debug, Clone)]
pub struct RuntimeFiles {
    directory: PathBuf,
}

impl RuntimeFiles {
    /// Of a runtime directory.
    pub fn of(directory: &Path) -> Self {
        Self { directory: directory.to_owned() }
    }

    /// The directory.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The monitor (QMP).
    pub fn monitor(&self) -> PathBuf {
        self.directory.join("qmp.sock")
    }

    /// The guest agent's channel.
    pub fn agent(&self) -> PathBuf {
        self.directory.join("agent.sock")
    }

    /// The serial console as a socket.
    pub fn console_socket(&self) -> PathBuf {
        self.directory.join("console.sock")
    }

    /// The serial console as a file.
    pub fn console_log(&self) -> PathBuf {
        self.directory.join("console.log")
    }

    /// The screen (VNC).
    pub fn screen(&self) -> PathBuf {
        self.directory.join("vnc.sock")
    }

    /// The process id.
    pub fn pid(&self) -> PathBuf {
        self.directory.join("qemu.pid")
    }

    /// What QEMU has to say, from this start and earlier ones.
    pub fn log(&self) -> PathBuf {
        self.directory.join("qemu.log")
    }

    /// The VM's UEFI variables.
    pub(super) fn uefi_variables(&self) -> PathBuf {
        self.directory.join("uefi-variables.fd")
    }

    pub(super) fn sockets(&self) -> [PathBuf; 4] {
        [self.monitor(), self.agent(), self.console_socket(), self.screen()]
    }

    /// Checks that sockets fit into the directory.
    pub(super) fn check(&self) -> Result<(), LaunchError> {
        let longest = self.console_socket().as_os_str().len();
        match self.directory.is_absolute() && longest <= SOCKET_PATH_MAX {
            true => Ok(()),
            false => Err(LaunchError::Misuse(format!(
                "the runtime directory {} is not absolute, or longer than a socket's path may be",
                self.directory.display()
            ))),
        }
    }
}

/// Why a VM was not started.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// The request does not fit together.
    #[error("cannot start the VM: {0}")]
    Misuse(String),
    /// This host lacks something the VM needs.
    #[error("cannot start the VM here: {0}")]
    Lacking(String),
    /// It runs already.
    #[error("the VM runs already, as process {pid}")]
    Running {
        /// Its process.
        pid: u32,
    },
    /// A kernel or initial file system is missing or not what the definition names.
    #[error("cannot start the VM")]
    Blob(#[from] BlobError),
    /// The host's file system is in the way.
    #[error("cannot {what}")]
    Host {
        /// What was being done.
        what: String,
        /// Why it failed.
        #[source]
        err: io::Error,
    },
    /// QEMU refused.
    #[error("QEMU did not start: {said}")]
    Refused {
        /// What it said: printable, cut.
        said: String,
    },
    /// QEMU was still not ready.
    #[error("QEMU was not ready within {waited:?}")]
    Late {
        /// How long was waited.
        waited: std::time::Duration,
    },
    /// It was started, and cannot be asked.
    #[error("the VM was started and cannot be reached")]
    Lost(#[from] super::FindError),
}

impl LaunchError {
    /// What the caller does next.
    pub fn kind(&self) -> ErrorKind {
        match self {
            LaunchError::Misuse(_) => ErrorKind::Bug,
            LaunchError::Running { .. } => ErrorKind::Refused,
            LaunchError::Blob(BlobError::Other { .. }) => ErrorKind::Corrupt,
            LaunchError::Late { .. } => ErrorKind::Retry,
            LaunchError::Lost(err) => err.kind(),
            _ => ErrorKind::Operator,
        }
    }
}
