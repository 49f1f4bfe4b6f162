//! Names of classes, properties, methods, qualifiers and namespaces: bounded, checked, and compared without regard to case.
//!
//! Case is folded for ASCII letters only; that is what every known client and schema uses, and it cannot depend on a locale.

use std::borrow::Cow;
use std::cmp::Ordering;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

/// Longest name of an element. The longest in the published schemas has 91 bytes.
pub const NAME_LEN_MAX: usize = 256;
/// Longest name of a namespace.
pub const NAMESPACE_LEN_MAX: usize = 256;
/// Most components of a namespace's name.
pub const NAMESPACE_DEPTH_MAX: usize = 16;

/// A text that is no name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Nothing at all.
    #[error("empty name")]
    Empty,
    /// Longer than [`NAME_LEN_MAX`] or [`NAMESPACE_LEN_MAX`] bytes, or of too many components.
    #[error("name of {len} bytes is too long")]
    TooLong {
        /// Its length.
        len: usize,
    },
    /// Holds a character that no name holds, or begins with a digit.
    #[error("{character:?} cannot stand at that place of a name")]
    Character {
        /// The character.
        character: char,
    },
}

/// A CIM identifier. Compares, orders and hashes without regard to the case of ASCII letters; shows itself as it was written.
#[derive(Clone)]
pub struct Name(Arc<str>);

impl Name {
    /// Checks and takes a text.
    pub fn parse(text: &str) -> Result<Self, NameError> {
        if text.len() > NAME_LEN_MAX {
            return Err(NameError::TooLong { len: text.len() });
        }
        let first = text.chars().next().ok_or(NameError::Empty)?;
        let stranger = (!is_name_start(first)).then_some(first).or_else(|| text.chars().find(|c| !is_name_part(*c)));
        match stranger {
            Some(character) => Err(NameError::Character { character }),
            None => Ok(Name(text.into())),
        }
    }

    /// The name as it was written.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// True when the name is this text, whatever the case.
    pub fn is(&self, text: &str) -> bool {
        self.0.eq_ignore_ascii_case(text)
    }

    fn folded(&self) -> impl Iterator<Item = u8> + '_ {
        self.0.bytes().map(|byte| byte.to_ascii_lowercase())
    }
}

/// True for a character that may begin a name.
pub(crate) fn is_name_start(c: char) -> bool {
    c.is_ascii_alphabetic() || c == '_' || ('\u{80}'..='\u{ffef}').contains(&c)
}

/// True for a character that may stand in a name.
pub(crate) fn is_name_part(c: char) -> bool {
    is_name_start(c) || c.is_ascii_digit()
}

impl From<&'static str> for Name {
    /// Takes a constant of the program.
    ///
    /// # Panics
    /// When the constant is no name. Text from outside goes through [`Name::parse`].
    fn from(text: &'static str) -> Self {
        Name::parse(text).expect("a constant of the program is a name")
    }
}

impl PartialEq for Name {
    fn eq(&self, other: &Self) -> bool {
        self.is(&other.0)
    }
}

impl Eq for Name {}

impl PartialEq<str> for Name {
    fn eq(&self, other: &str) -> bool {
        self.is(other)
    }
}

impl PartialEq<&str> for Name {
    fn eq(&self, other: &&str) -> bool {
        self.is(other)
    }
}

impl PartialOrd for Name {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Name {
    fn cmp(&self, other: &Self) -> Ordering {
        self.folded().cmp(other.folded())
    }
}

impl Hash for Name {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.folded().for_each(|byte| state.write_u8(byte));
        state.write_u8(0xff);
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&*self.0, f)
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A namespace's name such as `root/interop`: components between slashes, none at either end.
#[derive(Clone)]
pub struct Namespace(Arc<str>);

impl Namespace {
    /// Reads a namespace in any spelling: slashes or backslashes, also doubled or at the ends.
    pub fn parse(text: &str) -> Result<Self, NameError> {
        if text.len() > 2 * NAMESPACE_LEN_MAX {
            return Err(NameError::TooLong { len: text.len() });
        }
        let slashed: Cow<'_, str> = if text.contains('\\') { text.replace('\\', "/").into() } else { text.into() };
        let components: Vec<&str> = slashed.split('/').filter(|component| !component.is_empty()).collect();
        Self::from_components(&components)
    }

    /// Puts a namespace together.
    pub fn from_components(components: &[&str]) -> Result<Self, NameError> {
        let joined = components.join("/");
        if joined.is_empty() {
            return Err(NameError::Empty);
        }
        if joined.len() > NAMESPACE_LEN_MAX || components.len() > NAMESPACE_DEPTH_MAX {
            return Err(NameError::TooLong { len: joined.len() });
        }
        let stranger =
            components.iter().flat_map(|part| part.chars()).find(|c| !is_name_part(*c) && !"-.".contains(*c));
        match stranger {
            Some(character) => Err(NameError::Character { character }),
            None => Ok(Namespace(joined.into())),
        }
    }

    /// The name with slashes.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// What stands between the slashes.
    pub fn components(&self) -> impl Iterator<Item = &str> {
        self.0.split('/')
    }

    fn folded(&self) -> impl Iterator<Item = u8> + '_ {
        self.0.bytes().map(|byte| byte.to_ascii_lowercase())
    }
}

impl From<&'static str> for Namespace {
    /// Takes a constant of the program.
    ///
    /// # Panics
    /// When the constant is no namespace. Text from outside goes through [`Namespace::parse`].
    fn from(text: &'static str) -> Self {
        Namespace::parse(text).expect("a constant of the program is a namespace")
    }
}

impl PartialEq for Namespace {
    fn eq(&self, other: &Self) -> bool {
        self.0.eq_ignore_ascii_case(&other.0)
    }
}

impl Eq for Namespace {}

impl PartialOrd for Namespace {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Namespace {
    fn cmp(&self, other: &Self) -> Ordering {
        self.folded().cmp(other.folded())
    }
}

impl fmt::Debug for Namespace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&*self.0, f)
    }
}

impl fmt::Display for Namespace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::{BTreeSet, HashSet};

    #[test]
    fn names_that_differ_in_case_are_one_name_everywhere() {
        let (a, b) = (Name::from("Toy_Device"), Name::from("TOY_device"));
        assert_eq!(a, b);
        assert_eq!(a.cmp(&b), Ordering::Equal);
        assert!(HashSet::from([a.clone()]).contains(&b));
        assert!(BTreeSet::from([a.clone()]).contains(&b));
        assert_eq!(a.to_string(), "Toy_Device");
        assert_ne!(a, Name::from("Toy_Devic"));
    }

    #[test]
    fn what_is_no_name_is_refused_with_its_reason() {
        assert_eq!(Name::parse(""), Err(NameError::Empty));
        assert_eq!(Name::parse("1st"), Err(NameError::Character { character: '1' }));
        assert_eq!(Name::parse("a b"), Err(NameError::Character { character: ' ' }));
        assert_eq!(Name::parse("a\"b"), Err(NameError::Character { character: '"' }));
        assert!(Name::parse("__CLASS").is_ok() && Name::parse("Größe").is_ok());
        let long = "x".repeat(NAME_LEN_MAX);
        assert!(Name::parse(&long).is_ok() && Name::parse(&(long + "x")).is_err());
    }

    #[test]
    fn a_namespace_is_the_same_in_every_spelling() {
        let wanted = Namespace::from("root/virtualization/v2");
        for text in
            ["root/virtualization/v2", "/root/virtualization/v2/", r"ROOT\virtualization\V2", "root//virtualization/v2"]
        {
            assert_eq!(Namespace::parse(text).unwrap(), wanted, "{text}");
        }
        assert_eq!(wanted.components().collect::<Vec<_>>(), ["root", "virtualization", "v2"]);
        assert_eq!(Namespace::parse("//"), Err(NameError::Empty));
        assert!(Namespace::parse("root:v2").is_err() && Namespace::parse(&"a/".repeat(17)).is_err());
    }
}
