//! Reads a request: the envelope, and the call in it.

use roxmltree::Node;

use super::read::{self, Raw, ReadError};
use crate::name::{Name, Namespace};
use crate::path::ObjectPath;
use crate::schema::MEMBERS_MAX;
use crate::value::CimType;
use crate::xml::{self, Bounds, XmlError, elements, local};

/// A request.
#[derive(Debug)]
pub struct Message {
    /// Comes back in the response.
    pub id: String,
    /// What is asked.
    pub call: MessageCall,
}

/// A call of an operation or of a method.
#[derive(Debug)]
pub enum MessageCall {
    /// An operation of the protocol.
    Intrinsic {
        /// Its name, as it was written.
        name: String,
        /// Where.
        namespace: Namespace,
        /// Parameters, or what is wrong with them.
        parameters: Result<Vec<(Name, Raw)>, ReadError>,
    },
    /// A method of a class.
    Extrinsic {
        /// Its name, as it was written.
        name: String,
        /// The instance or the class, with its namespace.
        target: ObjectPath,
        /// Parameters, or what is wrong with them.
        parameters: Result<Vec<ParameterValue>, ReadError>,
    },
}

/// A parameter of a method.
#[derive(Debug)]
pub struct ParameterValue {
    /// Its name.
    pub name: Name,
    /// Its value.
    pub value: Raw,
    /// The type the client says it has.
    pub cim_type: Option<CimType>,
}

/// A request that gets no answer but a status of HTTP, and the word for why (`CIMError`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BadRequest {
    /// Status of HTTP.
    pub status: u16,
    /// The word.
    pub error: &'static str,
    /// For people.
    pub detail: String,
}

impl BadRequest {
    pub fn new(status: u16, error: &'static str, detail: impl ToString) -> Self {
        BadRequest { status, error, detail: detail.to_string() }
    }
}

type Parsed<T> = Result<T, BadRequest>;

fn not_valid(detail: impl ToString) -> BadRequest {
    BadRequest::new(400, "request-not-valid", detail)
}

/// Reads the body of a request.
pub fn parse(text: &str) -> Parsed<Message> {
    let document = xml::parse(text, &Bounds::REQUEST).map_err(|err| match err {
        XmlError::Malformed(_) | XmlError::Entity => BadRequest::new(400, "request-not-well-formed", err),
        err => not_valid(err),
    })?;
    let cim = document.root_element();
    if local(cim) != "CIM" {
        return Err(not_valid("the outermost element is not CIM"));
    }
    check_version(cim, "CIMVERSION", "2", "unsupported-cim-version")?;
    check_version(cim, "DTDVERSION", "2", "unsupported-dtd-version")?;
    let message = child(cim, "MESSAGE")?;
    check_version(message, "PROTOCOLVERSION", "1", "unsupported-protocol-version")?;
    let id = read::attribute(message, "ID").ok_or_else(|| not_valid("MESSAGE lacks ID"))?.to_string();
    let request = xml::only_element(message).ok_or_else(|| not_valid("MESSAGE holds not just one request"))?;
    let call = match local(request) {
        "SIMPLEREQ" => xml::only_element(request).ok_or_else(|| not_valid("SIMPLEREQ holds not just one call"))?,
        "MULTIREQ" => return Err(BadRequest::new(501, "multiple-requests-unsupported", "one request at a time")),
        "SIMPLEEXPREQ" | "MULTIEXPREQ" => {
            return Err(BadRequest::new(400, "unsupported-operation", "indications are not received here"));
        }
        other => return Err(not_valid(format!("{other} is no request"))),
    };
    Ok(Message { id, call: read_call(call)? })
}

fn child<'a, 'input>(node: Node<'a, 'input>, name: &str) -> Parsed<Node<'a, 'input>> {
    let found = elements(node).find(|child| local(*child) == name);
    found.ok_or_else(|| not_valid(format!("{} lacks {name}", local(node))))
}

/// Only the number before the first point counts.
fn check_version(node: Node<'_, '_>, attribute: &str, wanted: &str, error: &'static str) -> Parsed<()> {
    let version =
        read::attribute(node, attribute).ok_or_else(|| not_valid(format!("{} lacks {attribute}", local(node))))?;
    match version.trim().split('.').next() == Some(wanted) {
        true => Ok(()),
        false => Err(BadRequest::new(501, error, format!("{attribute} is {version}"))),
    }
}

fn read_call(call: Node<'_, '_>) -> Parsed<MessageCall> {
    let name = read::attribute(call, "NAME").ok_or_else(|| not_valid("a call without a name"))?.to_string();
    match local(call) {
        "IMETHODCALL" => {
            let (_, namespace) = read::namespace_path(child(call, "LOCALNAMESPACEPATH")?).map_err(not_valid)?;
            Ok(MessageCall::Intrinsic { name, namespace, parameters: structural(intrinsic_parameters(call))? })
        }
        "METHODCALL" => {
            let path = elements(call).find(|child| matches!(local(*child), "LOCALINSTANCEPATH" | "LOCALCLASSPATH"));
            let path = path.ok_or_else(|| not_valid("METHODCALL lacks the path of what it is called on"))?;
            let target = read::object_path(path).map_err(not_valid)?;
            Ok(MessageCall::Extrinsic { name, target, parameters: structural(method_parameters(call))? })
        }
        other => Err(not_valid(format!("{other} is no call"))),
    }
}

/// Elements that do not belong there make the request itself bad; what is wrong with a value is for the operation to say.
fn structural<T>(parsed: Result<T, ReadError>) -> Parsed<Result<T, ReadError>> {
    match parsed {
        Err(err @ (ReadError::Element { .. } | ReadError::Attribute { .. })) => Err(not_valid(err)),
        other => Ok(other),
    }
}

fn intrinsic_parameters(call: Node<'_, '_>) -> Result<Vec<(Name, Raw)>, ReadError> {
    let mut parameters: Vec<(Name, Raw)> = Vec::new();
    for node in elements(call).filter(|child| local(*child) == "IPARAMVALUE") {
        let name = read::name(node, "NAME")?;
        if parameters.iter().any(|(known, _)| *known == name) {
            return Err(ReadError::Twice { name });
        }
        if parameters.len() == MEMBERS_MAX {
            return Err(ReadError::TooMany { what: "parameters" });
        }
        // Declarations of classes and qualifiers are only sent to operations that are not offered.
        let value = match xml::only_element(node).map(local) {
            Some("CLASS" | "QUALIFIER.DECLARATION" | "VALUE.NAMEDOBJECT") => Raw::Null,
            _ => read::raw_value(node)?,
        };
        parameters.push((name, value));
    }
    Ok(parameters)
}

fn method_parameters(call: Node<'_, '_>) -> Result<Vec<ParameterValue>, ReadError> {
    let mut parameters: Vec<ParameterValue> = Vec::new();
    for node in elements(call).filter(|child| local(*child) == "PARAMVALUE") {
        let name = read::name(node, "NAME")?;
        if parameters.iter().any(|known| known.name == name) {
            return Err(ReadError::Twice { name });
        }
        if parameters.len() == MEMBERS_MAX {
            return Err(ReadError::TooMany { what: "parameters" });
        }
        let cim_type = match read::attribute(node, "PARAMTYPE") {
            None => None,
            Some(text) => {
                let unknown = || ReadError::Type(text.chars().take(40).collect());
                Some(CimType::parse(text.trim()).ok_or_else(unknown)?)
            }
        };
        parameters.push(ParameterValue { name, value: read::raw_value(node)?, cim_type });
    }
    Ok(parameters)
}
