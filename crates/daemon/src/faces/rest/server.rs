//! Serves HTTP on the unix socket: who connects, how many, how large, how long.
//!
//! The socket is its owner's alone (0600), and the kernel says who is at the other end: anybody but the system's
//! administrator and the user the daemon runs as is turned away before a byte is read.

use std::io;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::http::StatusCode;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::answers::ApiError;
use crate::config;
use crate::metrics::Metrics;
use crate::operations::access::Caller;

/// Most headers of a request: clients send a handful.
const HEADERS_MAX: usize = 64;

/// Most bytes of a request's head that are held.
const HEAD_MAX: usize = 32 << 10;

/// Time a connection has to end its last answer when the daemon stops.
const GOODBYE: Duration = Duration::from_secs(3);

/// Pause after a connection could not be accepted.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Why the socket cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Something is in the way.
    #[error("{path} is there already and is not a socket")]
    InTheWay {
        /// The path.
        path: PathBuf,
    },
    /// Somebody serves it.
    #[error("another program is serving {path}")]
    Served {
        /// The path.
        path: PathBuf,
    },
    /// The system refused.
    #[error("cannot serve {path}")]
    Io {
        /// The path.
        path: PathBuf,
        /// Why.
        #[source]
        err: io::Error,
    },
}

impl SocketError {
    /// What the caller does next.
    pub fn kind(&self) -> understudy_model::ErrorKind {
        understudy_model::ErrorKind::Operator
    }
}

/// The socket, taken but not served yet.
pub struct Server {
    listener: UnixListener,
    path: PathBuf,
    config: config::Api,
}

impl Server {
    /// Takes the path. A socket that nobody serves any more is replaced.
    pub fn bind(path: &Path, config: config::Api) -> Result<Self, SocketError> {
        let failed = |err| SocketError::Io { path: path.to_owned(), err };
        clear(path)?;
        let listener = UnixListener::bind(path).map_err(failed)?;
        // Until this has happened somebody else may get through to us; `admit` turns them away.
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).map_err(failed)?;
        Ok(Self { listener, path: path.to_owned(), config })
    }

    /// Serves until told to stop; then lets answers under way end, for a little while.
    pub async fn run(self, router: Router, metrics: Arc<Metrics>, stop: CancellationToken) {
        let Self { listener, path, config } = self;
        let router = limited(router, metrics, &config);
        let places = Arc::new(Semaphore::new(config.connections_max));
        let (tasks, own) = (TaskTracker::new(), rustix::process::geteuid().as_raw());
        let mut starved = 0u64;
        loop {
            let accepted = tokio::select! {
                () = stop.cancelled() => break,
                accepted = listener.accept() => accepted,
            };
            let stream = match accepted {
                Ok((stream, _)) => stream,
                Err(err) => {
                    starved += 1;
                    // Again and again while the cause lasts; told less and less often.
                    if starved.is_power_of_two() {
                        tracing::warn!(%err, times = starved, "connection to the API cannot be accepted");
                    }
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let Some(caller) = admit(&stream, own) else { continue };
            let Ok(place) = places.clone().try_acquire_owned() else {
                tracing::warn!(max = config.connections_max, "connection to the API refused: too many at once");
                continue;
            };
            let router = router.clone().layer(axum::Extension(caller));
            let (limit, stop) = (config.request_time_limit.duration(), stop.clone());
            tasks.spawn(async move {
                serve(stream, router, limit, stop).await;
                drop(place);
            });
        }
        tasks.close();
        let _ = tokio::time::timeout(GOODBYE, tasks.wait()).await;
        // Gone before the daemon is, so that a client sees at once that nobody is there.
        let _ = std::fs::remove_file(&path);
    }
}

/// Takes a socket away that a killed daemon left; refuses anything else.
fn clear(path: &Path) -> Result<(), SocketError> {
    let failed = |err| SocketError::Io { path: path.to_owned(), err };
    match std::fs::symlink_metadata(path) {
        Err(err) if err.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(err) => return Err(failed(err)),
        Ok(meta) if !meta.file_type().is_socket() => return Err(SocketError::InTheWay { path: path.to_owned() }),
        Ok(_) => {}
    }
    match std::os::unix::net::UnixStream::connect(path) {
        Ok(_) => Err(SocketError::Served { path: path.to_owned() }),
        Err(err) if err.kind() == io::ErrorKind::ConnectionRefused => std::fs::remove_file(path).map_err(failed),
        Err(err) => Err(failed(err)),
    }
}

/// Who is at the other end, if they may call at all.
fn admit(stream: &UnixStream, own: u32) -> Option<Caller> {
    let uid = stream.peer_cred().ok()?.uid();
    if uid == 0 || uid == own {
        return Some(Caller::local(uid));
    }
    tracing::warn!(uid, "connection to the API refused: neither root nor the service's own user");
    None
}

async fn serve(stream: UnixStream, router: Router, limit: Duration, stop: CancellationToken) {
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(limit).max_headers(HEADERS_MAX).max_buf_size(HEAD_MAX);
    let connection = http.serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    let mut connection = std::pin::pin!(connection);
    let served = tokio::select! {
        served = connection.as_mut() => served,
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(err) = served {
        tracing::debug!(err = %crate::chain(&err), "connection to the API broke");
    }
}

#[derive(Clone)]
struct Limits {
    metrics: Arc<Metrics>,
    time: Duration,
}

fn limited(router: Router, metrics: Arc<Metrics>, config: &config::Api) -> Router {
    let limits = Limits { metrics, time: config.request_time_limit.duration() };
    let body_max = usize::try_from(config.request_body_max.0).unwrap_or(usize::MAX);
    router.layer(DefaultBodyLimit::max(body_max)).layer(axum::middleware::from_fn_with_state(limits, bound))
}

/// Holds a request to its time, counts it, and turns a panic of its handler into an answer.
async fn bound(State(limits): State<Limits>, request: Request, next: Next) -> Response {
    let method = request.method().clone();
    // In a task of its own: a handler's panic must not take the connection's other requests with it.
    let handled = tokio::spawn(tokio::time::timeout(limits.time, next.run(request)));
    let response = match handled.await {
        Ok(Ok(response)) => response,
        Ok(Err(_)) => {
            ApiError::protocol(StatusCode::GATEWAY_TIMEOUT, "the request took too long; it may still be carried out")
                .into_response()
        }
        Err(_) => {
            ApiError::protocol(StatusCode::INTERNAL_SERVER_ERROR, "the request failed by a fault of this program")
                .into_response()
        }
    };
    limits.metrics.count_request(&method, response.status());
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_left_behind_is_replaced_and_anything_else_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        assert!(clear(&path).is_ok());
        let live = std::os::unix::net::UnixListener::bind(&path).unwrap();
        assert!(matches!(clear(&path), Err(SocketError::Served { .. })));
        drop(live);
        assert!(clear(&path).is_ok() && !path.exists());
        std::fs::write(&path, "x").unwrap();
        assert!(matches!(clear(&path), Err(SocketError::InTheWay { .. })));
        assert!(path.exists());
        let link = dir.path().join("l");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        assert!(matches!(clear(&link), Err(SocketError::InTheWay { .. })));
    }

    #[tokio::test]
    async fn only_root_and_the_services_own_user_are_admitted() {
        let (near, _far) = UnixStream::pair().unwrap();
        let uid = near.peer_cred().unwrap().uid();
        assert!(admit(&near, uid).is_some());
        assert_eq!(admit(&near, uid + 1).is_some(), uid == 0, "another user is admitted only if it is root");
    }
}
