//! Enumerates, gets, modifies, creates and deletes instances.

use super::{Broker, Request, Space, chain, check_count, failed, refused};
use crate::name::Name;
use crate::path::{KeyValue, Keys, ObjectPath};
use crate::provider::{Caller, Wanted};
use crate::repository::Unknown;
use crate::schema::{Class, Instance, NamedInstance, Property, find};
use crate::status::{Status, StatusCode};
use crate::value::{Scalar, Value};

impl<C: Caller> Broker<C> {
    /// All instances of a class and of those that extend it, whole, with their paths.
    pub async fn enumerate(&self, request: &Request<'_, C>, class: &Name) -> Result<Vec<NamedInstance>, Status> {
        let space = self.space(&request.namespace)?;
        self.class(&request.namespace, class)?;
        let mut found = Vec::new();
        for class in space.repository.family(class) {
            found.append(&mut self.ask(request, space, class, Wanted::All).await?);
            check_count(found.len())?;
        }
        Ok(found)
    }

    /// Asks the provider for instances of exactly one class, and checks and completes what it gives.
    pub(super) async fn ask(
        &self,
        request: &Request<'_, C>,
        space: &Space<C>,
        class: &Class,
        wanted: Wanted<'_>,
    ) -> Result<Vec<NamedInstance>, Status> {
        if class.is_abstract() {
            return Ok(Vec::new());
        }
        let given = space.provider.instances(&request.context(), class, wanted).await?;
        check_count(given.len())?;
        given.into_iter().map(|instance| self.checked(request, space, class, instance)).collect()
    }

    fn checked(
        &self,
        request: &Request<'_, C>,
        space: &Space<C>,
        class: &Class,
        instance: Instance,
    ) -> Result<NamedInstance, Status> {
        if instance.class != class.name {
            let message = format!("the provider gave a {} where a {} was asked for", instance.class, class.name);
            return Err(Status::new(StatusCode::Failed, message));
        }
        let repository = &space.repository;
        let instance = repository.conform(instance, Unknown::Refuse).map_err(|err| failed("instance", &err))?;
        let mut instance = repository.complete(instance);
        for property in &mut instance.properties {
            self.locate(&mut property.value, request);
        }
        let path = repository.path_of(&instance).map_err(|err| failed("instance", &err))?;
        Ok(NamedInstance { path: path.within(&request.namespace), instance })
    }

    /// Gives references without a namespace this one, and their keys the declared types.
    pub(super) fn locate(&self, value: &mut Value, request: &Request<'_, C>) {
        let scalars: Vec<&mut Scalar> = match value {
            Value::Null => Vec::new(),
            Value::Scalar(scalar) => vec![scalar],
            Value::Array(elements) => elements.iter_mut().flatten().collect(),
        };
        for scalar in scalars {
            if let Scalar::Reference(path) = scalar {
                **path = self.located(path, request);
            }
        }
    }

    /// A reference with its namespace and, where the class is known, its declared keys.
    fn located(&self, path: &ObjectPath, request: &Request<'_, C>) -> ObjectPath {
        let mut path = self.normalize(path, &request.namespace);
        let space = path.namespace.as_ref().and_then(|namespace| self.spaces.get(namespace));
        if let Some(completed) = space.and_then(|space| space.repository.complete_path(&path).ok()) {
            path = completed;
        }
        if let Keys::Named(keys) = &mut path.keys {
            for (_, value) in keys {
                if let KeyValue::Reference(inner) = value {
                    **inner = self.normalize(inner, &request.namespace);
                }
            }
        }
        path
    }

    /// The path with its namespace, declared names, types and order of keys.
    pub(super) fn complete_path(&self, request: &Request<'_, C>, path: &ObjectPath) -> Result<ObjectPath, Status> {
        let completed = self.repository(&request.namespace)?.complete_path(path).map_err(refused)?;
        if completed.is_class() {
            return Err(Status::new(StatusCode::InvalidParameter, format!("{path} is a class, not an instance")));
        }
        Ok(self.located(&completed.local(), request))
    }

    /// One instance, by its whole path. Keys that are equal count before those that differ in case only.
    pub async fn get(&self, request: &Request<'_, C>, path: &ObjectPath) -> Result<NamedInstance, Status> {
        let space = self.space(&request.namespace)?;
        let path = self.complete_path(request, path)?;
        let class = self.class(&request.namespace, &path.class)?;
        let found = self.ask(request, space, class, Wanted::One(&path)).await?;
        let index = found.iter().position(|named| named.path == path);
        let index = index.or_else(|| found.iter().position(|named| named.path.matches(&path)));
        let missing = || Status::new(StatusCode::NotFound, format!("there is no {path}"));
        index.and_then(|index| found.into_iter().nth(index)).ok_or_else(missing)
    }

    /// The one instance of a class, or of one that extends it, that has these keys. Keys may be left out as long as only one
    /// instance has the others.
    pub async fn find(
        &self,
        request: &Request<'_, C>,
        class: &Name,
        keys: &[(Name, KeyValue)],
    ) -> Result<NamedInstance, Status> {
        let declared: Vec<_> = self.class(&request.namespace, class)?.keys().map(|key| key.name.clone()).collect();
        if let Some((stranger, _)) = keys.iter().find(|(name, _)| !declared.contains(name)) {
            let message = format!("class {class} has no key {stranger}");
            return Err(Status::new(StatusCode::InvalidParameter, message));
        }
        if keys.len() == declared.len() && !declared.is_empty() {
            let path = ObjectPath::instance(class.clone(), keys.iter().cloned());
            match self.get(request, &path).await {
                Err(status) if status.code == StatusCode::NotFound => {}
                outcome => return outcome,
            }
        }
        let has = |named: &NamedInstance| {
            keys.iter().all(|(name, value)| named.path.key(name.as_str()).is_some_and(|known| known.matches(value)))
        };
        let mut fitting = self.enumerate(request, class).await?.into_iter().filter(has);
        match (fitting.next(), fitting.next()) {
            (Some(only), None) => Ok(only),
            (None, _) => Err(Status::new(StatusCode::NotFound, format!("there is no such {class}"))),
            (Some(_), Some(_)) => {
                let message = format!("more than one {class} has these keys");
                Err(Status::new(StatusCode::InvalidParameter, message))
            }
        }
    }

    /// Changes an instance: properties that were given, of those that were named if any were.
    ///
    /// Properties that were named and not given get their class's default. What would not change is not passed on: clients send
    /// whole instances back.
    pub async fn modify(
        &self,
        request: &Request<'_, C>,
        path: &ObjectPath,
        given: Instance,
        properties: Option<&[Name]>,
    ) -> Result<NamedInstance, Status> {
        let space = self.space(&request.namespace)?;
        let current = self.get(request, path).await?;
        if given.class != current.instance.class {
            let message = format!("a {} cannot become a {}", current.instance.class, given.class);
            return Err(Status::new(StatusCode::InvalidParameter, message));
        }
        let class = self.class(&request.namespace, &given.class)?;
        let mut changes = space.repository.conform(given, Unknown::Refuse).map_err(refused)?;
        if let Some(named) = properties {
            self.choose(class, &mut changes, named)?;
        }
        changes.properties.iter_mut().for_each(|property| self.locate(&mut property.value, request));
        changes.properties.retain(|property| {
            let known = current.instance.get(property.name.as_str());
            let is_same_key = || is_key(class, &property.name) && same_but_for_case(known, &property.value);
            known != &property.value && !is_same_key()
        });
        if let Some(key) = changes.properties.iter().find(|property| is_key(class, &property.name)) {
            let message = format!("key {} of {} cannot change", key.name, current.path);
            return Err(Status::new(StatusCode::InvalidParameter, message));
        }
        if !changes.properties.is_empty() {
            space.provider.modify(&request.context(), &current.path, changes).await?;
        }
        Ok(current)
    }

    fn choose(&self, class: &Class, changes: &mut Instance, named: &[Name]) -> Result<(), Status> {
        for name in named {
            let Some(declared) = find(&class.properties, name.as_str()) else {
                let message = format!("class {} has no property {name}", class.name);
                return Err(Status::new(StatusCode::NoSuchProperty, message));
            };
            if changes.property(name.as_str()).is_none() && !declared.is_key() {
                changes.properties.push(Property { qualifiers: Vec::new(), ..declared.clone() });
            }
        }
        changes.keep(named);
        Ok(())
    }

    /// Makes an instance.
    pub async fn create(&self, request: &Request<'_, C>, given: Instance) -> Result<ObjectPath, Status> {
        let space = self.space(&request.namespace)?;
        let class = self.class(&request.namespace, &given.class)?;
        if class.is_abstract() {
            let message = format!("class {} is abstract", class.name);
            return Err(Status::new(StatusCode::NotSupported, message));
        }
        let mut instance = space.repository.conform(given, Unknown::Refuse).map_err(refused)?;
        instance.properties.iter_mut().for_each(|property| self.locate(&mut property.value, request));
        let instance = space.repository.with_defaults(instance);
        let path = space.provider.create(&request.context(), instance).await?;
        let path = space.repository.complete_path(&path).map_err(|err| failed("path", &err))?;
        Ok(self.located(&path, request))
    }

    /// Removes an instance.
    pub async fn delete(&self, request: &Request<'_, C>, path: &ObjectPath) -> Result<(), Status> {
        let space = self.space(&request.namespace)?;
        let current = self.get(request, path).await?;
        space.provider.delete(&request.context(), &current.path).await
    }

    /// A value of one property as a client sent it, with the declared type.
    pub fn property_value(
        &self,
        request: &Request<'_, C>,
        class: &Name,
        name: &Name,
        value: Value,
    ) -> Result<Instance, Status> {
        let repository = self.repository(&request.namespace)?;
        let class = self.class(&request.namespace, class)?;
        let Some(declared) = find(&class.properties, name.as_str()) else {
            let message = format!("class {} has no property {name}", class.name);
            return Err(Status::new(StatusCode::NoSuchProperty, message));
        };
        let instance = Instance::new(class.name.clone()).with(declared.name.clone(), value);
        repository.conform(instance, Unknown::Refuse).map_err(|err| Status::new(StatusCode::TypeMismatch, chain(&err)))
    }
}

/// The case of a key's text tells nothing apart.
fn same_but_for_case(a: &Value, b: &Value) -> bool {
    matches!((a.as_str(), b.as_str()), (Some(a), Some(b)) if a.eq_ignore_ascii_case(b))
}

fn is_key(class: &Class, name: &Name) -> bool {
    find(&class.properties, name.as_str()).is_some_and(|declared| declared.is_key())
}
