//! The owners of this host's relationships: found by identity, made by the factory, gone when they leave.
//!
//! Invariant: a relationship that is recorded has an owner here, and one that has an owner is recorded, save for the
//! moment in between; a lock of its own makes sure that no two calls make or remove the same one at once.

use std::collections::BTreeMap;
use std::sync::{Arc, RwLock, RwLockReadGuard, RwLockWriteGuard, Weak};

use understudy_model::{Refusal, RelationshipId, ReturnCode};

use super::owner::{OwnerFactory, RelationshipOwner};
use crate::catalogue::{Catalogue, CatalogueError, NewRelationship, RelationshipRecord};
use crate::events::{Events, Notice};

/// The owners. Cheap to clone.
#[derive(Clone)]
pub struct Registry {
    inner: Arc<Inner>,
}

struct Inner {
    catalogue: Catalogue,
    events: Events,
    owners: RwLock<BTreeMap<RelationshipId, Arc<dyn RelationshipOwner>>>,
    /// Held while a relationship is being made or removed.
    changing: tokio::sync::Mutex<()>,
}

impl Registry {
    /// No owner yet.
    pub fn new(catalogue: Catalogue, events: Events) -> Self {
        let (owners, changing) = (RwLock::default(), tokio::sync::Mutex::new(()));
        Self { inner: Arc::new(Inner { catalogue, events, owners, changing }) }
    }

    /// Makes the owners of everything recorded. A relationship whose creation was cut short and that nobody goes on
    /// with is forgotten; any other that cannot be opened stays recorded, without an owner, and is complained about.
    pub async fn open_all(&self, factory: &dyn OwnerFactory) -> Result<(), CatalogueError> {
        let _changing = self.inner.changing.lock().await;
        for record in self.inner.catalogue.relationships().await? {
            let (id, was_made) = (record.id, record.engine.is_some());
            match factory.open(record, self.exit(id)).await {
                Ok(owner) => drop(self.inner.owners_mut().insert(id, owner)),
                Err(refusal) if was_made => {
                    tracing::error!(relationship = %id, %refusal, "relationship cannot be taken up");
                }
                Err(refusal) => {
                    tracing::warn!(relationship = %id, %refusal, "relationship was never made completely and is dropped");
                    self.inner.catalogue.remove_relationship(id).await?;
                }
            }
        }
        Ok(())
    }

    /// Records a relationship and makes its owner. If either fails, neither remains.
    pub async fn create(
        &self,
        factory: &dyn OwnerFactory,
        new: NewRelationship,
    ) -> Result<Arc<dyn RelationshipOwner>, Refusal> {
        let _changing = self.inner.changing.lock().await;
        let id = new.id;
        let record = self.inner.catalogue.add_relationship(new).await.map_err(|err| match err {
            CatalogueError::Taken { .. } => Refusal::new(ReturnCode::InvalidState, "the VM is replicated already"),
            other => other.refusal(),
        })?;
        match factory.open(record, self.exit(id)).await {
            Ok(owner) => {
                self.inner.owners_mut().insert(id, owner.clone());
                self.inner.events.tell(Notice::Relationship(id));
                Ok(owner)
            }
            Err(refusal) => {
                if let Err(err) = self.inner.catalogue.remove_relationship(id).await {
                    tracing::error!(relationship = %id, err = %crate::chain(&err), "record of a refused relationship stays");
                }
                Err(refusal)
            }
        }
    }

    /// The owner of a relationship.
    pub fn get(&self, id: RelationshipId) -> Option<Arc<dyn RelationshipOwner>> {
        self.inner.owners().get(&id).cloned()
    }

    /// All owners, by identity.
    pub fn all(&self) -> Vec<Arc<dyn RelationshipOwner>> {
        self.inner.owners().values().cloned().collect()
    }

    /// Relationships that are recorded but have no owner, because it could not be made.
    pub async fn ownerless(&self) -> Result<Vec<RelationshipRecord>, CatalogueError> {
        let mut records = self.inner.catalogue.relationships().await?;
        let owners = self.inner.owners();
        records.retain(|r| !owners.contains_key(&r.id));
        Ok(records)
    }

    /// Forgets a relationship whose owner could not be made, or refused to make it.
    pub async fn discard(&self, id: RelationshipId) -> Result<(), CatalogueError> {
        self.inner.remove(id).await
    }

    /// Stops all owners, at once.
    pub async fn stop_all(&self) {
        let owners = self.all();
        futures::future::join_all(owners.iter().map(|owner| owner.stop())).await;
    }

    fn exit(&self, id: RelationshipId) -> Exit {
        Exit { id, inner: Arc::downgrade(&self.inner) }
    }
}

impl Inner {
    async fn remove(&self, id: RelationshipId) -> Result<(), CatalogueError> {
        let _changing = self.changing.lock().await;
        self.catalogue.remove_relationship(id).await?;
        let owner = self.owners_mut().remove(&id);
        self.events.tell(Notice::RelationshipRemoved(id));
        drop(owner);
        Ok(())
    }

    fn owners(&self) -> RwLockReadGuard<'_, BTreeMap<RelationshipId, Arc<dyn RelationshipOwner>>> {
        self.owners.read().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn owners_mut(&self) -> RwLockWriteGuard<'_, BTreeMap<RelationshipId, Arc<dyn RelationshipOwner>>> {
        self.owners.write().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

/// The way out for one owner: how a relationship ends on this host.
#[derive(Clone)]
pub struct Exit {
    id: RelationshipId,
    inner: Weak<Inner>,
}

impl Exit {
    /// Forgets the relationship durably and lets its owner go. The owner calls it after everything else it had to take
    /// down, and before it ends the job that removed it: who sees that job's end may make the relationship anew.
    pub async fn remove(&self) -> Result<(), CatalogueError> {
        let inner = self.inner.upgrade().ok_or(CatalogueError::Closed)?;
        inner.remove(self.id).await
    }
}
