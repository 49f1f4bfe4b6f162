//! Foreign bytes as an NBD server's side of a handshake and of a listing.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| understudy_hypervisor::nbd::fuzzing::greeting(bytes));
