//! What of a class or an instance a client wants to see.

use crate::name::Name;
use crate::schema::{Class, Instance, Method, Property};

/// What to show. The default shows everything.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct View {
    /// Only what the class itself adds or changes.
    pub local_only: bool,
    /// Qualifiers too.
    pub qualifiers: bool,
    /// The class each member comes from.
    pub class_origin: bool,
    /// Only properties of these names.
    pub properties: Option<Vec<Name>>,
}

impl Default for View {
    fn default() -> Self {
        View { local_only: false, qualifiers: true, class_origin: true, properties: None }
    }
}

impl View {
    /// What of a class is shown.
    pub fn class(&self, class: &Class) -> Class {
        let properties =
            class.properties.iter().filter(|p| self.shows(&p.name) && !(self.local_only && p.is_propagated));
        let methods = class.methods.iter().filter(|m| !(self.local_only && m.is_propagated));
        let mut shown = Class {
            name: class.name.clone(),
            superclass: class.superclass.clone(),
            qualifiers: if self.qualifiers { class.qualifiers.clone() } else { Vec::new() },
            properties: properties.map(|property| self.property(property)).collect(),
            methods: methods.map(|method| self.method(method)).collect(),
        };
        if self.local_only {
            shown.qualifiers.retain(|qualifier| !qualifier.is_propagated);
        }
        shown
    }

    /// What of an instance is shown.
    pub fn instance(&self, instance: &Instance) -> Instance {
        let properties = instance.properties.iter().filter(|property| self.shows(&property.name));
        let shown = |property: &Property| Property { qualifiers: Vec::new(), ..self.property(property) };
        Instance { class: instance.class.clone(), properties: properties.map(shown).collect() }
    }

    /// True when a property of that name is shown.
    pub fn shows(&self, name: &Name) -> bool {
        self.properties.as_ref().is_none_or(|names| names.contains(name))
    }

    fn property(&self, property: &Property) -> Property {
        let mut shown = property.clone();
        if !self.qualifiers {
            shown.qualifiers.clear();
        }
        if !self.class_origin {
            shown.class_origin = None;
        }
        shown
    }

    fn method(&self, method: &Method) -> Method {
        let mut shown = method.clone();
        if !self.qualifiers {
            shown.qualifiers.clear();
            shown.parameters.iter_mut().for_each(|parameter| parameter.qualifiers.clear());
        }
        if !self.class_origin {
            shown.class_origin = None;
        }
        shown
    }
}
