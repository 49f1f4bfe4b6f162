//! The run: one disk's changed clusters between two cuts, as a sealed, immutable qcow2 file with zstd-compressed
//! clusters and a checksum table behind them.
//!
//! This crate turns bytes into bytes: it builds, reads, verifies and merges runs, writes them into a raw base and makes
//! the empty overlays that failovers write to. It opens no files and follows no reference it finds in one: which file
//! lies below which is `store`'s knowledge. `docs/formats/run.md` describes every byte.
//!
//! Invariant: what leaves this crate as guest data was checked against a hash that covers its address, and what is
//! written is checked before it is written.

pub mod build;
pub mod chain;
pub mod codec;
pub mod commit;
pub mod digest;
pub mod fuzzing;
pub mod geometry;
pub mod io;
pub mod merge;
pub mod overlay;
pub mod pace;
pub mod read;
pub mod record;
pub mod repoint;
pub mod shape;
pub mod verify;

mod entry;
mod header;
mod layout;
mod log;
mod output;
mod refcount;
mod tables;
mod trailer;
mod window;

pub use build::{BuildError, RunBuilder, RunParams, RunSummary};
pub use chain::{Below, ChainReader, Nothing, RawBase};
pub use codec::{CodecError, Decoder, Encoded, Encoder, Stored};
pub use commit::{CommitError, commit};
pub use digest::{
    ClusterHash, ClusterKind, CutHeader, PartHash, RunDigest, RunDigester, cluster_hash, cut_digest, part_hash,
};
pub use entry::{Entry, EntryContent};
pub use geometry::{Geometry, GeometryError};
pub use header::{Backing, BackingError, BackingFormat};
pub use io::{BaseWrite, RunSink, RunSource};
pub use log::Spool;
pub use merge::{MergeError, merge};
pub use read::{Part, ReadError, Run, RunReader};
pub use record::{BatchError, BatchReader, BatchWriter, Record, RecordContent};
pub use repoint::repoint;
pub use shape::choose_cluster_bits;
pub use verify::VerifyError;
