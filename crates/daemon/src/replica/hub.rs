//! Every replica of this host, and the door through which sources come to them.
//!
//! Who asks for a replica that is not there and who asks for one that is somebody else's get the same answer.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, OnceLock};

use async_trait::async_trait;
use understudy_engine::primary::Failure;
use understudy_engine::replica::Record;
use understudy_model::{ErrorKind, Generation, PeerId, RelationshipId, ReturnCode, Settings, State, VmId};
use understudy_store::{CreateError, Removal, Store};
use understudy_wire::message::{Prepare, convert};

use super::connection::{Caller, from_refusal, serve};
use super::place::Place;
use super::record::{Durable, write};
use crate::catalogue::{Catalogue, NewRelationship, Side};
use crate::channel::Sender;
use crate::clock::Clock;
use crate::link::{Channel, ChannelHandler, Trust};
use crate::operations::owner::OwnerFactory;
use crate::operations::registry::Registry;
use crate::primary::failure::failure;

/// See the module's description.
pub struct Hub {
    pub(super) catalogue: Catalogue,
    registry: Registry,
    trust: Arc<Trust>,
    clock: Arc<dyn Clock>,
    pub(super) store: Arc<Store>,
    /// Makes owners; known only once everything else is.
    factory: OnceLock<Arc<dyn OwnerFactory>>,
    places: Mutex<BTreeMap<RelationshipId, (PeerId, Arc<Place>)>>,
    /// Held while a place is being made.
    preparing: tokio::sync::Mutex<()>,
}

impl Hub {
    /// A hub without replicas.
    pub fn new(
        catalogue: Catalogue,
        registry: Registry,
        trust: Arc<Trust>,
        clock: Arc<dyn Clock>,
        store: Arc<Store>,
    ) -> Arc<Self> {
        Arc::new(Self {
            catalogue,
            registry,
            trust,
            clock,
            store,
            factory: OnceLock::new(),
            places: Mutex::default(),
            preparing: tokio::sync::Mutex::new(()),
        })
    }

    /// Tells who makes owners. Called once, at start-up.
    pub fn set_factory(&self, factory: Arc<dyn OwnerFactory>) {
        if self.factory.set(factory).is_err() {
            tracing::error!("the factory of owners was set twice");
        }
    }

    /// A replica can be reached from now on.
    pub fn add(&self, peer: PeerId, place: Arc<Place>) {
        self.places.lock().unwrap_or_else(|e| e.into_inner()).insert(place.id(), (peer, place));
    }

    /// The VMs of a peer that have a replica here.
    pub fn vms_of(&self, peer: PeerId) -> Vec<VmId> {
        let places = self.places.lock().unwrap_or_else(|e| e.into_inner());
        places.iter().filter(|(_, (owner, _))| *owner == peer).map(|(id, _)| id.vm).collect()
    }

    /// A replica can no longer be reached.
    pub fn remove(&self, id: RelationshipId) {
        let removed = self.places.lock().unwrap_or_else(|e| e.into_inner()).remove(&id);
        if let Some((_, place)) = removed {
            place.end_session();
        }
    }

    /// The replica a peer asks for, if it is the peer's.
    pub async fn find(&self, peer: PeerId, id: RelationshipId) -> Result<Arc<Place>, Failure> {
        self.may_replicate(peer)?;
        let places = self.places.lock().unwrap_or_else(|e| e.into_inner());
        let found = places.get(&id).filter(|(owner, _)| *owner == peer).map(|(_, place)| place.clone());
        found.ok_or_else(|| {
            let reason = format!("this host has no replica of VM {} from the caller", id.vm);
            let mut failure = Failure::new(ErrorKind::Refused, ReturnCode::AccessDenied, reason);
            failure.refusal.hint = "the relationship was removed here, or belongs to another host".to_owned();
            failure
        })
    }

    fn may_replicate(&self, peer: PeerId) -> Result<(), Failure> {
        let entry = self.trust.authorization(peer);
        if entry.is_some_and(|a| a.may_replicate_here) {
            return Ok(());
        }
        let reason = "the caller may not replicate to this host";
        Err(Failure::new(ErrorKind::Refused, ReturnCode::AccessDenied, reason))
    }

    /// Makes a place for a replica. Asked twice for the same, it answers the same.
    pub async fn prepare(&self, peer: PeerId, prepare: Prepare) -> Result<(), Failure> {
        self.may_replicate(peer)?;
        let unreadable = |e: convert::ConvertError| failure(ErrorKind::Refused, &e);
        let id = RelationshipId::try_from(prepare.relationship).map_err(unreadable)?;
        let disks = convert::disks(&prepare.disks).map_err(unreadable)?;
        let settings = Settings::try_from(&prepare.settings).map_err(unreadable)?;
        let name = crate::names::to_name(&prepare.name).ok_or_else(|| refuse("the VM's name is not acceptable"))?;
        if disks.is_empty() {
            return Err(refuse("a replica without disks makes no sense"));
        }
        let _preparing = self.preparing.lock().await;
        if self.is_there_already(peer, id, &disks)? {
            return Ok(());
        }
        if self.catalogue.vm(id.vm).await.map_err(|e| failure(ErrorKind::Retry, &e))?.is_some() {
            let refusal = understudy_model::Refusal::new(
                ReturnCode::InvalidParameter,
                "a VM with this identity runs on the replica host itself",
            );
            return Err(from_refusal(refusal.hint("choose another host for the replica")));
        }
        self.make_place(id, Generation(prepare.generation), disks).await?;
        let durable = Durable {
            record: Record::new(id, Generation(prepare.generation), settings.clone()),
            failover_number: None,
        };
        let new = NewRelationship {
            id,
            vm_name: name,
            side: Side::Replica,
            peer,
            settings,
            engine: Some(write(&durable)),
            made_at: self.clock.wall(),
        };
        let factory = self.factory.get().ok_or_else(|| refuse("the service is starting"))?;
        match self.registry.create(&**factory, new).await {
            Ok(_) => Ok(()),
            Err(refusal) => {
                self.discard(id).await;
                Err(from_refusal(refusal))
            }
        }
    }

    fn is_there_already(
        &self,
        peer: PeerId,
        id: RelationshipId,
        disks: &[understudy_model::DiskSpec],
    ) -> Result<bool, Failure> {
        let places = self.places.lock().unwrap_or_else(|e| e.into_inner());
        let Some((owner, place)) = places.get(&id) else { return Ok(false) };
        let fresh = place.record().state == State::InitialReplication && place.store().newest().is_none();
        if *owner == peer && fresh && place.disks() == disks {
            return Ok(true);
        }
        let refusal = understudy_model::Refusal::new(
            ReturnCode::InvalidState,
            format!("the host has a replica of VM {} already", id.vm),
        );
        Err(from_refusal(refusal.hint("remove the old relationship on the replica host first")))
    }

    async fn make_place(
        &self,
        id: RelationshipId,
        generation: Generation,
        disks: Vec<understudy_model::DiskSpec>,
    ) -> Result<(), Failure> {
        let store = self.store.clone();
        let made = tokio::task::spawn_blocking(move || store.create_vm(id.vm, generation, &disks)).await;
        let made = made.map_err(|_| crate::primary::failure::bug("making a place panicked"))?;
        made.map(drop).map_err(|err| {
            let exists = matches!(err, CreateError::Exists { .. });
            let mut failed = failure(err.kind(), &err);
            if exists {
                failed.kind = ErrorKind::Refused;
                failed.refusal.code = ReturnCode::InvalidState;
                failed.refusal.reason = format!("the files of a former replica of VM {} are still on the host", id.vm);
                failed.refusal.hint =
                    "its recovery points were kept when it was removed; discard them there to make room".to_owned();
            }
            failed
        })
    }

    async fn discard(&self, id: RelationshipId) {
        let store = self.store.clone();
        let gone = tokio::task::spawn_blocking(move || store.remove(id.vm, Removal::DestroyPoints)).await;
        if let Ok(Err(err)) = gone {
            tracing::warn!(relationship = %id, cause = crate::chain(&err), "an empty place stays behind");
        }
    }
}

fn refuse(reason: &str) -> Failure {
    Failure::new(ErrorKind::Refused, ReturnCode::InvalidParameter, reason)
}

/// The hub as the listener sees it.
pub struct Door(pub Arc<Hub>);

#[async_trait]
impl ChannelHandler for Door {
    async fn serve(&self, mut channel: Channel) {
        let first = channel.take_first();
        let caller = Caller {
            peer: channel.peer,
            receiver: channel.reader.boxed(),
            sender: Arc::new(Sender::new(channel.writer.boxed())),
            target: channel.target,
            first,
        };
        serve(self.0.clone(), caller).await;
    }
}
