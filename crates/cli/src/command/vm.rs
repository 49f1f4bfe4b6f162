//! `understudy vm`

use anyhow::Context;
use understudy_daemon::faces::rest::types;

use super::Session;
use crate::arguments::Vm;
use crate::client::{file, path, read};
use crate::failure::Failure;
use crate::show;

const VMS: &str = "/api/v1/vms";

impl Session {
    pub(super) async fn vm(&self, verb: Vm) -> Result<(), Failure> {
        match verb {
            Vm::Add { name, qmp, definition } => {
                let qmp = std::path::absolute(&qmp).with_context(|| format!("{} is no path", qmp.display()))?;
                let qmp = qmp.into_os_string().into_string().ok().context("the socket's path is not UTF-8")?;
                let definition = definition.as_deref().map(file).transpose()?;
                self.vm_add(types::VmAdd { name, qmp, definition }).await
            }
            Vm::List => self.vm_list().await,
            Vm::Show { name } => self.vm_show(&name).await,
            Vm::Remove { name } => {
                let answer = self.client.delete(&path(VMS, &name, "")).await?;
                self.carry(answer, &format!("VM {name} is off the list.")).await
            }
        }
    }

    async fn vm_add(&self, request: types::VmAdd) -> Result<(), Failure> {
        let answer = self.client.post(VMS, &request).await?;
        self.tell(&answer, || {
            let added: types::VmAnswer = read(&answer)?;
            let total: u64 = added.vm.disks.iter().map(|d| d.size).sum();
            let disks = show::count(added.vm.disks.len(), "disk");
            println!("Added VM {} with {disks}, {} in all.", added.vm.name, show::bytes(total));
            if !added.vm.has_definition {
                println!("How to build it elsewhere could not be found out: its replica can be started by hand only.");
                println!("Give a definition with --definition; the log of the service has the reason.");
            }
            Ok(())
        })
    }

    async fn vm_list(&self) -> Result<(), Failure> {
        let answer = self.client.get(VMS).await?;
        self.tell(&answer, || {
            let vms: Vec<types::Vm> = read(&answer)?;
            if vms.is_empty() {
                println!("No VM is listed. Add one: understudy vm add NAME --qmp SOCKET");
                return Ok(());
            }
            let row = |vm: types::Vm| {
                let total = vm.disks.iter().map(|d| d.size).sum();
                let replicated = if vm.is_replicated { "yes" } else { "no" };
                vec![vm.name, vm.disks.len().to_string(), show::bytes(total), replicated.to_owned(), vm.qmp, vm.id]
            };
            let rows = vms.into_iter().map(row).collect();
            show::table(&["NAME", "DISKS", "SIZE", "REPLICATED", "QMP", "IDENTITY"], rows);
            Ok(())
        })
    }

    async fn vm_show(&self, name: &str) -> Result<(), Failure> {
        let answer = self.client.get(&path(VMS, name, "")).await?;
        self.tell(&answer, || {
            let vm: types::Vm = read(&answer)?;
            show::details(&lines(&vm));
            Ok(())
        })
    }
}

fn lines(vm: &types::Vm) -> Vec<(&'static str, String)> {
    let yes = |yes: bool| if yes { "yes" } else { "no" }.to_owned();
    let definition = if vm.has_definition { "known" } else { "not known: a replica can be started by hand only" };
    let disk = |d: &types::Disk| format!("{}  {}  {}", d.id, show::bytes(d.size), d.key);
    let mut lines = vec![
        ("Name", vm.name.clone()),
        ("Identity", vm.id.clone()),
        ("QMP socket", vm.qmp.clone()),
        ("Added", show::time(&vm.added_at)),
        ("Definition", definition.to_owned()),
        ("Replicated", yes(vm.is_replicated)),
        ("Disks", vm.disks.iter().map(disk).collect::<Vec<_>>().join("\n")),
    ];
    if let Some(now) = &vm.now {
        lines.push(("Power", now.power.clone()));
        lines.extend(now.hypervisor.clone().map(|version| ("QEMU", version)));
        if !now.left_out.is_empty() {
            lines.push(("Left out", now.left_out.join("\n")));
        }
        lines.extend(now.problem.clone().map(|problem| ("Problem", problem)));
    }
    lines
}
