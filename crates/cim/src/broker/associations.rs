//! Follows associations, between instances and between classes.
//!
//! An association refers to both of its ends by properties, and the name of such a property is the role that its end plays. References
//! are the associations in which something plays a role; associators are what plays the other roles.

use super::{Broker, Request, check_count};
use crate::name::{Name, Namespace};
use crate::path::ObjectPath;
use crate::provider::{Caller, Wanted};
use crate::repository::Repository;
use crate::schema::{Class, NamedInstance, Property};
use crate::status::{Status, StatusCode};

/// Which associations to follow, and to what.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Traversal {
    /// Only through associations of this class.
    pub association_class: Option<Name>,
    /// Only to results of this class. For references the association is the result.
    pub result_class: Option<Name>,
    /// Only where the source plays this role.
    pub role: Option<Name>,
    /// Only where the result plays this role.
    pub result_role: Option<Name>,
}

impl Traversal {
    fn source_may_play(&self, role: &Name) -> bool {
        self.role.as_ref().is_none_or(|wanted| wanted == role)
    }

    fn result_may_play(&self, role: &Name) -> bool {
        self.result_role.as_ref().is_none_or(|wanted| wanted == role)
    }
}

impl<C: Caller> Broker<C> {
    /// Associations in which an instance plays a role.
    pub async fn references(
        &self,
        request: &Request<'_, C>,
        source: &ObjectPath,
        traversal: &Traversal,
    ) -> Result<Vec<NamedInstance>, Status> {
        let by_class = Traversal { association_class: traversal.result_class.clone(), ..traversal.clone() };
        let found = self.referring(request, source, &by_class).await?;
        Ok(found.into_iter().map(|(association, _)| association).collect())
    }

    /// Paths of what an instance is associated with.
    pub async fn associator_names(
        &self,
        request: &Request<'_, C>,
        source: &ObjectPath,
        traversal: &Traversal,
    ) -> Result<Vec<ObjectPath>, Status> {
        self.check_classes(&request.namespace, [&traversal.result_class])?;
        let mut found: Vec<ObjectPath> = Vec::new();
        for (association, played) in self.referring(request, source, traversal).await? {
            for end in association.instance.properties.iter().filter(|end| is_end(end)) {
                // Both ends may be the source.
                let is_other = played.iter().any(|role| *role != end.name);
                let Some(path) = end.value.as_path().filter(|_| is_other && traversal.result_may_play(&end.name))
                else {
                    continue;
                };
                if self.is_result(request, path, traversal) && !found.contains(path) {
                    found.push(path.clone());
                }
            }
        }
        Ok(found)
    }

    /// What an instance is associated with.
    pub async fn associators(
        &self,
        request: &Request<'_, C>,
        source: &ObjectPath,
        traversal: &Traversal,
    ) -> Result<Vec<NamedInstance>, Status> {
        let mut found = Vec::new();
        for path in self.associator_names(request, source, traversal).await? {
            let namespace = path.namespace.clone().unwrap_or_else(|| request.namespace.clone());
            match self.get(&Request { namespace, ..request.clone() }, &path).await {
                Ok(named) => found.push(named),
                // It went away since, or the association leads to nowhere: it is not there.
                Err(status) if matches!(status.code, StatusCode::NotFound | StatusCode::InvalidClass) => {}
                Err(status) => return Err(status),
            }
        }
        Ok(found)
    }

    /// True when a path leads to a class that is asked for; a path into another namespace is judged by the classes there.
    fn is_result(&self, request: &Request<'_, C>, path: &ObjectPath, traversal: &Traversal) -> bool {
        let Some(wanted) = &traversal.result_class else { return true };
        let namespace = path.namespace.as_ref().unwrap_or(&request.namespace);
        self.repository(namespace).is_ok_and(|repository| repository.is_a(&path.class, wanted))
    }

    /// Associations that refer to the source, each with the roles that the source plays in it.
    async fn referring(
        &self,
        request: &Request<'_, C>,
        source: &ObjectPath,
        traversal: &Traversal,
    ) -> Result<Vec<(NamedInstance, Vec<Name>)>, Status> {
        let space = self.space(&request.namespace)?;
        self.check_classes(&request.namespace, [&traversal.association_class, &traversal.result_class])?;
        self.check_source(&request.namespace, &source.class)?;
        let source = self.complete_path(request, source)?;
        let mut found = Vec::new();
        for class in association_classes(&space.repository, &source.class, traversal) {
            for association in self.ask(request, space, class, Wanted::ReferringTo(&source)).await? {
                let plays = |end: &&Property| {
                    let leads_there = end.value.as_path().is_some_and(|path| path.matches(&source));
                    is_end(end) && leads_there && traversal.source_may_play(&end.name)
                };
                let roles: Vec<Name> =
                    association.instance.properties.iter().filter(plays).map(|end| end.name.clone()).collect();
                if !roles.is_empty() {
                    found.push((association, roles));
                }
            }
            check_count(found.len())?;
        }
        Ok(found)
    }

    /// Association classes in which a class can play a role.
    pub fn reference_classes(
        &self,
        namespace: &Namespace,
        source: &Name,
        traversal: &Traversal,
    ) -> Result<Vec<&Class>, Status> {
        let repository = self.repository(namespace)?;
        self.check_source(namespace, source)?;
        self.check_classes(namespace, [&traversal.result_class])?;
        let by_class = Traversal { association_class: traversal.result_class.clone(), ..traversal.clone() };
        Ok(association_classes(repository, source, &by_class).collect())
    }

    /// Classes with which a class can be associated.
    pub fn associator_classes(
        &self,
        namespace: &Namespace,
        source: &Name,
        traversal: &Traversal,
    ) -> Result<Vec<&Class>, Status> {
        let repository = self.repository(namespace)?;
        self.check_source(namespace, source)?;
        self.check_classes(namespace, [&traversal.association_class, &traversal.result_class])?;
        let mut found: Vec<&Class> = Vec::new();
        for class in association_classes(repository, source, traversal) {
            for end in class.references() {
                let is_other = class.references().any(|played| {
                    played.name != end.name
                        && can_play(repository, source, played)
                        && traversal.source_may_play(&played.name)
                });
                let target = end.kind.class.as_ref().and_then(|target| repository.class(target));
                let Some(target) = target.filter(|_| is_other && traversal.result_may_play(&end.name)) else {
                    continue;
                };
                let is_wanted =
                    traversal.result_class.as_ref().is_none_or(|wanted| repository.is_a(&target.name, wanted));
                if is_wanted && !found.iter().any(|known| known.name == target.name) {
                    found.push(target);
                }
            }
        }
        Ok(found)
    }

    fn check_classes<const N: usize>(&self, namespace: &Namespace, names: [&Option<Name>; N]) -> Result<(), Status> {
        let repository = self.repository(namespace)?;
        match names.into_iter().flatten().find(|name| repository.class(name).is_none()) {
            Some(name) => Err(unknown_class(name)),
            None => Ok(()),
        }
    }

    fn check_source(&self, namespace: &Namespace, class: &Name) -> Result<(), Status> {
        match self.repository(namespace)?.class(class) {
            Some(_) => Ok(()),
            None => Err(unknown_class(class)),
        }
    }
}

/// A class that was given as a parameter, not as the target.
fn unknown_class(name: &Name) -> Status {
    Status::new(StatusCode::InvalidParameter, format!("there is no class {name}"))
}

fn is_end(property: &Property) -> bool {
    property.kind.base == crate::value::CimType::Reference
}

fn can_play(repository: &Repository, class: &Name, end: &Property) -> bool {
    end.kind.class.as_ref().is_some_and(|wanted| repository.is_a(class, wanted))
}

/// Associations in which the class can play a role that may be played.
fn association_classes<'a>(
    repository: &'a Repository,
    source: &Name,
    traversal: &Traversal,
) -> impl Iterator<Item = &'a Class> {
    repository.classes().filter(move |class| {
        let is_wanted = traversal.association_class.as_ref().is_none_or(|wanted| repository.is_a(&class.name, wanted));
        let can_start = |end: &Property| can_play(repository, source, end) && traversal.source_may_play(&end.name);
        class.is_association() && is_wanted && class.references().any(can_start)
    })
}
