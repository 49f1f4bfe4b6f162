//! A kit for services that speak CIM, the DMTF's model of managed things: bytes in, bytes out, no sockets and no async runtime.
//!
//! Whoever offers a service writes its classes in MOF and a [`Provider`](provider::Provider) that knows the instances. The kit does what
//! is the same for every service: it reads and writes CIM-XML and WS-Management, keeps the class [`repository`], follows associations,
//! filters, pages, and checks what clients send before the provider sees it.
//!
//! From the bottom up:
//!
//! | module | is |
//! |---|---|
//! | [`name`], [`datetime`], [`value`], [`path`], [`schema`] | what CIM is made of |
//! | [`mof`] | the language in which classes, and sometimes instances, are written |
//! | [`repository`] | classes with what they inherit |
//! | [`query`] | WQL and its relatives |
//! | [`xml`], [`cimxml`], [`embedded`] | the door for XML, and instances, classes and paths as XML |
//! | [`provider`], [`broker`] | what a service writes, and what the kit does for it |
//! | [`http`], [`cimxml::CimXml`], [`wsman::WsMan`] | requests as headers and bytes, and the servers that answer them |
//! | [`interop`] | the namespace in which servers describe themselves, and subscriptions to events |
//!
//! Invariants: every reader bounds size, depth and count before it takes memory. Text from outside is never taken for a name or a type
//! before it was checked. The kit has no clock: whoever calls hands in the time.

pub mod broker;
pub mod cimxml;
pub mod datetime;
pub mod embedded;
pub mod http;
pub mod interop;
pub mod mof;
pub mod name;
pub mod path;
pub mod provider;
pub mod query;
pub mod repository;
pub mod schema;
pub mod status;
pub mod value;
pub mod wsman;
pub mod xml;

// The toy world of the tests knows the kit by its name, as any user does.
#[cfg(test)]
extern crate self as understudy_cim;
#[cfg(test)]
#[path = "../tests/toy/mod.rs"]
mod toy;

pub use datetime::DateTime;
pub use name::{Name, Namespace};
pub use path::{KeyValue, Keys, ObjectPath};
pub use schema::{Class, Instance, NamedInstance};
pub use status::{Status, StatusCode};
pub use value::{CimType, Scalar, Value};
