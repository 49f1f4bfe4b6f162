//! Makes qualifiers, classes and instances of what a text declares.

use std::collections::BTreeMap;

use super::{ANCESTORS_MAX, Entry, InstanceProblem, Repository, Unknown};
use crate::mof::{
    ClassLiteral, Declaration, InstanceLiteral, Literal, MethodLiteral, MofError, MofProblem, Place, PropertyLiteral,
    QualifierLiteral, QualifierUse, parse, parse_files,
};
use crate::name::Name;
use crate::path::ObjectPath;
use crate::schema::{
    Class, Flavors, Instance, Kind, Method, NamedInstance, Parameter, Property, Qualifier, QualifierDeclaration, Scope,
};
use crate::value::{CimType, Scalar, Value};

/// Why declarations make no sense, and where.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("{place}: {problem}")]
pub struct SchemaError {
    /// Where.
    pub place: Place,
    /// What.
    pub problem: SchemaProblem,
}

/// What is wrong with a declaration.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[allow(missing_docs)] // The messages say it.
pub enum SchemaProblem {
    #[error("no MOF")]
    Mof(#[source] MofProblem),
    #[error("{name} is declared already")]
    Exists { name: Name },
    #[error("superclass {name} is not known")]
    Superclass { name: Name },
    #[error("too many classes extend each other")]
    TooManyAncestors,
    #[error("class {name} is not known")]
    Class { name: Name },
    #[error("qualifier {name} is not declared")]
    Qualifier { name: Name },
    #[error("qualifier {name} may not stand there")]
    Scope { name: Name },
    #[error("qualifier {name} may not be given another value")]
    NotOverridable { name: Name },
    #[error("{name} is inherited already; to change it, it must say Override")]
    NeedsOverride { name: Name },
    #[error("{name} has another type than what it overrides")]
    OverrideType { name: Name },
    #[error("{name} is no longer what it overrides")]
    Override { name: Name },
    #[error("{name} is a reference, but the class is no association")]
    Reference { name: Name },
    #[error("an association must stay one, and only an association can be extended by one")]
    Association,
    #[error("bad instance")]
    Instance(#[source] InstanceProblem),
}

type Made<T> = Result<T, SchemaError>;

fn fail<T>(place: &Place, problem: SchemaProblem) -> Made<T> {
    Err(SchemaError { place: place.clone(), problem })
}

impl From<MofError> for SchemaError {
    fn from(err: MofError) -> Self {
        SchemaError { place: err.place, problem: SchemaProblem::Mof(err.problem) }
    }
}

impl Repository {
    /// Adds what a text declares. The instances among it are given back with their paths, aliases replaced.
    pub fn add_text(&mut self, text: &str) -> Made<Vec<NamedInstance>> {
        self.add(parse(text)?)
    }

    /// Adds what a file declares, and those it includes; see [`parse_files`].
    pub fn add_files(&mut self, files: &[(&str, &str)], first: &str) -> Made<Vec<NamedInstance>> {
        self.add(parse_files(files, first)?)
    }

    /// Adds declarations. Pragmas say nothing here: whoever adds knows for which namespace.
    ///
    /// After a failure the repository holds what was declared before the place that failed.
    pub fn add(&mut self, declarations: Vec<Declaration>) -> Made<Vec<NamedInstance>> {
        let mut referred: Vec<(Place, Name)> = Vec::new();
        let mut added: Vec<(Place, Name)> = Vec::new();
        let mut instances = Instances::default();
        for declaration in declarations {
            match declaration {
                Declaration::Pragma { .. } => {}
                Declaration::Qualifier(literal) => self.add_qualifier(literal)?,
                Declaration::Class(literal) => {
                    referred.extend(referred_classes(&literal));
                    added.push((literal.place.clone(), literal.name.clone()));
                    self.add_class(&literal)?;
                }
                Declaration::Instance(literal) => instances.add(self, literal)?,
            }
        }
        // A class may refer to one that is declared behind it.
        if let Some((place, name)) = referred.into_iter().find(|(_, name)| self.class(name).is_none()) {
            return fail(&place, SchemaProblem::Class { name });
        }
        for (place, name) in added {
            self.check_references(&name).map_err(|problem| SchemaError { place, problem })?;
        }
        Ok(instances.made)
    }

    fn add_qualifier(&mut self, literal: QualifierLiteral) -> Made<()> {
        let QualifierLiteral { place, name, kind, value, scopes, flavors } = literal;
        let value = value.to_value(&kind).map_err(|problem| mof(&place, problem))?;
        let flavors = flavors.or(Flavors::DEFAULT);
        let declaration = QualifierDeclaration { name: name.clone(), kind, value, scopes, flavors };
        match self.qualifiers.get(&name) {
            Some(known) if *known != declaration => fail(&place, SchemaProblem::Exists { name }),
            _ => {
                self.qualifiers.insert(name, declaration);
                Ok(())
            }
        }
    }

    fn add_class(&mut self, literal: &ClassLiteral) -> Made<()> {
        let (place, name) = (&literal.place, literal.name.clone());
        if self.classes.contains_key(&name) {
            return fail(place, SchemaProblem::Exists { name });
        }
        if self.ancestors_of_new(literal)? >= ANCESTORS_MAX {
            return fail(place, SchemaProblem::TooManyAncestors);
        }
        let class = self.typed_class(literal)?;
        let resolved = self.resolve(class).map_err(|(member, problem)| self.locate(literal, member, problem))?;
        if let Some(superclass) = &resolved.superclass {
            let parent = self.classes.get_mut(superclass).expect("a superclass was looked up before");
            parent.subclasses.push(name.clone());
        }
        self.classes.insert(name, Entry { class: resolved, subclasses: Vec::new() });
        Ok(())
    }

    fn ancestors_of_new(&self, literal: &ClassLiteral) -> Made<usize> {
        let Some(superclass) = &literal.superclass else { return Ok(0) };
        match self.class(superclass) {
            Some(_) => Ok(1 + self.ancestors(superclass).count()),
            None => fail(&literal.place, SchemaProblem::Superclass { name: superclass.clone() }),
        }
    }

    /// Where a member of a class stands, or the class itself.
    fn locate(&self, literal: &ClassLiteral, member: Option<Name>, problem: SchemaProblem) -> SchemaError {
        let properties = literal.properties.iter().map(|property| (&property.name, &property.place));
        let methods = literal.methods.iter().map(|method| (&method.name, &method.place));
        let found = properties.chain(methods).find(|(name, _)| Some(*name) == member.as_ref());
        SchemaError { place: found.map_or(&literal.place, |(_, place)| place).clone(), problem }
    }

    /// The class by itself, its values and qualifiers with their declared types.
    fn typed_class(&self, literal: &ClassLiteral) -> Made<Class> {
        let is =
            |name: &str| literal.qualifiers.iter().any(|q| q.name.is(name) && q.value != Some(Literal::Boolean(false)));
        let scopes: &[Scope] = match (is("Association"), is("Indication")) {
            (true, _) => &[Scope::Association, Scope::Class],
            (_, true) => &[Scope::Indication, Scope::Class],
            _ => &[Scope::Class],
        };
        let properties = literal.properties.iter().map(|property| self.typed_property(&literal.name, property));
        let methods = literal.methods.iter().map(|method| self.typed_method(&literal.name, method));
        Ok(Class {
            name: literal.name.clone(),
            superclass: literal.superclass.clone(),
            qualifiers: self.typed_qualifiers(&literal.qualifiers, scopes)?,
            properties: properties.collect::<Made<_>>()?,
            methods: methods.collect::<Made<_>>()?,
        })
    }

    fn typed_property(&self, class: &Name, literal: &PropertyLiteral) -> Made<Property> {
        let is_reference = literal.kind.base == CimType::Reference;
        let scopes: &[Scope] = if is_reference { &[Scope::Reference, Scope::Property] } else { &[Scope::Property] };
        let mut property = Property::new(literal.name.clone(), literal.kind.clone());
        property.qualifiers = self.typed_qualifiers(&literal.qualifiers, scopes)?;
        property.class_origin = Some(class.clone());
        if let Some(default) = literal.default.clone() {
            property.value = default.to_value(&literal.kind).map_err(|problem| mof(&literal.place, problem))?;
        }
        Ok(property)
    }

    fn typed_method(&self, class: &Name, literal: &MethodLiteral) -> Made<Method> {
        let parameters = literal.parameters.iter().map(|parameter| {
            let qualifiers = self.typed_qualifiers(&parameter.qualifiers, &[Scope::Parameter])?;
            Ok(Parameter { name: parameter.name.clone(), kind: parameter.kind.clone(), qualifiers })
        });
        Ok(Method {
            name: literal.name.clone(),
            returns: literal.returns.clone(),
            parameters: parameters.collect::<Made<_>>()?,
            qualifiers: self.typed_qualifiers(&literal.qualifiers, &[Scope::Method])?,
            class_origin: Some(class.clone()),
            is_propagated: false,
        })
    }

    fn typed_qualifiers(&self, uses: &[QualifierUse], scopes: &[Scope]) -> Made<Vec<Qualifier>> {
        uses.iter().map(|one| self.typed_qualifier(one, scopes)).collect()
    }

    fn typed_qualifier(&self, one: &QualifierUse, scopes: &[Scope]) -> Made<Qualifier> {
        let name = one.name.clone();
        let Some(declared) = self.qualifiers.get(&name) else {
            return fail(&one.place, SchemaProblem::Qualifier { name });
        };
        if !scopes.iter().any(|scope| declared.scopes.contains(*scope)) {
            return fail(&one.place, SchemaProblem::Scope { name });
        }
        let value = match &one.value {
            Some(literal) => literal.clone().to_value(&declared.kind).map_err(|problem| mof(&one.place, problem))?,
            None if declared.kind == Kind::scalar(CimType::Boolean) => Value::from(true),
            None => declared.value.clone(),
        };
        let flavors = one.flavors.or(declared.flavors);
        Ok(Qualifier { name: declared.name.clone(), kind: declared.kind.clone(), value, flavors, is_propagated: false })
    }
}

fn mof(place: &Place, problem: MofProblem) -> SchemaError {
    SchemaError { place: place.clone(), problem: SchemaProblem::Mof(problem) }
}

fn referred_classes(literal: &ClassLiteral) -> Vec<(Place, Name)> {
    let parameters = literal.methods.iter().flat_map(|method| &method.parameters);
    let members = literal.properties.iter().chain(parameters);
    members.filter_map(|member| Some((member.place.clone(), member.kind.class.clone()?))).collect()
}

/// Instances of a text, and what their aliases stand for.
#[derive(Default)]
struct Instances {
    made: Vec<NamedInstance>,
    aliases: BTreeMap<Name, ObjectPath>,
}

impl Instances {
    fn add(&mut self, repository: &Repository, literal: InstanceLiteral) -> Made<()> {
        let (place, alias) = (literal.place.clone(), literal.alias.clone());
        let mut instance = Instance::new(literal.class);
        for (place, name, value) in literal.properties {
            let value = self.value(value).map_err(|problem| mof(&place, problem))?;
            instance.properties.push(Property::of(name, value));
        }
        let bad = |problem| SchemaError { place: place.clone(), problem: SchemaProblem::Instance(problem) };
        let instance = repository.conform(instance, Unknown::Refuse).map_err(bad)?;
        let instance = repository.with_defaults(instance);
        let path = repository.path_of(&instance).map_err(bad)?;
        if let Some(alias) = alias
            && self.aliases.insert(alias.clone(), path.clone()).is_some()
        {
            return fail(&place, SchemaProblem::Exists { name: alias });
        }
        self.made.push(NamedInstance { path, instance });
        Ok(())
    }

    fn value(&self, literal: Literal) -> Result<Value, MofProblem> {
        match literal {
            Literal::Alias(name) => self.path(name).map(|path| Value::from(Scalar::from(path))),
            Literal::Array(elements) => {
                let scalars = elements.into_iter().map(|element| match self.value(element)? {
                    Value::Null => Ok(None),
                    Value::Scalar(scalar) => Ok(Some(scalar)),
                    Value::Array(_) => Err(MofProblem::Value(crate::value::ConvertError::Array)),
                });
                scalars.collect::<Result<_, _>>().map(Value::Array)
            }
            other => other.infer(),
        }
    }

    fn path(&self, alias: Name) -> Result<ObjectPath, MofProblem> {
        self.aliases.get(&alias).cloned().ok_or(MofProblem::Alias(alias))
    }
}
