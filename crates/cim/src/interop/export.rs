//! Which events are told to whom, and in which words.

use std::sync::atomic::Ordering;

use super::Interop;
use super::subscriptions::{SUBSCRIPTION, is_about, selection};
use crate::cimxml::write;
use crate::name::Namespace;
use crate::path::ObjectPath;
use crate::provider::Caller;
use crate::query::Evaluator;
use crate::repository::{Repository, Unknown};
use crate::schema::{Instance, NamedInstance};
use crate::status::{Status, StatusCode};
use crate::xml::XmlWriter;

/// A `POST` that should be made, for one subscription.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delivery {
    /// Where to.
    pub url: String,
    /// Headers; host, length and the like are for whoever sends it.
    pub headers: Vec<(&'static str, String)>,
    /// The body.
    pub body: Vec<u8>,
    /// The subscription it is for.
    pub subscription: String,
}

impl<C: Caller> Interop<C> {
    /// What to send for an event in a namespace, whose classes come along. The event is held against its class first.
    pub fn deliveries(
        &self,
        namespace: &Namespace,
        repository: &Repository,
        event: Instance,
    ) -> Result<Vec<Delivery>, Status> {
        let bad = |err| Status::new(StatusCode::Failed, crate::broker::chain(&err));
        let event = repository.conform(event, Unknown::Refuse).map_err(bad)?;
        let subscriptions = self.subscriptions().clone();
        let of_class = subscriptions.iter().filter(|named| named.path.class.is(SUBSCRIPTION));
        let wanted = of_class.filter_map(|subscription| {
            let filter = end(&subscriptions, subscription, "Filter")?;
            let destination = end(&subscriptions, subscription, "Handler")?;
            let url = destination.instance.get_str("Destination")?;
            selects(repository, namespace, &filter.instance, &event)
                .then(|| self.delivery(url, &subscription.path, &event))
        });
        Ok(wanted.collect())
    }

    fn delivery(&self, url: &str, subscription: &ObjectPath, event: &Instance) -> Delivery {
        let id = self.next_message.fetch_add(1, Ordering::Relaxed).to_string();
        let headers = vec![
            ("Content-Type", "application/xml; charset=\"utf-8\"".to_string()),
            // A list of types is more than one known listener understands.
            ("Accept", "*/*".to_string()),
            ("CIMExport", "MethodRequest".to_string()),
            ("CIMExportMethod", "ExportIndication".to_string()),
            ("CIMProtocolVersion", "1.0".to_string()),
        ];
        let body = message(&id, event).into_bytes();
        Delivery { url: url.to_string(), headers, body, subscription: subscription.to_string() }
    }
}

fn end<'a>(all: &'a [NamedInstance], subscription: &NamedInstance, end: &str) -> Option<&'a NamedInstance> {
    let path = subscription.instance.get(end).as_path()?;
    all.iter().find(|named| named.path.matches(path))
}

fn selects(repository: &Repository, namespace: &Namespace, filter: &Instance, event: &Instance) -> bool {
    let Ok((select, language)) = selection(filter) else { return false };
    let is_of_class = repository.is_a(&event.class, &select.class);
    let meets = select.condition.iter().all(|condition| Evaluator::new(repository, language).selects(condition, event));
    is_about(filter, namespace) && is_of_class && meets
}

fn message(id: &str, event: &Instance) -> String {
    let mut xml = XmlWriter::document();
    xml.element("CIM", &[("CIMVERSION", "2.0"), ("DTDVERSION", "2.4")], |xml| {
        xml.element("MESSAGE", &[("ID", id), ("PROTOCOLVERSION", "1.4")], |xml| {
            xml.element("SIMPLEEXPREQ", &[], |xml| {
                xml.element("EXPMETHODCALL", &[("NAME", "ExportIndication")], |xml| {
                    xml.element("EXPPARAMVALUE", &[("NAME", "NewIndication")], |xml| {
                        write::instance(xml, &event.plain())
                    });
                });
            });
        });
    });
    xml.finish()
}
