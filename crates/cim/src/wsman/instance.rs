//! Instances as XML (DSP0230): a class's element with an element for each property.

use std::collections::BTreeMap;

use roxmltree::Node;

use super::epr::{self, Declared};
use super::fault::Fault;
use super::ns;
use super::uri::Family;
use crate::name::{Name, Namespace};
use crate::repository::Repository;
use crate::schema::{Instance, Kind, MEMBERS_MAX, Property};
use crate::value::{CimType, Scalar, Value};
use crate::xml::{XmlWriter, elements, local, text};

/// How deep instances may lie in each other.
const DEPTH_MAX: usize = 8;

/// How a client wants instances to be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Style {
    /// The family of the URIs in them.
    pub family: Family,
    /// Arrays that are NULL are told from single values that are.
    pub precise_arrays: bool,
}

/// Writes an instance.
pub fn write(xml: &mut XmlWriter, instance: &Instance, namespace: &Namespace, style: Style) {
    let uri = style.family.uri(namespace, &instance.class);
    let class = format!("p:{}", instance.class);
    let class_type = format!("{class}_Type");
    let attributes =
        [("xmlns:p", uri.as_str()), ("xmlns:xsi", ns::XSI), ("xmlns:cim", ns::CIM), ("xsi:type", &class_type)];
    xml.element(&class, &attributes, |xml| {
        instance.properties.iter().for_each(|p| write_member(xml, "p", &p.name, &p.kind, &p.value, namespace, style));
    });
}

/// Writes properties without a class around them and without prefixes, as Windows does for queries that name properties.
pub fn write_fragment(xml: &mut XmlWriter, properties: &[Property], namespace: &Namespace, style: Style) {
    let attributes = [("xmlns:xsi", ns::XSI), ("xmlns:cim", ns::CIM)];
    xml.element("w:XmlFragment", &attributes, |xml| {
        properties.iter().for_each(|p| write_member(xml, "", &p.name, &p.kind, &p.value, namespace, style));
    });
}

/// Writes a property or a parameter: an element, as many as an array has elements, or one that says it is NULL.
pub fn write_member(
    xml: &mut XmlWriter,
    prefix: &str,
    name: &Name,
    kind: &Kind,
    value: &Value,
    namespace: &Namespace,
    style: Style,
) {
    let element = if prefix.is_empty() { name.to_string() } else { format!("{prefix}:{name}") };
    match value {
        Value::Null if kind.is_array() && style.precise_arrays => {
            xml.empty(&element, &[("xmlns:m", ns::MS), ("xsi:nil", "true"), ("m:IsNullArray", "true")]);
        }
        Value::Null => xml.empty(&element, &[("xsi:nil", "true")]),
        Value::Scalar(scalar) => write_scalar(xml, &element, scalar, namespace, style),
        // What is NULL within an array cannot be said.
        Value::Array(elements) => {
            elements.iter().flatten().for_each(|scalar| write_scalar(xml, &element, scalar, namespace, style));
        }
    }
}

fn write_scalar(xml: &mut XmlWriter, element: &str, scalar: &Scalar, namespace: &Namespace, style: Style) {
    match scalar {
        Scalar::Reference(path) => {
            let located = path.namespace.clone().unwrap_or_else(|| namespace.clone());
            let path = (**path).clone().within(&located);
            xml.element(element, &[], |xml| epr::write(xml, &path, style.family, Declared::Outside));
        }
        Scalar::Instance(instance) => {
            let uri = style.family.uri(namespace, &instance.class);
            let class_type = format!("q:{}_Type", instance.class);
            xml.element(element, &[("xmlns:q", &uri), ("xsi:type", &class_type)], |xml| {
                let properties = instance.properties.iter();
                properties.for_each(|p| write_member(xml, "q", &p.name, &p.kind, &p.value, namespace, style));
            });
        }
        Scalar::Class(class) => xml.text_element(element, &[], &crate::cimxml::write::class_text(class)),
        Scalar::Datetime(moment) => xml.element(element, &[], |xml| match moment.to_xsd() {
            Some(text) if moment.is_interval() => xml.text_element("cim:Interval", &[], &text),
            Some(text) => xml.text_element("cim:Datetime", &[], &text),
            None => xml.text_element("cim:CIM_DateTime", &[], moment.as_str()),
        }),
        other => xml.text_element(element, &[], &other.text().unwrap_or_default()),
    }
}

/// Reads instances and parameters. Their classes are known to a repository, if that: it says which class a member has that does not say
/// so itself.
///
/// Values are texts, references, or instances; whoever knows the class gives them their types.
#[derive(Debug, Clone, Copy)]
pub struct Reader<'a> {
    /// The classes of the namespace.
    pub repository: Option<&'a Repository>,
}

impl Reader<'_> {
    /// Reads an instance.
    pub fn instance(&self, node: Node<'_, '_>, class: Name, depth: usize) -> Result<Instance, Fault> {
        let declared = |name: &str| self.repository?.property(&class, name)?.kind.class.clone();
        let members = self.members(node, &declared, depth)?;
        let mut instance = Instance::new(class);
        for (name, value) in members {
            // A type that does not matter: what the class declares will count.
            let kind = Kind::of(&value).unwrap_or(Kind::scalar(CimType::String));
            instance.properties.push(Property { value, ..Property::new(name, kind) });
        }
        Ok(instance)
    }

    /// Reads the members in an element: properties of an instance, or parameters of a method. An element that comes several times is
    /// an array. `class_of` says which class a member has.
    pub fn members(
        &self,
        node: Node<'_, '_>,
        class_of: &dyn Fn(&str) -> Option<Name>,
        depth: usize,
    ) -> Result<Vec<(Name, Value)>, Fault> {
        let mut members: Vec<(Name, Vec<Option<Scalar>>)> = Vec::new();
        let mut places: BTreeMap<Name, usize> = BTreeMap::new();
        for child in elements(node) {
            let name =
                Name::parse(local(child)).map_err(|_| Fault::schema(format!("{:?} is no name", local(child))))?;
            let value = self.scalar(child, class_of(name.as_str()), depth)?;
            let index = *places.entry(name.clone()).or_insert(members.len());
            match members.get_mut(index) {
                Some((_, values)) => values.push(value),
                None if index == MEMBERS_MAX => return Err(Fault::schema("too many members")),
                None => members.push((name, vec![value])),
            }
        }
        let value = |mut values: Vec<Option<Scalar>>| match values.len() {
            1 => values.remove(0).map_or(Value::Null, Value::Scalar),
            _ => Value::Array(values),
        };
        Ok(members.into_iter().map(|(name, values)| (name, value(values))).collect())
    }

    fn scalar(&self, node: Node<'_, '_>, class: Option<Name>, depth: usize) -> Result<Option<Scalar>, Fault> {
        if depth > DEPTH_MAX {
            return Err(Fault::schema("instances are nested too deeply"));
        }
        if is_nil(node) {
            return Ok(None);
        }
        let Some(first) = elements(node).next() else {
            let text = text(node);
            // An instance without properties holds nothing but says what it is.
            let class = type_of(node).filter(|_| text.trim().is_empty());
            return Ok(Some(class.map_or(Scalar::String(text), |class| Scalar::from(Instance::new(class)))));
        };
        if epr::is_reference(node) {
            return epr::read(node, 0).map(|path| Some(Scalar::from(path)));
        }
        if first.tag_name().namespace() == Some(ns::CIM) {
            return Ok(Some(Scalar::String(text(first).trim().to_string())));
        }
        // Somebody forgot to escape the text of an instance.
        if local(first) == "INSTANCE" && first.attribute("CLASSNAME").is_some() {
            return Ok(Some(Scalar::String(node.document().input_text()[first.range()].to_string())));
        }
        // An instance in an element of its own, in the element of the member.
        if let Some(class) = type_of(first) {
            return self.instance(first, class, depth + 1).map(|instance| Some(Scalar::from(instance)));
        }
        let class = type_of(node).or(class);
        let class = class.ok_or_else(|| Fault::schema(format!("what {} holds has no type", local(node))))?;
        self.instance(node, class, depth + 1).map(|instance| Some(Scalar::from(instance)))
    }
}

/// Clients bind the prefix of this attribute to more than one namespace.
fn is_nil(node: Node<'_, '_>) -> bool {
    let nil = node.attributes().find(|attribute| attribute.name() == "nil");
    nil.is_some_and(|attribute| matches!(attribute.value().trim(), "true" | "1"))
}

/// The class that `xsi:type="q:Class_Type"` names. Types of values say nothing here.
fn type_of(node: Node<'_, '_>) -> Option<Name> {
    let named = node.attributes().find(|attribute| attribute.name() == "type" && attribute.namespace().is_some())?;
    let name = named.value().trim().rsplit(':').next()?;
    Name::parse(name.strip_suffix("_Type")?).ok()
}
