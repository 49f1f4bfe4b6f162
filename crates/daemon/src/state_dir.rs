//! The state directory: what lies where, who may enter, and that only one daemon is in it.
//!
//! ```text
//! lock            held by the running daemon
//! catalogue.db    see `catalogue`
//! host.key        private key of this host, see `link::identity`
//! audit.log       see `audit`
//! understudy.sock the API, unless configured elsewhere
//! storage/        replicas, unless configured elsewhere
//! run/, scratch/  sockets and scratch files of cuts, unless configured elsewhere
//! blobs/, vms/    boot images by hash; VMs started from replicas
//! comparisons/    what resynchronisations under way have found
//! ```
//!
//! Invariant: nothing in here is opened before the lock is held.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use understudy_model::ErrorKind;

/// Permission bits of group and others: none may be set on the directory.
const FOREIGN_BITS: u32 = 0o077;

/// The directory, locked.
#[derive(Debug)]
pub struct StateDir {
    path: PathBuf,
    /// Held for the daemon's life; the kernel gives it back when we die, however we die.
    _lock: File,
}

/// Why the state directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StateDirError {
    /// It cannot be made or looked at.
    #[error("cannot use the state directory {path}")]
    Io {
        /// The directory.
        path: PathBuf,
        /// Why.
        #[source]
        err: io::Error,
    },
    /// Something else bears the name.
    #[error("the state directory {path} is not a directory")]
    NotADirectory {
        /// What was given.
        path: PathBuf,
    },
    /// It belongs to somebody else.
    #[error("the state directory {path} belongs to user {owner}, and this daemon runs as user {own}")]
    Foreign {
        /// The directory.
        path: PathBuf,
        /// Its owner.
        owner: u32,
        /// Who we are.
        own: u32,
    },
    /// Another daemon is in it.
    #[error("another daemon ({holder}) is using the state directory {path}")]
    InUse {
        /// The directory.
        path: PathBuf,
        /// What the other one wrote about itself.
        holder: String,
    },
}

impl StateDirError {
    /// What the caller does next.
    pub fn kind(&self) -> ErrorKind {
        ErrorKind::Operator
    }
}

impl StateDir {
    /// Makes the directory if it is missing, closes it to others, and locks it.
    pub fn open(path: &Path) -> Result<Self, StateDirError> {
        let failed = |err| StateDirError::Io { path: path.to_owned(), err };
        create(path).map_err(failed)?;
        let meta = std::fs::metadata(path).map_err(failed)?;
        if !meta.is_dir() {
            return Err(StateDirError::NotADirectory { path: path.to_owned() });
        }
        let own = rustix::process::geteuid().as_raw();
        if meta.uid() != own {
            return Err(StateDirError::Foreign { path: path.to_owned(), owner: meta.uid(), own });
        }
        if meta.mode() & FOREIGN_BITS != 0 {
            let closed = std::fs::Permissions::from_mode(0o700);
            std::fs::set_permissions(path, closed).map_err(failed)?;
            tracing::info!(path = %path.display(), "state directory was open to others and has been closed");
        }
        let lock = lock(path)?;
        Ok(Self { path: path.to_owned(), _lock: lock })
    }

    /// The directory itself.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The catalogue's file.
    pub fn catalogue(&self) -> PathBuf {
        self.path.join("catalogue.db")
    }

    /// The host's private key.
    pub fn host_key(&self) -> PathBuf {
        self.path.join("host.key")
    }

    /// The audit log.
    pub fn audit(&self) -> PathBuf {
        self.path.join("audit.log")
    }
}

fn create(path: &Path) -> io::Result<()> {
    match DirBuilder::new().recursive(true).mode(0o700).create(path) {
        Err(err) if err.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        other => other,
    }
}

fn lock(dir: &Path) -> Result<File, StateDirError> {
    let failed = |err: io::Error| StateDirError::Io { path: dir.to_owned(), err };
    let mut options = OpenOptions::new();
    let file = options.read(true).write(true).create(true).truncate(false).mode(0o600).open(dir.join("lock"));
    let mut file = file.map_err(failed)?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(rustix::io::Errno::WOULDBLOCK) => {
            return Err(StateDirError::InUse { path: dir.to_owned(), holder: holder(&mut file) });
        }
        Err(errno) => return Err(failed(errno.into())),
    }
    file.set_len(0).map_err(failed)?;
    write!(file, "pid {}", std::process::id()).map_err(failed)?;
    Ok(file)
}

/// What the lock's holder wrote; only for the message, never trusted.
fn holder(file: &mut File) -> String {
    let mut text = String::new();
    let known = file.take(32).read_to_string(&mut text).is_ok() && text.starts_with("pid ");
    if known { text.chars().filter(|c| c.is_ascii_alphanumeric() || *c == ' ').collect() } else { "unknown".to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_daemon_is_refused_and_told_who_has_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/state");
        let first = StateDir::open(&path).unwrap();
        let err = StateDir::open(&path).unwrap_err();
        assert!(err.to_string().contains(&format!("pid {}", std::process::id())), "{err}");
        drop(first);
        assert!(StateDir::open(&path).is_ok(), "the lock goes with its holder");
    }

    #[test]
    fn a_directory_open_to_others_is_closed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state");
        std::fs::create_dir(&path).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        let state = StateDir::open(&path).unwrap();
        assert_eq!(std::fs::metadata(state.path()).unwrap().mode() & 0o777, 0o700);
        assert_eq!(std::fs::metadata(path.join("lock")).unwrap().mode() & 0o777, 0o600);
    }

    #[test]
    fn something_that_is_no_directory_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        std::fs::write(&path, "x").unwrap();
        assert!(matches!(StateDir::open(&path), Err(StateDirError::NotADirectory { .. })));
    }
}
