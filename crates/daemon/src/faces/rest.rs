//! REST and its OpenAPI document, on the daemon's unix socket: what the command line and the console use.
//!
//! `/api/v1/…` takes and gives JSON of the types in [`types`]; `/api/v1/events` is a stream of server-sent events;
//! `/metrics` is for Prometheus. The document is made from the handlers, so it cannot say something else than they do.
//!
//! Who may call is settled when the connection is taken ([`server`]), before a byte is read. Each handler asks for the
//! right it needs before it looks at anything the caller sent.

mod answers;
mod convert;
mod events;
mod extract;
mod hosts;
mod jobs;
mod peers;
mod reference;
mod relationships;
pub mod server;
mod time;
pub mod types;
mod vms;

use std::sync::Arc;

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::{Json, Router};
use tokio_util::sync::CancellationToken;
use utoipa::OpenApi;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::metrics::{CONTENT_TYPE, Metrics};
use crate::operations::{Operations, View};
use answers::ApiError;
use extract::Allowed;
pub use reference::reference;

/// What the handlers work with.
#[derive(Clone)]
pub struct Api {
    operations: Operations,
    metrics: Arc<Metrics>,
    /// Ends streams that would otherwise go on for ever.
    stop: CancellationToken,
}

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Understudy",
        description = "Replication of virtual machines between hosts. Every call that changes something answers with \
                       `return_value`: 0 when it is done, 4096 when a job goes on with it; a call that is not carried \
                       out changes nothing and answers with an Error."
    ),
    tags(
        (name = "host", description = "This host"),
        (name = "vms", description = "The VMs of this host"),
        (name = "peers", description = "The hosts this one trusts"),
        (name = "relationships", description = "Replication"),
        (name = "failover", description = "Recovery points and failover, on the replica"),
        (name = "jobs", description = "Long work"),
    )
)]
struct Document;

/// The routes, and the document that describes them.
fn routes() -> (Router<Api>, utoipa::openapi::OpenApi) {
    OpenApiRouter::with_openapi(Document::openapi())
        .routes(routes!(hosts::show))
        .routes(routes!(vms::list, vms::add))
        .routes(routes!(vms::show, vms::remove))
        .routes(routes!(peers::list))
        .routes(routes!(peers::invite))
        .routes(routes!(peers::join))
        .routes(routes!(peers::remove))
        .routes(routes!(peers::test))
        .routes(routes!(relationships::list, relationships::create))
        .routes(routes!(relationships::show, relationships::remove))
        .routes(routes!(relationships::start))
        .routes(routes!(relationships::seed))
        .routes(routes!(relationships::resync))
        .routes(routes!(relationships::stop))
        .routes(routes!(relationships::suspend))
        .routes(routes!(relationships::resume))
        .routes(routes!(relationships::modify))
        .routes(routes!(relationships::cycles))
        .routes(routes!(relationships::statistics))
        .routes(routes!(relationships::statistics_reset))
        .routes(routes!(relationships::points))
        .routes(routes!(relationships::failover_start))
        .routes(routes!(relationships::failover_revert))
        .routes(routes!(relationships::failover_commit))
        .routes(routes!(jobs::list))
        .routes(routes!(jobs::show))
        .routes(routes!(jobs::wait))
        .routes(routes!(jobs::cancel))
        .routes(routes!(events::stream))
        .split_for_parts()
}

/// The OpenAPI document, as text.
pub fn document() -> String {
    let mut text = routes().1.to_pretty_json().expect("the document is made of texts and can be written as JSON");
    text.push('\n');
    text
}

/// Everything the unix socket serves.
pub fn router(operations: Operations, metrics: Arc<Metrics>, stop: CancellationToken) -> Router {
    let api = Api { operations, metrics, stop };
    let (routes, _) = routes();
    routes
        .route("/api/v1/openapi.json", axum::routing::get(openapi))
        .route("/metrics", axum::routing::get(scrape))
        .fallback(nowhere)
        .method_not_allowed_fallback(no_such_method)
        .with_state(api)
}

async fn openapi(_: Allowed<View>) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], document()).into_response()
}

async fn scrape(State(api): State<Api>, _: Allowed<View>) -> Response {
    match api.metrics.render() {
        Ok(text) => ([(header::CONTENT_TYPE, CONTENT_TYPE)], text).into_response(),
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

async fn nowhere() -> ApiError {
    ApiError::protocol(StatusCode::NOT_FOUND, "there is nothing at this path")
}

async fn no_such_method() -> ApiError {
    ApiError::protocol(StatusCode::METHOD_NOT_ALLOWED, "this path does not take that method")
}

type Listed<T> = Result<Json<Vec<T>>, ApiError>;
type Shown<T> = Result<Json<T>, ApiError>;
