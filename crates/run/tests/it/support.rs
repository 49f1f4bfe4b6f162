//! Content for disks, and runs made of it.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;

use proptest::prelude::*;
use proptest::test_runner::RngSeed;
use understudy_run::pace::unpaced;
use understudy_run::{
    Backing, BackingFormat, Encoded, Encoder, Geometry, Run, RunBuilder, RunParams, RunSink, RunSummary, Stored,
    cluster_hash,
};

/// So many cases, the same ones each time, unless the environment names another seed.
pub fn cases(count: u32) -> ProptestConfig {
    let mut config = ProptestConfig::with_cases(count);
    if let RngSeed::Random = config.rng_seed {
        config.rng_seed = RngSeed::Fixed(u64::from(count));
    }
    config
}

/// What a cluster is filled with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fill {
    Zeros,
    Text(u8),
    Noise(u8),
    HalfNoise(u8),
}

impl Fill {
    pub fn bytes(self, len: usize) -> Vec<u8> {
        match self {
            Fill::Zeros => vec![0; len],
            Fill::Text(seed) => text(seed, len),
            Fill::Noise(seed) => noise(seed, len),
            Fill::HalfNoise(seed) => [noise(seed, len / 2), text(seed, len - len / 2)].concat(),
        }
    }
}

pub fn fill() -> impl Strategy<Value = Fill> {
    prop_oneof![
        2 => Just(Fill::Zeros),
        4 => any::<u8>().prop_map(Fill::Text),
        2 => any::<u8>().prop_map(Fill::Noise),
        2 => any::<u8>().prop_map(Fill::HalfNoise),
    ]
}

pub fn noise(seed: u8, len: usize) -> Vec<u8> {
    let mut out = vec![0; len];
    blake3::Hasher::new().update(&[seed]).finalize_xof().fill(&mut out);
    out
}

fn text(seed: u8, len: usize) -> Vec<u8> {
    format!("line {seed} of what a guest writes to its log\n").bytes().cycle().take(len).collect()
}

/// Clusters of a run by their number.
pub type Clusters = BTreeMap<u64, Fill>;

/// A disk of a few hundred kilobytes, its clusters' size, and which of them a run holds.
#[derive(Debug, Clone)]
pub struct Layer {
    pub bits: u32,
    pub clusters: Clusters,
}

/// A layer on a disk of `virtual_size` bytes, in clusters of one of `bits`.
pub fn layer(virtual_size: u64, bits: std::ops::RangeInclusive<u32>) -> impl Strategy<Value = Layer> {
    bits.prop_flat_map(move |bits| {
        let clusters = virtual_size.div_ceil(1 << bits);
        prop::collection::btree_map(0..clusters, fill(), 0..(clusters as usize).min(40))
            .prop_map(move |clusters| Layer { bits, clusters })
    })
}

pub fn params(virtual_size: u64, bits: u32, below: Option<(&str, BackingFormat)>) -> RunParams {
    let backing = below.map(|(name, format)| Backing::new(name, format).unwrap());
    RunParams { virtual_size, cluster_bits: bits, backing }
}

/// The whole cluster with this content, padded with zeros beyond the disk's end.
pub fn cluster_bytes(geometry: &Geometry, address: u64, fill: Fill) -> Vec<u8> {
    let mut bytes = fill.bytes(geometry.len_at(address) as usize);
    bytes.resize(geometry.cluster_size() as usize, 0);
    bytes
}

/// Encodes and pushes one cluster, as a primary does.
pub fn push_raw<S: RunSink>(builder: &mut RunBuilder<S>, encoder: &mut Encoder, address: u64, raw: &[u8]) {
    match encoder.encode(raw) {
        Encoded::Zero => builder.push_zeros(address, 1),
        Encoded::Compressed(frame) => builder.push(address, Stored::Compressed, frame, &cluster_hash(address, raw)),
        Encoded::Plain => builder.push(address, Stored::Plain, raw, &cluster_hash(address, raw)),
    }
    .unwrap();
}

pub fn build<S: RunSink>(sink: S, params: RunParams, clusters: &Clusters, level: i32) -> (RunSummary, S) {
    let mut encoder = Encoder::new(level).unwrap();
    let mut builder = RunBuilder::new(sink, params).unwrap();
    let geometry = *builder.geometry();
    for (number, fill) in clusters {
        let address = number << geometry.cluster_bits();
        push_raw(&mut builder, &mut encoder, address, &cluster_bytes(&geometry, address, *fill));
    }
    let projected = builder.projected_len();
    let (summary, sink) = builder.finish().unwrap();
    assert_eq!(summary.file_len, projected);
    (summary, sink)
}

/// A run in memory, opened and verified.
pub fn memory_run(params: RunParams, clusters: &Clusters) -> Run<Vec<u8>> {
    let (summary, bytes) = build(Vec::new(), params, clusters, 1);
    let run = Run::open(bytes).unwrap();
    assert_eq!(run.verify(&mut unpaced).unwrap(), summary);
    run
}

/// A run in a file, opened and verified.
pub fn file_run(path: &Path, params: RunParams, clusters: &Clusters) -> Run<File> {
    let (summary, _) = build(File::create_new(path).unwrap(), params, clusters, 1);
    let run = Run::open(File::open(path).unwrap()).unwrap();
    assert_eq!(run.verify(&mut unpaced).unwrap(), summary);
    run
}

/// What a layer makes of a disk.
pub fn apply(disk: &mut Vec<u8>, virtual_size: u64, layer: &Layer) {
    disk.resize(virtual_size as usize, 0);
    let geometry = Geometry::new(virtual_size, layer.bits).unwrap();
    for (number, fill) in &layer.clusters {
        let address = number << layer.bits;
        let len = geometry.len_at(address) as usize;
        disk[address as usize..address as usize + len].copy_from_slice(&fill.bytes(len));
    }
}
