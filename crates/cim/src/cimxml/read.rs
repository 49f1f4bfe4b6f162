//! Reads instances, paths and values from CIM-XML elements.

use roxmltree::Node;

use crate::embedded::{self, EmbeddedError};
use crate::name::{Name, NameError, Namespace};
use crate::path::{KEYS_MAX, KeyValue, Keys, ObjectPath, PATH_DEPTH_MAX};
use crate::schema::{Embedded, Instance, Kind, MEMBERS_MAX, NamedInstance, Property};
use crate::value::{CimType, ConvertError, Scalar, Value, parse_integer};
use crate::xml::{elements, local, only_element, text};

/// Why elements are not what they should be.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[allow(missing_docs)] // The messages say it.
pub enum ReadError {
    #[error("expected {expected}, found {found}")]
    Element { expected: &'static str, found: String },
    #[error("{element} lacks {attribute}")]
    Attribute { element: String, attribute: &'static str },
    #[error("bad name in {element}")]
    Name {
        element: String,
        #[source]
        err: NameError,
    },
    #[error("unknown type {0:?}")]
    Type(String),
    #[error("value of {name}")]
    Value {
        name: Name,
        #[source]
        err: ConvertError,
    },
    #[error("{name} twice")]
    Twice { name: Name },
    #[error("too many {what}")]
    TooMany { what: &'static str },
    #[error("nested too deeply")]
    TooDeep,
    #[error("embedded object in {name}")]
    Embedded {
        name: Name,
        #[source]
        err: Box<EmbeddedError>,
    },
}

type Read<T> = Result<T, ReadError>;

pub(crate) fn expected<T>(expected: &'static str, node: Node<'_, '_>) -> Read<T> {
    Err(ReadError::Element { expected, found: local(node).to_string() })
}

/// The attribute, whatever the case of its name: two spellings of some are in use.
pub(crate) fn attribute<'a>(node: Node<'a, '_>, name: &str) -> Option<&'a str> {
    node.attributes().find(|a| a.name().eq_ignore_ascii_case(name)).map(|a| a.value())
}

/// An attribute that is a name.
pub(crate) fn name(node: Node<'_, '_>, attribute_name: &'static str) -> Read<Name> {
    let missing = || ReadError::Attribute { element: local(node).to_string(), attribute: attribute_name };
    let text = attribute(node, attribute_name).ok_or_else(missing)?;
    Name::parse(text.trim()).map_err(|err| ReadError::Name { element: local(node).to_string(), err })
}

/// `INSTANCE`: its properties, without those whose names begin with two underscores, which describe the system it comes from.
pub fn instance(node: Node<'_, '_>, depth: usize) -> Read<Instance> {
    if local(node) != "INSTANCE" {
        return expected("INSTANCE", node);
    }
    let mut instance = Instance::new(name(node, "CLASSNAME")?);
    for child in elements(node) {
        let Some(property) = property(child, depth)? else { continue };
        if property.name.as_str().starts_with("__") {
            continue;
        }
        if instance.property(property.name.as_str()).is_some() {
            return Err(ReadError::Twice { name: property.name });
        }
        if instance.properties.len() == MEMBERS_MAX {
            return Err(ReadError::TooMany { what: "properties" });
        }
        instance.properties.push(property);
    }
    Ok(instance)
}

/// `VALUE.NAMEDINSTANCE`, and the other elements that hold a path and an instance.
pub fn named_instance(node: Node<'_, '_>) -> Read<NamedInstance> {
    let (mut path, mut found) = (None, None);
    for child in elements(node) {
        match local(child) {
            "INSTANCE" => found = Some(instance(child, 0)?),
            _ => path = Some(object_path(child)?),
        }
    }
    match (path, found) {
        (Some(path), Some(instance)) => Ok(NamedInstance { path, instance }),
        _ => expected("a path and an instance", node),
    }
}

/// A property, or nothing for qualifiers and the like.
fn property(node: Node<'_, '_>, depth: usize) -> Read<Option<Property>> {
    let (kind, value) = match local(node) {
        "PROPERTY" => typed(node, Kind::scalar(cim_type(node, "TYPE")?), depth)?,
        "PROPERTY.ARRAY" => typed(node, Kind::array(cim_type(node, "TYPE")?), depth)?,
        "PROPERTY.REFERENCE" => {
            let class = attribute(node, "REFERENCECLASS").and_then(|class| Name::parse(class).ok());
            let kind = Kind { class, ..Kind::scalar(CimType::Reference) };
            let path = elements(node).find(|child| local(*child) == "VALUE.REFERENCE").map(object_path).transpose()?;
            (kind, Value::from(path))
        }
        // WMI's own way to embed.
        "PROPERTY.OBJECT" => {
            let object =
                elements(node).find(|child| local(*child) == "VALUE.OBJECT").map(|v| object(v, depth)).transpose()?;
            (Kind::embedded_instance(None), Value::from(object))
        }
        "PROPERTY.OBJECTARRAY" => {
            let array = elements(node).find(|child| local(*child) == "VALUE.OBJECTARRAY");
            let objects = array.map(|array| elements(array).map(|v| object(v, depth)).collect::<Read<Vec<_>>>());
            let kind = Kind { array: Some(None), ..Kind::embedded_instance(None) };
            (kind, objects.transpose()?.map_or(Value::Null, Value::from))
        }
        _ => return Ok(None),
    };
    let mut property = Property { value, ..Property::new(name(node, "NAME")?, kind) };
    property.class_origin = attribute(node, "CLASSORIGIN").and_then(|class| Name::parse(class).ok());
    Ok(Some(property))
}

fn object(node: Node<'_, '_>, depth: usize) -> Read<Instance> {
    match only_element(node) {
        Some(child) if depth < embedded::DEPTH_MAX => instance(child, depth + 1),
        Some(_) => Err(ReadError::TooDeep),
        None => expected("an INSTANCE", node),
    }
}

fn cim_type(node: Node<'_, '_>, attribute_name: &str) -> Read<CimType> {
    match attribute(node, attribute_name) {
        None => Ok(CimType::String),
        Some(text) => CimType::parse(text.trim()).ok_or_else(|| ReadError::Type(text.chars().take(40).collect())),
    }
}

fn typed(node: Node<'_, '_>, mut kind: Kind, depth: usize) -> Read<(Kind, Value)> {
    kind.embedded = embedded_kind(node);
    let name = name(node, "NAME")?;
    let value = match raw_value(node)? {
        // An empty text where something else is declared: no value.
        Raw::Text(text) if text.trim().is_empty() && kind.base != CimType::String && kind.base != CimType::Char16 => {
            Value::Null
        }
        raw => raw.typed(&name, &kind, depth)?,
    };
    Ok((kind, value))
}

/// What an element says of objects embedded in it.
pub(crate) fn embedded_kind(node: Node<'_, '_>) -> Option<Embedded> {
    match attribute(node, "EmbeddedObject")? {
        word if word.eq_ignore_ascii_case("instance") => Some(Embedded::Instance),
        word if word.eq_ignore_ascii_case("object") => Some(Embedded::Object),
        _ => None,
    }
}

/// A value before its type is known.
#[derive(Debug, Clone, PartialEq)]
pub enum Raw {
    /// No value.
    Null,
    /// One text.
    Text(String),
    /// An array of texts.
    Texts(Vec<Option<String>>),
    /// A reference.
    Path(ObjectPath),
    /// An array of references.
    Paths(Vec<Option<ObjectPath>>),
    /// An instance.
    Instance(Box<Instance>),
    /// An instance with its path.
    Named(Box<NamedInstance>),
}

impl Raw {
    /// The value with a type.
    pub fn typed(self, name: &Name, kind: &Kind, depth: usize) -> Read<Value> {
        let one = |text: String| scalar(name, kind, text, depth);
        let not = |from| Err(ReadError::Value { name: name.clone(), err: ConvertError::Type { from, to: kind.base } });
        match self {
            Raw::Null => Ok(Value::Null),
            Raw::Text(text) => Ok(Value::Scalar(one(text)?)),
            Raw::Texts(texts) => {
                let elements = texts.into_iter().map(|text| text.map(one).transpose());
                elements.collect::<Read<_>>().map(Value::Array)
            }
            Raw::Path(path) if kind.base == CimType::Reference => Ok(Value::from(path)),
            Raw::Paths(paths) if kind.base == CimType::Reference => {
                Ok(Value::Array(paths.into_iter().map(|path| path.map(Scalar::from)).collect()))
            }
            Raw::Instance(instance) if kind.base == CimType::String => Ok(Value::from(*instance)),
            Raw::Named(named) if kind.base == CimType::String => Ok(Value::from(named.instance)),
            Raw::Path(_) | Raw::Paths(_) => not(CimType::Reference),
            Raw::Instance(_) | Raw::Named(_) => not(CimType::String),
        }
    }
}

fn scalar(name: &Name, kind: &Kind, text: String, depth: usize) -> Read<Scalar> {
    if kind.embedded.is_some() && kind.base == CimType::String {
        let failed = |err| ReadError::Embedded { name: name.clone(), err: Box::new(err) };
        return embedded::read_at(&text, depth + 1).map(Scalar::from).map_err(failed);
    }
    Scalar::parse(kind.base, &text).map_err(|err| ReadError::Value { name: name.clone(), err })
}

/// The value in an element, whatever kind it is; qualifiers beside it are passed over.
pub fn raw_value(node: Node<'_, '_>) -> Read<Raw> {
    let Some(value) = elements(node).find(|child| local(*child) != "QUALIFIER") else { return Ok(Raw::Null) };
    match local(value) {
        "VALUE" => Ok(Raw::Text(text_or_source(value))),
        "VALUE.NULL" => Ok(Raw::Null),
        "VALUE.ARRAY" => elements(value).map(array_element).collect::<Read<_>>().map(Raw::Texts),
        "VALUE.REFARRAY" => elements(value).map(reference_element).collect::<Read<_>>().map(Raw::Paths),
        "VALUE.NAMEDINSTANCE" | "VALUE.INSTANCEWITHPATH" | "VALUE.NAMEDOBJECT" => {
            named_instance(value).map(|named| Raw::Named(Box::new(named)))
        }
        "INSTANCE" => instance(value, 0).map(|instance| Raw::Instance(Box::new(instance))),
        _ => object_path(value).map(Raw::Path),
    }
}

fn array_element(node: Node<'_, '_>) -> Read<Option<String>> {
    match local(node) {
        "VALUE" => Ok(Some(text_or_source(node))),
        "VALUE.NULL" => Ok(None),
        _ => expected("VALUE", node),
    }
}

fn reference_element(node: Node<'_, '_>) -> Read<Option<ObjectPath>> {
    if local(node) == "VALUE.NULL" { Ok(None) } else { object_path(node).map(Some) }
}

/// The text of an element; if somebody put elements where a text belongs, these as they were written.
pub(crate) fn text_or_source(node: Node<'_, '_>) -> String {
    match elements(node).next() {
        Some(child) => node.document().input_text()[child.range()].to_string(),
        None => text(node),
    }
}

/// A path in any of its elements, `VALUE.REFERENCE` around it or not.
pub fn object_path(node: Node<'_, '_>) -> Read<ObjectPath> {
    path_at(node, 0)
}

fn path_at(node: Node<'_, '_>, depth: usize) -> Read<ObjectPath> {
    if depth > PATH_DEPTH_MAX {
        return Err(ReadError::TooDeep);
    }
    match local(node) {
        "VALUE.REFERENCE" | "OBJECTPATH" => match only_element(node) {
            Some(child) => path_at(child, depth),
            None => expected("a path", node),
        },
        "CLASSNAME" => Ok(ObjectPath::class(name(node, "NAME")?)),
        "INSTANCENAME" => instance_name(node, depth),
        "CLASSPATH" | "LOCALCLASSPATH" | "INSTANCEPATH" | "LOCALINSTANCEPATH" => {
            let mut children = elements(node);
            let (Some(space), Some(object), None) = (children.next(), children.next(), children.next()) else {
                return expected("a namespace and a name", node);
            };
            let (host, namespace) = namespace_path(space)?;
            Ok(ObjectPath { host, namespace: Some(namespace), ..path_at(object, depth)? })
        }
        _ => expected("a path", node),
    }
}

/// `NAMESPACEPATH` or `LOCALNAMESPACEPATH`
pub fn namespace_path(node: Node<'_, '_>) -> Read<(Option<String>, Namespace)> {
    match local(node) {
        "LOCALNAMESPACEPATH" => {
            let names: Vec<&str> = elements(node).filter_map(|child| attribute(child, "NAME")).collect();
            let bad = |err| ReadError::Name { element: local(node).to_string(), err };
            Ok((None, Namespace::from_components(&names).map_err(bad)?))
        }
        "NAMESPACEPATH" => {
            let host = elements(node).find(|child| local(*child) == "HOST").map(|host| text(host).trim().to_string());
            match elements(node).find(|child| local(*child) == "LOCALNAMESPACEPATH") {
                Some(local) => Ok((host.filter(|host| !host.is_empty()), namespace_path(local)?.1)),
                None => expected("LOCALNAMESPACEPATH", node),
            }
        }
        _ => expected("a namespace", node),
    }
}

fn instance_name(node: Node<'_, '_>, depth: usize) -> Read<ObjectPath> {
    let class = name(node, "CLASSNAME")?;
    let mut keys: Vec<(Name, KeyValue)> = Vec::new();
    for child in elements(node) {
        if local(child) != "KEYBINDING" {
            // The value of an only key may stand there by itself.
            let keys = Keys::Single(key_value(child, depth)?);
            return Ok(ObjectPath { host: None, namespace: None, class, keys });
        }
        let name = name(child, "NAME")?;
        if keys.iter().any(|(known, _)| *known == name) {
            return Err(ReadError::Twice { name });
        }
        if keys.len() == KEYS_MAX {
            return Err(ReadError::TooMany { what: "keys" });
        }
        let Some(value) = only_element(child) else { return expected("a key's value", child) };
        keys.push((name, key_value(value, depth)?));
    }
    Ok(ObjectPath::instance(class, keys))
}

fn key_value(node: Node<'_, '_>, depth: usize) -> Read<KeyValue> {
    if local(node) != "KEYVALUE" {
        return path_at(node, depth + 1).map(|path| KeyValue::Reference(Box::new(path)));
    }
    let text = text(node);
    // A value that is not of its type stays a text; whether that fits is for the class to say.
    Ok(match attribute(node, "VALUETYPE").unwrap_or("string").to_ascii_lowercase().as_str() {
        "numeric" => parse_integer(&text).map_or(KeyValue::Text(text), KeyValue::Integer),
        "boolean" => match text.trim() {
            word if word.eq_ignore_ascii_case("true") => KeyValue::Boolean(true),
            word if word.eq_ignore_ascii_case("false") => KeyValue::Boolean(false),
            _ => KeyValue::Text(text),
        },
        _ => KeyValue::Text(text),
    })
}
