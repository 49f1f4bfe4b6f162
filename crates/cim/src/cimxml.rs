//! CIM-XML: classes, instances, paths and values as XML (DSP0201), and a server's side of the operations over HTTP (DSP0200).
//!
//! Elements are read by name, never by position, and attributes and elements that say nothing needed here are passed over: clients
//! send back what other systems added.
//!
//! [`CimXml`] takes a request's headers and body and gives those of the response. An answer is whole before its first byte goes out, so
//! an error is always the whole answer and never stands behind half of one.

mod headers;
mod message;
mod operations;
mod parameters;
pub mod read;
mod reply;
mod server;
pub mod write;

pub use server::{CimXml, OPERATION_TIMEOUT_DEFAULT, OPERATION_TIMEOUT_MAX, PULLED_MAX, RESPONSE_LEN_MAX};
