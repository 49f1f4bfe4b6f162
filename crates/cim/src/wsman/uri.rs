//! Resource URIs: which class of which namespace, in which of the families that clients use.

use crate::name::{Name, Namespace};

const WMI: &str = "http://schemas.microsoft.com/wbem/wsman/1/wmi/";
const DMTF: &str = "http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/";
const ALL_CLASSES: &str = "http://schemas.dmtf.org/wbem/wscim/1/*";
const METADATA: &str = "http://schemas.dmtf.org/wbem/cim-xml/2/cim-schema/2/*";
const CONFIG: &str = "http://schemas.microsoft.com/wbem/wsman/1/config";

/// How a class is addressed; answers use the family of the request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// Microsoft's: namespace and class in the URI.
    Wmi,
    /// The DMTF's: the class in the URI, the namespace in a selector.
    Dmtf,
}

/// What a resource URI leads to.
#[derive(Debug, Clone, PartialEq)]
pub enum Resource {
    /// Instances of a class, or, without one, of all classes.
    Instances {
        /// The family of the URI.
        family: Family,
        /// The namespace, where the URI says it.
        namespace: Option<Namespace>,
        /// The class.
        class: Option<Name>,
    },
    /// Classes themselves.
    Metadata,
    /// The server's settings.
    Config,
}

impl Resource {
    /// Reads a URI; `None` when it leads to nothing we have.
    pub fn parse(uri: &str) -> Option<Self> {
        let uri = uri.trim();
        if let Some(rest) = strip(uri, WMI) {
            let rest = rest.replace('\\', "/");
            let (namespace, class) = rest.trim_end_matches('/').rsplit_once('/')?;
            let namespace = Some(Namespace::parse(namespace).ok()?);
            return Some(Resource::Instances { family: Family::Wmi, namespace, class: class_name(class)? });
        }
        if let Some(class) = strip(uri, DMTF) {
            return Some(Resource::Instances { family: Family::Dmtf, namespace: None, class: class_name(class)? });
        }
        if uri.eq_ignore_ascii_case(ALL_CLASSES) {
            return Some(Resource::Instances { family: Family::Dmtf, namespace: None, class: None });
        }
        if uri.eq_ignore_ascii_case(METADATA) {
            return Some(Resource::Metadata);
        }
        uri.eq_ignore_ascii_case(CONFIG).then_some(Resource::Config)
    }
}

fn strip<'a>(uri: &'a str, prefix: &str) -> Option<&'a str> {
    let head = uri.get(..prefix.len())?;
    head.eq_ignore_ascii_case(prefix).then(|| &uri[prefix.len()..])
}

fn class_name(text: &str) -> Option<Option<Name>> {
    if text == "*" { Some(None) } else { Name::parse(text).ok().map(Some) }
}

impl Family {
    /// The URI of a class, which is also the XML namespace of its properties.
    pub fn uri(self, namespace: &Namespace, class: &Name) -> String {
        match self {
            Family::Wmi => format!("{WMI}{namespace}/{class}"),
            Family::Dmtf => format!("{DMTF}{class}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_families_and_the_special_ones_are_known() {
        let instances = |uri: &str| match Resource::parse(uri) {
            Some(Resource::Instances { family, namespace, class }) => {
                (family, namespace.map(|n| n.to_string()), class.map(|c| c.to_string()))
            }
            other => panic!("{uri}: {other:?}"),
        };
        let some = |text: &str| Some(text.to_string());
        assert_eq!(
            instances(&format!("{WMI}root/toy/v2/Toy_Box")),
            (Family::Wmi, some("root/toy/v2"), some("Toy_Box"))
        );
        assert_eq!(instances(&format!(" {}ROOT\\toy/* ", WMI.to_uppercase())), (Family::Wmi, some("ROOT/toy"), None));
        assert_eq!(instances(&format!("{DMTF}Toy_Box")), (Family::Dmtf, None, some("Toy_Box")));
        assert_eq!(instances(&format!("{DMTF}*")), (Family::Dmtf, None, None));
        assert_eq!(instances(ALL_CLASSES), (Family::Dmtf, None, None));
        assert_eq!(Resource::parse(METADATA), Some(Resource::Metadata));
        assert_eq!(Resource::parse(CONFIG), Some(Resource::Config));
        for nothing in ["", "urn:x", WMI, &format!("{WMI}Toy_Box"), &format!("{DMTF}a b"), &format!("{DMTF}a/b")] {
            assert_eq!(Resource::parse(nothing), None, "{nothing}");
        }
        assert_eq!(Family::Wmi.uri(&"root/toy".into(), &"A".into()), format!("{WMI}root/toy/A"));
    }
}
