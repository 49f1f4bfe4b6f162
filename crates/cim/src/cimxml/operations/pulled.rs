//! Enumerations that are opened, pulled and closed.

use std::collections::VecDeque;
use std::time::Duration;

use super::associations::{Followed, followed};
use super::instances::{language, rows, shown};
use super::{Answer, done, instance_view, returned};
use crate::broker::{Request, Selection};
use crate::cimxml::parameters::Parameters;
use crate::cimxml::server::{CimXml, OPERATION_TIMEOUT_DEFAULT, OPERATION_TIMEOUT_MAX, PULLED_MAX};
use crate::cimxml::write;
use crate::path::ObjectPath;
use crate::provider::Caller;
use crate::query::{Condition, Language};
use crate::schema::{Class, Instance, NamedInstance};
use crate::status::{Status, StatusCode};
use crate::xml::XmlWriter;

/// What is left of an enumeration, and by which operation it is pulled.
#[derive(Debug)]
pub enum Pulled {
    /// `PullInstancesWithPath`
    Instances(VecDeque<NamedInstance>),
    /// `PullInstancePaths`
    Paths(VecDeque<ObjectPath>),
    /// `PullInstances`
    Rows(VecDeque<Instance>),
}

/// By which operation an enumeration is pulled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Instances,
    Paths,
    Rows,
}

impl Pulled {
    fn kind(&self) -> Kind {
        match self {
            Pulled::Instances(_) => Kind::Instances,
            Pulled::Paths(_) => Kind::Paths,
            Pulled::Rows(_) => Kind::Rows,
        }
    }

    fn len(&self) -> usize {
        match self {
            Pulled::Instances(left) => left.len(),
            Pulled::Paths(left) => left.len(),
            Pulled::Rows(left) => left.len(),
        }
    }

    /// Takes so many off the front.
    fn take(&mut self, count: usize) -> Pulled {
        fn front<T>(left: &mut VecDeque<T>, count: usize) -> VecDeque<T> {
            left.drain(..count.min(left.len())).collect()
        }
        match self {
            Pulled::Instances(left) => Pulled::Instances(front(left, count)),
            Pulled::Paths(left) => Pulled::Paths(front(left, count)),
            Pulled::Rows(left) => Pulled::Rows(front(left, count)),
        }
    }
}

/// What all operations that open an enumeration have in common.
struct Opening {
    filter: Option<(Condition, Language)>,
    patience: Duration,
    count: usize,
}

fn opening(p: &mut Parameters) -> Result<Opening, Status> {
    let filter = match (p.text("FilterQueryLanguage")?, p.text("FilterQuery")?) {
        (None, None) => None,
        (Some(name), Some(text)) => Some(filter(&name, &text)?),
        _ => return Err(Status::new(StatusCode::InvalidParameter, "a filter needs a text and a language")),
    };
    Ok(Opening { filter, patience: patience(p)?, count: opening_count(p)? })
}

fn filter(name: &str, text: &str) -> Result<(Condition, Language), Status> {
    match language(name)? {
        Language::Cql => {
            Err(Status::new(StatusCode::QueryLanguageNotSupported, "a filter is no query; its language is DMTF:FQL"))
        }
        language => {
            let bad = |err| Status::new(StatusCode::InvalidQuery, crate::broker::chain(&err));
            Ok((Condition::parse(text).map_err(bad)?, language))
        }
    }
}

fn patience(p: &mut Parameters) -> Result<Duration, Status> {
    if p.flag("ContinueOnError", false)? {
        return Err(Status::new(StatusCode::ContinuationOnErrorNotSupported, "the server stops at errors"));
    }
    match p.number("OperationTimeout")? {
        None => Ok(OPERATION_TIMEOUT_DEFAULT),
        // Nothing means for ever, which is too long.
        Some(seconds) if seconds == 0 || Duration::from_secs(seconds.into()) > OPERATION_TIMEOUT_MAX => {
            let message = format!("an enumeration waits between 1 and {} seconds", OPERATION_TIMEOUT_MAX.as_secs());
            Err(Status::new(StatusCode::InvalidOperationTimeout, message))
        }
        Some(seconds) => Ok(Duration::from_secs(seconds.into())),
    }
}

fn opening_count(p: &mut Parameters) -> Result<usize, Status> {
    Ok(p.number("MaxObjectCount")?.unwrap_or(0) as usize)
}

impl<C: Caller> CimXml<C> {
    pub(super) async fn open_enumerate_instances(&self, request: &Request<'_, C>, mut p: Parameters) -> Answer {
        let class = p.required_name("ClassName")?;
        let is_deep = p.flag("DeepInheritance", true)?;
        let view = instance_view(&mut p)?;
        let opening = opening(&mut p)?;
        p.finish()?;
        let view = if is_deep { view } else { self.shallow(request, &class, view)? };
        let found = self.filtered(request, self.broker.enumerate(request, &class).await?, &opening)?;
        self.open(request, Pulled::Instances(shown(&view, found).into()), &opening, None)
    }

    pub(super) async fn open_enumerate_instance_paths(&self, request: &Request<'_, C>, mut p: Parameters) -> Answer {
        let class = p.required_name("ClassName")?;
        let opening = opening(&mut p)?;
        p.finish()?;
        let found = self.filtered(request, self.broker.enumerate(request, &class).await?, &opening)?;
        self.open(request, paths(found), &opening, None)
    }

    pub(super) async fn open_associators(&self, request: &Request<'_, C>, mut p: Parameters, is_whole: bool) -> Answer {
        let Followed { source, traversal } = followed(&mut p, "InstanceName", true)?;
        let view = instance_view(&mut p)?;
        let opening = opening(&mut p)?;
        p.finish()?;
        if !is_whole && opening.filter.is_none() {
            let paths = self.broker.associator_names(request, &source, &traversal).await?;
            return self.open(request, Pulled::Paths(paths.into()), &opening, None);
        }
        let found = self.broker.associators(request, &source, &traversal).await?;
        let found = self.filtered(request, found, &opening)?;
        let left = if is_whole { Pulled::Instances(shown(&view, found).into()) } else { paths(found) };
        self.open(request, left, &opening, None)
    }

    pub(super) async fn open_references(&self, request: &Request<'_, C>, mut p: Parameters, is_whole: bool) -> Answer {
        let Followed { source, traversal } = followed(&mut p, "InstanceName", false)?;
        let view = instance_view(&mut p)?;
        let opening = opening(&mut p)?;
        p.finish()?;
        let found = self.broker.references(request, &source, &traversal).await?;
        let found = self.filtered(request, found, &opening)?;
        let left = if is_whole { Pulled::Instances(shown(&view, found).into()) } else { paths(found) };
        self.open(request, left, &opening, None)
    }

    pub(super) async fn open_query_instances(&self, request: &Request<'_, C>, mut p: Parameters) -> Answer {
        let language = language(&p.required_text("FilterQueryLanguage")?)?;
        let text = p.required_text("FilterQuery")?;
        let wants_class = p.flag("ReturnQueryResultClass", false)?;
        let opening = Opening { filter: None, patience: patience(&mut p)?, count: opening_count(&mut p)? };
        p.finish()?;
        let Selection::Instances { found, .. } = self.broker.query(request, &text, language).await? else {
            return Err(Status::new(StatusCode::InvalidQuery, "the query asks for classes"));
        };
        let class = wants_class.then(|| result_class(&found));
        self.open(request, Pulled::Rows(rows(found).into()), &opening, class)
    }

    fn filtered(
        &self,
        request: &Request<'_, C>,
        found: Vec<NamedInstance>,
        opening: &Opening,
    ) -> Result<Vec<NamedInstance>, Status> {
        let Some((condition, language)) = &opening.filter else { return Ok(found) };
        self.broker.filter(self.broker.repository(&request.namespace)?, found, condition, *language)
    }

    /// Answers with the first piece, and keeps the rest.
    fn open(&self, request: &Request<'_, C>, mut left: Pulled, opening: &Opening, class: Option<Class>) -> Answer {
        let first = left.take(opening.count.min(PULLED_MAX));
        let waiting = left.len();
        let number = match waiting {
            0 => None,
            _ => Some(self.contexts.open(request.caller, left, waiting, opening.patience, request.now)?),
        };
        let mut answer = self.piece(&first, number)?;
        if let Some(class) = class {
            let mut xml = XmlWriter::default();
            xml.element("PARAMVALUE", &[("NAME", "QueryResultClass")], |xml| write::class(xml, &class));
            answer.push_str(&xml.finish());
        }
        Ok(answer)
    }

    pub(super) fn pull(&self, request: &Request<'_, C>, mut p: Parameters, kind: Kind) -> Answer {
        let number = context(&mut p)?;
        let missing = || Status::new(StatusCode::InvalidParameter, "parameter MaxObjectCount is missing");
        let count = p.number("MaxObjectCount")?.ok_or_else(missing)? as usize;
        p.finish()?;
        let piece = self.contexts.with(request.caller, number, request.now, |left| {
            if left.kind() != kind {
                let message = "the enumeration was opened for another kind of pull";
                return Err(Status::new(StatusCode::InvalidEnumerationContext, message));
            }
            let piece = left.take(count.min(PULLED_MAX));
            Ok(((piece, left.len()), left.len()))
        });
        let (piece, left) = piece?;
        self.piece(&piece, (left > 0).then_some(number))
    }

    pub(super) fn close_enumeration(&self, request: &Request<'_, C>, mut p: Parameters) -> Answer {
        let number = context(&mut p)?;
        p.finish()?;
        self.contexts.close(request.caller, number, request.now)?;
        done()
    }

    pub(super) fn enumeration_count(&self, request: &Request<'_, C>, mut p: Parameters) -> Answer {
        let number = context(&mut p)?;
        p.finish()?;
        let count = self.contexts.with(request.caller, number, request.now, |left| Ok((left.len(), left.len())))?;
        returned(|xml| xml.text_element("VALUE", &[], &count.to_string()))
    }

    /// Objects, and how to go on: a number, or that this was all.
    fn piece(&self, piece: &Pulled, number: Option<u64>) -> Answer {
        let mut answer = returned(|xml| match piece {
            Pulled::Instances(found) => {
                for named in found {
                    xml.element("VALUE.INSTANCEWITHPATH", &[], |xml| {
                        write::object_path(xml, &self.on_this_host(&named.path));
                        write::instance(xml, &named.instance);
                    });
                }
            }
            Pulled::Paths(paths) => paths.iter().for_each(|path| write::object_path(xml, &self.on_this_host(path))),
            Pulled::Rows(rows) => rows.iter().for_each(|row| write::instance(xml, row)),
        })?;
        let mut xml = XmlWriter::default();
        xml.element("PARAMVALUE", &[("NAME", "EndOfSequence"), ("PARAMTYPE", "boolean")], |xml| {
            xml.text_element("VALUE", &[], if number.is_none() { "TRUE" } else { "FALSE" });
        });
        xml.element("PARAMVALUE", &[("NAME", "EnumerationContext"), ("PARAMTYPE", "string")], |xml| {
            if let Some(number) = number {
                xml.text_element("VALUE", &[], &number.to_string());
            }
        });
        answer.push_str(&xml.finish());
        Ok(answer)
    }
}

fn context(p: &mut Parameters) -> Result<u64, Status> {
    let text = p.required_text("EnumerationContext")?;
    let unknown = |_| Status::new(StatusCode::InvalidEnumerationContext, "there is no such enumeration");
    text.trim().parse().map_err(unknown)
}

fn paths(found: Vec<NamedInstance>) -> Pulled {
    Pulled::Paths(found.into_iter().map(|named| named.path).collect())
}

/// A class with the properties that the query found.
fn result_class(found: &[NamedInstance]) -> Class {
    let Some(first) = found.first() else { return Class::new("CIM_QueryResult") };
    let mut class = Class::new(first.instance.class.clone());
    for property in &first.instance.properties {
        let mut declared = property.clone();
        declared.value = crate::value::Value::Null;
        class.properties.push(declared);
    }
    class
}
