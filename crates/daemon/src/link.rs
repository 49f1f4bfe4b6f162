//! Connections between hosts: who the other side is, how it is reached, and what it may say before anybody listens.
//!
//! ```text
//!  dial ──TCP──TLS 1.3, both certificates──greeting──▶ frames          (link::dial)
//!  accept ─▶ handshake task ─▶ greeting ─▶ first message
//!              │ key unknown                   ├─ join ─▶ pairing, whoever it is
//!              ▼ and no invitation open        ├─ anything else, key unknown ─▶ refused
//!            refused in the handshake          ╰─ anything else, key trusted ─▶ ChannelHandler
//! ```
//!
//! A host is its key: the hash of the public key in the certificate it proves to hold. Names, dates and issuers in a
//! certificate mean nothing. What a trusted peer may do is decided later, per request, by its authorization entry.
//!
//! Invariant: no byte of a request reaches a handler before the peer's key was found among the trusted ones, and a
//! connection ends as soon as it is no longer there.

pub mod channel;
pub mod dial;
pub mod frames;
pub mod identity;
pub mod listener;
pub mod pairing;
pub mod socket;
pub mod stream;
pub mod tls;
pub mod token;
pub mod trust;

pub use channel::{Channel, ChannelHandler};
pub use dial::{Connection, DialError, Dialler};
pub use identity::Identity;
pub use trust::Trust;
