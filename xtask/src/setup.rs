//! Installs what tests, demo and benches need and the machine lacks: Debian packages, and a QEMU of 8.0 or later.
//!
//! Nothing is touched that is there already. Everything that is installed is named first. Debian 12 carries QEMU 7.2; a newer one is in
//! its backports, whose source is added by copying a stanza of the machine's own sources with the suite changed, so that packages
//! come from wherever this machine gets its packages.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use understudy_testkit::emulator::parse_version;
use understudy_testkit::image::Image;
use understudy_testkit::{packages, process};

/// A program and the package that brings it.
const PROGRAMS: [(&str, &str); 12] = [
    ("git", "git"),
    ("mkfs.ext4", "e2fsprogs"),
    ("mkfs.xfs", "xfsprogs"),
    ("ip", "iproute2"),
    ("nft", "nftables"),
    ("nbdinfo", "libnbd-bin"),
    ("busybox", "busybox-static"),
    ("zstd", "zstd"),
    // Clients of CIM services; more of them come as Python packages.
    ("wbemcli", "sblim-wbemcli"),
    ("wslid", "wsl"),
    ("uuidgen", "uuid-runtime"),
    ("python3", "python3"),
];
const EMULATOR: &str = "qemu-system-x86_64";
const EMULATOR_PACKAGES: [&str; 2] = ["qemu-system-x86", "qemu-utils"];
/// The first version in which every way to take a point in time works with disks on threads of their own.
const EMULATOR_VERSION: (u32, u32) = (8, 0);
const BACKPORTS: &str = "bookworm-backports";
const SOURCES: &str = "/etc/apt/sources.list.d";

/// What the benches compare with, and what it needs.
const BENCH_PROGRAMS: [(&str, &str); 8] = [
    ("nbdcopy", "libnbd-bin"),
    ("rsync", "rsync"),
    ("ssh", "openssh-client"),
    ("sshd", "openssh-server"),
    ("virtnbdbackup", "virtnbdbackup"),
    ("virsh", "libvirt-clients"),
    ("libvirtd", "libvirt-daemon"),
    // Not a program: the part of libvirtd that runs QEMU.
    ("../lib/x86_64-linux-gnu/libvirt/connection-driver/libvirt_driver_qemu.so", "libvirt-daemon-driver-qemu"),
];
/// Debian starts the services it installs, unless this program says no.
const SERVICE_POLICY: &str = "/usr/sbin/policy-rc.d";

/// Installs what is missing.
pub fn install() -> Result<()> {
    let missing = missing(&PROGRAMS);
    let emulator = emulator_version();
    let emulator_is_fine =
        emulator.is_some_and(|version| version >= EMULATOR_VERSION) && process::is_installed("qemu-img");
    if missing.is_empty() && emulator_is_fine {
        println!("nothing is missing");
        return Ok(());
    }
    require_debian_12(&missing, emulator_is_fine)?;
    if !emulator_is_fine {
        println!("QEMU: {}; a newer one is installed from {BACKPORTS}", describe(emulator));
        add_backports()?;
    }
    println!("bringing the package lists up to date");
    packages::update_lists()?;
    if !missing.is_empty() {
        println!("installing {}", missing.join(" "));
        packages::install(&missing, None)?;
    }
    if !emulator_is_fine {
        println!("installing {} from {BACKPORTS}", EMULATOR_PACKAGES.join(" "));
        packages::install(&EMULATOR_PACKAGES, Some(BACKPORTS))?;
    }
    match emulator_version() {
        Some(version) if version >= EMULATOR_VERSION => Ok(()),
        version => bail!("after all that, QEMU is {}", describe(version)),
    }
}

/// Installs what the benches compare with. Services among it are not started: the benches start their own, by themselves.
pub fn install_for_bench() -> Result<()> {
    let missing = missing(&BENCH_PROGRAMS);
    if missing.is_empty() {
        println!("nothing is missing");
        return Ok(());
    }
    require_debian_12(&missing, true)?;
    println!("installing {} (their services are left alone)", missing.join(" "));
    packages::update_lists()?;
    let says_no_already = Path::new(SERVICE_POLICY).exists();
    if !says_no_already {
        let staged = tempfile_with("#!/bin/sh\nexit 101\n")?;
        put(&staged, Path::new(SERVICE_POLICY), "755")?;
    }
    let outcome = packages::install(&missing, None);
    if !says_no_already {
        process::run_command(packages::as_root(["rm", SERVICE_POLICY])?)?;
    }
    outcome
}

fn missing(programs: &[(&str, &'static str)]) -> Vec<&'static str> {
    programs.iter().filter(|(program, _)| !process::is_installed(program)).map(|(_, package)| *package).collect()
}

/// Makes the test guest, so that no test has to be the first.
pub fn guest() -> Result<()> {
    let image = Image::plain()?;
    Image::with_agent()?;
    println!("the guest's kernel and initramfs are in {}", image.kernel.parent().unwrap_or(Path::new("")).display());
    Ok(())
}

fn emulator_version() -> Option<(u32, u32)> {
    parse_version(&process::run(EMULATOR, ["--version"]).ok()?)
}

fn describe(version: Option<(u32, u32)>) -> String {
    version.map_or("not installed".into(), |(major, minor)| format!("version {major}.{minor}"))
}

fn require_debian_12(missing: &[&str], emulator_is_fine: bool) -> Result<()> {
    let distribution = packages::distribution();
    if distribution == "debian 12" {
        return Ok(());
    }
    let mut wanted: Vec<&str> = missing.to_vec();
    if !emulator_is_fine {
        wanted.push("QEMU 8.0 or later (qemu-system-x86_64, qemu-img, qemu-storage-daemon)");
    }
    bail!(
        "this machine runs {distribution}; on Debian 12 this command installs what is missing, here please do: {}",
        wanted.join(", ")
    )
}

fn add_backports() -> Result<()> {
    if process::run("apt-cache", ["policy"])?.contains(BACKPORTS) {
        return Ok(());
    }
    let (name, text) = backports_source()?;
    let path = PathBuf::from(SOURCES).join(name);
    println!("adding {} (its packages are taken only when asked for)", path.display());
    let staged = tempfile_with(&text)?;
    put(&staged, &path, "644")
}

/// Moves a staged file where only root may write.
fn put(staged: &Path, path: &Path, mode: &str) -> Result<()> {
    let (from, to) = (staged.display().to_string(), path.display().to_string());
    process::run_command(packages::as_root(["install", "-m", mode, &from, &to])?)?;
    fs::remove_file(staged).context("cannot remove the staged file")
}

fn tempfile_with(text: &str) -> Result<PathBuf> {
    let path = std::env::temp_dir().join(format!("setup-staged-{}", std::process::id()));
    fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(path)
}

/// The machine's own source with the suite changed: in the newer form if there is one, else in the one-line form.
fn backports_source() -> Result<(&'static str, String)> {
    let newer = fs::read_to_string(Path::new(SOURCES).join("debian.sources")).unwrap_or_default();
    if let Some(stanza) = backports_stanza(&newer) {
        return Ok(("bookworm-backports.sources", stanza));
    }
    let older = fs::read_to_string("/etc/apt/sources.list").unwrap_or_default();
    let line = backports_line(&older).context("found no source of Debian 12 to copy for its backports")?;
    Ok(("bookworm-backports.list", line))
}

fn backports_stanza(sources: &str) -> Option<String> {
    let names_suite = |stanza: &&str| {
        stanza.lines().any(|l| l.starts_with("Suites:") && l.split_whitespace().any(|w| w == "bookworm"))
    };
    let stanza = sources.split("\n\n").find(names_suite)?;
    let changed =
        stanza.lines().map(|line| if line.starts_with("Suites:") { "Suites: bookworm-backports" } else { line });
    Some(changed.collect::<Vec<_>>().join("\n") + "\n")
}

fn backports_line(sources: &str) -> Option<String> {
    let line =
        sources.lines().find(|line| line.starts_with("deb ") && line.split_whitespace().any(|w| w == "bookworm"))?;
    Some(line.replace(" bookworm ", " bookworm-backports ") + "\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machines_own_source_is_copied_with_another_suite() {
        let sources = "Types: deb\nURIs: http://mirror.example/debian\nSuites: bookworm bookworm-updates\nComponents: main\n\n\
                       Types: deb\nURIs: http://mirror.example/security\nSuites: bookworm-security\nComponents: main\n";
        let stanza = backports_stanza(sources).unwrap();
        assert_eq!(
            stanza,
            "Types: deb\nURIs: http://mirror.example/debian\nSuites: bookworm-backports\nComponents: main\n"
        );
        assert_eq!(backports_stanza("Suites: trixie\n"), None);
    }

    #[test]
    fn a_one_line_source_will_do_too() {
        let sources = "# main\ndeb http://mirror.example/debian bookworm main\ndeb http://mirror.example/security bookworm-security main\n";
        assert_eq!(backports_line(sources).unwrap(), "deb http://mirror.example/debian bookworm-backports main\n");
    }
}
