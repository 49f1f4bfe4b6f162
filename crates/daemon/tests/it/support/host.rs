//! One host's end of the links: identity, trust, pairing and a listener, without the rest of a daemon.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use understudy_daemon::audit::Audit;
use understudy_daemon::catalogue::{Authorization, Catalogue, PeerRecord};
use understudy_daemon::clock::ManualClock;
use understudy_daemon::config;
use understudy_daemon::entropy::SystemEntropy;
use understudy_daemon::events::Events;
use understudy_daemon::link::listener::{LinkStats, Listener};
use understudy_daemon::link::pairing::{Card, Pairing, PairingParts, write_secret};
use understudy_daemon::link::token::InviteToken;
use understudy_daemon::link::{Channel, ChannelHandler, Connection, DialError, Dialler, Identity, Trust};
use understudy_model::{PeerId, Timestamp};
use understudy_wire::message::{Join, Joined, Message, Ping};
use understudy_wire::target::Incoming;

/// Time after which a test says that something it waits for will not come.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Waits for something that has to come.
pub async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.unwrap_or_else(|_| panic!("{what} did not come"))
}

pub struct Host {
    pub dir: tempfile::TempDir,
    pub clock: Arc<ManualClock>,
    pub identity: Arc<Identity>,
    pub catalogue: Catalogue,
    pub trust: Arc<Trust>,
    pub pairing: Arc<Pairing>,
    pub dialler: Dialler,
    pub address: SocketAddr,
    pub stats: LinkStats,
    /// Peers whose connections came to be served, as they came.
    pub served: mpsc::UnboundedReceiver<PeerId>,
    /// Peers whose connections ended, as they ended.
    pub ended: mpsc::UnboundedReceiver<PeerId>,
    stop: CancellationToken,
    running: Option<tokio::task::JoinHandle<()>>,
}

/// Answers pings; everything else is left without an answer.
struct Echo {
    served: mpsc::UnboundedSender<PeerId>,
    ended: mpsc::UnboundedSender<PeerId>,
}

/// Tells when the connection ends, also when its future is dropped.
struct Told(mpsc::UnboundedSender<PeerId>, PeerId);

impl Drop for Told {
    fn drop(&mut self) {
        let _ = self.0.send(self.1);
    }
}

#[async_trait]
impl ChannelHandler for Echo {
    async fn serve(&self, mut channel: Channel) {
        let _told = Told(self.ended.clone(), channel.peer);
        self.served.send(channel.peer).unwrap();
        while let Ok(Some(incoming)) = channel.next().await {
            if let Incoming::Message(Message::Ping(ping)) = incoming
                && channel.answer(&Message::Pong(ping)).await.is_err()
            {
                return;
            }
        }
    }
}

impl Host {
    pub async fn start(name: &str) -> Self {
        Self::with(name, config::Link::default(), config::Invite::default()).await
    }

    pub async fn with(name: &str, link: config::Link, invite: config::Invite) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let clock = Arc::new(ManualClock::new(Timestamp(1_800_000_000_000)));
        let catalogue = Catalogue::open(&dir.path().join("catalogue.db")).unwrap();
        let (audit, _) = Audit::open(&dir.path().join("audit.log"), clock.clone()).unwrap();
        let identity = Arc::new(Identity::open(&dir.path().join("host.key")).unwrap());
        let trust = Trust::new(clock.clone(), link.connections_per_peer_max, vec![]);
        let tcp = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let card = Card { name: name.to_owned(), addresses: vec![tcp.local_addr().unwrap().to_string()] };
        let parts = PairingParts {
            catalogue: catalogue.clone(),
            trust: trust.clone(),
            audit,
            events: Events::new(),
            clock: clock.clone(),
            entropy: Arc::new(SystemEntropy),
            config: invite,
        };
        let pairing = Arc::new(Pairing::open(parts, identity.id(), card).await.unwrap());
        let (served_in, served) = mpsc::unbounded_channel();
        let (ended_in, ended) = mpsc::unbounded_channel();
        let handler = Arc::new(Echo { served: served_in, ended: ended_in });
        let made = Listener::new(tcp, &identity, pairing.clone(), trust.clone(), handler, link.clone());
        let listener = made.unwrap();
        let (address, stats) = (listener.local_addr().unwrap(), listener.stats());
        let stop = CancellationToken::new();
        let running = Some(tokio::spawn(listener.run(stop.clone())));
        let dialler = Dialler::new(identity.clone(), trust.clone(), link, name.to_owned());
        Self { dir, clock, identity, catalogue, trust, pairing, dialler, address, stats, served, ended, stop, running }
    }

    pub fn id(&self) -> PeerId {
        self.identity.id()
    }

    /// Trusts another host without ceremony.
    pub fn trust(&self, other: &Host) {
        self.trust.put(PeerRecord {
            id: other.id(),
            name: format!("host-{}", other.address.port()),
            addresses: vec![other.address.to_string()],
            added_at: Timestamp(0),
            authorization: Authorization::new(true),
        });
    }

    /// Presents a token as `understudy peer join` does.
    pub async fn join(&self, token: &InviteToken) -> Result<Joined, DialError> {
        let mut connection = self.dialler.connect_invited(token.host, &token.addresses).await?;
        let join =
            Join { secret: write_secret(&token.secret), name: self.pairing.card().name.clone(), addresses: vec![] };
        match connection.request(&Message::Join(join), PATIENCE).await? {
            Message::Joined(joined) => Ok(joined),
            other => panic!("unexpected answer {other:?}"),
        }
    }

    pub fn audit_text(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("audit.log")).unwrap()
    }

    pub async fn stop(&mut self) {
        self.stop.cancel();
        if let Some(running) = self.running.take() {
            soon("the listener's end", running).await.unwrap();
        }
    }
}

/// One question and its answer over an open connection.
pub async fn ping(connection: &mut Connection) -> Result<(), DialError> {
    let ping = Ping { token: 7 };
    match connection.request(&Message::Ping(ping.clone()), PATIENCE).await? {
        Message::Pong(pong) => {
            assert_eq!(pong, ping);
            Ok(())
        }
        other => panic!("unexpected answer {other:?}"),
    }
}
