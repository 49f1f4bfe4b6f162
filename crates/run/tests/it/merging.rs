//! Merged runs against the model: newest wins, and nothing but the number of files changes.

use std::ops::ControlFlow;

use proptest::prelude::*;
use tempfile::TempDir;
use understudy_run::pace::unpaced;
use understudy_run::{
    BackingFormat, ChainReader, Encoder, EntryContent, MergeError, RawBase, Run, RunBuilder, merge, merge::cluster_bits,
};

use crate::qemu;
use crate::support::{Fill, Layer, apply, cases, layer, memory_run, params};

fn run_of(virtual_size: u64, layer: &Layer) -> Run<Vec<u8>> {
    memory_run(params(virtual_size, layer.bits, None), &layer.clusters)
}

/// Merges runs, newest first, over `base`.
fn merged(runs: &[Run<Vec<u8>>], base: &[u8], bits: u32) -> Run<Vec<u8>> {
    let virtual_size = runs[0].geometry().virtual_size();
    let params = params(virtual_size, bits, Some(("base.raw", BackingFormat::Raw)));
    let mut builder = RunBuilder::new(Vec::new(), params).unwrap();
    let mut encoder = Encoder::new(1).unwrap();
    let mut below = RawBase::new(base).unwrap();
    merge(runs, &mut below, &mut builder, &mut encoder, &mut unpaced).unwrap();
    let run = Run::open(builder.finish().unwrap().1).unwrap();
    run.verify(&mut unpaced).unwrap();
    run
}

fn read(runs: &[Run<Vec<u8>>], base: &[u8], len: usize) -> Vec<u8> {
    let mut disk = vec![1; len];
    ChainReader::new(runs, RawBase::new(base).unwrap()).unwrap().read_at(0, &mut disk).unwrap();
    disk
}

/// Layers of a disk that grows by as much as each of them says.
fn growing_layers() -> impl Strategy<Value = (u64, Vec<(u64, Layer)>, u32)> {
    let sizes = (1u64..1500, prop::collection::vec(prop_oneof![3 => Just(0u64), 1 => 1u64..500], 1..5), 12u32..=16);
    sizes.prop_flat_map(|(sectors, growth, out_bits)| {
        let mut size = sectors * 512;
        let layers: Vec<_> = growth
            .into_iter()
            .map(|more| {
                size += more * 512;
                (Just(size), layer(size, 12..=16))
            })
            .collect();
        (Just(sectors * 512), layers, Just(out_bits))
    })
}

proptest! {
    #![proptest_config(cases(64))]

    #[test]
    fn a_merge_agrees_with_the_model((base_size, layers, out_bits) in growing_layers()) {
        let base = Fill::HalfNoise(5).bytes(base_size as usize);
        let mut disk = base.clone();
        layers.iter().for_each(|(size, layer)| apply(&mut disk, *size, layer));
        let runs: Vec<_> = layers.iter().rev().map(|(size, layer)| run_of(*size, layer)).collect();
        prop_assert!(read(&runs, &base, disk.len()) == disk, "the chain");
        let run = merged(&runs, &base, out_bits);
        prop_assert!(read(&[run], &base, disk.len()) == disk, "the merged run");
    }

    #[test]
    fn runs_of_one_cluster_size_merge_to_the_union_of_their_clusters(
        (virtual_size, layers) in (1u64..2000).prop_flat_map(|n| {
            (Just(n * 512), prop::collection::vec(layer(n * 512, 13..=13), 1..5))
        })
    ) {
        let runs: Vec<_> = layers.iter().rev().map(|layer| run_of(virtual_size, layer)).collect();
        let union = layers.iter().fold(Default::default(), |mut all: crate::support::Clusters, layer| {
            all.extend(layer.clusters.clone());
            all
        });
        prop_assert_eq!(cluster_bits(&runs).unwrap(), 13);
        // What lies below is not asked: clusters are copied as they are, to the byte.
        let run = merged(&runs, &[], 13);
        let built = memory_run(params(virtual_size, 13, Some(("base.raw", BackingFormat::Raw))), &union);
        prop_assert!(run.source() == built.source());
    }
}

#[test]
fn qemu_reads_the_merged_run_like_the_chain() {
    let dir = TempDir::new().unwrap();
    let virtual_size = 60 * 4096 + 1024;
    let layers = [
        Layer { bits: 16, clusters: [(0, Fill::Text(1)), (2, Fill::Noise(1)), (3, Fill::Text(9))].into() },
        Layer { bits: 12, clusters: [(1, Fill::Zeros), (40, Fill::Text(2)), (60, Fill::Noise(3))].into() },
        Layer { bits: 13, clusters: [(0, Fill::Zeros), (9, Fill::Text(2))].into() },
    ];
    let base = Fill::HalfNoise(5).bytes(virtual_size as usize);
    let mut disk = base.clone();
    layers.iter().for_each(|layer| apply(&mut disk, virtual_size, layer));
    let runs: Vec<_> = layers.iter().rev().map(|layer| run_of(virtual_size, layer)).collect();
    std::fs::write(dir.path().join("base.raw"), &base).unwrap();
    for bits in [12, 14, 16, cluster_bits(&runs).unwrap()] {
        let path = dir.path().join(format!("{bits}.qcow2"));
        std::fs::write(&path, merged(&runs, &base, bits).source()).unwrap();
        qemu::assert_clean(&path);
        assert!(qemu::read_all(&path) == disk, "at 2^{bits}");
    }
}

#[test]
fn ranges_of_zeros_stay_ranges() {
    let virtual_size = 1 << 40;
    let zeros = |first: u64, count: u64| {
        let mut builder = RunBuilder::new(Vec::new(), params(virtual_size, 16, None)).unwrap();
        builder.push_zeros(first << 16, count).unwrap();
        Run::open(builder.finish().unwrap().1).unwrap()
    };
    let data = run_of(virtual_size, &Layer { bits: 16, clusters: [(5000, Fill::Text(1))].into() });
    let runs = [data, zeros(1000, 8000), zeros(2000, 9000)];
    let run = merged(&runs, &[], 16);
    let mut reader = run.reader().unwrap();
    let (mut entries, mut position) = (Vec::new(), 0);
    while let Some(entry) = reader.next_from(position).unwrap() {
        position = entry.end(run.geometry());
        entries.push((entry.address >> 16, entry.clusters(), matches!(entry.content, EntryContent::Zeros { .. })));
    }
    assert_eq!(entries, [(1000, 4000, true), (5000, 1, false), (5001, 5999, true)]);
}

#[test]
fn runs_of_a_shrunk_disk_are_not_merged() {
    let layer = Layer { bits: 12, clusters: [(0, Fill::Text(1))].into() };
    let (large, small) = (run_of(8192, &layer), run_of(4096, &layer));
    let attempt = |runs: &[Run<Vec<u8>>], out: u64| {
        let mut builder = RunBuilder::new(Vec::new(), params(out, 12, None)).unwrap();
        let mut below = understudy_run::Nothing;
        merge(runs, &mut below, &mut builder, &mut Encoder::plain(), &mut unpaced)
    };
    let err = attempt(&[small.clone(), large.clone()], 4096).unwrap_err();
    assert!(matches!(err, MergeError::Shrunk { older: 8192, newer: 4096 }), "{err}");
    assert!(matches!(attempt(std::slice::from_ref(&small), 8192), Err(MergeError::Shrunk { .. })));
    assert!(attempt(&[large, small], 8192).is_ok());
}

#[test]
fn a_damaged_input_is_named_and_nothing_is_merged_from_it() {
    let layer = Layer { bits: 12, clusters: [(0, Fill::Noise(1))].into() };
    let good = run_of(8192, &Layer { bits: 12, clusters: [(1, Fill::Text(1))].into() });
    let mut bytes = run_of(8192, &layer).source().clone();
    bytes[4096 + 77] ^= 1;
    let bad = Run::open(bytes).unwrap();
    for (bits, direct) in [(12, true), (13, false)] {
        let mut builder = RunBuilder::new(Vec::new(), params(8192, bits, None)).unwrap();
        let mut encoder = Encoder::plain();
        let runs = [good.clone(), bad.clone()];
        let err = merge(&runs, &mut understudy_run::Nothing, &mut builder, &mut encoder, &mut unpaced).unwrap_err();
        assert_eq!(err.kind(), understudy_model::ErrorKind::Corrupt);
        assert_eq!(matches!(err, MergeError::Read { index: 1, .. }), direct, "{err}");
    }
}

#[test]
fn work_that_is_told_to_stop_stops() {
    let clusters = (0..64).map(|n| (n, Fill::Noise(n as u8))).collect();
    let run = run_of(64 << 16, &Layer { bits: 16, clusters });
    let mut calls = 0;
    let mut impatient = |bytes: u64| {
        assert!(bytes > 0);
        calls += 1;
        if calls == 2 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    let mut builder = RunBuilder::new(Vec::new(), params(64 << 16, 16, None)).unwrap();
    let runs = [run.clone()];
    let err = merge(&runs, &mut understudy_run::Nothing, &mut builder, &mut Encoder::plain(), &mut impatient);
    assert!(matches!(err, Err(MergeError::Cancelled)));
    let stop = &mut |_: u64| ControlFlow::Break(());
    assert!(matches!(run.verify(stop), Err(understudy_run::VerifyError::Cancelled)));
    assert!(matches!(understudy_run::commit(&run, &mut Vec::new(), stop), Err(understudy_run::CommitError::Cancelled)));
}
