//! Qualifiers: what they say, where they may stand, and whether subclasses inherit and may change them.

use super::Kind;
use crate::name::Name;
use crate::value::Value;

/// How a qualifier travels. What is not said follows from the declaration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Flavors {
    /// Subclasses may give it another value.
    pub overridable: Option<bool>,
    /// Subclasses inherit it.
    pub to_subclass: Option<bool>,
    /// Instances carry it; deprecated, kept because clients show it.
    pub to_instance: Option<bool>,
    /// Its text may be translated.
    pub translatable: Option<bool>,
}

impl Flavors {
    /// What the specification says where a declaration says nothing.
    pub const DEFAULT: Flavors = Flavors {
        overridable: Some(true),
        to_subclass: Some(true),
        to_instance: Some(false),
        translatable: Some(false),
    };

    /// These, with gaps filled from others.
    pub fn or(self, others: Flavors) -> Self {
        Flavors {
            overridable: self.overridable.or(others.overridable),
            to_subclass: self.to_subclass.or(others.to_subclass),
            to_instance: self.to_instance.or(others.to_instance),
            translatable: self.translatable.or(others.translatable),
        }
    }

    /// Adds a word of MOF. WMI's own words are known and change nothing here. False for words nobody knows.
    pub fn add(&mut self, word: &str) -> bool {
        match word.to_ascii_lowercase().as_str() {
            "enableoverride" => self.overridable = Some(true),
            "disableoverride" => self.overridable = Some(false),
            "tosubclass" => self.to_subclass = Some(true),
            "restricted" | "nottosubclass" => self.to_subclass = Some(false),
            "toinstance" => self.to_instance = Some(true),
            "nottoinstance" => self.to_instance = Some(false),
            "translatable" => self.translatable = Some(true),
            "amended" => {}
            _ => return false,
        }
        true
    }
}

/// A qualifier on a class or a member.
#[derive(Debug, Clone, PartialEq)]
pub struct Qualifier {
    /// Its name.
    pub name: Name,
    /// Its type.
    pub kind: Kind,
    /// What it says.
    pub value: Value,
    /// How it travels.
    pub flavors: Flavors,
    /// True when it was inherited.
    pub is_propagated: bool,
}

impl Qualifier {
    /// A qualifier of the type its value has.
    pub fn new(name: impl Into<Name>, value: impl Into<Value>) -> Self {
        let value = value.into();
        let kind = Kind::of(&value).unwrap_or(Kind::scalar(crate::value::CimType::String));
        Qualifier { name: name.into(), kind, value, flavors: Flavors::default(), is_propagated: false }
    }
}

/// What a qualifier may stand on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[allow(missing_docs)] // The names say it.
pub enum Scope {
    Class,
    Association,
    Reference,
    Property,
    Method,
    Parameter,
    Indication,
}

impl Scope {
    /// All of them, with their names, in the order in which CIM-XML lists them.
    pub const ALL: [(Scope, &'static str); 7] = [
        (Scope::Class, "CLASS"),
        (Scope::Association, "ASSOCIATION"),
        (Scope::Reference, "REFERENCE"),
        (Scope::Property, "PROPERTY"),
        (Scope::Method, "METHOD"),
        (Scope::Parameter, "PARAMETER"),
        (Scope::Indication, "INDICATION"),
    ];
}

/// A set of scopes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Scopes(u8);

impl Scopes {
    /// Every scope.
    pub const ANY: Scopes = Scopes(0x7f);

    /// True when the scope is among them.
    pub fn contains(self, scope: Scope) -> bool {
        self.0 & (1 << scope as u8) != 0
    }

    /// Adds the scope of a name in MOF, or all for `any`. False for names nobody knows, but for those of later versions, which change
    /// nothing here.
    pub fn add(&mut self, word: &str) -> bool {
        if word.eq_ignore_ascii_case("any") {
            *self = Scopes::ANY;
            return true;
        }
        let known = Scope::ALL.iter().find(|(_, name)| name.eq_ignore_ascii_case(word));
        if let Some((scope, _)) = known {
            self.0 |= 1 << *scope as u8;
        }
        let later = ["schema", "qualifier", "enumeration", "enumerationvalue", "structure", "qualifiertype"];
        known.is_some() || later.iter().any(|name| name.eq_ignore_ascii_case(word))
    }
}

/// The declaration of a qualifier.
#[derive(Debug, Clone, PartialEq)]
pub struct QualifierDeclaration {
    /// Its name.
    pub name: Name,
    /// Its type.
    pub kind: Kind,
    /// What it says where it stands without a value, and where it does not stand.
    pub value: Value,
    /// Where it may stand.
    pub scopes: Scopes,
    /// How it travels.
    pub flavors: Flavors,
}
