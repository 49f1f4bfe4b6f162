//! The two halves of a connection between hosts as the transfers use them: a reader, and a writer that several tasks
//! share, each frame going out whole.
//!
//! Over boxed streams, so that tests run over an in-memory pipe and the daemon over TLS.

use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::Mutex;
use understudy_wire::{Frame, FrameKind, Message};

use crate::link::frames::{FrameReader, FrameWriter, LinkError};

/// The reading half of a stream.
pub type ReadHalf = Box<dyn AsyncRead + Send + Sync + Unpin>;
/// The writing half of a stream.
pub type WriteHalf = Box<dyn AsyncWrite + Send + Sync + Unpin>;
/// Takes frames from a connection.
pub type Receiver = FrameReader<ReadHalf>;

/// Puts frames onto a connection.
pub struct Sender {
    writer: Mutex<FrameWriter<WriteHalf>>,
    session: AtomicU64,
    sent: AtomicU64,
}

impl Sender {
    /// Shares a writer, without a session at first.
    pub fn new(writer: FrameWriter<WriteHalf>) -> Self {
        Self { writer: Mutex::new(writer), session: AtomicU64::new(0), sent: AtomicU64::new(0) }
    }

    /// Frames from now on belong to this session.
    pub fn set_session(&self, session: u64) {
        self.session.store(session, Ordering::Release);
    }

    /// Bytes sent so far, before encryption.
    pub fn bytes(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// Sends a message and sees it on its way.
    pub async fn message(&self, message: &Message) -> Result<(), LinkError> {
        let mut writer = self.writer.lock().await;
        let sent = writer.message(message, self.session.load(Ordering::Acquire)).await;
        self.sent.store(writer.sent(), Ordering::Relaxed);
        sent
    }

    /// Sends a bulk frame; it may wait in buffers until more follows or a message pushes it on.
    pub async fn bulk(&self, kind: FrameKind, sequence: u64, payload: Bytes) -> Result<(), LinkError> {
        let mut writer = self.writer.lock().await;
        let (version, session) = (writer.version(), self.session.load(Ordering::Acquire));
        let sent = writer.send(&Frame { kind, version, session, sequence, payload }).await;
        self.sent.store(writer.sent(), Ordering::Relaxed);
        sent
    }

    /// Hands everything written to the network.
    pub async fn flush(&self) -> Result<(), LinkError> {
        self.writer.lock().await.flush().await
    }

    /// Says that nothing more will come. Best effort.
    pub async fn close(&self) {
        // A peer that is gone already needs no farewell.
        let _ = self.writer.lock().await.close().await;
    }
}
