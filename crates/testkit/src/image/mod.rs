//! The test guest's kernel and initramfs: made on first use, without privileges, and kept.
//!
//! Debian's cloud kernel, busybox, our own workload, four short scripts, and, for guests that freeze their file systems, the QEMU guest
//! agent with the libraries it needs. The root is the initramfs itself, so every disk belongs to the test.

mod cpio;
mod elf;
mod kernel;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::{cache, packages, process};
use cpio::Archive;
use kernel::Kernel;

const INIT: &str = include_str!("init.sh");
const CONSOLE: &str = include_str!("console.sh");
const LOAD: &str = include_str!("load.sh");
const OFF: &str = include_str!("off.sh");

/// Kernel parameters of every guest: what there is to wait for or to mitigate costs an emulated processor the most.
pub const KERNEL_WORDS: &str =
    "console=ttyS0 quiet panic=-1 mitigations=off tsc=reliable no_timer_check random.trust_cpu=on";

/// What a guest is booted from.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Image {
    /// The kernel.
    pub kernel: PathBuf,
    /// The initramfs.
    pub initramfs: PathBuf,
}

impl Image {
    /// The small image.
    pub fn plain() -> Result<Self> {
        let kernel = Kernel::get()?;
        let initramfs = initramfs(&kernel)?;
        Ok(Image { kernel: kernel.image, initramfs })
    }

    /// The image with the guest agent in it.
    pub fn with_agent() -> Result<Self> {
        let Image { kernel, initramfs } = Self::plain()?;
        let agent = agent()?;
        let name = format!("initramfs-agent-{}", cache::key(&initramfs));
        let initramfs = cache::get_or_make(&name, |path| {
            // The kernel unpacks archives that follow each other in one file.
            Ok(fs::write(path, [fs::read(&initramfs)?, fs::read(&agent)?].concat())?)
        })?;
        Ok(Image { kernel, initramfs })
    }

    /// Names this image's contents; part of the name of whatever is derived from it.
    pub fn key(&self) -> String {
        cache::key(self.initramfs.file_name())
    }
}

fn initramfs(kernel: &Kernel) -> Result<PathBuf> {
    let name = format!("initramfs-{}", cache::key((sources()?, INIT, CONSOLE, LOAD, OFF, kernel::GROUPS)));
    cache::get_or_make(&name, |path| {
        let mut archive = Archive::default();
        for directory in ["bin", "dev", "proc", "sys", "tmp", "mnt", "modules", "disk"] {
            archive.directory(directory);
        }
        archive.device("dev/console", 5, 1);
        add_busybox(&mut archive)?;
        archive.program("bin/guest-io", &fs::read(workload()?)?);
        archive.program("init", INIT.as_bytes());
        archive.program("bin/load", LOAD.as_bytes());
        archive.program("bin/off", OFF.as_bytes());
        archive.file("console", CONSOLE.as_bytes());
        add_modules(&mut archive, kernel)?;
        Ok(fs::write(path, archive.finish())?)
    })
}

fn add_busybox(archive: &mut Archive) -> Result<()> {
    let unpacked = cache::get_or_make("busybox", |path| packages::unpack(&["busybox-static"], path))?;
    let busybox = packages::find_file(&unpacked, "busybox")?;
    archive.program("bin/busybox", &fs::read(&busybox)?);
    let applets = process::run(&busybox, ["--list"])?;
    for applet in applets.lines().filter(|&name| name != "busybox") {
        archive.link(&format!("bin/{applet}"), "busybox");
    }
    Ok(())
}

fn add_modules(archive: &mut Archive, kernel: &Kernel) -> Result<()> {
    let mut present = Vec::new();
    for (group, wanted) in kernel::GROUPS {
        let modules = kernel.modules(wanted)?;
        let names: Vec<_> = modules.iter().map(|(name, _)| name.as_str()).collect();
        archive.file(&format!("modules/{group}.list"), names.join("\n").as_bytes());
        for (name, contents) in &modules {
            if !present.contains(name) {
                archive.file(&format!("modules/{name}"), contents);
                present.push(name.clone());
            }
        }
    }
    Ok(())
}

/// The workload's sources, in a fixed order: the initramfs is made anew when they change.
fn sources() -> Result<Vec<(PathBuf, String)>> {
    let dir = workload_dir().join("src");
    let entries = fs::read_dir(&dir).with_context(|| format!("cannot list {}", dir.display()))?;
    let mut paths = entries.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    paths.sort();
    paths
        .into_iter()
        .map(|path| Ok((path.file_name().unwrap_or_default().into(), fs::read_to_string(&path)?)))
        .collect()
}

fn workload_dir() -> PathBuf {
    cache::source_dir().join("crates/guest-io")
}

/// Builds the workload so that it needs no library. A target directory of its own keeps it out of the way of a running cargo.
fn workload() -> Result<PathBuf> {
    let target = cache::dir()?.join("build");
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.args(["build", "--quiet", "--release", "--bin", "guest-io", "--target", TRIPLE, "--target-dir"]);
    command.arg(&target).current_dir(workload_dir());
    command.env("RUSTFLAGS", "-C target-feature=+crt-static").env_remove("CARGO_ENCODED_RUSTFLAGS");
    process::run_command(command)?;
    Ok(target.join(TRIPLE).join("release/guest-io"))
}

/// Named, so that the flags for static linking do not reach build scripts.
const TRIPLE: &str = "x86_64-unknown-linux-gnu";

/// What the guest agent of Debian 12 needs beside itself.
const AGENT_PACKAGES: [&str; 7] =
    ["qemu-guest-agent", "libglib2.0-0", "libnuma1", "libudev1", "liburing2", "libpcre2-8-0", "libc6"];

fn agent() -> Result<PathBuf> {
    cache::get_or_make("agent.cpio", |path| {
        let root = tempfile::tempdir()?;
        packages::unpack(&AGENT_PACKAGES, root.path())?;
        fs::write(path, agent_archive(root.path())?)?;
        Ok(())
    })
}

fn agent_archive(root: &Path) -> Result<Vec<u8>> {
    let program = packages::find_file(root, "qemu-ga")?;
    let mut archive = Archive::default();
    for directory in ["bin", "lib64", "lib", "lib/x86_64-linux-gnu", "var", "var/run"] {
        archive.directory(directory);
    }
    archive.program("bin/qemu-ga", &fs::read(&program)?);
    let loader = packages::find_file(root, "ld-linux-x86-64.so.2")?;
    archive.program("lib64/ld-linux-x86-64.so.2", &fs::read(loader)?);
    for library in libraries(root, &program)? {
        let name = library.file_name().unwrap_or_default().to_string_lossy();
        archive.file(&format!("lib/x86_64-linux-gnu/{name}"), &fs::read(&library)?);
    }
    Ok(archive.finish())
}

/// The libraries a program below `root` would load, found below `root` only.
fn libraries(root: &Path, program: &Path) -> Result<Vec<PathBuf>> {
    let mut found: Vec<(String, PathBuf)> = Vec::new();
    let mut left = vec![program.to_path_buf()];
    while let Some(file) = left.pop() {
        for name in elf::needed(&fs::read(&file)?) {
            if name.starts_with("ld-linux") || found.iter().any(|(known, _)| *known == name) {
                continue;
            }
            let path = packages::find_file(root, &name)?;
            left.push(path.clone());
            found.push((name, path));
        }
    }
    Ok(found.into_iter().map(|(_, path)| path).collect())
}
