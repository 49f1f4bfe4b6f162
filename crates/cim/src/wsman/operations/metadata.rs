//! Classes themselves, and the server's settings.

use super::ns;
use crate::cimxml::write;
use crate::name::Name;
use crate::provider::Caller;
use crate::repository::View;
use crate::wsman::envelope::Header;
use crate::wsman::epr;
use crate::wsman::fault::{Doing, Fault};
use crate::wsman::server::{Action, ENVELOPE_MAX, Reply, WsMan};
use crate::xml::XmlWriter;

impl<C: Caller> WsMan<C> {
    /// How large envelopes may be.
    pub(super) fn config(&self, action: &Action) -> Result<Reply, Fault> {
        let Action::Get = action else { return Err(Fault::action("settings can only be read")) };
        let mut xml = XmlWriter::default();
        xml.element("cfg:Config", &[("xmlns:cfg", ns::CFG)], |xml| {
            xml.text_element("cfg:MaxEnvelopeSizekb", &[], &(ENVELOPE_MAX >> 10).to_string());
        });
        Ok(Reply { header: String::new(), body: xml.finish() })
    }

    /// A class, as CIM-XML writes it.
    pub(super) fn metadata(&self, header: &Header, action: &Action) -> Result<Reply, Fault> {
        let Action::Get = action else { return Err(Fault::action("classes can only be read, one by one")) };
        let mut selectors = header.selectors.clone();
        let namespace = epr::take_namespace(&mut selectors)?.unwrap_or_else(|| self.settings.default_namespace.clone());
        let named = selectors.iter().find(|(name, _)| name.is("ClassName"));
        let name = named.and_then(|(_, value)| Name::parse(value.plain().trim()).ok());
        let name =
            name.ok_or_else(|| Fault::sender("w:InvalidSelectors", None, "selector ClassName names no class"))?;
        let class = self.broker.class(&namespace, &name).map_err(|status| Fault::of(status, Doing::Reading))?;
        let view = View {
            local_only: header.is_off("IncludeInheritedElements"),
            qualifiers: !header.is_off("IncludeQualifiers"),
            ..View::default()
        };
        let mut xml = XmlWriter::default();
        write::class(&mut xml, &view.class(class));
        Ok(Reply { header: String::new(), body: xml.finish() })
    }
}
