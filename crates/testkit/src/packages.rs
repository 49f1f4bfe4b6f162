//! Debian packages: which are needed, installing them as root, and unpacking others into the cache without installing anything.
//!
//! No host is named here: packages come from wherever the machine's own sources point.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::process::run_command;

/// Downloads packages and unpacks them below `into`; needs no privilege.
///
/// Package lists that have grown old name versions that are no longer there, so after a failure they are brought up to date, where
/// that is allowed, and the download is tried once more.
pub fn unpack(packages: &[&str], into: &Path) -> Result<()> {
    let archives = into.join(".archives");
    fs::create_dir_all(&archives).with_context(|| format!("cannot create {}", archives.display()))?;
    if let Err(first) = download(packages, &archives) {
        update_lists().and_then(|()| download(packages, &archives)).map_err(|err| {
            anyhow::anyhow!("{first:#}; then {err:#}. `cargo xtask setup` says what this machine lacks")
        })?;
    }
    for archive in fs::read_dir(&archives)? {
        let mut command = Command::new("dpkg-deb");
        command.arg("-x").arg(archive?.path()).arg(into);
        run_command(command)?;
    }
    fs::remove_dir_all(&archives).with_context(|| format!("cannot remove {}", archives.display()))
}

fn download(packages: &[&str], into: &Path) -> Result<()> {
    let mut command = Command::new("apt-get");
    // Downloads go to the current directory, which apt's own user may not be allowed to enter.
    command.args(["-q", "-o", "APT::Sandbox::User=root", "download"]).args(packages).current_dir(into);
    run_command(command).map(drop)
}

/// The package a meta package stands for: the first it depends on.
pub fn dependency_of(package: &str) -> Result<String> {
    let mut command = Command::new("apt-cache");
    command.args(["depends", package]);
    let said = run_command(command)?;
    let first = said.lines().find_map(|line| line.trim().strip_prefix("Depends: "));
    first.map(String::from).with_context(|| format!("{package} depends on nothing: are there package lists?"))
}

/// `apt-get update`, as root or through sudo.
pub fn update_lists() -> Result<()> {
    run_command(as_root(["apt-get", "-q", "-o", LOCK_WAIT, "update"])?).map(drop)
}

/// Installs packages, as root or through sudo; `from` names a suite other than the machine's own.
pub fn install(packages: &[&str], from: Option<&str>) -> Result<()> {
    // A hook of container images empties the shared archive directory whenever lists are updated, also under another's install.
    let archives = private_archives()?;
    let directory = format!("Dir::Cache::archives={}", archives.path().display());
    let words = ["env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "-q", "-y", "-o", LOCK_WAIT, "-o", &directory];
    let mut command = as_root(words)?;
    command.args(["install", "--no-install-recommends"]);
    if let Some(suite) = from {
        command.args(["-t", suite]);
    }
    run_command({
        command.args(packages);
        command
    })
    .map(drop)
}

/// Two installations at once wait for each other.
const LOCK_WAIT: &str = "DPkg::Lock::Timeout=600";

fn private_archives() -> Result<tempfile::TempDir> {
    let dir = tempfile::tempdir().context("cannot create a directory for package archives")?;
    fs::create_dir(dir.path().join("partial"))?;
    Ok(dir)
}

/// A command as root: as it is when we are, else through sudo when that asks nothing.
pub fn as_root<'a>(words: impl IntoIterator<Item = &'a str>) -> Result<Command> {
    let mut words = words.into_iter();
    let program = words.next().context("no command")?;
    let mut command = if is_root() {
        Command::new(program)
    } else if may_sudo() {
        let mut command = Command::new("sudo");
        command.args(["-n", program]);
        command
    } else {
        bail!("{program} needs root, and sudo is not to be had without a password")
    };
    command.args(words);
    Ok(command)
}

/// True when this process may do what root may.
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

fn may_sudo() -> bool {
    Command::new("sudo").args(["-n", "true"]).output().is_ok_and(|output| output.status.success())
}

/// The machine's distribution, as `debian 12`; empty when it does not say.
pub fn distribution() -> String {
    let text = fs::read_to_string("/etc/os-release").unwrap_or_default();
    let field = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        line.unwrap_or_default().trim_matches('"').to_string()
    };
    format!("{} {}", field("ID="), field("VERSION_ID="))
}

/// The file in `root` whose name is `name`, wherever it lies.
pub fn find_file(root: &Path, name: &str) -> Result<PathBuf> {
    let mut left = vec![root.to_path_buf()];
    while let Some(dir) = left.pop() {
        for entry in fs::read_dir(&dir).with_context(|| format!("cannot list {}", dir.display()))? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                left.push(entry.path());
            } else if entry.file_name() == name {
                return Ok(entry.path());
            }
        }
    }
    bail!("no file {name} below {}", root.display())
}
