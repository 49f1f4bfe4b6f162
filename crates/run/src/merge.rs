//! Merges neighbouring runs into one that makes of what lies below them exactly what they made of it together.
//!
//! The newest says what a byte is. Clusters of the output's own size are copied as they are, compressed bytes, hash and
//! all, after they were checked. Where sizes differ the output's cluster is put together from all runs and from what
//! lies below them, and compressed anew.
//!
//! Disks may have grown from run to run, never shrunk: a shrunk disk's lost bytes could not be told from absent ones.

use std::ops::ControlFlow;

use understudy_model::{ErrorKind, Extent, ExtentSet};

use crate::build::{BuildError, RunBuilder};
use crate::chain::{Below, read_through};
use crate::codec::{Encoded, Encoder, Stored};
use crate::digest::cluster_hash;
use crate::entry::{Entry, EntryContent};
use crate::geometry::Geometry;
use crate::io::{RunSink, RunSource};
use crate::pace::{Pace, Pacer};
use crate::read::{ReadError, Run, RunReader};
use crate::record::RecordContent;
use crate::shape::choose_cluster_bits;

/// Why runs cannot be merged. The output is worthless; the inputs are as they were.
#[derive(Debug, thiserror::Error)]
pub enum MergeError {
    /// The output's disk is not the newest run's, or a newer run's disk is smaller than an older one's.
    #[error("runs of disks of {older} and then {newer} bytes cannot be merged")]
    Shrunk {
        /// Size in an older run.
        older: u64,
        /// Size in a newer run, or in the output.
        newer: u64,
    },
    /// One of the inputs cannot be read, or is damaged.
    #[error("cannot read run {index} of those to be merged, counted from the newest")]
    Read {
        /// Its position among the inputs.
        index: usize,
        /// What is wrong with it.
        #[source]
        err: ReadError,
    },
    /// Something in the chain, from the newest input down to what lies below them all, cannot be read.
    #[error("cannot read the disk at {address} through the runs to be merged")]
    ReadThrough {
        /// Address of the output's cluster.
        address: u64,
        /// What is wrong there.
        #[source]
        err: ReadError,
    },
    /// The output cannot be written.
    #[error("cannot build the merged run")]
    Build(#[from] BuildError),
    /// The pace said to stop.
    #[error("merge was cancelled")]
    Cancelled,
}

impl MergeError {
    /// What the caller does next.
    pub fn kind(&self) -> ErrorKind {
        match self {
            MergeError::Shrunk { .. } => ErrorKind::Refused,
            MergeError::Read { err, .. } | MergeError::ReadThrough { err, .. } => err.kind(),
            MergeError::Build(err) => err.kind(),
            MergeError::Cancelled => ErrorKind::Retry,
        }
    }
}

/// The cluster size that suits the merged run: the common one, or else what the shape of all changes asks for.
pub fn cluster_bits<S: RunSource>(newest_first: &[Run<S>]) -> Result<u32, ReadError> {
    let Some(newest) = newest_first.first() else { return Ok(OVER_NOTHING) };
    let bits = newest.geometry().cluster_bits();
    if newest_first.iter().all(|run| run.geometry().cluster_bits() == bits) {
        return Ok(bits);
    }
    let mut changed = ExtentSet::new();
    for run in newest_first {
        changed.union(&run.extents()?);
    }
    Ok(choose_cluster_bits(&changed, newest.geometry().virtual_size()))
}

/// What is chosen for an output without inputs.
const OVER_NOTHING: u32 = 16;

impl<S: RunSource> Run<S> {
    /// Which parts of the disk this run says anything about. Takes memory for each stretch of them.
    pub fn extents(&self) -> Result<ExtentSet, ReadError> {
        let geometry = self.geometry();
        let mut reader = self.reader()?;
        let mut extents = ExtentSet::new();
        let mut position = 0;
        while let Some(entry) = reader.next_from(position)? {
            position = entry.end(geometry);
            let end = position.min(geometry.virtual_size());
            extents.insert(Extent::new(entry.address, end - entry.address));
        }
        Ok(extents)
    }
}

/// Merges `newest_first` into `builder`, which was made for the newest run's disk and whose backing is the oldest
/// run's. `below` reads what lies below the oldest run. The caller finishes the builder.
pub fn merge<S: RunSource, K: RunSink>(
    newest_first: &[Run<S>],
    below: &mut impl Below,
    builder: &mut RunBuilder<K>,
    encoder: &mut Encoder,
    pace: &mut Pace<'_>,
) -> Result<(), MergeError> {
    check_sizes(newest_first, builder.geometry())?;
    let layers = newest_first.iter().enumerate().map(|(index, run)| {
        let reader = run.reader().map_err(|err| MergeError::Read { index, err })?;
        Ok(Layer { index, geometry: *run.geometry(), reader, current: None, exhausted: false })
    });
    let layers = layers.collect::<Result<_, MergeError>>()?;
    let cluster = vec![0; builder.geometry().cluster_size() as usize];
    let mut merge = Merge { layers, below, builder, encoder, cluster, pacer: Pacer::new(pace) };
    let mut position = 0;
    while let Some(start) = merge.turn_to(position)? {
        position = merge.step(start)?;
    }
    Ok(())
}

fn check_sizes<S>(newest_first: &[Run<S>], output: &Geometry) -> Result<(), MergeError> {
    let mut newer = output.virtual_size();
    for (i, run) in newest_first.iter().enumerate() {
        let older = run.geometry().virtual_size();
        if older > newer || (i == 0 && older != newer) {
            return Err(MergeError::Shrunk { older, newer });
        }
        newer = older;
    }
    Ok(())
}

/// One input and the entry of it that lies at or after the merge's position.
struct Layer<S> {
    index: usize,
    geometry: Geometry,
    reader: RunReader<S>,
    current: Option<Entry>,
    exhausted: bool,
}

impl<S: RunSource> Layer<S> {
    fn turn_to(&mut self, position: u64) -> Result<(), MergeError> {
        let passed = self.current.is_none_or(|entry| entry.end(&self.geometry) <= position);
        if passed && !self.exhausted {
            let next = self.reader.next_from(position);
            self.current = next.map_err(|err| MergeError::Read { index: self.index, err })?;
            self.exhausted = self.current.is_none();
        }
        Ok(())
    }

    fn start(&self) -> u64 {
        self.current.map_or(u64::MAX, |entry| entry.address)
    }
}

struct Merge<'a, S, B, K> {
    layers: Vec<Layer<S>>,
    below: &'a mut B,
    builder: &'a mut RunBuilder<K>,
    encoder: &'a mut Encoder,
    cluster: Vec<u8>,
    pacer: Pacer<'a>,
}

impl<S: RunSource, B: Below, K: RunSink> Merge<'_, S, B, K> {
    /// The first cluster of the output, at or after `position`, about which any input says something.
    fn turn_to(&mut self, position: u64) -> Result<Option<u64>, MergeError> {
        self.layers.iter_mut().try_for_each(|layer| layer.turn_to(position))?;
        let first = self.layers.iter().map(Layer::start).min().unwrap_or(u64::MAX);
        let geometry = self.builder.geometry();
        let start = (first & !(geometry.cluster_size() - 1)).max(position);
        // An input's last cluster, if larger than the output's, may reach beyond the disk's end.
        Ok((start < geometry.virtual_size()).then_some(start))
    }

    /// Puts out the cluster at `start`, or the zeros that begin there, and says where to go on.
    fn step(&mut self, start: u64) -> Result<u64, MergeError> {
        let size = self.builder.geometry().cluster_size();
        let top = self.layers.iter().position(|layer| layer.start() < start + size);
        let top = top.expect("some input says something about this cluster");
        let entry = self.layers[top].current.expect("an input that starts somewhere has an entry");
        let geometry = self.layers[top].geometry;
        match entry.content {
            EntryContent::Zeros { .. } if entry.address <= start && entry.end(&geometry) >= start + size => {
                self.zeros(start, entry.end(&geometry), top)
            }
            EntryContent::Data { .. } if geometry.cluster_size() == size => {
                self.copy(&entry, top)?;
                Ok(start + size)
            }
            _ => {
                self.compose(start)?;
                Ok(start + size)
            }
        }
    }

    /// Zeros from `start` for as long as no newer input says otherwise.
    fn zeros(&mut self, start: u64, end: u64, top: usize) -> Result<u64, MergeError> {
        let geometry = *self.builder.geometry();
        let newer = self.layers[..top].iter().map(Layer::start).min().unwrap_or(u64::MAX);
        let disk_end = geometry.clusters() << geometry.cluster_bits();
        let count = (end.min(newer).min(disk_end) - start) >> geometry.cluster_bits();
        self.builder.push_zeros(start, count)?;
        self.pace(4096)?;
        Ok(start + (count << geometry.cluster_bits()))
    }

    /// A cluster as it is.
    fn copy(&mut self, entry: &Entry, top: usize) -> Result<(), MergeError> {
        let layer = &mut self.layers[top];
        let EntryContent::Data { hash, .. } = entry.content else { unreachable!("only data is copied") };
        let record = layer.reader.record(entry).map_err(|err| MergeError::Read { index: layer.index, err })?;
        let RecordContent::Data { stored, bytes } = record.content else { unreachable!("data travels as data") };
        self.builder.push(entry.address, stored, bytes, &hash)?;
        let len = bytes.len() as u64;
        self.pace(len)
    }

    /// A cluster put together from all inputs and what lies below.
    fn compose(&mut self, start: u64) -> Result<(), MergeError> {
        let inside = self.builder.geometry().len_at(start) as usize;
        let (disk, padding) = self.cluster.split_at_mut(inside);
        padding.fill(0);
        let readers = self.layers.iter_mut().map(|layer| &mut layer.reader);
        read_through(readers, self.below, start, disk)
            .map_err(|err| MergeError::ReadThrough { address: start, err })?;
        let hash = || cluster_hash(start, &self.cluster);
        match self.encoder.encode(&self.cluster) {
            Encoded::Zero => self.builder.push_zeros(start, 1)?,
            Encoded::Compressed(frame) => self.builder.push(start, Stored::Compressed, frame, &hash())?,
            Encoded::Plain => self.builder.push(start, Stored::Plain, &self.cluster, &hash())?,
        }
        self.pace(inside as u64)
    }

    fn pace(&mut self, bytes: u64) -> Result<(), MergeError> {
        match self.pacer.add(bytes) {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(()) => Err(MergeError::Cancelled),
        }
    }
}
