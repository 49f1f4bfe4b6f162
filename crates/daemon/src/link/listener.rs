//! Takes connections of other hosts in.
//!
//! Each runs its handshake, greeting and first message in a task of its own, under one time limit. There may be so many
//! such tasks and no more: one more ends the oldest. A flood of silent connections therefore costs a fixed amount of
//! memory, and an honest peer, which needs milliseconds, still gets in.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::AbortHandle;
use tokio_rustls::{TlsAcceptor, TlsStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use understudy_model::{ErrorKind, PeerId, Refusal, ReturnCode};
use understudy_wire::Message;
use understudy_wire::target::Incoming;

use super::channel::{Channel, ChannelHandler};
use super::frames::LinkError;
use super::identity::Identity;
use super::pairing::Pairing;
use super::stream::LinkStream;
use super::trust::{AdmissionError, Trust};
use super::{socket, tls};
use crate::config;

/// Pause after the system could not give us a connection (out of descriptors or memory): long enough not to spin, short
/// enough that nobody notices.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Bytes of a refused connection that are read and thrown away, so that the refusal reaches the other side before the
/// reset that unread data would cause.
const DRAIN_MAX: usize = 64 << 10;

/// Listens for other hosts.
pub struct Listener {
    tcp: TcpListener,
    door: Arc<Door>,
}

struct Door {
    acceptor: TlsAcceptor,
    trust: Arc<Trust>,
    pairing: Arc<Pairing>,
    handler: Arc<dyn ChannelHandler>,
    config: config::Link,
    slots: Mutex<Slots>,
    stats: LinkStats,
    tasks: TaskTracker,
    stop: CancellationToken,
}

/// Tasks that have not come to a first message yet, oldest first.
#[derive(Default)]
struct Slots {
    last: u64,
    open: VecDeque<(u64, AbortHandle)>,
}

/// What happened at the door, for metrics. Clones count together.
#[derive(Debug, Clone, Default)]
pub struct LinkStats {
    /// Connections that came to be served.
    pub served: Counter,
    /// Connections that ended before: silent, broken, refused.
    pub refused: Counter,
    /// Handshakes ended early because too many were under way.
    pub evicted: Counter,
    /// Times the system could not give us a connection.
    pub starved: Counter,
}

impl Listener {
    /// A listener on a socket that was bound already. Nothing is accepted before [`Listener::run`].
    pub fn new(
        tcp: TcpListener,
        identity: &Identity,
        pairing: Arc<Pairing>,
        trust: Arc<Trust>,
        handler: Arc<dyn ChannelHandler>,
        config: config::Link,
    ) -> Result<Self, rustls::Error> {
        let door = Door {
            acceptor: TlsAcceptor::from(tls::server_config(identity, trust.clone())?),
            trust,
            pairing,
            handler,
            config,
            slots: Mutex::default(),
            stats: LinkStats::default(),
            tasks: TaskTracker::new(),
            stop: CancellationToken::new(),
        };
        Ok(Self { tcp, door: Arc::new(door) })
    }

    /// The address in use.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.tcp.local_addr()
    }

    /// What happens at the door.
    pub fn stats(&self) -> LinkStats {
        self.door.stats.clone()
    }

    /// Accepts until told to stop; then waits until every task it began has been dropped.
    pub async fn run(self, stop: CancellationToken) {
        let door = self.door;
        loop {
            let accepted = tokio::select! {
                () = stop.cancelled() => break,
                accepted = self.tcp.accept() => accepted,
            };
            match accepted {
                Ok((stream, remote)) => door.take(stream, remote),
                Err(err) => {
                    let times = door.stats.starved.inc() + 1;
                    // Again and again while the cause lasts; told less and less often.
                    if times.is_power_of_two() {
                        tracing::warn!(%err, times, "connection of a host cannot be accepted");
                    }
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
        drop(self.tcp);
        door.stop.cancel();
        door.tasks.close();
        door.tasks.wait().await;
    }
}

impl Door {
    /// Begins a task for a connection, at the cost of the oldest one if there are too many.
    fn take(self: &Arc<Self>, stream: TcpStream, remote: SocketAddr) {
        let mut slots = self.slots.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        slots.last += 1;
        let (door, slot) = (self.clone(), slots.last);
        let task = self.tasks.spawn(async move {
            let stop = door.stop.clone();
            tokio::select! {
                () = stop.cancelled() => {}
                () = door.attend(stream, remote, slot) => {}
            }
        });
        slots.open.push_back((slot, task.abort_handle()));
        if slots.open.len() > self.config.handshakes_max
            && let Some((_, oldest)) = slots.open.pop_front()
        {
            oldest.abort();
            self.stats.evicted.inc();
        }
    }

    fn release(&self, slot: u64) {
        self.slots.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).open.retain(|(open, _)| *open != slot);
    }

    async fn attend(&self, stream: TcpStream, remote: SocketAddr, slot: u64) {
        let limit = self.config.handshake_time_limit.duration();
        let opened = tokio::time::timeout(limit, self.open(stream, remote)).await.unwrap_or(Err(LinkError::Timeout));
        self.release(slot);
        match opened {
            Ok(Some(channel)) => {
                self.stats.served.inc();
                self.handler.serve(channel).await;
            }
            Ok(None) => {}
            Err(err) => {
                self.stats.refused.inc();
                tracing::debug!(%remote, err = %crate::chain(&err), "connection of a host came to nothing");
            }
        }
    }

    /// Handshake, greeting, first message. A connection to be served comes out; pairing and refusals end here.
    async fn open(&self, tcp: TcpStream, remote: SocketAddr) -> Result<Option<Channel>, LinkError> {
        let congestion = socket::prepare(&tcp, &self.config).map_err(LinkError::Io)?;
        let tls = match self.acceptor.accept(tcp).into_fallible().await {
            Ok(tls) => tls,
            Err((err, tcp)) => {
                let_go(tcp).await;
                return Err(LinkError::Io(err));
            }
        };
        let peer = key_of(&tls)?;
        let (stream, is_trusted) = match self.trust.admit(peer) {
            Ok(admission) => (LinkStream::admitted(TlsStream::Server(tls), admission), true),
            Err(AdmissionError::Unknown) => {
                (LinkStream::until(TlsStream::Server(tls), CancellationToken::new()), false)
            }
            Err(err @ AdmissionError::TooMany { .. }) => {
                tracing::warn!(%peer, %remote, %err, "connection of a peer is not taken");
                return Err(LinkError::Io(io::Error::new(io::ErrorKind::QuotaExceeded, err)));
            }
        };
        let mut channel = Channel::greet(stream, peer, remote, congestion, &self.pairing.card().name).await?;
        match channel.next().await? {
            Some(Incoming::Message(Message::Join(join))) => {
                let answer = match self.pairing.join(peer, remote, &join).await {
                    Ok(joined) => Message::Joined(joined),
                    Err(refusal) => Message::refused(&refusal, ErrorKind::Refused),
                };
                channel.answer(&answer).await?;
                channel.writer.close().await.map(|()| None)
            }
            Some(first) if is_trusted => {
                channel.put_back(first);
                Ok(Some(channel))
            }
            Some(_) => {
                let refusal = Refusal::new(ReturnCode::AccessDenied, "this host is not trusted there")
                    .hint("pair the hosts: understudy peer invite on the one, understudy peer join on the other");
                channel.answer(&Message::refused(&refusal, ErrorKind::Refused)).await?;
                channel.writer.close().await.map(|()| None)
            }
            None => Ok(None),
        }
    }
}

/// Whose key the other side proved to hold; and that it speaks our protocol, not merely TLS.
fn key_of(tls: &tokio_rustls::server::TlsStream<TcpStream>) -> Result<PeerId, LinkError> {
    let broken = |what: &str| LinkError::Io(io::Error::new(io::ErrorKind::InvalidData, what));
    let session = tls.get_ref().1;
    if session.alpn_protocol() != Some(understudy_wire::ALPN) {
        return Err(broken("the other side did not ask for this protocol"));
    }
    let certificate = session.peer_certificates().and_then(|chain| chain.first());
    let certificate = certificate.ok_or_else(|| broken("the other side showed no certificate"))?;
    tls::identify(certificate).map_err(|err| LinkError::Io(io::Error::other(err)))
}

/// Lets a refused connection end so that the alert we sent arrives.
async fn let_go(mut tcp: TcpStream) {
    let mut sink = [0; 4096];
    let mut left = DRAIN_MAX;
    let _ = tcp.shutdown().await;
    while left > 0 {
        match tcp.read(&mut sink).await {
            Ok(0) | Err(_) => return,
            Ok(len) => left = left.saturating_sub(len),
        }
    }
}
