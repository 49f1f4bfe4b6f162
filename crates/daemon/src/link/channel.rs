//! A connection that another host opened to us, past its greeting.

use std::net::SocketAddr;

use async_trait::async_trait;
use tokio::io::{ReadHalf, WriteHalf};
use understudy_model::{ErrorKind, PeerId, Refusal, ReturnCode};
use understudy_wire::message::Message;
use understudy_wire::target::{Incoming, ProtocolError, Target, choose_version, hello};

use super::frames::{FrameReader, FrameWriter, LinkError};
use super::stream::LinkStream;

/// Serves the connections of trusted peers.
#[async_trait]
pub trait ChannelHandler: Send + Sync + 'static {
    /// Serves one connection to its end. The peer is trusted now; what it may do is in its authorization entry
    /// ([`super::Trust::authorization`]), to be looked up for every request. When trust ends, or the daemon stops, the
    /// future is dropped; when trust ends, the stream breaks too.
    async fn serve(&self, channel: Channel);
}

/// The reading half of a connection.
pub type Reader = FrameReader<ReadHalf<LinkStream>>;
/// The writing half of a connection.
pub type Writer = FrameWriter<WriteHalf<LinkStream>>;

/// A connection of a peer. The order of its frames is held to by [`Target`]; whoever serves it answers.
pub struct Channel {
    /// Whose key the other side proved to hold.
    pub peer: PeerId,
    /// Where it connects from.
    pub remote: SocketAddr,
    /// The host's own name for itself; for people only.
    pub host: String,
    /// Congestion control in force, as the kernel names it.
    pub congestion_control: String,
    /// Receives frames.
    pub reader: Reader,
    /// Sends frames.
    pub writer: Writer,
    /// Says which frames may come.
    pub target: Target,
    /// What was read to find out who should serve.
    first: Option<Incoming>,
}

impl Channel {
    /// Greets: takes the hello and answers it. A peer without a common version is told both and refused.
    pub(super) async fn greet(
        stream: LinkStream,
        peer: PeerId,
        remote: SocketAddr,
        congestion_control: String,
        own_name: &str,
    ) -> Result<Self, LinkError> {
        let (read, write) = tokio::io::split(stream);
        let (mut reader, mut writer) = (FrameReader::new(read), FrameWriter::new(write));
        let mut target = Target::new();
        let frame = reader.next().await?.ok_or(LinkError::Closed)?;
        let greeting = match target.accept(frame) {
            Ok(Incoming::Message(Message::Hello(greeting))) => greeting,
            Ok(_) => return Err(LinkError::NotAMessage),
            Err(err @ ProtocolError::Version { .. }) => {
                let refusal = Refusal::new(ReturnCode::NotSupported, err.to_string())
                    .hint("bring both hosts to versions that are at most one apart");
                writer.message(&Message::refused(&refusal, ErrorKind::Refused), 0).await?;
                writer.close().await?;
                return Err(LinkError::Protocol(err));
            }
            Err(err) => return Err(LinkError::Protocol(err)),
        };
        let version = choose_version(&greeting).map_err(LinkError::Protocol)?;
        writer.agree(version);
        let mut welcome = hello(SOFTWARE, own_name);
        (welcome.version_min, welcome.version_max) = (version, version);
        writer.message(&Message::Welcome(welcome), 0).await?;
        let host = crate::names::to_name(&greeting.host).unwrap_or_default();
        Ok(Self { peer, remote, host, congestion_control, reader, writer, target, first: None })
    }

    /// What comes next; `None` when the peer closed in good order. May be dropped half-way: nothing is lost.
    pub async fn next(&mut self) -> Result<Option<Incoming>, LinkError> {
        if let Some(first) = self.first.take() {
            return Ok(Some(first));
        }
        let Some(frame) = self.reader.next().await? else { return Ok(None) };
        self.target.accept(frame).map(Some).map_err(LinkError::Protocol)
    }

    /// What was read already, for whoever goes on with the halves.
    pub fn take_first(&mut self) -> Option<Incoming> {
        self.first.take()
    }

    /// Puts back what was read too early.
    pub(super) fn put_back(&mut self, incoming: Incoming) {
        self.first = Some(incoming);
    }

    /// Sends a message outside of a session.
    pub async fn answer(&mut self, message: &Message) -> Result<(), LinkError> {
        self.writer.message(message, 0).await
    }
}

/// Program and version, as told in greetings.
pub const SOFTWARE: &str = concat!("understudy ", env!("CARGO_PKG_VERSION"));
