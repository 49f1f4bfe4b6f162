//! Answers queries.

use super::{Broker, Request, Traversal, chain};
use crate::name::{Name, Namespace};
use crate::provider::Caller;
use crate::query::{AssociationQuery, Condition, Evaluator, Language, PropertyPath, Query, Select};
use crate::repository::{Repository, View};
use crate::schema::{Class, Instance, NamedInstance, Property};
use crate::status::{Status, StatusCode};

/// What a query found.
#[derive(Debug, Clone, PartialEq)]
pub enum Selection {
    /// Instances, with only those properties that the query named, if it named some.
    Instances {
        /// The instances.
        found: Vec<NamedInstance>,
        /// True when the query named properties.
        is_projected: bool,
    },
    /// Classes.
    Classes(Vec<Class>),
}

impl<C: Caller> Broker<C> {
    /// Answers a query.
    pub async fn query(&self, request: &Request<'_, C>, text: &str, language: Language) -> Result<Selection, Status> {
        match Query::parse(text, language).map_err(|err| invalid(chain(&err)))? {
            Query::Select(select) => self.select(request, &select, language).await,
            Query::Associators(query) => self.query_associators(request, &query).await,
            Query::References(query) => self.query_references(request, &query).await,
        }
    }

    async fn select(&self, request: &Request<'_, C>, select: &Select, language: Language) -> Result<Selection, Status> {
        let repository = self.repository(&request.namespace)?;
        let class = self.class(&request.namespace, &select.class)?;
        if class.is_indication() {
            return Err(invalid(format!("{} tells of events, which cannot be enumerated", class.name)));
        }
        let named = select.properties.iter().flatten();
        let looked_at = select.condition.iter().flat_map(Condition::properties);
        for path in named.chain(looked_at) {
            check_property(class, path)?;
        }
        let mut found = self.enumerate(request, &select.class).await?;
        if let Some(condition) = &select.condition {
            found = self.filter(repository, found, condition, language)?;
        }
        if let Some(properties) = &select.properties {
            found.iter_mut().for_each(|named| project(&mut named.instance, properties));
        }
        Ok(Selection::Instances { found, is_projected: select.properties.is_some() })
    }

    /// Instances that meet a condition.
    pub fn filter(
        &self,
        repository: &Repository,
        mut found: Vec<NamedInstance>,
        condition: &Condition,
        language: Language,
    ) -> Result<Vec<NamedInstance>, Status> {
        let evaluator = Evaluator::new(repository, language);
        found.retain(|named| evaluator.selects(condition, &named.instance));
        if evaluator.is_exhausted() {
            return Err(Status::new(StatusCode::ServerLimitsExceeded, "the query takes too much work"));
        }
        Ok(found)
    }

    async fn query_associators(&self, request: &Request<'_, C>, query: &AssociationQuery) -> Result<Selection, Status> {
        let (request, source) = (&self.within(request, query), &query.source);
        let traversal = traversal(query);
        if query.classes_only || source.is_class() {
            let classes = match source.is_class() {
                true => self.associator_classes(&request.namespace, &source.class, &traversal)?,
                false => {
                    let names = self.associator_names(request, source, &traversal).await?;
                    self.classes_of(&request.namespace, names.into_iter().map(|path| path.class))
                }
            };
            return Ok(whole(classes));
        }
        let found = self.associators(request, source, &traversal).await?;
        Ok(Selection::Instances { found, is_projected: false })
    }

    async fn query_references(&self, request: &Request<'_, C>, query: &AssociationQuery) -> Result<Selection, Status> {
        let (request, source) = (&self.within(request, query), &query.source);
        let traversal = traversal(query);
        if source.is_class() {
            return Ok(whole(self.reference_classes(&request.namespace, &source.class, &traversal)?));
        }
        let found = self.references(request, source, &traversal).await?;
        if query.classes_only {
            return Ok(whole(self.classes_of(&request.namespace, found.into_iter().map(|named| named.path.class))));
        }
        Ok(Selection::Instances { found, is_projected: false })
    }

    /// The path of a query may lead to another namespace than the query was sent to.
    fn within<'a>(&self, request: &Request<'a, C>, query: &AssociationQuery) -> Request<'a, C> {
        let source = self.normalize(&query.source, &request.namespace);
        Request { namespace: source.namespace.unwrap_or_else(|| request.namespace.clone()), ..request.clone() }
    }

    fn classes_of(&self, namespace: &Namespace, names: impl Iterator<Item = Name>) -> Vec<&Class> {
        let names: std::collections::BTreeSet<Name> = names.collect();
        names.iter().filter_map(|name| self.class(namespace, name).ok()).collect()
    }
}

fn invalid(message: String) -> Status {
    Status::new(StatusCode::InvalidQuery, message)
}

fn whole(classes: Vec<&Class>) -> Selection {
    Selection::Classes(classes.into_iter().map(|class| View::default().class(class)).collect())
}

fn traversal(query: &AssociationQuery) -> Traversal {
    Traversal {
        association_class: query.association_class.clone(),
        result_class: query.result_class.clone(),
        role: query.role.clone(),
        result_role: query.result_role.clone(),
    }
}

fn check_property(class: &Class, path: &PropertyPath) -> Result<(), Status> {
    let Some(first) = path.0.first() else { return Ok(()) };
    let is_known = crate::schema::find(&class.properties, first.as_str()).is_some();
    // Names of the system are nobody's properties.
    if is_known || first.as_str().starts_with("__") {
        return Ok(());
    }
    Err(invalid(format!("class {} has no property {first}", class.name)))
}

/// Keeps the properties that were named, in the order in which they were. What lies within an embedded instance is shown under its own
/// name.
fn project(instance: &mut Instance, properties: &[PropertyPath]) {
    let mut shown: Vec<Property> = Vec::new();
    for path in properties {
        let Some((last, through)) = path.0.split_last() else { continue };
        let holder = through.iter().try_fold(&*instance, |at, name| at.get(name.as_str()).as_instance());
        let property = holder.and_then(|holder| holder.property(last.as_str())).cloned();
        let system = last.is("__class").then(|| Property::of(last.clone(), instance.class.as_str()));
        let is_new = |property: &Property| !shown.iter().any(|known| known.name == property.name);
        shown.extend(property.or(system).filter(is_new));
    }
    instance.properties = shown;
}
