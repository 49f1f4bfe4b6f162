//! Reaches another host: its addresses in turn, the key it must prove to hold, the greeting.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, TlsStream};
use tokio_util::sync::CancellationToken;
use understudy_model::{ErrorKind, PeerId, Refusal, ReturnCode};
use understudy_wire::message::{Hello, Message};
use understudy_wire::target::hello;

use super::channel::{Reader, SOFTWARE, Writer};
use super::frames::{FrameReader, FrameWriter, LinkError};
use super::identity::{CERTIFICATE_NAME, Identity};
use super::stream::LinkStream;
use super::trust::Trust;
use super::{socket, tls};
use crate::config;

/// Most addresses one name is tried at.
const RESOLVED_MAX: usize = 8;

/// Time for TLS and the greeting, once TCP is connected.
const GREETING_LIMIT: Duration = Duration::from_secs(10);

/// Connects to other hosts.
pub struct Dialler {
    identity: Arc<Identity>,
    trust: Arc<Trust>,
    config: config::Link,
    name: String,
}

/// A connection that we opened, past its greeting.
pub struct Connection {
    /// Whose key the other side proved to hold.
    pub peer: PeerId,
    /// The address that was reached.
    pub remote: SocketAddr,
    /// The host's own name for itself; for people only.
    pub host: String,
    /// Congestion control in force, as the kernel names it.
    pub congestion_control: String,
    /// Receives frames.
    pub reader: Reader,
    /// Sends frames.
    pub writer: Writer,
}

/// Why a host cannot be reached.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// We do not trust it.
    #[error("the host {0} is not trusted")]
    NotTrusted(PeerId),
    /// It has as many connections to us and from us as it may.
    #[error("cannot open another connection to the host")]
    Busy(#[source] super::trust::AdmissionError),
    /// No address of it is known.
    #[error("no address of the host is known")]
    NoAddress,
    /// None of its addresses answered.
    #[error("cannot reach the host at {address}")]
    Unreachable {
        /// The last address tried.
        address: String,
        /// Why that one failed.
        #[source]
        err: io::Error,
    },
    /// Nobody answered in time.
    #[error("no answer from the host at {address} in time")]
    Timeout {
        /// The last address tried.
        address: String,
    },
    /// Another host is at that address.
    #[error("the host at {address} is not the one expected: its key is another")]
    WrongHost {
        /// Where.
        address: String,
    },
    /// It does not trust us.
    #[error("the host at {address} does not trust this one")]
    NotAdmitted {
        /// Where.
        address: String,
    },
    /// It refused in words.
    #[error("the host refused")]
    Refused(#[source] Refusal),
    /// The connection broke during the greeting.
    #[error("the connection to {address} came to nothing")]
    Link {
        /// Where.
        address: String,
        /// Why.
        #[source]
        err: LinkError,
    },
    /// TLS cannot be set up at all.
    #[error("TLS cannot be set up")]
    Setup(#[source] rustls::Error),
}

impl DialError {
    /// What the caller does next.
    pub fn kind(&self) -> ErrorKind {
        match self {
            DialError::NotTrusted(_) | DialError::NoAddress => ErrorKind::Operator,
            DialError::WrongHost { .. } | DialError::NotAdmitted { .. } | DialError::Refused(_) => ErrorKind::Refused,
            DialError::Setup(_) => ErrorKind::Bug,
            _ => ErrorKind::Retry,
        }
    }

    /// For the API.
    pub fn refusal(&self) -> Refusal {
        let pair = "pair the hosts again: understudy peer invite there, understudy peer join here";
        let (code, hint) = match self {
            DialError::Refused(refusal) => return refusal.clone(),
            DialError::NotTrusted(_) | DialError::NotAdmitted { .. } => (ReturnCode::AccessDenied, pair),
            DialError::WrongHost { .. } => (
                ReturnCode::AccessDenied,
                "somebody else answers at this address, or the host was installed anew: in that case pair the hosts again",
            ),
            DialError::Timeout { .. } => (ReturnCode::Timeout, "check the network and that the service runs there"),
            DialError::Setup(_) => (ReturnCode::Failed, ""),
            _ => (ReturnCode::NotAvailable, "check the address, the network and that the service runs there"),
        };
        Refusal::new(code, crate::chain(self)).hint(hint)
    }
}

impl Dialler {
    /// Connects as this host.
    pub fn new(identity: Arc<Identity>, trust: Arc<Trust>, config: config::Link, name: String) -> Self {
        Self { identity, trust, config, name }
    }

    /// Connects to a trusted peer. The connection ends when trust does.
    pub async fn connect(&self, peer: PeerId) -> Result<Connection, DialError> {
        let record = self.trust.peer(peer).ok_or(DialError::NotTrusted(peer))?;
        self.each(&record.addresses, |address| async move {
            let (tls, remote, congestion) = self.secure(&address, peer).await?;
            let admission = self.trust.admit(peer).map_err(|err| match err {
                super::trust::AdmissionError::Unknown => DialError::NotTrusted(peer),
                busy => DialError::Busy(busy),
            })?;
            let stream = LinkStream::admitted(TlsStream::Client(tls), admission);
            self.greet(stream, peer, address, remote, congestion).await
        })
        .await
    }

    /// Connects to a host that is not trusted yet, but whose key is known from an invitation.
    pub async fn connect_invited(&self, host: PeerId, addresses: &[String]) -> Result<Connection, DialError> {
        self.each(addresses, |address| async move {
            let (tls, remote, congestion) = self.secure(&address, host).await?;
            let stream = LinkStream::until(TlsStream::Client(tls), CancellationToken::new());
            self.greet(stream, host, address, remote, congestion).await
        })
        .await
    }

    /// Tries addresses in turn; the first that leads to a greeting wins. A refusal in words is final: the right host
    /// gave it.
    async fn each<F, Fut>(&self, addresses: &[String], attempt: F) -> Result<Connection, DialError>
    where
        F: Fn(String) -> Fut,
        Fut: Future<Output = Result<Connection, DialError>>,
    {
        let mut last = DialError::NoAddress;
        for address in addresses {
            match attempt(address.clone()).await {
                Ok(connection) => return Ok(connection),
                Err(err @ (DialError::Refused(_) | DialError::NotAdmitted { .. })) => return Err(err),
                Err(err) => last = err,
            }
        }
        Err(last)
    }

    /// TCP, then TLS with the one key that is right.
    async fn secure(
        &self,
        address: &str,
        host: PeerId,
    ) -> Result<(tokio_rustls::client::TlsStream<TcpStream>, SocketAddr, String), DialError> {
        let tcp = self.reach(address).await?;
        let unreachable = |err| DialError::Unreachable { address: address.to_owned(), err };
        let remote = tcp.peer_addr().map_err(unreachable)?;
        let congestion = socket::prepare(&tcp, &self.config).map_err(unreachable)?;
        let config = tls::client_config(&self.identity, host).map_err(DialError::Setup)?;
        let name = ServerName::try_from(CERTIFICATE_NAME).expect("the name is a constant of the right form");
        let connecting = TlsConnector::from(config).connect(name, tcp);
        let tls = match tokio::time::timeout(GREETING_LIMIT, connecting).await {
            Err(_) => return Err(DialError::Timeout { address: address.to_owned() }),
            Ok(Err(err)) => return Err(explain(address, LinkError::Io(err))),
            Ok(Ok(tls)) => tls,
        };
        Ok((tls, remote, congestion))
    }

    async fn reach(&self, address: &str) -> Result<TcpStream, DialError> {
        let limit = self.config.connect_time_limit.duration();
        let connecting = async {
            let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
            for resolved in tokio::net::lookup_host(address).await?.take(RESOLVED_MAX) {
                match TcpStream::connect(resolved).await {
                    Ok(stream) => return Ok(stream),
                    Err(err) => last = err,
                }
            }
            Err(last)
        };
        let connected = tokio::time::timeout(limit, connecting).await;
        let connected = connected.map_err(|_| DialError::Timeout { address: address.to_owned() })?;
        connected.map_err(|err| DialError::Unreachable { address: address.to_owned(), err })
    }

    async fn greet(
        &self,
        stream: LinkStream,
        peer: PeerId,
        address: String,
        remote: SocketAddr,
        congestion_control: String,
    ) -> Result<Connection, DialError> {
        let (read, write) = tokio::io::split(stream);
        let (mut reader, mut writer) = (FrameReader::new(read), FrameWriter::new(write));
        let exchange = async {
            writer.message(&Message::Hello(hello(SOFTWARE, &self.name)), 0).await?;
            reader.message().await
        };
        let answer = tokio::time::timeout(GREETING_LIMIT, exchange).await.unwrap_or(Err(LinkError::Timeout));
        let welcome = match answer {
            Ok(Message::Welcome(welcome)) => welcome,
            Ok(Message::Refused(refused)) => return Err(DialError::Refused(refused.refusal())),
            Ok(_) => return Err(DialError::Link { address, err: LinkError::NotAMessage }),
            Err(err) => return Err(explain(&address, err)),
        };
        writer.agree(agreed(&welcome).ok_or_else(|| foreign_version(&welcome))?);
        let host = crate::names::to_name(&welcome.host).unwrap_or_default();
        Ok(Connection { peer, remote, host, congestion_control, reader, writer })
    }
}

impl Connection {
    /// Sends a message outside of a session and takes the answer. A refusal in words becomes an error.
    pub async fn request(&mut self, message: &Message, limit: Duration) -> Result<Message, DialError> {
        let address = self.remote.to_string();
        let exchange = async {
            self.writer.message(message, 0).await?;
            self.reader.message().await
        };
        match tokio::time::timeout(limit, exchange).await.unwrap_or(Err(LinkError::Timeout)) {
            Ok(Message::Refused(refused)) => Err(DialError::Refused(refused.refusal())),
            Ok(answer) => Ok(answer),
            Err(LinkError::Timeout) => Err(DialError::Timeout { address }),
            Err(err) => Err(explain(&address, err)),
        }
    }
}

/// The version the other side chose, if it is one of ours.
fn agreed(welcome: &Hello) -> Option<u16> {
    let (min, max) = understudy_wire::VERSIONS;
    let chosen = welcome.version_max;
    (welcome.version_min == chosen && (min..=max).contains(&chosen)).then_some(chosen)
}

fn foreign_version(welcome: &Hello) -> DialError {
    let (min, max) = understudy_wire::VERSIONS;
    let reason =
        format!("the host chose protocol version {}, and this one speaks versions {min} to {max}", welcome.version_max);
    DialError::Refused(Refusal::new(ReturnCode::NotSupported, reason))
}

/// Tells the ways apart in which TLS says no.
fn explain(address: &str, err: LinkError) -> DialError {
    use rustls::{AlertDescription as Alert, CertificateError, Error};
    let address = address.to_owned();
    let inner = match &err {
        LinkError::Io(io) => io.get_ref().and_then(|e| e.downcast_ref::<Error>()),
        LinkError::Timeout => return DialError::Timeout { address },
        _ => None,
    };
    match inner {
        Some(Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure)) => {
            DialError::WrongHost { address }
        }
        Some(Error::AlertReceived(Alert::AccessDenied | Alert::CertificateUnknown | Alert::BadCertificate)) => {
            DialError::NotAdmitted { address }
        }
        _ => DialError::Link { address, err },
    }
}
