//! Reads what all requests have in common, and writes what all responses have.

use std::time::Duration;

use roxmltree::Node;

use super::epr;
use super::fault::Fault;
use super::{ANONYMOUS, ns};
use crate::datetime::parse_xsd_duration;
use crate::name::Name;
use crate::path::{KEYS_MAX, KeyValue};
use crate::xml::{XmlWriter, elements, local, text};

/// The smallest envelope a client may ask for.
const ENVELOPE_MIN: u64 = 8_192;
/// Longest identity of a message that is given back.
const MESSAGE_ID_MAX: usize = 2_048;
/// Most options of a request.
const OPTIONS_MAX: usize = 1_024;

/// Headers of the protocols we speak, by namespace.
const KNOWN: [(&str, &[&str]); 4] = [
    (ns::A, &["To", "Action", "MessageID", "ReplyTo", "FaultTo", "From", "RelatesTo"]),
    (
        ns::W,
        &[
            "ResourceURI",
            "SelectorSet",
            "OptionSet",
            "OperationTimeout",
            "MaxEnvelopeSize",
            "Locale",
            "FragmentTransfer",
            "RequestTotalItemsCountEstimate",
            "RequestEPR",
        ],
    ),
    (ns::MS, &["DataLocale", "SessionId", "OperationID", "SequenceId", "ActivityId", "CompressionType"]),
    (ns::E, &["Identifier"]),
];

/// The headers of a request.
#[derive(Debug, Clone, Default)]
pub struct Header {
    pub action: String,
    pub message_id: String,
    pub resource: Option<String>,
    pub selectors: Vec<(Name, KeyValue)>,
    pub options: Vec<(String, String)>,
    pub timeout: Option<Duration>,
    /// The largest envelope that the client takes, where it says so.
    pub envelope_max: Option<u64>,
    /// What part of an instance is meant.
    pub fragment: Option<String>,
    pub wants_count: bool,
}

impl Header {
    /// True for a switch that is on.
    pub fn is_on(&self, name: &str) -> bool {
        self.option_values(name).iter().any(|value| value.trim().eq_ignore_ascii_case("true"))
    }

    /// True for a switch that is off.
    pub fn is_off(&self, name: &str) -> bool {
        self.option_values(name).iter().any(|value| value.trim().eq_ignore_ascii_case("false"))
    }

    /// All values of an option, in their order. Clients put different prefixes in front of its name.
    pub fn option_values(&self, name: &str) -> Vec<&str> {
        let bare = |known: &str| known.rsplit(':').next().is_some_and(|known| known.eq_ignore_ascii_case(name));
        self.options.iter().filter(|(known, _)| bare(known)).map(|(_, value)| value.as_str()).collect()
    }
}

/// The message's own name, as far as it can be found, so that faults can refer to it.
pub fn message_id(envelope: Node<'_, '_>) -> Option<String> {
    let header = child(envelope, ns::S, "Header")?;
    child(header, ns::A, "MessageID").map(|node| trimmed(node).chars().take(MESSAGE_ID_MAX).collect())
}

pub fn child<'a, 'input>(node: Node<'a, 'input>, namespace: &str, name: &str) -> Option<Node<'a, 'input>> {
    elements(node).find(|child| child.tag_name().namespace() == Some(namespace) && local(*child) == name)
}

pub fn trimmed(node: Node<'_, '_>) -> String {
    text(node).trim().to_string()
}

fn must_understand(node: Node<'_, '_>) -> bool {
    // One client forgets the namespace of the attribute.
    let value = node.attribute((ns::S, "mustUnderstand")).or(node.attribute("mustUnderstand"));
    value.is_some_and(|value| matches!(value.trim(), "1") || value.trim().eq_ignore_ascii_case("true"))
}

fn required(name: &str) -> Fault {
    Fault::sender("a:MessageInformationHeaderRequired", None, format!("header {name} is missing"))
}

fn invalid(name: &str) -> Fault {
    Fault::sender("a:InvalidMessageInformationHeader", None, format!("header {name} makes no sense"))
}

/// Reads the headers of a request.
pub fn read(envelope: Node<'_, '_>) -> Result<Header, Fault> {
    let nodes = child(envelope, ns::S, "Header").ok_or_else(|| required("Header"))?;
    elements(nodes).try_for_each(check_understood)?;
    let find = |namespace: &str, name: &str| child(nodes, namespace, name);
    let mut header = Header {
        action: find(ns::A, "Action").map(trimmed).ok_or_else(|| required("Action"))?,
        message_id: find(ns::A, "MessageID").map(trimmed).ok_or_else(|| required("MessageID"))?,
        resource: find(ns::W, "ResourceURI").map(trimmed).filter(|uri| !uri.is_empty()),
        wants_count: find(ns::W, "RequestTotalItemsCountEstimate").is_some(),
        ..Header::default()
    };
    if header.message_id.is_empty() || header.message_id.len() > MESSAGE_ID_MAX {
        return Err(invalid("MessageID"));
    }
    check_reply_to(find(ns::A, "ReplyTo").ok_or_else(|| required("ReplyTo"))?)?;
    find(ns::A, "FaultTo").map(check_reply_to).transpose()?;
    if let Some(set) = find(ns::W, "SelectorSet") {
        header.selectors = selectors(set, 0)?;
    }
    if let Some(set) = find(ns::W, "OptionSet") {
        header.options = options(set)?;
    }
    if let Some(timeout) = find(ns::W, "OperationTimeout") {
        header.timeout = Some(parse_xsd_duration(&text(timeout)).ok_or_else(|| invalid("OperationTimeout"))?);
    }
    header.envelope_max = find(ns::W, "MaxEnvelopeSize").map(envelope_max).transpose()?;
    if find(ns::W, "Locale").is_some_and(must_understand) {
        return Err(Fault::unsupported("Locale"));
    }
    if find(ns::MS, "DataLocale").is_some_and(must_understand) {
        return Err(Fault::unsupported("DataLocale"));
    }
    if let Some(fragment) = find(ns::W, "FragmentTransfer") {
        // Who does not understand it would take the whole for a part.
        if !must_understand(fragment) {
            return Err(invalid("FragmentTransfer"));
        }
        header.fragment = Some(trimmed(fragment));
    }
    Ok(header)
}

fn check_understood(node: Node<'_, '_>) -> Result<(), Fault> {
    let namespace = node.tag_name().namespace().unwrap_or_default();
    let is_known = KNOWN.iter().any(|(known, names)| *known == namespace && names.contains(&local(node)));
    if is_known || !must_understand(node) { Ok(()) } else { Err(Fault::not_understood(namespace, local(node))) }
}

fn check_reply_to(node: Node<'_, '_>) -> Result<(), Fault> {
    match child(node, ns::A, "Address").map(trimmed) {
        Some(address) if address.trim_end_matches('/') == ANONYMOUS => Ok(()),
        _ => Err(Fault::unsupported("AddressingMode")),
    }
}

fn envelope_max(node: Node<'_, '_>) -> Result<u64, Fault> {
    let size: u64 = trimmed(node).parse().map_err(|_| invalid("MaxEnvelopeSize"))?;
    if size < ENVELOPE_MIN {
        let reason = format!("an envelope of less than {ENVELOPE_MIN} bytes is too small");
        return Err(Fault::sender("w:EncodingLimit", Some("MinimumEnvelopeLimit"), reason));
    }
    Ok(size)
}

/// The selectors of a `SelectorSet`.
pub fn selectors(set: Node<'_, '_>, depth: usize) -> Result<Vec<(Name, KeyValue)>, Fault> {
    let bad = |reason: String| Fault::sender("w:InvalidSelectors", None, reason);
    let mut found: Vec<(Name, KeyValue)> = Vec::new();
    for node in elements(set).filter(|child| local(*child) == "Selector") {
        let name = node.attribute("Name").or(node.attribute((ns::W, "Name"))).unwrap_or_default();
        let name = Name::parse(name.trim()).map_err(|_| bad(format!("{name:?} is no name of a selector")))?;
        if found.iter().any(|(known, _)| *known == name) {
            return Err(Fault::sender(
                "w:InvalidSelectors",
                Some("DuplicateSelectors"),
                format!("selector {name} twice"),
            ));
        }
        if found.len() == KEYS_MAX {
            return Err(bad("too many selectors".into()));
        }
        let value = match epr::is_reference(node) {
            true => KeyValue::Reference(Box::new(epr::read(node, depth + 1)?)),
            false => KeyValue::Text(text(node)),
        };
        found.push((name, value));
    }
    Ok(found)
}

/// Options are hints: only one that must be complied with, and is not known, is in the way.
fn options(set: Node<'_, '_>) -> Result<Vec<(String, String)>, Fault> {
    let mut found = Vec::new();
    for node in elements(set).filter(|child| local(*child) == "Option") {
        let name = node.attribute("Name").unwrap_or_default().to_string();
        let must_comply = node.attribute("MustComply").is_some_and(|value| matches!(value.trim(), "true" | "1"));
        if must_comply && !is_known_option(&name) {
            return Err(Fault::sender(
                "w:InvalidOptions",
                Some("NotSupported"),
                format!("option {name:?} is not known"),
            ));
        }
        if found.len() == OPTIONS_MAX {
            return Err(Fault::sender("w:InvalidOptions", None, "too many options"));
        }
        found.push((name, text(node)));
    }
    Ok(found)
}

fn is_known_option(name: &str) -> bool {
    let known =
        ["UsePreciseArrays", "__MIInstanceModifiedPropertiesList", "IncludeInheritedElements", "IncludeQualifiers"];
    name.rsplit(':').next().is_some_and(|name| known.iter().any(|known| known.eq_ignore_ascii_case(name)))
}

/// Writes a response. Prefixes that bodies use are declared here, once.
pub fn write(action: &str, message_id: &str, relates_to: Option<&str>, more: &str, body: &str) -> String {
    let mut xml = XmlWriter::default();
    let namespaces = [
        ("xml:lang", "en-US"),
        ("xmlns:s", ns::S),
        ("xmlns:a", ns::A),
        ("xmlns:x", ns::X),
        ("xmlns:n", ns::N),
        ("xmlns:w", ns::W),
        ("xmlns:e", ns::E),
    ];
    xml.element("s:Envelope", &namespaces, |xml| {
        xml.element("s:Header", &[], |xml| {
            xml.text_element("a:Action", &[], action);
            xml.text_element("a:MessageID", &[], message_id);
            xml.text_element("a:To", &[], ANONYMOUS);
            if let Some(relates_to) = relates_to {
                xml.text_element("a:RelatesTo", &[], relates_to);
            }
            xml.raw(more);
        });
        xml.element("s:Body", &[], |xml| xml.raw(body));
    });
    xml.finish()
}
