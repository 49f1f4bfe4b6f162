//! A server's side of WS-Management: from a request to its response.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use roxmltree::{Document, Node};

use super::body::{self, Enumerate};
use super::envelope::{self, Header, child, trimmed};
use super::fault::Fault;
use super::instance::Reader;
use super::ns;
use super::operations::Waiting;
use crate::broker::{Broker, Contexts};
use crate::http::{HttpRequest, HttpResponse};
use crate::name::{Name, Namespace};
use crate::provider::Caller;
use crate::schema::{Instance, find};
use crate::value::Value;
use crate::xml::{self, Bounds, XmlError, XmlWriter, elements, local};

/// The largest response, and what is understood when a client does not say how much it takes. Windows has the same.
pub const ENVELOPE_MAX: u64 = 500 << 10;
/// How long an enumeration waits for its client when the client does not say.
pub const EXPIRES_DEFAULT: Duration = Duration::from_secs(600);
/// The longest time an enumeration waits, whatever the client says.
pub const EXPIRES_MAX: Duration = Duration::from_secs(3_600);

const MEDIA_TYPE: &str = "application/soap+xml;charset=UTF-8";
const PROTOCOL_VERSION: &str = "http://schemas.dmtf.org/wbem/wsman/1/wsman.xsd";

/// What a server says of itself, and what it assumes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Who made it.
    pub vendor: String,
    /// Its version.
    pub version: String,
    /// The namespace of requests that name none.
    pub default_namespace: Namespace,
    /// A random number, so that identities of messages differ from those of others and of earlier runs.
    pub seed: u128,
}

/// Answers WS-Management requests from what a broker serves.
pub struct WsMan<C: Caller> {
    pub(super) broker: Arc<Broker<C>>,
    pub(super) settings: Settings,
    pub(super) contexts: Contexts<C, Waiting>,
    next_message: AtomicU64,
}

/// A request, understood as far as it can be without knowing classes.
#[derive(Debug)]
pub enum Action {
    Get,
    Put(Instance),
    /// Parts of an instance, by name.
    PutFragment(Vec<(Name, Value)>),
    Create(Instance),
    Delete,
    Enumerate(Box<Enumerate>),
    Pull {
        context: String,
        most: usize,
        characters: Option<usize>,
    },
    Release {
        context: String,
    },
    Renew {
        context: String,
        expires: Option<String>,
    },
    /// A method with its parameters.
    Invoke {
        method: String,
        inputs: Vec<(Name, Value)>,
    },
}

/// A body of a response, and headers that only it has.
#[derive(Debug, Default)]
pub struct Reply {
    pub header: String,
    pub body: String,
}

/// What came in.
enum Read {
    Identify,
    Request(Box<Header>, Action),
}

impl<C: Caller> WsMan<C> {
    /// A server without open enumerations.
    pub fn new(broker: Arc<Broker<C>>, settings: Settings) -> Self {
        WsMan { broker, settings, contexts: Contexts::default(), next_message: AtomicU64::new(1) }
    }

    /// Answers a request of a caller who is known already. `now` is the time since some moment that stays the same.
    pub async fn handle(&self, request: HttpRequest<'_>, caller: &C, now: Duration) -> HttpResponse {
        if let Some(refusal) = refusal(&request) {
            return refusal;
        }
        let (id, read) = self.read(&request);
        let outcome = match read {
            Ok(Read::Identify) => return self.identity(true),
            Ok(Read::Request(header, action)) => {
                let reply = self.operation(&header, action, caller, now).await;
                reply.map(|reply| (header, reply))
            }
            Err(fault) => Err(fault),
        };
        match outcome {
            Ok((header, reply)) => self.respond(&header, reply),
            Err(fault) => self.fault(id.as_deref(), &fault),
        }
    }

    /// Answers the one question that may be asked without credentials: with the HTTP header `WSMANIDENTIFY: unauthenticated`, whether
    /// this protocol is spoken here. Nothing else about the server is told. `None` when it was not that question.
    pub fn handle_unauthenticated(&self, request: HttpRequest<'_>) -> Option<HttpResponse> {
        let asks = request.header("WSMANIDENTIFY").is_some_and(|value| value.eq_ignore_ascii_case("unauthenticated"));
        if !asks || refusal(&request).is_some() {
            return None;
        }
        matches!(self.read(&request).1, Ok(Read::Identify)).then(|| self.identity(false))
    }

    /// The message's identity, as far as it could be read, and what it asks.
    fn read(&self, request: &HttpRequest<'_>) -> (Option<String>, Result<Read, Fault>) {
        let text = match xml::decode(request.body, request.charset().as_deref()) {
            Ok(text) => text,
            Err(err) => return (None, Err(Fault::schema(err.to_string()))),
        };
        match xml::parse(&text, &Bounds::REQUEST) {
            Ok(document) => (envelope::message_id(document.root_element()), self.understand(request, &document)),
            Err(err @ XmlError::Bound { .. }) => {
                (None, Err(Fault::sender("w:EncodingLimit", Some("MaxEnvelopeSize"), err.to_string())))
            }
            Err(err) => (None, Err(Fault::schema(err.to_string()))),
        }
    }

    fn understand(&self, request: &HttpRequest<'_>, document: &Document<'_>) -> Result<Read, Fault> {
        let root = document.root_element();
        if local(root) != "Envelope" || root.tag_name().namespace() != Some(ns::S) {
            return Err(Fault::schema("the outermost element is no envelope of SOAP 1.2"));
        }
        let content = child(root, ns::S, "Body").and_then(|body| elements(body).next());
        let is_identify = |node: &Node<'_, '_>| {
            local(*node) == "Identify" && matches!(node.tag_name().namespace(), Some(ns::ID | ns::ID_OLD))
        };
        if content.as_ref().is_some_and(is_identify) {
            return Ok(Read::Identify);
        }
        let header = envelope::read(root)?;
        if let Some(soap_action) = request.header("SOAPAction").map(|value| value.trim_matches('"'))
            && !soap_action.is_empty()
            && soap_action != header.action
        {
            return Err(Fault::action("SOAPAction is not the action"));
        }
        let action = self.action(&header, content)?;
        Ok(Read::Request(Box::new(header), action))
    }

    fn respond(&self, header: &Header, reply: Reply) -> HttpResponse {
        let action = format!("{}Response", header.action);
        let relates_to = Some(header.message_id.as_str());
        let text = envelope::write(&action, &self.message_id(), relates_to, &reply.header, &reply.body);
        if text.len() as u64 > self.envelope_max(header) {
            return self.fault(relates_to, &Fault::too_large());
        }
        HttpResponse::text(200, MEDIA_TYPE, text)
    }

    /// How large the response may be.
    pub(super) fn envelope_max(&self, header: &Header) -> u64 {
        header.envelope_max.unwrap_or(ENVELOPE_MAX).min(ENVELOPE_MAX)
    }

    fn fault(&self, relates_to: Option<&str>, fault: &Fault) -> HttpResponse {
        let mut more = XmlWriter::default();
        if let Some((namespace, name)) = fault.not_understood.as_deref() {
            more.empty("s:NotUnderstood", &[("xmlns:u", namespace), ("qname", &format!("u:{name}"))]);
        }
        let mut body = XmlWriter::default();
        fault.write(&mut body, self.broker.host());
        let text = envelope::write(fault.action_uri(), &self.message_id(), relates_to, &more.finish(), &body.finish());
        HttpResponse::text(500, MEDIA_TYPE, text)
    }

    fn identity(&self, is_known_caller: bool) -> HttpResponse {
        let mut xml = XmlWriter::default();
        xml.element("s:Envelope", &[("xml:lang", "en-US"), ("xmlns:s", ns::S)], |xml| {
            xml.empty("s:Header", &[]);
            xml.element("s:Body", &[], |xml| {
                xml.element("wsmid:IdentifyResponse", &[("xmlns:wsmid", ns::ID)], |xml| {
                    xml.text_element("wsmid:ProtocolVersion", &[], PROTOCOL_VERSION);
                    if is_known_caller {
                        xml.text_element("wsmid:ProductVendor", &[], &self.settings.vendor);
                        xml.text_element("wsmid:ProductVersion", &[], &self.settings.version);
                    }
                });
            });
        });
        HttpResponse::text(200, MEDIA_TYPE, xml.finish())
    }

    /// An identity that no other message has: 128 bits in the form of a UUID of version 8.
    fn message_id(&self) -> String {
        let counted = u128::from(self.next_message.fetch_add(1, Ordering::Relaxed));
        // The factor spreads neighbouring numbers over all bits.
        let bits = self.settings.seed ^ counted.wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835);
        let bits = bits & !(0xf << 76) & !(0x3 << 62) | (0x8 << 76) | (0x2 << 62);
        let hex = format!("{bits:032X}");
        format!("uuid:{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
    }
}

/// What is refused before anybody looks at the body.
fn refusal(request: &HttpRequest<'_>) -> Option<HttpResponse> {
    let text = |status, reason: &str| Some(HttpResponse::text(status, "text/plain; charset=utf-8", reason.to_string()));
    if request.method == "M-POST" {
        return text(501, "POST will do");
    }
    if request.method != "POST" {
        return text(405, "only POST is for WS-Management").map(|response| response.with("Allow", "POST"));
    }
    if request.body.len() > Bounds::REQUEST.bytes {
        return text(413, "the request is too long");
    }
    match request.media_type().as_deref() {
        // One client does not say what it sends.
        None | Some("application/soap+xml") => {}
        Some(_) => return text(415, "the request is no application/soap+xml"),
    }
    let known = ["utf-8", "utf8", "utf-16", "utf-16le", "utf-16be"];
    match request.charset() {
        Some(charset) if !known.contains(&charset.as_str()) => text(415, "the request is in an unknown charset"),
        _ => None,
    }
}

impl<C: Caller> WsMan<C> {
    /// What a request asks, from its action and its body.
    fn action(&self, header: &Header, content: Option<Node<'_, '_>>) -> Result<Action, Fault> {
        let action = header.action.as_str();
        if let Some(verb) = action.strip_prefix(ns::X).and_then(|rest| rest.strip_prefix('/')) {
            return self.transfer(verb, header, content);
        }
        if let Some(verb) = action.strip_prefix(ns::N).and_then(|rest| rest.strip_prefix('/')) {
            return enumeration(verb, content);
        }
        let method = action.rsplit_once('/').map(|(_, method)| method).filter(|method| Name::parse(method).is_ok());
        let is_of_class = header.resource.as_deref().is_some_and(|uri| {
            let is_head = action.get(..uri.len()).is_some_and(|head| head.eq_ignore_ascii_case(uri));
            is_head && action[uri.len()..].starts_with('/')
        });
        let Some(method) = method.filter(|_| is_of_class) else {
            return Err(Fault::action(format!("action {action:?} is not known")));
        };
        let target = self.target(header)?;
        let declared = |parameter: &str| {
            let method = self.broker.method(&target.namespace, target.class.as_ref()?, method).ok()?;
            find(&method.parameters, parameter)?.kind.class.clone()
        };
        let reader = Reader { repository: self.broker.repository(&target.namespace).ok() };
        let inputs = content.map(|node| reader.members(node, &declared, 0)).transpose()?;
        Ok(Action::Invoke { method: method.to_string(), inputs: inputs.unwrap_or_default() })
    }

    fn transfer(&self, verb: &str, header: &Header, content: Option<Node<'_, '_>>) -> Result<Action, Fault> {
        match verb {
            "Get" => Ok(Action::Get),
            "Delete" => Ok(Action::Delete),
            "Put" if header.fragment.is_some() => self.fragment(header, content).map(Action::PutFragment),
            "Put" => self.representation(header, content).map(Action::Put),
            "Create" => self.representation(header, content).map(Action::Create),
            other => Err(Fault::action(format!("there is no transfer {other:?}"))),
        }
    }

    fn representation(&self, header: &Header, content: Option<Node<'_, '_>>) -> Result<Instance, Fault> {
        let none = || Fault::sender("x:InvalidRepresentation", None, "no instance");
        let node = content.ok_or_else(none)?;
        let class = Name::parse(local(node)).map_err(|_| none())?;
        self.reader(header)?.instance(node, class, 0)
    }

    fn fragment(&self, header: &Header, content: Option<Node<'_, '_>>) -> Result<Vec<(Name, Value)>, Fault> {
        let node = content.filter(|node| local(*node) == "XmlFragment");
        let none = || Fault::sender("x:InvalidRepresentation", Some("InvalidFragment"), "no fragment");
        self.reader(header)?.members(node.ok_or_else(none)?, &|_| None, 0)
    }

    fn reader(&self, header: &Header) -> Result<Reader<'_>, Fault> {
        Ok(Reader { repository: self.broker.repository(&self.target(header)?.namespace).ok() })
    }
}

fn enumeration(verb: &str, content: Option<Node<'_, '_>>) -> Result<Action, Fault> {
    let node = content.filter(|node| local(*node) == verb);
    let node = node.ok_or_else(|| Fault::schema(format!("the body holds no {verb}")))?;
    let context = || child(node, ns::N, "EnumerationContext").map(trimmed).unwrap_or_default();
    let count = |name: &str| elements(node).find(|child| local(*child) == name).map(body::count).transpose();
    match verb {
        "Enumerate" => Ok(Action::Enumerate(Box::new(body::enumerate(node)?))),
        // Who does not say how many it wants may read no more than the first.
        "Pull" => {
            let most = count("MaxElements")?.unwrap_or(1);
            Ok(Action::Pull { context: context(), most, characters: count("MaxCharacters")? })
        }
        "Release" => Ok(Action::Release { context: context() }),
        "Renew" => Ok(Action::Renew { context: context(), expires: child(node, ns::N, "Expires").map(trimmed) }),
        other => Err(Fault::action(format!("there is no enumeration {other:?}"))),
    }
}

#[cfg(test)]
mod tests;
