//! Operations on classes and qualifiers.

use super::{Answer, returned};
use crate::broker::Request;
use crate::cimxml::parameters::Parameters;
use crate::cimxml::server::CimXml;
use crate::cimxml::write;
use crate::name::Name;
use crate::path::ObjectPath;
use crate::provider::Caller;
use crate::repository::View;
use crate::schema::Class;
use crate::status::{Status, StatusCode};

fn class_view(p: &mut Parameters) -> Result<View, Status> {
    let local_only = p.flag("LocalOnly", true)?;
    let qualifiers = p.flag("IncludeQualifiers", true)?;
    let class_origin = p.flag("IncludeClassOrigin", false)?;
    Ok(View { local_only, qualifiers, class_origin, properties: None })
}

impl<C: Caller> CimXml<C> {
    pub(super) fn get_class(&self, request: &Request<'_, C>, mut p: Parameters) -> Answer {
        let name = p.required_name("ClassName")?;
        let mut view = class_view(&mut p)?;
        view.properties = p.names("PropertyList")?;
        p.finish()?;
        let missing =
            || Status::new(StatusCode::NotFound, format!("there is no class {name} in {}", request.namespace));
        let class = self.broker.repository(&request.namespace)?.class(&name).ok_or_else(missing)?;
        returned(|xml| write::class(xml, &view.class(class)))
    }

    pub(super) fn enumerate_classes(&self, request: &Request<'_, C>, mut p: Parameters) -> Answer {
        let base = p.name("ClassName")?;
        let is_deep = p.flag("DeepInheritance", false)?;
        let view = class_view(&mut p)?;
        p.finish()?;
        let classes = self.classes_below(request, base.as_ref(), is_deep)?;
        returned(|xml| classes.into_iter().for_each(|class| write::class(xml, &view.class(class))))
    }

    pub(super) fn enumerate_class_names(&self, request: &Request<'_, C>, mut p: Parameters) -> Answer {
        let base = p.name("ClassName")?;
        let is_deep = p.flag("DeepInheritance", false)?;
        p.finish()?;
        let classes = self.classes_below(request, base.as_ref(), is_deep)?;
        returned(|xml| classes.into_iter().for_each(|class| write::name(xml, &ObjectPath::class(class.name.clone()))))
    }

    /// Classes that extend one, or those at the top: these alone, or all below them too. The one itself is not among them.
    fn classes_below(
        &self,
        request: &Request<'_, C>,
        base: Option<&Name>,
        is_deep: bool,
    ) -> Result<Vec<&Class>, Status> {
        let repository = self.broker.repository(&request.namespace)?;
        if let Some(base) = base {
            self.broker.class(&request.namespace, base)?;
        }
        let direct = repository.subclasses(base);
        if !is_deep {
            return Ok(direct);
        }
        Ok(direct.into_iter().flat_map(|class| repository.family(&class.name)).collect())
    }

    pub(super) fn get_qualifier(&self, request: &Request<'_, C>, mut p: Parameters) -> Answer {
        let name = p.required_name("QualifierName")?;
        p.finish()?;
        let missing = || Status::new(StatusCode::NotFound, format!("there is no qualifier {name}"));
        let declaration = self.broker.repository(&request.namespace)?.qualifier(&name).ok_or_else(missing)?;
        returned(|xml| write::qualifier_declaration(xml, declaration))
    }

    pub(super) fn enumerate_qualifiers(&self, request: &Request<'_, C>, p: Parameters) -> Answer {
        p.finish()?;
        let repository = self.broker.repository(&request.namespace)?;
        returned(|xml| repository.qualifiers().for_each(|declaration| write::qualifier_declaration(xml, declaration)))
    }
}
