//! The service: one file per operation. Check, answer, start the job; faces translate and nothing else.

pub mod owner;
pub mod registry;
