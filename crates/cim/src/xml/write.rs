//! Writes XML.

use std::borrow::Cow;

use quick_xml::Writer;
use quick_xml::events::{BytesEnd, BytesStart, BytesText, Event};

/// Names and values of attributes, in the order in which they are written.
pub type Attributes<'a> = &'a [(&'a str, &'a str)];

/// Builds a text element by element; what was opened is closed by the same call.
pub struct XmlWriter {
    writer: Writer<Vec<u8>>,
}

impl Default for XmlWriter {
    fn default() -> Self {
        XmlWriter { writer: Writer::new(Vec::new()) }
    }
}

impl XmlWriter {
    /// A text that begins as documents do.
    pub fn document() -> Self {
        let mut xml = XmlWriter::default();
        xml.raw(r#"<?xml version="1.0" encoding="utf-8"?>"#);
        xml
    }

    /// An element, and what `content` puts into it.
    pub fn element(&mut self, name: &str, attributes: Attributes<'_>, content: impl FnOnce(&mut Self)) {
        let mut start = BytesStart::new(name);
        for (name, value) in attributes {
            start.push_attribute((*name, &*clean(value)));
        }
        self.event(Event::Start(start));
        content(self);
        self.event(Event::End(BytesEnd::new(name)));
    }

    /// An element with a text.
    pub fn text_element(&mut self, name: &str, attributes: Attributes<'_>, text: &str) {
        self.element(name, attributes, |xml| xml.text(text));
    }

    /// An element with nothing in it.
    pub fn empty(&mut self, name: &str, attributes: Attributes<'_>) {
        self.element(name, attributes, |_| {});
    }

    /// A text. Characters that XML cannot hold become question marks.
    pub fn text(&mut self, text: &str) {
        self.event(Event::Text(BytesText::new(&clean(text))));
    }

    /// XML that was written before, as it is.
    pub fn raw(&mut self, xml: &str) {
        self.event(Event::Text(BytesText::from_escaped(xml)));
    }

    /// Bytes written so far.
    pub fn len(&self) -> usize {
        self.writer.get_ref().len()
    }

    /// True before anything was written.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What was written.
    pub fn finish(self) -> String {
        String::from_utf8(self.writer.into_inner()).expect("only text was written")
    }

    fn event(&mut self, event: Event<'_>) {
        self.writer.write_event(event).expect("memory takes everything");
    }
}

fn clean(text: &str) -> Cow<'_, str> {
    let is_stranger = |c: char| (c < ' ' && !"\t\n\r".contains(c)) || c == '\u{fffe}' || c == '\u{ffff}';
    if text.contains(is_stranger) { text.replace(is_stranger, "?").into() } else { text.into() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::xml::{Bounds, parse};
    use proptest::prelude::*;

    #[test]
    fn elements_are_never_self_closing_and_nothing_stands_between_them() {
        let mut xml = XmlWriter::document();
        xml.element("a", &[("b", "\"1\" < 2")], |xml| {
            xml.empty("c", &[]);
            xml.text_element("d", &[], "x & <y>\u{1}");
        });
        let wanted =
            r#"<?xml version="1.0" encoding="utf-8"?><a b="&quot;1&quot; &lt; 2"><c></c><d>x &amp; &lt;y&gt;?</d></a>"#;
        assert_eq!(xml.finish(), wanted);
    }

    proptest! {
        #[test]
        fn every_text_that_xml_can_hold_is_read_back(text in "\\PC{0,30}[\t\n\r]?\\PC{0,5}") {
            let mut xml = XmlWriter::default();
            xml.element("a", &[("b", &text)], |xml| xml.text(&text));
            let written = xml.finish();
            let document = parse(&written, &Bounds::EMBEDDED).unwrap();
            let wanted = clean(&text);
            prop_assert_eq!(crate::xml::text(document.root_element()), wanted.clone());
            prop_assert_eq!(document.root_element().attribute("b"), Some(&*wanted));
        }
    }
}
