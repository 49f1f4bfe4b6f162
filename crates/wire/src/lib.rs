//! What two hosts say to each other: frames, messages, the order they may come in. No sockets, no files, no clock.
//!
//! A connection carries *frames* ([`frame`]): a fixed header, an extension area for what later versions add, and a
//! payload. A payload is either a control *message* ([`message`], JSON, small) or *bulk* data ([`bulk`], binary). The
//! receiving end of a connection is a state machine ([`target`]) that says which frames may come next; everything
//! else closes the connection before any handler runs. Bulk frames may be spread over several connections and are
//! put back in order by [`reorder`].
//!
//! Invariant: no length taken from the other side is believed before it was compared with a named limit.

pub mod bulk;
pub mod frame;
pub mod limits;
pub mod message;
pub mod reorder;
pub mod target;

pub use frame::{Decoder, Frame, FrameError, FrameKind};
pub use message::Message;

/// Application protocol name in the TLS handshake (RFC 7301) for host-to-host frames.
pub const ALPN: &[u8] = b"understudy/1";

/// Protocol versions this build speaks, lowest and highest. A peer that shares none is refused, both versions named.
pub const VERSIONS: (u16, u16) = (1, 1);
