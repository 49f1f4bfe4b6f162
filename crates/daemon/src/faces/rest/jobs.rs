//! `/api/v1/jobs`

use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::response::Response;
use understudy_model::{JobId, Refusal, ReturnCode};

use super::answers::{ApiError, done};
use super::extract::{Allowed, Asked, Named};
use super::types::WaitQuery;
use super::{Api, Listed, Shown, types};
use crate::operations::{Operate, View};

/// Longest wait: below the shortest time limit a proxy is likely to have.
const WAIT_SECONDS_MAX: u64 = 50;

/// Lists all jobs, newest first.
#[utoipa::path(get, path = "/api/v1/jobs", tag = "jobs", operation_id = "job_list",
    responses((status = 200, body = [types::Job]), (status = "default", body = types::Error)))]
pub(super) async fn list(Allowed(permit): Allowed<View>, State(api): State<Api>) -> Listed<types::Job> {
    Ok(Json(api.operations.job_list(&permit).into_iter().map(Into::into).collect()))
}

/// Shows a job.
#[utoipa::path(get, path = "/api/v1/jobs/{job}", tag = "jobs", operation_id = "job_show",
    params(("job" = String, Path, description = "identity")),
    responses((status = 200, body = types::Job), (status = "default", body = types::Error)))]
pub(super) async fn show(
    Allowed(permit): Allowed<View>,
    State(api): State<Api>,
    Named(job): Named,
) -> Shown<types::Job> {
    let job = api.operations.job_show(&permit, read_id(&job)?).map_err(ApiError::of_path)?;
    Ok(Json(job.into()))
}

/// Waits for a job's end, for a while; then shows it as it is.
#[utoipa::path(get, path = "/api/v1/jobs/{job}/wait", tag = "jobs", operation_id = "job_wait",
    params(("job" = String, Path, description = "identity"), WaitQuery),
    responses((status = 200, body = types::Job), (status = "default", body = types::Error)))]
pub(super) async fn wait(
    Allowed(permit): Allowed<View>,
    State(api): State<Api>,
    Named(job): Named,
    Asked(query): Asked<WaitQuery>,
) -> Shown<types::Job> {
    let limit = Duration::from_secs(query.seconds.min(WAIT_SECONDS_MAX));
    let job = api.operations.job_wait(&permit, read_id(&job)?, limit).await.map_err(ApiError::of_path)?;
    Ok(Json(job.into()))
}

/// Asks a job to end early.
#[utoipa::path(post, path = "/api/v1/jobs/{job}/cancel", tag = "jobs", operation_id = "job_cancel",
    params(("job" = String, Path, description = "identity")),
    responses((status = 200, body = types::JobAnswer), (status = "default", body = types::Error)))]
pub(super) async fn cancel(
    Allowed(permit): Allowed<Operate>,
    State(api): State<Api>,
    Named(job): Named,
) -> Result<Response, ApiError> {
    let cancelled = api.operations.job_cancel(&permit, read_id(&job)?).await?;
    let code = cancelled.code();
    Ok(done(code, types::JobAnswer { return_value: code.value(), job: cancelled.value.into() }))
}

fn read_id(text: &str) -> Result<JobId, Refusal> {
    text.parse()
        .map_err(|err: understudy_model::id::ParseIdError| Refusal::new(ReturnCode::InvalidParameter, err.to_string()))
}
