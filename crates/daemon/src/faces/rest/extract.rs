//! What handlers take out of a request, in the order in which it is checked: the right first, then the rest.

use axum::extract::{FromRequest, FromRequestParts, Path, Query, Request};
use axum::http::StatusCode;
use axum::http::request::Parts;
use serde::de::DeserializeOwned;
use understudy_model::{Refusal, ReturnCode};

use super::answers::ApiError;
use crate::operations::access::{Caller, Permit, Right};

/// The right `R` of whoever holds the connection. Comes first among a handler's arguments.
pub(super) struct Allowed<R: Right>(pub(super) Permit<R>);

impl<S: Send + Sync, R: Right> FromRequestParts<S> for Allowed<R> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        let caller = parts.extensions.get::<Caller>();
        let denied = || Refusal::new(ReturnCode::AccessDenied, "the caller is not known");
        Ok(Self(caller.ok_or_else(denied)?.permit()?))
    }
}

/// One part of the path.
pub(super) struct Named(pub(super) String);

impl<S: Send + Sync> FromRequestParts<S> for Named {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let path = Path::<String>::from_request_parts(parts, state).await;
        path.map(|Path(name)| Self(name)).map_err(|_| bad("the path is not UTF-8"))
    }
}

/// The query.
pub(super) struct Asked<T>(pub(super) T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for Asked<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let query = Query::<T>::from_request_parts(parts, state).await;
        query.map(|Query(asked)| Self(asked)).map_err(|err| {
            Refusal::new(ReturnCode::IncorrectDataType, format!("the query is not understood: {}", chain(&err))).into()
        })
    }
}

/// The body. An empty one is taken for `{}`.
pub(super) struct Body<T>(pub(super) T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Body<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        let bytes = axum::body::Bytes::from_request(request, state).await.map_err(|rejection| {
            ApiError::protocol(rejection.status(), "the request's body is too large or came to no end")
        })?;
        let bytes: &[u8] = if bytes.is_empty() { b"{}" } else { &bytes };
        serde_json::from_slice(bytes).map(Self).map_err(|err| {
            if err.is_data() {
                Refusal::new(ReturnCode::IncorrectDataType, format!("the request's body is not understood: {err}"))
                    .into()
            } else {
                bad(&format!("the request's body is not JSON: {err}"))
            }
        })
    }
}

fn bad(reason: &str) -> ApiError {
    ApiError::protocol(StatusCode::BAD_REQUEST, reason)
}

fn chain(err: &dyn std::error::Error) -> String {
    crate::chain(err)
}
