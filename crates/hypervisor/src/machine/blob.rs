//! Kernels and initial file systems that a VM loads directly: recognised, measured and named by their hash.
//!
//! The path comes from a QEMU that a guest may have taken over, and what it names would end up readable in the replica.
//! So only what has the look of a kernel, or of an initial file system, is ever read as one.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use super::text::BlobName;

/// Largest kernel or initial file system: installers' are the largest, below 200 MiB.
pub const BLOB_MAX: u64 = 512 << 20;

/// Bytes looked at to recognise a file: up to the end of the signature of a Linux boot sector.
const HEAD: usize = 0x206;

/// A file that the definition needs besides disks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Blob {
    /// The hash of its bytes.
    pub name: BlobName,
    /// Where it is on this host.
    pub path: PathBuf,
    /// Its length in bytes.
    pub len: u64,
}

/// Why a file is no blob.
#[derive(Debug, thiserror::Error)]
pub enum BlobError {
    /// It cannot be read.
    #[error("cannot read {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        err: io::Error,
    },
    /// It is not what it should be.
    #[error("{path} is {what}")]
    NotOne {
        /// The file.
        path: PathBuf,
        /// What it is, or is not.
        what: &'static str,
    },
    /// It is another file than the definition names.
    #[error("{path} is not the blob {name}")]
    Other {
        /// The file.
        path: PathBuf,
        /// The blob it should be.
        name: BlobName,
    },
}

/// What a blob is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    Kernel,
    Initrd,
}

impl Role {
    fn fits(self, head: &[u8]) -> bool {
        match self {
            // A Linux boot sector, an ELF file (PVH), a PE file (EFI).
            Role::Kernel => head.get(0x202..0x206) == Some(b"HdrS") || starts(head, &[b"\x7fELF", b"MZ"]),
            // cpio, and what Linux can unpack it from.
            Role::Initrd => starts(
                head,
                &[
                    b"070701",
                    b"070702",
                    b"\x1f\x8b",
                    b"\x28\xb5\x2f\xfd",
                    b"\xfd7zXZ\0",
                    b"\x02\x21\x4c\x18",
                    b"BZh",
                    b"\x5d\0\0",
                    b"\x89LZO",
                ],
            ),
        }
    }

    fn otherwise(self) -> &'static str {
        match self {
            Role::Kernel => "no kernel",
            Role::Initrd => "no initial file system",
        }
    }
}

fn starts(head: &[u8], signatures: &[&[u8]]) -> bool {
    signatures.iter().any(|signature| head.starts_with(signature))
}

/// Reads and names the file at `path`. Blocking.
pub(super) fn measure(path: &Path, role: Role) -> Result<Blob, BlobError> {
    let failed = |err| BlobError::Read { path: path.to_owned(), err };
    let refuse = |what| BlobError::NotOne { path: path.to_owned(), what };
    // Looked at before it is opened: opening a FIFO would wait, opening a device may do anything.
    if !std::fs::metadata(path).map_err(failed)?.is_file() {
        return Err(refuse("no regular file"));
    }
    let mut file = File::open(path).map_err(failed)?.take(BLOB_MAX + 1);
    let mut head = Vec::with_capacity(HEAD);
    (&mut file).take(HEAD as u64).read_to_end(&mut head).map_err(failed)?;
    if !role.fits(&head) {
        return Err(refuse(role.otherwise()));
    }
    let mut hasher = blake3::Hasher::new();
    hasher.update(&head).update_reader(&mut file).map_err(failed)?;
    match hasher.count() {
        len if len > BLOB_MAX => Err(refuse("too large")),
        len => Ok(Blob { name: BlobName::of(&hasher.finalize()), path: path.to_owned(), len }),
    }
}

/// Checks that the file at `path` is the blob `name`. Blocking.
pub(super) fn verify(path: &Path, name: &BlobName, role: Role) -> Result<(), BlobError> {
    match measure(path, role)?.name == *name {
        true => Ok(()),
        false => Err(BlobError::Other { path: path.to_owned(), name: name.clone() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_looks_like_a_kernel_is_read_as_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        std::fs::write(&path, "root:$y$j9T$...:19000:0:99999:7:::\n").unwrap();
        for role in [Role::Kernel, Role::Initrd] {
            assert!(matches!(measure(&path, role), Err(BlobError::NotOne { .. })));
            assert!(matches!(measure(dir.path(), role), Err(BlobError::NotOne { what: "no regular file", .. })));
            assert!(matches!(measure(&dir.path().join("none"), role), Err(BlobError::Read { .. })));
        }
        assert!(matches!(measure(Path::new("/dev/zero"), Role::Initrd), Err(BlobError::NotOne { .. })));

        let mut kernel = vec![0; 100_000];
        kernel[0x202..0x206].copy_from_slice(b"HdrS");
        std::fs::write(&path, &kernel).unwrap();
        let blob = measure(&path, Role::Kernel).unwrap();
        assert_eq!((blob.name.as_str(), blob.len), (blake3::hash(&kernel).to_hex().as_str(), 100_000));
        verify(&path, &blob.name, Role::Kernel).unwrap();
        kernel[99_999] = 1;
        std::fs::write(&path, &kernel).unwrap();
        assert!(matches!(verify(&path, &blob.name, Role::Kernel), Err(BlobError::Other { .. })));
    }
}
