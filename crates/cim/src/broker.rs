//! What is the same for every service: finds the class, checks what clients send, asks the provider, checks what it answers.
//!
//! The protocols (CIM-XML, WS-Management) turn their messages into calls of this. One broker serves any
//! number of namespaces, each with its classes and its provider.
//!
//! Invariant: nothing reaches a provider that its classes do not allow, and nothing leaves the broker that they do not allow either.

mod associations;
mod contexts;
mod instances;
mod methods;
mod queries;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

pub use associations::Traversal;
pub use contexts::{CONTEXTS_MAX, CONTEXTS_OF_ONE_MAX, Contexts};
pub use queries::Selection;

use crate::name::{Name, Namespace};
use crate::path::ObjectPath;
use crate::provider::{Caller, Context, Provider};
use crate::repository::{InstanceProblem, Repository};
use crate::schema::Class;
use crate::status::{Status, StatusCode};

/// Most instances that one request may find. A host of this kind has some thousands of objects.
pub const OBJECTS_MAX: usize = 65_536;

/// Classes and instances of any number of namespaces.
pub struct Broker<C: Caller> {
    host: String,
    spaces: BTreeMap<Namespace, Space<C>>,
}

struct Space<C: Caller> {
    repository: Arc<Repository>,
    provider: Arc<dyn Provider<C>>,
}

/// Who asks what about which namespace.
#[derive(Debug, Clone)]
pub struct Request<'a, C> {
    /// Who asks.
    pub caller: &'a C,
    /// The namespace.
    pub namespace: Namespace,
    /// The time, from any moment that stays the same.
    pub now: Duration,
    /// How long the client waits, where it said so.
    pub timeout: Option<Duration>,
}

impl<'a, C> Request<'a, C> {
    /// A request of a client that did not say how long it waits.
    pub fn new(caller: &'a C, namespace: Namespace, now: Duration) -> Self {
        Request { caller, namespace, now, timeout: None }
    }

    fn context(&self) -> Context<'_, C> {
        Context { caller: self.caller, namespace: &self.namespace, now: self.now, timeout: self.timeout }
    }
}

impl<C: Caller> Broker<C> {
    /// A broker without namespaces, on a host of that name.
    pub fn new(host: impl Into<String>) -> Self {
        Broker { host: host.into(), spaces: BTreeMap::new() }
    }

    /// Adds a namespace, or replaces it.
    pub fn serve(&mut self, namespace: Namespace, repository: Arc<Repository>, provider: Arc<dyn Provider<C>>) {
        self.spaces.insert(namespace, Space { repository, provider });
    }

    /// The host's name, for whole paths.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The namespaces.
    pub fn namespaces(&self) -> impl Iterator<Item = &Namespace> {
        self.spaces.keys()
    }

    /// The classes of a namespace.
    pub fn repository(&self, namespace: &Namespace) -> Result<&Repository, Status> {
        self.space(namespace).map(|space| &*space.repository)
    }

    fn space(&self, namespace: &Namespace) -> Result<&Space<C>, Status> {
        let missing = || Status::new(StatusCode::InvalidNamespace, format!("there is no namespace {namespace}"));
        self.spaces.get(namespace).ok_or_else(missing)
    }

    /// A class; without it, a status for requests that are about its instances.
    pub fn class<'a>(&'a self, namespace: &Namespace, name: &Name) -> Result<&'a Class, Status> {
        let missing = || Status::new(StatusCode::InvalidClass, format!("there is no class {name} in {namespace}"));
        self.repository(namespace)?.class(name).ok_or_else(missing)
    }

    /// Mends what clients make of references: a host that is the first part of the namespace, as one of them cuts it; this host's name,
    /// which says nothing; no namespace, which means this one.
    pub fn normalize(&self, path: &ObjectPath, namespace: &Namespace) -> ObjectPath {
        let mut path = path.clone();
        let host = path.host.take();
        let Some(found) = &path.namespace else { return path.within(namespace) };
        if !self.spaces.contains_key(found)
            && let Some(host) = host
            && let Ok(joined) = Namespace::parse(&format!("{host}/{found}"))
            && self.spaces.contains_key(&joined)
        {
            return path.within(&joined);
        }
        path
    }
}

/// What the client sent does not fit its class.
fn refused(problem: InstanceProblem) -> Status {
    let code = match problem {
        InstanceProblem::Class { .. } => StatusCode::InvalidClass,
        InstanceProblem::Property { .. } => StatusCode::NoSuchProperty,
        InstanceProblem::Value { .. } | InstanceProblem::Embedded { .. } => StatusCode::TypeMismatch,
        _ => StatusCode::InvalidParameter,
    };
    Status::new(code, chain(&problem))
}

/// What the provider answered does not fit its class.
fn failed(what: &str, problem: &dyn std::error::Error) -> Status {
    Status::new(StatusCode::Failed, format!("the provider gave a bad {what}: {}", chain(problem)))
}

/// An error and its causes in one line, for those who see nothing but a status.
pub(crate) fn chain(err: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(err), |err| err.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

fn check_count(count: usize) -> Result<(), Status> {
    if count <= OBJECTS_MAX {
        return Ok(());
    }
    Err(Status::new(StatusCode::ServerLimitsExceeded, format!("more than {OBJECTS_MAX} instances")))
}

#[cfg(test)]
pub(crate) mod tests;
