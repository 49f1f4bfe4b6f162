//! Enumerations: what they find, and how it is handed out piece by piece, each no larger than the client's envelope.

use std::collections::VecDeque;
use std::time::Duration;

use super::Target;
use crate::broker::{Request, Selection};
use crate::path::KeyValue;
use crate::provider::Caller;
use crate::repository::View;
use crate::schema::NamedInstance;
use crate::status::{Status, StatusCode};
use crate::wsman::body::{Enumerate, Filter, Mode, expires};
use crate::wsman::envelope::Header;
use crate::wsman::epr::{self, Declared};
use crate::wsman::fault::{Doing, Fault};
use crate::wsman::instance::{Style, write, write_fragment};
use crate::wsman::server::{EXPIRES_DEFAULT, EXPIRES_MAX, Reply, WsMan};
use crate::wsman::uri::Family;
use crate::xml::XmlWriter;

/// Bytes of an envelope that are neither its items nor the identity of the message it answers; some 1,100 are used.
const ENVELOPE_OVERHEAD: usize = 1_400;
/// How much longer an identity may become when it is written.
const ESCAPES_MAX: usize = 6;
/// Most items in one response.
const ITEMS_MAX: usize = 32_000;

/// What is left of an enumeration, and in which form it is wanted.
#[derive(Debug)]
pub struct Waiting {
    left: VecDeque<NamedInstance>,
    mode: Mode,
    style: Style,
    /// True when a query named properties.
    is_projected: bool,
}

fn reading(status: Status) -> Fault {
    Fault::of(status, Doing::Reading)
}

impl<C: Caller> WsMan<C> {
    pub(super) async fn enumerate(
        &self,
        header: &Header,
        request: &Request<'_, C>,
        target: &Target,
        asked: Enumerate,
    ) -> Result<Reply, Fault> {
        let patience =
            asked.expires.as_deref().map(expires).transpose()?.flatten().unwrap_or(EXPIRES_DEFAULT).min(EXPIRES_MAX);
        let (found, is_projected) = self.found(request, target, asked.filter).await?;
        let count = found.len();
        let mut waiting =
            Waiting { left: found.into(), mode: asked.mode, style: Self::style(header, target), is_projected };
        let mut first = None;
        if let Some(most) = asked.optimized {
            first = Some(self.piece(header, &mut waiting, most, None)?);
        }
        // Without a first piece there is a context even for nothing: the client comes and finds the end.
        let is_done = first.is_some() && waiting.left.is_empty();
        let context = match is_done {
            true => String::new(),
            false => {
                let len = waiting.left.len();
                let number = self.contexts.open(request.caller, waiting, len, patience, request.now);
                number.map_err(reading)?.to_string()
            }
        };
        let mut xml = XmlWriter::default();
        xml.element("n:EnumerateResponse", &[], |xml| {
            xml.text_element("n:EnumerationContext", &[], &context);
            if let Some(items) = &first {
                xml.element("w:Items", &[], |xml| xml.raw(items));
            }
            if is_done {
                xml.empty("w:EndOfSequence", &[]);
            }
        });
        Ok(Reply { header: estimate(header, count), body: xml.finish() })
    }

    /// What an enumeration finds, and whether a query named properties.
    async fn found(
        &self,
        request: &Request<'_, C>,
        target: &Target,
        filter: Filter,
    ) -> Result<(Vec<NamedInstance>, bool), Fault> {
        match filter {
            Filter::Query(language, text) => {
                match self.broker.query(request, &text, language).await.map_err(reading)? {
                    Selection::Instances { found, is_projected } => Ok((found, is_projected)),
                    Selection::Classes(_) => Err(Fault::sender(
                        "n:CannotProcessFilter",
                        None,
                        "the query asks for classes, which have another form",
                    )),
                }
            }
            Filter::Association { is_associators, source, traversal, properties } => {
                let source = self.broker.normalize(&source, &request.namespace);
                let namespace = source.namespace.clone().unwrap_or_else(|| request.namespace.clone());
                let request = &Request { namespace, ..request.clone() };
                let found = match is_associators {
                    true => self.broker.associators(request, &source, &traversal).await,
                    false => self.broker.references(request, &source, &traversal).await,
                };
                let view = View { properties, ..View::default() };
                let shown = |named: NamedInstance| NamedInstance { instance: view.instance(&named.instance), ..named };
                Ok((found.map_err(reading)?.into_iter().map(shown).collect(), false))
            }
            Filter::None => Ok((self.of_class(request, target).await?, false)),
            Filter::Selectors(wanted) => {
                let found = self.of_class(request, target).await?;
                let has =
                    |named: &NamedInstance| wanted.iter().all(|(name, value)| property_is(named, name.as_str(), value));
                Ok((found.into_iter().filter(has).collect(), false))
            }
        }
    }

    async fn of_class(&self, request: &Request<'_, C>, target: &Target) -> Result<Vec<NamedInstance>, Fault> {
        let class = target.class.as_ref().ok_or_else(|| Fault::resource("all classes can only be queried"))?;
        let found = self.broker.enumerate(request, class).await.map_err(reading)?;
        // Some clients narrow an enumeration by keys.
        let has =
            |named: &NamedInstance| target.keys.iter().all(|(name, value)| property_is(named, name.as_str(), value));
        Ok(found.into_iter().filter(has).collect())
    }

    pub(super) fn pull(
        &self,
        header: &Header,
        caller: &C,
        now: Duration,
        context: &str,
        most: usize,
        characters: Option<usize>,
    ) -> Result<Reply, Fault> {
        let number = number(context)?;
        let piece = self.contexts.with(caller, number, now, |waiting| {
            let piece = self.piece(header, waiting, most, characters);
            let left = waiting.left.len();
            // What does not fit stays, so that it is not lost without a word.
            Ok(((piece, left), left))
        });
        let (piece, left) = piece.map_err(reading)?;
        let piece = piece?;
        let mut xml = XmlWriter::default();
        xml.element("n:PullResponse", &[], |xml| {
            if left > 0 {
                xml.text_element("n:EnumerationContext", &[], context);
            }
            xml.element("n:Items", &[], |xml| xml.raw(&piece));
            if left == 0 {
                xml.empty("n:EndOfSequence", &[]);
            }
        });
        Ok(Reply { header: estimate(header, left), body: xml.finish() })
    }

    pub(super) fn release(&self, caller: &C, now: Duration, context: &str) -> Result<Reply, Fault> {
        self.contexts.close(caller, number(context)?, now).map_err(reading)?;
        Ok(Reply::default())
    }

    pub(super) fn renew(&self, caller: &C, now: Duration, context: &str, wanted: Option<&str>) -> Result<Reply, Fault> {
        let patience = wanted.map(expires).transpose()?.flatten().unwrap_or(EXPIRES_DEFAULT).min(EXPIRES_MAX);
        self.contexts.renew(caller, number(context)?, patience, now).map_err(reading)?;
        let mut xml = XmlWriter::default();
        xml.element("n:RenewResponse", &[], |xml| {
            xml.text_element("n:Expires", &[], &format!("PT{}S", patience.as_secs()));
            xml.text_element("n:EnumerationContext", &[], context);
        });
        Ok(Reply { header: String::new(), body: xml.finish() })
    }

    /// Takes items off the front while they fit, and writes them.
    fn piece(
        &self,
        header: &Header,
        waiting: &mut Waiting,
        most: usize,
        characters: Option<usize>,
    ) -> Result<String, Fault> {
        let overhead = ENVELOPE_OVERHEAD + ESCAPES_MAX * header.message_id.len();
        let room = (self.envelope_max(header) as usize).saturating_sub(overhead);
        let room = room.min(characters.unwrap_or(room));
        let mut items = String::new();
        for _ in 0..most.min(ITEMS_MAX) {
            let Some(next) = waiting.left.front() else { break };
            let item = waiting.item(next);
            if items.len() + item.len() > room {
                if items.is_empty() {
                    return Err(Fault::too_large());
                }
                break;
            }
            items.push_str(&item);
            waiting.left.pop_front();
        }
        Ok(items)
    }
}

impl Waiting {
    fn item(&self, named: &NamedInstance) -> String {
        let mut xml = XmlWriter::default();
        match self.mode {
            Mode::Object => self.write_object(&mut xml, named),
            Mode::Epr => epr::write_whole(&mut xml, &named.path, self.style.family, Declared::Inline),
            Mode::ObjectAndEpr => xml.element("w:Item", &[], |xml| {
                self.write_object(xml, named);
                epr::write_whole(xml, &named.path, self.style.family, Declared::Inline);
            }),
        }
        xml.finish()
    }

    fn write_object(&self, xml: &mut XmlWriter, named: &NamedInstance) {
        let Some(namespace) = &named.path.namespace else { return };
        // Windows leaves the class out when a query named properties; those who use the other URIs expect it.
        match self.is_projected && self.style.family == Family::Wmi {
            true => write_fragment(xml, &named.instance.properties, namespace, self.style),
            false => write(xml, &named.instance, namespace, self.style),
        }
    }
}

fn property_is(named: &NamedInstance, name: &str, wanted: &KeyValue) -> bool {
    if let Some(key) = named.path.key(name) {
        return key.matches(wanted);
    }
    let text = named.instance.get(name).as_scalar().and_then(crate::value::Scalar::text);
    text.is_some_and(|text| text.eq_ignore_ascii_case(wanted.plain().trim()))
}

fn number(context: &str) -> Result<u64, Fault> {
    let unknown = |_| reading(Status::new(StatusCode::InvalidEnumerationContext, "there is no such enumeration"));
    context.parse().map_err(unknown)
}

/// How many items there are, for those who asked.
fn estimate(header: &Header, count: usize) -> String {
    if !header.wants_count {
        return String::new();
    }
    let mut xml = XmlWriter::default();
    xml.text_element("w:TotalItemsCountEstimate", &[], &count.to_string());
    xml.finish()
}
