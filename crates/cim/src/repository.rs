//! Classes with all that they inherit, and what follows from them: what an instance of a class may hold, which keys tell its
//! instances apart, what is a kind of what.
//!
//! A repository is made from MOF and then only read, so it can be shared without locks. One repository serves one namespace.
//!
//! Invariants: a class's superclass is in the repository, and there are no circles. Every property of a class that is found here,
//! inherited ones included, has its declared type, its origin and its qualifiers.

mod compile;
mod instances;
mod resolve;
mod view;

use std::collections::BTreeMap;

pub use compile::{SchemaError, SchemaProblem};
pub use instances::{InstanceProblem, Unknown};
pub use view::View;

use crate::name::Name;
use crate::schema::{Class, Property, QualifierDeclaration};

/// Qualifiers of the standard and those that published schemas use beside them, in MOF.
pub const STANDARD_QUALIFIERS: &str = include_str!("repository/qualifiers.mof");

/// How many classes may extend each other in a row. The longest row of the published schema has nine.
pub const ANCESTORS_MAX: usize = 64;

/// The classes and qualifiers of a namespace.
#[derive(Debug, Clone, Default)]
pub struct Repository {
    qualifiers: BTreeMap<Name, QualifierDeclaration>,
    classes: BTreeMap<Name, Entry>,
}

#[derive(Debug, Clone)]
struct Entry {
    /// With inherited members filled in.
    class: Class,
    /// Classes that extend it directly, in the order they were declared.
    subclasses: Vec<Name>,
}

impl Repository {
    /// A repository without classes, which knows the standard's qualifiers.
    pub fn with_standard_qualifiers() -> Self {
        let mut repository = Repository::default();
        repository.add_text(STANDARD_QUALIFIERS).expect("the kit's own qualifiers make sense");
        repository
    }

    /// A class with all its members.
    pub fn class(&self, name: &Name) -> Option<&Class> {
        self.classes.get(name).map(|entry| &entry.class)
    }

    /// All classes, ordered by name.
    pub fn classes(&self) -> impl Iterator<Item = &Class> {
        self.classes.values().map(|entry| &entry.class)
    }

    /// A qualifier's declaration.
    pub fn qualifier(&self, name: &Name) -> Option<&QualifierDeclaration> {
        self.qualifiers.get(name)
    }

    /// All qualifiers, ordered by name.
    pub fn qualifiers(&self) -> impl Iterator<Item = &QualifierDeclaration> {
        self.qualifiers.values()
    }

    /// Classes that the class extends, the nearest first, without itself.
    pub fn ancestors<'a>(&'a self, name: &Name) -> impl Iterator<Item = &'a Class> {
        let superclass = |class: &&'a Class| class.superclass.as_ref().and_then(|name| self.class(name));
        std::iter::successors(self.class(name), superclass).skip(1)
    }

    /// True when one class is the other or extends it, directly or not.
    pub fn is_a(&self, class: &Name, wanted: &Name) -> bool {
        class == wanted || self.ancestors(class).any(|ancestor| ancestor.name == *wanted)
    }

    /// Classes that extend this one directly; without one, those that extend none.
    pub fn subclasses(&self, of: Option<&Name>) -> Vec<&Class> {
        match of {
            Some(name) => {
                let names = self.classes.get(name).map_or(&[][..], |entry| &entry.subclasses);
                names.iter().filter_map(|name| self.class(name)).collect()
            }
            None => self.classes().filter(|class| class.superclass.is_none()).collect(),
        }
    }

    /// The class itself and all that extend it, directly or not.
    pub fn family(&self, name: &Name) -> Vec<&Class> {
        let mut found: Vec<&Class> = self.class(name).into_iter().collect();
        let mut looked_at = 0;
        while looked_at < found.len() {
            found.extend(self.subclasses(Some(&found[looked_at].name)));
            looked_at += 1;
        }
        found
    }

    /// A property of a class.
    pub fn property(&self, class: &Name, property: &str) -> Option<&Property> {
        crate::schema::find(&self.class(class)?.properties, property)
    }
}

#[cfg(test)]
pub(crate) mod tests;
