//! Instances within strings: reads whatever form comes, writes those that readers know.
//!
//! Clients put settings into string parameters as text. Three forms are in use: CIM-XML's `INSTANCE`; the same with what WMI adds to it
//! (`__PATH` and the like, `PROPERTY.OBJECT`, qualifiers, wrappers); and MOF.

use roxmltree::Node;

use crate::cimxml::{read, write};
use crate::mof::{self, MofError};
use crate::path::ObjectPath;
use crate::schema::{Instance, Property};
use crate::xml::{self, Bounds, XmlError, elements, local};

/// How deep instances may be embedded in each other.
pub const DEPTH_MAX: usize = 4;

/// Elements that may stand around an instance.
const WRAPPERS: [&str; 9] = [
    "CIM",
    "DECLARATION",
    "DECLARATIONS",
    "DECLGROUP",
    "DECLGROUP.WITHNAME",
    "DECLGROUP.WITHPATH",
    "OBJECT",
    "VALUE.OBJECT",
    "VALUE.NAMEDINSTANCE",
];

/// Why a text is no instance.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum EmbeddedError {
    /// No XML that is let in.
    #[error("embedded XML")]
    Xml(#[source] XmlError),
    /// XML, but no instance.
    #[error("embedded instance")]
    Read(#[source] read::ReadError),
    /// Neither XML nor MOF.
    #[error("embedded MOF")]
    Mof(#[source] MofError),
    /// Longer than [`Bounds::EMBEDDED`] allow.
    #[error("an embedded instance of {len} bytes is too long")]
    TooLong {
        /// Its length.
        len: usize,
    },
    /// Deeper than [`DEPTH_MAX`].
    #[error("embedded too deeply")]
    TooDeep,
}

/// Reads an instance in any form. What its properties are worth is for a
/// [`Repository`](crate::repository::Repository::conform) to say.
pub fn read(text: &str) -> Result<Instance, EmbeddedError> {
    read_at(text, 0)
}

/// As [`read()`], for a text that itself stood so deep.
pub(crate) fn read_at(text: &str, depth: usize) -> Result<Instance, EmbeddedError> {
    if depth > DEPTH_MAX {
        return Err(EmbeddedError::TooDeep);
    }
    if text.len() > Bounds::EMBEDDED.bytes {
        return Err(EmbeddedError::TooLong { len: text.len() });
    }
    let start = text.trim_start_matches(['\u{feff}', ' ', '\t', '\r', '\n']);
    if !start.starts_with('<') {
        return mof::parse_instance(text).map_err(EmbeddedError::Mof);
    }
    let document = xml::parse(start, &Bounds::EMBEDDED).map_err(EmbeddedError::Xml)?;
    read::instance(unwrapped(document.root_element()), depth).map_err(EmbeddedError::Read)
}

/// The instance within its wrappers; beside it there may be its name.
fn unwrapped<'a, 'input>(root: Node<'a, 'input>) -> Node<'a, 'input> {
    let mut node = root;
    while WRAPPERS.contains(&local(node)) {
        let wanted = |child: &Node<'_, '_>| local(*child) == "INSTANCE" || WRAPPERS.contains(&local(*child));
        match elements(node).find(wanted) {
            Some(child) => node = child,
            None => return node,
        }
    }
    node
}

/// As CIM-XML.
pub fn to_cim_xml(instance: &Instance) -> String {
    write::instance_text(&instance.plain())
}

/// As WMI writes its CIM-XML: with the system's properties in front.
pub fn to_wmi_xml(instance: &Instance, path: Option<&ObjectPath>) -> String {
    let system = |name: &'static str, text: String| {
        let mut property = Property::of(name, text);
        property.class_origin = Some("___SYSTEM".into());
        property
    };
    let mut whole = Instance::new(instance.class.clone());
    if let Some(path) = path {
        whole.properties.push(system("__PATH", path.to_wmi()));
        whole.properties.push(system("__RELPATH", path.to_local()));
        let namespace = path.namespace.as_ref().map(|n| n.as_str().replace('/', "\\"));
        whole.properties.extend(namespace.map(|namespace| system("__NAMESPACE", namespace)));
        whole.properties.extend(path.host.clone().map(|host| system("__SERVER", host)));
    }
    whole.properties.push(system("__CLASS", instance.class.to_string()));
    whole.properties.extend(instance.properties.iter().cloned());
    write::instance_text(&whole)
}

/// As MOF.
pub fn to_mof(instance: &Instance) -> String {
    mof::instance_text(instance)
}

#[cfg(test)]
mod tests;
