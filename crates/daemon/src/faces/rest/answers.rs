//! Refusals as HTTP answers.

use axum::Json;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use understudy_model::{Refusal, ReturnCode};

use super::types;

/// An answer that says no.
#[derive(Debug, Clone)]
pub(super) struct ApiError {
    status: StatusCode,
    body: types::Error,
}

impl ApiError {
    /// The request did not reach the service.
    pub(super) fn protocol(status: StatusCode, reason: &str) -> Self {
        let name = status.canonical_reason().unwrap_or("HTTP error").to_owned();
        Self { status, body: types::Error { code: 0, name, reason: reason.to_owned(), hint: String::new() } }
    }

    /// What the path names is not there.
    pub(super) fn of_path(refusal: Refusal) -> Self {
        let mut error = Self::from(refusal);
        if error.status == StatusCode::BAD_REQUEST {
            error.status = StatusCode::NOT_FOUND;
        }
        error
    }
}

impl From<Refusal> for ApiError {
    fn from(refusal: Refusal) -> Self {
        let name = refusal.code.name().to_owned();
        let body = types::Error { code: refusal.code.value(), name, reason: refusal.reason, hint: refusal.hint };
        Self { status: status(refusal.code), body }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        (self.status, Json(self.body)).into_response()
    }
}

/// The HTTP status of a return code.
fn status(code: ReturnCode) -> StatusCode {
    match code {
        ReturnCode::Completed => StatusCode::OK,
        ReturnCode::JobStarted => StatusCode::ACCEPTED,
        ReturnCode::AccessDenied => StatusCode::FORBIDDEN,
        ReturnCode::NotSupported => StatusCode::NOT_IMPLEMENTED,
        ReturnCode::InvalidParameter | ReturnCode::IncorrectDataType => StatusCode::BAD_REQUEST,
        ReturnCode::InvalidState | ReturnCode::SystemInUse => StatusCode::CONFLICT,
        ReturnCode::FileNotFound => StatusCode::UNPROCESSABLE_ENTITY,
        ReturnCode::OutOfMemory => StatusCode::TOO_MANY_REQUESTS,
        ReturnCode::NotAvailable => StatusCode::SERVICE_UNAVAILABLE,
        ReturnCode::Timeout => StatusCode::GATEWAY_TIMEOUT,
        ReturnCode::Failed | ReturnCode::StatusUnknown => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

/// A call that was carried out: the status that fits its return value, and its body.
pub(super) fn done<T: serde::Serialize>(code: ReturnCode, body: T) -> Response {
    (status(code), Json(body)).into_response()
}
