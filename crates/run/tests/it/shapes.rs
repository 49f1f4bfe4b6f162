//! Runs of unusual shapes, each before `qemu-img check` and `qemu-img compare`.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};

use proptest::prelude::*;
use tempfile::TempDir;
use understudy_run::pace::unpaced;
use understudy_run::{BuildError, Encoder, Run, RunBuilder, RunSink, RunSource, cluster_hash};

use crate::qemu;
use crate::support::{
    Clusters, Fill, Layer, apply, build, cases, cluster_bytes, file_run, layer, memory_run, noise, params, push_raw,
};

/// Builds the run alone, and has QEMU compare it with the model.
fn judge(virtual_size: u64, layer: &Layer) {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("run.qcow2");
    let raw = dir.path().join("model.raw");
    file_run(&path, params(virtual_size, layer.bits, None), &layer.clusters);
    let mut disk = Vec::new();
    apply(&mut disk, virtual_size, layer);
    fs::write(&raw, &disk).unwrap();
    qemu::assert_clean(&path);
    qemu::assert_same(&path, &raw);
    disk[virtual_size as usize / 2] ^= 1;
    fs::write(&raw, &disk).unwrap();
    qemu::assert_differs(&path, &raw);
}

#[test]
fn an_empty_run_is_a_disk_of_zeros() {
    (12..=18).for_each(|bits| judge(1 << 20, &Layer { bits, clusters: Clusters::new() }));
}

#[test]
fn a_run_of_zeros_holds_no_data() {
    for bits in 12..=18 {
        let clusters: Clusters = (0..(4u64 << 20) >> bits).map(|n| (n, Fill::Zeros)).collect();
        let run = memory_run(params(4 << 20, bits, None), &clusters);
        assert_eq!((run.summary().data_clusters, run.summary().stored_bytes), (0, 0));
        assert_eq!(run.summary().zero_clusters, clusters.len() as u64);
        judge(4 << 20, &Layer { bits, clusters });
    }
}

#[test]
fn data_that_does_not_shrink_is_stored_plain() {
    for bits in 12..=18 {
        let clusters: Clusters = (0..8).map(|n| (n, Fill::Noise(n as u8))).collect();
        let run = memory_run(params(1 << 22, bits, None), &clusters);
        assert_eq!(run.summary().stored_bytes, 8 << bits);
        judge(1 << 22, &Layer { bits, clusters });
    }
}

#[test]
fn the_last_cluster_may_be_one_sector_long() {
    for bits in 12..=18 {
        for fill in [Fill::Text(1), Fill::Noise(1), Fill::Zeros] {
            judge((3 << bits) + 512, &Layer { bits, clusters: [(1, fill), (3, fill)].into() });
        }
    }
}

#[test]
fn plain_and_compressed_clusters_may_alternate() {
    for bits in [12, 16] {
        let fill = |n: u64| if n.is_multiple_of(2) { Fill::Noise(n as u8) } else { Fill::Text(n as u8) };
        judge(64 << bits, &Layer { bits, clusters: (0..64).map(|n| (n, fill(n))).collect() });
    }
}

proptest! {
    #![proptest_config(cases(24))]

    #[test]
    fn any_run_is_clean_and_reads_like_the_model(
        (virtual_size, layer) in (1u64..4000).prop_flat_map(|n| (Just(n * 512), layer(n * 512, 12..=18)))
    ) {
        judge(virtual_size, &layer);
    }
}

#[test]
fn a_disk_of_a_tebibyte_with_few_clusters_makes_a_small_file() {
    let dir = TempDir::new().unwrap();
    let virtual_size = (1u64 << 40) + 512;
    for bits in [12, 16] {
        let path = dir.path().join(format!("{bits}.qcow2"));
        let last = (virtual_size - 1) >> bits;
        let clusters = [(0, Fill::Text(1)), (12345, Fill::Noise(2)), (last - 1, Fill::Zeros), (last, Fill::Text(3))];
        file_run(&path, params(virtual_size, bits, None), &clusters.into());
        qemu::assert_clean(&path);
        let used = fs::metadata(&path).unwrap().blocks() * 512;
        assert!(used < 512 << 10, "{used} bytes of storage at 2^{bits}");
        // Comparing the whole tebibyte would take long: QEMU reads the places that matter.
        let model = File::create_new(dir.path().join(format!("{bits}.raw"))).unwrap();
        model.set_len(virtual_size).unwrap();
        for (number, fill) in clusters {
            let address = number << bits;
            let len = (virtual_size - address).min(1 << bits) as usize;
            let bytes = fill.bytes(len);
            let first = bytes[0];
            model.write_all_at(&bytes, address).unwrap();
            let read = qemu::qemu_io(&path, &format!("read -P {first} {address} 1"));
            assert!(!read.contains("verification failed"), "{read}");
        }
        qemu::assert_same(&path, &dir.path().join(format!("{bits}.raw")));
    }
}

#[test]
fn the_largest_disks_of_each_cluster_size_are_clean() {
    let dir = TempDir::new().unwrap();
    for bits in 12..=18 {
        // The level 1 table is as long as QEMU takes it.
        let virtual_size = (4u64 << 20) << (2 * bits - 3);
        let path = dir.path().join(format!("{bits}.qcow2"));
        let last = (virtual_size >> bits) - 1;
        file_run(&path, params(virtual_size, bits, None), &[(0, Fill::Text(0)), (last, Fill::Noise(1))].into());
        qemu::assert_clean(&path);
        assert!(fs::metadata(&path).unwrap().blocks() * 512 < 2 << 20);
    }
}

#[test]
fn many_tiny_frames_share_a_cluster_of_the_file() {
    // A cluster of one byte's value compresses to about twenty bytes, so thousands of them share 256 KiB.
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("run.qcow2");
    let mut encoder = Encoder::new(1).unwrap();
    let mut builder = RunBuilder::new(File::create_new(&path).unwrap(), params(1 << 40, 18, None)).unwrap();
    let raw = vec![0x77; 1 << 18];
    (0..3000).for_each(|n| push_raw(&mut builder, &mut encoder, n << 18, &raw));
    let (summary, _) = builder.finish().unwrap();
    assert!(summary.stored_bytes < 3000 * 64, "{} stored bytes", summary.stored_bytes);
    Run::open(File::open(&path).unwrap()).unwrap().verify(&mut unpaced).unwrap();
    qemu::assert_clean(&path);
}

#[test]
fn no_more_frames_share_a_cluster_than_can_be_counted() {
    // No frame is this short, but the builder counts on its own: it moves on before 65535 is passed.
    let virtual_size = 1 << 40;
    let frame = [0x28, 0xb5];
    let mut builder = RunBuilder::new(Vec::new(), params(virtual_size, 18, None)).unwrap();
    for n in 0..140_000u64 {
        let hash = cluster_hash(n << 18, b"");
        builder.push(n << 18, understudy_run::Stored::Compressed, &frame, &hash).unwrap();
    }
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("run.qcow2");
    let (_, bytes) = builder.finish().unwrap();
    fs::write(&path, bytes).unwrap();
    qemu::assert_clean(&path);
}

#[test]
fn the_digest_does_not_depend_on_the_compression() {
    let clusters: Clusters = (0..20).map(|n| (n, Fill::HalfNoise(n as u8))).collect();
    let digest = |level| build(Vec::new(), params(1 << 21, 14, None), &clusters, level).0.digest;
    let digests = [-50, -1, 1, 3, 9, 19].map(digest);
    assert!(digests.iter().all(|other| *other == digests[0]));
    let other: Clusters = (0..20).map(|n| (n, Fill::HalfNoise(n as u8 + 1))).collect();
    assert_ne!(build(Vec::new(), params(1 << 21, 14, None), &other, 1).0.digest, digests[0]);
    assert_ne!(build(Vec::new(), params((1 << 21) + 512, 14, None), &clusters, 1).0.digest, digests[0]);
}

#[test]
fn the_bytes_of_a_run_are_what_they_were() {
    // Plain clusters only, because frames may differ from one release of zstd to the next.
    let mut builder = RunBuilder::new(Vec::new(), params(3 * 4096 + 512, 12, None)).unwrap();
    let raw = noise(1, 4096);
    builder.push(4096, understudy_run::Stored::Plain, &raw, &cluster_hash(4096, &raw)).unwrap();
    builder.push_zeros(8192, 2).unwrap();
    let (summary, bytes) = builder.finish().unwrap();
    assert_eq!(summary.digest.to_string(), "1827e5407956395f12288a086f1804d3b002cdd7f17cc5d546eb13ec5e84ea3d");
    assert_eq!(
        blake3::hash(&bytes).to_hex().as_str(),
        "454f7134f7c4731f2137cc7b034af66dba9fb645a626ba46322d4058f8c80bc5"
    );
}

/// Scratch space that gives back what it was given, but for one bit.
struct LyingSpool(Vec<u8>);

impl RunSource for LyingSpool {
    fn size(&self) -> io::Result<u64> {
        self.0.size()
    }

    fn read_at(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        RunSource::read_at(&self.0, offset, out)?;
        out[100] ^= 1;
        Ok(())
    }
}

impl RunSink for LyingSpool {
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        RunSink::write_at(&mut self.0, offset, bytes)
    }
}

#[test]
fn a_spool_changes_nothing_but_the_memory_it_takes() {
    let clusters: Clusters = (0..1000).map(|n| (n * 2, Fill::Text(n as u8))).collect();
    for count in [0, 1, 255, 256, 257, 512, 1000] {
        let clusters: Clusters = clusters.iter().take(count).map(|(n, fill)| (*n, *fill)).collect();
        let (summary, plain) = build(Vec::new(), params(8 << 20, 12, None), &clusters, 1);
        let spool = Box::new(tempfile::tempfile().unwrap());
        let mut builder = RunBuilder::with_spool(Vec::new(), params(8 << 20, 12, None), spool).unwrap();
        fill_builder(&mut builder, &clusters);
        assert_eq!(builder.projected_len(), summary.file_len);
        let (spooled_summary, spooled) = builder.finish().unwrap();
        assert!(spooled_summary == summary && spooled == plain, "{count} clusters");
    }
    let spool = Box::new(LyingSpool(Vec::new()));
    let mut builder = RunBuilder::with_spool(Vec::new(), params(8 << 20, 12, None), spool).unwrap();
    fill_builder(&mut builder, &clusters);
    assert!(matches!(builder.finish(), Err(BuildError::Spool(_))));
}

fn fill_builder(builder: &mut RunBuilder<Vec<u8>>, clusters: &Clusters) {
    let mut encoder = Encoder::new(1).unwrap();
    let geometry = *builder.geometry();
    for (number, fill) in clusters {
        let address = number << geometry.cluster_bits();
        push_raw(builder, &mut encoder, address, &cluster_bytes(&geometry, address, *fill));
    }
}

#[test]
fn runs_and_builders_may_move_between_threads() {
    fn moves<T: Send>() {}
    fn shared<T: Send + Sync>() {}
    moves::<RunBuilder<File>>();
    moves::<understudy_run::RunReader<File>>();
    moves::<Encoder>();
    moves::<understudy_run::Decoder>();
    shared::<Run<File>>();
}
