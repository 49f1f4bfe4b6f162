//! The faces of the service: translations between a protocol and the operations, with no logic of their own.

pub mod rest;
