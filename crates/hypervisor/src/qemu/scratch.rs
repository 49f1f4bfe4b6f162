//! Scratch files: where the filter keeps what the guest overwrites while a cut is open.
//!
//! Sparse, as long as the disk, and gone with the cut. What they really take is watched by whoever holds the cut; if the
//! file system under them runs full all the same, the filter ends the cut and the guest's write goes through.

use std::fs::{File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{Gid, Uid, fchown};
use serde_json::json;
use understudy_model::DiskId;

use super::names::Part;
use crate::driver::{Error, Result};
use crate::qmp::{Command, Peer};

/// A scratch file in use. Dropping it unlinks it; its space is free once QEMU has closed it too.
#[derive(Debug)]
pub struct Scratch {
    path: PathBuf,
    file: File,
}

impl Scratch {
    /// A fresh file for `disk` that QEMU may write to.
    pub fn create(directory: &Path, disk: DiskId, size: u64, peer: Peer) -> Result<Self> {
        let path = path(directory, disk);
        let failed = |err: io::Error| Error::host(format!("make the scratch file {}", path.display()), err);
        remove_if_there(&path).map_err(failed)?;
        let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&path);
        let scratch = Self { file: file.map_err(failed)?, path: path.clone() };
        scratch.file.set_len(size).map_err(failed)?;
        give_to(&scratch.file, peer).map_err(failed)?;
        Ok(scratch)
    }

    /// Bytes it takes on its file system now.
    pub fn taken(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.blocks() * 512)
    }

    /// Makes it a block node.
    pub fn add(&self, disk: DiskId) -> Command {
        Command::new(
            "blockdev-add",
            json!({
                "driver": "file", "node-name": Part::Scratch.name(disk), "filename": self.path, "discard": "unmap",
            }),
        )
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(err) = remove_if_there(&self.path) {
            tracing::warn!(path = %self.path.display(), %err, "a scratch file stays behind");
        }
    }
}

/// Makes a directory of ours, if it is not there, that QEMU's user may use; answers its absolute path.
pub fn prepare_directory(directory: &Path, peer: Peer) -> Result<PathBuf> {
    let failed = |err: io::Error| Error::host(format!("prepare the directory {}", directory.display()), err);
    std::fs::create_dir_all(directory).map_err(failed)?;
    let opened = File::open(directory).map_err(failed)?;
    let metadata = opened.metadata().map_err(failed)?;
    if metadata.uid() != peer.uid {
        give_to(&opened, peer).map_err(failed)?;
        opened.set_permissions(Permissions::from_mode(0o700)).map_err(failed)?;
    }
    directory.canonicalize().map_err(failed)
}

/// Unlinks the scratch files that an earlier life of ours left. Nothing of ours may be in the QEMU any more.
pub fn sweep(directory: &Path) -> io::Result<()> {
    let entries = match std::fs::read_dir(directory) {
        Err(err) if err.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        if entry.file_name().to_str().is_some_and(is_ours) {
            remove_if_there(&entry.path())?;
        }
    }
    Ok(())
}

fn path(directory: &Path, disk: DiskId) -> PathBuf {
    directory.join(format!("{disk}.scratch"))
}

fn is_ours(name: &str) -> bool {
    name.strip_suffix(".scratch").is_some_and(|stem| stem.parse::<DiskId>().is_ok())
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(err) if err.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Gives a file to the user QEMU runs as, if that is not its owner already.
fn give_to(file: &File, peer: Peer) -> io::Result<()> {
    if file.metadata()?.uid() == peer.uid {
        return Ok(());
    }
    Ok(fchown(file, Some(Uid::from_raw(peer.uid)), Some(Gid::from_raw(peer.gid)))?)
}
