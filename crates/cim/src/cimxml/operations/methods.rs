//! Calls of methods.

use std::time::Duration;

use super::Answer;
use crate::broker::Request;
use crate::cimxml::message::ParameterValue;
use crate::cimxml::parameters::unreadable;
use crate::cimxml::server::CimXml;
use crate::cimxml::write;
use crate::name::Name;
use crate::path::ObjectPath;
use crate::provider::Caller;
use crate::schema::{Method, find};
use crate::status::{Status, StatusCode};
use crate::value::{CimType, Value};
use crate::xml::XmlWriter;

impl<C: Caller> CimXml<C> {
    pub(in crate::cimxml) async fn method(
        &self,
        name: &str,
        target: ObjectPath,
        given: Vec<ParameterValue>,
        caller: &C,
        now: Duration,
    ) -> Answer {
        let missing = || Status::new(StatusCode::InvalidNamespace, "a method without a namespace");
        let namespace = target.namespace.clone().ok_or_else(missing)?;
        let request = Request::new(caller, namespace, now);
        let class = match self.broker.class(&request.namespace, &target.class) {
            // The class is what is called, not where an instance should be.
            Err(status) if status.code == StatusCode::InvalidClass && target.is_class() => {
                return Err(Status::new(StatusCode::NotFound, status.message));
            }
            class => class?,
        };
        let method = self.broker.method(&request.namespace, &class.name, name)?;
        let inputs = given.into_iter().map(|parameter| typed(method, parameter)).collect::<Result<_, _>>()?;
        let answer = self.broker.invoke(&request, &target, name, inputs).await?;
        let mut xml = XmlWriter::default();
        if !answer.value.is_null() {
            xml.element("RETURNVALUE", &[("PARAMTYPE", method.returns.base.name())], |xml| {
                write::value(xml, &answer.value)
            });
        }
        for (name, value) in answer.outputs.iter().filter(|(_, value)| !value.is_null()) {
            let Some(parameter) = find(&method.parameters, name.as_str()) else { continue };
            write::parameter_value(&mut xml, parameter, &parameter.kind, value);
        }
        Ok(xml.finish())
    }
}

/// The value in its declared type. What the client says the type is must be true, where it says so.
fn typed(method: &Method, given: ParameterValue) -> Result<(Name, Value), Status> {
    let Some(parameter) = find(&method.parameters, given.name.as_str()) else {
        // Refused by the broker, which knows best what is wrong with it.
        return Ok((given.name, Value::Null));
    };
    let mut kind = parameter.kind.clone();
    if let Some(cim_type) = given.cim_type.filter(|cim_type| *cim_type != kind.base) {
        let is_script_boolean = kind.base == CimType::Boolean && cim_type.integer_range().is_some();
        if !is_script_boolean {
            let message = format!("parameter {} is a {}, not a {cim_type}", given.name, kind.base);
            return Err(Status::new(StatusCode::TypeMismatch, message));
        }
    }
    // What is embedded is read by the broker, which knows its class; and a reference may be given by an instance.
    let is_text = matches!(given.value, super::super::read::Raw::Text(_) | super::super::read::Raw::Texts(_));
    if is_text && (kind.embedded.is_some() || kind.base == CimType::Reference) {
        (kind.embedded, kind.base) = (None, CimType::String);
    }
    let value = given.value.typed(&given.name, &kind, 0).map_err(|err| unreadable(&err))?;
    Ok((given.name, value))
}
