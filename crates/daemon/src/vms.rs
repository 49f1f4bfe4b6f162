//! The VMs of this host: QEMUs that somebody else started, reached through their monitors.
//!
//! Looking at a VM changes nothing in it. Boot images that its definition needs (a kernel, an initial RAM disk) are
//! copied into the state directory under their hashes when the VM is added, so that a later cycle can send them even
//! if the file was replaced on the host.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use understudy_hypervisor::driver::{Description, Machine};
use understudy_hypervisor::guard::GuardClient;
use understudy_hypervisor::machine::{Blob, Definition, Derived, Source, derive};
use understudy_hypervisor::qemu::{QemuConfig, QemuMachine};
use understudy_hypervisor::qmp::{Command, Monitor, Patience, Peer, QmpError};
use understudy_model::{DiskId, ErrorKind, Refusal, ReturnCode, VmId};

use crate::catalogue::VmRecord;
use crate::chain;
use crate::operations::machines::{Inspection, Machines as Inspect};
use crate::owners::{MachineCache, Machines};

/// What is needed to reach this host's VMs.
pub struct QemuMachines {
    /// One driver for each VM.
    cache: MachineCache,
    /// Sockets of cuts, a directory for each VM below it.
    runtime: PathBuf,
    /// Scratch files of cuts, a directory for each VM below it.
    scratch: PathBuf,
    /// Boot images, by hash.
    blobs: PathBuf,
    /// Whether disks on I/O threads may be replicated.
    allow_iothreads: bool,
    /// Lets VMs run on should we die at the wrong moment.
    guard: GuardClient,
}

impl QemuMachines {
    /// Keeps its files below these directories of the state directory.
    pub fn new(runtime: PathBuf, scratch: PathBuf, blobs: PathBuf, guard: GuardClient) -> Self {
        Self { cache: MachineCache::default(), runtime, scratch, blobs, allow_iothreads: false, guard }
    }

    /// Lets disks on I/O threads be replicated, at the guests' risk.
    pub fn allow_iothreads(mut self, is_allowed: bool) -> Self {
        self.allow_iothreads = is_allowed;
        self
    }

    fn driver(&self, id: VmId, qmp: &Path) -> QemuMachine {
        // The first bytes of the identity suffice to tell VMs apart, and a socket's path must be short.
        let dir = id.0.simple().to_string();
        QemuMachine::new(QemuConfig {
            monitor: qmp.to_owned(),
            agent: None,
            runtime_dir: self.runtime.join(&dir[..12]),
            scratch_dir: self.scratch.join(&dir),
            guard: self.guard.clone(),
            allow_iothreads: self.allow_iothreads,
            patience: Patience::default(),
        })
    }

    async fn derive(&self, monitor: &mut Monitor, description: &Description) -> Result<Derived, Refusal> {
        let disks = description.disks.iter().enumerate();
        let source = Source {
            disks: disks.map(|(n, disk)| (DiskId(n as u16), qdev_of(&disk.key))).collect(),
            pid: monitor.peer().pid,
            networks: BTreeMap::new(),
        };
        let derived = derive(monitor, &source).await;
        derived.map_err(|err| {
            Refusal::new(ReturnCode::NotSupported, chain(&err)).hint("give a definition with --definition")
        })
    }

    /// Whether the user a QEMU runs as gets through to the directories it is to use.
    fn check_reach(&self, peer: Peer) -> Result<(), Refusal> {
        for (key, path) in [("vms.runtime", &self.runtime), ("vms.scratch", &self.scratch)] {
            if let Some(closed) = closed_to(path, peer) {
                let reason = format!("the VM's QEMU runs as user {}, which cannot reach {}", peer.uid, path.display());
                let hint = format!("{} is closed to it: configure another directory for `{key}`", closed.display());
                return Err(Refusal::new(ReturnCode::NotSupported, reason).hint(hint));
            }
        }
        Ok(())
    }

    fn keep(&self, blobs: &[Blob]) -> Result<(), Refusal> {
        for blob in blobs {
            keep_blob(&self.blobs, blob).map_err(|err| {
                let reason = format!("cannot keep a copy of {}: {}", blob.path.display(), chain(&err));
                Refusal::new(ReturnCode::Failed, reason)
            })?;
        }
        Ok(())
    }
}

/// Copies a boot image to its name: written whole, synced, then named.
fn keep_blob(dir: &Path, blob: &Blob) -> std::io::Result<()> {
    let target = dir.join(blob.name.as_str());
    if target.exists() {
        return Ok(());
    }
    let half = dir.join(format!("{}.half", blob.name.as_str()));
    std::fs::copy(&blob.path, &half)?;
    let file = std::fs::File::open(&half)?;
    let mut hasher = blake3::Hasher::new();
    hasher.update_reader(&file)?;
    if hasher.finalize().to_hex().as_str() != blob.name.as_str() {
        std::fs::remove_file(&half)?;
        return Err(std::io::Error::other("the file changed while it was copied"));
    }
    file.sync_all()?;
    std::fs::rename(&half, &target)?;
    std::fs::File::open(dir)?.sync_all()
}

impl Machines for QemuMachines {
    fn machine(&self, vm: &VmRecord) -> Arc<dyn Machine> {
        self.cache.get_or_make(vm.id, || Arc::new(self.driver(vm.id, Path::new(&vm.qmp))))
    }
}

#[async_trait]
impl Inspect for QemuMachines {
    async fn inspect(&self, qmp: &Path) -> Result<Inspection, Refusal> {
        let mut monitor = Monitor::connect(qmp, Patience::default()).await.map_err(|err| unreachable_vm(qmp, &err))?;
        let (uuid, peer) = (uuid_of(&mut monitor).await, monitor.peer());
        drop(monitor);
        self.check_reach(peer)?;
        let description = self.driver(VmId(uuid::Uuid::nil()), qmp).describe().await;
        let description = description.map_err(|err| {
            let code = match err.kind() {
                ErrorKind::Retry => ReturnCode::NotAvailable,
                _ => ReturnCode::NotSupported,
            };
            Refusal::new(code, chain(&err))
        })?;
        let mut monitor = Monitor::connect(qmp, Patience::default()).await.map_err(|err| unreachable_vm(qmp, &err))?;
        let definition = match self.derive(&mut monitor, &description).await {
            Ok(derived) => {
                for left_out in &derived.left_out {
                    tracing::info!(qmp = %qmp.display(), left_out, "the VM's definition does not say everything");
                }
                self.keep(&derived.blobs)?;
                Some(String::from_utf8_lossy(&derived.definition.to_json()).into_owned())
            }
            Err(refusal) => {
                tracing::warn!(qmp = %qmp.display(), %refusal, "no definition can be derived: the replica cannot be started by us");
                None
            }
        };
        Ok(Inspection { uuid, description, definition })
    }

    fn check_definition(&self, text: &str) -> Result<(), Refusal> {
        Definition::from_json(text.as_bytes()).map(drop).map_err(|err| {
            Refusal::new(ReturnCode::InvalidParameter, format!("not a VM definition: {}", chain(&err)))
                .hint("`understudy vm show NAME --json` prints the one derived from a running VM, to start from")
        })
    }
}

/// The device that QEMU's block query names, from a durable key such as `id:virtio-disk0`.
fn qdev_of(key: &str) -> String {
    key.split_once(':').map_or(key, |(_, rest)| rest).to_owned()
}

async fn uuid_of(monitor: &mut Monitor) -> Option<VmId> {
    let answer = monitor.execute(Command::bare("query-uuid")).await.ok()?;
    let id: VmId = answer.get("UUID")?.as_str()?.parse().ok()?;
    (!id.0.is_nil()).then_some(id)
}

/// Why a monitor cannot be talked to, for the API.
fn unreachable_vm(qmp: &Path, err: &QmpError) -> Refusal {
    let path = qmp.display();
    let start = "start QEMU with -qmp unix:PATH,server=on,wait=off and give that path";
    let (code, reason, hint) = match err {
        _ if !qmp.exists() => (ReturnCode::FileNotFound, format!("there is no QMP socket at {path}"), start),
        _ if !is_socket(qmp) => (ReturnCode::InvalidParameter, format!("{path} is not a socket"), start),
        QmpError::Absent { .. } => (
            ReturnCode::NotAvailable,
            format!("nobody answers at {path}"),
            "the VM's QEMU has ended, and left the socket behind",
        ),
        QmpError::Busy { .. } => (
            ReturnCode::SystemInUse,
            chain(err),
            "a monitor serves one client at a time: close the other one, or give QEMU a second -qmp socket",
        ),
        QmpError::Protocol(_) | QmpError::Unexpected { .. } | QmpError::Refused(_) | QmpError::Closed { .. } => (
            ReturnCode::InvalidParameter,
            format!("what answers at {path} is not a QEMU monitor: {}", chain(err)),
            "give the socket of -qmp, not that of a console or of -monitor",
        ),
        QmpError::Timeout { .. } => (ReturnCode::Timeout, chain(err), "the VM's QEMU hangs, perhaps on its storage"),
        QmpError::Connect { .. } | QmpError::Io { .. } => (ReturnCode::NotAvailable, chain(err), ""),
    };
    Refusal::new(code, reason).hint(hint)
}

fn is_socket(path: &Path) -> bool {
    use std::os::unix::fs::FileTypeExt;
    std::fs::metadata(path).is_ok_and(|meta| meta.file_type().is_socket())
}

/// The first directory on the way to `path` that a QEMU's user may not pass. What does not exist yet is made by us, for
/// that user.
fn closed_to(path: &Path, peer: Peer) -> Option<PathBuf> {
    use std::os::unix::fs::MetadataExt;
    if peer.uid == 0 {
        return None;
    }
    let passable = |meta: std::fs::Metadata| {
        let bit = match () {
            () if meta.uid() == peer.uid => 0o100,
            () if meta.gid() == peer.gid => 0o010,
            () => 0o001,
        };
        meta.mode() & bit != 0
    };
    let ways: Vec<&Path> = path.ancestors().collect();
    let closed = ways.into_iter().rev().find(|dir| std::fs::metadata(dir).is_ok_and(|meta| !passable(meta)));
    closed.map(Path::to_owned)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};

    use super::*;

    fn machines(dir: &Path) -> QemuMachines {
        let guard = GuardClient::new("/bin/false", [] as [&str; 0]);
        QemuMachines::new(dir.join("run"), dir.join("scratch"), dir.join("blobs"), guard)
    }

    #[tokio::test]
    async fn what_is_no_monitor_is_told_apart() {
        use tokio::io::AsyncWriteExt;
        let dir = tempfile::tempdir().unwrap();
        let machines = machines(dir.path());
        let code = async |path: &Path| machines.inspect(path).await.unwrap_err().code;
        let path = dir.path().join("s");
        assert_eq!(code(&path).await, ReturnCode::FileNotFound);
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        assert_eq!(code(&path).await, ReturnCode::NotAvailable, "the socket is there, and nobody serves it");
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, "x").unwrap();
        assert_eq!(code(&path).await, ReturnCode::InvalidParameter);
        std::fs::remove_file(&path).unwrap();
        let listener = tokio::net::UnixListener::bind(&path).unwrap();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                stream.write_all(b"220 mail.example ESMTP\r\n").await.unwrap();
            }
        });
        let refusal = machines.inspect(&path).await.unwrap_err();
        assert_eq!(refusal.code, ReturnCode::InvalidParameter);
        assert!(refusal.reason.contains("not a QEMU monitor"), "{refusal}");
    }

    #[test]
    fn a_directory_closed_to_qemus_user_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let (open, closed) = (dir.path().join("open"), dir.path().join("open/closed"));
        std::fs::create_dir_all(&closed).unwrap();
        let set = |path: &Path, mode| std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
        set(dir.path(), 0o711);
        set(&open, 0o711);
        set(&closed, 0o700);
        let qemu = Peer { pid: None, uid: 64_055, gid: 64_055 };
        assert_eq!(closed_to(&closed.join("not/made/yet"), qemu), Some(closed.clone()));
        assert_eq!(closed_to(&open, qemu), None);
        assert_eq!(closed_to(&closed, Peer { uid: 0, ..qemu }), None);
        set(&closed, 0o710);
        let gid = std::fs::metadata(&closed).unwrap().gid();
        assert_eq!(closed_to(&closed, Peer { gid, ..qemu }), None);
    }
}
