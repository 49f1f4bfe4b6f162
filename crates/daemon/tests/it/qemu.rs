//! A VM in a real QEMU, added through its monitor.

use std::path::Path;
use std::process::{Child, Command, Stdio};

use hyper::StatusCode;
use serde_json::json;
use understudy_daemon::assembly::{GuardProgram, RealSides};
use understudy_daemon::config::Config;
use understudy_daemon::operations::{Caller, Operate, View, VmAdd};
use understudy_daemon::service::Daemon;
use understudy_model::ReturnCode;
use understudy_testkit::emulator::Emulator;
use understudy_testkit::skip;

use crate::support::daemon::raw;
use crate::support::host::soon;

const UUID: &str = "7f2c0b6e-1d1e-4c55-8f00-0123456789ab";

/// A QEMU whose processors never start, with two disks and an empty drive. Ends with its owner.
struct Qemu(Child);

impl Qemu {
    fn start(emulator: &Emulator, dir: &Path) -> Self {
        for (name, size) in [("a", "64M"), ("b", "1M")] {
            let made =
                Command::new("qemu-img").args(["create", "-q", "-f", "qcow2"]).arg(dir.join(name)).arg(size).status();
            assert!(made.unwrap().success());
        }
        let drive = |name: &str| {
            format!("driver=qcow2,node-name={name},file.driver=file,file.filename={}", dir.join(name).display())
        };
        let words = [
            "-nodefaults".to_owned(),
            "-display".into(),
            "none".into(),
            "-accel".into(),
            "tcg".into(),
            "-S".into(),
            "-uuid".into(),
            UUID.into(),
            "-qmp".into(),
            format!("unix:{},server=on,wait=off", dir.join("qmp").display()),
            "-blockdev".into(),
            drive("a"),
            "-device".into(),
            "virtio-blk-pci,id=root,drive=a".into(),
            "-blockdev".into(),
            drive("b"),
            "-device".into(),
            "virtio-blk-pci,drive=b,serial=data-1".into(),
            "-device".into(),
            "ide-cd,id=cd0".into(),
        ];
        let (program, arguments) = emulator.command(&words);
        let started = Command::new(program).args(arguments).stdin(Stdio::null()).spawn().unwrap();
        Self(started)
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test]
async fn a_running_qemu_is_added_as_it_is_and_a_dead_one_refused() {
    let emulator = match Emulator::get() {
        Ok(emulator) => emulator,
        Err(err) => return skip::say("a_running_qemu_is_added_as_it_is_and_a_dead_one_refused", &format!("{err:#}")),
    };
    let dir = tempfile::tempdir().unwrap();
    let config = Config {
        state: dir.path().join("state"),
        listen: "127.0.0.1:0".parse().unwrap(),
        name: Some("alpha".into()),
        ..Config::default()
    };
    let socket = config.socket_path();
    let guard = GuardProgram { program: env!("CARGO_BIN_EXE_understudy-guard").into(), args: vec![] };
    let daemon = Daemon::start(config, &RealSides { guard }).await.unwrap();
    let qmp = dir.path().join("qmp");
    let request = |name: &str| VmAdd { name: name.into(), qmp: qmp.to_str().unwrap().into(), definition: None };
    let caller = Caller::local(0);
    let (operate, view) = (caller.permit::<Operate>().unwrap(), caller.permit::<View>().unwrap());
    let operations = daemon.operations();

    let qemu = Qemu::start(&emulator, dir.path());
    soon("the monitor's socket", async {
        while !qmp.exists() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    let added = soon("the VM", operations.vm_add(&operate, request("web"))).await.unwrap().value;
    assert_eq!(added.id.to_string(), UUID);
    let disks: Vec<_> = added.disks.iter().map(|d| (d.id.to_string(), d.key.as_str(), d.size)).collect();
    let expected = [("disk-0".to_owned(), "id:root", 64 << 20), ("disk-1".to_owned(), "serial:data-1", 1 << 20)];
    assert_eq!(disks, expected);
    let shown = operations.vm_show(&view, "web").await.unwrap().now.unwrap().unwrap();
    assert!(shown.description.left_out.iter().any(|text| text.contains("cd0")), "{:?}", shown.description.left_out);

    operations.vm_remove(&operate, "web".into()).await.unwrap();
    drop(qemu);
    let dead = operations.vm_add(&operate, request("web")).await.unwrap_err();
    assert_eq!(dead.code, ReturnCode::NotAvailable, "{dead:?}");
    let (status, body) = raw(&socket, hyper::Method::GET, "/api/v1/vms", vec![]).await;
    assert_eq!((status, serde_json::from_slice::<serde_json::Value>(&body).unwrap()), (StatusCode::OK, json!([])));
    daemon.stop().await;
}
