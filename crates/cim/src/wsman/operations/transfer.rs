//! Get, Put, Create and Delete: whole instances, or single properties of them.

use super::Target;
use crate::broker::Request;
use crate::name::Name;
use crate::provider::Caller;
use crate::schema::{Instance, NamedInstance};
use crate::value::{Scalar, Value};
use crate::wsman::envelope::Header;
use crate::wsman::epr::{self, Declared};
use crate::wsman::fault::{Doing, Fault};
use crate::wsman::instance::{write, write_member};
use crate::wsman::ns;
use crate::wsman::server::{Action, Reply, WsMan};
use crate::xml::XmlWriter;

/// A part of an instance: a property, one element of its array, or its text. The index begins with 1.
struct Fragment {
    property: Name,
    index: Option<usize>,
    is_text: bool,
}

impl Fragment {
    /// Reads the few expressions that are understood: `Name`, `Name[2]`, `Name/text()`, with prefixes or not.
    fn parse(text: &str) -> Result<Self, Fault> {
        let refused = || {
            let reason = format!("fragment {text:?} is not understood");
            Fault::sender("w:CannotProcessFilter", None, reason)
        };
        let (path, is_text) = text.strip_suffix("/text()").map_or((text, false), |path| (path, true));
        let (name, index) = match path.strip_suffix(']').and_then(|path| path.split_once('[')) {
            Some((name, index)) => {
                (name, Some(index.trim().parse().ok().filter(|index| *index > 0).ok_or_else(refused)?))
            }
            None => (path, None),
        };
        let bare = name.rsplit(':').next().unwrap_or(name);
        Ok(Fragment { property: Name::parse(bare.trim()).map_err(|_| refused())?, index, is_text })
    }
}

impl<C: Caller> WsMan<C> {
    pub(super) async fn transfer_one(
        &self,
        header: &Header,
        request: &Request<'_, C>,
        target: &Target,
        action: Action,
    ) -> Result<Reply, Fault> {
        let class = target.class.clone().ok_or_else(|| Fault::resource("one instance is of one class"))?;
        match action {
            Action::Create(given) => self.create(request, target, given).await,
            Action::Delete => {
                let named = self.meant(request, target, &class).await?;
                self.broker.delete(request, &named.path).await.map_err(|s| Fault::of(s, Doing::Reading))?;
                Ok(Reply::default())
            }
            Action::Put(given) => {
                let named = self.meant(request, target, &class).await?;
                let listed = header.option_values("__MIInstanceModifiedPropertiesList");
                let listed: Vec<Name> = listed.into_iter().filter_map(|name| Name::parse(name.trim()).ok()).collect();
                self.put(header, request, target, named, given, (!listed.is_empty()).then_some(listed)).await
            }
            Action::PutFragment(members) => {
                let named = self.meant(request, target, &class).await?;
                let given = replaced(header, &named.instance, members)?;
                self.put(header, request, target, named, given, None).await
            }
            _ => {
                let named = self.meant(request, target, &class).await?;
                self.represent(header, target, &named)
            }
        }
    }

    /// The instance that the selectors mean.
    async fn meant(&self, request: &Request<'_, C>, target: &Target, class: &Name) -> Result<NamedInstance, Fault> {
        self.broker.find(request, class, &target.keys).await.map_err(|status| Fault::of(status, Doing::Reading))
    }

    async fn create(&self, request: &Request<'_, C>, target: &Target, given: Instance) -> Result<Reply, Fault> {
        let path = self.broker.create(request, given).await.map_err(|status| Fault::of(status, Doing::Writing))?;
        let mut xml = XmlWriter::default();
        xml.element("x:ResourceCreated", &[], |xml| epr::write(xml, &path, target.family, Declared::Outside));
        Ok(Reply { header: String::new(), body: xml.finish() })
    }

    async fn put(
        &self,
        header: &Header,
        request: &Request<'_, C>,
        target: &Target,
        named: NamedInstance,
        mut given: Instance,
        listed: Option<Vec<Name>>,
    ) -> Result<Reply, Fault> {
        let fault = |status| Fault::of(status, Doing::Writing);
        let repository = self.broker.repository(&request.namespace).map_err(fault)?;
        // The representation may say a class that the instance's extends.
        if !repository.is_a(&named.instance.class, &given.class) {
            let reason = format!("a {} cannot become a {}", named.instance.class, given.class);
            return Err(Fault::sender("x:InvalidRepresentation", Some("InvalidValues"), reason));
        }
        given.class = named.instance.class.clone();
        self.broker.modify(request, &named.path, given, listed.as_deref()).await.map_err(fault)?;
        let changed = self.broker.get(request, &named.path).await.map_err(fault)?;
        self.represent(header, target, &changed)
    }

    /// An instance, or the part of it that was asked for.
    fn represent(&self, header: &Header, target: &Target, named: &NamedInstance) -> Result<Reply, Fault> {
        let style = Self::style(header, target);
        let mut xml = XmlWriter::default();
        let Some(expression) = &header.fragment else {
            write(&mut xml, &named.instance, &target.namespace, style);
            return Ok(Reply { header: String::new(), body: xml.finish() });
        };
        let fragment = Fragment::parse(expression)?;
        let missing = || Fault::sender("w:CannotProcessFilter", None, format!("there is no {}", fragment.property));
        let property = named.instance.property(fragment.property.as_str()).ok_or_else(missing)?;
        let value = match fragment.index {
            None => property.value.clone(),
            Some(index) => Value::from(property.value.scalars().nth(index - 1).cloned().ok_or_else(missing)?),
        };
        let uri = target.family.uri(&target.namespace, &named.instance.class);
        let attributes = [("xmlns:p", uri.as_str()), ("xmlns:xsi", ns::XSI), ("xmlns:cim", ns::CIM)];
        xml.element("w:XmlFragment", &attributes, |xml| match fragment.is_text {
            true => xml.text(&value.scalars().filter_map(Scalar::text).collect::<String>()),
            false => write_member(xml, "p", &property.name, &property.kind, &value, &target.namespace, style),
        });
        let mut echo = XmlWriter::default();
        echo.text_element("w:FragmentTransfer", &[("s:mustUnderstand", "true")], expression);
        Ok(Reply { header: echo.finish(), body: xml.finish() })
    }
}

/// A fragment that was put, as an instance with the properties that it replaces.
fn replaced(header: &Header, current: &Instance, members: Vec<(Name, Value)>) -> Result<Instance, Fault> {
    let fragment = Fragment::parse(header.fragment.as_deref().unwrap_or_default())?;
    let bad = |reason: &str| Fault::sender("x:InvalidRepresentation", Some("InvalidFragment"), reason);
    let mut members = members.into_iter();
    let value = match (members.next(), members.next()) {
        (Some((name, value)), None) if name == fragment.property => value,
        (None, _) => Value::Null,
        _ => return Err(bad("the fragment holds something else than it says")),
    };
    let value = match fragment.index {
        None => value,
        Some(index) => {
            let Value::Array(mut elements) = current.get(fragment.property.as_str()).clone() else {
                return Err(bad("only an array has elements"));
            };
            let place = elements.get_mut(index - 1).ok_or_else(|| bad("the array has no such element"))?;
            *place = value.as_scalar().cloned();
            Value::Array(elements)
        }
    };
    Ok(Instance::new(current.class.clone()).with(fragment.property, value))
}
