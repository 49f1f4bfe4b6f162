//! Who wants to be told of what: filters, destinations, and subscriptions that bring one of each together.

use super::{Interop, SYSTEM_CLASS};
use crate::name::{Name, Namespace};
use crate::path::{KeyValue, Keys, ObjectPath};
use crate::provider::Caller;
use crate::query::{Language, Query, Select};
use crate::schema::{Instance, NamedInstance};
use crate::status::{Status, StatusCode};
use crate::value::{Scalar, Value};

/// Most filters, destinations and subscriptions together.
pub const SUBSCRIPTIONS_MAX: usize = 512;

const FILTER: &str = "CIM_IndicationFilter";
const DESTINATION: &str = "CIM_ListenerDestinationCIMXML";
pub(super) const SUBSCRIPTION: &str = "CIM_IndicationSubscription";

/// What somebody wants to change about subscriptions.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Change<'a> {
    /// A new filter.
    Filter(&'a Instance),
    /// A new destination: from now on the server may be told to connect to this URL.
    Destination(&'a str),
    /// A filter and a destination are brought together.
    Subscription,
    /// One of these goes.
    Removal(&'a ObjectPath),
}

/// Decides who may have the server tell whom of what. Connecting to whatever URL a client names is how a server is made to attack
/// others, so this is not for the kit to decide.
pub trait SubscriptionPolicy<C>: Send + Sync {
    /// Refuses with a status, or lets the change happen.
    fn admit(&self, caller: &C, change: Change<'_>) -> Result<(), Status>;
}

fn refused(message: impl Into<String>) -> Status {
    Status::new(StatusCode::InvalidParameter, message)
}

impl<C: Caller> Interop<C> {
    pub(super) fn add(&self, caller: &C, instance: Instance) -> Result<ObjectPath, Status> {
        let instance = match instance.class.as_str() {
            FILTER => {
                selection(&instance)?;
                self.policy.admit(caller, Change::Filter(&instance))?;
                self.named_by_us(instance)?
            }
            DESTINATION => {
                let url = instance.get_str("Destination").unwrap_or_default();
                check_url(url)?;
                self.policy.admit(caller, Change::Destination(url))?;
                self.named_by_us(instance)?
            }
            SUBSCRIPTION => {
                let instance = self.joined(instance)?;
                self.policy.admit(caller, Change::Subscription)?;
                instance
            }
            other => return Err(Status::new(StatusCode::NotSupported, format!("a {other} cannot be created"))),
        };
        self.insert(instance)
    }

    fn insert(&self, instance: Instance) -> Result<ObjectPath, Status> {
        let path = self.repository.path_of(&instance).map_err(|err| refused(err.to_string()))?;
        let mut subscriptions = self.subscriptions();
        if subscriptions.iter().any(|named| named.path.matches(&path)) {
            return Err(Status::new(StatusCode::AlreadyExists, format!("{path} exists")));
        }
        if subscriptions.len() >= SUBSCRIPTIONS_MAX {
            return Err(Status::new(StatusCode::ServerLimitsExceeded, "too many subscriptions"));
        }
        subscriptions.push(NamedInstance { path: path.clone(), instance });
        Ok(path)
    }

    /// The client names it; the rest of its keys say where it is, which we know best.
    fn named_by_us(&self, mut instance: Instance) -> Result<Instance, Status> {
        if instance.get_str("Name").is_none_or(str::is_empty) {
            return Err(refused("it needs a name"));
        }
        let class = instance.class.to_string();
        instance.set("SystemCreationClassName", SYSTEM_CLASS);
        instance.set("SystemName", self.description.system_name.as_str());
        instance.set("CreationClassName", class);
        Ok(instance)
    }

    /// A subscription whose filter and destination exist, referred to by the paths we know them under.
    fn joined(&self, mut instance: Instance) -> Result<Instance, Status> {
        let subscriptions = self.subscriptions();
        for end in ["Filter", "Handler"] {
            let given = instance.get(end).as_path().cloned().map(ObjectPath::local);
            let found = given.and_then(|path| subscriptions.iter().find(|named| same(&named.path, &path)));
            let found = found.ok_or_else(|| refused(format!("{end} leads to nothing")))?;
            instance.set(end_name(end), found.path.clone());
        }
        Ok(instance)
    }

    pub(super) fn remove(&self, caller: &C, path: &ObjectPath) -> Result<(), Status> {
        self.policy.admit(caller, Change::Removal(path))?;
        let path = bare(path.clone());
        let mut subscriptions = self.subscriptions();
        let refers = |named: &NamedInstance| {
            let ends = [named.instance.get("Filter"), named.instance.get("Handler")];
            ends.into_iter().filter_map(Value::as_path).any(|end| end.matches(&path))
        };
        if subscriptions.iter().any(refers) {
            return Err(Status::new(StatusCode::Failed, format!("a subscription still needs {path}")));
        }
        let before = subscriptions.len();
        subscriptions.retain(|named| !named.path.matches(&path));
        if subscriptions.len() == before {
            return Err(Status::new(StatusCode::NotSupported, format!("{path} cannot be deleted")));
        }
        Ok(())
    }

    /// Filters, destinations and subscriptions, to be kept somewhere else.
    pub fn snapshot(&self) -> Vec<Instance> {
        self.subscriptions().iter().map(|named| named.instance.clone()).collect()
    }

    /// Takes back what [`Interop::snapshot`] gave. What makes no sense any more, or is there already, is left out and counted.
    pub fn restore(&self, instances: Vec<Instance>) -> usize {
        let restored = instances.into_iter().map(|instance| {
            let instance = match instance.class.as_str() {
                SUBSCRIPTION => self.joined(instance)?,
                FILTER => {
                    selection(&instance)?;
                    self.named_by_us(instance)?
                }
                _ => self.named_by_us(instance)?,
            };
            self.insert(instance)
        });
        restored.filter(Result::is_err).count()
    }
}

fn end_name(end: &str) -> Name {
    Name::parse(end).expect("both ends have names")
}

/// References within keys have the namespace that a client used; ours have none.
fn bare(path: ObjectPath) -> ObjectPath {
    let mut path = path.local();
    if let Keys::Named(keys) = &mut path.keys {
        for (_, value) in keys {
            if let KeyValue::Reference(inner) = value {
                **inner = inner.as_ref().clone().local();
            }
        }
    }
    path
}

/// A client may not know under which system's name we keep it.
fn same(known: &ObjectPath, given: &ObjectPath) -> bool {
    let key = |path: &ObjectPath, name: &str| path.key(name).map(KeyValue::plain);
    known.matches(given)
        || (known.class == given.class && key(known, "Name").is_some() && key(known, "Name") == key(given, "Name"))
}

fn check_url(url: &str) -> Result<(), Status> {
    let rest = url.strip_prefix("http://").or_else(|| url.strip_prefix("https://"));
    let is_plain = url.len() <= 2_048 && url.chars().all(|c| c.is_ascii_graphic());
    match rest {
        Some(rest) if is_plain && !rest.is_empty() && !rest.starts_with('/') => Ok(()),
        _ => Err(refused("Destination is no http or https URL")),
    }
}

/// The query of a filter, understood.
pub(super) fn selection(filter: &Instance) -> Result<(Select, Language), Status> {
    let name = filter.get_str("QueryLanguage").unwrap_or("WQL");
    let unknown =
        || Status::new(StatusCode::QueryLanguageNotSupported, format!("query language {name:?} is not known"));
    let language = Language::parse(name).ok_or_else(unknown)?;
    let text = filter.get_str("Query").unwrap_or_default();
    match Query::parse(text, language) {
        Ok(Query::Select(select)) => Ok((select, language)),
        Ok(_) => Err(Status::new(StatusCode::InvalidQuery, "a filter selects events")),
        Err(err) => Err(Status::new(StatusCode::InvalidQuery, crate::broker::chain(&err))),
    }
}

/// True when a filter is about events of a namespace. One that names none is about all.
pub(super) fn is_about(filter: &Instance, namespace: &Namespace) -> bool {
    let is_it = |text: &str| Namespace::parse(text).is_ok_and(|named| named == *namespace);
    let mut named = filter.get("SourceNamespaces").scalars().chain(filter.get("SourceNamespace").as_scalar());
    let is_open = filter.get("SourceNamespaces").is_null() && filter.get("SourceNamespace").is_null();
    is_open || named.any(|scalar| matches!(scalar, Scalar::String(text) if is_it(text)))
}
