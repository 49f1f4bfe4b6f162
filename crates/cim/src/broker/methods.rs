//! Calls methods.

use super::{Broker, Request, failed};
use crate::name::{Name, Namespace};
use crate::path::ObjectPath;
use crate::provider::{Answer, Call, Caller};
use crate::schema::{Instance, Kind, Method, Named, Property, find};
use crate::status::{Status, StatusCode};
use crate::value::Value;

impl<C: Caller> Broker<C> {
    /// The declaration of a method.
    pub fn method(&self, namespace: &Namespace, class: &Name, method: &str) -> Result<&Method, Status> {
        let class = self.class(namespace, class)?;
        let missing =
            || Status::new(StatusCode::MethodNotFound, format!("class {} has no method {method}", class.name));
        find(&class.methods, method).ok_or_else(missing)
    }

    /// Calls a method of an instance, or a static one of a class. The path must be whole.
    pub async fn invoke(
        &self,
        request: &Request<'_, C>,
        path: &ObjectPath,
        method: &str,
        inputs: Vec<(Name, Value)>,
    ) -> Result<Answer, Status> {
        let space = self.space(&request.namespace)?;
        let class = self.class(&request.namespace, &path.class)?;
        let method = self.method(&request.namespace, &path.class, method)?;
        let inputs = self.checked_inputs(request, method, inputs)?;
        let path = match path.is_class() {
            true if method.is_static() => ObjectPath::class(class.name.clone()).within(&request.namespace),
            true => {
                let message = format!("method {} is not static and cannot be called on a class", method.name);
                return Err(Status::new(StatusCode::InvalidParameter, message));
            }
            false => self.get(request, path).await?.path,
        };
        let call = Call { path: &path, class, method, inputs };
        let answer = space.provider.invoke(&request.context(), call).await?;
        self.checked_answer(request, method, answer)
    }

    fn checked_inputs(
        &self,
        request: &Request<'_, C>,
        method: &Method,
        inputs: Vec<(Name, Value)>,
    ) -> Result<Vec<(Name, Value)>, Status> {
        let mut checked: Vec<(Name, Value)> = Vec::new();
        for (name, value) in inputs {
            let parameter = find(&method.parameters, name.as_str()).filter(|parameter| parameter.is_in());
            let Some(parameter) = parameter else {
                let message = format!("method {} has no input parameter {name}", method.name);
                return Err(Status::new(StatusCode::InvalidParameter, message));
            };
            if checked.iter().any(|(known, _)| *known == name) {
                return Err(Status::new(StatusCode::InvalidParameter, format!("parameter {name} twice")));
            }
            let mismatch = |err: Status| Status::new(StatusCode::TypeMismatch, err.message);
            let mut value = self.typed(request, parameter.name(), &parameter.kind, value).map_err(mismatch)?;
            self.locate(&mut value, request);
            checked.push((parameter.name.clone(), value));
        }
        Ok(checked)
    }

    /// The value as declared, embedded instances included.
    fn typed(&self, request: &Request<'_, C>, name: &Name, kind: &Kind, value: Value) -> Result<Value, Status> {
        let declared = Property::new(name.clone(), kind.clone());
        let conformed = self.repository(&request.namespace)?.conform_value_of(&declared, value);
        conformed
            .map_err(|err| Status::new(StatusCode::TypeMismatch, format!("parameter {name}: {}", super::chain(&err))))
    }

    fn checked_answer(&self, request: &Request<'_, C>, method: &Method, answer: Answer) -> Result<Answer, Status> {
        let bad =
            |err: Status| Status::new(StatusCode::Failed, format!("the provider gave a bad answer: {}", err.message));
        let value = answer.value.conform(&method.returns).map_err(|err| failed("return value", &err))?;
        let mut outputs = Vec::new();
        for (name, value) in answer.outputs {
            let parameter = find(&method.parameters, name.as_str()).filter(|parameter| parameter.is_out());
            let Some(parameter) = parameter else {
                let message = format!("the provider gave {name}, which is no output of {}", method.name);
                return Err(Status::new(StatusCode::Failed, message));
            };
            let mut value = self.typed(request, parameter.name(), &parameter.kind, value).map_err(bad)?;
            self.locate(&mut value, request);
            outputs.push((parameter.name.clone(), value));
        }
        Ok(Answer { value, outputs })
    }

    /// An instance of settings as it came, held against its class; what the class does not have is left out.
    pub fn settings(&self, namespace: &Namespace, instance: Instance) -> Result<Instance, Status> {
        let repository = self.repository(namespace)?;
        repository.conform(instance, crate::repository::Unknown::Ignore).map_err(super::refused)
    }
}
