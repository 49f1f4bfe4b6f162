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
use understudy_hypervisor::qmp::{Command, Monitor, Patience, QmpError};
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
    /// Lets VMs run on should we die at the wrong moment.
    guard: GuardClient,
}

impl QemuMachines {
    /// Keeps its files below these directories of the state directory.
    pub fn new(runtime: PathBuf, scratch: PathBuf, blobs: PathBuf, guard: GuardClient) -> Self {
        Self { cache: MachineCache::default(), runtime, scratch, blobs, guard }
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
            patience: Patience::default(),
            last_known: Vec::new(),
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
        let uuid = uuid_of(&mut monitor).await;
        drop(monitor);
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

fn unreachable_vm(qmp: &Path, err: &QmpError) -> Refusal {
    let path = qmp.display();
    if !qmp.exists() {
        return Refusal::new(ReturnCode::FileNotFound, format!("there is no QMP socket at {path}"))
            .hint("start QEMU with -qmp unix:PATH,server=on,wait=off and give that path");
    }
    let code = match err.kind() {
        ErrorKind::Retry => ReturnCode::NotAvailable,
        _ => ReturnCode::InvalidParameter,
    };
    Refusal::new(code, format!("the QMP socket {path} does not answer as a QEMU does: {}", chain(err)))
        .hint("is the VM running, and is no other program holding its monitor?")
}
