//! The daemon's parts put together: real TLS over loopback, real unix sockets, files and processes.

mod golden;
mod link;
mod qemu;
mod rest;
mod service;
mod support;
