//! Frames over a byte stream: `wire`'s decoder and headers, with I/O around them.

use bytes::Buf;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use understudy_model::ErrorKind;
use understudy_wire::frame::HEADER_LEN;
use understudy_wire::message::MessageError;
use understudy_wire::target::ProtocolError;
use understudy_wire::{Decoder, Frame, FrameError, FrameKind, Message};

/// Bytes asked of the stream at once: four TLS records.
const READ_LEN: usize = 64 << 10;

/// Why a connection cannot be gone on with. Every one of these ends it.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// The connection broke.
    #[error("the connection to the peer broke")]
    Io(#[source] std::io::Error),
    /// What came are no frames.
    #[error("the peer sent something that is no frame")]
    Frame(#[source] FrameError),
    /// A message cannot be read.
    #[error("the peer sent a message that cannot be accepted")]
    Message(#[source] MessageError),
    /// A frame came that may not come now.
    #[error("the peer does not keep to the protocol")]
    Protocol(#[source] ProtocolError),
    /// The peer closed the connection where an answer was due.
    #[error("the peer closed the connection")]
    Closed,
    /// Bulk data came where a message was due.
    #[error("the peer sent data where an answer was due")]
    NotAMessage,
    /// Nothing came in time.
    #[error("the peer did not answer in time")]
    Timeout,
}

impl LinkError {
    /// What the caller does next: connections break, and are made anew. A peer that speaks nonsense is tried again too,
    /// since a damaged byte may have been the cause; back-off keeps that harmless.
    pub fn kind(&self) -> ErrorKind {
        ErrorKind::Retry
    }
}

/// Takes frames out of a stream.
#[derive(Debug)]
pub struct FrameReader<R> {
    io: R,
    decoder: Decoder,
    received: u64,
}

impl<R: AsyncRead + Unpin> FrameReader<R> {
    /// Reads from this stream.
    pub fn new(io: R) -> Self {
        Self { io, decoder: Decoder::new(), received: 0 }
    }

    /// The next frame; `None` when the peer closed in good order. May be dropped half-way: nothing is lost.
    pub async fn next(&mut self) -> Result<Option<Frame>, LinkError> {
        loop {
            if let Some(frame) = self.decoder.next_frame().map_err(LinkError::Frame)? {
                return Ok(Some(frame));
            }
            let buffer = self.decoder.buffer();
            buffer.reserve(READ_LEN);
            let len = self.io.read_buf(buffer).await.map_err(LinkError::Io)?;
            self.received += len as u64;
            if len == 0 {
                return self.decoder.finish().map(|()| None).map_err(LinkError::Frame);
            }
        }
    }

    /// The next frame, which has to be a message.
    pub async fn message(&mut self) -> Result<Message, LinkError> {
        let frame = self.next().await?.ok_or(LinkError::Closed)?;
        if frame.kind != FrameKind::Message {
            return Err(LinkError::NotAMessage);
        }
        Message::from_payload(&frame.payload).map_err(LinkError::Message)
    }

    /// The same, whatever the stream is.
    pub fn boxed(self) -> FrameReader<Box<dyn AsyncRead + Send + Sync + Unpin>>
    where
        R: Send + Sync + 'static,
    {
        FrameReader { io: Box::new(self.io), decoder: self.decoder, received: self.received }
    }

    /// Bytes received so far, as they came out of TLS.
    pub fn received(&self) -> u64 {
        self.received
    }
}

/// Puts frames onto a stream.
#[derive(Debug)]
pub struct FrameWriter<W> {
    io: W,
    version: u16,
    sent: u64,
}

impl<W: AsyncWrite + Unpin> FrameWriter<W> {
    /// Writes to this stream. Until a version is agreed frames bear version 0.
    pub fn new(io: W) -> Self {
        Self { io, version: 0, sent: 0 }
    }

    /// The version agreed in the greeting.
    pub fn agree(&mut self, version: u16) {
        self.version = version;
    }

    /// The version in use.
    pub fn version(&self) -> u16 {
        self.version
    }

    /// Writes a frame, header and payload together and without copying the payload. Not flushed. Dropped half-way it
    /// leaves half a frame behind: the connection is of no use any more.
    pub async fn send(&mut self, frame: &Frame) -> Result<(), LinkError> {
        let header = frame.header();
        let mut bytes = Buf::chain(header.as_slice(), frame.payload.as_ref());
        self.io.write_all_buf(&mut bytes).await.map_err(LinkError::Io)?;
        self.sent += (HEADER_LEN + frame.payload.len()) as u64;
        Ok(())
    }

    /// Writes a message and flushes.
    pub async fn message(&mut self, message: &Message, session: u64) -> Result<(), LinkError> {
        self.send(&message.to_frame(self.version, session)).await?;
        self.flush().await
    }

    /// Hands everything written to the network.
    pub async fn flush(&mut self) -> Result<(), LinkError> {
        self.io.flush().await.map_err(LinkError::Io)
    }

    /// Says that nothing more will come.
    pub async fn close(&mut self) -> Result<(), LinkError> {
        self.io.shutdown().await.map_err(LinkError::Io)
    }

    /// The same, whatever the stream is.
    pub fn boxed(self) -> FrameWriter<Box<dyn AsyncWrite + Send + Sync + Unpin>>
    where
        W: Send + Sync + 'static,
    {
        FrameWriter { io: Box::new(self.io), version: self.version, sent: self.sent }
    }

    /// Bytes sent so far, as they went into TLS.
    pub fn sent(&self) -> u64 {
        self.sent
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use understudy_wire::message::Ping;

    fn data(len: usize) -> Frame {
        Frame { kind: FrameKind::CycleData, version: 1, session: 3, sequence: 9, payload: vec![7; len].into() }
    }

    #[tokio::test]
    async fn frames_arrive_as_they_were_sent_through_any_cutting() {
        let (near, far) = tokio::io::duplex(1000);
        let sending = tokio::spawn(async move {
            let mut writer = FrameWriter::new(near);
            writer.agree(1);
            for len in [0, 1, 900, 300_000] {
                writer.send(&data(len)).await.unwrap();
            }
            writer.message(&Message::Ping(Ping { token: 5 }), 3).await.unwrap();
            writer.close().await.unwrap();
            writer.sent()
        });
        let mut reader = FrameReader::new(far);
        for len in [0, 1, 900, 300_000] {
            assert_eq!(reader.next().await.unwrap().unwrap(), data(len));
        }
        assert_eq!(reader.message().await.unwrap(), Message::Ping(Ping { token: 5 }));
        assert!(reader.next().await.unwrap().is_none());
        assert_eq!(sending.await.unwrap(), reader.received());
    }

    #[tokio::test]
    async fn a_reader_that_was_interrupted_goes_on_where_it_was() {
        let (mut near, far) = tokio::io::duplex(1 << 20);
        let bytes = data(5000).to_bytes();
        near.write_all(&bytes[..100]).await.unwrap();
        let mut reader = FrameReader::new(far);
        let first = futures::poll!(std::pin::pin!(reader.next()));
        assert!(first.is_pending());
        near.write_all(&bytes[100..]).await.unwrap();
        assert_eq!(reader.next().await.unwrap().unwrap(), data(5000));
    }

    #[tokio::test]
    async fn a_stream_that_ends_inside_a_frame_or_is_none_is_an_error() {
        let (mut near, far) = tokio::io::duplex(1 << 20);
        near.write_all(&data(50).to_bytes()[..70]).await.unwrap();
        drop(near);
        assert!(matches!(FrameReader::new(far).next().await, Err(LinkError::Frame(FrameError::Truncated))));
        let (mut near, far) = tokio::io::duplex(1 << 20);
        near.write_all(b"GET / HTTP/1.1\r\n").await.unwrap();
        assert!(matches!(FrameReader::new(far).next().await, Err(LinkError::Frame(FrameError::Magic))));
        let (mut near, far) = tokio::io::duplex(1 << 20);
        near.write_all(&data(50).to_bytes()).await.unwrap();
        assert!(matches!(FrameReader::new(far).message().await, Err(LinkError::NotAMessage)));
    }
}
