//! Holds instances and paths against their classes.

use super::Repository;
use crate::embedded::{self, EmbeddedError};
use crate::name::Name;
use crate::path::{KeyValue, Keys, ObjectPath, PATH_DEPTH_MAX};
use crate::schema::{Instance, Kind, Property, find};
use crate::value::{CimType, ConvertError, Scalar, Value};

/// How deep instances may lie within each other.
const EMBEDDED_DEPTH_MAX: usize = 8;

/// What is wrong with an instance or a path.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[allow(missing_docs)] // The messages say it.
pub enum InstanceProblem {
    #[error("class {class} is not known")]
    Class { class: Name },
    #[error("class {class} has no property {property}")]
    Property { class: Name, property: Name },
    #[error("property {property}")]
    Value {
        property: Name,
        #[source]
        err: ConvertError,
    },
    #[error("embedded object in property {property}")]
    Embedded {
        property: Name,
        #[source]
        err: Box<EmbeddedError>,
    },
    #[error("key {key} of class {class} is missing")]
    MissingKey { class: Name, key: Name },
    #[error("class {class} has no key {key}")]
    UnknownKey { class: Name, key: Name },
    #[error("class {class} has not just one key")]
    NotOneKey { class: Name },
    #[error("key {key} of class {class} has a value of another type")]
    Key { class: Name, key: Name },
    #[error("nested too deeply")]
    TooDeep,
}

/// What to do with properties that the class does not have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unknown {
    /// Leave them out: clients send whole instances back, with what their own system adds.
    Ignore,
    /// Refuse the instance.
    Refuse,
}

type Checked<T> = Result<T, InstanceProblem>;

impl Repository {
    /// A new instance with its class's defaults; what has none is NULL.
    pub fn instance_of(&self, class: &Name) -> Option<Instance> {
        let class = self.class(class)?;
        let properties = class.properties.iter().map(|declared| of_instance(declared, declared.value.clone()));
        Some(Instance { class: class.name.clone(), properties: properties.collect() })
    }

    /// The properties that an instance has, with their declared names and types, in the order of the class.
    ///
    /// Values are converted where they say the same; embedded objects may be texts in any form that is known.
    pub fn conform(&self, instance: Instance, unknown: Unknown) -> Checked<Instance> {
        self.conform_at(instance, unknown, 0)
    }

    fn conform_at(&self, instance: Instance, unknown: Unknown, depth: usize) -> Checked<Instance> {
        let class = self.class(&instance.class).ok_or(InstanceProblem::Class { class: instance.class.clone() })?;
        if depth > EMBEDDED_DEPTH_MAX {
            return Err(InstanceProblem::TooDeep);
        }
        let mut given: Vec<Option<Value>> = vec![None; class.properties.len()];
        for property in instance.properties {
            match class.properties.iter().position(|declared| declared.name == property.name) {
                Some(index) => given[index] = Some(property.value),
                None if unknown == Unknown::Ignore => {}
                None => return Err(InstanceProblem::Property { class: instance.class, property: property.name }),
            }
        }
        let mut properties = Vec::new();
        for (declared, value) in class.properties.iter().zip(given) {
            let Some(value) = value else { continue };
            properties.push(of_instance(declared, self.conform_value(declared, value, unknown, depth)?));
        }
        Ok(Instance { class: class.name.clone(), properties })
    }

    /// A value as a declaration wants it, embedded instances included; what their classes do not have is left out.
    pub fn conform_value_of(&self, declared: &Property, value: Value) -> Checked<Value> {
        self.conform_value(declared, value, Unknown::Ignore, 0)
    }

    fn conform_value(&self, declared: &Property, value: Value, unknown: Unknown, depth: usize) -> Checked<Value> {
        let failed = |err| InstanceProblem::Value { property: declared.name.clone(), err };
        let value = match declared.kind.base {
            _ if declared.kind.embedded.is_some() => self.embedded(declared, value, unknown, depth)?,
            CimType::Reference => self.references(declared, value)?,
            _ => value,
        };
        value.conform(&declared.kind).map_err(failed)
    }

    /// Reads texts that stand for embedded objects, and checks instances of known classes.
    fn embedded(&self, declared: &Property, value: Value, unknown: Unknown, depth: usize) -> Checked<Value> {
        let one = |scalar: Scalar| {
            let instance = match scalar {
                Scalar::Instance(instance) => *instance,
                Scalar::String(text) => embedded::read(&text)
                    .map_err(|err| InstanceProblem::Embedded { property: declared.name.clone(), err: Box::new(err) })?,
                other => return Ok(other),
            };
            match self.class(&instance.class) {
                Some(_) => self.conform_at(instance, unknown, depth + 1).map(Scalar::from),
                None => Ok(Scalar::from(instance)),
            }
        };
        each(value, one)
    }

    /// Some clients send an instance, or the text of one, where they should refer to it; its keys say which is meant.
    fn references(&self, declared: &Property, value: Value) -> Checked<Value> {
        let one = |scalar: Scalar| {
            let instance = match scalar {
                Scalar::Instance(instance) => *instance,
                Scalar::String(text) if ObjectPath::parse(&text).is_err() => match embedded::read(&text) {
                    Ok(instance) => instance,
                    Err(_) => return Ok(Scalar::String(text)),
                },
                other => return Ok(other),
            };
            if self.class(&instance.class).is_none() {
                let err = ConvertError::Type { from: CimType::String, to: CimType::Reference };
                return Err(InstanceProblem::Value { property: declared.name.clone(), err });
            }
            let instance = self.conform_at(instance, Unknown::Ignore, 1)?;
            self.path_of(&instance).map(Scalar::from)
        };
        each(value, one)
    }

    /// The instance with its class's defaults for what it lacks.
    pub fn with_defaults(&self, mut instance: Instance) -> Instance {
        let Some(class) = self.class(&instance.class) else { return instance };
        for declared in class.properties.iter().filter(|declared| !declared.value.is_null()) {
            if instance.property(declared.name.as_str()).is_none() {
                instance.properties.push(of_instance(declared, declared.value.clone()));
            }
        }
        instance
    }

    /// The instance with properties it lacks added as NULL, in the order of the class. What was not checked before is left as it is.
    pub fn complete(&self, mut instance: Instance) -> Instance {
        let Some(class) = self.class(&instance.class) else { return instance };
        let mut rest = std::mem::take(&mut instance.properties);
        for declared in &class.properties {
            match rest.iter().position(|property| property.name == declared.name) {
                Some(index) => instance.properties.push(rest.remove(index)),
                None => instance.properties.push(of_instance(declared, Value::Null)),
            }
        }
        instance.properties.append(&mut rest);
        instance
    }

    /// The path of an instance, from its key properties.
    pub fn path_of(&self, instance: &Instance) -> Checked<ObjectPath> {
        let class = self.class(&instance.class).ok_or(InstanceProblem::Class { class: instance.class.clone() })?;
        let keys: Vec<_> = class.keys().map(|key| (key.name.clone(), instance.get(key.name.as_str()))).collect();
        let keys = keys.into_iter().map(|(name, value)| {
            let missing = || InstanceProblem::MissingKey { class: class.name.clone(), key: name.clone() };
            let value = value.as_scalar().and_then(key_value).ok_or_else(missing)?;
            Ok((name, value))
        });
        let keys = keys.collect::<Checked<Vec<_>>>()?;
        Ok(ObjectPath::instance(class.name.clone(), keys))
    }

    /// A path with all keys of its class, each under its declared name and with its declared type, in the order of the class. Host and
    /// namespace stay as they are.
    pub fn complete_path(&self, path: &ObjectPath) -> Checked<ObjectPath> {
        self.complete_path_at(path, 0)
    }

    fn complete_path_at(&self, path: &ObjectPath, depth: usize) -> Checked<ObjectPath> {
        let class = self.class(&path.class).ok_or(InstanceProblem::Class { class: path.class.clone() })?;
        if depth > PATH_DEPTH_MAX {
            return Err(InstanceProblem::TooDeep);
        }
        let declared: Vec<&Property> = class.keys().collect();
        let given = match &path.keys {
            Keys::None => return Ok(ObjectPath { class: class.name.clone(), ..path.clone() }),
            Keys::Singleton => Vec::new(),
            Keys::Named(keys) => keys.clone(),
            Keys::Single(value) => match declared.as_slice() {
                [only] => vec![(only.name.clone(), value.clone())],
                _ => return Err(InstanceProblem::NotOneKey { class: class.name.clone() }),
            },
        };
        if let Some((key, _)) = given.iter().find(|(name, _)| !declared.iter().any(|key| key.name == *name)) {
            return Err(InstanceProblem::UnknownKey { class: class.name.clone(), key: key.clone() });
        }
        let keys = declared.into_iter().map(|key| {
            let (class, name) = (class.name.clone(), key.name.clone());
            let Some((_, value)) = given.iter().find(|(given, _)| *given == name) else {
                return Err(InstanceProblem::MissingKey { class, key: name });
            };
            let value =
                self.typed_key(&key.kind, value, depth).ok_or(InstanceProblem::Key { class, key: name.clone() })?;
            Ok((name, value))
        });
        let keys = keys.collect::<Checked<Vec<_>>>()?;
        let keys = if keys.is_empty() { Keys::Singleton } else { Keys::Named(keys) };
        Ok(ObjectPath { host: path.host.clone(), namespace: path.namespace.clone(), class: class.name.clone(), keys })
    }

    fn typed_key(&self, kind: &Kind, value: &KeyValue, depth: usize) -> Option<KeyValue> {
        match (kind.base, value) {
            (CimType::String, KeyValue::Text(_)) => Some(value.clone()),
            (CimType::String, KeyValue::Reference(_)) => None,
            (CimType::String, other) => Some(KeyValue::Text(other.plain())),
            (CimType::Reference, KeyValue::Reference(path)) => Some(self.typed_reference(path, depth)),
            (CimType::Reference, KeyValue::Text(text)) => {
                ObjectPath::parse(text).ok().map(|path| self.typed_reference(&path, depth))
            }
            (_, KeyValue::Reference(_)) => None,
            (base, other) => key_value(&Scalar::parse(base, &other.plain()).ok()?),
        }
    }

    /// A reference may lead to another namespace, whose classes are not known here.
    fn typed_reference(&self, path: &ObjectPath, depth: usize) -> KeyValue {
        let completed = self.complete_path_at(path, depth + 1);
        KeyValue::Reference(Box::new(completed.unwrap_or_else(|_| path.clone())))
    }

    /// The declaration of a property, by name.
    pub fn declared<'a>(&'a self, instance: &Instance, property: &str) -> Option<&'a Property> {
        find(&self.class(&instance.class)?.properties, property)
    }
}

fn each(value: Value, one: impl Fn(Scalar) -> Checked<Scalar>) -> Checked<Value> {
    Ok(match value {
        Value::Null => Value::Null,
        Value::Scalar(scalar) => Value::Scalar(one(scalar)?),
        Value::Array(elements) => {
            Value::Array(elements.into_iter().map(|element| element.map(&one).transpose()).collect::<Checked<_>>()?)
        }
    })
}

fn of_instance(declared: &Property, value: Value) -> Property {
    Property {
        name: declared.name.clone(),
        kind: declared.kind.clone(),
        value,
        class_origin: declared.class_origin.clone(),
        is_propagated: declared.is_propagated,
        qualifiers: Vec::new(),
    }
}

/// A value as a key. Embedded objects, reals and nothing are no keys.
fn key_value(scalar: &Scalar) -> Option<KeyValue> {
    match scalar {
        Scalar::Boolean(value) => Some(KeyValue::Boolean(*value)),
        Scalar::Reference(path) => Some(KeyValue::Reference(path.clone())),
        Scalar::String(text) => Some(KeyValue::Text(text.clone())),
        Scalar::Datetime(_) | Scalar::Char16(_) => scalar.text().map(KeyValue::Text),
        other => other.as_integer().map(KeyValue::Integer),
    }
}
