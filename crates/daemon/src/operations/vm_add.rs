//! Adds a VM that somebody else started, through its QMP socket. The VM is looked at and not touched.

use std::path::Path;

use understudy_hypervisor::driver::DiskInfo;
use understudy_model::{DiskId, DiskSpec, Refusal, ReturnCode};

use super::resolve::quoted;
use super::{Done, Operate, Operations, Permit, invalid, to_the_end};
use crate::catalogue::{CatalogueError, VmRecord};
use crate::events::Notice;
use crate::names::is_name;

/// Longest path of a unix socket, without the ending zero.
const SOCKET_PATH_MAX: usize = 107;

/// What to add.
#[derive(Debug, Clone)]
pub struct VmAdd {
    /// The name to give it here.
    pub name: String,
    /// Its QMP socket.
    pub qmp: String,
    /// How to build it on another host. `None`: as derived from the running VM, if it can be.
    pub definition: Option<String>,
}

impl Operations {
    /// Adds a VM.
    pub async fn vm_add(&self, _permit: &Permit<Operate>, request: VmAdd) -> Result<Done<VmRecord>, Refusal> {
        let this = self.clone();
        to_the_end(async move { this.vm_add_now(request).await.map(Done::now) }).await
    }

    async fn vm_add_now(&self, request: VmAdd) -> Result<VmRecord, Refusal> {
        check(&request)?;
        if let Some(text) = &request.definition {
            self.parts.machines.check_definition(text)?;
        }
        let known = self.parts.catalogue.vms().await.map_err(|err| err.refusal())?;
        if known.iter().any(|vm| vm.name == request.name) {
            let reason = format!("a VM named {} is already there", quoted(&request.name));
            return Err(Refusal::new(ReturnCode::InvalidState, reason));
        }
        let found = self.parts.machines.inspect(Path::new(&request.qmp)).await?;
        if found.description.disks.is_empty() {
            let left_out = found.description.left_out.join("; ");
            return Err(Refusal::new(ReturnCode::NotSupported, "the VM has no disk that can be replicated")
                .hint(if left_out.is_empty() { left_out } else { format!("left out: {left_out}") }));
        }
        let vm = VmRecord {
            id: found.uuid.unwrap_or_else(|| self.parts.entropy.vm_id()),
            name: request.name,
            qmp: request.qmp,
            definition: request.definition.or(found.definition),
            disks: numbered(&found.description.disks)?,
            added_at: self.parts.clock.wall(),
        };
        self.parts.catalogue.add_vm(vm.clone()).await.map_err(taken)?;
        tracing::info!(vm = %vm.id, name = %vm.name, disks = vm.disks.len(), "vm added");
        self.parts.events.tell(Notice::Vm(vm.id));
        Ok(vm)
    }
}

fn check(request: &VmAdd) -> Result<(), Refusal> {
    if !is_name(&request.name) {
        return Err(invalid(format!("{} cannot be a VM's name", quoted(&request.name)))
            .hint("1 to 100 letters, digits, '.', '_', '-' or single spaces, beginning with a letter or digit"));
    }
    if !request.qmp.starts_with('/') || request.qmp.len() > SOCKET_PATH_MAX || request.qmp.contains('\0') {
        return Err(invalid(format!("{} cannot be the path of a QMP socket", quoted(&request.qmp)))
            .hint("an absolute path of at most 107 bytes, as given to QEMU with -qmp unix:PATH,server=on,wait=off"));
    }
    let len = request.definition.as_ref().map_or(0, String::len);
    if len > understudy_wire::limits::DEFINITION_MAX {
        return Err(invalid(format!("a definition of {len} bytes is too long")));
    }
    Ok(())
}

/// Numbers the disks in the order the hypervisor tells them. A number stays with its disk's key for ever.
fn numbered(disks: &[DiskInfo]) -> Result<Vec<DiskSpec>, Refusal> {
    if disks.len() > DiskSpec::COUNT_MAX {
        let reason = format!("the VM has {} disks, more than {}", disks.len(), DiskSpec::COUNT_MAX);
        return Err(Refusal::new(ReturnCode::NotSupported, reason));
    }
    let number = |(n, disk): (usize, &DiskInfo)| {
        let possible = disk.size > 0 && disk.size.is_multiple_of(512) && disk.size <= DiskSpec::SIZE_MAX;
        if !possible {
            let reason =
                format!("disk {} has a size of {} bytes, which cannot be replicated", quoted(&disk.key), disk.size);
            return Err(Refusal::new(ReturnCode::NotSupported, reason));
        }
        Ok(DiskSpec { id: DiskId(n as u16), key: disk.key.clone(), size: disk.size })
    };
    disks.iter().enumerate().map(number).collect()
}

fn taken(err: CatalogueError) -> Refusal {
    match err {
        CatalogueError::Taken { .. } => Refusal::new(ReturnCode::InvalidState, err.to_string()),
        other => other.refusal(),
    }
}
