//! An NBD client: reads images, block status and dirty bitmaps out of QEMU and `qemu-storage-daemon`.
//!
//! Speaks the fixed newstyle handshake over unix sockets, structured replies, and extended headers where the server has
//! them (QEMU from 8.2 on; before, lengths are 32 bits wide and asking takes more rounds). Many requests share one
//! connection. It never writes; trim alone changes anything, and only on exports that allow it. Which exports there
//! are, and what the dirty bitmaps mean, is for the drivers that use it.
//!
//! Invariant: the server may be hostile. Nothing it sends takes memory before it was held against a bound, no answer is
//! handed on unless it is exactly an answer to what was asked, and after the first word that does not fit the
//! connection is over.

mod assemble;
mod client;
mod error;
mod handshake;
mod in_flight;
mod replies;
mod status;
mod wire;

pub use client::{Client, list_exports};
pub use error::{NbdError, OptionRefusal, ServerError, errno};
pub use handshake::{CONTEXTS_MAX, ExportInfo, Options};
pub use status::{ALLOCATION_CONTEXT, BITMAP_CONTEXT_PREFIX, DirtyBounds};

#[doc(hidden)]
pub mod fuzzing;
