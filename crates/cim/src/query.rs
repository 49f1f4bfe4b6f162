//! Queries: WQL as WMI speaks it, the part of CQL that looks the same, and the filters of pulled enumerations (FQL).
//!
//! ```text
//! SELECT * | a, b.c  FROM Class [WITHIN seconds] [WHERE condition]
//! ASSOCIATORS OF {path} [WHERE AssocClass = C  ResultClass = C  Role = p  ResultRole = p  ClassDefsOnly]
//! REFERENCES OF {path}  [WHERE ResultClass = C  Role = p  ClassDefsOnly]
//! condition   AND OR NOT ( )   = <> != < <= > >=   LIKE   IS [NOT] NULL   ISA
//! ```
//!
//! A comparison with NULL, or of things that cannot be compared, is neither true nor false, and what is not true is not selected. Texts
//! compare without regard to case in WQL, with it elsewhere.

mod evaluate;
mod lexer;
mod parse;

pub use evaluate::Evaluator;

use crate::datetime::DateTime;
use crate::name::Name;
use crate::path::{ObjectPath, PathError};
use crate::value::Scalar;

/// Longest query.
pub const QUERY_LEN_MAX: usize = 64 << 10;
/// Parentheses and negations within each other.
pub const QUERY_DEPTH_MAX: usize = 32;
/// Most words and signs of a query.
pub const QUERY_TOKENS_MAX: usize = 8_192;

/// What a query is written in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Language {
    /// WMI's.
    Wql,
    /// The DMTF's (DSP0202).
    Cql,
    /// A condition by itself (DSP0212).
    Fql,
}

impl Language {
    /// The language of that name in CIM-XML.
    pub fn parse(name: &str) -> Option<Self> {
        match name.trim().to_ascii_lowercase().as_str() {
            "wql" => Some(Language::Wql),
            "dmtf:cql" | "cql" | "cim:cql" => Some(Language::Cql),
            "dmtf:fql" | "fql" => Some(Language::Fql),
            _ => None,
        }
    }
}

/// Why a text is no query.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum QueryError {
    /// Longer than [`QUERY_LEN_MAX`] or of more than [`QUERY_TOKENS_MAX`] words.
    #[error("the query is too long")]
    TooLong,
    /// Deeper than [`QUERY_DEPTH_MAX`].
    #[error("the query is nested too deeply")]
    TooDeep,
    /// A text without its closing quote, or a path without its brace.
    #[error("the query ends within {what}")]
    Unclosed {
        /// Within what.
        what: &'static str,
    },
    /// Something else than what must stand here.
    #[error("expected {expected} at byte {at}, found {found}")]
    Expected {
        /// What must stand here.
        expected: &'static str,
        /// What does.
        found: String,
        /// Where.
        at: usize,
    },
    /// No path between the braces.
    #[error("bad object path")]
    Path(#[from] PathError),
}

/// A query.
#[derive(Debug, Clone, PartialEq)]
pub enum Query {
    /// Instances of a class.
    Select(Select),
    /// What is at the other ends of associations.
    Associators(AssociationQuery),
    /// Associations themselves.
    References(AssociationQuery),
}

/// `SELECT`
#[derive(Debug, Clone, PartialEq)]
pub struct Select {
    /// What to show; nothing said means everything.
    pub properties: Option<Vec<PropertyPath>>,
    /// Of which class.
    pub class: Name,
    /// Which of them.
    pub condition: Option<Condition>,
    /// For events: how often to look, in seconds.
    pub within: Option<f64>,
}

/// A property, perhaps of an instance that is embedded in another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PropertyPath(pub Vec<Name>);

/// `ASSOCIATORS OF` and `REFERENCES OF`
#[derive(Debug, Clone, PartialEq)]
pub struct AssociationQuery {
    /// Where to start.
    pub source: ObjectPath,
    /// Only through associations of this class.
    pub association_class: Option<Name>,
    /// Only results of this class.
    pub result_class: Option<Name>,
    /// Only where the source plays this role.
    pub role: Option<Name>,
    /// Only where the result plays this role.
    pub result_role: Option<Name>,
    /// Classes instead of instances.
    pub classes_only: bool,
}

/// What an instance must meet.
#[derive(Debug, Clone, PartialEq)]
pub enum Condition {
    /// All of them.
    And(Vec<Condition>),
    /// One of them.
    Or(Vec<Condition>),
    /// Not this.
    Not(Box<Condition>),
    /// A property beside a constant, or beside another property.
    Compare {
        /// What stands on the left.
        left: Operand,
        /// The sign between them.
        sign: Sign,
        /// What stands on the right.
        right: Operand,
    },
    /// A text that looks like a pattern: `%` stands for anything, `_` for one character, `[a-f]` and `[^a]` for one of some.
    Like(PropertyPath, String),
    /// NULL.
    IsNull(PropertyPath),
    /// An instance of a class; the property is an embedded one, or nothing for the instance itself.
    IsA(Option<PropertyPath>, Name),
}

/// A side of a comparison.
#[derive(Debug, Clone, PartialEq)]
pub enum Operand {
    /// The value of a property.
    Property(PropertyPath),
    /// A constant.
    Constant(Scalar),
}

/// How two values compare.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)] // The names say it.
pub enum Sign {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

impl Query {
    /// Reads a query.
    pub fn parse(text: &str, language: Language) -> Result<Self, QueryError> {
        parse::query(text, language)
    }
}

impl Condition {
    /// Reads a condition by itself.
    pub fn parse(text: &str) -> Result<Self, QueryError> {
        parse::condition(text)
    }

    /// Every property it looks at.
    pub fn properties(&self) -> Vec<&PropertyPath> {
        match self {
            Condition::And(all) | Condition::Or(all) => all.iter().flat_map(Condition::properties).collect(),
            Condition::Not(one) => one.properties(),
            Condition::Compare { left, right, .. } => [left, right].into_iter().filter_map(Operand::property).collect(),
            Condition::Like(path, _) | Condition::IsNull(path) => vec![path],
            Condition::IsA(path, _) => path.iter().collect(),
        }
    }
}

impl Operand {
    fn property(&self) -> Option<&PropertyPath> {
        match self {
            Operand::Property(path) => Some(path),
            Operand::Constant(_) => None,
        }
    }
}

/// Moments and intervals order among themselves only.
pub(crate) fn compare_datetimes(a: &DateTime, b: &DateTime) -> Option<std::cmp::Ordering> {
    match (a.unix_micros(), b.unix_micros(), a.interval(), b.interval()) {
        (Some(a), Some(b), _, _) => Some(a.cmp(&b)),
        (_, _, Some(a), Some(b)) => Some(a.cmp(&b)),
        _ => (a == b).then_some(std::cmp::Ordering::Equal),
    }
}

#[cfg(test)]
mod tests;
