//! `/api/v1/vms`

use axum::Json;
use axum::extract::State;
use axum::response::Response;

use super::answers::{ApiError, done};
use super::extract::{Allowed, Body, Named};
use super::{Api, Listed, Shown, types};
use crate::operations::{Operate, View, VmAdd};

/// Lists the VMs of this host.
#[utoipa::path(get, path = "/api/v1/vms", tag = "vms", operation_id = "vm_list",
    responses((status = 200, body = [types::Vm]), (status = "default", body = types::Error)))]
pub(super) async fn list(Allowed(permit): Allowed<View>, State(api): State<Api>) -> Listed<types::Vm> {
    let vms = api.operations.vm_list(&permit).await?;
    Ok(Json(vms.into_iter().map(Into::into).collect()))
}

/// Adds a VM that is running already.
#[utoipa::path(post, path = "/api/v1/vms", tag = "vms", operation_id = "vm_add", request_body = types::VmAdd,
    responses((status = 200, body = types::VmAnswer), (status = "default", body = types::Error)))]
pub(super) async fn add(
    Allowed(permit): Allowed<Operate>,
    State(api): State<Api>,
    Body(body): Body<types::VmAdd>,
) -> Result<Response, ApiError> {
    let request = VmAdd { name: body.name, qmp: body.qmp, definition: body.definition };
    let added = api.operations.vm_add(&permit, request).await?;
    let code = added.code();
    Ok(done(code, types::VmAnswer { return_value: code.value(), vm: added.value.into() }))
}

/// Shows a VM, and what it does now.
#[utoipa::path(get, path = "/api/v1/vms/{vm}", tag = "vms", operation_id = "vm_show",
    params(("vm" = String, Path, description = "name or identity")),
    responses((status = 200, body = types::Vm), (status = "default", body = types::Error)))]
pub(super) async fn show(Allowed(permit): Allowed<View>, State(api): State<Api>, Named(vm): Named) -> Shown<types::Vm> {
    Ok(Json(api.operations.vm_show(&permit, &vm).await.map_err(ApiError::of_path)?.into()))
}

/// Takes a VM off the list. The VM itself is not touched.
#[utoipa::path(delete, path = "/api/v1/vms/{vm}", tag = "vms", operation_id = "vm_remove",
    params(("vm" = String, Path, description = "name or identity")),
    responses((status = 200, body = types::Answer), (status = "default", body = types::Error)))]
pub(super) async fn remove(
    Allowed(permit): Allowed<Operate>,
    State(api): State<Api>,
    Named(vm): Named,
) -> Result<Response, ApiError> {
    let removed = api.operations.vm_remove(&permit, vm).await?;
    Ok(done(removed.code(), types::Answer { return_value: removed.code().value(), job: None }))
}
