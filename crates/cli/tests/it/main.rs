//! The program itself, as a process, against a daemon whose VMs and relationships exist in memory only.

mod pipe;
mod support;
mod transcript;
mod verdicts;
