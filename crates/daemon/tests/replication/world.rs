//! Two hosts and a QEMU without a guest, written to through its monitor.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;
use understudy_daemon::assembly::{GuardProgram, RealSides};
use understudy_daemon::config::Config;
use understudy_daemon::operations::access::Right;
use understudy_daemon::operations::{
    Administer, Caller, InitialReplication, Operate, PeerJoin, Permit, ReplicationCreate, ReplicationStart, View, VmAdd,
};
use understudy_daemon::service::Daemon;
use understudy_hypervisor::qmp::{Command as Qmp, Monitor, Patience};
use understudy_model::job::JobState;
use understudy_model::settings::PointEvery;
use understudy_model::{JobId, Millis, State, Timestamp};

pub struct World {
    primary: Option<Daemon>,
    replica: Option<Daemon>,
    qemu: Child,
    images: Vec<PathBuf>,
    format: &'static str,
    dir: TempDir,
}

impl Drop for World {
    fn drop(&mut self) {
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
    }
}

fn run(program: &str, args: &[&str]) {
    let out = Command::new(program).args(args).output().unwrap_or_else(|e| panic!("{program} must be installed: {e}"));
    assert!(
        out.status.success(),
        "{program} {args:?}: {}{}",
        String::from_utf8_lossy(&out.stdout),
        String::from_utf8_lossy(&out.stderr)
    );
}

async fn host(dir: &Path, name: &str) -> Daemon {
    let config = Config {
        state: dir.join(name),
        storage: Some(dir.join(format!("{name}-storage"))),
        listen: "127.0.0.1:0".parse().expect("an address"),
        name: Some(name.to_owned()),
        ..Config::default()
    };
    let guard = GuardProgram { program: env!("CARGO_BIN_EXE_understudy-guard").into(), args: vec![] };
    Daemon::start(config, &RealSides { guard }).await.unwrap_or_else(|e| panic!("{}", understudy_daemon::chain(&e)))
}

impl World {
    pub async fn start(sizes: &[u64], format: &'static str) -> Self {
        let _ = tracing_subscriber::fmt().with_env_filter("info,understudy_daemon=debug").with_test_writer().try_init();
        let dir = TempDir::new().expect("a directory");
        let mut qemu = Command::new("qemu-system-x86_64");
        let qmp = dir.path().join("qmp.sock");
        qemu.args(["-accel", "tcg", "-m", "64", "-display", "none", "-nodefaults", "-name", "vm"]);
        qemu.args(["-uuid", "7f2c0b6e-0000-4000-8000-0123456789ab"]);
        qemu.arg("-qmp").arg(format!("unix:{},server=on,wait=off", qmp.display()));
        let mut images = Vec::new();
        for (n, size) in sizes.iter().enumerate() {
            let image = dir.path().join(format!("disk{n}.{format}"));
            run("qemu-img", &["create", "-q", "-f", format, &image.to_string_lossy(), &size.to_string()]);
            qemu.arg("-drive").arg(format!("if=none,id=d{n},format={format},discard=unmap,file={}", image.display()));
            qemu.arg("-device").arg(format!("virtio-blk-pci,drive=d{n},id=disk{n}"));
            images.push(image);
        }
        let qemu = qemu.stdin(Stdio::null()).spawn().expect("qemu-system-x86_64 must be installed");
        let since = Instant::now();
        while !qmp.exists() {
            assert!(since.elapsed() < Duration::from_secs(20), "QEMU opens its monitor");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let primary = host(dir.path(), "primary").await;
        let replica = host(dir.path(), "replica").await;
        Self { primary: Some(primary), replica: Some(replica), qemu, images, format, dir }
    }

    pub fn primary(&self) -> &Daemon {
        self.primary.as_ref().expect("running")
    }

    pub fn replica(&self) -> &Daemon {
        self.replica.as_ref().expect("running")
    }

    pub fn permit<R: Right>(&self) -> Permit<R> {
        Caller::local(0).permit().expect("root may")
    }

    fn qmp(&self) -> PathBuf {
        self.dir.path().join("qmp.sock")
    }

    pub async fn pair(&self) {
        let token = self.replica().operations().peer_invite(&self.permit::<Administer>()).await.expect("invited").value;
        let request = PeerJoin { token: token.to_text() };
        self.primary().operations().peer_join(&self.permit::<Administer>(), request).await.expect("joined");
    }

    pub async fn add_vm(&self) {
        let request = VmAdd { name: "vm".into(), qmp: self.qmp().display().to_string(), definition: None };
        self.primary().operations().vm_add(&self.permit::<Operate>(), request).await.expect("added");
    }

    pub async fn create_and_start(&self) {
        self.create_and_start_compressing(true).await;
    }

    pub async fn create_and_start_compressing(&self, compression: bool) {
        let request = ReplicationCreate {
            vm: "vm".into(),
            peer: "replica".into(),
            interval: Some(Millis(1000)),
            points: Some(24),
            point_every: Some(PointEvery::Cycle),
            application_consistent_every: None,
            compression: Some(compression),
            excluded_disks: vec![],
            auto_resync: None,
        };
        let done =
            self.primary().operations().replication_create(&self.permit::<Operate>(), request).await.expect("accepted");
        self.ended_well(self.primary(), done.job).await;
        let request = ReplicationStart { vm: "vm".into(), leg: 0, initial: InitialReplication::Network, at: None };
        let done =
            self.primary().operations().replication_start(&self.permit::<Operate>(), request).await.expect("accepted");
        self.ended_well(self.primary(), done.job).await;
    }

    pub async fn ended_well(&self, host: &Daemon, job: Option<JobId>) {
        let Some(id) = job else { return };
        let job = tokio::time::timeout(Duration::from_secs(20), host.base().jobs.wait(id)).await;
        let Ok(job) = job else {
            let tell =
                async |host: &Daemon| host.operations().replication_list(&self.permit::<View>()).await.expect("a list");
            panic!(
                "the job ends in time: {:?}\n{:?}\n{:?}",
                host.base().jobs.get(id),
                tell(self.primary()).await,
                tell(self.replica()).await
            );
        };
        let job = job.expect("the job is known");
        assert_eq!(job.state, JobState::Completed, "{job:?}");
    }

    /// Writes through the monitor, as a guest would through its device.
    pub fn write(&self, disk: usize, offset: u64, len: u64, pattern: u8) {
        let command =
            format!("qemu-io -d /machine/peripheral/disk{disk}/virtio-backend \"write -P {pattern} {offset} {len}\"");
        let qmp = self.qmp();
        let runtime = tokio::runtime::Handle::current();
        tokio::task::block_in_place(move || {
            runtime.block_on(async move {
                let mut monitor = Monitor::connect(&qmp, Patience::default()).await.expect("the monitor");
                let arguments = serde_json::json!({ "command-line": command });
                let said = monitor.execute(Qmp::new("human-monitor-command", arguments)).await.expect("written");
                assert!(!said.to_string().contains("rror") && !said.to_string().contains("ailed"), "{said}");
            });
        });
    }

    /// Waits until a cut that was begun after now is acknowledged.
    pub async fn until_cut_after_now(&self) {
        let wall = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970");
        let now = Timestamp(wall.as_millis() as u64);
        let since = Instant::now();
        loop {
            let views = self.primary().operations().replication_list(&self.permit::<View>()).await.expect("a list");
            let report = views[0].told.as_ref().expect("it has an owner");
            if report.newest.is_some_and(|n| n.taken_at > now) {
                return;
            }
            assert!(since.elapsed() < Duration::from_secs(60), "a cut is acknowledged: {report:?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Attempts of the primary that failed.
    pub async fn failures(&self) -> u64 {
        let views = self.primary().operations().replication_list(&self.permit::<View>()).await.expect("a list");
        views[0].told.as_ref().expect("it has an owner").stats.failures
    }

    pub async fn replica_state(&self) -> State {
        let views = self.replica().operations().replication_list(&self.permit::<View>()).await.expect("a list");
        views[0].told.as_ref().expect("it has an owner").state
    }

    /// Compares the newest runs with the live images: nobody is writing now.
    pub async fn compare_newest(&self, disks: &[usize]) {
        for n in disks {
            let place = self.dir.path().join("replica-storage").join("7f2c0b6e-0000-4000-8000-0123456789ab");
            let newest = newest_file(&place.join(format!("disk-{n}")));
            let image = self.images[*n].display().to_string();
            let format = if newest.extension().is_some_and(|e| e == "raw") { "raw" } else { "qcow2" };
            if format == "qcow2" {
                run("qemu-img", &["check", "-q", "-U", "-f", "qcow2", &newest.display().to_string()]);
            }
            run("qemu-img", &["compare", "-U", "-f", self.format, "-F", format, &image, &newest.display().to_string()]);
        }
    }

    pub async fn stop(mut self) {
        self.primary.take().expect("running").stop().await;
        self.replica.take().expect("running").stop().await;
    }
}

fn newest_file(dir: &Path) -> PathBuf {
    let mut files: Vec<_> =
        std::fs::read_dir(dir).expect("a disk's directory").map(|e| e.expect("an entry").path()).collect();
    files.retain(|p| p.extension().is_some_and(|e| e == "qcow2" || e == "raw"));
    files.sort();
    let runs: Vec<_> = files.iter().filter(|p| p.extension().is_some_and(|e| e == "qcow2")).collect();
    runs.last().map_or_else(|| dir.join("base.raw"), |p| (*p).clone())
}
