//! The VM's definition at a cut: text or bytes that only a hypervisor driver reads, and the blobs it refers to (a boot
//! kernel, firmware variables). Definitions that did not change are kept once; blobs are named by their hash.

use std::sync::Arc;

use understudy_model::ErrorKind;

use super::VmStore;
use crate::error::{At, ChangeError, FileError};
use crate::files::{Access, FileRef, read_exact_at, write_all_at};
use crate::manifest::{BLOBS_MAX, DefinitionRecord, Manifest};
use crate::paths::{self, FileNumber};

/// Longest definition: domain descriptions run to tens of KiB.
pub const DEFINITION_MAX: usize = 1 << 20;
/// Longest blob: an initial RAM disk with everything in it.
pub const BLOB_MAX: u64 = 1 << 30;

/// A VM's definition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Definition {
    /// What kind of text it is, as the end of its file's name: one to eight lower-case letters or digits.
    pub extension: String,
    /// The definition itself.
    pub bytes: Vec<u8>,
    /// blake3 hashes of the blobs it refers to. They must be here before the cut is sealed.
    pub blobs: Vec<[u8; 32]>,
}

/// Why a definition or blob is not taken or cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum DefinitionError {
    /// Its extension cannot stand in a name.
    #[error("a definition cannot have the extension {extension:?}")]
    Extension {
        /// The extension, cut to a printable length.
        extension: String,
    },
    /// It is too long.
    #[error("{what} of {len} bytes exceeds {max}")]
    TooLong {
        /// What is too long.
        what: &'static str,
        /// Its length.
        len: u64,
        /// The most.
        max: u64,
    },
    /// A blob it refers to has not arrived.
    #[error("blob {} is not here", blake3::Hash::from_bytes(*hash).to_hex())]
    MissingBlob {
        /// The blob's hash.
        hash: [u8; 32],
    },
    /// What arrived is not what its hash says.
    #[error("a blob does not have its hash")]
    WrongHash,
    /// The same definition was kept when this one arrived and was dropped before it could be recorded.
    #[error("the definition was dropped meanwhile")]
    Dropped,
    /// What is kept is no longer what it was.
    #[error("the definition or blob {path} is damaged")]
    Damaged {
        /// Its file.
        path: String,
    },
    /// A file could not be used.
    #[error("cannot keep a definition")]
    File(#[from] FileError),
    /// The replica takes nothing.
    #[error("cannot take a definition")]
    Change(#[from] ChangeError),
}

impl DefinitionError {
    /// What the caller does next.
    pub fn kind(&self) -> ErrorKind {
        match self {
            DefinitionError::WrongHash | DefinitionError::Dropped | DefinitionError::MissingBlob { .. } => {
                ErrorKind::Retry
            }
            DefinitionError::Damaged { .. } => ErrorKind::Corrupt,
            DefinitionError::File(err) => err.kind(),
            DefinitionError::Change(err) => err.kind(),
            _ => ErrorKind::Refused,
        }
    }
}

/// A definition that is kept, or is about to be.
pub(crate) struct Placed {
    pub(crate) record: DefinitionRecord,
    /// Its file, if it was made just now.
    pub(crate) made: Option<String>,
}

impl VmStore {
    /// Keeps a definition under a durable name, or finds the same one already kept.
    pub(crate) fn place_definition(&self, definition: &Definition) -> Result<Placed, DefinitionError> {
        check(definition)?;
        let manifest = self.manifest();
        if let Some(record) = find(&manifest, definition) {
            return Ok(Placed { record: record.clone(), made: None });
        }
        self.check_blobs(&definition.blobs)?;
        let number = self.next_number();
        let path = paths::definition(number, &definition.extension);
        let made = self.write_new(number, &definition.bytes, &path);
        made.inspect_err(|_| self.discard(&[paths::staged_other(number)]))?;
        let record = DefinitionRecord {
            number,
            extension: definition.extension.clone(),
            len: definition.bytes.len() as u64,
            hash: *blake3::hash(&definition.bytes).as_bytes(),
            blobs: definition.blobs.clone(),
        };
        Ok(Placed { record, made: Some(path) })
    }

    fn write_new(&self, number: FileNumber, bytes: &[u8], path: &str) -> Result<(), FileError> {
        let staged = paths::staged_other(number);
        let file = self.place.create_anew(&staged)?;
        let written = write_all_at(&*file, 0, bytes).at("write", &self.place.path(&staged));
        written.map_err(|err| self.judge(err))?;
        self.settle(&file, &staged, path)
    }

    /// Syncs a staged file and gives it its durable name.
    fn settle(&self, file: &FileRef, staged: &str, path: &str) -> Result<(), FileError> {
        self.place.sync(file, staged).map_err(|err| self.judge(err))?;
        self.place.rename(staged, path)?;
        self.place.sync_dir(crate::files::parent(path)).map_err(|err| self.judge(err))
    }

    pub(crate) fn check_blobs(&self, hashes: &[[u8; 32]]) -> Result<(), DefinitionError> {
        for hash in hashes {
            if !self.has_blob(hash)? {
                return Err(DefinitionError::MissingBlob { hash: *hash });
            }
        }
        Ok(())
    }

    /// Whether a blob is here.
    pub fn has_blob(&self, hash: &[u8; 32]) -> Result<bool, FileError> {
        Ok(self.place.open_if_there(&paths::blob(hash), Access::Read)?.is_some())
    }

    /// Begins taking a blob of this hash and length.
    pub fn begin_blob(self: &Arc<Self>, hash: [u8; 32], len: u64) -> Result<BlobReceiver, DefinitionError> {
        self.check_going()?;
        if len > BLOB_MAX {
            return Err(DefinitionError::TooLong { what: "a blob", len, max: BLOB_MAX });
        }
        let staged = paths::staged_other(self.next_number());
        let file = self.place.create_anew(&staged)?;
        Ok(BlobReceiver { vm: self.clone(), hash, len, staged, file, at: 0, hasher: blake3::Hasher::new() })
    }

    /// Where an outsider finds a blob.
    pub fn blob_path(&self, hash: &[u8; 32]) -> std::path::PathBuf {
        self.place.outside(&paths::blob(hash))
    }

    /// A blob's bytes, checked.
    pub fn blob(&self, hash: &[u8; 32]) -> Result<Vec<u8>, DefinitionError> {
        let path = paths::blob(hash);
        let file = self.place.open_if_there(&path, Access::Read)?;
        let file = file.ok_or(DefinitionError::MissingBlob { hash: *hash })?;
        self.read_checked(&file, &path, hash, BLOB_MAX)
    }

    pub(crate) fn read_definition(&self, record: &DefinitionRecord) -> Result<Definition, DefinitionError> {
        let path = paths::definition(record.number, &record.extension);
        let file = self.place.open(&path, Access::Read)?;
        let bytes = self.read_checked(&file, &path, &record.hash, DEFINITION_MAX as u64)?;
        Ok(Definition { extension: record.extension.clone(), bytes, blobs: record.blobs.clone() })
    }

    pub(crate) fn read_checked(
        &self,
        file: &FileRef,
        path: &str,
        hash: &[u8; 32],
        max: u64,
    ) -> Result<Vec<u8>, DefinitionError> {
        let damaged = || DefinitionError::Damaged { path: self.place.path(path) };
        let len = self.place.len(file, path)?;
        if len > max {
            return Err(damaged());
        }
        let mut bytes = vec![0; len as usize];
        read_exact_at(&**file, 0, &mut bytes).at("read", &self.place.path(path))?;
        if blake3::hash(&bytes).as_bytes() == hash { Ok(bytes) } else { Err(damaged()) }
    }
}

fn check(definition: &Definition) -> Result<(), DefinitionError> {
    if !paths::is_extension(&definition.extension) {
        return Err(DefinitionError::Extension { extension: definition.extension.chars().take(20).collect() });
    }
    let too_long = |what, len, max| DefinitionError::TooLong { what, len: len as u64, max: max as u64 };
    if definition.bytes.len() > DEFINITION_MAX {
        return Err(too_long("a definition", definition.bytes.len(), DEFINITION_MAX));
    }
    if definition.blobs.len() > BLOBS_MAX {
        return Err(too_long("a definition's list of blobs", definition.blobs.len(), BLOBS_MAX));
    }
    Ok(())
}

/// The same definition, if it is kept already.
pub(crate) fn find<'a>(manifest: &'a Manifest, definition: &Definition) -> Option<&'a DefinitionRecord> {
    let hash = *blake3::hash(&definition.bytes).as_bytes();
    manifest
        .definitions
        .iter()
        .find(|d| d.hash == hash && d.extension == definition.extension && d.blobs == definition.blobs)
}

/// A blob being received. Dropping it gives it up.
pub struct BlobReceiver {
    vm: Arc<VmStore>,
    hash: [u8; 32],
    len: u64,
    staged: String,
    file: FileRef,
    at: u64,
    hasher: blake3::Hasher,
}

impl BlobReceiver {
    /// Takes the next bytes.
    pub fn push(&mut self, bytes: &[u8]) -> Result<(), DefinitionError> {
        let len = self.at + bytes.len() as u64;
        if len > self.len {
            return Err(DefinitionError::TooLong { what: "a blob", len, max: self.len });
        }
        let written = write_all_at(&*self.file, self.at, bytes).at("write", &self.vm.place.path(&self.staged));
        written.map_err(|err| self.vm.judge(err))?;
        self.hasher.update(bytes);
        self.at = len;
        Ok(())
    }

    /// Checks the hash and makes the blob durable. It stays only if a definition sealed before the next opening
    /// refers to it.
    pub fn finish(self) -> Result<(), DefinitionError> {
        if self.at != self.len || *self.hasher.finalize().as_bytes() != self.hash {
            return Err(DefinitionError::WrongHash);
        }
        Ok(self.vm.settle(&self.file, &self.staged, &paths::blob(&self.hash))?)
    }
}

impl Drop for BlobReceiver {
    fn drop(&mut self) {
        self.vm.discard(std::slice::from_ref(&self.staged));
    }
}
