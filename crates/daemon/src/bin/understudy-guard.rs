//! The guard as a program of its own, for tests of this crate; in the product it is a part of `understudy`.

use std::os::fd::AsFd;

fn main() -> std::io::Result<()> {
    let input = std::io::stdin().as_fd().try_clone_to_owned()?;
    understudy_hypervisor::guard::run(input)
}
