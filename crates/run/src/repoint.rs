//! Points a sealed run at another file below it, after what lay there was merged or committed.
//!
//! Everything the header says fits its first sector, and everything but the name of the file below follows from the
//! footer. So the sector is made anew and written in one piece. Nothing else of the file changes, its digest neither.
//!
//! Should a crash tear even that one sector, its hash no longer matches: the run cannot be opened until the same call
//! is made again, which needs no header to be there. The caller knows from its manifest whom to name.

use std::io;

use understudy_model::ErrorKind;

use crate::header::{self, Backing};
use crate::io::{RunSink, RunSource, io_kind};
use crate::read::{ReadError, read_footer};

/// Why a run cannot be pointed elsewhere.
#[derive(Debug, thiserror::Error)]
pub enum RepointError {
    /// The footer, from which the header is made, cannot be read.
    #[error("cannot read the footer of a run")]
    Read(#[from] ReadError),
    /// Writing failed.
    #[error("cannot write the header of a run")]
    Write(#[source] io::Error),
}

impl RepointError {
    /// What the caller does next.
    pub fn kind(&self) -> ErrorKind {
        match self {
            RepointError::Read(err) => err.kind(),
            RepointError::Write(err) => io_kind(err),
        }
    }
}

/// Writes the header of the finished run in `file` anew, naming `backing` as the file below. May be repeated; the
/// caller syncs. Only for runs whose manifest entry says they are finished: the header is what makes a file a run.
pub fn repoint(file: &mut (impl RunSource + RunSink), backing: Option<&Backing>) -> Result<(), RepointError> {
    let (_, trailer) = read_footer(file)?;
    let sector = header::encode(&trailer.layout, trailer.footer_offset, backing);
    file.write_at(0, &sector).map_err(RepointError::Write)
}
