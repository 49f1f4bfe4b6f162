//! A VM in a QEMU that somebody else started: all that is needed of it is a monitor socket.
//!
//! ```text
//!   guest ─ device ─▶ [filter: copy-before-write] ─▶ disk's node (our maps)      [..] only while a cut is open
//!                          │        ▲
//!                          ▼        └── [snapshot-access] ◀─ [NBD export] ◀─ we read the instant of the cut
//!                      [scratch]
//! ```
//!
//! What a QEMU holds of ours is found by looking (all names begin with [`crate::driver::NAME_PREFIX`]), never by
//! remembering, so a cut that ends well, one that fails half-way and one whose daemon was killed are all cleaned up by
//! the same code (`tidy`). The monitor is held for a few exchanges at a time.
//!
//! Invariant: every map is a superset of what it stands for. The new maps begin *before* the instant of the cut and the
//! old ones end *after* it, so what is written in between is in both.

mod answer;
mod capture;
mod connect;
mod disks;
mod freeze;
mod frozen;
mod graph;
mod idle;
mod images;
mod live;
mod names;
mod scratch;
mod serve;
mod server;
mod tidy;
mod tracking;
mod trim;

use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use tokio::sync::Mutex;
use understudy_model::{CutNumber, DiskSpec};

use crate::driver::{
    CutRequest, Description, DiskReader, Error, FrozenCut, Machine, MapInventory, MapOwner, Power, Result,
};
use crate::guard::GuardClient;
use crate::qmp::{Patience, Version};

/// Oldest QEMU that can freeze a disk without harm to the guest: `on-cbw-error` and `cbw-timeout` came with it.
pub const VERSION_MIN: Version = Version::new(7, 1);

/// Oldest QEMU whose NBD server may serve a disk on an I/O thread. Before, it was not safe against threads: stock 7.2
/// aborts, and the guest with it, when a reader leaves.
pub const IOTHREAD_VERSION_MIN: Version = Version::new(9, 0);

/// How to reach one VM, and where to keep what a cut needs.
#[derive(Debug, Clone)]
pub struct QemuConfig {
    /// The monitor's unix socket.
    pub monitor: PathBuf,
    /// The guest agent's unix socket, if the VM has one.
    pub agent: Option<PathBuf>,
    /// A directory for this VM's sockets alone. QEMU's user must be able to create files in it; it is given to that
    /// user. Short: a socket's path has at most 107 bytes.
    pub runtime_dir: PathBuf,
    /// A directory for this VM's scratch files alone, on a local disk with room for them. QEMU's user must be able to
    /// reach it.
    pub scratch_dir: PathBuf,
    /// Lets the VM run on should we die at the wrong moment.
    pub guard: GuardClient,
    /// Whether the VM may be stopped for the instant of a cut although disks are on I/O threads. A QEMU of 8.2 or later
    /// then now and then loses the interrupt of a request that ends at that instant, and the guest waits for it for
    /// ever: measured with 10.0.2 under emulation, `stop` and `cont` alone hang a guest that writes and syncs once in
    /// 5 to 70 times; without I/O threads, or with 7.2, not once in 400.
    pub allow_iothreads: bool,
    /// How long to wait for the monitor.
    pub patience: Patience,
}

/// One VM. Cheap to make; connects only when asked something.
#[derive(Debug, Clone)]
pub struct QemuMachine {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    config: QemuConfig,
    /// Held by whoever talks to the monitor.
    turn: Mutex<()>,
    /// Held by an open cut until it is out of the QEMU again.
    open_cut: Arc<Mutex<()>>,
}

impl QemuMachine {
    /// The VM that `config` tells how to reach.
    pub fn new(config: QemuConfig) -> Self {
        let shared = Shared { config, turn: Mutex::new(()), open_cut: Arc::default() };
        Self { shared: Arc::new(shared) }
    }
}

#[async_trait]
impl Machine for QemuMachine {
    async fn describe(&self) -> Result<Description> {
        match self.shared.try_monitor().await? {
            Some(mut monitor) => Ok(disks::survey(&mut monitor).await?.description()),
            None => Ok(Description { power: Power::Off, version: None, disks: Vec::new(), left_out: Vec::new() }),
        }
    }

    async fn maps(&self, owner: &MapOwner) -> Result<MapInventory> {
        let mut monitor = self.shared.monitor_to("look at its maps").await?;
        let survey = disks::survey(&mut monitor).await?;
        Ok(MapInventory { disks: survey.disks.iter().map(|disk| disk.maps_of(owner)).collect() })
    }

    async fn begin_tracking(&self, owner: &MapOwner, disks: &[DiskSpec], first: CutNumber) -> Result<()> {
        tracking::begin(&mut *self.shared.monitor_to("begin to track its changes").await?, owner, disks, first).await
    }

    async fn cut(&self, request: CutRequest) -> Result<Box<dyn FrozenCut>> {
        let slot = self.shared.open_cut.clone().try_lock_owned();
        let slot = slot.map_err(|_| Error::Busy("another cut of this VM is open".into()))?;
        let shared = self.shared.clone();
        // In a task of its own: a caller who loses patience must not stop it half-way, least of all between `stop` and
        // `cont`. A finished cut that nobody takes releases itself.
        let task = tokio::spawn(async move { capture::cut(shared, request, slot).await });
        task.await.unwrap_or_else(|err| std::panic::resume_unwind(err.into_panic()))
    }

    async fn drop_maps(&self, owner: &MapOwner, below: CutNumber) -> Result<()> {
        match self.shared.try_monitor().await? {
            Some(mut monitor) => tracking::drop_below(&mut monitor, owner, below).await,
            None => Ok(()),
        }
    }

    async fn fold_maps(&self, owner: &MapOwner) -> Result<()> {
        match self.shared.try_monitor().await? {
            Some(mut monitor) => tracking::fold(&mut monitor, owner).await,
            None => Ok(()),
        }
    }

    async fn end_tracking(&self, owner: &MapOwner) -> Result<()> {
        tracking::end(&mut *self.shared.monitor_to("remove its maps").await?, owner).await
    }

    async fn read_live(&self, disk: &DiskSpec) -> Result<Box<dyn DiskReader>> {
        live::open(self.shared.clone(), disk).await
    }

    async fn tidy(&self, _owner: &MapOwner) -> Result<()> {
        let slot = self.shared.open_cut.try_lock();
        let _slot = slot.map_err(|_| Error::Busy("a cut of this VM is open".into()))?;
        self.shared.tidy_all().await
    }
}
