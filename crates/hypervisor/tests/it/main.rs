//! The crate's tests that need more than one module, in one binary.

mod nbd_handshake;
mod nbd_peer;
mod nbd_real;
mod nbd_replies;
mod programs;
