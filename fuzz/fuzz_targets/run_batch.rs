//! Foreign bytes as a batch of records on its way into a run.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| understudy_run::fuzzing::run_batch(bytes));
