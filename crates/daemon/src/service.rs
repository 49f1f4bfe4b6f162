//! The daemon put together: what is opened in which order, and how it ends.
//!
//! ```text
//! state directory locked ─ key ─ catalogue ─ audit log ─ trust, jobs
//!   ─ the sides assembled (store, hypervisors, owners' factory) ─ owners opened, orphaned jobs ended
//!   ─ API served ─ other hosts let in
//! ```
//!
//! Nobody can ask anything before everything that may be asked about is open. On the way out the doors close first, then
//! the owners stop in good order, then the catalogue is closed.

pub mod fake;
mod parts;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use understudy_model::{ErrorKind, PeerId, Refusal};

use crate::audit::{Audit, AuditError};
use crate::catalogue::{Catalogue, CatalogueError};
use crate::clock::{Clock, SystemClock};
use crate::config::{Config, ConfigError};
use crate::entropy::{Entropy, SystemEntropy};
use crate::events::Events;
use crate::faces::rest::server::{Server, SocketError};
use crate::jobs::Jobs;
use crate::link::identity::IdentityError;
use crate::link::listener::Listener;
use crate::link::{ChannelHandler, Dialler, Identity, Trust};
use crate::metrics::Metrics;
use crate::operations::Operations;
use crate::operations::machines::Machines;
use crate::operations::owner::OwnerFactory;
use crate::operations::registry::Registry;
use crate::state_dir::{StateDir, StateDirError};

/// Time the owners have to stop in good order.
const OWNERS_LIMIT: Duration = Duration::from_secs(6);

/// Time everything else has after that. Together they stay below the 10 s that a service manager is told.
const TASKS_LIMIT: Duration = Duration::from_secs(3);

/// How often ended jobs are looked through.
const SWEEP_EVERY: Duration = Duration::from_secs(60);

/// What the sides are assembled from. All of it may be kept.
#[derive(Clone)]
pub struct Base {
    /// The configuration, checked.
    pub config: Arc<Config>,
    /// This host's identity.
    pub identity: Arc<Identity>,
    /// This host's name.
    pub name: String,
    /// What is known durably.
    pub catalogue: Catalogue,
    /// Jobs.
    pub jobs: Jobs,
    /// The owners of relationships; empty yet.
    pub registry: Registry,
    /// Whom this host trusts.
    pub trust: Arc<Trust>,
    /// Reaches other hosts.
    pub dialler: Arc<Dialler>,
    /// Where security-relevant acts are recorded.
    pub audit: Audit,
    /// Who is told of changes.
    pub events: Events,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Randomness.
    pub entropy: Arc<dyn Entropy>,
    /// Where replicas are stored. The directory exists.
    pub storage: PathBuf,
    /// Fires when the daemon stops.
    pub stop: CancellationToken,
}

/// The sides: what carries replication out.
pub struct Sides {
    /// Makes the owners of relationships.
    pub factory: Arc<dyn OwnerFactory>,
    /// Serves the connections of trusted peers.
    pub handler: Arc<dyn ChannelHandler>,
    /// Looks at VMs.
    pub machines: Arc<dyn Machines>,
}

/// Assembles the sides.
#[async_trait]
pub trait Assembly: Send + Sync {
    /// Opens what the sides need (the store, connections to hypervisors) and puts them together. Called once, before any
    /// owner is made and before anybody can connect.
    async fn assemble(&self, base: &Base) -> Result<Sides, ServiceError>;
}

/// Why the daemon does not start.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "each variant wraps the error of the part it is named for")]
pub enum ServiceError {
    #[error("the configuration cannot be used")]
    Config(#[source] ConfigError),
    #[error("the state directory cannot be used")]
    StateDir(#[source] StateDirError),
    #[error("the host's identity cannot be used")]
    Identity(#[source] IdentityError),
    #[error("the catalogue cannot be used")]
    Catalogue(#[source] CatalogueError),
    #[error("the audit log cannot be used")]
    Audit(#[source] AuditError),
    #[error("the API cannot be served")]
    Socket(#[source] SocketError),
    #[error("TLS cannot be set up")]
    Tls(#[source] rustls::Error),
    #[error("cannot listen for other hosts on {address}")]
    Listen {
        address: SocketAddr,
        #[source]
        err: std::io::Error,
    },
    #[error("cannot use the storage directory {path}")]
    Storage {
        path: PathBuf,
        #[source]
        err: std::io::Error,
    },
    /// Key and catalogue do not belong together.
    #[error("the host's key is {found}, and the catalogue is that of host {recorded}")]
    OtherHost { found: PeerId, recorded: PeerId },
    /// A part of the sides.
    #[error("{what} cannot be opened")]
    Part {
        what: &'static str,
        #[source]
        err: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl ServiceError {
    /// What the caller does next.
    pub fn kind(&self) -> ErrorKind {
        match self {
            ServiceError::Config(err) => err.kind(),
            ServiceError::StateDir(err) => err.kind(),
            ServiceError::Identity(err) => err.kind(),
            ServiceError::Catalogue(err) => err.kind(),
            ServiceError::Audit(err) => err.kind(),
            ServiceError::Socket(err) => err.kind(),
            ServiceError::Tls(_) => ErrorKind::Bug,
            _ => ErrorKind::Operator,
        }
    }

    /// What the reader can do about it; empty when the text says it already.
    pub fn hint(&self) -> &'static str {
        match self {
            ServiceError::Catalogue(CatalogueError::Newer { .. }) => "run the newer program that wrote it",
            ServiceError::Catalogue(CatalogueError::Damaged { .. }) => {
                "put a good copy of the file back, or move it away: replicas are found again from the storage \
                 directory, VMs and peers must then be added anew"
            }
            ServiceError::StateDir(StateDirError::InUse { .. }) => "stop the other daemon, or choose another --state",
            ServiceError::Identity(IdentityError::Exposed { .. }) => {
                "if nobody can have read it, close it with chmod 600; else move it away and pair the hosts anew"
            }
            ServiceError::OtherHost { .. } => {
                "put the right host.key back; if it is lost, move catalogue.db away and pair the hosts anew"
            }
            ServiceError::Listen { .. } => "choose another address with --listen, or stop who is using it",
            _ => "",
        }
    }
}

/// A running daemon.
pub struct Daemon {
    base: Base,
    operations: Operations,
    address: SocketAddr,
    tasks: Vec<JoinHandle<()>>,
    /// Unlocked last.
    _state: StateDir,
}

impl Daemon {
    /// Starts a daemon with the machine's clocks and randomness.
    pub async fn start(config: Config, assembly: &dyn Assembly) -> Result<Self, ServiceError> {
        Self::start_with(config, assembly, Arc::new(SystemClock::new()), Arc::new(SystemEntropy)).await
    }

    /// Starts a daemon with these.
    pub async fn start_with(
        config: Config,
        assembly: &dyn Assembly,
        clock: Arc<dyn Clock>,
        entropy: Arc<dyn Entropy>,
    ) -> Result<Self, ServiceError> {
        let opened = parts::open(config, clock, entropy).await?;
        let parts::Opened { base, state, tcp, address, pairing, about } = opened;
        let sides = assembly.assemble(&base).await?;
        base.registry.open_all(sides.factory.as_ref()).await.map_err(ServiceError::Catalogue)?;
        let orphans = base.jobs.settle_orphans().await;
        if orphans > 0 {
            tracing::warn!(orphans, "jobs that a restart cut short have been ended");
        }
        let listener = listener(tcp, &base, &pairing, sides.handler)?;
        let metrics = Arc::new(Metrics::new(crate::metrics::Sources {
            owners: base.registry.clone(),
            jobs: base.jobs.clone(),
            trust: base.trust.clone(),
            link: listener.stats(),
            commits: base.catalogue.commits(),
        }));
        let operations = parts::operations(&base, sides.factory, sides.machines, pairing, about);
        let server = Server::bind(&base.config.socket_path(), base.config.api.clone()).map_err(ServiceError::Socket)?;
        let router = crate::faces::rest::router(operations.clone(), metrics.clone(), base.stop.clone());
        let tasks = vec![
            tokio::spawn(server.run(router, metrics, base.stop.clone())),
            tokio::spawn(listener.run(base.stop.clone())),
            tokio::spawn(sweep(base.jobs.clone(), base.stop.clone())),
        ];
        tracing::info!(
            host = %base.identity.id(),
            name = %base.name,
            socket = %base.config.socket_path().display(),
            "service started"
        );
        tracing::info!(%address, "listening for other hosts");
        Ok(Self { base, operations, address, tasks, _state: state })
    }

    /// The address on which other hosts connect.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What the daemon is made of.
    pub fn base(&self) -> &Base {
        &self.base
    }

    /// The service, past all faces.
    pub fn operations(&self) -> &Operations {
        &self.operations
    }

    /// Stops in good order, within 10 s.
    pub async fn stop(self) {
        tracing::info!("service is stopping");
        // Before anything is dropped: jobs under way are for the next start to go on with.
        self.base.jobs.close();
        self.base.stop.cancel();
        if tokio::time::timeout(OWNERS_LIMIT, self.base.registry.stop_all()).await.is_err() {
            tracing::warn!("some relationships did not stop in time");
        }
        let tasks = futures::future::join_all(self.tasks);
        if tokio::time::timeout(TASKS_LIMIT, tasks).await.is_err() {
            tracing::warn!("some connections did not end in time");
        }
        drop(self.operations);
        let catalogue = self.base.catalogue.clone();
        drop(self.base);
        // The last handle closes; if somebody still holds one, everything told is durable all the same.
        let _ = tokio::task::spawn_blocking(move || catalogue.close()).await;
        tracing::info!("service has stopped");
    }
}

/// Runs a daemon until it is told to stop by SIGTERM or SIGINT. A second signal ends it at once.
pub async fn run(config: Config, assembly: &dyn Assembly) -> Result<(), ServiceError> {
    use tokio::signal::unix::{SignalKind, signal};
    let taken = |err| ServiceError::Part { what: "the handler of signals", err: Box::new(err) };
    let mut terminate = signal(SignalKind::terminate()).map_err(taken)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(taken)?;
    log_panics();
    no_core_dumps();
    let daemon = Daemon::start(config, assembly).await?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    tokio::select! {
        () = daemon.stop() => {}
        _ = terminate.recv() => tracing::warn!("stopped at once by a second signal"),
        _ = interrupt.recv() => tracing::warn!("stopped at once by a second signal"),
    }
    Ok(())
}

/// Keys and guests' data must not end up in a file of the system's choosing.
fn no_core_dumps() {
    use rustix::process::{Resource, Rlimit, setrlimit};
    let none = Rlimit { current: Some(0), maximum: Some(0) };
    if let Err(err) = setrlimit(Resource::Core, none) {
        tracing::warn!(%err, "core dumps cannot be switched off");
    }
}

/// A panic is our bug: it ends the task it is in, and must be heard of.
fn log_panics() {
    std::panic::set_hook(Box::new(|panic| {
        let place = panic.location().map(ToString::to_string).unwrap_or_default();
        let text = panic.payload_as_str().unwrap_or("a panic without a text");
        tracing::error!(place, text, "fault of this program");
    }));
}

fn listener(
    tcp: TcpListener,
    base: &Base,
    pairing: &Arc<crate::link::pairing::Pairing>,
    handler: Arc<dyn ChannelHandler>,
) -> Result<Listener, ServiceError> {
    let config = base.config.link.clone();
    Listener::new(tcp, &base.identity, pairing.clone(), base.trust.clone(), handler, config).map_err(ServiceError::Tls)
}

async fn sweep(jobs: Jobs, stop: CancellationToken) {
    let mut every = tokio::time::interval(SWEEP_EVERY);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = every.tick() => {}
        }
        if let Err(err) = jobs.sweep().await {
            tracing::warn!(err = %crate::chain(&err), "ended jobs cannot be forgotten");
        }
    }
}

/// Sides that carry nothing out: everything asked is refused. For a daemon that only shows and pairs, and for tests.
pub struct NoSides;

#[async_trait]
impl Assembly for NoSides {
    async fn assemble(&self, _: &Base) -> Result<Sides, ServiceError> {
        Ok(Sides { factory: Arc::new(NoSides), handler: Arc::new(NoSides), machines: Arc::new(NoSides) })
    }
}

impl NoSides {
    fn refusal() -> Refusal {
        Refusal::new(understudy_model::ReturnCode::NotSupported, "replication is not part of this program")
    }
}

#[async_trait]
impl OwnerFactory for NoSides {
    async fn open(
        &self,
        _: crate::catalogue::RelationshipRecord,
        _: crate::operations::registry::Exit,
    ) -> Result<Arc<dyn crate::operations::owner::RelationshipOwner>, Refusal> {
        Err(Self::refusal())
    }
}

#[async_trait]
impl ChannelHandler for NoSides {
    async fn serve(&self, mut channel: crate::link::Channel) {
        let refused = understudy_wire::Message::refused(&Self::refusal(), ErrorKind::Refused);
        // Whether it arrives is the peer's concern.
        let _ = channel.answer(&refused).await;
    }
}

#[async_trait]
impl Machines for NoSides {
    async fn inspect(&self, _: &Path) -> Result<crate::operations::machines::Inspection, Refusal> {
        Err(Self::refusal())
    }

    fn check_definition(&self, _: &str) -> Result<(), Refusal> {
        Err(Self::refusal())
    }
}
