//! Chains of runs over a raw base: QEMU, our own reader and a model in memory must see the same disk.

use std::fs;

use proptest::prelude::*;
use tempfile::TempDir;
use understudy_run::pace::unpaced;
use understudy_run::{Backing, BackingFormat, ChainReader, RawBase, Run, commit, overlay, repoint};

use crate::support::{Fill, Layer, apply, cases, file_run, layer, noise, params};
use crate::{qemu, support};

/// A base of noise and text with a hole in it.
fn base_bytes(seed: u8, len: u64) -> Vec<u8> {
    let mut base = Fill::HalfNoise(seed).bytes(len as usize);
    let third = base.len() / 3;
    base[third..2 * third].fill(0);
    base
}

fn name(number: usize) -> String {
    format!("{number:06}.qcow2")
}

/// Builds the layers into files, each on the one before, the first on `base.raw`.
fn chain(dir: &TempDir, virtual_size: u64, layers: &[Layer]) -> Vec<Run<fs::File>> {
    let build_one = |(number, layer): (usize, &Layer)| {
        let below = if number == 0 { "base.raw".to_owned() } else { name(number - 1) };
        let format = if number == 0 { BackingFormat::Raw } else { BackingFormat::Qcow2 };
        let params = params(virtual_size, layer.bits, Some((&below, format)));
        file_run(&dir.path().join(name(number)), params, &layer.clusters)
    };
    let mut runs: Vec<_> = layers.iter().enumerate().map(build_one).collect();
    runs.reverse();
    runs
}

fn three_layers() -> impl Strategy<Value = (u64, u8, Vec<Layer>)> {
    (1u64..3000, any::<u8>()).prop_flat_map(|(sectors, seed)| {
        let virtual_size = sectors * 512;
        prop::collection::vec(layer(virtual_size, 12..=18), 3).prop_map(move |layers| (virtual_size, seed, layers))
    })
}

proptest! {
    #![proptest_config(cases(24))]

    #[test]
    fn a_chain_of_three_reads_like_the_model((virtual_size, seed, layers) in three_layers()) {
        let dir = TempDir::new().unwrap();
        let mut disk = base_bytes(seed, virtual_size);
        fs::write(dir.path().join("base.raw"), &disk).unwrap();
        let runs = chain(&dir, virtual_size, &layers);
        layers.iter().for_each(|layer| apply(&mut disk, virtual_size, layer));

        (0..3).for_each(|number| qemu::assert_clean(&dir.path().join(name(number))));
        let top = dir.path().join(name(2));
        prop_assert!(qemu::read_all(&top) == disk, "QEMU and the model differ");

        let base = RawBase::new(fs::File::open(dir.path().join("base.raw")).unwrap()).unwrap();
        let mut reader = ChainReader::new(&runs, base).unwrap();
        let mut read = vec![1; disk.len()];
        reader.read_at(0, &mut read).unwrap();
        prop_assert!(read == disk, "our reader and the model differ");
    }

    #[test]
    fn committing_the_oldest_runs_changes_no_newer_point((virtual_size, seed, layers) in three_layers()) {
        let dir = TempDir::new().unwrap();
        let mut disk = base_bytes(seed, virtual_size);
        let base = dir.path().join("base.raw");
        fs::write(&base, &disk).unwrap();
        let runs = chain(&dir, virtual_size, &layers);
        let top = dir.path().join(name(2));
        layers.iter().for_each(|layer| apply(&mut disk, virtual_size, layer));
        for (number, run) in runs.iter().rev().enumerate() {
            let mut file = fs::File::options().read(true).write(true).open(&base).unwrap();
            commit(run, &mut file, &mut unpaced).unwrap();
            // Before the next one is told who lies below it, and after.
            prop_assert!(qemu::read_all(&top) == disk, "committed, still on top");
            if number < 2 {
                let above = dir.path().join(name(number + 1));
                let mut file = fs::File::options().read(true).write(true).open(&above).unwrap();
                repoint(&mut file, Some(&Backing::new("base.raw", BackingFormat::Raw).unwrap())).unwrap();
                fs::remove_file(dir.path().join(name(number))).unwrap();
                qemu::assert_clean(&above);
            }
        }
        prop_assert!(fs::read(&base).unwrap() == disk, "the base has become the newest point");
    }
}

#[test]
fn random_reads_agree_with_the_model_at_any_offset() {
    let virtual_size = 700 * 512;
    let layers = [(12, 0, 5), (16, 1, 2), (13, 2, 3)].map(|(bits, first, step)| Layer {
        bits,
        clusters: (first..virtual_size >> bits).step_by(step).map(|n| (n, Fill::Text(n as u8))).collect(),
    });
    let mut disk = base_bytes(3, virtual_size);
    let base = disk.clone();
    let build = |layer: &Layer| support::memory_run(params(virtual_size, layer.bits, None), &layer.clusters);
    let mut runs: Vec<_> = layers.iter().map(build).collect();
    runs.reverse();
    layers.iter().for_each(|layer| apply(&mut disk, virtual_size, layer));
    let mut reader = ChainReader::new(&runs, RawBase::new(base).unwrap()).unwrap();
    let picks = noise(9, 4 * 300);
    for pick in picks.chunks(4) {
        let offset = usize::from(u16::from_le_bytes([pick[0], pick[1]])) * 5 % disk.len();
        let len = (usize::from(u16::from_le_bytes([pick[2], pick[3]])) * 2).min(disk.len() - offset);
        let mut read = vec![1; len];
        reader.read_at(offset as u64, &mut read).unwrap();
        assert!(read == disk[offset..offset + len], "{offset}+{len}");
    }
}

#[test]
fn a_grown_disk_reads_as_zeros_where_the_older_run_ends() {
    let dir = TempDir::new().unwrap();
    let (old_size, new_size) = (10 * 4096 + 512, 40 * 4096);
    let mut disk = base_bytes(1, old_size);
    fs::write(dir.path().join("base.raw"), &disk).unwrap();
    let old = Layer { bits: 14, clusters: [(0, Fill::Text(1)), (2, Fill::Noise(2))].into() };
    let new = Layer { bits: 12, clusters: [(1, Fill::Zeros), (11, Fill::Text(4)), (39, Fill::Noise(3))].into() };
    let below = params(old_size, old.bits, Some(("base.raw", BackingFormat::Raw)));
    let above = params(new_size, new.bits, Some(("000000.qcow2", BackingFormat::Qcow2)));
    let old_run = file_run(&dir.path().join(name(0)), below, &old.clusters);
    let new_run = file_run(&dir.path().join(name(1)), above, &new.clusters);
    apply(&mut disk, old_size, &old);
    apply(&mut disk, new_size, &new);
    assert!(qemu::read_all(&dir.path().join(name(1))) == disk, "QEMU and the model differ");

    let base = fs::File::options().read(true).write(true).open(dir.path().join("base.raw")).unwrap();
    let mut read = vec![1; disk.len()];
    let runs = [new_run, old_run];
    ChainReader::new(&runs, RawBase::new(&base).unwrap()).unwrap().read_at(0, &mut read).unwrap();
    assert!(read == disk, "our reader and the model differ");

    let mut base = base;
    runs.iter().rev().for_each(|run| commit(run, &mut base, &mut unpaced).unwrap());
    assert!(fs::read(dir.path().join("base.raw")).unwrap() == disk, "the base has grown with the disk");
}

#[test]
fn a_run_can_be_pointed_elsewhere_also_after_its_header_was_torn() {
    let dir = TempDir::new().unwrap();
    let virtual_size = 8 * 4096;
    for base in ["base.raw", "other.raw"] {
        fs::write(dir.path().join(base), noise(base.len() as u8, virtual_size as usize)).unwrap();
    }
    let path = dir.path().join("000001.qcow2");
    let before = params(virtual_size, 12, Some(("base.raw", BackingFormat::Raw)));
    let run = file_run(&path, before, &[(1, Fill::Text(1))].into());
    let digest = run.summary().digest;

    let mut bytes = fs::read(&path).unwrap();
    bytes[..256].fill(0xff);
    fs::write(&path, &bytes).unwrap();
    assert!(Run::open(fs::File::open(&path).unwrap()).is_err());
    let mut file = fs::File::options().read(true).write(true).open(&path).unwrap();
    repoint(&mut file, Some(&Backing::new("other.raw", BackingFormat::Raw).unwrap())).unwrap();

    let run = Run::open(file).unwrap();
    assert_eq!(run.backing().map(Backing::name), Some("other.raw"));
    assert_eq!(run.verify(&mut unpaced).unwrap().digest, digest);
    qemu::assert_clean(&path);
    let mut disk = noise(9, virtual_size as usize);
    apply(&mut disk, virtual_size, &Layer { bits: 12, clusters: [(1, Fill::Text(1))].into() });
    assert!(qemu::read_all(&path) == disk);
}

#[test]
fn an_overlay_takes_writes_and_leaves_the_run_alone() {
    let dir = TempDir::new().unwrap();
    fs::create_dir_all(dir.path().join("failover/1")).unwrap();
    fs::create_dir_all(dir.path().join("disk-0")).unwrap();
    let virtual_size = 5 * 65536 + 512;
    let run = dir.path().join("disk-0/000001.qcow2");
    let written = Layer { bits: 12, clusters: [(0, Fill::Text(1)), (70, Fill::Noise(1))].into() };
    file_run(&run, params(virtual_size, 12, None), &written.clusters);
    let before = fs::read(&run).unwrap();

    let path = dir.path().join("failover/1/disk-0.qcow2");
    let backing = Backing::new("../../disk-0/000001.qcow2", BackingFormat::Qcow2).unwrap();
    let file = fs::File::create_new(&path).unwrap();
    overlay::write_empty(file, virtual_size, overlay::OVERLAY_CLUSTER_BITS, Some(&backing)).unwrap();
    qemu::assert_clean(&path);
    let mut disk = Vec::new();
    apply(&mut disk, virtual_size, &written);
    assert!(qemu::read_all(&path) == disk, "an empty overlay shows what lies below");

    qemu::qemu_io(&path, "write -P 0x5a 4096 70000");
    disk[4096..74096].fill(0x5a);
    qemu::assert_clean(&path);
    assert!(qemu::read_all(&path) == disk);
    assert!(fs::read(&run).unwrap() == before, "the run is what it was");
}

#[test]
fn overlays_of_all_sizes_are_clean() {
    let dir = TempDir::new().unwrap();
    let sizes = [(12, 512u64), (12, 8 << 40), (14, 64 << 40), (16, 64 << 40), (18, 1 << 50)];
    for (bits, size) in sizes {
        let path = dir.path().join(format!("{bits}-{size}.qcow2"));
        overlay::write_empty(fs::File::create_new(&path).unwrap(), size, bits, None).unwrap();
        qemu::assert_clean(&path);
        qemu::qemu_io(&path, &format!("write -P 1 {} 512", size - 512));
        qemu::assert_clean(&path);
    }
}
