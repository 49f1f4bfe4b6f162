//! CIM-XML (DSP0201): classes, instances, paths and values as XML elements.
//!
//! The elements are read by name, never by position, and attributes and elements that say nothing needed here are passed over: clients
//! send back what other systems added.

pub mod read;
pub mod write;
