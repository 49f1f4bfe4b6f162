//! WS-Management (DSP0226) with its binding to CIM (DSP0227, DSP0230) and Microsoft's ways (MS-WSMV): a server's side.
//!
//! [`WsMan`] takes a request's headers and body and gives those of the response. Who sent it, and what protected it on its way, is known
//! before.
//!
//! Requests are read by namespace, never by prefix, and where clients take liberties nothing is lost by following them: spaces around
//! values, headers in any order, missing keys when one instance is meant all the same. Responses use the prefixes that some clients
//! search for in the text, no indentation, and no tags that close themselves.

mod body;
mod envelope;
mod epr;
mod fault;
mod instance;
mod operations;
mod server;
mod uri;

pub use server::{ENVELOPE_MAX, EXPIRES_DEFAULT, EXPIRES_MAX, Settings, WsMan};

/// Namespaces, under the names of their prefixes.
pub(crate) mod ns {
    pub const S: &str = "http://www.w3.org/2003/05/soap-envelope";
    pub const A: &str = "http://schemas.xmlsoap.org/ws/2004/08/addressing";
    pub const W: &str = "http://schemas.dmtf.org/wbem/wsman/1/wsman.xsd";
    pub const N: &str = "http://schemas.xmlsoap.org/ws/2004/09/enumeration";
    pub const X: &str = "http://schemas.xmlsoap.org/ws/2004/09/transfer";
    pub const E: &str = "http://schemas.xmlsoap.org/ws/2004/08/eventing";
    pub const CIM: &str = "http://schemas.dmtf.org/wbem/wscim/1/common";
    pub const XSI: &str = "http://www.w3.org/2001/XMLSchema-instance";
    pub const F: &str = "http://schemas.microsoft.com/wbem/wsman/1/wsmanfault";
    pub const MS: &str = "http://schemas.microsoft.com/wbem/wsman/1/wsman.xsd";
    pub const ID: &str = "http://schemas.dmtf.org/wbem/wsman/identity/1/wsmanidentity.xsd";
    pub const ID_OLD: &str = "http://schemas.dmtf.org/wbem/wsman/identify/1/wsmanidentity.xsd";
    pub const CFG: &str = "http://schemas.microsoft.com/wbem/wsman/1/config";
}

/// The address that means whoever is on this connection.
pub(crate) const ANONYMOUS: &str = "http://schemas.xmlsoap.org/ws/2004/08/addressing/role/anonymous";
/// The selector that names a namespace.
pub(crate) const NAMESPACE_SELECTOR: &str = "__cimnamespace";
