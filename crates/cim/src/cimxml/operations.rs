//! The operations of the protocol: from parameters to the XML of an answer.

mod associations;
mod classes;
mod instances;
mod methods;
mod pulled;

pub use pulled::Pulled;

use super::parameters::Parameters;
use super::server::CimXml;
use crate::broker::Request;
use crate::provider::Caller;
use crate::repository::View;
use crate::status::{Status, StatusCode};
use crate::xml::XmlWriter;

/// What stands within a response, as XML.
type Answer = Result<String, Status>;

/// Operations that are known and not offered: this is not the place to change a schema.
const NOT_OFFERED: [&str; 5] = ["CreateClass", "ModifyClass", "DeleteClass", "SetQualifier", "DeleteQualifier"];

impl<C: Caller> CimXml<C> {
    /// Carries out an operation.
    pub(super) async fn operation(&self, name: &str, request: &Request<'_, C>, parameters: Parameters) -> Answer {
        // A namespace that is not there comes before everything else that may be wrong.
        self.broker.repository(&request.namespace)?;
        let p = parameters;
        match name.to_ascii_lowercase().as_str() {
            "enumerateinstances" => self.enumerate_instances(request, p).await,
            "enumerateinstancenames" => self.enumerate_instance_names(request, p).await,
            "getinstance" => self.get_instance(request, p).await,
            "createinstance" => self.create_instance(request, p).await,
            "modifyinstance" => self.modify_instance(request, p).await,
            "deleteinstance" => self.delete_instance(request, p).await,
            "getproperty" => self.get_property(request, p).await,
            "setproperty" => self.set_property(request, p).await,
            "execquery" => self.exec_query(request, p).await,
            "getclass" => self.get_class(request, p),
            "enumerateclasses" => self.enumerate_classes(request, p),
            "enumerateclassnames" => self.enumerate_class_names(request, p),
            "getqualifier" => self.get_qualifier(request, p),
            "enumeratequalifiers" => self.enumerate_qualifiers(request, p),
            "associators" => self.associators(request, p).await,
            "associatornames" => self.associator_names(request, p).await,
            "references" => self.references(request, p).await,
            "referencenames" => self.reference_names(request, p).await,
            "openenumerateinstances" => self.open_enumerate_instances(request, p).await,
            "openenumerateinstancepaths" => self.open_enumerate_instance_paths(request, p).await,
            "openassociatorinstances" => self.open_associators(request, p, true).await,
            "openassociatorinstancepaths" => self.open_associators(request, p, false).await,
            "openreferenceinstances" => self.open_references(request, p, true).await,
            "openreferenceinstancepaths" => self.open_references(request, p, false).await,
            "openqueryinstances" => self.open_query_instances(request, p).await,
            "pullinstanceswithpath" => self.pull(request, p, pulled::Kind::Instances),
            "pullinstancepaths" => self.pull(request, p, pulled::Kind::Paths),
            "pullinstances" => self.pull(request, p, pulled::Kind::Rows),
            "closeenumeration" => self.close_enumeration(request, p),
            "enumerationcount" => self.enumeration_count(request, p),
            _ => Err(not_offered(name)),
        }
    }
}

fn not_offered(name: &str) -> Status {
    let is_known = NOT_OFFERED.iter().any(|known| known.eq_ignore_ascii_case(name));
    let message = if is_known {
        "classes and qualifiers cannot be changed".into()
    } else {
        format!("there is no operation {name}")
    };
    Status::new(StatusCode::NotSupported, message)
}

/// An answer's `IRETURNVALUE`.
fn returned(content: impl FnOnce(&mut XmlWriter)) -> Answer {
    let mut xml = XmlWriter::default();
    xml.element("IRETURNVALUE", &[], content);
    Ok(xml.finish())
}

/// An answer of an operation that returns nothing: not even an empty element.
fn done() -> Answer {
    Ok(String::new())
}

/// What of instances a client wants to see. Qualifiers of instances, and leaving out what is inherited, are deprecated and not offered.
fn instance_view(p: &mut Parameters) -> Result<View, Status> {
    p.flag("LocalOnly", true)?;
    p.flag("IncludeQualifiers", false)?;
    let class_origin = p.flag("IncludeClassOrigin", false)?;
    Ok(View { local_only: false, qualifiers: false, class_origin, properties: p.names("PropertyList")? })
}
