//! Asking a QEMU: what of its monitor the rest of this module needs, and QEMU's object tree read through it.
//!
//! Answers come from a process that a guest may have taken over. They are taken apart field by field, counts are
//! bounded, and what is not there or not of the expected type is simply not known.

use std::error::Error as StdError;

use async_trait::async_trait;
use serde_json::{Value, json};

use crate::qmp::{Command, Monitor, QmpError};

/// Most entries looked at in one directory of the object tree. A `microvm` has some 40 in its largest.
const LIST_MAX: usize = 4096;
/// Longest text taken from a property: a kernel command line is the longest.
const TEXT_MAX: usize = 8192;

/// A QEMU monitor, as far as it is needed here: a command and its answer.
#[async_trait]
pub trait Ask: Send + Sync {
    /// Sends one command and waits for the answer.
    async fn ask(&mut self, command: &'static str, arguments: Option<Value>) -> Result<Value, AskError>;
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// QEMU said no. The monitor is still good.
    #[error("{0}")]
    Refused(String),
    /// The monitor is of no more use.
    #[error("the monitor failed")]
    Failed(#[source] Box<dyn StdError + Send + Sync>),
}

#[async_trait]
impl Ask for Monitor {
    async fn ask(&mut self, command: &'static str, arguments: Option<Value>) -> Result<Value, AskError> {
        self.execute(Command { name: command, arguments }).await.map_err(|err| match err {
            QmpError::Refused(refused) => AskError::Refused(refused.text),
            other => AskError::Failed(other.into()),
        })
    }
}

/// QEMU's object tree.
pub(super) struct Tree<'a> {
    pub ask: &'a mut dyn Ask,
}

/// One object: its path and its type.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Object {
    pub path: String,
    pub kind: String,
}

impl Tree<'_> {
    /// A query without arguments.
    pub async fn query(&mut self, command: &'static str) -> Result<Value, AskError> {
        self.ask.ask(command, None).await
    }

    /// The objects directly in `path`; none if there is no such place.
    pub async fn children(&mut self, path: &str) -> Result<Vec<Object>, AskError> {
        let answer = known(self.ask.ask("qom-list", Some(json!({ "path": path }))).await)?;
        let entries = answer.as_ref().and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
        let child = |entry: &Value| {
            let name = entry.get("name")?.as_str()?;
            let kind = entry.get("type")?.as_str()?.strip_prefix("child<")?.strip_suffix('>')?;
            Some(Object { path: format!("{path}/{name}"), kind: kind.to_owned() })
        };
        Ok(entries.iter().take(LIST_MAX).filter_map(child).collect())
    }

    /// A property, if it is there and can be read.
    pub async fn property(&mut self, path: &str, property: &str) -> Result<Option<Value>, AskError> {
        known(self.ask.ask("qom-get", Some(json!({ "path": path, "property": property }))).await)
    }

    /// A property that is a text and not an empty one. Links are texts too.
    pub async fn text(&mut self, path: &str, property: &str) -> Result<Option<String>, AskError> {
        let value = self.property(path, property).await?;
        let text = value.as_ref().and_then(Value::as_str);
        Ok(text.filter(|text| (1..=TEXT_MAX).contains(&text.len())).map(str::to_owned))
    }

    /// A property that is a number and not a negative one.
    pub async fn number(&mut self, path: &str, property: &str) -> Result<Option<u64>, AskError> {
        Ok(self.property(path, property).await?.as_ref().and_then(Value::as_u64))
    }

    /// The object at `path`, if there is one.
    pub async fn object(&mut self, path: &str) -> Result<Option<Object>, AskError> {
        let kind = self.text(path, "type").await?;
        Ok(kind.map(|kind| Object { path: path.to_owned(), kind }))
    }

    /// The object whose bus `object` sits on.
    pub async fn parent(&mut self, object: &Object) -> Result<Option<Object>, AskError> {
        match self.text(&object.path, "parent_bus").await? {
            Some(bus) => match bus.rsplit_once('/') {
                Some((path, _)) => self.object(path).await,
                None => Ok(None),
            },
            None => Ok(None),
        }
    }
}

/// What was refused is not known; everything else that went wrong is an error.
fn known(answer: Result<Value, AskError>) -> Result<Option<Value>, AskError> {
    match answer {
        Ok(value) => Ok(Some(value)),
        Err(AskError::Refused(_)) => Ok(None),
        Err(failed) => Err(failed),
    }
}
