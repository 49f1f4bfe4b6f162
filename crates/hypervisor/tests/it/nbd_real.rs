//! The NBD client against `qemu-nbd` and `qemu-storage-daemon`, on images with persistent bitmaps.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures::stream::{self, StreamExt, TryStreamExt};
use tempfile::TempDir;
use understudy_hypervisor::driver::Content;
use understudy_hypervisor::nbd::{ALLOCATION_CONTEXT, Client, DirtyBounds, NbdError, Options, errno, list_exports};
use understudy_model::Extent;

use crate::programs::{Server, run};

const MIB: u64 = 1 << 20;
const BOUNDS: DirtyBounds = DirtyBounds { extents_max: 100_000, granule_max: 65536 };

/// A qcow2 image of 64 MiB, with two persistent bitmaps of 4 KiB granules: `old` has seen all the writes, `new` the
/// last ones.
struct Image {
    directory: TempDir,
}

impl Image {
    fn new() -> Self {
        let image = Self { directory: TempDir::new().unwrap() };
        run("qemu-img", &["create", "-q", "-f", "qcow2", image.name(), "64M"]);
        image.write(&["write -P 7 0 8M"]);
        image.bitmap("old");
        image.write(&["write -P 1 10M 300k", "write -P 2 40M 4k"]);
        image.bitmap("new");
        image.write(&["write -P 3 41M 1000", "write -z 20M 64k", "discard 2M 1M"]);
        image
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("disk.qcow2")
    }

    fn name(&self) -> &'static str {
        Box::leak(self.path().into_os_string().into_string().unwrap().into_boxed_str())
    }

    fn write(&self, commands: &[&str]) {
        let commands = commands.iter().flat_map(|c| ["-c", c]);
        let arguments: Vec<&str> = ["-f", "qcow2"].into_iter().chain(commands).chain([self.name()]).collect();
        run("qemu-io", &arguments);
    }

    fn bitmap(&self, name: &str) {
        run("qemu-img", &["bitmap", "--add", "-g", "4096", "-f", "qcow2", self.name(), name]);
    }

    /// The guest's bytes, as `qemu-img` sees them.
    fn bytes(&self) -> Vec<u8> {
        let raw = self.directory.path().join("raw");
        run("qemu-img", &["convert", "-f", "qcow2", "-O", "raw", self.name(), raw.to_str().unwrap()]);
        std::fs::read(raw).unwrap()
    }

    /// Serves it as the export `disk`, with its bitmaps.
    fn serve(&self) -> Server {
        Server::storage_daemon(&[
            "--blockdev".to_owned(),
            format!(
                "qcow2,node-name=d,read-only=on,force-share=on,file.driver=file,file.filename={},file.read-only=on,file.force-share=on",
                self.name()
            ),
            "--export".to_owned(),
            "nbd,id=e,node-name=d,name=disk,bitmaps.0=old,bitmaps.1=new".to_owned(),
        ])
    }
}

fn both_headers(options: Options) -> [Options; 2] {
    [options.clone(), Options { extended_headers: false, ..options }]
}

async fn read_all(client: &Client, step: u64) -> Result<Vec<u8>, NbdError> {
    let size = client.export().size;
    let extents = (0..size.div_ceil(step)).map(|n| Extent::new(n * step, step.min(size - n * step)));
    let parts: Vec<_> = stream::iter(extents.map(|extent| client.read(extent))).buffered(32).try_collect().await?;
    Ok(parts.concat())
}

fn extents(list: &[(u64, u64)]) -> Vec<Extent> {
    list.iter().map(|(offset, len)| Extent::new(*offset, *len)).collect()
}

#[tokio::test]
async fn data_and_dirty_maps_are_what_qemus_own_tools_say() {
    let image = Image::new();
    let server = image.serve();
    let new = [(2 * MIB, MIB), (20 * MIB, 65536), (41 * MIB, 4096)];
    let old = [(2 * MIB, MIB), (10 * MIB, 300 << 10), (20 * MIB, 65536), (40 * MIB, 4096), (41 * MIB, 4096)];
    for options in both_headers(Options::new("disk").context(ALLOCATION_CONTEXT)) {
        let extended = options.extended_headers;
        for (names, want) in [(vec!["new"], &new[..]), (vec!["old"], &old), (vec!["new", "old"], &old)] {
            let options = names.iter().fold(options.clone(), |options, name| options.bitmap(name));
            let client = Client::connect(&server.socket(), &options).await.unwrap();
            assert_eq!(client.has_extended_headers(), extended);
            assert_eq!(client.export().size, 64 * MIB);
            assert!(client.export().read_only);
            let dirty = client.dirty(BOUNDS).await.unwrap();
            assert_eq!(dirty.iter().collect::<Vec<_>>(), extents(want), "{names:?}");
            assert!(read_all(&client, 100_000).await.unwrap() == image.bytes(), "the data differs");
            client.disconnect().await;
        }
    }
}

#[tokio::test]
async fn what_is_called_zero_is_zero_and_holes_are_not_read() {
    let image = Image::new();
    let server = image.serve();
    let bytes = image.bytes();
    for options in both_headers(Options::new("disk").context(ALLOCATION_CONTEXT)) {
        let client = Client::connect(&server.socket(), &options).await.unwrap();
        let pieces = client.allocation(Extent::new(0, 64 * MIB)).await.unwrap();
        let mut at = 0;
        for (extent, content) in &pieces {
            assert_eq!(extent.offset, at);
            at = extent.end();
            let part = &bytes[extent.offset as usize..extent.end() as usize];
            assert!(*content == Content::Data || part.iter().all(|byte| *byte == 0), "{extent:?}");
        }
        assert_eq!(at, 64 * MIB);
        let data: u64 = pieces.iter().filter(|(_, c)| *c == Content::Data).map(|(e, _)| e.len).sum();
        // 7 MiB, 300 KiB rounded to clusters of 64 KiB, two clusters.
        assert_eq!(data, 7 * MIB + (320 << 10) + (2 << 16));
    }
}

#[tokio::test]
async fn exports_are_listed_and_missing_ones_are_named() {
    let image = Image::new();
    let server = image.serve();
    let socket = server.socket();
    assert_eq!(list_exports(&socket, Duration::from_secs(10)).await.unwrap(), ["disk"]);
    let err = Client::connect(&socket, &Options::new("dusk")).await.unwrap_err();
    assert!(err.to_string().contains("\"dusk\"") && err.to_string().ends_with("no such export"), "{err}");
    let err = Client::connect(&socket, &Options::new("disk").bitmap("newer")).await.unwrap_err();
    assert!(matches!(&err, NbdError::MissingContext { context, .. } if context == "qemu:dirty-bitmap:newer"), "{err}");
    let err = Client::connect(Path::new("/nonexistent/socket"), &Options::new("disk")).await.unwrap_err();
    assert!(matches!(err, NbdError::Connect { .. }));
}

#[tokio::test]
async fn qemu_nbd_serves_its_one_bitmap_as_well() {
    let image = Image::new();
    let server = Server::qemu_nbd(&image.path(), &["-r", "-f", "qcow2", "-B", "new"]);
    let options = Options::new("disk").bitmap("new");
    let client = Client::connect(&server.socket(), &options).await.unwrap();
    let dirty = client.dirty(BOUNDS).await.unwrap();
    assert_eq!(dirty.bytes(), MIB + 65536 + 4096);
    assert!(read_all(&client, MIB).await.unwrap() == image.bytes(), "the data differs");
}

#[tokio::test]
async fn block_status_reaches_the_end_of_a_disk_of_many_tebibytes() {
    let directory = TempDir::new().unwrap();
    let file = directory.path().join("disk.raw");
    let size: u64 = 10 << 40;
    std::fs::File::create(&file).unwrap().set_len(size).unwrap();
    run("qemu-io", &["-f", "raw", "-c", "write -P 9 5T 64k", "-c", "write -P 9 9T 64k", file.to_str().unwrap()]);
    let server = Server::qemu_nbd(&file, &["-r", "-f", "raw"]);
    for options in both_headers(Options::new("disk").context(ALLOCATION_CONTEXT)) {
        let client = Client::connect(&server.socket(), &options).await.unwrap();
        let pieces = client.allocation(Extent::new(0, size)).await.unwrap();
        let data: Vec<_> = pieces.iter().filter(|(_, c)| *c == Content::Data).map(|(e, _)| *e).collect();
        assert_eq!(data, extents(&[(5 << 40, 65536), (9 << 40, 65536)]));
        let read = client.read(Extent::new((9 << 40) - 512, 1024)).await.unwrap();
        assert!(read[..512].iter().all(|b| *b == 0) && read[512..].iter().all(|b| *b == 9));
    }
}

#[tokio::test]
async fn a_trim_gives_the_space_back() {
    let directory = TempDir::new().unwrap();
    let file = directory.path().join("scratch.raw");
    run("qemu-img", &["create", "-q", "-f", "raw", file.to_str().unwrap(), "64M"]);
    run("qemu-io", &["-f", "raw", "-c", "write -P 9 0 32M", file.to_str().unwrap()]);
    let server = Server::qemu_nbd(&file, &["-f", "raw", "--discard=unmap"]);
    let client = Client::connect(&server.socket(), &Options::new("disk")).await.unwrap();
    let before = std::fs::metadata(&file).unwrap().blocks() * 512;
    client.trim(Extent::new(0, 16 * MIB)).await.unwrap();
    let after = std::fs::metadata(&file).unwrap().blocks() * 512;
    assert!(before >= 32 * MIB && after <= 17 * MIB, "{before} then {after}");

    let read_only = Server::qemu_nbd(&file, &["-r", "-f", "raw"]);
    let client = Client::connect(&read_only.socket(), &Options::new("disk")).await.unwrap();
    assert!(matches!(client.trim(Extent::new(0, MIB)).await, Err(NbdError::Unsupported(_))));
}

#[tokio::test]
async fn a_sector_that_cannot_be_read_fails_one_read_and_no_other() {
    let image = Image::new();
    let node = format!(
        r#"{{"driver": "raw", "node-name": "d", "read-only": true, "file": {{"driver": "blkdebug",
            "inject-error": [{{"event": "none", "iotype": "read", "errno": 5, "sector": 8, "once": false}}],
            "image": {{"driver": "qcow2", "file": {{"driver": "file", "filename": "{}"}}}}}}}}"#,
        image.name()
    );
    let export = "nbd,id=e,node-name=d,name=disk".to_owned();
    let server = Server::storage_daemon(&["--blockdev".to_owned(), node, "--export".to_owned(), export]);
    let client = Client::connect(&server.socket(), &Options::new("disk")).await.unwrap();
    let (bad, good) = (Extent::new(0, 65536), Extent::new(65536, 65536));
    let (bad, good) = futures::future::join(client.read(bad), client.read(good)).await;
    let err = bad.unwrap_err();
    assert!(matches!(&err, NbdError::Request { error, .. } if error.errno == errno::EIO), "{err:?}");
    assert_eq!(good.unwrap(), vec![7; 65536]);
    assert_eq!(client.read(Extent::new(8192, 512)).await.unwrap(), vec![7; 512]);
}

#[tokio::test]
async fn a_server_that_is_killed_fails_every_read_in_flight() {
    let image = Image::new();
    let server = image.serve();
    let client = Client::connect(&server.socket(), &Options::new("disk")).await.unwrap();
    assert!(client.read(Extent::new(0, 512)).await.is_ok());
    server.kill();
    let outcome = read_all(&client, 4096).await;
    assert!(matches!(outcome, Err(NbdError::Closed)), "{:?}", outcome.map(|bytes| bytes.len()));
    assert!(client.failure().is_some());
}

#[tokio::test]
async fn reads_in_flight_are_dropped_by_the_dozen_and_the_rest_is_right() {
    let image = Image::new();
    let server = image.serve();
    let client = Client::connect(&server.socket(), &Options::new("disk")).await.unwrap();
    let bytes = image.bytes();
    for round in 0..50u64 {
        let dropped = (0..20).map(|n| client.read(Extent::new(n * 4096, 65536)));
        let mut dropped = Box::pin(futures::future::join_all(dropped));
        // One look sends them all; then they are forgotten.
        assert!(futures::poll!(&mut dropped).is_pending());
        drop(dropped);
        let extent = Extent::new(round * MIB, 70_000);
        let read = client.read(extent).await.unwrap();
        assert!(read == bytes[extent.offset as usize..extent.end() as usize], "round {round}");
    }
}
