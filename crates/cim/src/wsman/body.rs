//! Reads the bodies of requests that ask for many instances.

use roxmltree::Node;

use super::envelope::{child, selectors, trimmed};
use super::epr;
use super::fault::Fault;
use super::ns;
use crate::broker::Traversal;
use crate::datetime::{DateTime, parse_xsd_duration};
use crate::name::Name;
use crate::path::{KeyValue, ObjectPath};
use crate::query::Language;
use crate::xml::{elements, local, text};

/// What of instances is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    Object,
    Epr,
    ObjectAndEpr,
}

/// Which instances are wanted.
#[derive(Debug, Clone, PartialEq)]
pub enum Filter {
    None,
    Query(Language, String),
    /// What an instance is associated with, or the associations themselves.
    Association {
        is_associators: bool,
        source: ObjectPath,
        traversal: Traversal,
        properties: Option<Vec<Name>>,
    },
    Selectors(Vec<(Name, KeyValue)>),
}

/// `n:Enumerate`
#[derive(Debug, Clone)]
pub struct Enumerate {
    pub filter: Filter,
    pub mode: Mode,
    /// How many to give at once, if that is to be done at all.
    pub optimized: Option<usize>,
    pub expires: Option<String>,
}

/// How long an enumeration should wait, as a client says it: a duration, or a moment, which means nothing to those who do not know the
/// time of day.
pub fn expires(text: &str) -> Result<Option<std::time::Duration>, Fault> {
    let text = text.trim();
    if let Some(duration) = parse_xsd_duration(text) {
        return Ok(Some(duration));
    }
    match DateTime::parse_any(text) {
        Ok(moment) if !moment.is_interval() => Ok(None),
        _ => Err(Fault::sender("n:InvalidExpirationTime", None, format!("{text:?} is no time"))),
    }
}

/// Reads the body of `Enumerate`.
pub fn enumerate(node: Node<'_, '_>) -> Result<Enumerate, Fault> {
    let either = |name: &str| child(node, ns::W, name).or_else(|| child(node, ns::N, name));
    let most = either("MaxElements").map(count).transpose()?.unwrap_or(1);
    let filters: Vec<_> = elements(node).filter(|child| local(*child) == "Filter").collect();
    let filter = match filters.as_slice() {
        [] => Filter::None,
        [one] => filter(*one)?,
        _ => return Err(cannot_process("more than one filter")),
    };
    let mode = match either("EnumerationMode").map(trimmed).as_deref() {
        None | Some("EnumerateObject") => Mode::Object,
        Some("EnumerateEPR") => Mode::Epr,
        Some("EnumerateObjectAndEPR") => Mode::ObjectAndEpr,
        Some(_) => return Err(Fault::unsupported("EnumerationMode")),
    };
    let optimized = either("OptimizeEnumeration").map(|_| most);
    Ok(Enumerate { filter, mode, optimized, expires: either("Expires").map(trimmed) })
}

/// A number of elements: a number above nothing.
pub fn count(node: Node<'_, '_>) -> Result<usize, Fault> {
    let number = trimmed(node).parse().ok().filter(|number| *number > 0);
    number.ok_or_else(|| Fault::schema(format!("{} is no number above nothing", local(node))))
}

fn cannot_process(reason: impl Into<String>) -> Fault {
    Fault::sender("n:CannotProcessFilter", None, reason)
}

fn filter(node: Node<'_, '_>) -> Result<Filter, Fault> {
    let dialect = node.attribute("Dialect").unwrap_or_default().trim().to_ascii_lowercase();
    match dialect.trim_start_matches("http://").trim_start_matches("schemas.") {
        "microsoft.com/wbem/wsman/1/wql" => Ok(Filter::Query(Language::Wql, query_text(node))),
        "dmtf.org/wbem/cql/1/dsp0202.pdf" | "dmtf.org/wbem/cql/1/dsp0202" => {
            Ok(Filter::Query(Language::Cql, query_text(node)))
        }
        "dmtf.org/wbem/wsman/1/cimbinding/associationfilter" => association(node),
        "dmtf.org/wbem/wsman/1/wsman/selectorfilter" => selector_filter(node),
        _ => {
            let reason = format!("filter dialect {dialect:?} is not known");
            Err(Fault::sender("n:FilterDialectRequestedUnavailable", None, reason))
        }
    }
}

fn query_text(node: Node<'_, '_>) -> String {
    text(node).trim().to_string()
}

fn selector_filter(node: Node<'_, '_>) -> Result<Filter, Fault> {
    let set = elements(node).find(|child| local(*child) == "SelectorSet");
    let set = set.ok_or_else(|| cannot_process("a filter by selectors without selectors"))?;
    let found = selectors(set, 0).map_err(|fault| cannot_process(fault.reason))?;
    let is_plain = |value: &KeyValue| matches!(value, KeyValue::Text(text) if !text.contains(['"', '\'']));
    match found.iter().all(|(_, value)| is_plain(value)) {
        true => Ok(Filter::Selectors(found)),
        false => Err(cannot_process("a filter by selectors knows neither references nor quotes")),
    }
}

fn association(node: Node<'_, '_>) -> Result<Filter, Fault> {
    let kind = elements(node).find(|child| matches!(local(*child), "AssociatedInstances" | "AssociationInstances"));
    let kind = kind.ok_or_else(|| cannot_process("an association filter without a kind"))?;
    let object = elements(kind).find(|child| local(*child) == "Object");
    let object = object.ok_or_else(|| cannot_process("an association filter without an object"))?;
    let name = |wanted: &str| -> Result<Option<Name>, Fault> {
        let found = elements(kind).find(|child| local(*child) == wanted).map(trimmed).filter(|text| !text.is_empty());
        found.map(|text| Name::parse(&text).map_err(|_| cannot_process(format!("{text:?} is no name")))).transpose()
    };
    let traversal = Traversal {
        association_class: name("AssociationClassName")?,
        result_class: name("ResultClassName")?,
        role: name("Role")?,
        result_role: name("ResultRole")?,
    };
    let shown = elements(kind).filter(|child| local(*child) == "IncludeResultProperty");
    let shown: Vec<Name> = shown.filter_map(|child| Name::parse(&trimmed(child)).ok()).collect();
    Ok(Filter::Association {
        is_associators: local(kind) == "AssociatedInstances",
        source: epr::read(object, 0)?,
        traversal,
        properties: (!shown.is_empty()).then_some(shown),
    })
}
