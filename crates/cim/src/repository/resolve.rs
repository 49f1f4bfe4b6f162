//! Fills in what a class inherits, and checks that it may change what it changes.
//!
//! Qualifiers travel by their flavors: one that goes to subclasses is inherited unless the subclass gives it, and given another value
//! only where it may be. A member that a subclass declares again must say `Override` and keep its type.

use super::{Repository, SchemaProblem};
use crate::name::Name;
use crate::schema::{Class, Embedded, Kind, Method, Named, Parameter, Property, Qualifier, find};
use crate::value::CimType;

/// A problem, and the member it is with.
type Failed = (Option<Name>, SchemaProblem);

impl Repository {
    /// The class with inherited members and qualifiers. Its superclass is known.
    pub(super) fn resolve(&self, mut class: Class) -> Result<Class, Failed> {
        let superclass = class.superclass.as_ref().and_then(|name| self.class(name));
        if let Some(superclass) = superclass {
            class.qualifiers = inherit(class.qualifiers, &superclass.qualifiers).map_err(|p| (None, p))?;
            if class.is_association() != superclass.is_association() {
                return Err((None, SchemaProblem::Association));
            }
            class.properties = self.resolve_properties(class.properties, &superclass.properties)?;
            class.methods = self.resolve_methods(class.methods, &superclass.methods)?;
        }
        let is_association = class.is_association();
        if let Some(stray) = class.references().next().filter(|_| !is_association) {
            let name = stray.name.clone();
            return Err((Some(name.clone()), SchemaProblem::Reference { name }));
        }
        class.properties.iter_mut().for_each(|property| embed(&mut property.kind, &property.qualifiers));
        for method in &mut class.methods {
            embed(&mut method.returns, &method.qualifiers);
            method.parameters.iter_mut().for_each(|parameter| embed(&mut parameter.kind, &parameter.qualifiers));
        }
        Ok(class)
    }

    /// Inherited ones first, in their places, then new ones.
    fn resolve_properties(&self, own: Vec<Property>, inherited: &[Property]) -> Result<Vec<Property>, Failed> {
        let mut resolved: Vec<Property> = inherited.iter().map(inherited_property).collect();
        for mut property in own {
            let name = property.name.clone();
            let failed = |problem| (Some(name.clone()), problem);
            let Some(index) = overridden(&property, &property.qualifiers, inherited).map_err(failed)? else {
                resolved.push(property);
                continue;
            };
            let base = &inherited[index];
            if !self.narrows(&property.kind, &base.kind) {
                return Err(failed(SchemaProblem::OverrideType { name: name.clone() }));
            }
            property.qualifiers = inherit(property.qualifiers, &base.qualifiers).map_err(failed)?;
            if property.value.is_null() {
                property.value = base.value.clone();
            }
            resolved[index] = property;
        }
        Ok(resolved)
    }

    fn resolve_methods(&self, own: Vec<Method>, inherited: &[Method]) -> Result<Vec<Method>, Failed> {
        let mut resolved: Vec<Method> = inherited.iter().map(inherited_method).collect();
        for mut method in own {
            let name = method.name.clone();
            let failed = |problem| (Some(name.clone()), problem);
            let Some(index) = overridden(&method, &method.qualifiers, inherited).map_err(failed)? else {
                resolved.push(method);
                continue;
            };
            let base = &inherited[index];
            if method.returns.base != base.returns.base {
                return Err(failed(SchemaProblem::OverrideType { name: name.clone() }));
            }
            method.qualifiers = inherit(method.qualifiers, &base.qualifiers).map_err(failed)?;
            for parameter in &mut method.parameters {
                let Some(base) = find(&base.parameters, parameter.name.as_str()) else { continue };
                if !self.narrows(&parameter.kind, &base.kind) {
                    return Err(failed(SchemaProblem::OverrideType { name: parameter.name.clone() }));
                }
                let own = std::mem::take(&mut parameter.qualifiers);
                parameter.qualifiers = inherit(own, &base.qualifiers).map_err(failed)?;
            }
            resolved[index] = method;
        }
        Ok(resolved)
    }

    /// True when a type may stand where the other was: the same, or a reference to something more special. A class that is not known
    /// yet is looked at again by [`Repository::check_references`].
    fn narrows(&self, kind: &Kind, base: &Kind) -> bool {
        let same_shape = kind.base == base.base && kind.is_array() == base.is_array();
        let fits = match (&kind.class, &base.class) {
            (Some(class), Some(wanted)) if kind.base == CimType::Reference => {
                self.class(class).is_none() || self.is_a(class, wanted)
            }
            _ => true,
        };
        same_shape && fits
    }

    /// Looks once more at the references of a class, now that all classes are there.
    pub(super) fn check_references(&self, name: &Name) -> Result<(), SchemaProblem> {
        let Some(class) = self.class(name) else { return Ok(()) };
        let Some(superclass) = self.ancestors(name).next() else { return Ok(()) };
        for property in class.references() {
            let base = find(&superclass.properties, property.name.as_str());
            if base.is_some_and(|base| !self.narrows(&property.kind, &base.kind)) {
                return Err(SchemaProblem::OverrideType { name: property.name.clone() });
            }
        }
        Ok(())
    }
}

/// Which inherited member this one overrides.
fn overridden<T: Named>(own: &T, qualifiers: &[Qualifier], inherited: &[T]) -> Result<Option<usize>, SchemaProblem> {
    let name = own.name().clone();
    let position = |wanted: &str| inherited.iter().position(|member| member.name().is(wanted));
    let target = find(qualifiers, "Override").and_then(|qualifier| qualifier.value.as_str());
    match (target, position(name.as_str())) {
        (None, None) => Ok(None),
        (None, Some(_)) => Err(SchemaProblem::NeedsOverride { name }),
        // An override under another name would leave two members where there was one.
        (Some(target), _) if !name.is(target) => Err(SchemaProblem::Override { name }),
        (Some(_), found) => found.map(Some).ok_or(SchemaProblem::Override { name }),
    }
}

fn inherited_property(base: &Property) -> Property {
    let qualifiers = inherited_qualifiers(&base.qualifiers);
    Property { qualifiers, is_propagated: true, ..base.clone() }
}

fn inherited_method(base: &Method) -> Method {
    let parameters = base.parameters.iter().map(|parameter| {
        let qualifiers = inherited_qualifiers(&parameter.qualifiers);
        Parameter { qualifiers, ..parameter.clone() }
    });
    let qualifiers = inherited_qualifiers(&base.qualifiers);
    Method { parameters: parameters.collect(), qualifiers, is_propagated: true, ..base.clone() }
}

fn inherited_qualifiers(base: &[Qualifier]) -> Vec<Qualifier> {
    let travels = base.iter().filter(|qualifier| qualifier.flavors.to_subclass != Some(false));
    travels.map(|qualifier| Qualifier { is_propagated: true, ..qualifier.clone() }).collect()
}

/// Own qualifiers, and inherited ones that were not given again.
fn inherit(own: Vec<Qualifier>, base: &[Qualifier]) -> Result<Vec<Qualifier>, SchemaProblem> {
    let mut all = own;
    for inherited in inherited_qualifiers(base) {
        match find(&all, inherited.name.as_str()) {
            None => all.push(inherited),
            Some(given) => {
                let may_change = inherited.flavors.overridable != Some(false);
                if !may_change && given.value != inherited.value {
                    return Err(SchemaProblem::NotOverridable { name: inherited.name });
                }
            }
        }
    }
    Ok(all)
}

/// What qualifiers say about embedded objects belongs to the type.
fn embed(kind: &mut Kind, qualifiers: &[Qualifier]) {
    if kind.base != CimType::String {
        return;
    }
    if let Some(qualifier) = find(qualifiers, "EmbeddedInstance") {
        kind.embedded = Some(Embedded::Instance);
        kind.class = qualifier.value.as_str().and_then(|name| Name::parse(name).ok());
    } else if crate::schema::has(qualifiers, "EmbeddedObject") {
        kind.embedded = Some(Embedded::Object);
    }
}
