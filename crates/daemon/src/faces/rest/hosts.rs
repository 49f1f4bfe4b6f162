//! `/api/v1/host`

use axum::Json;
use axum::extract::State;

use super::extract::Allowed;
use super::{Api, Shown, types};
use crate::operations::View;

/// Shows this host.
#[utoipa::path(get, path = "/api/v1/host", tag = "host", operation_id = "host_show",
    responses((status = 200, body = types::Host), (status = "default", body = types::Error)))]
pub(super) async fn show(Allowed(permit): Allowed<View>, State(api): State<Api>) -> Shown<types::Host> {
    Ok(Json(api.operations.host_show(&permit).await?.into()))
}
