//! The writable, empty qcow2 file that a failover puts on top of a run, so that its VM can write and the run cannot be
//! written.
//!
//! It is an ordinary image of QEMU's, which changes it at will; nothing of ours is in it. It is laid out as a run
//! without clusters, its header last.

use std::io;

use understudy_model::ErrorKind;

use crate::entry::Entry;
use crate::geometry::{Geometry, GeometryError};
use crate::header::{self, Backing};
use crate::io::{RunSink, io_kind};
use crate::layout::Layout;
use crate::output::Output;
use crate::tables::{self, EntrySeq, TableError, TableOut};

/// The cluster size QEMU uses unless told otherwise, good for a guest's scattered writes and its own tables alike.
pub const OVERLAY_CLUSTER_BITS: u32 = 16;

/// Why an overlay cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum OverlayError {
    /// The disk or cluster size is impossible.
    #[error("cannot make an overlay of this shape")]
    Geometry(#[from] GeometryError),
    /// Writing failed.
    #[error("cannot write an overlay")]
    Write(#[source] io::Error),
}

impl OverlayError {
    /// What the caller does next.
    pub fn kind(&self) -> ErrorKind {
        match self {
            OverlayError::Geometry(err) => err.kind(),
            OverlayError::Write(err) => io_kind(err),
        }
    }
}

impl From<TableError> for OverlayError {
    fn from(err: TableError) -> Self {
        unreachable!("an overlay has no clusters to disagree about: {err:?}")
    }
}

/// Writes an empty overlay of `virtual_size` bytes over `backing` into an empty sink. The caller syncs.
pub fn write_empty(
    sink: impl RunSink,
    virtual_size: u64,
    cluster_bits: u32,
    backing: Option<&Backing>,
) -> Result<(), OverlayError> {
    let geometry = Geometry::new(virtual_size, cluster_bits)?;
    let header_only = geometry.cluster_size();
    let layout = Layout::new(geometry, header_only, 0).expect("an empty image of a possible geometry has a layout");
    let mut output = Output::new(sink);
    tables::emit(&layout, &mut NoEntries, &mut OverlayTables(&mut output))?;
    output.finish_at(layout.trailer_offset).map_err(OverlayError::Write)?;
    let sector = header::encode_overlay(&layout, backing);
    output.into_sink().write_at(0, &sector).map_err(OverlayError::Write)
}

struct NoEntries;

impl EntrySeq<OverlayError> for NoEntries {
    fn visit(&mut self, _each: &mut dyn FnMut(&Entry) -> Result<(), OverlayError>) -> Result<(), OverlayError> {
        Ok(())
    }
}

struct OverlayTables<'a, S>(&'a mut Output<S>);

impl<S: RunSink> TableOut<OverlayError> for OverlayTables<'_, S> {
    fn put(&mut self, offset: u64, bytes: &[u8]) -> Result<(), OverlayError> {
        self.0.put_sparse(offset, bytes).map_err(OverlayError::Write)
    }
}
