//! Endpoint references: how WS-Management refers to an instance.

use roxmltree::Node;

use super::envelope::selectors;
use super::fault::Fault;
use super::uri::{Family, Resource};
use super::{ANONYMOUS, NAMESPACE_SELECTOR, ns};
use crate::name::{Name, Namespace};
use crate::path::{KeyValue, Keys, ObjectPath, PATH_DEPTH_MAX};
use crate::xml::{Attributes, XmlWriter, elements, local, text};

/// True when an element's children refer to something.
pub fn is_reference(node: Node<'_, '_>) -> bool {
    let is_part = |child: Node<'_, '_>| {
        child.tag_name().namespace() == Some(ns::A)
            && matches!(local(child), "Address" | "ReferenceParameters" | "EndpointReference")
    };
    elements(node).any(is_part)
}

/// Reads what an element's children refer to, an `EndpointReference` around them or not.
pub fn read(node: Node<'_, '_>, depth: usize) -> Result<ObjectPath, Fault> {
    if depth > PATH_DEPTH_MAX {
        return Err(Fault::schema("references are nested too deeply"));
    }
    if let Some(inner) = elements(node).find(|child| local(*child) == "EndpointReference") {
        return read(inner, depth + 1);
    }
    let parameters = elements(node).find(|child| local(*child) == "ReferenceParameters");
    let parameters = parameters.ok_or_else(|| Fault::schema("a reference without ReferenceParameters"))?;
    let find = |name: &str| elements(parameters).find(|child| local(*child) == name);
    let uri = find("ResourceURI").map(text).unwrap_or_default();
    let Some(Resource::Instances { namespace, class: Some(class), .. }) = Resource::parse(&uri) else {
        return Err(Fault::resource(format!("a reference to {:?} leads to nothing", uri.trim())));
    };
    let mut keys = find("SelectorSet").map(|set| selectors(set, depth)).transpose()?.unwrap_or_default();
    let namespace = take_namespace(&mut keys)?.or(namespace);
    Ok(ObjectPath { namespace, ..ObjectPath::instance(class, keys) })
}

/// Takes the selector that names a namespace from among the others.
pub fn take_namespace(selectors: &mut Vec<(Name, KeyValue)>) -> Result<Option<Namespace>, Fault> {
    let Some(index) = selectors.iter().position(|(name, _)| name.is(NAMESPACE_SELECTOR)) else { return Ok(None) };
    let (_, value) = selectors.remove(index);
    let bad = |_| Fault::sender("w:InvalidSelectors", None, format!("{NAMESPACE_SELECTOR} is no namespace"));
    Namespace::parse(value.plain().trim()).map(Some).map_err(bad)
}

/// Whether the elements of a reference declare their prefixes themselves: one client cuts them out of the text and pastes them into
/// its next request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Declared {
    Outside,
    Inline,
}

/// `a:EndpointReference`
pub fn write_whole(xml: &mut XmlWriter, path: &ObjectPath, family: Family, declared: Declared) {
    xml.element("a:EndpointReference", &[], |xml| write(xml, path, family, declared));
}

/// `a:Address` and `a:ReferenceParameters`
pub fn write(xml: &mut XmlWriter, path: &ObjectPath, family: Family, declared: Declared) {
    let (a, w): (Attributes<'_>, Attributes<'_>) = match declared {
        Declared::Outside => (&[], &[]),
        Declared::Inline => (&[("xmlns:a", ns::A)], &[("xmlns:w", ns::W)]),
    };
    // Paths that leave the broker have a namespace.
    let unknown = Namespace::from("root");
    let namespace = path.namespace.as_ref().unwrap_or(&unknown);
    xml.text_element("a:Address", a, ANONYMOUS);
    xml.element("a:ReferenceParameters", a, |xml| {
        xml.text_element("w:ResourceURI", w, &family.uri(namespace, &path.class));
        xml.element("w:SelectorSet", w, |xml| {
            if family == Family::Dmtf {
                xml.text_element("w:Selector", &[("Name", NAMESPACE_SELECTOR)], namespace.as_str());
            }
            let Keys::Named(keys) = &path.keys else { return };
            for (name, value) in keys {
                xml.element("w:Selector", &[("Name", name.as_str())], |xml| match value {
                    KeyValue::Reference(inner) => {
                        let located = inner.namespace.clone().unwrap_or_else(|| namespace.clone());
                        write_whole(xml, &(**inner).clone().within(&located), family, declared);
                    }
                    other => xml.text(&other.plain()),
                });
            }
        });
    });
}
