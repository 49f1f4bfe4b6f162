//! This host's identity: one key, made at the first start, and a certificate signed with it at every start.
//!
//! The key is what other hosts pin, so it is kept for ever; the certificate is only the form in which TLS wants it, and
//! nothing in it but the key means anything.

use std::fs::OpenOptions;
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256, PublicKeyData};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use understudy_model::{ErrorKind, PeerId};

/// Largest key file we look at: a P-256 key in PEM has some 240 bytes.
const KEY_FILE_MAX: u64 = 16 << 10;

/// The name in the certificate. Peers go by the key, so all hosts bear the same one, and nothing leaks.
pub const CERTIFICATE_NAME: &str = "understudy.invalid";

/// This host, as it proves itself to others.
pub struct Identity {
    id: PeerId,
    certificate: CertificateDer<'static>,
    key: PrivatePkcs8KeyDer<'static>,
}

impl std::fmt::Debug for Identity {
    /// The key never reaches a log.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Identity").field("id", &self.id).finish_non_exhaustive()
    }
}

/// Why there is no identity.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The key file cannot be read or written.
    #[error("cannot {doing} the host's key {path}")]
    Io {
        /// What was being done.
        doing: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        err: io::Error,
    },
    /// Others can read the key.
    #[error("the host's key {path} can be read by others (mode {mode:03o}); it may be known to them")]
    Exposed {
        /// The file.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
    /// The file is no key.
    #[error("the host's key {path} cannot be understood")]
    Parse {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        err: rcgen::Error,
    },
    /// The crypto provider failed.
    #[error("cannot make the host's key or certificate")]
    Make(#[source] rcgen::Error),
}

impl IdentityError {
    /// What the caller does next.
    pub fn kind(&self) -> ErrorKind {
        match self {
            IdentityError::Make(_) => ErrorKind::Bug,
            IdentityError::Parse { .. } => ErrorKind::Corrupt,
            _ => ErrorKind::Operator,
        }
    }
}

impl Identity {
    /// The identity whose key lies in the file; made now if there is none. Blocks.
    pub fn open(path: &Path) -> Result<Self, IdentityError> {
        match read(path)? {
            Some(key) => Self::new(key),
            None => {
                let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(IdentityError::Make)?;
                store(path, &key.serialize_pem()).map_err(|err| IdentityError::Io {
                    doing: "store",
                    path: path.to_owned(),
                    err,
                })?;
                Self::new(key)
            }
        }
    }

    /// A fresh identity that is stored nowhere.
    pub fn ephemeral() -> Result<Self, IdentityError> {
        Self::new(KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(IdentityError::Make)?)
    }

    fn new(key: KeyPair) -> Result<Self, IdentityError> {
        let params = CertificateParams::new(vec![CERTIFICATE_NAME.to_owned()]).map_err(IdentityError::Make)?;
        let certificate = params.self_signed(&key).map_err(IdentityError::Make)?.der().clone();
        let id = peer_id(&key.subject_public_key_info());
        Ok(Self { id, certificate, key: PrivatePkcs8KeyDer::from(key.serialize_der()) })
    }

    /// What other hosts know this one by.
    pub fn id(&self) -> PeerId {
        self.id
    }

    /// The certificate to show.
    pub fn certificate(&self) -> CertificateDer<'static> {
        self.certificate.clone()
    }

    /// The key to sign with.
    pub fn key(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::Pkcs8(self.key.clone_key())
    }
}

/// The identity behind a public key (SubjectPublicKeyInfo, DER).
pub fn peer_id(spki: &[u8]) -> PeerId {
    PeerId(*blake3::hash(spki).as_bytes())
}

fn read(path: &Path) -> Result<Option<KeyPair>, IdentityError> {
    let failed = |err| IdentityError::Io { doing: "read", path: path.to_owned(), err };
    let file = match OpenOptions::new().read(true).open(path) {
        Err(err) if err.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other.map_err(failed)?,
    };
    let mode = file.metadata().map_err(failed)?.mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(IdentityError::Exposed { path: path.to_owned(), mode });
    }
    let mut pem = String::new();
    file.take(KEY_FILE_MAX).read_to_string(&mut pem).map_err(failed)?;
    KeyPair::from_pem(&pem).map(Some).map_err(|err| IdentityError::Parse { path: path.to_owned(), err })
}

/// Written beside, synced, then moved into place: a key that was cut short is never mistaken for one.
fn store(path: &Path, pem: &str) -> io::Result<()> {
    let beside = path.with_extension("new");
    match std::fs::remove_file(&beside) {
        Err(err) if err.kind() != io::ErrorKind::NotFound => return Err(err),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&beside)?;
    file.write_all(pem.as_bytes())?;
    file.sync_all()?;
    std::fs::rename(&beside, path)?;
    let dir = path.parent().filter(|d| !d.as_os_str().is_empty()).unwrap_or(Path::new("."));
    std::fs::File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn the_identity_is_the_same_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("host.key");
        let first = Identity::open(&path).unwrap();
        let second = Identity::open(&path).unwrap();
        assert_eq!(first.id(), second.id());
        assert_ne!(first.id(), Identity::ephemeral().unwrap().id());
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "nothing is left beside it");
    }

    #[test]
    fn a_key_that_others_can_read_or_that_is_none_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("host.key");
        Identity::open(&path).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
        assert!(matches!(Identity::open(&path), Err(IdentityError::Exposed { mode: 0o640, .. })));
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        std::fs::write(&path, "-----BEGIN PRIVATE KEY-----\n").unwrap();
        assert!(matches!(Identity::open(&path), Err(IdentityError::Parse { .. })));
        assert!(std::fs::read(&path).unwrap().starts_with(b"-----BEGIN"), "a damaged key is not overwritten");
    }

    #[test]
    fn a_store_that_was_cut_short_does_not_hinder_the_next() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("host.key");
        std::fs::write(dir.path().join("host.new"), "half").unwrap();
        assert!(Identity::open(&path).is_ok());
    }

    #[test]
    fn the_key_is_not_printed() {
        let identity = Identity::ephemeral().unwrap();
        let printed = format!("{identity:?}");
        assert!(printed.len() < 60, "{printed}");
    }
}
