//! Taking what we need from QEMU's answers, and nothing on trust.

use serde_json::Value;

use crate::driver::{Error, Result};
use crate::qmp::{Command, Monitor, QmpError, Refused};

/// A text at a JSON pointer; empty if there is none.
pub fn text<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

/// A number at a JSON pointer.
pub fn number(value: &Value, pointer: &str) -> Option<u64> {
    value.pointer(pointer).and_then(Value::as_u64)
}

/// A flag at a JSON pointer; false if there is none.
pub fn flag(value: &Value, pointer: &str) -> bool {
    value.pointer(pointer).and_then(Value::as_bool).unwrap_or_default()
}

/// The members of a list; none if it is no list.
pub fn list(value: &Value) -> &[Value] {
    value.as_array().map(Vec::as_slice).unwrap_or_default()
}

/// Carries out one command that QEMU must not refuse.
pub async fn execute(monitor: &mut Monitor, what: &str, command: Command) -> Result<Value> {
    monitor.execute(command).await.map_err(|err| failed(what, err))
}

/// Carries out several; the first refusal is the error, and the rest were tried all the same.
pub async fn execute_all(monitor: &mut Monitor, what: &str, commands: &[Command]) -> Result<Vec<Value>> {
    let answers = monitor.pipeline(commands).await.map_err(|err| failed(what, err))?;
    answers.into_iter().map(|answer| answer.map_err(|refused| failed(what, refused.into()))).collect()
}

/// A failed exchange as a driver's error.
pub fn failed(what: &str, err: QmpError) -> Error {
    match err {
        QmpError::Busy { .. } => Error::Busy(err.to_string()),
        QmpError::Refused(refused) if is_in_use(&refused) => Error::Busy(format!("cannot {what} now: {refused}")),
        QmpError::Refused(refused) => Error::Step { what: what.into(), source: Box::new(refused) },
        err => Error::Unreachable { what: what.into(), source: Box::new(err) },
    }
}

/// Whether QEMU refused because somebody uses the thing. It has one error class for nearly everything, so the words
/// must tell; they have been these since 4.2. Taking such a refusal for another only changes how it is reported.
pub fn is_in_use(refused: &Refused) -> bool {
    ["in use", "is busy", "used by", "still in"].iter().any(|words| refused.text.contains(words))
}
