//! A whole daemon on temporary directories, with VMs and owners that exist in memory only, and a client of its API.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::UnixStream;
use understudy_daemon::catalogue::{NewRelationship, Side};
use understudy_daemon::clock::ManualClock;
use understudy_daemon::config::Config;
use understudy_daemon::entropy::SystemEntropy;
use understudy_daemon::operations::fake::{FakeMachines, FakeOwner, FakeOwners};
use understudy_daemon::service::fake::FakeSides;
use understudy_daemon::service::{Daemon, ServiceError};
use understudy_model::{PeerId, RelationshipId, Settings, Timestamp, VmId};

use super::host::soon;

/// The state of a host that outlives its daemon.
pub struct Site {
    dir: Arc<tempfile::TempDir>,
    pub clock: Arc<ManualClock>,
    pub machines: Arc<FakeMachines>,
    pub config: Config,
}

/// A running daemon of a site.
pub struct Running {
    pub daemon: Daemon,
    pub owners: Arc<FakeOwners>,
    pub socket: PathBuf,
    /// The directories stay as long as the daemon.
    _dir: Arc<tempfile::TempDir>,
}

impl Site {
    pub fn new(name: &str) -> Self {
        let dir = Arc::new(tempfile::tempdir().unwrap());
        let config = Config {
            state: dir.path().join("state"),
            listen: "127.0.0.1:0".parse().unwrap(),
            name: Some(name.to_owned()),
            ..Config::default()
        };
        let clock = Arc::new(ManualClock::new(Timestamp(1_800_000_000_000)));
        Self { dir, clock, machines: Arc::default(), config }
    }

    pub async fn start(&self) -> Running {
        self.try_start().await.unwrap()
    }

    pub async fn try_start(&self) -> Result<Running, ServiceError> {
        let fakes = FakeSides::new(self.machines.clone());
        let started = Daemon::start_with(self.config.clone(), &fakes, self.clock.clone(), Arc::new(SystemEntropy));
        let daemon = started.await?;
        let owners = fakes.owners().unwrap();
        Ok(Running { daemon, owners, socket: self.config.socket_path(), _dir: self.dir.clone() })
    }

    pub fn state_file(&self, name: &str) -> PathBuf {
        self.config.state.join(name)
    }
}

/// An answer of the API.
#[derive(Debug, Clone)]
pub struct Answer {
    pub status: StatusCode,
    pub body: Value,
}

impl Answer {
    /// The return code of a refusal.
    pub fn code(&self) -> u64 {
        self.body["code"].as_u64().unwrap_or_else(|| panic!("not a refusal: {self:?}"))
    }

    pub fn reason(&self) -> &str {
        self.body["reason"].as_str().unwrap()
    }

    /// The body of a call that was carried out.
    pub fn good(self) -> Value {
        assert!(self.status.is_success(), "{self:?}");
        self.body
    }
}

/// One request on a connection of its own; the answer's status and bytes.
pub async fn raw(socket: &Path, method: Method, path: &str, body: Vec<u8>) -> (StatusCode, Vec<u8>) {
    let stream = UnixStream::connect(socket).await.unwrap();
    let (mut client, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let request = Request::builder().method(method).uri(path).header("host", "localhost");
    let request = request.body(Full::new(Bytes::from(body))).unwrap();
    let answer = soon("an answer", client.send_request(request)).await.unwrap();
    let status = answer.status();
    let bytes = soon("the answer's body", answer.into_body().collect()).await.unwrap().to_bytes();
    (status, bytes.to_vec())
}

impl Running {
    pub async fn call(&self, method: Method, path: &str, body: Value) -> Answer {
        let bytes = if body.is_null() { Vec::new() } else { body.to_string().into_bytes() };
        let (status, bytes) = raw(&self.socket, method, path, bytes).await;
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let body = serde_json::from_str(&text).unwrap_or_else(|_| panic!("no JSON ({status}): {text}"));
        Answer { status, body }
    }

    pub async fn get(&self, path: &str) -> Answer {
        self.call(Method::GET, path, Value::Null).await
    }

    pub async fn post(&self, path: &str, body: Value) -> Answer {
        self.call(Method::POST, path, body).await
    }

    pub async fn delete(&self, path: &str) -> Answer {
        self.call(Method::DELETE, path, Value::Null).await
    }

    /// Adds the VM `name`, whose socket is known to the site's machines.
    pub async fn add_vm(&self, site: &Site, name: &str) -> Value {
        let qmp = format!("/run/{name}.qmp");
        site.machines.put(&qmp, None, &[1 << 30, 1 << 20]);
        self.post("/api/v1/vms", json!({ "name": name, "qmp": qmp })).await.good()["vm"].clone()
    }

    /// Waits for a job's end.
    pub async fn wait_job(&self, id: &Value) -> Value {
        let path = format!("/api/v1/jobs/{}/wait?seconds=20", id.as_str().unwrap());
        let job = self.get(&path).await.good();
        assert_eq!(job["has_ended"], true, "{job}");
        job
    }

    /// The owner behind a VM's first relationship.
    pub fn owner(&self, vm: &Value) -> Arc<FakeOwner> {
        let vm: VmId = vm.as_str().unwrap().parse().unwrap();
        self.owners.get(RelationshipId::first(vm)).expect("the VM has an owner")
    }

    /// Puts the replica side of a relationship here, as a primary's request would.
    pub async fn add_replica(&self, n: u128, vm_name: &str) -> RelationshipId {
        let id = RelationshipId::first(VmId(uuid::Uuid::from_u128(n)));
        let new = NewRelationship {
            id,
            vm_name: vm_name.to_owned(),
            side: Side::Replica,
            peer: PeerId([9; 32]),
            settings: Settings::default(),
            engine: Some("{}".to_owned()),
            made_at: Timestamp(0),
        };
        self.daemon.base().registry.create(self.owners.as_ref(), new).await.unwrap();
        id
    }
}

/// Pairs two daemons over the API: the second may then replicate to the first.
pub async fn pair(replica: &Running, primary: &Running) {
    let invited = replica.post("/api/v1/peers/invite", Value::Null).await.good();
    let joined = primary.post("/api/v1/peers/join", json!({ "token": invited["token"] })).await;
    assert_eq!(joined.good()["return_value"], 0);
}
