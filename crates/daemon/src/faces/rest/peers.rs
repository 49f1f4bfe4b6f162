//! `/api/v1/peers`

use axum::Json;
use axum::extract::State;
use axum::response::Response;

use super::answers::{ApiError, done};
use super::extract::{Allowed, Body, Named};
use super::{Api, Listed, types};
use crate::clock::label;
use crate::operations::{Administer, PeerJoin, View};

/// Lists the hosts this one trusts.
#[utoipa::path(get, path = "/api/v1/peers", tag = "peers", operation_id = "peer_list",
    responses((status = 200, body = [types::Peer]), (status = "default", body = types::Error)))]
pub(super) async fn list(Allowed(permit): Allowed<View>, State(api): State<Api>) -> Listed<types::Peer> {
    let peers = api.operations.peer_list(&permit).await?;
    Ok(Json(peers.into_iter().map(Into::into).collect()))
}

/// Makes an invitation: a token that serves once and ends. The host that presents it may replicate to this one.
#[utoipa::path(post, path = "/api/v1/peers/invite", tag = "peers", operation_id = "peer_invite",
    responses((status = 200, body = types::InviteAnswer), (status = "default", body = types::Error)))]
pub(super) async fn invite(Allowed(permit): Allowed<Administer>, State(api): State<Api>) -> Result<Response, ApiError> {
    let made = api.operations.peer_invite(&permit).await?;
    let code = made.code();
    let answer = types::InviteAnswer {
        return_value: code.value(),
        token: made.value.to_text(),
        expires_at: label(made.value.expires_at),
        addresses: made.value.addresses,
    };
    Ok(done(code, answer))
}

/// Accepts an invitation: both hosts then know each other's key.
#[utoipa::path(post, path = "/api/v1/peers/join", tag = "peers", operation_id = "peer_join",
    request_body = types::PeerJoin,
    responses((status = 200, body = types::PeerAnswer), (status = "default", body = types::Error)))]
pub(super) async fn join(
    Allowed(permit): Allowed<Administer>,
    State(api): State<Api>,
    Body(body): Body<types::PeerJoin>,
) -> Result<Response, ApiError> {
    let joined = api.operations.peer_join(&permit, PeerJoin { token: body.token }).await?;
    let code = joined.code();
    Ok(done(code, types::PeerAnswer { return_value: code.value(), peer: joined.value.into() }))
}

/// Tests the connection to a trusted host (`TestReplicationConnection`).
#[utoipa::path(post, path = "/api/v1/peers/{peer}/test", tag = "peers", operation_id = "peer_test",
    params(("peer" = String, Path, description = "name, identity, or the beginning of an identity")),
    responses((status = 202, body = types::Answer), (status = "default", body = types::Error)))]
pub(super) async fn test(
    Allowed(permit): Allowed<Administer>,
    State(api): State<Api>,
    Named(peer): Named,
) -> Result<Response, ApiError> {
    Ok(api.answer(api.operations.peer_test(&permit, &peer).await?))
}

/// Withdraws trust from a host, at once. Relationships with it stay and stand still.
#[utoipa::path(delete, path = "/api/v1/peers/{peer}", tag = "peers", operation_id = "peer_remove",
    params(("peer" = String, Path, description = "name, identity, or the beginning of an identity")),
    responses((status = 200, body = types::PeerRemovedAnswer), (status = "default", body = types::Error)))]
pub(super) async fn remove(
    Allowed(permit): Allowed<Administer>,
    State(api): State<Api>,
    Named(peer): Named,
) -> Result<Response, ApiError> {
    let removed = api.operations.peer_remove(&permit, peer).await?;
    let code = removed.code();
    let answer = types::PeerRemovedAnswer {
        return_value: code.value(),
        id: removed.value.id.to_string(),
        name: removed.value.name,
        relationships: removed.value.relationships.into_iter().map(Into::into).collect(),
    };
    Ok(done(code, answer))
}
