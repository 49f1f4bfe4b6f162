//! Which QEMU a test runs: the installed one, one named by `UNDERSTUDY_QEMU`, or Debian 12's 7.2 unpacked beside the installed one.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use anyhow::{Context, Result};

use crate::{cache, packages, process};

/// Environment variable: an emulator program, or a directory into which its packages were unpacked.
pub const EMULATOR_VARIABLE: &str = "UNDERSTUDY_QEMU";
/// Environment variable: another accelerator than `tcg`, on machines whose `/dev/kvm` is of use.
pub const ACCELERATOR_VARIABLE: &str = "UNDERSTUDY_ACCEL";

const PROGRAM: &str = "qemu-system-x86_64";

/// A QEMU that can be started.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Emulator {
    program: PathBuf,
    /// Root of the unpacked packages, when it is not installed.
    root: Option<PathBuf>,
    version: (u32, u32),
}

impl Emulator {
    /// What the environment names, else the installed one.
    pub fn get() -> Result<Self> {
        static FOUND: OnceLock<Emulator> = OnceLock::new();
        if let Some(found) = FOUND.get() {
            return Ok(found.clone());
        }
        let found = match std::env::var_os(EMULATOR_VARIABLE).map(PathBuf::from) {
            Some(root) if root.is_dir() => Self::unpacked(&root)?,
            Some(program) => Self::probe(program, None)?,
            None => Self::probe(PROGRAM.into(), None)?,
        };
        Ok(FOUND.get_or_init(|| found).clone())
    }

    /// The emulator in a directory into which Debian packages were unpacked.
    pub fn unpacked(root: &Path) -> Result<Self> {
        Self::probe(root.join("usr/bin").join(PROGRAM), Some(root.to_path_buf()))
    }

    /// Debian 12's own QEMU 7.2, which cannot be installed beside the newer tools: unpacked into the cache.
    pub fn debian_12() -> Result<Self> {
        let root = cache::get_or_make("qemu-7.2", |path| {
            let versioned: Vec<String> = PACKAGES_7_2.iter().map(|name| format!("{name}/bookworm")).collect();
            let names: Vec<&str> = versioned.iter().map(String::as_str).chain(LIBRARIES_7_2).collect();
            packages::unpack(&names, path)
        })?;
        Self::unpacked(&root)
    }

    fn probe(program: PathBuf, root: Option<PathBuf>) -> Result<Self> {
        let mut emulator = Emulator { program, root, version: (0, 0) };
        let (program, arguments) = emulator.command(&["--version".into()]);
        let said = process::run(program, arguments).context("no usable QEMU; `cargo xtask setup` installs one")?;
        emulator.version = parse_version(&said).with_context(|| format!("no version in: {said}"))?;
        Ok(emulator)
    }

    /// Major and minor version.
    pub fn version(&self) -> (u32, u32) {
        self.version
    }

    /// The program to start and its arguments, given those that say what to run.
    pub fn command(&self, arguments: &[String]) -> (PathBuf, Vec<String>) {
        let Some(root) = &self.root else { return (self.program.clone(), arguments.to_vec()) };
        let below = |path: &str| root.join(path).display().to_string();
        let mut words =
            vec![format!("LD_LIBRARY_PATH={}", below("usr/lib/x86_64-linux-gnu")), self.program.display().to_string()];
        for data in ["usr/share/qemu", "usr/share/seabios"] {
            words.extend(["-L".into(), below(data)]);
        }
        words.extend(arguments.iter().cloned());
        ("env".into(), words)
    }

    /// Where migration reads or writes a guest's state in a file; the plain way came with 8.2.
    pub(crate) fn state_uri(&self, state: &Path, writes: bool) -> String {
        match (self.version >= (8, 2), writes) {
            (true, _) => format!("file:{}", state.display()),
            (false, true) => format!("exec:cat > '{}'", state.display()),
            (false, false) => format!("exec:cat '{}'", state.display()),
        }
    }
}

/// The accelerator to name: `/dev/kvm` may exist and open and still be of no use, so it is never left to chance.
pub fn accelerator() -> String {
    std::env::var(ACCELERATOR_VARIABLE).unwrap_or_else(|_| "tcg".into())
}

/// The rate of the host's time-stamp counter, as near as the host says it.
pub fn host_clock_khz() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/cpuinfo").ok()?;
    let line = text.lines().find(|line| line.starts_with("cpu MHz"))?;
    let mhz: f64 = line.split(':').nth(1)?.trim().parse().ok()?;
    Some((mhz * 1000.0) as u64)
}

/// The number before the first dot and the one behind it, after the word "version".
pub fn parse_version(said: &str) -> Option<(u32, u32)> {
    let mut numbers = said.split("version ").nth(1)?.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

/// Packages of the emulator itself, of which a newer suite may hold other versions.
const PACKAGES_7_2: [&str; 3] = ["qemu-system-x86", "qemu-system-common", "qemu-system-data"];
/// Libraries it needs and a machine without it may lack.
const LIBRARIES_7_2: [&str; 8] = [
    "seabios",
    "libspice-server1",
    "libgstreamer-plugins-base1.0-0",
    "libopus0",
    "liborc-0.4-0",
    "libsndio7.0",
    "libepoxy0",
    "libcapstone4",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_from_what_the_program_says() {
        let said = "QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2+deb13u1~bpo12+1)\nCopyright (c) 2003-2025";
        assert_eq!(parse_version(said), Some((10, 0)));
        assert_eq!(parse_version("qemu-img version 7.2.22 (x)"), Some((7, 2)));
        assert_eq!(parse_version("no such thing"), None);
    }
}
