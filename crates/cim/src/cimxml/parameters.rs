//! Parameters of operations: taken one by one, and none may be left over.

use super::read::{Raw, ReadError};
use crate::name::Name;
use crate::path::ObjectPath;
use crate::schema::{Instance, NamedInstance};
use crate::status::{Status, StatusCode};
use crate::value::{CimType, Scalar};

/// Parameters that nobody asked for yet.
pub struct Parameters(Vec<(Name, Raw)>);

type Taken<T> = Result<T, Status>;

fn bad(name: &str, wanted: &str) -> Status {
    Status::new(StatusCode::InvalidParameter, format!("parameter {name} is not {wanted}"))
}

/// What is wrong with a value in a request, as a status.
pub fn unreadable(err: &ReadError) -> Status {
    let code = match err {
        ReadError::Value { .. } | ReadError::Embedded { .. } => StatusCode::TypeMismatch,
        _ => StatusCode::InvalidParameter,
    };
    Status::new(code, crate::broker::chain(err))
}

impl Parameters {
    pub fn new(parameters: Vec<(Name, Raw)>) -> Self {
        Parameters(parameters)
    }

    /// The parameter as it came; one that is there without a value is not there.
    pub fn raw(&mut self, name: &str) -> Option<Raw> {
        let index = self.0.iter().position(|(known, _)| known.is(name))?;
        Some(self.0.swap_remove(index).1).filter(|raw| *raw != Raw::Null)
    }

    /// Fails when something is left.
    pub fn finish(self) -> Taken<()> {
        match self.0.first() {
            Some((name, _)) => {
                Err(Status::new(StatusCode::InvalidParameter, format!("the operation has no parameter {name}")))
            }
            None => Ok(()),
        }
    }

    pub fn text(&mut self, name: &str) -> Taken<Option<String>> {
        match self.raw(name) {
            None => Ok(None),
            Some(Raw::Text(text)) => Ok(Some(text)),
            Some(_) => Err(bad(name, "a text")),
        }
    }

    pub fn required_text(&mut self, name: &str) -> Taken<String> {
        self.text(name)?.ok_or_else(|| missing(name))
    }

    pub fn flag(&mut self, name: &str, otherwise: bool) -> Taken<bool> {
        let Some(text) = self.text(name)? else { return Ok(otherwise) };
        match Scalar::parse(CimType::Boolean, &text) {
            Ok(Scalar::Boolean(value)) => Ok(value),
            _ => Err(bad(name, "true or false")),
        }
    }

    pub fn number(&mut self, name: &str) -> Taken<Option<u32>> {
        let Some(text) = self.text(name)? else { return Ok(None) };
        let number = crate::value::parse_integer(&text).and_then(|number| u32::try_from(number).ok());
        number.map(Some).ok_or_else(|| bad(name, "a number"))
    }

    /// A name; an empty one is none.
    pub fn name(&mut self, name: &str) -> Taken<Option<Name>> {
        match self.raw(name) {
            None => Ok(None),
            Some(Raw::Path(path)) if path.is_class() => Ok(Some(path.class)),
            Some(Raw::Text(text)) if text.trim().is_empty() => Ok(None),
            Some(Raw::Text(text)) => Name::parse(text.trim()).map(Some).map_err(|_| bad(name, "a name")),
            Some(_) => Err(bad(name, "a name")),
        }
    }

    pub fn required_name(&mut self, name: &str) -> Taken<Name> {
        self.name(name)?.ok_or_else(|| missing(name))
    }

    /// Names of properties. None at all is something else than an empty list.
    pub fn names(&mut self, name: &str) -> Taken<Option<Vec<Name>>> {
        let texts = match self.raw(name) {
            None => return Ok(None),
            Some(Raw::Texts(texts)) => texts,
            Some(Raw::Text(text)) => vec![Some(text)],
            Some(_) => return Err(bad(name, "a list of names")),
        };
        let names =
            texts.into_iter().flatten().map(|text| Name::parse(text.trim()).map_err(|_| bad(name, "a list of names")));
        names.collect::<Taken<_>>().map(Some)
    }

    pub fn path(&mut self, name: &str) -> Taken<ObjectPath> {
        match self.raw(name) {
            Some(Raw::Path(path)) => Ok(path),
            Some(_) => Err(bad(name, "a path")),
            None => Err(missing(name)),
        }
    }

    /// The path of an instance.
    pub fn instance_path(&mut self, name: &str) -> Taken<ObjectPath> {
        let path = self.path(name)?;
        if path.is_class() { Err(bad(name, "the path of an instance")) } else { Ok(path) }
    }

    pub fn instance(&mut self, name: &str) -> Taken<Instance> {
        match self.raw(name) {
            Some(Raw::Instance(instance)) => Ok(*instance),
            Some(Raw::Named(named)) => Ok(named.instance),
            Some(_) => Err(bad(name, "an instance")),
            None => Err(missing(name)),
        }
    }

    pub fn named_instance(&mut self, name: &str) -> Taken<NamedInstance> {
        match self.raw(name) {
            Some(Raw::Named(named)) => Ok(*named),
            Some(_) => Err(bad(name, "an instance with its path")),
            None => Err(missing(name)),
        }
    }
}

fn missing(name: &str) -> Status {
    Status::new(StatusCode::InvalidParameter, format!("parameter {name} is missing"))
}
