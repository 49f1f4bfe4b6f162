//! An image with everything below it, as a chain in which every file's name and format is known before QEMU opens any.
//!
//! A linked clone has its data partly in a backing file, so that reference must be followed, but by us: plain files
//! only, each with its format said, and QEMU is given the whole chain and follows nothing by itself.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use super::header::{Header, HeaderError, StoredBitmap};
use crate::driver::{ImageFormat, ImageStamp};

/// Most images in a chain. People keep a few; libvirt refuses beyond 200.
const DEPTH_MAX: usize = 64;

/// Why an image is not read.
#[derive(Debug, thiserror::Error)]
#[error("image {path}: {why}")]
pub struct ImageError {
    /// The image, perhaps one below that which was asked for.
    pub path: PathBuf,
    /// What is wrong with it.
    pub why: String,
    /// What the system said, if it is a matter of that.
    #[source]
    pub source: Option<std::io::Error>,
}

/// One file of a chain.
#[derive(Debug, Clone)]
struct Layer {
    path: PathBuf,
    format: ImageFormat,
    stamp: ImageStamp,
}

/// An image and what is below it, topmost first.
#[derive(Debug, Clone)]
pub(super) struct Chain {
    layers: Vec<Layer>,
    bitmaps: Vec<StoredBitmap>,
}

/// What an image file says of itself, without following anything.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageFacts {
    /// The bitmaps stored in it; none in a raw image.
    pub bitmaps: Vec<StoredBitmap>,
    /// The state it is in.
    pub stamp: ImageStamp,
}

/// Looks at a stopped VM's image. Opens that one file, for reading, without a lock. Blocking.
pub fn inspect(path: &Path, format: ImageFormat) -> Result<ImageFacts, ImageError> {
    let (layer, header) = look(path, format)?;
    Ok(ImageFacts { bitmaps: header.map(|header| header.bitmaps).unwrap_or_default(), stamp: layer.stamp })
}

impl Chain {
    /// Finds the chain of an image. Blocking.
    pub fn find(path: &Path, format: ImageFormat) -> Result<Self, ImageError> {
        let (top, mut header) = look(path, format)?;
        let bitmaps = header.as_mut().map(|header| std::mem::take(&mut header.bitmaps)).unwrap_or_default();
        let mut chain = Self { layers: vec![top], bitmaps };
        while let Some((name, format)) = header.and_then(|header| header.backing) {
            let above = &chain.layers[chain.layers.len() - 1];
            let refuse = |why: &str| refused(&above.path, format!("{why}: {name:?}"));
            let format = match format.as_deref() {
                Some("raw") => ImageFormat::Raw,
                Some("qcow2") => ImageFormat::Qcow2,
                Some(_) => return Err(refuse("its backing file has a format that is not read")),
                None => return Err(refuse("it does not say the format of its backing file")),
            };
            let path = plain(&above.path, &name).ok_or_else(|| refuse("its backing file is no plain file"))?;
            let (layer, next) = look(&path, format)?;
            let is_same =
                |other: &Layer| (other.stamp.device, other.stamp.inode) == (layer.stamp.device, layer.stamp.inode);
            if chain.layers.len() == DEPTH_MAX || chain.layers.iter().any(is_same) {
                return Err(refuse("its backing files have no end"));
            }
            chain.layers.push(layer);
            header = next;
        }
        Ok(chain)
    }

    /// The bitmaps in the topmost image.
    pub fn bitmaps(&self) -> &[StoredBitmap] {
        &self.bitmaps
    }

    /// The state of the topmost image.
    pub fn stamp(&self) -> ImageStamp {
        self.layers[0].stamp
    }

    /// The file that is no longer as it was when the chain was found, if there is one. Blocking.
    pub fn changed(&self) -> Option<PathBuf> {
        let is_as_it_was = |layer: &&Layer| stamp(&layer.path).is_ok_and(|now| now == layer.stamp);
        self.layers.iter().find(|layer| !is_as_it_was(layer)).map(|layer| layer.path.clone())
    }

    /// How long after the last change of any file the next one can bear the same time: file systems take it from a clock
    /// that ticks.
    pub fn settles_in(&self, tick: std::time::Duration) -> std::time::Duration {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_nanos() as i128);
        let latest = self.layers.iter().map(|layer| layer.stamp.modified_ns.max(layer.stamp.changed_ns)).max();
        // A clock that was set back meanwhile does no harm: the next change then bears an earlier time, which differs.
        let age = now - latest.unwrap_or(0);
        let tick_ns = tick.as_nanos() as i128;
        match (0..tick_ns).contains(&age) {
            true => std::time::Duration::from_nanos((tick_ns - age) as u64),
            false => std::time::Duration::ZERO,
        }
    }

    /// The nodes of the chain for QEMU, lowest first; the last one is called `name`. Read-only, sharing with everybody,
    /// without a lock.
    pub fn nodes(&self, name: &str) -> Result<Vec<Value>, ImageError> {
        let mut below = Value::Null;
        let mut nodes = Vec::new();
        for (n, layer) in self.layers.iter().enumerate().rev() {
            let name = if n == 0 { name.to_owned() } else { format!("{name}-{n}") };
            let filename = layer.path.to_str();
            let filename = filename.ok_or_else(|| refused(&layer.path, "its path is not UTF-8".to_owned()))?;
            let mut node = json!({
                "driver": layer.format.name(),
                "node-name": name,
                "read-only": true,
                "force-share": true,
                "file": {
                    "driver": "file", "filename": filename, "read-only": true, "force-share": true, "locking": "off",
                },
            });
            if layer.format == ImageFormat::Qcow2 {
                // Said also where there is none: then QEMU does not look into the header for one.
                node["backing"] = below;
            }
            below = name.into();
            nodes.push(node);
        }
        Ok(nodes)
    }
}

/// The state of a file. Blocking.
pub(super) fn stamp(path: &Path) -> std::io::Result<ImageStamp> {
    std::fs::metadata(path).map(|found| stamp_of(&found))
}

fn stamp_of(found: &std::fs::Metadata) -> ImageStamp {
    let ns = |seconds: i64, ns: i64| i128::from(seconds) * 1_000_000_000 + i128::from(ns);
    ImageStamp {
        device: found.dev(),
        inode: found.ino(),
        len: found.len(),
        modified_ns: ns(found.mtime(), found.mtime_nsec()),
        changed_ns: ns(found.ctime(), found.ctime_nsec()),
    }
}

fn refused(path: &Path, why: String) -> ImageError {
    ImageError { path: path.to_owned(), why, source: None }
}

fn look(path: &Path, format: ImageFormat) -> Result<(Layer, Option<Header>), ImageError> {
    let failed = |err| ImageError { path: path.to_owned(), why: "it cannot be read".to_owned(), source: Some(err) };
    if !path.is_absolute() {
        return Err(refused(path, "its path is not absolute".to_owned()));
    }
    // Looked at before it is opened: opening a FIFO would wait.
    let kind = std::fs::metadata(path).map_err(failed)?.file_type();
    if !kind.is_file() {
        let why = "it is no regular file, and only those tell when they were changed";
        return Err(refused(path, why.to_owned()));
    }
    let file = File::open(path).map_err(failed)?;
    let stamp = stamp_of(&file.metadata().map_err(failed)?);
    let header = match format {
        ImageFormat::Raw => None,
        ImageFormat::Qcow2 => Some(Header::read(&file).map_err(|err| match err {
            HeaderError::Read(err) => failed(err),
            HeaderError::Unfit(why) => refused(path, why.to_owned()),
        })?),
        ImageFormat::Other => return Err(refused(path, "its format is not read".to_owned())),
    };
    Ok((Layer { path: path.to_owned(), format, stamp }, header))
}

/// The path of a backing file named in the image at `above`, if it is a plain one. QEMU takes a colon before the first
/// slash for the end of a protocol's name, `json:` among them.
fn plain(above: &Path, name: &str) -> Option<PathBuf> {
    let first = name.split('/').next().unwrap_or_default();
    if first.contains(':') || name.contains('\0') {
        return None;
    }
    Some(above.parent()?.join(name))
}
