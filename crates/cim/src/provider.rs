//! What whoever offers a service writes: the instances, and what their methods do.
//!
//! The broker asks a provider only what it has checked: classes exist, paths are complete, values have their declared types. What the
//! provider answers is held against the classes as well.

use std::time::Duration;

use async_trait::async_trait;

use crate::name::{Name, Namespace};
use crate::path::ObjectPath;
use crate::schema::{Class, Instance, Method};
use crate::status::{Status, StatusCode};
use crate::value::Value;

/// Who asks, as far as the kit must know: to whom an enumeration belongs. Everything else about it is between whoever checks
/// passwords and certificates and the provider.
pub trait Caller: Clone + PartialEq + Send + Sync + 'static {}

impl<T: Clone + PartialEq + Send + Sync + 'static> Caller for T {}

/// What a provider is told about a request.
#[derive(Debug, Clone, Copy)]
pub struct Context<'a, C> {
    /// Who asks.
    pub caller: &'a C,
    /// In which namespace.
    pub namespace: &'a Namespace,
    /// When, by the clock of whoever runs the broker.
    pub now: Duration,
    /// How long the client waits, where it said so. What takes longer should be a job.
    pub timeout: Option<Duration>,
}

/// Which instances of a class are asked for. A provider may give more: the broker looks for itself.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Wanted<'a> {
    /// All of them.
    All,
    /// The one of this path.
    One(&'a ObjectPath),
    /// Of an association: those that refer to this.
    ReferringTo(&'a ObjectPath),
}

/// A method that is called.
#[derive(Debug, Clone, PartialEq)]
pub struct Call<'a> {
    /// The instance it is called on, or, if it is static, perhaps only its class.
    pub path: &'a ObjectPath,
    /// The class of that instance.
    pub class: &'a Class,
    /// The method's declaration.
    pub method: &'a Method,
    /// Input parameters under their declared names. What the caller left out is not there.
    pub inputs: Vec<(Name, Value)>,
}

impl Call<'_> {
    /// An input parameter; NULL when it is not there.
    pub fn input(&self, name: &str) -> &Value {
        self.inputs.iter().find(|(known, _)| known.is(name)).map_or(&Value::Null, |(_, value)| value)
    }
}

/// What a method answers.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    /// What it returns.
    pub value: Value,
    /// Its output parameters.
    pub outputs: Vec<(Name, Value)>,
}

impl Answer {
    /// An answer without output parameters.
    pub fn new(value: impl Into<Value>) -> Self {
        Answer { value: value.into(), outputs: Vec::new() }
    }

    /// The same answer with one output parameter more.
    pub fn with(mut self, name: impl Into<Name>, value: impl Into<Value>) -> Self {
        self.outputs.push((name.into(), value.into()));
        self
    }
}

/// Knows the instances of a namespace. Calls may come at any time and any number at once; a client that goes away may drop a call
/// half-way, so whatever must not stay half done is done elsewhere.
#[async_trait]
pub trait Provider<C: Caller>: Send + Sync {
    /// Instances of exactly this class, not of those that extend it. Properties that are NULL may be left out. References without a
    /// namespace lead to this one.
    async fn instances(
        &self,
        context: &Context<'_, C>,
        class: &Class,
        wanted: Wanted<'_>,
    ) -> Result<Vec<Instance>, Status>;

    /// Changes properties of an instance that exists, each of them to another value than it has. Keys are not among them.
    async fn modify(&self, context: &Context<'_, C>, path: &ObjectPath, changes: Instance) -> Result<(), Status> {
        let _ = (context, changes);
        Err(not_supported("modified", path))
    }

    /// Makes an instance, and says where it is. What the client left out has the class's default.
    async fn create(&self, context: &Context<'_, C>, instance: Instance) -> Result<ObjectPath, Status> {
        let _ = context;
        Err(not_supported("created", &ObjectPath::class(instance.class)))
    }

    /// Removes an instance that exists.
    async fn delete(&self, context: &Context<'_, C>, path: &ObjectPath) -> Result<(), Status> {
        let _ = context;
        Err(not_supported("deleted", path))
    }

    /// Carries out a method of an instance that exists, or a static one of a class.
    async fn invoke(&self, context: &Context<'_, C>, call: Call<'_>) -> Result<Answer, Status> {
        let _ = context;
        let message = format!("nobody carries out {} of {}", call.method.name, call.path);
        Err(Status::new(StatusCode::MethodNotAvailable, message))
    }
}

fn not_supported(what: &str, path: &ObjectPath) -> Status {
    Status::new(StatusCode::NotSupported, format!("{path} cannot be {what}"))
}
