//! A server's side of CIM-XML: from a request to its response.

use std::sync::Arc;
use std::time::Duration;

use super::headers::Headers;
use super::message::{self, BadRequest, Message, MessageCall};
use super::operations::Pulled;
use super::parameters::{Parameters, unreadable};
use super::reply::{self, Frame};
use crate::broker::{Broker, Contexts, Request};
use crate::http::{HttpRequest, HttpResponse};
use crate::provider::Caller;
use crate::status::{Status, StatusCode};
use crate::xml::{self, Bounds};

/// How long an enumeration waits for its client when the client does not say.
pub const OPERATION_TIMEOUT_DEFAULT: Duration = Duration::from_secs(300);
/// The longest time a client may ask an enumeration to wait.
pub const OPERATION_TIMEOUT_MAX: Duration = Duration::from_secs(3_600);
/// Most objects in one response to a pull; clients ask for a thousand.
pub const PULLED_MAX: usize = 10_000;
/// Longest answer. Who asks for more is told to fetch it piece by piece.
pub const RESPONSE_LEN_MAX: usize = 64 << 20;

/// Answers CIM-XML requests from what a broker serves.
pub struct CimXml<C: Caller> {
    pub(super) broker: Arc<Broker<C>>,
    pub(super) contexts: Contexts<C, Pulled>,
}

impl<C: Caller> CimXml<C> {
    /// A server without open enumerations.
    pub fn new(broker: Arc<Broker<C>>) -> Self {
        CimXml { broker, contexts: Contexts::default() }
    }

    /// Answers a request of a caller who is known already. `now` is the time since some moment that stays the same.
    pub async fn handle(&self, request: HttpRequest<'_>, caller: &C, now: Duration) -> HttpResponse {
        match self.read(&request) {
            Ok(message) => self.answer(message, caller, now).await,
            Err(bad) => reply::bad_request(&bad),
        }
    }

    fn read(&self, request: &HttpRequest<'_>) -> Result<Message, BadRequest> {
        let headers = Headers::read(request)?;
        if let Some(media_type) = request.media_type()
            && !["application/xml", "text/xml"].contains(&media_type.as_str())
        {
            return Err(BadRequest::new(415, "request-not-valid", format!("{media_type} is no XML")));
        }
        if request.body.len() > Bounds::REQUEST.bytes {
            return Err(BadRequest::new(413, "request-not-valid", "the request is too long"));
        }
        let text = xml::decode(request.body, request.charset().as_deref());
        let text = text.map_err(|err| BadRequest::new(400, "request-not-well-formed", err))?;
        let message = message::parse(&text)?;
        headers.check(&message)?;
        Ok(message)
    }

    async fn answer(&self, message: Message, caller: &C, now: Duration) -> HttpResponse {
        let id = &message.id;
        match message.call {
            MessageCall::Intrinsic { name, namespace, parameters } => {
                let outcome = match parameters {
                    Ok(parameters) => {
                        let request = Request::new(caller, namespace, now);
                        self.operation(&name, &request, Parameters::new(parameters)).await
                    }
                    Err(err) => Err(unreadable(&err)),
                };
                reply::response(id, Frame::Intrinsic(&name), bounded(outcome))
            }
            MessageCall::Extrinsic { name, target, parameters } => {
                let outcome = match parameters {
                    Ok(parameters) => self.method(&name, target, parameters, caller, now).await,
                    Err(err) => Err(unreadable(&err)),
                };
                reply::response(id, Frame::Extrinsic(&name), bounded(outcome))
            }
        }
    }
}

fn bounded(outcome: Result<String, Status>) -> Result<String, Status> {
    match outcome {
        Ok(answer) if answer.len() > RESPONSE_LEN_MAX => Err(Status::new(
            StatusCode::ServerLimitsExceeded,
            "the answer is too long; fetch it with a pulled enumeration",
        )),
        outcome => outcome,
    }
}

#[cfg(test)]
mod tests;
