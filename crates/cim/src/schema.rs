//! What a schema is made of: classes with properties and methods, their qualifiers, and instances.
//!
//! These are plain values, as some text said them. Whether they make sense together, and what a class inherits, is for
//! [`repository`](crate::repository).

mod instance;
mod qualifier;

pub use instance::{Instance, NamedInstance};
pub use qualifier::{Flavors, Qualifier, QualifierDeclaration, Scope, Scopes};

use crate::name::Name;
use crate::value::{CimType, Value};

/// Most properties, methods, parameters or qualifiers in one place. The largest published class has about 120.
pub const MEMBERS_MAX: usize = 1_024;

/// Something embedded in a string property or parameter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Embedded {
    /// An instance, of [`Kind::class`] if that is said.
    Instance,
    /// An instance or a class.
    Object,
}

/// The declared type of a property, parameter or return value.
#[derive(Debug, Clone, PartialEq)]
pub struct Kind {
    /// The type, of the elements if it is an array.
    pub base: CimType,
    /// For an array, perhaps how many elements it has.
    pub array: Option<Option<u32>>,
    /// Class that a reference leads to, or that an embedded instance is of.
    pub class: Option<Name>,
    /// For a string that holds an embedded object.
    pub embedded: Option<Embedded>,
}

impl Kind {
    /// One value of a type.
    pub fn scalar(base: CimType) -> Self {
        Kind { base, array: None, class: None, embedded: None }
    }

    /// An array without a fixed length.
    pub fn array(base: CimType) -> Self {
        Kind { array: Some(None), ..Kind::scalar(base) }
    }

    /// A reference to instances of a class.
    pub fn reference(class: impl Into<Name>) -> Self {
        Kind { class: Some(class.into()), ..Kind::scalar(CimType::Reference) }
    }

    /// An embedded instance.
    pub fn embedded_instance(class: Option<Name>) -> Self {
        Kind { class, embedded: Some(Embedded::Instance), ..Kind::scalar(CimType::String) }
    }

    /// The kind that a value has by itself.
    pub fn of(value: &Value) -> Option<Self> {
        let first = value.scalars().next();
        let base = first.map_or(CimType::String, crate::value::Scalar::cim_type);
        let embedded = first.and_then(|scalar| match scalar {
            crate::value::Scalar::Instance(_) => Some(Embedded::Instance),
            crate::value::Scalar::Class(_) => Some(Embedded::Object),
            _ => None,
        });
        match value {
            Value::Null => None,
            Value::Scalar(_) => Some(Kind { embedded, ..Kind::scalar(base) }),
            Value::Array(_) => Some(Kind { embedded, ..Kind::array(base) }),
        }
    }

    /// True for arrays.
    pub fn is_array(&self) -> bool {
        self.array.is_some()
    }

    /// How many elements an array of fixed length has.
    pub fn array_max(&self) -> Option<u32> {
        self.array.flatten()
    }
}

/// Something with a name, in a list where names occur once.
pub trait Named {
    /// The name.
    fn name(&self) -> &Name;
}

/// The item of that name, whatever the case.
pub fn find<'a, T: Named>(items: &'a [T], name: &str) -> Option<&'a T> {
    items.iter().find(|item| item.name().is(name))
}

/// A property of a class, with its default, or of an instance, with its value.
#[derive(Debug, Clone, PartialEq)]
pub struct Property {
    /// Its name.
    pub name: Name,
    /// Its type.
    pub kind: Kind,
    /// Its value, in a class its default.
    pub value: Value,
    /// The class that introduced it, where that is known.
    pub class_origin: Option<Name>,
    /// True when it was inherited as it is.
    pub is_propagated: bool,
    /// Qualifiers; instances have none.
    pub qualifiers: Vec<Qualifier>,
}

impl Property {
    /// A property that is NULL.
    pub fn new(name: impl Into<Name>, kind: Kind) -> Self {
        let (value, qualifiers) = (Value::Null, Vec::new());
        Property { name: name.into(), kind, value, class_origin: None, is_propagated: false, qualifiers }
    }

    /// A property with a value, of the type the value has; NULL is taken for a string.
    pub fn of(name: impl Into<Name>, value: impl Into<Value>) -> Self {
        let value = value.into();
        let kind = Kind::of(&value).unwrap_or(Kind::scalar(CimType::String));
        Property { value, ..Property::new(name, kind) }
    }

    /// True for a key of its class.
    pub fn is_key(&self) -> bool {
        has(&self.qualifiers, "Key")
    }
}

/// A parameter of a method.
#[derive(Debug, Clone, PartialEq)]
pub struct Parameter {
    /// Its name.
    pub name: Name,
    /// Its type.
    pub kind: Kind,
    /// Its qualifiers, among them `In` and `Out`.
    pub qualifiers: Vec<Qualifier>,
}

impl Parameter {
    /// True when the caller gives it: so it is unless a qualifier says otherwise.
    pub fn is_in(&self) -> bool {
        match find(&self.qualifiers, "In") {
            Some(qualifier) => qualifier.value.as_bool() != Some(false),
            None => !has(&self.qualifiers, "Out"),
        }
    }

    /// True when the method gives it.
    pub fn is_out(&self) -> bool {
        has(&self.qualifiers, "Out")
    }
}

/// A method of a class.
#[derive(Debug, Clone, PartialEq)]
pub struct Method {
    /// Its name.
    pub name: Name,
    /// The type of what it returns.
    pub returns: Kind,
    /// Its parameters, in the order they were declared.
    pub parameters: Vec<Parameter>,
    /// Its qualifiers.
    pub qualifiers: Vec<Qualifier>,
    /// The class that introduced it, where that is known.
    pub class_origin: Option<Name>,
    /// True when it was inherited as it is.
    pub is_propagated: bool,
}

impl Method {
    /// True when it can be called on the class itself.
    pub fn is_static(&self) -> bool {
        has(&self.qualifiers, "Static")
    }
}

/// A class.
#[derive(Debug, Clone, PartialEq)]
pub struct Class {
    /// Its name.
    pub name: Name,
    /// The class it extends.
    pub superclass: Option<Name>,
    /// Its qualifiers.
    pub qualifiers: Vec<Qualifier>,
    /// Its properties, inherited ones where they were filled in.
    pub properties: Vec<Property>,
    /// Its methods, inherited ones where they were filled in.
    pub methods: Vec<Method>,
}

impl Class {
    /// A class without members.
    pub fn new(name: impl Into<Name>) -> Self {
        let (qualifiers, properties, methods) = (Vec::new(), Vec::new(), Vec::new());
        Class { name: name.into(), superclass: None, qualifiers, properties, methods }
    }

    /// True when it relates instances to each other.
    pub fn is_association(&self) -> bool {
        has(&self.qualifiers, "Association")
    }

    /// True when its instances tell of events.
    pub fn is_indication(&self) -> bool {
        has(&self.qualifiers, "Indication")
    }

    /// True when only subclasses have instances.
    pub fn is_abstract(&self) -> bool {
        has(&self.qualifiers, "Abstract")
    }

    /// Properties that tell its instances apart.
    pub fn keys(&self) -> impl Iterator<Item = &Property> {
        self.properties.iter().filter(|property| property.is_key())
    }

    /// Properties that are references.
    pub fn references(&self) -> impl Iterator<Item = &Property> {
        self.properties.iter().filter(|property| property.kind.base == CimType::Reference)
    }
}

/// True when a qualifier of that name is there and true.
pub fn has(qualifiers: &[Qualifier], name: &str) -> bool {
    find(qualifiers, name).is_some_and(|qualifier| qualifier.value.as_bool() == Some(true))
}

macro_rules! named {
    ($($kind:ty),*) => {$(
        impl Named for $kind {
            fn name(&self) -> &Name {
                &self.name
            }
        }
    )*};
}

named!(Property, Parameter, Method, Class, Qualifier, QualifierDeclaration);
