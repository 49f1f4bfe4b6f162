//! `/api/v1/events`: what changes, as it changes.

use std::convert::Infallible;

use axum::extract::State;
use axum::response::sse::{Event, KeepAlive, Sse};
use futures::stream::{Stream, unfold};
use serde::Serialize;
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;

use super::extract::Allowed;
use super::{Api, types};
use crate::events::Notice;
use crate::operations::access::{Permit, View};

/// A stream of events, as they happen. `job` and `relationship` carry the object as it is now; `relationship-removed`
/// a RelationshipRef; `vm`, `vm-removed`, `peer`, `peer-removed` an `id`; `lagged` says how many events were `missed`
/// because this reader was too slow: it should look at everything anew.
#[utoipa::path(get, path = "/api/v1/events", tag = "host", operation_id = "events",
    responses((status = 200, content_type = "text/event-stream", body = String),
              (status = "default", body = types::Error)))]
pub(super) async fn stream(
    Allowed(permit): Allowed<View>,
    State(api): State<Api>,
) -> Sse<impl Stream<Item = Result<Event, Infallible>>> {
    let notices = api.operations.events().listen();
    Sse::new(unfold((api, permit, notices), next)).keep_alive(KeepAlive::default())
}

type Position = (Api, Permit<View>, Receiver<Notice>);

async fn next((api, permit, mut notices): Position) -> Option<(Result<Event, Infallible>, Position)> {
    loop {
        let notice = tokio::select! {
            () = api.stop.cancelled() => return None,
            notice = notices.recv() => notice,
        };
        let event = match notice {
            Ok(notice) => told(&api, &permit, notice),
            Err(RecvError::Lagged(missed)) => Some(event("lagged", &Missed { missed })),
            Err(RecvError::Closed) => return None,
        };
        if let Some(event) = event {
            return Some((Ok(event), (api, permit, notices)));
        }
    }
}

/// A notice as an event. A relationship that is gone by now has nothing to show; its removal follows.
fn told(api: &Api, permit: &Permit<View>, notice: Notice) -> Option<Event> {
    let id = |name, id: &dyn std::fmt::Display| Some(event(name, &Id { id: id.to_string() }));
    match notice {
        Notice::Job(job) => Some(event("job", &types::Job::from(*job))),
        Notice::Relationship(of) => {
            let view = api.operations.replication_peek(permit, of)?;
            Some(event("relationship", &types::Relationship::from(view)))
        }
        Notice::RelationshipRemoved(of) => Some(event("relationship-removed", &types::RelationshipRef::from(of))),
        Notice::Vm(vm) => id("vm", &vm),
        Notice::VmRemoved(vm) => id("vm-removed", &vm),
        Notice::Peer(peer) => id("peer", &peer),
        Notice::PeerRemoved(peer) => id("peer-removed", &peer),
    }
}

#[derive(Serialize)]
struct Id {
    id: String,
}

#[derive(Serialize)]
struct Missed {
    missed: u64,
}

fn event(name: &str, data: &impl Serialize) -> Event {
    let data = serde_json::to_string(data).expect("the API's types have string keys and no failing serialisers");
    Event::default().event(name).data(data)
}
