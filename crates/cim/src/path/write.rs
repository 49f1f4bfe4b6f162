//! Writes object paths as text.

use std::fmt;

use super::{KeyValue, Keys, ObjectPath};

impl ObjectPath {
    /// As a WBEM URI without types: `//host/root/toy:Toy_Device.Name="a"`. Without a host it begins with the namespace's slash.
    pub fn to_wbem_uri(&self) -> String {
        let host = self.host.as_ref().map(|host| format!("//{host}")).unwrap_or_default();
        let namespace = self.namespace.as_ref().map(|namespace| format!("/{namespace}:")).unwrap_or_default();
        format!("{host}{namespace}{}", Local(self))
    }

    /// As WMI writes it: `\\HOST\root\toy:Toy_Device.Name="a"`. A host that is not known is a dot.
    pub fn to_wmi(&self) -> String {
        let host = self.host.as_deref().unwrap_or(".");
        match &self.namespace {
            Some(namespace) => format!("\\\\{host}\\{}:{}", namespace.as_str().replace('/', "\\"), Local(self)),
            None => Local(self).to_string(),
        }
    }

    /// Class and keys alone.
    pub fn to_local(&self) -> String {
        Local(self).to_string()
    }
}

/// `root/toy:Toy_Device.Name="a"`, behind `//host/` when there is one.
impl fmt::Display for ObjectPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.host, &self.namespace) {
            (Some(host), Some(namespace)) => write!(f, "//{host}/{namespace}:")?,
            (None, Some(namespace)) => write!(f, "{namespace}:")?,
            _ => {}
        }
        Local(self).fmt(f)
    }
}

/// Class and keys.
struct Local<'a>(&'a ObjectPath);

impl fmt::Display for Local<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.class.fmt(f)?;
        match &self.0.keys {
            Keys::None => Ok(()),
            Keys::Singleton => f.write_str("=@"),
            Keys::Single(value) => write!(f, "={value}"),
            Keys::Named(keys) => keys.iter().enumerate().try_for_each(|(index, (name, value))| {
                let sign = if index == 0 { '.' } else { ',' };
                write!(f, "{sign}{name}={value}")
            }),
        }
    }
}

/// As it stands in a path: text in quotes.
impl fmt::Display for KeyValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            KeyValue::Text(text) => write_quoted(text, f),
            KeyValue::Integer(number) => number.fmt(f),
            KeyValue::Boolean(true) => f.write_str("TRUE"),
            KeyValue::Boolean(false) => f.write_str("FALSE"),
            KeyValue::Reference(path) => write_quoted(&path.to_string(), f),
        }
    }
}

fn write_quoted(text: &str, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    write!(f, "\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}
