//! Writes classes, instances, paths and values as CIM-XML.
//!
//! The name is the first attribute everywhere and nothing stands between a property and its value: some clients read it that way.

use crate::path::{KeyValue, Keys, ObjectPath};
use crate::schema::{
    Class, Embedded, Flavors, Instance, Kind, Method, Named, Parameter, Property, Qualifier, QualifierDeclaration,
    Scope,
};
use crate::value::{CimType, Scalar, Value};
use crate::xml::XmlWriter;

/// An instance as a text by itself, as it stands in a string that embeds it.
pub fn instance_text(instance: &Instance) -> String {
    let mut xml = XmlWriter::default();
    self::instance(&mut xml, instance);
    xml.finish()
}

/// A class as a text by itself.
pub fn class_text(class: &Class) -> String {
    let mut xml = XmlWriter::default();
    self::class(&mut xml, class);
    xml.finish()
}

/// `INSTANCE`
pub fn instance(xml: &mut XmlWriter, instance: &Instance) {
    xml.element("INSTANCE", &[("CLASSNAME", instance.class.as_str())], |xml| {
        instance.properties.iter().for_each(|p| property(xml, p, false));
    });
}

/// `CLASS`
pub fn class(xml: &mut XmlWriter, class: &Class) {
    let mut attributes = vec![("NAME", class.name.as_str())];
    attributes.extend(class.superclass.as_ref().map(|name| ("SUPERCLASS", name.as_str())));
    xml.element("CLASS", &attributes, |xml| {
        qualifiers(xml, &class.qualifiers);
        class.properties.iter().for_each(|p| property(xml, p, true));
        class.methods.iter().for_each(|m| method(xml, m));
    });
}

/// `QUALIFIER.DECLARATION`
pub fn qualifier_declaration(xml: &mut XmlWriter, declaration: &QualifierDeclaration) {
    let size = array_size(&declaration.kind);
    let mut attributes = vec![
        ("NAME", declaration.name.as_str()),
        ("TYPE", declaration.kind.base.name()),
        ("ISARRAY", if declaration.kind.is_array() { "true" } else { "false" }),
    ];
    attributes.extend(size.as_deref().map(|size| ("ARRAYSIZE", size)));
    attributes.extend(flavors(declaration.flavors));
    xml.element("QUALIFIER.DECLARATION", &attributes, |xml| {
        let scopes = Scope::ALL.iter().filter(|(scope, _)| declaration.scopes.contains(*scope));
        let scopes: Vec<_> = scopes.map(|(_, name)| (*name, "true")).collect();
        xml.empty("SCOPE", &scopes);
        value(xml, &declaration.value);
    });
}

/// Only what differs from what is understood anyway.
fn flavors<'a>(flavors: Flavors) -> impl Iterator<Item = (&'a str, &'a str)> {
    let said = |name, is: Option<bool>, usual: bool| {
        is.filter(|is| *is != usual).map(|is| (name, if is { "true" } else { "false" }))
    };
    let all = [
        said("OVERRIDABLE", flavors.overridable, true),
        said("TOSUBCLASS", flavors.to_subclass, true),
        said("TOINSTANCE", flavors.to_instance, false),
        said("TRANSLATABLE", flavors.translatable, false),
    ];
    all.into_iter().flatten()
}

fn qualifiers(xml: &mut XmlWriter, qualifiers: &[Qualifier]) {
    for qualifier in qualifiers {
        let mut attributes = vec![("NAME", qualifier.name.as_str()), ("TYPE", qualifier.kind.base.name())];
        attributes.extend(qualifier.is_propagated.then_some(("PROPAGATED", "true")));
        attributes.extend(flavors(qualifier.flavors));
        xml.element("QUALIFIER", &attributes, |xml| value(xml, &qualifier.value));
    }
}

fn property(xml: &mut XmlWriter, property: &Property, is_declaration: bool) {
    let kind = &property.kind;
    let size = array_size(kind);
    let mut attributes = vec![("NAME", property.name.as_str())];
    let element = match (kind.base, kind.is_array()) {
        (CimType::Reference, _) => "PROPERTY.REFERENCE",
        (_, true) => "PROPERTY.ARRAY",
        (_, false) => "PROPERTY",
    };
    match kind.base {
        CimType::Reference => attributes.extend(kind.class.as_ref().map(|class| ("REFERENCECLASS", class.as_str()))),
        base => attributes.push(("TYPE", base.name())),
    }
    attributes.extend(size.as_deref().map(|size| ("ARRAYSIZE", size)));
    attributes.extend(property.class_origin.as_ref().map(|class| ("CLASSORIGIN", class.as_str())));
    attributes.extend((is_declaration && property.is_propagated).then_some(("PROPAGATED", "true")));
    // In a class the qualifiers say it, for NULL it says nothing, and one client knows the attribute on some elements only.
    let is_embedded = !is_declaration && !property.value.is_null();
    attributes.extend(embedded_attribute(kind).filter(|_| is_embedded));
    xml.element(element, &attributes, |xml| {
        qualifiers(xml, &property.qualifiers);
        value(xml, &property.value);
    });
}

fn method(xml: &mut XmlWriter, method: &Method) {
    let mut attributes = vec![("NAME", method.name.as_str()), ("TYPE", method.returns.base.name())];
    attributes.extend(method.class_origin.as_ref().map(|class| ("CLASSORIGIN", class.as_str())));
    attributes.extend(method.is_propagated.then_some(("PROPAGATED", "true")));
    xml.element("METHOD", &attributes, |xml| {
        qualifiers(xml, &method.qualifiers);
        method.parameters.iter().for_each(|p| parameter(xml, p));
    });
}

fn parameter(xml: &mut XmlWriter, parameter: &Parameter) {
    let kind = &parameter.kind;
    let size = array_size(kind);
    let mut attributes = vec![("NAME", parameter.name.as_str())];
    let element = match (kind.base, kind.is_array()) {
        (CimType::Reference, false) => "PARAMETER.REFERENCE",
        (CimType::Reference, true) => "PARAMETER.REFARRAY",
        (_, true) => "PARAMETER.ARRAY",
        (_, false) => "PARAMETER",
    };
    match kind.base {
        CimType::Reference => attributes.extend(kind.class.as_ref().map(|class| ("REFERENCECLASS", class.as_str()))),
        base => attributes.push(("TYPE", base.name())),
    }
    attributes.extend(size.as_deref().map(|size| ("ARRAYSIZE", size)));
    xml.element(element, &attributes, |xml| qualifiers(xml, &parameter.qualifiers));
}

fn array_size(kind: &Kind) -> Option<String> {
    kind.array_max().map(|size| size.to_string())
}

/// The attribute of what holds embedded objects.
pub fn embedded_attribute(kind: &Kind) -> Option<(&'static str, &'static str)> {
    kind.embedded.map(|embedded| match embedded {
        Embedded::Instance => ("EmbeddedObject", "instance"),
        Embedded::Object => ("EmbeddedObject", "object"),
    })
}

/// `VALUE`, `VALUE.ARRAY`, `VALUE.REFERENCE` or, for NULL, nothing.
pub fn value(xml: &mut XmlWriter, value: &Value) {
    match value {
        Value::Null => {}
        Value::Scalar(scalar) => self::scalar(xml, scalar),
        Value::Array(elements) => {
            let is_reference = elements.iter().flatten().next().is_some_and(|e| e.cim_type() == CimType::Reference);
            let element = if is_reference { "VALUE.REFARRAY" } else { "VALUE.ARRAY" };
            xml.element(element, &[], |xml| {
                for element in elements {
                    match element {
                        Some(scalar) => self::scalar(xml, scalar),
                        None => xml.empty("VALUE.NULL", &[]),
                    }
                }
            });
        }
    }
}

fn scalar(xml: &mut XmlWriter, scalar: &Scalar) {
    match scalar {
        Scalar::Reference(path) => value_reference(xml, path),
        Scalar::Instance(instance) => xml.text_element("VALUE", &[], &instance_text(&instance.plain())),
        Scalar::Class(class) => xml.text_element("VALUE", &[], &class_text(class)),
        Scalar::Boolean(value) => xml.text_element("VALUE", &[], if *value { "TRUE" } else { "FALSE" }),
        other => xml.text_element("VALUE", &[], &other.text().unwrap_or_default()),
    }
}

/// `VALUE.REFERENCE` around the form of path that says all the path knows.
pub fn value_reference(xml: &mut XmlWriter, path: &ObjectPath) {
    xml.element("VALUE.REFERENCE", &[], |xml| object_path(xml, path));
}

/// `INSTANCEPATH`, `LOCALINSTANCEPATH`, `INSTANCENAME` or the like for a class, whichever the path has enough for.
pub fn object_path(xml: &mut XmlWriter, path: &ObjectPath) {
    let (whole, local) = match path.is_class() {
        true => ("CLASSPATH", "LOCALCLASSPATH"),
        false => ("INSTANCEPATH", "LOCALINSTANCEPATH"),
    };
    match (&path.host, &path.namespace) {
        (Some(host), Some(namespace)) => xml.element(whole, &[], |xml| {
            xml.element("NAMESPACEPATH", &[], |xml| {
                xml.text_element("HOST", &[], host);
                namespace_path(xml, namespace);
            });
            name(xml, path);
        }),
        (None, Some(namespace)) => xml.element(local, &[], |xml| {
            namespace_path(xml, namespace);
            name(xml, path);
        }),
        _ => name(xml, path),
    }
}

/// `LOCALNAMESPACEPATH`
pub fn namespace_path(xml: &mut XmlWriter, namespace: &crate::name::Namespace) {
    xml.element("LOCALNAMESPACEPATH", &[], |xml| {
        namespace.components().for_each(|component| xml.empty("NAMESPACE", &[("NAME", component)]));
    });
}

/// `INSTANCENAME` or `CLASSNAME`
pub fn name(xml: &mut XmlWriter, path: &ObjectPath) {
    let keys = match &path.keys {
        Keys::None => return xml.empty("CLASSNAME", &[("NAME", path.class.as_str())]),
        Keys::Singleton => &[][..],
        Keys::Single(value) => {
            return xml.element("INSTANCENAME", &[("CLASSNAME", path.class.as_str())], |xml| key_value(xml, value));
        }
        Keys::Named(keys) => keys,
    };
    xml.element("INSTANCENAME", &[("CLASSNAME", path.class.as_str())], |xml| {
        for (name, value) in keys {
            xml.element("KEYBINDING", &[("NAME", name.as_str())], |xml| key_value(xml, value));
        }
    });
}

fn key_value(xml: &mut XmlWriter, value: &KeyValue) {
    match value {
        KeyValue::Text(text) => xml.text_element("KEYVALUE", &[("VALUETYPE", "string")], text),
        KeyValue::Integer(number) => xml.text_element("KEYVALUE", &[("VALUETYPE", "numeric")], &number.to_string()),
        KeyValue::Boolean(value) => {
            xml.text_element("KEYVALUE", &[("VALUETYPE", "boolean")], if *value { "TRUE" } else { "FALSE" });
        }
        KeyValue::Reference(path) => value_reference(xml, path),
    }
}

/// `PARAMVALUE` with its type; NULL is an element without a value.
pub fn parameter_value(xml: &mut XmlWriter, name: &impl Named, kind: &Kind, value: &Value) {
    let mut attributes = vec![("NAME", name.name().as_str()), ("PARAMTYPE", kind.base.name())];
    attributes.extend(embedded_attribute(kind));
    xml.element("PARAMVALUE", &attributes, |xml| self::value(xml, value));
}
