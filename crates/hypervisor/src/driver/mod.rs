//! The contract between replication and a hypervisor: describe a VM, track its writes, freeze its disks at one instant,
//! read them.
//!
//! Terms. A *map* is a dirty bitmap of ours on one disk; map *n* holds (at least) everything written after cut *n*. What
//! the next cycle must carry is the union of all our maps present. That union is complete if and only if the oldest map
//! present has a number not above that of the cut the replica holds ([`DiskMaps::covers`]). Nothing else needs to be
//! remembered, so nothing else can be forgotten in a crash.
//!
//! Invariant: whatever fails, in whatever order, a changed granule stays in some map until [`Machine::drop_maps`] is told
//! that a cut which holds it was acknowledged. And the guest comes first: every call here may fail, none may stop it.

mod error;
mod map;

use std::collections::BTreeMap;
use std::path::PathBuf;

use async_trait::async_trait;
use bytes::Bytes;
use understudy_model::{Consistency, CutNumber, DiskId, DiskSpec, Extent, ExtentSet, Timestamp};

pub use error::{Error, Result};
pub use map::{
    DiskMaps, LostTracking, MAP_BYTES_MAX, MAP_GRANULARITY_MIN, MapInfo, MapInventory, MapOwner, NAME_PREFIX,
    granularity,
};

/// A frozen image serves whole neighbourhoods of this many bytes around each dirty granule, and promises nothing
/// beyond. It is the cluster size QEMU's copy-before-write filter has on a raw scratch file.
pub const NEIGHBOURHOOD: u64 = 64 << 10;

/// One VM of a driver.
///
/// Calls may come at any time and from any task. Those that change something exclude each other inside the driver; a
/// second cut while one is open is refused with [`Error::Busy`]. Dropping a future half-way is like our own death
/// at that place: no harm to the guest, and [`Machine::tidy`] cleans up.
#[async_trait]
pub trait Machine: Send + Sync {
    /// What the VM is and does now. Changes nothing.
    async fn describe(&self) -> Result<Description>;

    /// Our maps, of this owner, on every disk that can be replicated. Changes nothing.
    async fn maps(&self, owner: &MapOwner) -> Result<MapInventory>;

    /// Begins to track the disks, all at one instant: afterwards each has exactly one map of this relationship, empty,
    /// recording, numbered `first`. Maps the relationship had before (of any generation) are removed in the same
    /// instant, so this is called only when everything is going to be copied or compared anyway. May be repeated.
    async fn begin_tracking(&self, owner: &MapOwner, disks: &[DiskSpec], first: CutNumber) -> Result<()>;

    /// Freezes all the disks at one instant and begins map `request.number` for each; if nothing was written since the
    /// base, the maps may go on as they are. Refuses with kind `Resync` when the maps present do not reach back to
    /// `request.base`. A cut that fails may leave the new maps behind, which is
    /// in order: the number is spent, and the union of the maps is as complete as before.
    async fn cut(&self, request: CutRequest) -> Result<Box<dyn FrozenCut>>;

    /// Removes the maps numbered below `below` that no longer record. Called once the replica acknowledged cut `below`,
    /// and not before. May be repeated. With the VM off nothing is removed, and that is no error.
    async fn drop_maps(&self, owner: &MapOwner, below: CutNumber) -> Result<()>;

    /// Merges all maps that no longer record into the oldest of them. Called when cycles were given up, so that their
    /// number stays bounded. May be repeated.
    async fn fold_maps(&self, owner: &MapOwner) -> Result<()>;

    /// Removes every map of this relationship, of any generation up to the owner's. May be repeated.
    async fn end_tracking(&self, owner: &MapOwner) -> Result<()>;

    /// Opens the live disk for the initial copy: what is read is some state the disk had since tracking began. Only the
    /// first cut makes it consistent.
    async fn read_live(&self, disk: &DiskSpec) -> Result<Box<dyn DiskReader>>;

    /// Takes out what an earlier life of ours left in the VM: filters, exports, scratch files, a freeze. Maps stay.
    /// Called when attaching, before anything else. May be repeated.
    async fn tidy(&self, owner: &MapOwner) -> Result<()>;
}

/// The disks of one VM as they were at one instant.
///
/// Must be given back with [`FrozenCut::release`]; dropping it instead releases it in the background where that can be
/// done, and otherwise leaves it for [`Machine::tidy`]. While it is held, the guest's writes to what it serves cost
/// scratch space.
#[async_trait]
pub trait FrozenCut: Send + Sync {
    /// When the disks were frozen, by the wall clock: a label.
    fn taken_at(&self) -> Timestamp;

    /// What was reached. [`Consistency::Standard`] where [`Consistency::Application`] was asked for and the guest did
    /// not play along; [`FrozenCut::shortfall`] then says why.
    fn consistency(&self) -> Consistency;

    /// Why less consistency was reached than asked for.
    fn shortfall(&self) -> Option<&str>;

    /// What this disk's part of the cycle must carry, in whole granules cut off at the disk's size; `None` for a disk
    /// that is not in the cut.
    fn dirty(&self, disk: DiskId) -> Option<&ExtentSet>;

    /// Reads this disk: only the dirty extents and their [`NEIGHBOURHOOD`]s; `None` for a disk that is not in the cut.
    fn reader(&self, disk: DiskId) -> Option<&dyn DiskReader>;

    /// Says that these bytes were read and will not be asked for again, so that their scratch space can be given back.
    /// Best effort.
    async fn done_with(&self, disk: DiskId, extent: Extent);

    /// Proves that the cut was whole until now: everything read before this call was of the instant of the cut.
    ///
    /// **Nothing read may be acknowledged before this has answered `Ok` after the last read.** Scratch that ran full or
    /// hung ends a cut in favour of the guest's writes, and a read that was under way just then may have returned newer
    /// bytes without an error; this call is what tells.
    async fn ensure_intact(&self) -> Result<()>;

    /// The images as they are, to be recorded with the cut when it is acknowledged and handed back in the next
    /// [`CutRequest`]. Bears stamps only if the VM was off.
    fn images(&self) -> &[ImageRecord];

    /// Ends the cut: takes everything out of the VM again and gives the scratch space back. The maps stay.
    async fn release(self: Box<Self>) -> Result<()>;
}

/// Reads one disk. Many calls may be in flight at once; each can be dropped half-way.
#[async_trait]
pub trait DiskReader: Send + Sync {
    /// The disk's size in bytes.
    fn size(&self) -> u64;

    /// Which parts of `extent` read as zeros, without reading them. The answer covers all of `extent`, in order.
    async fn status(&self, extent: Extent) -> Result<Vec<(Extent, Content)>>;

    /// The bytes of `extent`, which is at most [`READ_LEN_MAX`] long and inside the disk. Never zeros in place of what
    /// could not be read.
    async fn read(&self, extent: Extent) -> Result<Bytes>;
}

/// Longest single read. Enough to hide a round trip; small enough that 16 in flight stay a small part of the memory a
/// VM is allowed.
pub const READ_LEN_MAX: u64 = 2 << 20;

/// What a part of a disk holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Content {
    /// Bytes that must be read to be known.
    Data,
    /// Only zeros.
    Zero,
}

/// What to freeze, for whom, and within which bounds.
#[derive(Debug, Clone)]
pub struct CutRequest {
    /// Whose maps are rotated.
    pub owner: MapOwner,
    /// The number of this cut, recorded durably by the caller before the call, never used before.
    pub number: CutNumber,
    /// The cut the replica holds, which the maps must reach back to.
    pub base: CutNumber,
    /// The disks, as the caller knows them. A disk that is missing or has another size is an error, not a surprise.
    pub disks: Vec<DiskSpec>,
    /// What to try for.
    pub consistency: Consistency,
    /// Most scratch space the cut may take, in bytes over all disks. Beyond it the cut ends; the guest goes on.
    pub scratch_limit: u64,
    /// What was known of the images at the base: for a VM that is off, and to notice an image that was put back.
    pub images: Vec<ImageRecord>,
    /// What is to be due beside what the maps hold: what a comparison found to differ. Empty for an ordinary cut.
    pub also: BTreeMap<DiskId, ExtentSet>,
}

impl CutRequest {
    /// What is to be due on this disk beside what the maps hold, if anything.
    pub fn also(&self, disk: DiskId) -> Option<&ExtentSet> {
        self.also.get(&disk).filter(|extents| !extents.is_empty())
    }

    /// Whether more is to be due than the maps hold.
    pub fn has_more(&self) -> bool {
        self.disks.iter().any(|spec| self.also(spec.id).is_some())
    }
}

/// What a VM is and does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Description {
    /// Whether it runs.
    pub power: Power,
    /// The hypervisor's version as (major, minor, patch), when one is running.
    pub version: Option<(u32, u32, u32)>,
    /// The disks that can be replicated. None of a VM that is off: what it had when it was on need not be what it is
    /// started with next.
    pub disks: Vec<DiskInfo>,
    /// What else it has that looks like a disk, each with why it is left out ("cd0: removable").
    pub left_out: Vec<String>,
}

impl Description {
    /// The disk with this durable key.
    pub fn disk(&self, key: &str) -> Option<&DiskInfo> {
        self.disks.iter().find(|d| d.key == key)
    }
}

/// Whether a VM runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Power {
    /// Its processors run.
    Running,
    /// The hypervisor holds it, its processors stand still: paused by somebody, not yet started, shut down but kept.
    Paused,
    /// On its way to or from another host or state; nothing should be asked of it now.
    Unsettled,
    /// No hypervisor process holds it.
    Off,
}

/// One disk that can be replicated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskInfo {
    /// Names the device durably: the same after the VM, the hypervisor and the host were restarted.
    pub key: String,
    /// Size in bytes as the guest sees it.
    pub size: u64,
    /// The image's format.
    pub format: ImageFormat,
    /// The image's file or device on the host, when it is one.
    pub path: Option<PathBuf>,
    /// Whether maps outlive an orderly end of the hypervisor process.
    pub persistent_maps: bool,
    /// The I/O thread the disk is served by, if any.
    pub iothread: Option<String>,
}

/// The format of a disk image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ImageFormat {
    /// The guest's bytes as they are: a file or a block device.
    Raw,
    /// QEMU's own.
    Qcow2,
    /// Another one that the hypervisor knows. Tracked in memory only; unreadable to us when the VM is off.
    Other,
}

impl ImageFormat {
    /// QEMU's name; `None` for those we do not open ourselves.
    pub const fn name(self) -> Option<&'static str> {
        match self {
            ImageFormat::Raw => Some("raw"),
            ImageFormat::Qcow2 => Some("qcow2"),
            ImageFormat::Other => None,
        }
    }
}

/// A disk's image on the host, with what tells whether it was changed behind our back while the VM was off.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageRecord {
    /// The disk.
    pub disk: DiskId,
    /// Where its image lies.
    pub path: PathBuf,
    /// In which format it must be opened, whatever its content looks like.
    pub format: ImageFormat,
    /// Taken with the VM off at the cut this record belongs to; `None` if the VM was not off then.
    pub stamp: Option<ImageStamp>,
    /// The youngest map on the disk after that cut. Should the image bear only older ones later, then an earlier state
    /// of it was put back. `None` where that is not known.
    pub map: Option<CutNumber>,
    /// What the maps in the image held at that cut, if the VM was off then. Off, a cut begins no map; but a later state
    /// of the image holds all of this and an earlier one that differs in what was read does not, for it lacks what was
    /// written in between. `None` where that is not known or would be too much to keep ([`ImageRecord::HELD_MAX`]).
    pub held: Option<ExtentSet>,
}

impl ImageRecord {
    /// Most pieces of [`ImageRecord::held`]: a record of some 100 KiB, written with each cut of a VM that is off.
    pub const HELD_MAX: usize = 4096;
}

/// Tells one state of an image file from another without reading it. Equal stamps mean unchanged, as far as the host's
/// file system tells; what is changed with the times put back is found by the scheduled full comparison only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ImageStamp {
    /// The file system's number.
    pub device: u64,
    /// The file's number in it.
    pub inode: u64,
    /// Length in bytes.
    pub len: u64,
    /// Last change of the content, in nanoseconds since 1970.
    pub modified_ns: i128,
    /// Last change of content or attributes, in nanoseconds since 1970. Unlike the other it cannot be set by hand.
    pub changed_ns: i128,
}
