//! A definition as text: reading it from somebody we need not trust, and writing it.

use serde::Deserialize;
use understudy_model::ErrorKind;

use super::definition::{Definition, FORMAT, VERSION};

/// Longest document: far above any VM with 256 disks, far below what could hurt.
pub const DOCUMENT_MAX: usize = 256 << 10;

/// Why a document is no definition.
#[derive(Debug, thiserror::Error)]
pub enum DocumentError {
    /// A libvirt domain, as `virsh dumpxml` writes it.
    #[error(
        "this is a libvirt domain in XML, which is not supported: \
         give no definition, so that it is derived from the running VM, or write one in JSON"
    )]
    Libvirt,
    /// Something else.
    #[error("not a VM definition: {0}")]
    Malformed(String),
    /// One of ours, but of another version of the program.
    #[error("VM definition of version {found}, and this program reads version {VERSION}")]
    Version {
        /// The document's version.
        found: u64,
    },
}

impl DocumentError {
    /// What the caller does next.
    pub fn kind(&self) -> ErrorKind {
        ErrorKind::Refused
    }
}

/// The part that every version has.
#[derive(Deserialize)]
struct Head {
    format: Option<String>,
    version: Option<u64>,
}

impl Definition {
    /// Reads a definition. Everything in it has been checked when this returns, except what only the local QEMU knows
    /// (see [`super::LocalQemu::lacks`]).
    pub fn from_json(text: &[u8]) -> Result<Self, DocumentError> {
        let malformed = |why: String| DocumentError::Malformed(printable(&why));
        if text.len() > DOCUMENT_MAX {
            return Err(malformed(format!("{} bytes, and at most {DOCUMENT_MAX} are read", text.len())));
        }
        let text = std::str::from_utf8(text).map_err(|_| malformed("not UTF-8 text".to_owned()))?;
        let text = text.trim_start_matches('\u{feff}').trim();
        if text.is_empty() {
            return Err(malformed("it is empty".to_owned()));
        }
        if text.starts_with('<') {
            return Err(xml(text));
        }
        let head: Head = serde_json::from_str(text).map_err(|err| malformed(err.to_string()))?;
        if head.format.as_deref() != Some(FORMAT) {
            return Err(malformed(format!("\"format\" is not {FORMAT:?}")));
        }
        match head.version {
            Some(found) if found == u64::from(VERSION) => {}
            Some(found) => return Err(DocumentError::Version { found }),
            None => return Err(malformed("it has no \"version\"".to_owned())),
        }
        let definition: Definition = serde_json::from_str(text).map_err(|err| malformed(err.to_string()))?;
        definition.check().map_err(malformed)?;
        Ok(definition)
    }

    /// The document, the same bytes for the same definition.
    pub fn to_json(&self) -> Vec<u8> {
        let mut text = serde_json::to_vec_pretty(self).expect("a definition has nothing JSON cannot say");
        text.push(b'\n');
        text
    }

    /// The same checks for a definition that was put together in memory.
    pub fn checked(self) -> Result<Self, DocumentError> {
        self.check().map_err(DocumentError::Malformed)?;
        Ok(self)
    }
}

fn xml(text: &str) -> DocumentError {
    // The root element is not parsed for: an XML declaration, comments and white space may come first.
    match text.contains("<domain") {
        true => DocumentError::Libvirt,
        false => DocumentError::Malformed("it is XML, and no libvirt domain either".to_owned()),
    }
}

/// Foreign text in our errors: on one line and short.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(300).collect()
}
