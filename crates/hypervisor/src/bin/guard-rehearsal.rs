//! For the tests, which need processes that can be killed: `guard` is a guard; `stop MONITOR` stops the VM behind a
//! monitor under the eyes of a guard and then stands still; `cut DIRECTORY NUMBER BASE` takes a cut and does the same.

use std::error::Error;
use std::io::{Write, stdin, stdout};
use std::os::fd::AsFd;
use std::path::Path;

use understudy_hypervisor::driver::{CutRequest, Machine, MapOwner};
use understudy_hypervisor::guard::{self, Duty, GuardClient};
use understudy_hypervisor::qemu::{QemuConfig, QemuMachine};
use understudy_hypervisor::qmp::{Command, Monitor, Patience};
use understudy_model::{Consistency, CutNumber, DiskId, DiskSpec, Generation, RelationshipId, VmId};
use uuid::Uuid;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match &args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["guard"] => Ok(guard::run(stdin().as_fd().try_clone_to_owned()?)?),
        ["stop", monitor] => stop(monitor.as_ref()),
        ["cut", directory, number, base] => {
            cut(directory.as_ref(), CutNumber(number.parse()?), CutNumber(base.parse()?))
        }
        _ => Err("say `guard`, `stop MONITOR` or `cut DIRECTORY NUMBER BASE`".into()),
    }
}

#[tokio::main(flavor = "current_thread")]
async fn stop(monitor: &Path) -> Result<()> {
    let guard = GuardClient::new(std::env::current_exe()?, ["guard"]);
    let watch = guard.arm(Duty::Resume { monitor: monitor.into() }).await?;
    let mut held = Monitor::connect(monitor, Patience::default()).await?;
    held.execute(Command::bare("stop")).await?;
    stand_still(&format!("stopped {}", guard.pid().ok_or("no guard")?)).await?;
    watch.done();
    Ok(())
}

#[tokio::main(flavor = "current_thread")]
async fn cut(directory: &Path, number: CutNumber, base: CutNumber) -> Result<()> {
    let machine = QemuMachine::new(QemuConfig {
        monitor: directory.join("qmp"),
        agent: None,
        runtime_dir: directory.join("run"),
        scratch_dir: directory.join("scratch"),
        guard: GuardClient::new(std::env::current_exe()?, ["guard"]),
        allow_iothreads: true,
        patience: Patience::default(),
    });
    let found = machine.describe().await?;
    let spec = |(at, disk): (usize, understudy_hypervisor::driver::DiskInfo)| DiskSpec {
        id: DiskId(at as u16),
        key: disk.key,
        size: disk.size,
    };
    let request = CutRequest {
        owner: MapOwner {
            relationship: RelationshipId::first(VmId(Uuid::from_u128(0x5eed))),
            generation: Generation(1),
        },
        number,
        base,
        disks: found.disks.into_iter().enumerate().map(spec).collect(),
        consistency: Consistency::Standard,
        scratch_limit: 64 << 20,
        images: Vec::new(),
        also: Default::default(),
    };
    let cut = machine.cut(request).await?;
    stand_still("cut").await?;
    Ok(cut.release().await?)
}

/// Says so, and waits to be killed.
async fn stand_still(word: &str) -> Result<()> {
    println!("{word}");
    stdout().flush()?;
    std::future::pending().await
}
