//! Instances, and instances with their paths.

use super::{Named, Property};
use crate::name::Name;
use crate::path::ObjectPath;
use crate::value::Value;

/// An instance: a class's name and values. A property that is not there is NULL.
#[derive(Debug, Clone, PartialEq)]
pub struct Instance {
    /// The class it was made of.
    pub class: Name,
    /// Its properties, each name once.
    pub properties: Vec<Property>,
}

impl Instance {
    /// An instance without properties.
    pub fn new(class: impl Into<Name>) -> Self {
        Instance { class: class.into(), properties: Vec::new() }
    }

    /// The same instance with one property more, or another value of it.
    pub fn with(mut self, name: impl Into<Name>, value: impl Into<Value>) -> Self {
        self.set(name, value);
        self
    }

    /// Gives a property a value. The type of one that is there stays when the value is NULL.
    pub fn set(&mut self, name: impl Into<Name>, value: impl Into<Value>) {
        let fresh = Property::of(name, value);
        match self.properties.iter_mut().find(|property| property.name == fresh.name) {
            Some(property) if fresh.value.is_null() => property.value = Value::Null,
            Some(property) => *property = fresh,
            None => self.properties.push(fresh),
        }
    }

    /// The property of that name.
    pub fn property(&self, name: &str) -> Option<&Property> {
        super::find(&self.properties, name)
    }

    /// The value of a property; NULL when it is not there.
    pub fn get(&self, name: &str) -> &Value {
        self.property(name).map_or(&Value::Null, |property| &property.value)
    }

    /// The text of a property that is a string.
    pub fn get_str(&self, name: &str) -> Option<&str> {
        self.get(name).as_str()
    }

    /// The instance by itself, without a word on where its properties come from.
    pub fn plain(&self) -> Instance {
        let plain = |property: &Property| Property { class_origin: None, is_propagated: false, ..property.clone() };
        Instance { class: self.class.clone(), properties: self.properties.iter().map(plain).collect() }
    }

    /// Keeps the properties of these names.
    pub fn keep(&mut self, names: &[Name]) {
        self.properties.retain(|property| names.contains(property.name()));
    }
}

/// An instance and where it is.
#[derive(Debug, Clone, PartialEq)]
pub struct NamedInstance {
    /// Where it is.
    pub path: ObjectPath,
    /// What it is.
    pub instance: Instance,
}
