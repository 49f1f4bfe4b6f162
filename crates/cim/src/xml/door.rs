//! Looks at a text before a tree is made of it.

use std::borrow::Cow;

use quick_xml::Reader;
use quick_xml::events::attributes::Attributes;
use quick_xml::events::{BytesStart, Event};
use roxmltree::{Document, ParsingOptions};

/// How much XML may be in one text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// Bytes, as they come.
    pub bytes: usize,
    /// Elements within elements.
    pub depth: usize,
    /// Elements, texts, comments and the like, together.
    pub nodes: usize,
    /// Attributes of one element, declarations of namespaces among them.
    pub attributes: usize,
    /// Declarations of namespaces altogether.
    pub namespaces: usize,
    /// Declarations of namespaces around any one element.
    pub namespaces_in_scope: usize,
}

impl Bounds {
    /// For a request. A client that sends back whole settings with all their qualifiers sends some 60 KiB; Windows accepts 500.
    pub const REQUEST: Bounds =
        Bounds { bytes: 1 << 20, depth: 64, nodes: 65_536, attributes: 48, namespaces: 1_024, namespaces_in_scope: 96 };
    /// For an instance within a value of a request.
    pub const EMBEDDED: Bounds = Bounds { bytes: 256 << 10, depth: 32, nodes: 16_384, ..Bounds::REQUEST };
}

/// Why a text is not let in.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum XmlError {
    /// More of something than [`Bounds`] allow.
    #[error("too {what}")]
    Bound {
        /// What there is too much of.
        what: &'static str,
    },
    /// A document type.
    #[error("a document type is not accepted")]
    DocumentType,
    /// An entity that XML itself does not know.
    #[error("an entity is not accepted")]
    Entity,
    /// Bytes that are no text in the encoding they come in.
    #[error("bytes that are no text in {encoding}")]
    Encoding {
        /// The encoding.
        encoding: &'static str,
    },
    /// An encoding that nobody here knows.
    #[error("unknown encoding {0:?}")]
    Charset(String),
    /// No XML.
    #[error("not well-formed: {0}")]
    Malformed(String),
}

/// Makes text of bytes: UTF-8, or UTF-16 where a mark at the beginning or the transport's charset says so. A mark and spaces before
/// the text are dropped.
pub fn decode<'a>(bytes: &'a [u8], charset: Option<&str>) -> Result<Cow<'a, str>, XmlError> {
    let charset = charset.map(str::to_ascii_lowercase);
    match (bytes, charset.as_deref()) {
        ([0xff, 0xfe, rest @ ..], _) => utf16(rest, u16::from_le_bytes),
        ([0xfe, 0xff, rest @ ..], _) => utf16(rest, u16::from_be_bytes),
        (_, Some("utf-16" | "utf-16le")) => utf16(bytes, u16::from_le_bytes),
        (_, Some("utf-16be")) => utf16(bytes, u16::from_be_bytes),
        (_, None | Some("utf-8" | "utf8" | "us-ascii")) => {
            let text = std::str::from_utf8(bytes).map_err(|_| XmlError::Encoding { encoding: "UTF-8" })?;
            Ok(Cow::Borrowed(trimmed(text)))
        }
        (_, Some(other)) => Err(XmlError::Charset(other.chars().take(40).collect())),
    }
}

fn utf16(bytes: &[u8], unit: fn([u8; 2]) -> u16) -> Result<Cow<'static, str>, XmlError> {
    let broken = || XmlError::Encoding { encoding: "UTF-16" };
    let (pairs, rest) = bytes.as_chunks::<2>();
    if !rest.is_empty() {
        return Err(broken());
    }
    let text: Result<String, _> = char::decode_utf16(pairs.iter().map(|pair| unit(*pair))).collect();
    Ok(Cow::Owned(trimmed(&text.map_err(|_| broken())?).to_string()))
}

fn trimmed(text: &str) -> &str {
    text.trim_start_matches(['\u{feff}', ' ', '\t', '\r', '\n'])
}

/// Holds a text against its bounds and makes a tree of it.
pub fn parse<'a>(text: &'a str, bounds: &Bounds) -> Result<Document<'a>, XmlError> {
    let text = trimmed(text);
    Scan { bounds, depth: 0, nodes: 0, namespaces: 0, scopes: Vec::new() }.run(text)?;
    let nodes_limit = u32::try_from(bounds.nodes).unwrap_or(u32::MAX).saturating_mul(2);
    let options = ParsingOptions { nodes_limit, ..ParsingOptions::default() };
    Document::parse_with_options(text, options).map_err(|err| match err {
        roxmltree::Error::DtdDetected => XmlError::DocumentType,
        err => XmlError::Malformed(err.to_string()),
    })
}

/// Runs over a text and keeps nothing but counts.
struct Scan<'a> {
    bounds: &'a Bounds,
    depth: usize,
    nodes: usize,
    namespaces: usize,
    /// Declarations of namespaces of each open element.
    scopes: Vec<usize>,
}

impl Scan<'_> {
    fn run(mut self, text: &str) -> Result<(), XmlError> {
        if text.len() > self.bounds.bytes {
            return Err(XmlError::Bound { what: "long" });
        }
        let mut reader = Reader::from_str(text);
        loop {
            let event = reader.read_event().map_err(|err| XmlError::Malformed(err.to_string()))?;
            self.nodes += 1;
            bounded(self.nodes, self.bounds.nodes, "many nodes")?;
            match event {
                Event::Eof => return Ok(()),
                Event::DocType(_) => return Err(XmlError::DocumentType),
                Event::Start(start) => self.open(&start)?,
                Event::Empty(start) => {
                    self.open(&start)?;
                    self.close();
                }
                Event::End(_) => self.close(),
                Event::GeneralRef(reference) => known_entity(&reference)?,
                Event::Text(_) | Event::CData(_) | Event::Comment(_) | Event::PI(_) | Event::Decl(_) => {}
            }
        }
    }

    fn open(&mut self, start: &BytesStart<'_>) -> Result<(), XmlError> {
        self.depth += 1;
        bounded(self.depth, self.bounds.depth, "deep")?;
        let declared = self.attributes(start.attributes())?;
        self.namespaces += declared;
        self.scopes.push(declared);
        bounded(self.namespaces, self.bounds.namespaces, "many namespaces")?;
        bounded(self.scopes.iter().sum(), self.bounds.namespaces_in_scope, "many namespaces around an element")
    }

    fn close(&mut self) {
        self.depth = self.depth.saturating_sub(1);
        self.scopes.pop();
    }

    /// Counts attributes, and gives how many of them declare a namespace.
    fn attributes(&self, mut attributes: Attributes<'_>) -> Result<usize, XmlError> {
        let (mut count, mut declared) = (0, 0);
        for attribute in attributes.with_checks(false) {
            let attribute = attribute.map_err(|err| XmlError::Malformed(err.to_string()))?;
            count += 1;
            bounded(count, self.bounds.attributes, "many attributes")?;
            declared += usize::from(attribute.key.as_namespace_binding().is_some());
            entities_are_known(&attribute.value)?;
        }
        Ok(declared)
    }
}

fn bounded(count: usize, most: usize, what: &'static str) -> Result<(), XmlError> {
    if count > most { Err(XmlError::Bound { what }) } else { Ok(()) }
}

fn known_entity(name: &str) -> Result<(), XmlError> {
    let is_known = name.starts_with('#') || ["lt", "gt", "amp", "quot", "apos"].contains(&name);
    if is_known { Ok(()) } else { Err(XmlError::Entity) }
}

fn entities_are_known(value: &str) -> Result<(), XmlError> {
    value.split('&').skip(1).try_for_each(|rest| known_entity(rest.split_once(';').map_or("", |(name, _)| name)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn refused(text: &str) -> XmlError {
        parse(text, &Bounds::EMBEDDED).expect_err(text)
    }

    #[test]
    fn document_types_and_their_entities_are_refused() {
        assert_eq!(refused("<!DOCTYPE a><a/>"), XmlError::DocumentType);
        assert_eq!(refused("<?xml version='1.0'?>\n<!DOCTYPE a [<!ENTITY b 'c'>]><a>&b;</a>"), XmlError::DocumentType);
        assert_eq!(refused("<a>&b;</a>"), XmlError::Entity);
        assert_eq!(refused("<a b='&c;'/>"), XmlError::Entity);
        assert!(parse("<a b='&lt;&#x41;'>&amp;&#65;&gt;&quot;&apos;</a>", &Bounds::EMBEDDED).is_ok());
    }

    #[test]
    fn each_bound_is_held() {
        let bound = |what| XmlError::Bound { what };
        let deep = |n: usize| format!("{}{}", "<a>".repeat(n), "</a>".repeat(n));
        assert!(parse(&deep(32), &Bounds::EMBEDDED).is_ok());
        assert_eq!(refused(&deep(33)), bound("deep"));
        assert_eq!(refused(&format!("<a>{}</a>", " ".repeat(256 << 10))), bound("long"));
        assert_eq!(refused(&format!("<a>{}</a>", "<b/>".repeat(16_384))), bound("many nodes"));
        let attributes: String = (0..49).map(|n| format!(" a{n}=''")).collect();
        assert_eq!(refused(&format!("<a{attributes}/>")), bound("many attributes"));
        let namespaces: String = (0..40).map(|n| format!(" xmlns:a{n}='u'")).collect();
        assert_eq!(
            refused(&format!("<a{namespaces}><b{namespaces}><c{namespaces}/></b></a>")),
            bound("many namespaces around an element")
        );
        let siblings = format!("<b{namespaces}/>").repeat(26);
        assert_eq!(refused(&format!("<a>{siblings}</a>")), bound("many namespaces"));
    }

    #[test]
    fn text_comes_in_the_encodings_clients_use() {
        let little: Vec<u8> = "<a>ä</a>".encode_utf16().flat_map(u16::to_le_bytes).collect();
        let big: Vec<u8> = "\u{feff}<a>ä</a>".encode_utf16().flat_map(u16::to_be_bytes).collect();
        assert_eq!(decode(&little, Some("UTF-16")).unwrap(), "<a>ä</a>");
        assert_eq!(decode(&big, None).unwrap(), "<a>ä</a>");
        assert_eq!(decode("\u{feff}\n <a>ä</a>".as_bytes(), Some("utf-8")).unwrap(), "<a>ä</a>");
        assert_eq!(decode(b"<a>\xe4</a>", None), Err(XmlError::Encoding { encoding: "UTF-8" }));
        assert_eq!(decode(b"\xff\xfea", None), Err(XmlError::Encoding { encoding: "UTF-16" }));
        assert_eq!(decode(b"\xff\xfe\x00\xd8", None), Err(XmlError::Encoding { encoding: "UTF-16" }));
        assert_eq!(decode(b"<a/>", Some("koi8-r")), Err(XmlError::Charset("koi8-r".into())));
    }

    #[test]
    fn what_is_no_xml_is_refused() {
        for text in [
            "",
            "a",
            "<a>",
            "<a></b>",
            "<a b=c/>",
            "<a b='1' b='2'/>",
            "<a/><b/>",
            "<x:a/>",
            "<a>&</a>",
            "<a>\u{1}</a>",
        ] {
            assert!(matches!(refused(text), XmlError::Malformed(_) | XmlError::Entity), "{text}");
        }
    }

    proptest! {
        #[test]
        fn whatever_becomes_a_tree_was_counted(text in r#"(<[ab]( b='(&lt;|x)')?/?>|</[ab]>|<!--x-->|<!\[CDATA\[<a>\]\]>|&amp;|<\?p x\?>|[ x]){0,12}"#) {
            let bounds = Bounds { depth: 2, nodes: 8, ..Bounds::EMBEDDED };
            if let Ok(document) = parse(&format!("<a>{text}</a>"), &bounds) {
                let elements = document.descendants().filter(|node| node.is_element());
                let deepest = elements.map(|node| node.ancestors().filter(|a| a.is_element()).count()).max();
                prop_assert!(deepest.unwrap_or(0) <= 2);
                prop_assert!(document.descendants().count() <= 9);
            }
        }
    }
}
