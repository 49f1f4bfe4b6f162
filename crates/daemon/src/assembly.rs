//! Puts the sides of a host together: the replica store, the VMs, and the owners of relationships that use them.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use understudy_hypervisor::guard::GuardClient;
use understudy_hypervisor::machine::{Emulator, Networks};
use understudy_store::files::RealFiles;
use understudy_store::{Store, StoreOptions};

use crate::config::Config;
use crate::owners::{Owners, Premise};
use crate::primary::throttle::Budget;
use crate::replica::failover::Premises;
use crate::replica::hub::{Door, Hub};
use crate::service::{Assembly, Base, ServiceError, Sides};
use crate::vms::QemuMachines;

/// Starts a promoted VM in a session of its own (util-linux, part of every Debian).
const SETSID: &str = "/usr/bin/setsid";

/// How the guard is started: a program that calls `understudy_hypervisor::guard::run`, and its arguments.
#[derive(Debug, Clone)]
pub struct GuardProgram {
    /// The program.
    pub program: PathBuf,
    /// Its arguments.
    pub args: Vec<String>,
}

/// The real sides: QEMU, and files in the storage directory.
pub struct RealSides {
    /// The small process that lets a VM run on should we die at the wrong moment.
    pub guard: GuardProgram,
}

#[async_trait]
impl Assembly for RealSides {
    async fn assemble(&self, base: &Base) -> Result<Sides, ServiceError> {
        let store = open_store(&base.storage).await?;
        let hub = Hub::new(
            base.catalogue.clone(),
            base.registry.clone(),
            base.trust.clone(),
            base.clock.clone(),
            store.clone(),
        );
        let dirs = Dirs::make(&base.config)?;
        let guard = GuardClient::new(&self.guard.program, &self.guard.args);
        let machines = QemuMachines::new(dirs.runtime, dirs.scratch, dirs.blobs.clone(), guard);
        let machines = Arc::new(machines.allow_iothreads(base.config.vms.allow_iothreads));
        let owners = Arc::new(Owners::new(Premise {
            catalogue: base.catalogue.clone(),
            jobs: base.jobs.clone(),
            events: base.events.clone(),
            clock: base.clock.clone(),
            dialler: base.dialler.clone(),
            machines: machines.clone(),
            store,
            hub: hub.clone(),
            premises: premises(&base.config, dirs.vms),
            blobs: dirs.blobs,
            comparisons: base.config.state.join("comparisons"),
            scratch_limit: base.config.vms.scratch_max.0,
            budget: Budget::default(),
        }));
        hub.set_factory(owners.clone());
        Ok(Sides { factory: owners, handler: Arc::new(Door(hub)), machines })
    }
}

/// Directories of this host's own.
struct Dirs {
    runtime: PathBuf,
    scratch: PathBuf,
    blobs: PathBuf,
    vms: PathBuf,
}

impl Dirs {
    fn make(config: &Config) -> Result<Self, ServiceError> {
        let below = |name: &str| config.state.join(name);
        let dirs = Self {
            runtime: config.runtime_dir(),
            scratch: config.scratch_dir(),
            blobs: below("blobs"),
            vms: below("vms"),
        };
        for dir in [&dirs.runtime, &dirs.scratch, &dirs.blobs, &dirs.vms] {
            let failed = |err| ServiceError::Part { what: "a directory for VMs", err: Box::new(err) };
            std::fs::create_dir_all(dir).map_err(failed)?;
        }
        Ok(dirs)
    }
}

async fn open_store(path: &Path) -> Result<Arc<Store>, ServiceError> {
    let failed = |err| ServiceError::Part { what: "the replica store", err };
    let path = path.to_owned();
    let opened = tokio::task::spawn_blocking(move || -> Result<Store, Box<dyn std::error::Error + Send + Sync>> {
        let files = Arc::new(RealFiles::open(&path)?);
        Ok(Store::open(files, StoreOptions::default())?)
    });
    let store = opened.await.map_err(|err| failed(Box::new(err)))?.map_err(failed)?;
    for (vm, why, _) in store.unopened() {
        tracing::error!(%vm, why, "a replica cannot be opened");
    }
    Ok(Arc::new(store))
}

fn premises(config: &Config, runtime: PathBuf) -> Premises {
    let emulator = Emulator {
        program: config.vms.emulator.clone(),
        setsid: PathBuf::from(SETSID),
        uefi: None,
        sandbox: config.vms.sandbox,
    };
    // Cards are there and lead nowhere, until the host's configuration says what its networks are.
    Premises { emulator, networks: Networks::Attached(Default::default()), runtime }
}
