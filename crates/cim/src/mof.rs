//! MOF, the language in which classes are written: reads it, and writes it.
//!
//! [`parse()`] and [`parse_files`] say what a text declares; nothing is looked up yet, so values are [`Literal`]s. A
//! [`Repository`](crate::repository::Repository) makes classes of that. The dialect is DSP0004's, and what WMI adds to it where
//! that does no harm: lists of flavors behind qualifiers, instances as values of properties, more pragmas.
//!
//! Files are never opened: `#pragma include` finds only what was handed in under that name.
//!
//! Invariant: what is written is read back as it was.

mod lexer;
mod parse;
mod write;

use std::fmt;
use std::sync::Arc;

pub use parse::{parse, parse_files, parse_instance};
pub use write::{class_text, instance_text, qualifier_text};

use crate::name::Name;
use crate::schema::{Flavors, Kind, Scopes};
use crate::value::{CimType, ConvertError, Scalar, Value};

/// Longest text, of all files together. The whole published schema has 10 MiB.
pub const MOF_LEN_MAX: usize = 16 << 20;
/// How deep includes and instances within instances may go.
pub const MOF_DEPTH_MAX: usize = 16;
/// Most declarations in one run. The whole published schema has 2,600.
pub const DECLARATIONS_MAX: usize = 65_536;
/// Most elements of an array.
pub const ELEMENTS_MAX: usize = 65_536;

/// Where in which file something stands. Both numbers begin with 1.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The name under which the file was handed in; empty for a text without a name.
    pub file: Arc<str>,
    /// The line.
    pub line: u32,
    /// The character in the line.
    pub column: u32,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let separator = if self.file.is_empty() { "" } else { ":" };
        write!(f, "{}{separator}{}:{}", self.file, self.line, self.column)
    }
}

/// Why a text is no MOF, and where.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("{place}: {problem}")]
pub struct MofError {
    /// Where.
    pub place: Place,
    /// What.
    pub problem: MofProblem,
}

/// What is wrong with a text.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum MofProblem {
    /// Longer than [`MOF_LEN_MAX`].
    #[error("too much text")]
    TooLong,
    /// Too many declarations, members or elements.
    #[error("too many {what}")]
    TooMany {
        /// Of what.
        what: &'static str,
    },
    /// Deeper than [`MOF_DEPTH_MAX`].
    #[error("nested too deeply")]
    TooDeep,
    /// A text, a character or a comment that does not end.
    #[error("{what} without an end")]
    Unclosed {
        /// Which of them.
        what: &'static str,
    },
    /// A backslash before something that has no meaning there.
    #[error("bad escape in a text")]
    Escape,
    /// Digits that are no number.
    #[error("bad number")]
    Number,
    /// A character that belongs nowhere.
    #[error("unexpected character {0:?}")]
    Character(char),
    /// Something else than what must stand here.
    #[error("expected {expected}, found {found}")]
    Expected {
        /// What must stand here.
        expected: &'static str,
        /// What does.
        found: String,
    },
    /// A name twice.
    #[error("{name} twice")]
    Twice {
        /// The name.
        name: Name,
    },
    /// An include of a file that was not handed in.
    #[error("file {name:?} was not handed in")]
    Include {
        /// Its name.
        name: String,
    },
    /// A value of another type than declared.
    #[error("wrong value")]
    Value(#[source] ConvertError),
    /// An alias that nothing is known under.
    #[error("alias ${0} stands for nothing")]
    Alias(Name),
}

/// One declaration of a text.
#[derive(Debug, Clone, PartialEq)]
pub enum Declaration {
    /// `#pragma name ("argument")`, but for includes, which were followed.
    Pragma {
        /// What it is about.
        name: String,
        /// What it says.
        argument: String,
    },
    /// A qualifier.
    Qualifier(QualifierLiteral),
    /// A class.
    Class(ClassLiteral),
    /// An instance.
    Instance(InstanceLiteral),
}

/// A qualifier's declaration, as written.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)] // As in `QualifierDeclaration`.
pub struct QualifierLiteral {
    pub place: Place,
    pub name: Name,
    pub kind: Kind,
    pub value: Literal,
    pub scopes: Scopes,
    pub flavors: Flavors,
}

/// A qualifier on something, as written. Without a value it means yes, or whatever its declaration says.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)] // As in `Qualifier`.
pub struct QualifierUse {
    pub place: Place,
    pub name: Name,
    pub value: Option<Literal>,
    pub flavors: Flavors,
}

/// A class, as written.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)] // As in `Class`.
pub struct ClassLiteral {
    pub place: Place,
    pub qualifiers: Vec<QualifierUse>,
    pub name: Name,
    pub superclass: Option<Name>,
    pub properties: Vec<PropertyLiteral>,
    pub methods: Vec<MethodLiteral>,
}

/// A property or a parameter, as written.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)] // As in `Property`.
pub struct PropertyLiteral {
    pub place: Place,
    pub qualifiers: Vec<QualifierUse>,
    pub kind: Kind,
    pub name: Name,
    pub default: Option<Literal>,
}

/// A method, as written.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)] // As in `Method`.
pub struct MethodLiteral {
    pub place: Place,
    pub qualifiers: Vec<QualifierUse>,
    pub returns: Kind,
    pub name: Name,
    pub parameters: Vec<PropertyLiteral>,
}

/// An instance, as written.
#[derive(Debug, Clone, PartialEq)]
pub struct InstanceLiteral {
    /// Where it stands.
    pub place: Place,
    /// Its class.
    pub class: Name,
    /// The name others refer to it by.
    pub alias: Option<Name>,
    /// Its properties with their places.
    pub properties: Vec<(Place, Name, Literal)>,
}

/// A value, as written.
#[derive(Debug, Clone, PartialEq)]
pub enum Literal {
    /// `NULL`
    Null,
    /// `true` or `false`
    Boolean(bool),
    /// `5`, `0x1F`, `101b`, `017`
    Integer(i128),
    /// `1.5e3`
    Real(f64),
    /// `'c'`
    Char(char),
    /// `"a" "b"`
    Text(String),
    /// `$Alias`
    Alias(Name),
    /// `instance of X { … }`
    Instance(Box<InstanceLiteral>),
    /// `{ 1, 2 }`
    Array(Vec<Literal>),
}

impl Literal {
    /// The value with the type it has by itself: integers are as wide as they must be, but no narrower than 64 bits.
    ///
    /// Aliases stand for nothing here; a repository knows what they stand for.
    pub fn infer(self) -> Result<Value, MofProblem> {
        match self {
            Literal::Null => Ok(Value::Null),
            Literal::Array(elements) => {
                Ok(Value::Array(elements.into_iter().map(Literal::infer_one).collect::<Result<_, _>>()?))
            }
            other => Ok(other.infer_one()?.map_or(Value::Null, Value::Scalar)),
        }
    }

    fn infer_one(self) -> Result<Option<Scalar>, MofProblem> {
        Ok(Some(match self {
            Literal::Null => return Ok(None),
            Literal::Boolean(value) => Scalar::Boolean(value),
            Literal::Integer(n) => {
                let signed = Scalar::integer(CimType::Sint64, n);
                signed.or_else(|_| Scalar::integer(CimType::Uint64, n)).map_err(MofProblem::Value)?
            }
            Literal::Real(n) => Scalar::Real64(n),
            Literal::Char(c) => Scalar::Char16(c),
            Literal::Text(text) => Scalar::String(text),
            Literal::Alias(name) => return Err(MofProblem::Alias(name)),
            Literal::Instance(literal) => Scalar::from(literal.infer()?),
            Literal::Array(_) => return Err(MofProblem::Value(ConvertError::Array)),
        }))
    }

    /// The value as a declaration wants it.
    pub fn to_value(self, kind: &Kind) -> Result<Value, MofProblem> {
        self.infer()?.conform(kind).map_err(MofProblem::Value)
    }
}

impl InstanceLiteral {
    /// The instance with the types its values have by themselves.
    pub fn infer(self) -> Result<crate::schema::Instance, MofProblem> {
        let mut instance = crate::schema::Instance::new(self.class);
        for (_, name, literal) in self.properties {
            instance.properties.push(crate::schema::Property::of(name, literal.infer()?));
        }
        Ok(instance)
    }
}

#[cfg(test)]
mod tests;
