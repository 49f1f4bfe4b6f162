//! The Interop namespace: what the server is, which namespaces it has, which profiles it follows, and who wants to be told of events.
//!
//! Clients look for it first under one of several names, so it is served under two. Its classes and instances are the kit's own. A
//! subscription is three instances that a client creates: a filter, a destination and the two together. They are kept in memory;
//! [`Interop::snapshot`] and [`Interop::restore`] are for whoever wants to keep them longer.
//!
//! Nothing is delivered from here: [`Interop::deliveries`] says which bytes should be sent where, and whoever has sockets sends them.

mod export;
mod subscriptions;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;

pub use export::Delivery;
pub use subscriptions::{Change, SUBSCRIPTIONS_MAX, SubscriptionPolicy};

use crate::broker::Broker;
use crate::name::Namespace;
use crate::path::ObjectPath;
use crate::provider::{Caller, Context, Provider, Wanted};
use crate::repository::Repository;
use crate::schema::{Class, Instance, NamedInstance};
use crate::status::Status;

/// The classes of the Interop namespace, in MOF.
pub const INTEROP_CLASSES: &str = include_str!("interop/classes.mof");
/// The classes of events, in MOF, for namespaces whose changes clients can subscribe to.
pub const INDICATION_CLASSES: &str = include_str!("interop/indications.mof");
/// Names under which it is served.
pub const INTEROP_NAMES: [&str; 2] = ["interop", "root/interop"];

const SYSTEM_CLASS: &str = "CIM_ComputerSystem";
const MANAGER_CLASS: &str = "CIM_ObjectManager";

/// What the server says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerDescription {
    /// The system it runs on.
    pub system_name: String,
    /// The server's name, as short as it can be.
    pub name: String,
    /// What people call it.
    pub element_name: String,
    /// A sentence; clients look for `version` in it.
    pub description: String,
    /// Its version.
    pub version: String,
    /// Profiles it follows.
    pub profiles: Vec<RegisteredProfile>,
}

/// A management profile.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RegisteredProfile {
    /// Who wrote it.
    pub organization: String,
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
}

/// The Interop namespace.
pub struct Interop<C: Caller> {
    description: ServerDescription,
    namespaces: Vec<Namespace>,
    repository: Arc<Repository>,
    policy: Box<dyn SubscriptionPolicy<C>>,
    subscriptions: Mutex<Vec<NamedInstance>>,
    next_message: std::sync::atomic::AtomicU64,
}

impl<C: Caller> Interop<C> {
    /// Makes the namespace and adds it to a broker, which has all its other namespaces by now.
    pub fn serve(
        broker: &mut Broker<C>,
        description: ServerDescription,
        policy: Box<dyn SubscriptionPolicy<C>>,
    ) -> Arc<Self> {
        let mut repository = Repository::with_standard_qualifiers();
        repository.add_text(INTEROP_CLASSES).expect("the kit's own classes make sense");
        let mut namespaces: Vec<Namespace> = broker.namespaces().cloned().collect();
        namespaces.extend(INTEROP_NAMES.map(Namespace::from));
        let interop = Arc::new(Interop {
            description,
            namespaces,
            repository: Arc::new(repository),
            policy,
            subscriptions: Mutex::default(),
            next_message: 1.into(),
        });
        for name in INTEROP_NAMES {
            broker.serve(name.into(), interop.repository.clone(), interop.clone());
        }
        interop
    }

    fn subscriptions(&self) -> MutexGuard<'_, Vec<NamedInstance>> {
        self.subscriptions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn object_manager(&self) -> Instance {
        Instance::new(MANAGER_CLASS)
            .with("SystemCreationClassName", SYSTEM_CLASS)
            .with("SystemName", self.description.system_name.as_str())
            .with("CreationClassName", MANAGER_CLASS)
            .with("Name", self.description.name.as_str())
            .with("ElementName", self.description.element_name.as_str())
            .with("Description", self.description.description.as_str())
            .with("Version", self.description.version.as_str())
            .with("Started", true)
            .with("GatherStatisticalData", false)
    }

    fn namespace(&self, namespace: &Namespace) -> Instance {
        Instance::new("CIM_Namespace")
            .with("SystemCreationClassName", SYSTEM_CLASS)
            .with("SystemName", self.description.system_name.as_str())
            .with("ObjectManagerCreationClassName", MANAGER_CLASS)
            .with("ObjectManagerName", self.description.name.as_str())
            .with("CreationClassName", "CIM_Namespace")
            .with("Name", namespace.as_str())
            .with("ClassInfo", 200u16)
    }

    fn profile(profile: &RegisteredProfile) -> Instance {
        let RegisteredProfile { organization, name, version } = profile;
        let number = match organization.as_str() {
            "DMTF" => 2u16,
            "SNIA" => 11,
            _ => 1,
        };
        let other = (number == 1).then(|| organization.clone());
        Instance::new("CIM_RegisteredProfile")
            .with("InstanceID", format!("{organization}:{name}:{version}"))
            .with("RegisteredOrganization", number)
            .with("OtherRegisteredOrganization", other)
            .with("RegisteredName", name.as_str())
            .with("RegisteredVersion", version.as_str())
            .with("AdvertiseTypes", vec![2u16])
    }
}

#[async_trait]
impl<C: Caller> Provider<C> for Interop<C> {
    async fn instances(&self, _: &Context<'_, C>, class: &Class, _: Wanted<'_>) -> Result<Vec<Instance>, Status> {
        Ok(match class.name.as_str() {
            MANAGER_CLASS => vec![self.object_manager()],
            "CIM_Namespace" => self.namespaces.iter().map(|namespace| self.namespace(namespace)).collect(),
            "CIM_RegisteredProfile" => self.description.profiles.iter().map(Self::profile).collect(),
            _ => {
                let subscriptions = self.subscriptions();
                let of_class = subscriptions.iter().filter(|named| named.path.class == class.name);
                of_class.map(|named| named.instance.clone()).collect()
            }
        })
    }

    async fn create(&self, context: &Context<'_, C>, instance: Instance) -> Result<ObjectPath, Status> {
        self.add(context.caller, instance)
    }

    async fn delete(&self, context: &Context<'_, C>, path: &ObjectPath) -> Result<(), Status> {
        self.remove(context.caller, path)
    }
}

#[cfg(test)]
mod tests;
