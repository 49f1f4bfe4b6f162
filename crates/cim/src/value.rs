//! Values: every CIM type, arrays of them, and NULL.
//!
//! [`Scalar`] is one value with its type, [`Value`] what a property, parameter or qualifier holds. Conversions are exact: a number
//! that does not fit its new type is refused, never cut.
//!
//! Invariant: a `Char16` is one UTF-16 unit and no surrogate, so it can be written in XML and MOF.

mod convert;
mod text;

use std::fmt;

pub use convert::ConvertError;
pub(crate) use text::parse_integer;

use crate::datetime::DateTime;
use crate::path::ObjectPath;
use crate::schema::{Class, Instance};

/// An intrinsic type of CIM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs)] // The names say all there is to say.
pub enum CimType {
    Boolean,
    Uint8,
    Uint16,
    Uint32,
    Uint64,
    Sint8,
    Sint16,
    Sint32,
    Sint64,
    Real32,
    Real64,
    Char16,
    String,
    Datetime,
    Reference,
}

/// Types and their names in MOF and CIM-XML.
const TYPE_NAMES: [(CimType, &str); 15] = [
    (CimType::Boolean, "boolean"),
    (CimType::Uint8, "uint8"),
    (CimType::Uint16, "uint16"),
    (CimType::Uint32, "uint32"),
    (CimType::Uint64, "uint64"),
    (CimType::Sint8, "sint8"),
    (CimType::Sint16, "sint16"),
    (CimType::Sint32, "sint32"),
    (CimType::Sint64, "sint64"),
    (CimType::Real32, "real32"),
    (CimType::Real64, "real64"),
    (CimType::Char16, "char16"),
    (CimType::String, "string"),
    (CimType::Datetime, "datetime"),
    (CimType::Reference, "reference"),
];

impl CimType {
    /// The type of this name, whatever the case.
    pub fn parse(name: &str) -> Option<Self> {
        TYPE_NAMES.iter().find(|(_, known)| known.eq_ignore_ascii_case(name)).map(|(cim_type, _)| *cim_type)
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        TYPE_NAMES.iter().find(|(known, _)| *known == self).map_or("string", |(_, name)| name)
    }

    /// Smallest and largest number of an integer type.
    pub fn integer_range(self) -> Option<(i128, i128)> {
        let (least, most) = match self {
            CimType::Uint8 => (0, u8::MAX.into()),
            CimType::Uint16 => (0, u16::MAX.into()),
            CimType::Uint32 => (0, u32::MAX.into()),
            CimType::Uint64 => (0, u64::MAX.into()),
            CimType::Sint8 => (i8::MIN.into(), i8::MAX.into()),
            CimType::Sint16 => (i16::MIN.into(), i16::MAX.into()),
            CimType::Sint32 => (i32::MIN.into(), i32::MAX.into()),
            CimType::Sint64 => (i64::MIN.into(), i64::MAX.into()),
            _ => return None,
        };
        Some((least, most))
    }

    /// True for the integer types and the real ones.
    pub fn is_numeric(self) -> bool {
        self.integer_range().is_some() || matches!(self, CimType::Real32 | CimType::Real64)
    }
}

impl fmt::Display for CimType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// One value that is not NULL.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)] // Named as their types.
pub enum Scalar {
    Boolean(bool),
    Uint8(u8),
    Uint16(u16),
    Uint32(u32),
    Uint64(u64),
    Sint8(i8),
    Sint16(i16),
    Sint32(i32),
    Sint64(i64),
    Real32(f32),
    Real64(f64),
    Char16(char),
    String(String),
    Datetime(DateTime),
    Reference(Box<ObjectPath>),
    /// An embedded instance; its type is string.
    Instance(Box<Instance>),
    /// An embedded class; its type is string.
    Class(Box<Class>),
}

impl Scalar {
    /// The type. What is embedded counts as a string, as it does in declarations.
    pub fn cim_type(&self) -> CimType {
        match self {
            Scalar::Boolean(_) => CimType::Boolean,
            Scalar::Uint8(_) => CimType::Uint8,
            Scalar::Uint16(_) => CimType::Uint16,
            Scalar::Uint32(_) => CimType::Uint32,
            Scalar::Uint64(_) => CimType::Uint64,
            Scalar::Sint8(_) => CimType::Sint8,
            Scalar::Sint16(_) => CimType::Sint16,
            Scalar::Sint32(_) => CimType::Sint32,
            Scalar::Sint64(_) => CimType::Sint64,
            Scalar::Real32(_) => CimType::Real32,
            Scalar::Real64(_) => CimType::Real64,
            Scalar::Char16(_) => CimType::Char16,
            Scalar::String(_) | Scalar::Instance(_) | Scalar::Class(_) => CimType::String,
            Scalar::Datetime(_) => CimType::Datetime,
            Scalar::Reference(_) => CimType::Reference,
        }
    }

    /// The number of an integer type.
    pub fn as_integer(&self) -> Option<i128> {
        Some(match self {
            Scalar::Uint8(n) => (*n).into(),
            Scalar::Uint16(n) => (*n).into(),
            Scalar::Uint32(n) => (*n).into(),
            Scalar::Uint64(n) => (*n).into(),
            Scalar::Sint8(n) => (*n).into(),
            Scalar::Sint16(n) => (*n).into(),
            Scalar::Sint32(n) => (*n).into(),
            Scalar::Sint64(n) => (*n).into(),
            _ => return None,
        })
    }

    /// The number of a real type.
    pub fn as_real(&self) -> Option<f64> {
        match self {
            Scalar::Real32(n) => Some((*n).into()),
            Scalar::Real64(n) => Some(*n),
            _ => None,
        }
    }

    /// The text of a string.
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Scalar::String(text) => Some(text),
            _ => None,
        }
    }

    /// What a reference leads to.
    pub fn as_path(&self) -> Option<&ObjectPath> {
        match self {
            Scalar::Reference(path) => Some(path),
            _ => None,
        }
    }
}

/// What a property, a parameter or a qualifier holds.
#[derive(Debug, Clone, PartialEq, Default)]
pub enum Value {
    /// Nothing.
    #[default]
    Null,
    /// One value.
    Scalar(Scalar),
    /// An array, some of whose elements may be NULL.
    Array(Vec<Option<Scalar>>),
}

impl Value {
    /// True for NULL.
    pub fn is_null(&self) -> bool {
        matches!(self, Value::Null)
    }

    /// True for an array.
    pub fn is_array(&self) -> bool {
        matches!(self, Value::Array(_))
    }

    /// The value, unless it is NULL or an array.
    pub fn as_scalar(&self) -> Option<&Scalar> {
        match self {
            Value::Scalar(scalar) => Some(scalar),
            _ => None,
        }
    }

    /// The text of a string.
    pub fn as_str(&self) -> Option<&str> {
        self.as_scalar()?.as_str()
    }

    /// The number of an integer type.
    pub fn as_integer(&self) -> Option<i128> {
        self.as_scalar()?.as_integer()
    }

    /// The value of a boolean.
    pub fn as_bool(&self) -> Option<bool> {
        match self.as_scalar()? {
            Scalar::Boolean(value) => Some(*value),
            _ => None,
        }
    }

    /// What a reference leads to.
    pub fn as_path(&self) -> Option<&ObjectPath> {
        self.as_scalar()?.as_path()
    }

    /// An embedded instance.
    pub fn as_instance(&self) -> Option<&Instance> {
        match self.as_scalar()? {
            Scalar::Instance(instance) => Some(instance),
            _ => None,
        }
    }

    /// Values that are there, one by one: none for NULL, one for a single value, those of an array that are not NULL.
    pub fn scalars(&self) -> Box<dyn Iterator<Item = &Scalar> + '_> {
        match self {
            Value::Null => Box::new(std::iter::empty()),
            Value::Scalar(scalar) => Box::new(std::iter::once(scalar)),
            Value::Array(elements) => Box::new(elements.iter().flatten()),
        }
    }
}

macro_rules! scalar_from {
    ($($from:ty => $variant:ident),*) => {$(
        impl From<$from> for Scalar {
            fn from(value: $from) -> Self {
                Scalar::$variant(value)
            }
        }
    )*};
}

scalar_from!(bool => Boolean, u8 => Uint8, u16 => Uint16, u32 => Uint32, u64 => Uint64, i8 => Sint8, i16 => Sint16,
    i32 => Sint32, i64 => Sint64, f32 => Real32, f64 => Real64, String => String, DateTime => Datetime);

impl From<&str> for Scalar {
    fn from(text: &str) -> Self {
        Scalar::String(text.to_string())
    }
}

impl From<ObjectPath> for Scalar {
    fn from(path: ObjectPath) -> Self {
        Scalar::Reference(Box::new(path))
    }
}

impl From<Instance> for Scalar {
    fn from(instance: Instance) -> Self {
        Scalar::Instance(Box::new(instance))
    }
}

impl<T: Into<Scalar>> From<T> for Value {
    fn from(value: T) -> Self {
        Value::Scalar(value.into())
    }
}

impl<T: Into<Scalar>> From<Option<T>> for Value {
    fn from(value: Option<T>) -> Self {
        value.map_or(Value::Null, |value| Value::Scalar(value.into()))
    }
}

impl<T: Into<Scalar>> From<Vec<T>> for Value {
    fn from(values: Vec<T>) -> Self {
        Value::Array(values.into_iter().map(|value| Some(value.into())).collect())
    }
}

#[cfg(test)]
pub(crate) mod tests;
