//! Operations on instances, and queries.

use super::{Answer, done, instance_view, returned};
use crate::broker::{Request, Selection};
use crate::cimxml::parameters::{Parameters, unreadable};
use crate::cimxml::read::Raw;
use crate::cimxml::server::CimXml;
use crate::cimxml::write;
use crate::name::Name;
use crate::path::ObjectPath;
use crate::provider::Caller;
use crate::query::Language;
use crate::repository::View;
use crate::schema::{Class, Instance, NamedInstance};
use crate::status::{Status, StatusCode};
use crate::xml::XmlWriter;

impl<C: Caller> CimXml<C> {
    pub(super) async fn enumerate_instances(&self, request: &Request<'_, C>, mut p: Parameters) -> Answer {
        let class = p.required_name("ClassName")?;
        let is_deep = p.flag("DeepInheritance", true)?;
        let view = instance_view(&mut p)?;
        p.finish()?;
        let view = if is_deep { view } else { self.shallow(request, &class, view)? };
        let found = self.broker.enumerate(request, &class).await?;
        returned(|xml| {
            for named in &found {
                xml.element("VALUE.NAMEDINSTANCE", &[], |xml| {
                    write::name(xml, &named.path);
                    write::instance(xml, &view.instance(&named.instance));
                });
            }
        })
    }

    /// Only properties that the class itself has, not those that subclasses add.
    pub(super) fn shallow(&self, request: &Request<'_, C>, class: &Name, mut view: View) -> Result<View, Status> {
        let class = self.broker.class(&request.namespace, class)?;
        let has =
            class.properties.iter().map(|property| property.name.clone()).filter(|name| view.shows(name)).collect();
        view.properties = Some(has);
        Ok(view)
    }

    pub(super) async fn enumerate_instance_names(&self, request: &Request<'_, C>, mut p: Parameters) -> Answer {
        let class = p.required_name("ClassName")?;
        p.finish()?;
        let found = self.broker.enumerate(request, &class).await?;
        returned(|xml| found.iter().for_each(|named| write::name(xml, &named.path)))
    }

    pub(super) async fn get_instance(&self, request: &Request<'_, C>, mut p: Parameters) -> Answer {
        let path = p.instance_path("InstanceName")?;
        let view = instance_view(&mut p)?;
        p.finish()?;
        let named = self.broker.get(request, &path).await?;
        returned(|xml| write::instance(xml, &view.instance(&named.instance)))
    }

    pub(super) async fn create_instance(&self, request: &Request<'_, C>, mut p: Parameters) -> Answer {
        let given = p.instance("NewInstance")?;
        p.finish()?;
        let path = self.broker.create(request, given).await?;
        returned(|xml| write::name(xml, &path))
    }

    pub(super) async fn modify_instance(&self, request: &Request<'_, C>, mut p: Parameters) -> Answer {
        let given = p.named_instance("ModifiedInstance")?;
        p.flag("IncludeQualifiers", true)?;
        let properties = p.names("PropertyList")?;
        p.finish()?;
        self.broker.modify(request, &given.path, given.instance, properties.as_deref()).await?;
        done()
    }

    pub(super) async fn delete_instance(&self, request: &Request<'_, C>, mut p: Parameters) -> Answer {
        let path = p.instance_path("InstanceName")?;
        p.finish()?;
        self.broker.delete(request, &path).await?;
        done()
    }

    pub(super) async fn get_property(&self, request: &Request<'_, C>, mut p: Parameters) -> Answer {
        let path = p.instance_path("InstanceName")?;
        let name = p.required_name("PropertyName")?;
        p.finish()?;
        let named = self.broker.get(request, &path).await?;
        let property = named.instance.property(name.as_str()).ok_or_else(|| no_property(&path, &name))?;
        match property.value.is_null() {
            true => done(),
            false => returned(|xml| write::value(xml, &property.value)),
        }
    }

    pub(super) async fn set_property(&self, request: &Request<'_, C>, mut p: Parameters) -> Answer {
        let path = p.instance_path("InstanceName")?;
        let name = p.required_name("PropertyName")?;
        let raw = p.raw("NewValue").unwrap_or(Raw::Null);
        p.finish()?;
        let class = self.broker.class(&request.namespace, &path.class)?;
        let declared =
            crate::schema::find(&class.properties, name.as_str()).ok_or_else(|| no_property(&path, &name))?;
        let value = raw.typed(&name, &declared.kind, 0).map_err(|err| unreadable(&err))?;
        let given = self.broker.property_value(request, &class.name, &name, value)?;
        self.broker.modify(request, &path, given, None).await?;
        done()
    }

    pub(super) async fn exec_query(&self, request: &Request<'_, C>, mut p: Parameters) -> Answer {
        let language = language(&p.required_text("QueryLanguage")?)?;
        let text = p.required_text("Query")?;
        p.finish()?;
        let selection = self.broker.query(request, &text, language).await?;
        returned(|xml| match &selection {
            Selection::Instances { found, .. } => found.iter().for_each(|named| self.object_with_path(xml, named)),
            Selection::Classes(classes) => classes.iter().for_each(|class| self.class_with_path(xml, request, class)),
        })
    }

    /// `VALUE.OBJECTWITHPATH` of an instance.
    pub(super) fn object_with_path(&self, xml: &mut XmlWriter, named: &NamedInstance) {
        xml.element("VALUE.OBJECTWITHPATH", &[], |xml| {
            write::object_path(xml, &self.on_this_host(&named.path));
            write::instance(xml, &named.instance);
        });
    }

    /// `VALUE.OBJECTWITHPATH` of a class.
    pub(super) fn class_with_path(&self, xml: &mut XmlWriter, request: &Request<'_, C>, class: &Class) {
        let path = ObjectPath::class(class.name.clone()).within(&request.namespace);
        xml.element("VALUE.OBJECTWITHPATH", &[], |xml| {
            write::object_path(xml, &self.on_this_host(&path));
            write::class(xml, class);
        });
    }

    /// The path with the name of this host, as some elements demand.
    pub(super) fn on_this_host(&self, path: &ObjectPath) -> ObjectPath {
        ObjectPath { host: Some(self.broker.host().to_string()), ..path.clone() }
    }
}

fn no_property(path: &ObjectPath, name: &Name) -> Status {
    Status::new(StatusCode::NoSuchProperty, format!("class {} has no property {name}", path.class))
}

/// The language of a query.
pub(super) fn language(name: &str) -> Result<Language, Status> {
    let unknown =
        || Status::new(StatusCode::QueryLanguageNotSupported, format!("query language {name:?} is not known"));
    Language::parse(name).ok_or_else(unknown)
}

/// Shows instances as a view says.
pub(super) fn shown(view: &View, found: Vec<NamedInstance>) -> Vec<NamedInstance> {
    let show = |named: NamedInstance| NamedInstance { instance: view.instance(&named.instance), path: named.path };
    found.into_iter().map(show).collect()
}

/// Instances without their paths.
pub(super) fn rows(found: Vec<NamedInstance>) -> Vec<Instance> {
    found.into_iter().map(|named| named.instance).collect()
}
