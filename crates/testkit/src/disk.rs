//! Disk images made on the host, and the judges of images that owe nothing to our own code: `qemu-img check` and `qemu-img compare`.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::process::{output_of, run};

/// The two formats guests' disks have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Format {
    /// Bytes as the guest sees them.
    Raw,
    /// QEMU's own, which can keep dirty bitmaps.
    Qcow2,
}

impl Format {
    /// The name QEMU knows it by.
    pub fn name(self) -> &'static str {
        match self {
            Format::Raw => "raw",
            Format::Qcow2 => "qcow2",
        }
    }
}

/// A file system to put on a new image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileSystem {
    /// ext4, which the guest's kernel has built in.
    Ext4,
    /// XFS; the guest says `load xfs` before it mounts one.
    Xfs,
}

/// Creates an empty image.
pub fn create(path: &Path, format: Format, bytes: u64) -> Result<PathBuf> {
    match format {
        Format::Raw => {
            let file = File::create(path).with_context(|| format!("cannot create {}", path.display()))?;
            file.set_len(bytes).with_context(|| format!("cannot size {}", path.display()))?;
        }
        Format::Qcow2 => {
            let (file, size) = (path.display().to_string(), bytes.to_string());
            run("qemu-img", ["create", "-q", "-f", "qcow2", &file, &size])?;
        }
    }
    Ok(path.to_path_buf())
}

/// Creates an image that holds an empty file system, without mounting anything.
pub fn create_with(file_system: FileSystem, path: &Path, format: Format, bytes: u64) -> Result<PathBuf> {
    let raw = if format == Format::Raw { path.to_path_buf() } else { path.with_extension("making") };
    create(&raw, Format::Raw, bytes)?;
    let file = raw.display().to_string();
    match file_system {
        FileSystem::Ext4 => run("mkfs.ext4", ["-q", "-F", &file])?,
        FileSystem::Xfs => run("mkfs.xfs", ["-q", "-f", &file])?,
    };
    if format == Format::Qcow2 {
        convert(&raw, Format::Raw, path, Format::Qcow2)?;
        std::fs::remove_file(&raw)?;
    }
    Ok(path.to_path_buf())
}

/// Copies an image, with all it is backed by, into a new file.
pub fn convert(from: &Path, from_format: Format, to: &Path, to_format: Format) -> Result<()> {
    let mut command = Command::new("qemu-img");
    command.args(["convert", "-U", "-f", from_format.name(), "-O", to_format.name()]).arg(from).arg(to);
    crate::process::run_command(command).map(drop)
}

/// How two images differ.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Difference {
    /// Byte for byte the same, chains followed.
    None,
    /// `qemu-img` said this.
    At(String),
}

/// Compares what a guest would read from two images, each with its backing chain; both may be open elsewhere.
pub fn compare(a: (&Path, Format), b: (&Path, Format)) -> Result<Difference> {
    let mut command = Command::new("qemu-img");
    command.args(["compare", "-U", "-f", a.1.name(), "-F", b.1.name()]).arg(a.0).arg(b.0);
    let output = output_of(&mut command)?;
    let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).trim().to_string();
    match output.status.code() {
        Some(0) => Ok(Difference::None),
        Some(1) => Ok(Difference::At(said)),
        _ => bail!("cannot compare {} with {}: {said}", a.0.display(), b.0.display()),
    }
}

/// Fails unless two images read the same.
pub fn assert_same(a: (&Path, Format), b: (&Path, Format)) -> Result<()> {
    match compare(a, b)? {
        Difference::None => Ok(()),
        Difference::At(said) => bail!("{} and {} differ: {said}", a.0.display(), b.0.display()),
    }
}

/// The files of an image's backing chain, as QEMU follows it, top first, each with its format's name.
pub fn chain(path: &Path, format: Format) -> Result<Vec<(PathBuf, String)>> {
    let file = path.display().to_string();
    let info = run("qemu-img", ["info", "-U", "-f", format.name(), "--backing-chain", "--output=json", &file])?;
    let Value::Array(images) = serde_json::from_str(&info)? else { bail!("qemu-img info gave no list") };
    let field = |image: &Value, name: &str| image[name].as_str().map(String::from);
    let layers = images.iter().map(|image| Some((PathBuf::from(field(image, "filename")?), field(image, "format")?)));
    layers.collect::<Option<Vec<_>>>().context("qemu-img info left a name out")
}

/// Runs `qemu-img check` on every qcow2 file of a chain; leaks count as errors too.
pub fn check_chain(path: &Path, format: Format) -> Result<()> {
    for (file, _) in chain(path, format)?.iter().filter(|(_, format)| format == "qcow2") {
        check(file)?;
    }
    Ok(())
}

/// Runs `qemu-img check` on one qcow2 file.
pub fn check(path: &Path) -> Result<()> {
    let mut command = Command::new("qemu-img");
    command.args(["check", "-q", "-U", "-f", "qcow2"]).arg(path);
    let output = output_of(&mut command)?;
    if !output.status.success() {
        let said = [output.stdout, output.stderr].concat();
        bail!("qemu-img check {}: {}", path.display(), String::from_utf8_lossy(&said).trim());
    }
    Ok(())
}
