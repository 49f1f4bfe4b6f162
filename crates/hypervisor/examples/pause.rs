//! Measures how long a guest stands still for a cut: `pause [CUTS] [DISKS]`, with a QEMU under TCG whose guest writes to
//! its disks all the time.
//!
//! What is told: for several disks the time from QEMU's STOP to its RESUME event, by QEMU's own clock; for one disk, which
//! needs no stop, the longest time the guest's next write took to be asked for; and how long the whole call took.

#[path = "../tests/it/boot_sector.rs"]
mod boot_sector;

use std::error::Error;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Child, Command as Process, Stdio};
use std::time::{Duration, Instant};

use understudy_hypervisor::driver::{CutRequest, Machine, MapOwner};
use understudy_hypervisor::guard::{self, GuardClient};
use understudy_hypervisor::qemu::{QemuConfig, QemuMachine};
use understudy_hypervisor::qmp::{Monitor, Patience};
use understudy_model::{Consistency, CutNumber, DiskId, DiskSpec, Generation, RelationshipId, VmId};
use uuid::Uuid;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

const SIZE: u64 = 1 << 30;

fn main() -> Result<()> {
    let args: Vec<_> = std::env::args().skip(1).collect();
    if args.first().is_some_and(|a| a == "guard") {
        use std::os::fd::AsFd;
        return Ok(guard::run(std::io::stdin().as_fd().try_clone_to_owned()?)?);
    }
    let number = |at: usize, usual: usize| args.get(at).map_or(Ok(usual), |a| a.parse());
    measure(number(0, 50)?, number(1, 2)?)
}

struct Qemu(Child);

impl Drop for Qemu {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn start(directory: &Path, disks: usize) -> Result<Qemu> {
    let mut qemu = Process::new("qemu-system-x86_64");
    qemu.args(["-accel", "tcg", "-nodefaults", "-display", "none", "-m", "16", "-S"]);
    for name in ["qmp", "spare"] {
        qemu.arg("-qmp").arg(format!("unix:{},server=on,wait=off", directory.join(name).display()));
    }
    for at in 0..disks {
        let image = directory.join(format!("{at}"));
        std::fs::File::create(&image)?.set_len(SIZE)?;
        if at == 0 {
            boot_sector::install(&image);
        }
        qemu.args(["-blockdev", &format!("raw,node-name=n{at},file.driver=file,file.filename={}", image.display())]);
        qemu.args(["-device", &format!("virtio-blk-pci,id=d{at},drive=n{at},bootindex={at}")]);
    }
    Ok(Qemu(qemu.stdin(Stdio::null()).spawn()?))
}

async fn connect(socket: &Path) -> Result<Monitor> {
    let begun = Instant::now();
    loop {
        match Monitor::connect(socket, Patience::default()).await {
            Ok(monitor) => return Ok(monitor),
            Err(err) if begun.elapsed() > Duration::from_secs(10) => return Err(err.into()),
            Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
        }
    }
}

#[tokio::main(flavor = "current_thread")]
async fn measure(cuts: usize, disks: usize) -> Result<()> {
    let directory = tempfile::tempdir()?;
    let directory = directory.path();
    let _qemu = start(directory, disks)?;
    let mut watcher = connect(&directory.join("spare")).await?;
    let machine = QemuMachine::new(QemuConfig {
        monitor: directory.join("qmp"),
        agent: None,
        runtime_dir: directory.join("run"),
        scratch_dir: directory.join("scratch"),
        guard: GuardClient::new(std::env::current_exe()?, ["guard"]),
        allow_iothreads: true,
        patience: Patience::default(),
    });
    let owner = MapOwner { relationship: RelationshipId::first(VmId(Uuid::nil())), generation: Generation(1) };
    let spec = |at: usize| DiskSpec { id: DiskId(at as u16), key: format!("id:d{at}"), size: SIZE };
    let specs: Vec<_> = (0..disks).map(spec).collect();
    watcher.execute(understudy_hypervisor::qmp::Command::bare("cont")).await?;
    machine.begin_tracking(&owner, &specs, CutNumber(1)).await?;
    watcher.take_events();

    let (mut pauses, mut calls, mut releases) = (Vec::new(), Vec::new(), Vec::new());
    for number in 2..cuts as u64 + 2 {
        let request = CutRequest {
            owner,
            number: CutNumber(number),
            base: CutNumber(number - 1),
            disks: specs.clone(),
            consistency: Consistency::Standard,
            scratch_limit: 1 << 30,
            images: Vec::new(),
            also: Default::default(),
        };
        let begun = Instant::now();
        let cut = machine.cut(request).await?;
        calls.push(begun.elapsed().as_secs_f64() * 1e3);
        tokio::time::sleep(Duration::from_millis(20)).await;
        let begun = Instant::now();
        cut.release().await?;
        releases.push(begun.elapsed().as_secs_f64() * 1e3);
        machine.drop_maps(&owner, CutNumber(number)).await?;
        watcher.execute(understudy_hypervisor::qmp::Command::bare("query-status")).await?;
        let events = watcher.take_events();
        let at = |name: &str| events.iter().find(|e| e.name == name).map(|e| e.at_us);
        if let (Some(stop), Some(resume)) = (at("STOP"), at("RESUME")) {
            pauses.push((resume - stop) as f64 / 1e3);
        }
        tokio::time::sleep(Duration::from_millis(30)).await;
    }
    let counter = |at: usize| -> Result<u32> {
        let mut part = vec![0; 2 << 20];
        std::fs::File::open(directory.join(at.to_string()))?.read_exact_at(&mut part, 0)?;
        Ok(boot_sector::counter(&part))
    };
    println!("{disks} disks, {cuts} cuts; the guest made {} rounds of writes meanwhile", counter(0)?);
    for (what, times) in [("stopped", &mut pauses), ("cut()", &mut calls), ("release()", &mut releases)] {
        tell(what, times);
    }
    Ok(())
}

fn tell(what: &str, times: &mut [f64]) {
    times.sort_by(f64::total_cmp);
    let at = |share: f64| times.get(((times.len() as f64 - 1.0) * share) as usize).copied();
    match (at(0.5), at(0.9), at(0.99), times.last()) {
        (Some(half), Some(ninety), Some(most), Some(worst)) => {
            println!("{what:>10}: p50 {half:.2} ms, p90 {ninety:.2} ms, p99 {most:.2} ms, worst {worst:.2} ms");
        }
        _ => println!("{what:>10}: never"),
    }
}
