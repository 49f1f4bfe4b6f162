//! Images of VMs that are off, read through a real `qemu-storage-daemon`.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;
use understudy_hypervisor::driver::{Content, DiskReader, Error as DriverError, ImageFormat};
use understudy_hypervisor::offline::{OfflineError, StoppedDisk, StoppedDisks, inspect};
use understudy_model::{DiskId, ErrorKind, Extent};

use crate::machine_vm::Vm;
use crate::programs::{program, run};

const MIB: u64 = 1 << 20;
const SIZE: u64 = 16 * MIB;

/// A place for images, and for the daemon that reads them.
struct Host {
    directory: TempDir,
}

impl Host {
    fn new() -> Self {
        Self { directory: TempDir::new().unwrap() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }

    /// A qcow2 image of 16 MiB, over `backing` if there is one.
    fn qcow2(&self, name: &str, backing: Option<(&str, &str)>) -> StoppedDisk {
        let file = self.text(name);
        match backing {
            None => run("qemu-img", &["create", "-q", "-f", "qcow2", &file, "16M"]),
            Some((backing, format)) => {
                run("qemu-img", &["create", "-q", "-f", "qcow2", "-F", format, "-b", backing, &file])
            }
        };
        self.disk(name, ImageFormat::Qcow2)
    }

    fn raw(&self, name: &str) -> StoppedDisk {
        std::fs::File::create(self.path(name)).unwrap().set_len(SIZE).unwrap();
        self.disk(name, ImageFormat::Raw)
    }

    fn disk(&self, name: &str, format: ImageFormat) -> StoppedDisk {
        let key = name.to_owned();
        StoppedDisk { disk: DiskId(0), key, path: self.path(name), format, maps: Vec::new(), unchanged_at: None }
    }

    async fn open(&self, disks: &[StoppedDisk]) -> Result<StoppedDisks, OfflineError> {
        StoppedDisks::open(&program("qemu-storage-daemon"), &self.path("run"), disks).await
    }

    /// The process that reads here.
    fn reader_pid(&self) -> u32 {
        std::fs::read_to_string(self.path("run/pid")).unwrap().trim().parse().unwrap()
    }
}

fn write(disk: &StoppedDisk, commands: &[&str]) {
    let format = disk.format.name().unwrap();
    let commands = commands.iter().flat_map(|command| ["-c", command]);
    let arguments: Vec<&str> =
        ["-f", format].into_iter().chain(commands).chain([disk.path.to_str().unwrap()]).collect();
    run("qemu-io", &arguments);
}

fn add_map(disk: &mut StoppedDisk, name: &str) {
    run("qemu-img", &["bitmap", "--add", "-g", "4096", "-f", "qcow2", disk.path.to_str().unwrap(), name]);
    disk.maps.push(name.to_owned());
}

/// The guest's bytes, as `qemu-img` sees them.
fn bytes(disk: &StoppedDisk) -> Vec<u8> {
    let raw = disk.path.with_extension("judge");
    let format = disk.format.name().unwrap();
    let (from, to) = (disk.path.to_str().unwrap(), raw.to_str().unwrap());
    run("qemu-img", &["convert", "-f", format, "-O", "raw", from, to]);
    std::fs::read(raw).unwrap()
}

async fn read_all(reader: &impl DiskReader) -> Vec<u8> {
    let mut all = Vec::new();
    for at in (0..reader.size()).step_by(MIB as usize) {
        all.extend(reader.read(Extent::new(at, MIB)).await.unwrap());
    }
    all
}

fn extents(list: &[(u64, u64)]) -> Vec<Extent> {
    list.iter().map(|(offset, len)| Extent::new(*offset, *len)).collect()
}

fn image_error(outcome: Result<StoppedDisks, OfflineError>) -> String {
    match outcome.err().expect("the image is refused") {
        OfflineError::Image { err, .. } => err.to_string(),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn data_and_changes_of_several_disks_are_what_qemus_own_tools_say() {
    let host = Host::new();
    let mut base = host.raw("base.raw");
    write(&base, &["write -P 7 0 4M"]);
    // A name relative to the image above it, as `qemu-img` and libvirt write them.
    let middle = host.qcow2("middle.qcow2", Some(("base.raw", "raw")));
    write(&middle, &["write -P 8 1M 1M"]);
    let mut top = host.qcow2("top,1.qcow2", Some((middle.path.to_str().unwrap(), "qcow2")));
    add_map(&mut top, "understudy-old");
    write(&top, &["write -P 9 2M 64k"]);
    add_map(&mut top, "understudy-new");
    write(&top, &["write -z 3M 64k", "write -P 1 15M 512"]);
    add_map(&mut top, "other");
    write(&top, &["write -P 2 8M 4k"]);
    top.maps.pop();
    base.disk = DiskId(5);

    let open = host.open(&[top.clone(), base.clone()]).await.unwrap();
    for disk in [&top, &base] {
        assert!(read_all(open.reader(disk.disk).unwrap()).await == bytes(disk), "{} differs", disk.key);
    }
    let dirty = open.dirty(DiskId(0)).unwrap().iter().collect::<Vec<_>>();
    assert_eq!(dirty, extents(&[(2 * MIB, 65536), (3 * MIB, 65536), (8 * MIB, 4096), (15 * MIB, 4096)]));
    assert_eq!(open.dirty(DiskId(5)), None);
    assert!(open.reader(DiskId(1)).is_none());
    let status = open.reader(DiskId(0)).unwrap().status(Extent::new(4 * MIB, 8 * MIB)).await.unwrap();
    let data: Vec<_> = status.iter().filter(|(_, content)| *content == Content::Data).map(|(e, _)| *e).collect();
    assert_eq!(data, extents(&[(8 * MIB, 65536)]));
    open.ensure_unchanged().await.unwrap();
    let pid = open_pid(&host);
    open.close().await;
    assert!(!is_alive(pid));
    assert!(!host.path("run/nbd").exists() && !host.path("run/pid").exists());
}

fn open_pid(host: &Host) -> u32 {
    let pid = host.reader_pid();
    assert!(is_alive(pid));
    pid
}

fn is_alive(pid: u32) -> bool {
    std::fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| !line.is_empty())
}

#[tokio::test]
async fn a_vm_can_be_started_at_any_time_and_then_nothing_counts() {
    let host = Host::new();
    let mut disk = host.qcow2("disk.qcow2", None);
    write(&disk, &["write -P 7 0 4M"]);
    add_map(&mut disk, "understudy-1");
    let open = host.open(std::slice::from_ref(&disk)).await.unwrap();
    assert!(open.reader(DiskId(0)).unwrap().read(Extent::new(0, 512)).await.is_ok());
    open.ensure_unchanged().await.unwrap();
    // What a starting VM does: it locks the image against everybody and opens it for writing.
    let file = format!("file={},if=virtio,format=qcow2", disk.path.display());
    let vm = Vm::start(&["-machine", "q35", "-nodefaults", "-drive", &file]);
    let err = open.ensure_unchanged().await.unwrap_err();
    assert!(matches!(&err, OfflineError::Changed { path } if *path == disk.path), "{err}");
    assert_eq!(err.kind(), ErrorKind::Retry);
    assert!(matches!(DriverError::from(err), DriverError::CutEnded(_)));
    drop(open);

    // It runs and was killed: its bitmaps lack what it wrote.
    drop(vm);
    let err = host.open(&[disk]).await.err().unwrap();
    assert!(matches!(&err, OfflineError::Map { name, .. } if name == "understudy-1"), "{err}");
    assert!(err.to_string().ends_with("is inconsistent: its image was not closed in good order"), "{err}");
    assert_eq!(err.kind(), ErrorKind::Resync);
    assert_eq!(DriverError::from(err).kind(), ErrorKind::Resync);
}

#[tokio::test]
async fn a_write_below_the_topmost_image_is_noticed_too() {
    let host = Host::new();
    let base = host.raw("base.raw");
    let top = host.qcow2("top.qcow2", Some(("base.raw", "raw")));
    let open = host.open(&[top]).await.unwrap();
    open.ensure_unchanged().await.unwrap();
    // Same length, same inode: only the times tell.
    write(&base, &["write -P 1 0 512"]);
    let err = open.ensure_unchanged().await.unwrap_err();
    assert!(matches!(&err, OfflineError::Changed { path } if *path == base.path), "{err}");
}

#[tokio::test]
async fn an_image_exchanged_for_another_is_noticed() {
    let host = Host::new();
    let disk = host.raw("disk.raw");
    let other = host.raw("other.raw");
    let open = host.open(std::slice::from_ref(&disk)).await.unwrap();
    std::fs::rename(&other.path, &disk.path).unwrap();
    assert!(matches!(open.ensure_unchanged().await, Err(OfflineError::Changed { .. })));
    std::fs::remove_file(&disk.path).unwrap();
    assert!(matches!(open.ensure_unchanged().await, Err(OfflineError::Changed { .. })));
}

#[tokio::test]
async fn an_image_with_the_stamp_of_the_last_cut_has_no_changes() {
    let host = Host::new();
    let mut disk = host.raw("disk.raw");
    write(&disk, &["write -P 7 0 4M"]);
    let open = host.open(std::slice::from_ref(&disk)).await.unwrap();
    let stamp = open.stamp(DiskId(0)).unwrap();
    open.close().await;

    disk.unchanged_at = Some(stamp);
    let open = host.open(std::slice::from_ref(&disk)).await.unwrap();
    assert!(open.dirty(DiskId(0)).unwrap().is_empty());
    open.close().await;

    write(&disk, &["write -P 8 0 512"]);
    let open = host.open(std::slice::from_ref(&disk)).await.unwrap();
    assert_eq!(open.dirty(DiskId(0)), None);
    open.close().await;
}

#[tokio::test]
async fn a_change_right_after_the_look_cannot_hide_in_the_same_tick() {
    let host = Host::new();
    let disk = host.raw("disk.raw");
    for round in 0..10 {
        write(&disk, &["write -P 1 0 512"]);
        let open = host.open(std::slice::from_ref(&disk)).await.unwrap();
        std::fs::write(&disk.path, vec![round; SIZE as usize]).unwrap();
        assert!(open.ensure_unchanged().await.is_err(), "round {round}");
    }
}

#[tokio::test]
async fn a_map_that_is_not_there_is_named() {
    let host = Host::new();
    let mut disk = host.qcow2("disk.qcow2", None);
    disk.maps.push("understudy-gone".to_owned());
    let err = host.open(&[disk]).await.err().unwrap();
    assert_eq!(err.to_string(), "bitmap \"understudy-gone\" of disk disk.qcow2 is not in its image");
    assert_eq!(err.kind(), ErrorKind::Resync);
}

#[tokio::test]
async fn images_that_refer_elsewhere_are_refused_before_anything_is_opened() {
    let host = Host::new();
    let data_file = format!("data_file={}", host.text("data.raw"));
    run("qemu-img", &["create", "-q", "-f", "qcow2", "-o", &data_file, &host.text("data.qcow2"), "16M"]);
    let why = image_error(host.open(&[host.disk("data.qcow2", ImageFormat::Qcow2)]).await);
    assert!(why.ends_with("its data is in another file"), "{why}");

    let json = r#"json:{"driver":"raw","file":{"driver":"file","filename":"/etc/passwd"}}"#;
    for backing in [json, "nbd://127.0.0.1:1/disk", "nbd:unix:/run/nbd", "fat:rw:/etc"] {
        let file = host.text("odd.qcow2");
        run("qemu-img", &["create", "-q", "-u", "-f", "qcow2", "-F", "raw", "-b", backing, &file, "16M"]);
        let why = image_error(host.open(&[host.disk("odd.qcow2", ImageFormat::Qcow2)]).await);
        assert!(why.contains("its backing file is no plain file"), "{backing}: {why}");
    }
    let cases = [
        ("/dev/zero", "raw", "it is no regular file"),
        ("gone.raw", "raw", "it cannot be read"),
        ("odd.qcow2", "qcow2", "its backing files have no end"),
        ("odd.vmdk", "vmdk", "its backing file has a format that is not read"),
    ];
    for (backing, format, want) in cases {
        let file = host.text("odd.qcow2");
        run("qemu-img", &["create", "-q", "-u", "-f", "qcow2", "-F", format, "-b", backing, &file, "16M"]);
        let why = image_error(host.open(&[host.disk("odd.qcow2", ImageFormat::Qcow2)]).await);
        assert!(why.contains(want), "{backing}: {why}");
    }
    // Nothing was started for any of these.
    assert!(!host.path("run").exists());
}

#[tokio::test]
async fn a_format_is_never_guessed() {
    let host = Host::new();
    host.qcow2("inner.qcow2", None);
    let whole = host.disk("inner.qcow2", ImageFormat::Raw);
    let open = host.open(std::slice::from_ref(&whole)).await.unwrap();
    let reader = open.reader(DiskId(0)).unwrap();
    // As a guest would see it: in whole sectors.
    assert_eq!(reader.size(), std::fs::metadata(&whole.path).unwrap().len().next_multiple_of(512));
    assert_eq!(reader.read(Extent::new(0, 4)).await.unwrap(), &b"QFI\xfb"[..]);
    open.close().await;
    host.raw("plain.raw");
    let why = image_error(host.open(&[host.disk("plain.raw", ImageFormat::Qcow2)]).await);
    assert!(why.ends_with("it is no qcow2 image"), "{why}");
    let why = image_error(host.open(&[host.disk("plain.raw", ImageFormat::Other)]).await);
    assert!(why.ends_with("its format is not read"), "{why}");
}

#[tokio::test]
async fn what_a_killed_daemon_left_behind_is_ended_by_the_next() {
    let host = Host::new();
    let disk = host.raw("disk.raw");
    // Forgotten and not dropped: as if we had been killed.
    std::mem::forget(host.open(std::slice::from_ref(&disk)).await.unwrap());
    let left = open_pid(&host);
    let open = host.open(std::slice::from_ref(&disk)).await.unwrap();
    assert!(!is_alive(left));
    let pid = open_pid(&host);
    drop(open);
    let ended = async {
        while is_alive(pid) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), ended).await.expect("a dropped reader takes its daemon along");
    host.open(&[disk]).await.unwrap().close().await;
}

#[tokio::test]
async fn a_daemon_that_does_not_come_up_is_heard() {
    let host = Host::new();
    let disk = host.qcow2("disk.qcow2", None);
    // The header is sound, what it points to is not.
    let file = std::fs::File::options().write(true).open(&disk.path).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, &[0xff; 8], 40).unwrap();
    let err = host.open(std::slice::from_ref(&disk)).await.err().unwrap();
    assert!(matches!(&err, OfflineError::Server(said) if said.contains("L1 table")), "{err}");
    let disk = host.raw("disk.raw");
    let ended = StoppedDisks::open(Path::new("/bin/false"), &host.path("run"), &[disk]).await.err().unwrap();
    assert_eq!(ended.to_string(), "qemu-storage-daemon: exit status: 1");
    let err = StoppedDisks::open(Path::new("qemu-storage-daemon"), &host.path("run"), &[]).await.err().unwrap();
    assert_eq!(err.kind(), ErrorKind::Bug);
}

#[tokio::test]
async fn the_header_says_what_qemu_img_says() {
    let host = Host::new();
    let mut disk = host.qcow2("disk.qcow2", None);
    let plain = inspect(&disk.path, disk.format).unwrap();
    assert_eq!(plain.bitmaps, []);
    for name in ["understudy-1", "understudy-with-a-much-longer-name-than-the-other", "x"] {
        add_map(&mut disk, name);
    }
    run("qemu-img", &["bitmap", "--disable", "-f", "qcow2", disk.path.to_str().unwrap(), "x"]);
    run("qemu-img", &["bitmap", "--add", "-g", "1M", "-f", "qcow2", disk.path.to_str().unwrap(), "coarse"]);
    compare(&disk);
    // In use while a VM has it open, and for ever if that was killed.
    let file = format!("file={},if=virtio,format=qcow2", disk.path.display());
    drop(Vm::start(&["-machine", "q35", "-nodefaults", "-drive", &file]));
    let facts = compare(&disk);
    assert!(facts.iter().all(|bitmap| bitmap.inconsistent));
}

/// Compares the bitmaps that the header lists with those that `qemu-img` does.
fn compare(disk: &StoppedDisk) -> Vec<understudy_hypervisor::offline::StoredBitmap> {
    let info = run("qemu-img", &["info", "-U", "--output=json", "-f", "qcow2", disk.path.to_str().unwrap()]);
    let info: Value = serde_json::from_str(&info).unwrap();
    let said = info.pointer("/format-specific/data/bitmaps").unwrap().as_array().unwrap();
    let found = inspect(&disk.path, disk.format).unwrap().bitmaps;
    assert_eq!(found.len(), said.len());
    for (found, said) in found.iter().zip(said) {
        let has = |flag: &str| said["flags"].as_array().unwrap().iter().any(|f| f == flag);
        assert_eq!(Value::from(found.name.as_str()), said["name"]);
        assert_eq!(Value::from(found.granularity), said["granularity"]);
        assert_eq!((found.recording, found.inconsistent), (has("auto"), has("in-use")));
    }
    found
}

#[tokio::test]
async fn a_directory_open_to_others_is_not_used() {
    let host = Host::new();
    let disk = host.raw("disk.raw");
    std::fs::create_dir(host.path("run")).unwrap();
    Command::new("chmod").args(["755", &host.text("run")]).status().unwrap();
    let err = host.open(&[disk]).await.err().unwrap();
    assert!(matches!(&err, OfflineError::Misuse(what) if what.contains("not a directory of ours alone")), "{err}");
}
