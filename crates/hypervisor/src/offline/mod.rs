//! Reads the images of a VM that is off: what changed since some cut, and the data.
//!
//! `qemu-storage-daemon` opens them, in the formats the caller says and never in guessed ones, read-only and without any
//! lock, so that whoever wants to start the VM can do so at any time. That is noticed: the files' stamps are taken
//! before the first byte is read and compared when the reader is done, and if one differs, everything read is void.
//!
//! | what | from |
//! |---|---|
//! | which bitmaps an image has, and its stamp | [`inspect`]: the image's own header, nothing else opened |
//! | what changed | the union of the bitmaps the caller names, or nothing if the stamp is that of the last cut |
//! | data | NBD, many reads at once |
//!
//! Invariant: nothing read counts before [`StoppedDisks::ensure_unchanged`] has answered `Ok` after the last read.

mod header;
mod image;
mod server;

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use serde_json::json;
use tokio::time::sleep;
use understudy_model::{DiskId, ErrorKind, Extent, ExtentSet};

use self::image::Chain;
use self::server::Server;
use crate::driver::{Content, DiskReader, Error as DriverError, ImageFormat, ImageStamp, LostTracking};
use crate::nbd::{ALLOCATION_CONTEXT, Client, DirtyBounds, NbdError, Options};

pub use self::header::{HeaderError, StoredBitmap};
pub use self::image::{ImageError, ImageFacts, inspect};

/// How a change may hide behind the one before it: file systems stamp with a clock that ticks every 1 to 10 ms.
const TICK: Duration = Duration::from_millis(20);
/// How often an image may turn out to have been changed just now.
const SETTLE_TRIES: usize = 50;
/// How much a map may take in memory, 16 MiB; coarser granules are never wrong here.
const BOUNDS: DirtyBounds = DirtyBounds { extents_max: 1 << 20, granule_max: 1 << 30 };

/// One disk to be read.
#[derive(Debug, Clone)]
pub struct StoppedDisk {
    /// The disk.
    pub disk: DiskId,
    /// Its durable key, for messages.
    pub key: String,
    /// Its image's absolute path.
    pub path: PathBuf,
    /// In which format it is opened, whatever it looks like.
    pub format: ImageFormat,
    /// The bitmaps whose union is what changed. With none, what changed is not known.
    pub maps: Vec<String>,
    /// The stamp at the cut since which changes count, if the VM was off then as well. If it is still that, nothing
    /// changed, whatever the bitmaps say.
    pub unchanged_at: Option<ImageStamp>,
}

/// Why images could not be read.
#[derive(Debug, thiserror::Error)]
pub enum OfflineError {
    /// An image is not one that is read.
    #[error("cannot read disk {key}")]
    Image {
        /// The disk's durable key.
        key: String,
        /// What is wrong.
        #[source]
        err: ImageError,
    },
    /// A bitmap that should be there is not, or cannot be trusted.
    #[error("bitmap {name:?} of disk {key} {why}")]
    Map {
        /// The disk's durable key.
        key: String,
        /// The bitmap.
        name: String,
        /// Why it does not count.
        why: &'static str,
        /// The same, for the driver's caller.
        lost: LostTracking,
    },
    /// An image was changed while it was read: the VM was started, or somebody wrote to it.
    #[error("{path} was changed while it was read")]
    Changed {
        /// The file.
        path: PathBuf,
    },
    /// The storage daemon did not come up, or ended.
    #[error("qemu-storage-daemon: {0}")]
    Server(String),
    /// It was up, and did not serve what it should.
    #[error("cannot read {export} through qemu-storage-daemon")]
    Nbd {
        /// The export.
        export: String,
        /// Why not.
        #[source]
        err: NbdError,
    },
    /// The host's file system is in the way.
    #[error("cannot {what}")]
    Host {
        /// What was being done.
        what: String,
        /// Why it failed.
        #[source]
        err: io::Error,
    },
    /// The request makes no sense.
    #[error("bad request: {0}")]
    Misuse(String),
}

impl OfflineError {
    /// What the caller does next.
    pub fn kind(&self) -> ErrorKind {
        match self {
            OfflineError::Image { .. } | OfflineError::Host { .. } => ErrorKind::Operator,
            OfflineError::Map { .. } => ErrorKind::Resync,
            OfflineError::Changed { .. } | OfflineError::Server(_) => ErrorKind::Retry,
            OfflineError::Nbd { err, .. } => err.kind(),
            OfflineError::Misuse(_) => ErrorKind::Bug,
        }
    }
}

impl From<OfflineError> for DriverError {
    fn from(err: OfflineError) -> Self {
        match err {
            OfflineError::Map { key, lost, .. } => DriverError::tracking(key, lost),
            OfflineError::Changed { .. } => DriverError::CutEnded(err.to_string()),
            OfflineError::Misuse(what) => DriverError::Misuse(what),
            OfflineError::Server(_) | OfflineError::Nbd { .. } => {
                DriverError::Unreachable { what: "read the images of a VM that is off".to_owned(), source: err.into() }
            }
            OfflineError::Image { .. } | OfflineError::Host { .. } => {
                DriverError::host("read the images of a VM that is off", err)
            }
        }
    }
}

/// The disks of a VM that is off, open for reading.
pub struct StoppedDisks {
    server: Server,
    disks: Vec<OpenDisk>,
}

struct OpenDisk {
    disk: DiskId,
    chain: Chain,
    dirty: Option<ExtentSet>,
    reader: StoppedReader,
}

impl StoppedDisks {
    /// Opens the disks with the `qemu-storage-daemon` at `program` (absolute), in `directory`, which is theirs alone for as
    /// long, and ends what an earlier life of ours left there.
    pub async fn open(program: &Path, directory: &Path, disks: &[StoppedDisk]) -> Result<Self, OfflineError> {
        let mut chains = Vec::new();
        for disk in disks {
            let chain = settled(disk).await?;
            check_maps(disk, &chain)?;
            chains.push(chain);
        }
        let mut nodes = Vec::new();
        let mut exports = Vec::new();
        for (disk, chain) in disks.iter().zip(&chains) {
            let name = disk.disk.to_string();
            nodes.extend(chain.nodes(&name).map_err(|err| OfflineError::Image { key: disk.key.clone(), err })?);
            let maps = wanted_maps(disk, chain);
            exports.push(json!({ "type": "nbd", "id": name, "node-name": name, "name": name, "bitmaps": maps }));
        }
        let mut server = Server::start(program, directory, nodes, exports).await?;
        let mut open = Vec::new();
        for (disk, chain) in disks.iter().zip(chains) {
            let dirty = dirty(&mut server, disk, &chain).await?;
            let options = Options::new(disk.disk.to_string()).context(ALLOCATION_CONTEXT);
            let reader = StoppedReader { client: server.connect(&options).await?, key: disk.key.clone() };
            open.push(OpenDisk { disk: disk.disk, chain, dirty, reader });
        }
        Ok(Self { server, disks: open })
    }

    fn disk(&self, disk: DiskId) -> Option<&OpenDisk> {
        self.disks.iter().find(|open| open.disk == disk)
    }

    /// What changed on this disk; `None` if that is not known, or there is no such disk.
    pub fn dirty(&self, disk: DiskId) -> Option<&ExtentSet> {
        self.disk(disk)?.dirty.as_ref()
    }

    /// Reads this disk.
    pub fn reader(&self, disk: DiskId) -> Option<&StoppedReader> {
        Some(&self.disk(disk)?.reader)
    }

    /// The state of this disk's image before anything was read: what to hand in as [`StoppedDisk::unchanged_at`] next
    /// time, if what was read is acknowledged.
    pub fn stamp(&self, disk: DiskId) -> Option<ImageStamp> {
        Some(self.disk(disk)?.chain.stamp())
    }

    /// Proves that no image was changed since it was opened, so that everything read before this call belongs together.
    pub async fn ensure_unchanged(&self) -> Result<(), OfflineError> {
        let chains: Vec<Chain> = self.disks.iter().map(|open| open.chain.clone()).collect();
        let changed = tokio::task::spawn_blocking(move || chains.iter().find_map(Chain::changed)).await;
        match changed.expect("looking at files does not panic") {
            Some(path) => Err(OfflineError::Changed { path }),
            None => Ok(()),
        }
    }

    /// Closes everything. Dropping does so as well, and leaves its traces to the next [`StoppedDisks::open`].
    pub async fn close(self) {
        for open in self.disks {
            open.reader.client.disconnect().await;
        }
        self.server.stop().await;
    }
}

/// Reads one disk of a VM that is off.
#[derive(Debug)]
pub struct StoppedReader {
    client: Client,
    key: String,
}

impl StoppedReader {
    fn failed(&self, extent: Extent, err: NbdError) -> DriverError {
        DriverError::Read { disk: self.key.clone(), extent, source: err.into() }
    }
}

#[async_trait]
impl DiskReader for StoppedReader {
    fn size(&self) -> u64 {
        self.client.export().size
    }

    async fn status(&self, extent: Extent) -> Result<Vec<(Extent, Content)>, DriverError> {
        self.client.allocation(extent).await.map_err(|err| self.failed(extent, err))
    }

    async fn read(&self, extent: Extent) -> Result<Bytes, DriverError> {
        self.client.read(extent).await.map_err(|err| self.failed(extent, err))
    }
}

/// The image's chain, once its last change is so old that the next one would show in the stamps.
async fn settled(disk: &StoppedDisk) -> Result<Chain, OfflineError> {
    for _ in 0..SETTLE_TRIES {
        let (path, format) = (disk.path.clone(), disk.format);
        let found = tokio::task::spawn_blocking(move || Chain::find(&path, format)).await;
        let chain = found.expect("looking at files does not panic");
        let chain = chain.map_err(|err| OfflineError::Image { key: disk.key.clone(), err })?;
        match chain.settles_in(TICK) {
            Duration::ZERO => return Ok(chain),
            wait => sleep(wait).await,
        }
    }
    Err(OfflineError::Changed { path: disk.path.clone() })
}

/// Whether the disk is as it was at the cut since which changes count.
fn is_unchanged(disk: &StoppedDisk, chain: &Chain) -> bool {
    disk.unchanged_at == Some(chain.stamp())
}

/// The bitmaps to be read: none where the stamp says it all.
fn wanted_maps<'a>(disk: &'a StoppedDisk, chain: &Chain) -> &'a [String] {
    if is_unchanged(disk, chain) { &[] } else { &disk.maps }
}

fn check_maps(disk: &StoppedDisk, chain: &Chain) -> Result<(), OfflineError> {
    for name in wanted_maps(disk, chain) {
        let lost = |why, lost| OfflineError::Map { key: disk.key.clone(), name: name.clone(), why, lost };
        match chain.bitmaps().iter().find(|bitmap| bitmap.name == *name) {
            None => return Err(lost("is not in its image", LostTracking::Missing)),
            Some(bitmap) if bitmap.inconsistent => {
                let number = crate::driver::MapOwner::parse(name).map(|(_, number)| number).unwrap_or_default();
                let why = "is inconsistent: its image was not closed in good order";
                return Err(lost(why, LostTracking::Inconsistent { number }));
            }
            Some(_) => {}
        }
    }
    Ok(())
}

async fn dirty(server: &mut Server, disk: &StoppedDisk, chain: &Chain) -> Result<Option<ExtentSet>, OfflineError> {
    if is_unchanged(disk, chain) {
        return Ok(Some(ExtentSet::new()));
    }
    if disk.maps.is_empty() {
        return Ok(None);
    }
    // A connection of its own, so that the bitmaps are not asked for again with every look at the allocation.
    let name = disk.disk.to_string();
    let options = disk.maps.iter().fold(Options::new(&name), |options, map| options.bitmap(map));
    let client = server.connect(&options).await?;
    let dirty = client.dirty(BOUNDS).await.map_err(|err| OfflineError::Nbd { export: name, err });
    client.disconnect().await;
    dirty.map(Some)
}
