//! What requests ask: on one instance here, on many in [`enumeration`], on classes and on the server itself in [`metadata`].

mod enumeration;
mod metadata;
mod transfer;

use std::time::Duration;

pub use enumeration::Waiting;

use super::envelope::Header;
use super::epr;
use super::fault::{Doing, Fault};
use super::instance::{Style, write_member};
use super::ns;
use super::server::{Action, Reply, WsMan};
use super::uri::{Family, Resource};
use crate::broker::Request;
use crate::name::{Name, Namespace};
use crate::path::{KeyValue, ObjectPath};
use crate::provider::Caller;
use crate::schema::find;
use crate::value::Value;
use crate::xml::XmlWriter;

/// What a request is about.
#[derive(Debug, Clone)]
pub struct Target {
    pub family: Family,
    pub namespace: Namespace,
    /// The class; none means all.
    pub class: Option<Name>,
    /// Keys, without the selector that names the namespace.
    pub keys: Vec<(Name, KeyValue)>,
}

impl<C: Caller> WsMan<C> {
    /// What the headers of a request lead to.
    pub(super) fn target(&self, header: &Header) -> Result<Target, Fault> {
        let uri = header.resource.as_deref().ok_or_else(|| Fault::resource("no resource URI"))?;
        let unknown = || Fault::resource(format!("{uri:?} leads to nothing"));
        let Resource::Instances { family, namespace, class } = Resource::parse(uri).ok_or_else(unknown)? else {
            return Err(unknown());
        };
        let mut keys = header.selectors.clone();
        let selected = epr::take_namespace(&mut keys)?;
        if let (Some(named), Some(selected)) = (&namespace, &selected)
            && named != selected
        {
            return Err(Fault::resource("the URI and the selector name different namespaces"));
        }
        let namespace = namespace.or(selected).unwrap_or_else(|| self.settings.default_namespace.clone());
        Ok(Target { family, namespace, class, keys })
    }

    /// Carries out what a request asks.
    pub(super) async fn operation(
        &self,
        header: &Header,
        action: Action,
        caller: &C,
        now: Duration,
    ) -> Result<Reply, Fault> {
        // An enumeration that is open is known by its context alone: clients change the URI on the way.
        match action {
            Action::Pull { context, most, characters } => {
                return self.pull(header, caller, now, &context, most, characters);
            }
            Action::Release { context } => return self.release(caller, now, &context),
            Action::Renew { context, expires } => return self.renew(caller, now, &context, expires.as_deref()),
            _ => {}
        }
        match header.resource.as_deref().and_then(Resource::parse) {
            Some(Resource::Config) => return self.config(&action),
            Some(Resource::Metadata) => return self.metadata(header, &action),
            _ => {}
        }
        let target = self.target(header)?;
        let request = Request { caller, namespace: target.namespace.clone(), now, timeout: header.timeout };
        match action {
            Action::Enumerate(enumerate) => self.enumerate(header, &request, &target, *enumerate).await,
            Action::Invoke { method, inputs } => self.invoke(header, &request, &target, &method, inputs).await,
            action => self.transfer_one(header, &request, &target, action).await,
        }
    }

    /// How the client wants instances to be written.
    fn style(header: &Header, target: &Target) -> Style {
        Style { family: target.family, precise_arrays: header.is_on("UsePreciseArrays") }
    }

    /// Calls a method of the instance that is meant, or, when no key is given and the method needs no instance, of the class.
    async fn invoke(
        &self,
        header: &Header,
        request: &Request<'_, C>,
        target: &Target,
        method: &str,
        inputs: Vec<(Name, Value)>,
    ) -> Result<Reply, Fault> {
        let fault = |status| Fault::of(status, Doing::Invoking);
        let class = target.class.as_ref().ok_or_else(|| Fault::resource("a method needs a class"))?;
        let declared = self.broker.method(&request.namespace, class, method).map_err(fault)?.clone();
        let path = match declared.is_static() && target.keys.is_empty() {
            true => ObjectPath::class(class.clone()),
            // Of this class or of one that extends it.
            false => {
                self.broker.find(request, class, &target.keys).await.map_err(|s| Fault::of(s, Doing::Reading))?.path
            }
        };
        let answer = self.broker.invoke(request, &path, method, inputs).await.map_err(fault)?;
        let uri = target.family.uri(&request.namespace, class);
        let style = Self::style(header, target);
        let element = format!("p:{}_OUTPUT", declared.name);
        let mut xml = XmlWriter::default();
        let attributes = [("xmlns:p", uri.as_str()), ("xmlns:xsi", ns::XSI), ("xmlns:cim", ns::CIM)];
        xml.element(&element, &attributes, |xml| {
            for (name, value) in &answer.outputs {
                let Some(parameter) = find(&declared.parameters, name.as_str()) else { continue };
                write_member(xml, "p", &parameter.name, &parameter.kind, value, &request.namespace, style);
            }
            let name = Name::from("ReturnValue");
            write_member(xml, "p", &name, &declared.returns, &answer.value, &request.namespace, style);
        });
        Ok(Reply { header: String::new(), body: xml.finish() })
    }
}
