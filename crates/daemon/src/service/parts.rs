//! Opens what every daemon has, in the order that lets each part rely on those before it.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::unix::fs::DirBuilderExt;
use std::sync::Arc;

use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::{Base, ServiceError};
use crate::audit::Audit;
use crate::catalogue::Catalogue;
use crate::clock::Clock;
use crate::config::{Config, is_host_port};
use crate::entropy::Entropy;
use crate::events::Events;
use crate::jobs::Jobs;
use crate::link::pairing::{Card, Pairing, PairingParts};
use crate::link::{Dialler, Identity, Trust, socket};
use crate::names::to_name;
use crate::operations::machines::Machines;
use crate::operations::owner::OwnerFactory;
use crate::operations::registry::Registry;
use crate::operations::{About, Operations, Parts};
use crate::state_dir::StateDir;

/// What was opened.
pub(super) struct Opened {
    pub(super) base: Base,
    pub(super) state: StateDir,
    pub(super) tcp: TcpListener,
    pub(super) address: SocketAddr,
    pub(super) pairing: Arc<Pairing>,
    pub(super) about: About,
}

pub(super) async fn open(
    config: Config,
    clock: Arc<dyn Clock>,
    entropy: Arc<dyn Entropy>,
) -> Result<Opened, ServiceError> {
    config.check().map_err(ServiceError::Config)?;
    let state = StateDir::open(&config.state).map_err(ServiceError::StateDir)?;
    let storage = config.storage_dir();
    let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&storage);
    made.map_err(|err| ServiceError::Storage { path: storage.clone(), err })?;
    let identity = Arc::new(Identity::open(&state.host_key()).map_err(ServiceError::Identity)?);
    let catalogue = Catalogue::open(&state.catalogue()).map_err(ServiceError::Catalogue)?;
    let host = catalogue.record_start(identity.id(), clock.wall()).await.map_err(ServiceError::Catalogue)?;
    if host.peer != identity.id() {
        return Err(ServiceError::OtherHost { found: identity.id(), recorded: host.peer });
    }
    let (audit, summary) = Audit::open(&state.audit(), clock.clone()).map_err(ServiceError::Audit)?;
    if let Some(fault) = &summary.fault {
        tracing::error!(%fault, "audit log was tampered with");
    }
    let peers = catalogue.peers().await.map_err(ServiceError::Catalogue)?;
    let trust = Trust::new(clock.clone(), config.link.connections_per_peer_max, peers);
    let events = Events::new();
    let jobs = Jobs::open(catalogue.clone(), clock.clone(), entropy.clone(), events.clone(), config.jobs.clone());
    let jobs = jobs.await.map_err(ServiceError::Catalogue)?;
    let (tcp, address) = listen(config.listen).await?;
    let name = config.name.clone().unwrap_or_else(host_name);
    let card = Card { name: name.clone(), addresses: addresses(&config, address) };
    let pairing = PairingParts {
        catalogue: catalogue.clone(),
        trust: trust.clone(),
        audit: audit.clone(),
        events: events.clone(),
        clock: clock.clone(),
        entropy: entropy.clone(),
        config: config.invite.clone(),
    };
    let pairing = Pairing::open(pairing, identity.id(), card).await.map_err(ServiceError::Catalogue)?;
    let about = About {
        id: identity.id(),
        name: name.clone(),
        listen: address,
        state: config.state.clone(),
        storage: storage.clone(),
        congestion_control: congestion_control(&config).await,
        starts: host.starts,
        started_at: clock.steady(),
        audit_fault: summary.fault.map(|fault| fault.to_string()),
    };
    let dialler = Dialler::new(identity.clone(), trust.clone(), config.link.clone(), name.clone());
    let base = Base {
        registry: Registry::new(catalogue.clone(), events.clone()),
        config: Arc::new(config),
        identity,
        name,
        catalogue,
        jobs,
        trust,
        dialler: Arc::new(dialler),
        audit,
        events,
        clock,
        entropy,
        storage,
        stop: CancellationToken::new(),
    };
    Ok(Opened { base, state, tcp, address, pairing: Arc::new(pairing), about })
}

pub(super) fn operations(
    base: &Base,
    factory: Arc<dyn OwnerFactory>,
    machines: Arc<dyn Machines>,
    pairing: Arc<Pairing>,
    about: About,
) -> Operations {
    Operations::new(Parts {
        catalogue: base.catalogue.clone(),
        jobs: base.jobs.clone(),
        registry: base.registry.clone(),
        factory,
        machines,
        trust: base.trust.clone(),
        pairing,
        dialler: base.dialler.clone(),
        audit: base.audit.clone(),
        events: base.events.clone(),
        clock: base.clock.clone(),
        entropy: base.entropy.clone(),
        about,
    })
}

async fn listen(address: SocketAddr) -> Result<(TcpListener, SocketAddr), ServiceError> {
    let failed = |err| ServiceError::Listen { address, err };
    let tcp = TcpListener::bind(address).await.map_err(failed)?;
    let local = tcp.local_addr().map_err(failed)?;
    Ok((tcp, local))
}

fn host_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    to_name(name.trim()).unwrap_or_else(|| "host".to_owned())
}

/// Where others are told to reach this host.
fn addresses(config: &Config, listening: SocketAddr) -> Vec<String> {
    if !config.advertise.is_empty() {
        return config.advertise.clone();
    }
    if !listening.ip().is_unspecified() {
        return vec![listening.to_string()];
    }
    let routed = routed_address().map(|ip| SocketAddr::new(ip, listening.port()).to_string());
    let named = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let named = format!("{}:{}", named.trim(), listening.port());
    routed.into_iter().chain(Some(named)).filter(|a| is_host_port(a)).collect()
}

/// The address the default route would use. Nothing is sent: connecting a datagram socket only chooses the route.
fn routed_address() -> Option<IpAddr> {
    let socket = UdpSocket::bind("0.0.0.0:0").ok()?;
    // A documentation address (RFC 5737): routed like any other, and nobody's.
    socket.connect("192.0.2.1:9").ok()?;
    socket.local_addr().ok().map(|a| a.ip()).filter(|ip| !ip.is_loopback() && !ip.is_unspecified())
}

/// Which congestion control connections will get, tried on a connection to ourselves.
async fn congestion_control(config: &Config) -> String {
    let tried = async {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let stream = tokio::net::TcpStream::connect(listener.local_addr()?).await?;
        socket::prepare(&stream, &config.link)
    };
    tried.await.unwrap_or_else(|_| "unknown".to_owned())
}
