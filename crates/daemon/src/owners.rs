//! Makes the owners of relationships: the one place where primary and replica are put together from what the host has.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};

use async_trait::async_trait;
use understudy_engine::primary::Failure;
use understudy_hypervisor::driver::Machine;
use understudy_model::{ErrorKind, PeerId, Refusal, ReturnCode, VmId};
use understudy_store::Store;
use understudy_wire::message::{Blob, Definition};

use crate::catalogue::{Catalogue, RelationshipRecord, Side, VmRecord};
use crate::channel::Sender;
use crate::clock::Clock;
use crate::events::Events;
use crate::jobs::Jobs;
use crate::link::{DialError, Dialler};
use crate::operations::owner::{LinkReport, OwnerFactory, RelationshipOwner};
use crate::operations::registry::Exit;
use crate::primary::dial::{Dialer, Link};
use crate::primary::encode::Effort;
use crate::primary::lane::{DEFINITION_FORMAT, DefinitionSource, Tools};
use crate::primary::ledger::Ledger;
use crate::primary::owner::{Book, Parts};
use crate::primary::service::{Opening, PartsFactory, PrimaryDoor, PrimaryService};
use crate::primary::throttle::Budget;
use crate::replica::failover::Premises;
use crate::replica::hub::Hub;
use crate::replica::owner::{ReplicaDoor, ReplicaService};
use crate::replica::place::Place;
use crate::{primary, replica};

/// Reaches the VMs of this host.
pub trait Machines: Send + Sync {
    /// The VM behind a record of the catalogue.
    fn machine(&self, vm: &VmRecord) -> Arc<dyn Machine>;
}

/// What every owner of a host shares.
pub struct Premise {
    /// The catalogue.
    pub catalogue: Catalogue,
    /// The jobs.
    pub jobs: Jobs,
    /// Who is told of changes.
    pub events: Events,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Connections to peers.
    pub dialler: Arc<Dialler>,
    /// The VMs.
    pub machines: Arc<dyn Machines>,
    /// The replicas' files.
    pub store: Arc<Store>,
    /// The replicas.
    pub hub: Arc<Hub>,
    /// What this host gives to VMs it starts.
    pub premises: Premises,
    /// Where boot images of this host's VMs are kept, by hash.
    pub blobs: PathBuf,
    /// Where comparisons are noted.
    pub comparisons: PathBuf,
    /// Most scratch space of a cut.
    pub scratch_limit: u64,
    /// The host's memory for transfers.
    pub budget: Budget,
}

/// Makes owners from a [`Premise`].
pub struct Owners {
    premise: Arc<Premise>,
}

impl Owners {
    /// For this host.
    pub fn new(premise: Premise) -> Self {
        Self { premise: Arc::new(premise) }
    }

    async fn open_primary(
        &self,
        record: RelationshipRecord,
        exit: Exit,
    ) -> Result<Arc<dyn RelationshipOwner>, Refusal> {
        let p = &self.premise;
        let vm = p.catalogue.vm(record.id.vm).await.map_err(|err| err.refusal())?;
        let vm =
            vm.ok_or_else(|| Refusal::new(ReturnCode::InvalidParameter, "the VM of the relationship is not known"))?;
        let durable = match &record.engine {
            None => None,
            Some(text) => {
                let read = primary::record::read(text, record.id, record.settings.clone());
                Some(read.map_err(|err| Refusal::new(ReturnCode::Failed, crate::chain(&err)))?)
            }
        };
        let transfer = durable.as_ref().and_then(|d| d.record.transfer_job).and_then(|job| p.jobs.adopt(job));
        let excluded = &record.settings.excluded_disks;
        let disks = vm.disks.iter().filter(|d| !excluded.contains(&d.id)).cloned().collect();
        let parts = Arc::new(PrimaryParts { premise: p.clone(), vm });
        let (catalogue, events) = (p.catalogue.clone(), p.events.clone());
        let (jobs, clock) = (p.jobs.clone(), p.clock.clone());
        let opening =
            Opening { record, disks, durable, transfer, jobs, clock, factory: parts, catalogue, events, exit };
        let service = PrimaryService::open(opening);
        Ok(Arc::new(PrimaryDoor(service)))
    }

    async fn open_replica(
        &self,
        record: RelationshipRecord,
        exit: Exit,
    ) -> Result<Arc<dyn RelationshipOwner>, Refusal> {
        let p = &self.premise;
        let failed = |text: String| Refusal::new(ReturnCode::Failed, text);
        let text = record.engine.as_ref().ok_or_else(|| failed("the replica has no record".to_owned()))?;
        let mut durable = replica::record::read(text, record.id, record.settings.clone())
            .map_err(|err| failed(crate::chain(&err)))?;
        let store = p.store.vm(record.id.vm).ok_or_else(|| failed(missing_store(&p.store, record.id.vm)))?;
        replica::place::reconcile(&mut durable, &store);
        let (catalogue, clock, events) = (p.catalogue.clone(), p.clock.clone(), p.events.clone());
        let place = Place::new(record.id, durable, p.store.clone(), store, catalogue, clock, events);
        let service = ReplicaService::open(record, place, p.hub.clone(), p.premises.clone(), &p.jobs, exit);
        Ok(Arc::new(ReplicaDoor(service)))
    }
}

fn missing_store(store: &Store, vm: VmId) -> String {
    let found = store.unopened().into_iter().find(|(id, ..)| *id == vm);
    found.map_or_else(|| "the files of the replica are gone".to_owned(), |(_, why, _)| why)
}

#[async_trait]
impl OwnerFactory for Owners {
    async fn open(&self, record: RelationshipRecord, exit: Exit) -> Result<Arc<dyn RelationshipOwner>, Refusal> {
        match record.side {
            Side::Primary => self.open_primary(record, exit).await,
            Side::Replica => self.open_replica(record, exit).await,
        }
    }
}

/// The parts of one primary.
struct PrimaryParts {
    premise: Arc<Premise>,
    vm: VmRecord,
}

impl PartsFactory for PrimaryParts {
    fn parts(&self, record: &RelationshipRecord, book: Arc<dyn Book>) -> Parts {
        let p = &self.premise;
        let definitions = Arc::new(StoredDefinition { vm: self.vm.clone(), blobs: p.blobs.clone() });
        Parts {
            tools: Tools {
                machine: p.machines.machine(&self.vm),
                definitions,
                budget: p.budget.clone(),
                effort: Arc::new(Effort::default()),
                ledger: Ledger::at(p.comparisons.join(format!("{}-{}.json", record.id.vm, record.id.leg))),
            },
            dialer: self.dialer(),
            peer: record.peer,
            book,
            clock: p.clock.clone(),
            scratch_limit: p.scratch_limit,
            seed: record.id.vm.0.as_u64_pair().0,
        }
    }

    fn dialer(&self) -> Arc<dyn Dialer> {
        Arc::new(TlsDialer { dialler: self.premise.dialler.clone(), carriers: AtomicU16::new(0) })
    }
}

/// The definition a VM was added with, and its boot images.
struct StoredDefinition {
    vm: VmRecord,
    blobs: PathBuf,
}

impl DefinitionSource for StoredDefinition {
    fn definition(&self) -> Option<Definition> {
        let text = self.vm.definition.clone()?;
        let parsed = understudy_hypervisor::machine::Definition::from_json(text.as_bytes()).ok()?;
        let mut blobs = Vec::new();
        for name in parsed.blobs() {
            let hash = name.to_string();
            let len = std::fs::metadata(self.blobs.join(&hash)).ok()?.len();
            blobs.push(Blob { hash, len });
        }
        Some(Definition { format: DEFINITION_FORMAT.to_owned(), text, blobs })
    }

    fn blob(&self, hash: &str) -> std::io::Result<Vec<u8>> {
        // The name is a hash that was parsed, never a text from outside.
        std::fs::read(self.blobs.join(hash))
    }
}

/// The real thing: TLS over TCP.
struct TlsDialer {
    dialler: Arc<Dialler>,
    /// By the congestion control that the last connection got.
    carriers: AtomicU16,
}

#[async_trait]
impl Dialer for TlsDialer {
    async fn dial(&self, peer: PeerId) -> Result<Link, Failure> {
        let connection = self.dialler.connect(peer).await.map_err(|err| dial_failure(&err))?;
        let report = LinkReport {
            is_up: true,
            connections: 1,
            address: Some(connection.remote.to_string()),
            congestion_control: Some(connection.congestion_control.clone()),
        };
        let (reader, writer) = (connection.reader.boxed(), connection.writer.boxed());
        let is_bbr = connection.congestion_control == "bbr";
        self.carriers.store(if is_bbr { 0 } else { CARRIERS_WITHOUT_BBR }, Ordering::Relaxed);
        Ok(Link { receiver: reader, sender: Sender::new(writer), report })
    }

    fn carriers(&self) -> u16 {
        self.carriers.load(Ordering::Relaxed)
    }
}

/// Further connections of a session where BBR is not to be had. On 200 Mbit/s with 50 ms and 0.1 % loss one CUBIC
/// connection carried 9 Mbit/s, four 50, eight 91; one with BBR 191.
const CARRIERS_WITHOUT_BBR: u16 = 4;

fn dial_failure(err: &DialError) -> Failure {
    let mut refusal = err.refusal();
    if refusal.reason.is_empty() {
        refusal.reason = crate::chain(err);
    }
    let mut failure = Failure::new(err.kind(), refusal.code, "");
    failure.refusal = refusal;
    failure.is_link_lost = err.kind() == ErrorKind::Retry;
    failure
}

/// VMs that are looked up by name: for drivers that hold state per VM.
#[derive(Default)]
pub struct MachineCache {
    machines: std::sync::Mutex<HashMap<VmId, Arc<dyn Machine>>>,
}

impl MachineCache {
    /// The machine of this VM, made at the first call. A cut excludes another only within one instance, so there must
    /// be no second one.
    pub fn get_or_make(&self, vm: VmId, make: impl FnOnce() -> Arc<dyn Machine>) -> Arc<dyn Machine> {
        let mut machines = self.machines.lock().unwrap_or_else(|e| e.into_inner());
        machines.entry(vm).or_insert_with(make).clone()
    }

    /// The VM is no longer known.
    pub fn forget(&self, vm: VmId) {
        self.machines.lock().unwrap_or_else(|e| e.into_inner()).remove(&vm);
    }
}
