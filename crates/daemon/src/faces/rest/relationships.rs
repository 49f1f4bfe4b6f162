//! `/api/v1/relationships`, with recovery points and failover below each.

use axum::Json;
use axum::extract::State;
use axum::response::Response;
use understudy_model::{Millis, Refusal, ReturnCode};

use super::answers::{ApiError, done};
use super::convert::point_every;
use super::extract::{Allowed, Asked, Body, Named};
use super::time::read_time;
use super::types::{CycleQuery, Leg};
use super::{Api, Listed, Shown, types};
use crate::operations::{
    Administer, Done, Failover, InitialReplication, Operate, ReplicationCreate, ReplicationSeed, ReplicationStart, View,
};

/// Lists all relationships.
#[utoipa::path(get, path = "/api/v1/relationships", tag = "relationships", operation_id = "relationship_list",
    responses((status = 200, body = [types::Relationship]), (status = "default", body = types::Error)))]
pub(super) async fn list(Allowed(permit): Allowed<View>, State(api): State<Api>) -> Listed<types::Relationship> {
    let all = api.operations.replication_list(&permit).await?;
    Ok(Json(all.into_iter().map(Into::into).collect()))
}

/// Makes a relationship: a VM of this host is to be replicated to a peer. Nothing is copied before it is started.
#[utoipa::path(post, path = "/api/v1/relationships", tag = "relationships", operation_id = "relationship_create",
    request_body = types::RelationshipCreate,
    responses((status = 202, body = types::RelationshipAnswer), (status = "default", body = types::Error)))]
pub(super) async fn create(
    Allowed(permit): Allowed<Operate>,
    State(api): State<Api>,
    Body(body): Body<types::RelationshipCreate>,
) -> Result<Response, ApiError> {
    let request = ReplicationCreate {
        vm: body.vm,
        peer: body.peer,
        interval: body.interval_ms.map(Millis),
        points: body.points,
        point_every: body.point_every_ms.map(point_every),
        application_consistent_every: body.application_consistent_every_ms.map(Millis),
        compression: body.compression,
        auto_resync: body.auto_resync.map(Into::into),
        excluded_disks: body.excluded_disks.iter().map(|d| d.parse().unwrap_or_else(|e| match e {})).collect(),
    };
    let made = api.operations.replication_create(&permit, request).await?;
    let code = made.code();
    let job = api.job(made.job);
    let answer = types::RelationshipAnswer { return_value: code.value(), job, relationship: made.value.into() };
    Ok(done(code, answer))
}

/// Shows a relationship.
#[utoipa::path(get, path = "/api/v1/relationships/{vm}", tag = "relationships", operation_id = "relationship_show",
    params(("vm" = String, Path, description = "name or identity"), Leg),
    responses((status = 200, body = types::Relationship), (status = "default", body = types::Error)))]
pub(super) async fn show(
    Allowed(permit): Allowed<View>,
    State(api): State<Api>,
    Named(vm): Named,
    Asked(leg): Asked<Leg>,
) -> Shown<types::Relationship> {
    let shown = api.operations.replication_show(&permit, &vm, leg.leg).await;
    Ok(Json(shown.map_err(ApiError::of_path)?.into()))
}

/// Ends a relationship on this host. What the other side holds stays there.
#[utoipa::path(delete, path = "/api/v1/relationships/{vm}", tag = "relationships", operation_id = "relationship_remove",
    params(("vm" = String, Path, description = "name or identity"), Leg),
    responses((status = 202, body = types::Answer), (status = "default", body = types::Error)))]
pub(super) async fn remove(
    Allowed(permit): Allowed<Administer>,
    State(api): State<Api>,
    Named(vm): Named,
    Asked(leg): Asked<Leg>,
) -> Result<Response, ApiError> {
    let removed = api.operations.replication_remove(&permit, vm, leg.leg).await?;
    Ok(api.answer(removed))
}

/// Starts initial replication (`StartReplication`). The job follows it to its end.
#[utoipa::path(post, path = "/api/v1/relationships/{vm}/start", tag = "relationships",
    operation_id = "relationship_start", request_body = types::RelationshipStart,
    params(("vm" = String, Path, description = "name or identity"), Leg),
    responses((status = 202, body = types::Answer), (status = "default", body = types::Error)))]
pub(super) async fn start(
    Allowed(permit): Allowed<Operate>,
    State(api): State<Api>,
    Named(vm): Named,
    Asked(leg): Asked<Leg>,
    Body(body): Body<types::RelationshipStart>,
) -> Result<Response, ApiError> {
    let initial = match body.initial_replication_type.unwrap_or(1) {
        1 => InitialReplication::Network,
        2 => InitialReplication::Export {
            location: body.export_location.filter(|text| !text.is_empty()).map(Into::into),
        },
        3 => InitialReplication::Seeded,
        other => {
            let reason = format!("there is no type {other} of initial replication: 1 network, 2 export, 3 seeded");
            return Err(Refusal::new(ReturnCode::InvalidParameter, reason).into());
        }
    };
    let at = body.start_time.as_deref().map(read_time).transpose()?;
    let request = ReplicationStart { vm, leg: leg.leg, initial, at };
    Ok(api.answer(api.operations.replication_start(&permit, request).await?))
}

/// Places an image on this replica host that a seeded initial replication begins with.
#[utoipa::path(post, path = "/api/v1/relationships/{vm}/seed", tag = "relationships",
    operation_id = "relationship_seed", request_body = types::RelationshipSeed,
    params(("vm" = String, Path, description = "name or identity"), Leg),
    responses((status = 202, body = types::Answer), (status = "default", body = types::Error)))]
pub(super) async fn seed(
    Allowed(permit): Allowed<Administer>,
    State(api): State<Api>,
    Named(vm): Named,
    Asked(leg): Asked<Leg>,
    Body(body): Body<types::RelationshipSeed>,
) -> Result<Response, ApiError> {
    let disk = body.disk.parse();
    let disk = disk.map_err(|err: understudy_model::id::ParseIdError| {
        Refusal::new(ReturnCode::InvalidParameter, err.to_string())
    })?;
    let request =
        ReplicationSeed { vm, leg: leg.leg, disk, path: body.path.into(), format: body.format, take: body.take };
    Ok(api.answer(api.operations.replication_seed(&permit, request).await?))
}

/// Compares both sides and repairs the replica (`Resynchronize`). The job follows it to its end.
#[utoipa::path(post, path = "/api/v1/relationships/{vm}/resync", tag = "relationships",
    operation_id = "relationship_resync", request_body = types::RelationshipResync,
    params(("vm" = String, Path, description = "name or identity"), Leg),
    responses((status = 202, body = types::Answer), (status = "default", body = types::Error)))]
pub(super) async fn resync(
    Allowed(permit): Allowed<Operate>,
    State(api): State<Api>,
    Named(vm): Named,
    Asked(leg): Asked<Leg>,
    Body(body): Body<types::RelationshipResync>,
) -> Result<Response, ApiError> {
    let at = body.start_time.as_deref().map(read_time).transpose()?;
    Ok(api.answer(api.operations.replication_resync(&permit, &vm, leg.leg, at).await?))
}

/// Gives up an initial replication or a resynchronisation, under way or to begin later.
#[utoipa::path(post, path = "/api/v1/relationships/{vm}/stop", tag = "relationships",
    operation_id = "relationship_stop",
    params(("vm" = String, Path, description = "name or identity"), Leg),
    responses((status = 200, body = types::Answer), (status = "default", body = types::Error)))]
pub(super) async fn stop(
    Allowed(permit): Allowed<Operate>,
    State(api): State<Api>,
    Named(vm): Named,
    Asked(leg): Asked<Leg>,
) -> Result<Response, ApiError> {
    Ok(api.answer(api.operations.replication_stop(&permit, &vm, leg.leg).await?))
}

/// Pauses replication on this host.
#[utoipa::path(post, path = "/api/v1/relationships/{vm}/suspend", tag = "relationships",
    operation_id = "relationship_suspend",
    params(("vm" = String, Path, description = "name or identity"), Leg),
    responses((status = 200, body = types::Answer), (status = "default", body = types::Error)))]
pub(super) async fn suspend(
    Allowed(permit): Allowed<Operate>,
    State(api): State<Api>,
    Named(vm): Named,
    Asked(leg): Asked<Leg>,
) -> Result<Response, ApiError> {
    Ok(api.answer(api.operations.replication_suspend(&permit, &vm, leg.leg).await?))
}

/// Goes on with replication.
#[utoipa::path(post, path = "/api/v1/relationships/{vm}/resume", tag = "relationships",
    operation_id = "relationship_resume",
    params(("vm" = String, Path, description = "name or identity"), Leg),
    responses((status = 200, body = types::Answer), (status = "default", body = types::Error)))]
pub(super) async fn resume(
    Allowed(permit): Allowed<Operate>,
    State(api): State<Api>,
    Named(vm): Named,
    Asked(leg): Asked<Leg>,
) -> Result<Response, ApiError> {
    Ok(api.answer(api.operations.replication_resume(&permit, &vm, leg.leg).await?))
}

/// Replaces the settings.
#[utoipa::path(put, path = "/api/v1/relationships/{vm}/settings", tag = "relationships",
    operation_id = "relationship_modify", request_body = types::SettingsUpdate,
    params(("vm" = String, Path, description = "name or identity"), Leg),
    responses((status = 200, body = types::Answer), (status = "default", body = types::Error)))]
pub(super) async fn modify(
    Allowed(permit): Allowed<Operate>,
    State(api): State<Api>,
    Named(vm): Named,
    Asked(leg): Asked<Leg>,
    Body(body): Body<types::SettingsUpdate>,
) -> Result<Response, ApiError> {
    let settings = body.try_into()?;
    Ok(api.answer(api.operations.replication_modify(&permit, &vm, leg.leg, settings).await?))
}

/// The latest cycles, newest first.
#[utoipa::path(get, path = "/api/v1/relationships/{vm}/cycles", tag = "relationships",
    operation_id = "relationship_cycles",
    params(("vm" = String, Path, description = "name or identity"), CycleQuery),
    responses((status = 200, body = [types::Cycle]), (status = "default", body = types::Error)))]
pub(super) async fn cycles(
    Allowed(permit): Allowed<View>,
    State(api): State<Api>,
    Named(vm): Named,
    Asked(query): Asked<CycleQuery>,
) -> Listed<types::Cycle> {
    let cycles = api.operations.replication_history(&permit, &vm, query.leg, query.count).await;
    Ok(Json(cycles.map_err(ApiError::of_path)?.into_iter().map(Into::into).collect()))
}

/// What replication did since the service started or the last reset (`GetReplicationStatisticsEx`).
#[utoipa::path(get, path = "/api/v1/relationships/{vm}/statistics", tag = "relationships",
    operation_id = "relationship_statistics",
    params(("vm" = String, Path, description = "name or identity"), Leg),
    responses((status = 200, body = types::StatisticsReport), (status = "default", body = types::Error)))]
pub(super) async fn statistics(
    Allowed(permit): Allowed<View>,
    State(api): State<Api>,
    Named(vm): Named,
    Asked(leg): Asked<Leg>,
) -> Shown<types::StatisticsReport> {
    let counted = api.operations.replication_statistics(&permit, &vm, leg.leg).await.map_err(ApiError::of_path)?;
    Ok(Json(counted.into()))
}

/// Counts from now on (`ResetReplicationStatisticsEx`).
#[utoipa::path(post, path = "/api/v1/relationships/{vm}/statistics/reset", tag = "relationships",
    operation_id = "relationship_statistics_reset",
    params(("vm" = String, Path, description = "name or identity"), Leg),
    responses((status = 200, body = types::Answer), (status = "default", body = types::Error)))]
pub(super) async fn statistics_reset(
    Allowed(permit): Allowed<Operate>,
    State(api): State<Api>,
    Named(vm): Named,
    Asked(leg): Asked<Leg>,
) -> Result<Response, ApiError> {
    Ok(api.answer(api.operations.replication_reset_statistics(&permit, &vm, leg.leg).await?))
}

/// The recovery points of a VM replicated to this host, oldest first.
#[utoipa::path(get, path = "/api/v1/relationships/{vm}/points", tag = "failover", operation_id = "point_list",
    params(("vm" = String, Path, description = "name or identity"), Leg),
    responses((status = 200, body = [types::Point]), (status = "default", body = types::Error)))]
pub(super) async fn points(
    Allowed(permit): Allowed<View>,
    State(api): State<Api>,
    Named(vm): Named,
    Asked(leg): Asked<Leg>,
) -> Listed<types::Point> {
    let points = api.operations.point_list(&permit, &vm, leg.leg).await.map_err(ApiError::of_path)?;
    Ok(Json(points.into_iter().map(Into::into).collect()))
}

/// Fails over: makes a recovery point startable, and starts the VM from it if asked to.
#[utoipa::path(post, path = "/api/v1/relationships/{vm}/failover/start", tag = "failover",
    operation_id = "failover_start", request_body = types::FailoverStart,
    params(("vm" = String, Path, description = "name or identity")),
    responses((status = 202, body = types::Answer), (status = "default", body = types::Error)))]
pub(super) async fn failover_start(
    Allowed(permit): Allowed<Failover>,
    State(api): State<Api>,
    Named(vm): Named,
    Body(body): Body<types::FailoverStart>,
) -> Result<Response, ApiError> {
    let point = body.point.as_deref().map(str::parse).transpose();
    let point = point.map_err(|err: understudy_model::id::ParseIdError| {
        Refusal::new(ReturnCode::InvalidParameter, err.to_string())
    })?;
    Ok(api.answer(api.operations.failover_start(&permit, vm, point, body.power_on).await?))
}

/// Throws a failover away; what the VM wrote since is lost.
#[utoipa::path(post, path = "/api/v1/relationships/{vm}/failover/revert", tag = "failover",
    operation_id = "failover_revert",
    params(("vm" = String, Path, description = "name or identity")),
    responses((status = 202, body = types::Answer), (status = "default", body = types::Error)))]
pub(super) async fn failover_revert(
    Allowed(permit): Allowed<Failover>,
    State(api): State<Api>,
    Named(vm): Named,
) -> Result<Response, ApiError> {
    Ok(api.answer(api.operations.failover_revert(&permit, vm).await?))
}

/// Makes a failover final; the other recovery points go.
#[utoipa::path(post, path = "/api/v1/relationships/{vm}/failover/commit", tag = "failover",
    operation_id = "failover_commit",
    params(("vm" = String, Path, description = "name or identity")),
    responses((status = 202, body = types::Answer), (status = "default", body = types::Error)))]
pub(super) async fn failover_commit(
    Allowed(permit): Allowed<Failover>,
    State(api): State<Api>,
    Named(vm): Named,
) -> Result<Response, ApiError> {
    Ok(api.answer(api.operations.failover_commit(&permit, vm).await?))
}

impl Api {
    /// The answer to a call that was carried out.
    pub(super) fn answer(&self, answered: Done) -> Response {
        let code = answered.code();
        done(code, types::Answer { return_value: code.value(), job: self.job(answered.job) })
    }

    fn job(&self, id: Option<understudy_model::JobId>) -> Option<types::Job> {
        self.operations.job_of_answer(id?).map(Into::into)
    }
}
