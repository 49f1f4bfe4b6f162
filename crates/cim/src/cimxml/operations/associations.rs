//! Operations that follow associations, from instances and from classes.

use super::instances::shown;
use super::{Answer, returned};
use crate::broker::{Request, Traversal};
use crate::cimxml::parameters::Parameters;
use crate::cimxml::server::CimXml;
use crate::cimxml::write;
use crate::path::ObjectPath;
use crate::provider::Caller;
use crate::repository::View;
use crate::schema::{Class, NamedInstance};
use crate::status::Status;

/// What an operation was asked to follow.
pub(super) struct Followed {
    pub source: ObjectPath,
    pub traversal: Traversal,
}

pub(super) fn followed(p: &mut Parameters, source: &str, is_associators: bool) -> Result<Followed, Status> {
    let source = p.path(source)?;
    let mut traversal =
        Traversal { result_class: p.name("ResultClass")?, role: p.name("Role")?, ..Traversal::default() };
    if is_associators {
        traversal.association_class = p.name("AssocClass")?;
        traversal.result_role = p.name("ResultRole")?;
    }
    Ok(Followed { source, traversal })
}

/// Qualifiers are shown of classes only.
fn view(p: &mut Parameters) -> Result<View, Status> {
    let qualifiers = p.flag("IncludeQualifiers", false)?;
    let class_origin = p.flag("IncludeClassOrigin", false)?;
    Ok(View { local_only: false, qualifiers, class_origin, properties: p.names("PropertyList")? })
}

impl<C: Caller> CimXml<C> {
    pub(super) async fn associators(&self, request: &Request<'_, C>, mut p: Parameters) -> Answer {
        let Followed { source, traversal } = followed(&mut p, "ObjectName", true)?;
        let view = view(&mut p)?;
        p.finish()?;
        if source.is_class() {
            let classes = self.broker.associator_classes(&request.namespace, &source.class, &traversal)?;
            return self.returned_classes(request, classes, &view);
        }
        let found = self.broker.associators(request, &source, &traversal).await?;
        self.returned_instances(shown(&view, found))
    }

    pub(super) async fn associator_names(&self, request: &Request<'_, C>, mut p: Parameters) -> Answer {
        let Followed { source, traversal } = followed(&mut p, "ObjectName", true)?;
        p.finish()?;
        if source.is_class() {
            let classes = self.broker.associator_classes(&request.namespace, &source.class, &traversal)?;
            return self.returned_class_paths(request, classes);
        }
        self.returned_paths(self.broker.associator_names(request, &source, &traversal).await?)
    }

    pub(super) async fn references(&self, request: &Request<'_, C>, mut p: Parameters) -> Answer {
        let Followed { source, traversal } = followed(&mut p, "ObjectName", false)?;
        let view = view(&mut p)?;
        p.finish()?;
        if source.is_class() {
            let classes = self.broker.reference_classes(&request.namespace, &source.class, &traversal)?;
            return self.returned_classes(request, classes, &view);
        }
        let found = self.broker.references(request, &source, &traversal).await?;
        self.returned_instances(shown(&view, found))
    }

    pub(super) async fn reference_names(&self, request: &Request<'_, C>, mut p: Parameters) -> Answer {
        let Followed { source, traversal } = followed(&mut p, "ObjectName", false)?;
        p.finish()?;
        if source.is_class() {
            let classes = self.broker.reference_classes(&request.namespace, &source.class, &traversal)?;
            return self.returned_class_paths(request, classes);
        }
        let found = self.broker.references(request, &source, &traversal).await?;
        self.returned_paths(found.into_iter().map(|named| named.path).collect())
    }

    fn returned_instances(&self, found: Vec<NamedInstance>) -> Answer {
        returned(|xml| found.iter().for_each(|named| self.object_with_path(xml, named)))
    }

    fn returned_classes(&self, request: &Request<'_, C>, classes: Vec<&Class>, view: &View) -> Answer {
        returned(|xml| classes.into_iter().for_each(|class| self.class_with_path(xml, request, &view.class(class))))
    }

    fn returned_paths(&self, paths: Vec<ObjectPath>) -> Answer {
        returned(|xml| {
            for path in &paths {
                xml.element("OBJECTPATH", &[], |xml| write::object_path(xml, &self.on_this_host(path)));
            }
        })
    }

    fn returned_class_paths(&self, request: &Request<'_, C>, classes: Vec<&Class>) -> Answer {
        let path = |class: &Class| ObjectPath::class(class.name.clone()).within(&request.namespace);
        self.returned_paths(classes.into_iter().map(path).collect())
    }
}
