//! What can go wrong between us and an NBD server, sorted by what is left usable afterwards.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use understudy_model::{ErrorKind, Extent};

/// Why an NBD call failed. Cloned, because one broken connection fails every request that was in flight on it.
#[derive(Debug, Clone, thiserror::Error)]
pub enum NbdError {
    /// Nothing could be reached at the socket.
    #[error("cannot connect to the NBD server at {path}")]
    Connect {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        #[source]
        err: Arc<io::Error>,
    },
    /// The connection broke; it is of no more use.
    #[error("the NBD connection broke")]
    Io(#[source] Arc<io::Error>),
    /// The server hung up, at a message's end or inside one.
    #[error("the NBD server closed the connection")]
    Closed,
    /// The server did not answer in time; the connection was given up.
    #[error("the NBD server did not answer within {0:?}")]
    Stalled(Duration),
    /// The server said what it must not say; the connection was ended at once and nothing of the answer was used.
    #[error("the NBD server broke the protocol: {0}")]
    Protocol(&'static str),
    /// The server lacks something this client cannot work without.
    #[error("the NBD server does not support {0}")]
    Unsupported(&'static str),
    /// The server refused an option of the handshake.
    #[error("the NBD server refused {option} for export {export:?}: {reason}")]
    Option {
        /// The export that was asked for.
        export: String,
        /// Which option.
        option: &'static str,
        /// What the server answered, in the protocol's words.
        reason: OptionRefusal,
    },
    /// The export exists, but not with this meta context (for a dirty map: there is no such bitmap on the disk).
    #[error("NBD export {export:?} has no meta context {context:?}")]
    MissingContext {
        /// The export.
        export: String,
        /// The context that was asked for.
        context: String,
    },
    /// The server answered a request with an error. The connection stays usable.
    #[error("the NBD server could not {command} {}+{}: {error}", extent.offset, extent.len)]
    Request {
        /// What was asked.
        command: &'static str,
        /// For which bytes.
        extent: Extent,
        /// Its answer.
        error: ServerError,
    },
    /// We asked for something the export or the protocol does not allow: our own mistake, noticed before anything was
    /// sent.
    #[error("bad NBD request: {0}")]
    Misuse(String),
    /// A dirty map has more pieces than the caller has room for, even at the coarsest granule allowed.
    #[error("the dirty map has more than {limit} extents")]
    TooFragmented {
        /// The caller's bound.
        limit: usize,
    },
}

impl NbdError {
    /// What the caller does next.
    pub fn kind(&self) -> ErrorKind {
        match self {
            NbdError::Connect { .. } | NbdError::Io(_) | NbdError::Closed | NbdError::Stalled(_) => ErrorKind::Retry,
            NbdError::Protocol(_) | NbdError::Unsupported(_) => ErrorKind::Operator,
            NbdError::Option { reason, .. } => reason.kind(),
            NbdError::MissingContext { .. } | NbdError::TooFragmented { .. } => ErrorKind::Resync,
            NbdError::Request { error, .. } => error.kind(),
            NbdError::Misuse(_) => ErrorKind::Bug,
        }
    }

    /// Whether the connection is still good for other requests.
    pub fn leaves_connection_usable(&self) -> bool {
        matches!(self, NbdError::Request { .. } | NbdError::Misuse(_) | NbdError::TooFragmented { .. })
    }
}

impl From<io::Error> for NbdError {
    fn from(err: io::Error) -> Self {
        match err.kind() {
            io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => {
                NbdError::Closed
            }
            _ => NbdError::Io(Arc::new(err)),
        }
    }
}

/// How a server refuses an option, in the protocol's vocabulary.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum OptionRefusal {
    /// It does not know the option.
    #[error("unsupported")]
    Unsupported,
    /// Its policy forbids it.
    #[error("forbidden by policy")]
    Policy,
    /// It takes the request for malformed.
    #[error("invalid")]
    Invalid,
    /// Its platform lacks it.
    #[error("not on this platform")]
    Platform,
    /// It wants TLS first.
    #[error("TLS required")]
    TlsRequired,
    /// There is no such export.
    #[error("no such export")]
    UnknownExport,
    /// It is going down.
    #[error("the server is shutting down")]
    ShuttingDown,
    /// It wants the client to heed block sizes.
    #[error("block size negotiation required")]
    BlockSizeRequired,
    /// What was asked is too large.
    #[error("too big")]
    TooBig,
    /// It wants extended headers.
    #[error("extended headers required")]
    ExtendedHeadersRequired,
    /// An error the protocol did not name when this was written.
    #[error("error {0:#x}")]
    Other(u32),
}

impl OptionRefusal {
    pub(super) fn from_reply(kind: u32) -> Self {
        match kind & 0x7fff_ffff {
            1 => Self::Unsupported,
            2 => Self::Policy,
            3 => Self::Invalid,
            4 => Self::Platform,
            5 => Self::TlsRequired,
            6 => Self::UnknownExport,
            7 => Self::ShuttingDown,
            8 => Self::BlockSizeRequired,
            9 => Self::TooBig,
            10 => Self::ExtendedHeadersRequired,
            _ => Self::Other(kind),
        }
    }

    fn kind(self) -> ErrorKind {
        match self {
            Self::UnknownExport | Self::ShuttingDown => ErrorKind::Retry,
            _ => ErrorKind::Refused,
        }
    }
}

/// A server's answer to a request it could not carry out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerError {
    /// The protocol's error number: the errno values of Linux.
    pub errno: u32,
    /// What the server said in words: printable, cut to [`ServerError::MESSAGE_MAX`] bytes, perhaps empty.
    pub message: String,
    /// Where it went wrong, when the server said.
    pub offset: Option<u64>,
}

impl ServerError {
    /// Longest message kept of the 4096 bytes the protocol allows: enough for a sentence in a log.
    pub const MESSAGE_MAX: usize = 256;

    fn kind(&self) -> ErrorKind {
        match self.errno {
            errno::EPERM => ErrorKind::Refused,
            errno::EIO | errno::ENOSPC => ErrorKind::Operator,
            errno::EOVERFLOW | errno::ENOTSUP => ErrorKind::Bug,
            // EINVAL is also what a frozen image answers once it was broken in favour of the guest.
            _ => ErrorKind::Retry,
        }
    }
}

impl std::fmt::Display for ServerError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match errno::name(self.errno) {
            Some(name) => f.write_str(name)?,
            None => write!(f, "error {}", self.errno)?,
        }
        if let Some(offset) = self.offset {
            write!(f, " at byte {offset}")?;
        }
        if !self.message.is_empty() {
            write!(f, " ({})", self.message)?;
        }
        Ok(())
    }
}

/// The error numbers of the protocol.
pub mod errno {
    /// Not permitted.
    pub const EPERM: u32 = 1;
    /// Input or output error.
    pub const EIO: u32 = 5;
    /// Out of memory.
    pub const ENOMEM: u32 = 12;
    /// Invalid argument.
    pub const EINVAL: u32 = 22;
    /// No space.
    pub const ENOSPC: u32 = 28;
    /// Value too large.
    pub const EOVERFLOW: u32 = 75;
    /// Not supported.
    pub const ENOTSUP: u32 = 95;
    /// Shutting down.
    pub const ESHUTDOWN: u32 = 108;

    pub(super) fn name(errno: u32) -> Option<&'static str> {
        Some(match errno {
            EPERM => "EPERM",
            EIO => "EIO",
            ENOMEM => "ENOMEM",
            EINVAL => "EINVAL",
            ENOSPC => "ENOSPC",
            EOVERFLOW => "EOVERFLOW",
            ENOTSUP => "ENOTSUP",
            ESHUTDOWN => "ESHUTDOWN",
            _ => return None,
        })
    }
}
