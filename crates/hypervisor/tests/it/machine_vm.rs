//! VMs for the tests of definitions: QEMU with its processors stopped, so that nothing needs to boot.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;
use understudy_hypervisor::machine::{Derived, Emulator, Source, derive};
use understudy_hypervisor::qmp::{Command as Qmp, Monitor, Patience};

use crate::programs::program;

pub const PATIENCE: Duration = Duration::from_secs(60);

/// The installed QEMU.
pub fn emulator() -> Emulator {
    Emulator { program: program("qemu-system-x86_64"), setsid: program("setsid"), uefi: None, sandbox: true }
}

/// A QEMU that somebody else started, with its processors stopped.
pub struct Vm {
    pub directory: TempDir,
    pub pid: Pid,
    child: Option<Child>,
}

impl Vm {
    /// Starts one. `{}` in an argument stands for the VM's directory.
    #[track_caller]
    pub fn start(arguments: &[&str]) -> Self {
        Self::start_in(TempDir::new().unwrap(), arguments)
    }

    #[track_caller]
    pub fn start_in(directory: TempDir, arguments: &[&str]) -> Self {
        let mut command = command(&directory, arguments);
        let output = command.arg("-daemonize").output().unwrap();
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        let pid = std::fs::read_to_string(directory.path().join("pid")).unwrap();
        Self { pid: Pid::from_raw(pid.trim().parse().unwrap()).unwrap(), directory, child: None }
    }

    /// Starts one that stays in the directory it was started in.
    pub async fn start_attached(directory: TempDir, arguments: &[&str]) -> Self {
        let child = command(&directory, arguments).spawn().unwrap();
        let vm = Self { pid: Pid::from_child(&child), directory, child: Some(child) };
        let ready = async {
            while Monitor::connect(&vm.monitor(), Patience::default()).await.is_err() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(PATIENCE, ready).await.expect("QEMU is ready");
        vm
    }

    pub fn monitor(&self) -> PathBuf {
        self.directory.path().join("qmp")
    }

    /// Its definition. Disks are named as `query-block` names them.
    pub async fn derive(&self, disks: &[&str]) -> Derived {
        let disks = disks.iter().zip(0..).map(|(qdev, n)| (understudy_model::DiskId(n), (*qdev).to_owned())).collect();
        let pid = self.pid.as_raw_pid().unsigned_abs();
        self.derive_from(Source { disks, pid: Some(pid), ..Source::default() }).await.unwrap()
    }

    pub async fn derive_from(&self, source: Source) -> Result<Derived, understudy_hypervisor::machine::DeriveError> {
        let mut monitor = Monitor::connect(&self.monitor(), Patience::default()).await.unwrap();
        derive(&mut monitor, &source).await
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        let _ = kill_process(self.pid, Signal::KILL);
        if let Some(child) = &mut self.child {
            let _ = child.wait();
        }
    }
}

fn command(directory: &TempDir, arguments: &[&str]) -> Command {
    let here = directory.path().to_str().unwrap();
    let own =
        ["-S", "-display", "none", "-accel", "tcg", "-qmp", "unix:{}/qmp,server=on,wait=off", "-pidfile", "{}/pid"];
    let mut command = Command::new(program("qemu-system-x86_64"));
    command.args(own.iter().chain(arguments).map(|a| a.replace("{}", here))).current_dir(here).stdin(Stdio::null());
    command
}

/// One question to a monitor.
pub async fn ask(monitor: &Path, command: &'static str, arguments: Option<Value>) -> Value {
    let mut monitor = Monitor::connect(monitor, Patience::default()).await.unwrap();
    monitor.execute(Qmp { name: command, arguments }).await.unwrap()
}

/// The `qdev` of every drive with a medium, in QEMU's order.
pub async fn drives(monitor: &Path) -> Vec<String> {
    let blocks = ask(monitor, "query-block", None).await;
    let has_medium = |block: &&Value| block.get("inserted").is_some();
    let qdev = |block: &Value| Some(block.get("qdev")?.as_str()?.to_owned());
    blocks.as_array().unwrap().iter().filter(has_medium).filter_map(qdev).collect()
}

/// Something that QEMU takes for a Linux kernel: a boot sector's signature and protocol version, and nothing to run.
pub fn fake_kernel(path: &Path) -> Vec<u8> {
    let mut kernel = vec![0; 64 << 10];
    kernel[0x1f1] = 4;
    kernel[0x202..0x206].copy_from_slice(b"HdrS");
    kernel[0x206..0x208].copy_from_slice(&0x020cu16.to_le_bytes());
    kernel[0x211] = 1;
    kernel[0x22c..0x230].copy_from_slice(&0x37ff_ffffu32.to_le_bytes());
    std::fs::write(path, &kernel).unwrap();
    kernel
}
