//! The sides of a daemon in memory: VMs and owners from [`crate::operations::fake`], peers that are listened to and not
//! answered. For tests of whole daemons.

use std::sync::{Arc, OnceLock};

use async_trait::async_trait;

use super::{Assembly, Base, ServiceError, Sides};
use crate::link::{Channel, ChannelHandler};
use crate::operations::fake::{FakeMachines, FakeOwners};

/// See the module's description. Serves one start of a daemon.
#[derive(Default)]
pub struct FakeSides {
    /// The VMs; may outlive the daemon.
    pub machines: Arc<FakeMachines>,
    owners: OnceLock<Arc<FakeOwners>>,
}

impl FakeSides {
    /// Sides with these VMs.
    pub fn new(machines: Arc<FakeMachines>) -> Self {
        Self { machines, owners: OnceLock::new() }
    }

    /// The owners, once the daemon has been started.
    pub fn owners(&self) -> Option<Arc<FakeOwners>> {
        self.owners.get().cloned()
    }
}

#[async_trait]
impl Assembly for FakeSides {
    async fn assemble(&self, base: &Base) -> Result<Sides, ServiceError> {
        let owners = self.owners.get_or_init(|| FakeOwners::new(base.catalogue.clone()));
        Ok(Sides { factory: owners.clone(), handler: Arc::new(Silent), machines: self.machines.clone() })
    }
}

struct Silent;

#[async_trait]
impl ChannelHandler for Silent {
    async fn serve(&self, mut channel: Channel) {
        while let Ok(Some(_)) = channel.next().await {}
    }
}
