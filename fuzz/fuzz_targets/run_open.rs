//! Foreign bytes as a run: opened, verified, read, committed and built again.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| understudy_run::fuzzing::run_open(bytes));
