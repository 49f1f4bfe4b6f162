//! Installs the clients that the CIM kit is tested with: Python packages, in an environment of their own beside what cargo builds.
//!
//! Versions are named, so that a test that fails tells of our change and not of theirs. The tests find the environment by its name
//! in the target directory.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use understudy_testkit::{cache, packages, process};

/// The environment's name in the target directory; `crates/cim/tests/clients` knows it too.
const ENVIRONMENT: &str = "cim-clients";
/// What is in it.
const PACKAGES: [&str; 4] = ["pywbem==1.9.1", "pywbemtools==1.4.1", "pypsrp==0.9.1", "python-dracclient==8.0.0"];
/// Written last, with what was installed.
const MARK: &str = "installed";
/// Debian has the module that makes environments in a package of its own.
const MODULE_PACKAGE: &str = "python3-venv";

/// Makes the environment, unless it is there with the same packages.
pub fn install() -> Result<()> {
    let place = cache::target_dir()?.join(ENVIRONMENT);
    let wanted = PACKAGES.join("\n");
    if fs::read_to_string(place.join(MARK)).is_ok_and(|installed| installed == wanted) {
        println!("the clients are in {}", place.display());
        return Ok(());
    }
    println!("installing {} in {}", PACKAGES.join(" "), place.display());
    if make(&place).is_err() {
        println!("installing {MODULE_PACKAGE}");
        packages::update_lists()?;
        packages::install(&[MODULE_PACKAGE], None)?;
        make(&place)?;
    }
    let arguments = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check"];
    process::run(place.join("bin/python3"), arguments.iter().chain(&PACKAGES))?;
    fs::write(place.join(MARK), wanted).with_context(|| format!("cannot write {MARK} in {}", place.display()))
}

fn make(place: &Path) -> Result<()> {
    let place = place.display().to_string();
    process::run("python3", ["-m", "venv", "--clear", &place]).map(drop)
}
