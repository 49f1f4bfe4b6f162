//! Writes classes, instances and qualifiers as MOF.
//!
//! Of a class that was filled in with what it inherits, only its own part is written. Embedded instances are written as such, the
//! way WMI does, so that they need no second reading.

use std::fmt::{self, Write};

use crate::name::Name;
use crate::schema::{Class, Flavors, Instance, Kind, Parameter, Qualifier, QualifierDeclaration, Scope, Scopes};
use crate::value::{CimType, Scalar, Value};

/// A class, with a line for each member.
pub fn class_text(class: &Class) -> String {
    let mut out = qualifiers_text(&class.qualifiers, "");
    let superclass = class.superclass.as_ref().map(|name| format!(" : {name}")).unwrap_or_default();
    put(&mut out, format_args!("class {}{superclass} {{\n", class.name));
    for property in class.properties.iter().filter(|property| !property.is_propagated) {
        out.push_str(&qualifiers_text(&property.qualifiers, "  "));
        put(&mut out, format_args!("  {}", declaration_text(&property.kind, &property.name)));
        if !property.value.is_null() {
            put(&mut out, format_args!(" = {}", value_text(&property.value)));
        }
        out.push_str(";\n");
    }
    for method in class.methods.iter().filter(|method| !method.is_propagated) {
        out.push_str(&qualifiers_text(&method.qualifiers, "  "));
        let parameters: Vec<String> = method.parameters.iter().map(parameter_text).collect();
        let head = declaration_text(&method.returns, &method.name);
        put(&mut out, format_args!("  {head}({});\n", parameters.join(",")));
    }
    out.push_str("};\n");
    out
}

/// An instance, on one line a property.
pub fn instance_text(instance: &Instance) -> String {
    format!("{};\n", instance_value_text(instance))
}

/// A qualifier's declaration.
pub fn qualifier_text(declaration: &QualifierDeclaration) -> String {
    let kind = &declaration.kind;
    let mut out = format!("Qualifier {} : {}{}", declaration.name, kind.base, array_text(kind));
    if !declaration.value.is_null() {
        put(&mut out, format_args!(" = {}", value_text(&declaration.value)));
    }
    let scopes = scope_words(declaration.scopes);
    put(&mut out, format_args!(", Scope({})", scopes.join(", ")));
    let flavors = flavor_words(declaration.flavors);
    if !flavors.is_empty() {
        put(&mut out, format_args!(", Flavor({})", flavors.join(", ")));
    }
    out.push_str(";\n");
    out
}

fn put(out: &mut String, arguments: fmt::Arguments<'_>) {
    out.write_fmt(arguments).expect("a string takes everything");
}

fn scope_words(scopes: Scopes) -> Vec<String> {
    if scopes == Scopes::ANY {
        return vec!["any".into()];
    }
    let named = Scope::ALL.iter().filter(|(scope, _)| scopes.contains(*scope));
    named.map(|(_, name)| name.to_ascii_lowercase()).collect()
}

fn flavor_words(flavors: Flavors) -> Vec<&'static str> {
    let word = |is: Option<bool>, yes, no| is.map(|is| if is { yes } else { no });
    let words = [
        word(flavors.overridable, "EnableOverride", "DisableOverride"),
        word(flavors.to_subclass, "ToSubclass", "Restricted"),
        // There is no word for no in the standard, and no is what is meant when nothing is said.
        flavors.to_instance.filter(|is| *is).map(|_| "ToInstance"),
        flavors.translatable.filter(|is| *is).map(|_| "Translatable"),
    ];
    words.into_iter().flatten().collect()
}

fn qualifiers_text(qualifiers: &[Qualifier], indent: &str) -> String {
    let own: Vec<String> = qualifiers.iter().filter(|q| !q.is_propagated).map(qualifier_use_text).collect();
    if own.is_empty() { String::new() } else { format!("{indent}[{}]\n", own.join(&format!(",\n{indent} "))) }
}

fn qualifier_use_text(qualifier: &Qualifier) -> String {
    let value = match &qualifier.value {
        Value::Scalar(Scalar::Boolean(true)) => String::new(),
        array @ Value::Array(_) => format!(" {}", value_text(array)),
        other => format!(" ({})", value_text(other)),
    };
    let flavors = flavor_words(qualifier.flavors);
    let flavors = if flavors.is_empty() { String::new() } else { format!(" : {}", flavors.join(" ")) };
    format!("{}{value}{flavors}", qualifier.name)
}

fn parameter_text(parameter: &Parameter) -> String {
    let qualifiers = qualifiers_text(&parameter.qualifiers, "    ");
    let declaration = declaration_text(&parameter.kind, &parameter.name);
    if qualifiers.is_empty() { format!("\n    {declaration}") } else { format!("\n{qualifiers}    {declaration}") }
}

fn declaration_text(kind: &Kind, name: &Name) -> String {
    match (&kind.class, kind.base) {
        (Some(class), CimType::Reference) => format!("{class} REF {name}{}", array_text(kind)),
        _ => format!("{} {name}{}", kind.base, array_text(kind)),
    }
}

fn array_text(kind: &Kind) -> String {
    match kind.array {
        None => String::new(),
        Some(None) => "[]".into(),
        Some(Some(size)) => format!("[{size}]"),
    }
}

fn instance_value_text(instance: &Instance) -> String {
    let mut out = format!("instance of {} {{\n", instance.class);
    for property in &instance.properties {
        put(&mut out, format_args!("{} = {};\n", property.name, value_text(&property.value)));
    }
    out.push('}');
    out
}

fn value_text(value: &Value) -> String {
    match value {
        Value::Null => "NULL".into(),
        Value::Scalar(scalar) => scalar_text(scalar),
        Value::Array(elements) => {
            let element = |element: &Option<Scalar>| element.as_ref().map_or("NULL".into(), scalar_text);
            format!("{{{}}}", elements.iter().map(element).collect::<Vec<_>>().join(", "))
        }
    }
}

fn scalar_text(scalar: &Scalar) -> String {
    match scalar {
        Scalar::Boolean(true) => "TRUE".into(),
        Scalar::Boolean(false) => "FALSE".into(),
        Scalar::Char16(c) => format!("'{}'", escaped(&c.to_string(), '\'')),
        Scalar::Instance(instance) => instance_value_text(instance),
        // Declarations are no values in MOF.
        Scalar::Class(class) => quoted(&class_text(class)),
        other => match (other.text(), other.as_integer(), other.as_real()) {
            (Some(text), Some(_), _) => text,
            (Some(text), _, Some(real)) if real.is_finite() => text,
            // MOF has no word for infinity; a text that is read as a number will do.
            (text, _, _) => quoted(&text.unwrap_or_default()),
        },
    }
}

fn quoted(text: &str) -> String {
    format!("\"{}\"", escaped(text, '"'))
}

fn escaped(text: &str, quote: char) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\\' => out.push_str("\\\\"),
            c if c == quote => out.extend(['\\', c]),
            c if c.is_control() => put(&mut out, format_args!("\\x{:04x}", c as u32)),
            c => out.push(c),
        }
    }
    out
}
