//! Foreign bytes as what an NBD server sends after the handshake.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| understudy_hypervisor::nbd::fuzzing::reply(bytes));
