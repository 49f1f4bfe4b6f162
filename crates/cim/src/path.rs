//! Object paths: which class or instance, in which namespace, on which host.
//!
//! Clients spell them in many ways; [`ObjectPath::parse`] reads all of these:
//!
//! ```text
//! Toy_Device                                     a class
//! Toy_Device.Name="a",Bus=2                      an instance; quotes are " or ', \" and \\ stand for " and \
//! Toy_Device="a"                                 an instance of a class with one key
//! Toy_Service=@                                  the instance of a class without keys
//! root/toy:Toy_Device.Name="a"                   with a namespace; backslashes will do
//! //host/root/toy:Toy_Device.Name="a"            with a host
//! \\host\root\toy:Toy_Device.Name="a"            as WMI writes it
//! https://host:5989/root/toy:Toy_Device.Name="a" a WBEM URI
//! Toy_Owns.Owner="root/toy:Toy_Box.Name=\"b\""   a reference as a key: a quoted path
//! ```
//!
//! A path that was read does not know the types of its keys; [`Repository::complete_path`](crate::repository::Repository::complete_path)
//! gives them the declared ones. Names compare without regard to case, values with it.

mod parse;
mod write;

pub use parse::PathError;

use crate::name::{Name, Namespace};

/// Longest path that is read.
pub const PATH_LEN_MAX: usize = 64 << 10;
/// Most keys of an instance. Published classes have up to eight.
pub const KEYS_MAX: usize = 64;
/// How many references may lie within each other in keys.
pub const PATH_DEPTH_MAX: usize = 4;

/// Where a class or an instance is.
#[derive(Debug, Clone, PartialEq)]
pub struct ObjectPath {
    /// The host, perhaps with a port.
    pub host: Option<String>,
    /// The namespace; whoever leaves it out means the one that is being talked about.
    pub namespace: Option<Namespace>,
    /// The class.
    pub class: Name,
    /// What tells its instances apart.
    pub keys: Keys,
}

/// What tells the instances of a class apart.
#[derive(Debug, Clone, PartialEq)]
pub enum Keys {
    /// None: this is the path of a class.
    None,
    /// The one instance of a class without keys.
    Singleton,
    /// The value of the only key, whose name was left out.
    Single(KeyValue),
    /// Names and values.
    Named(Vec<(Name, KeyValue)>),
}

/// The value of a key.
#[derive(Debug, Clone, PartialEq)]
pub enum KeyValue {
    /// A string, a character or a datetime; before its type is known, also anything else.
    Text(String),
    /// A number.
    Integer(i128),
    /// A boolean.
    Boolean(bool),
    /// A reference.
    Reference(Box<ObjectPath>),
}

impl From<&str> for KeyValue {
    fn from(text: &str) -> Self {
        KeyValue::Text(text.to_string())
    }
}

impl KeyValue {
    /// The text of a string.
    pub fn as_str(&self) -> Option<&str> {
        match self {
            KeyValue::Text(text) => Some(text),
            _ => None,
        }
    }

    /// Equal when texts may differ in case, numbers may be texts, and references may leave out what is understood.
    pub fn matches(&self, other: &KeyValue) -> bool {
        match (self, other) {
            (KeyValue::Reference(a), KeyValue::Reference(b)) => a.matches(b),
            (KeyValue::Reference(a), KeyValue::Text(b)) | (KeyValue::Text(b), KeyValue::Reference(a)) => {
                ObjectPath::parse(b).is_ok_and(|b| a.matches(&b))
            }
            (a, b) => a.plain().eq_ignore_ascii_case(&b.plain()),
        }
    }

    /// The value without quotes.
    pub fn plain(&self) -> String {
        match self {
            KeyValue::Text(text) => text.clone(),
            KeyValue::Integer(number) => number.to_string(),
            KeyValue::Boolean(value) => value.to_string(),
            KeyValue::Reference(path) => path.to_string(),
        }
    }
}

impl ObjectPath {
    /// The path of a class.
    pub fn class(class: impl Into<Name>) -> Self {
        ObjectPath { host: None, namespace: None, class: class.into(), keys: Keys::None }
    }

    /// The path of an instance.
    pub fn instance<K: Into<Name>, V: Into<KeyValue>>(
        class: impl Into<Name>,
        keys: impl IntoIterator<Item = (K, V)>,
    ) -> Self {
        let keys: Vec<_> = keys.into_iter().map(|(name, value)| (name.into(), value.into())).collect();
        let keys = if keys.is_empty() { Keys::Singleton } else { Keys::Named(keys) };
        ObjectPath { host: None, namespace: None, class: class.into(), keys }
    }

    /// The same path in that namespace.
    pub fn within(mut self, namespace: &Namespace) -> Self {
        self.namespace = Some(namespace.clone());
        self
    }

    /// The same path without host and namespace.
    pub fn local(mut self) -> Self {
        (self.host, self.namespace) = (None, None);
        self
    }

    /// True for the path of a class.
    pub fn is_class(&self) -> bool {
        matches!(self.keys, Keys::None)
    }

    /// Keys that have names.
    pub fn named_keys(&self) -> &[(Name, KeyValue)] {
        match &self.keys {
            Keys::Named(keys) => keys,
            _ => &[],
        }
    }

    /// The value of a key.
    pub fn key(&self, name: &str) -> Option<&KeyValue> {
        self.named_keys().iter().find(|(known, _)| known.is(name)).map(|(_, value)| value)
    }

    /// The text of a key that is a string.
    pub fn key_str(&self, name: &str) -> Option<&str> {
        self.key(name)?.as_str()
    }

    /// True when both lead to the same class or instance, as far as both say: order of keys, hosts and case do not count, and a
    /// namespace only when both have one.
    pub fn matches(&self, other: &ObjectPath) -> bool {
        let namespaces_differ = match (&self.namespace, &other.namespace) {
            (Some(a), Some(b)) => a != b,
            _ => false,
        };
        !namespaces_differ && self.class == other.class && self.keys.matches(&other.keys)
    }
}

impl Keys {
    fn matches(&self, other: &Keys) -> bool {
        match (self, other) {
            (Keys::None, Keys::None) | (Keys::Singleton, Keys::Singleton) => true,
            (Keys::Single(a), Keys::Single(b)) => a.matches(b),
            (Keys::Single(value), Keys::Named(named)) | (Keys::Named(named), Keys::Single(value)) => {
                matches!(named.as_slice(), [(_, only)] if only.matches(value))
            }
            (Keys::Named(ours), Keys::Named(theirs)) => {
                let same = |(name, value): &(Name, KeyValue)| {
                    theirs.iter().any(|(known, theirs)| known == name && theirs.matches(value))
                };
                ours.len() == theirs.len() && ours.iter().all(same)
            }
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests;
