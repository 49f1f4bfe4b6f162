//! A TLS stream that ends when trust in its peer does, whatever the code that holds it is doing.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsStream;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use super::trust::Admission;

/// See the module's description.
pub struct LinkStream {
    io: TlsStream<TcpStream>,
    /// One for each direction: a future wakes only who polled it last, and readers and writers are different tasks.
    read_ended: Pin<Box<WaitForCancellationFutureOwned>>,
    write_ended: Pin<Box<WaitForCancellationFutureOwned>>,
    ended: CancellationToken,
    /// Gives the peer's place back when the stream goes. `None` for a stranger or for a peer being paired.
    _admission: Option<Admission>,
}

impl LinkStream {
    /// A stream of a peer that was counted in.
    pub fn admitted(io: TlsStream<TcpStream>, admission: Admission) -> Self {
        let ended = admission.ended().clone();
        Self::new(io, ended, Some(admission))
    }

    /// A stream that ends with a token of the caller's.
    pub fn until(io: TlsStream<TcpStream>, ended: CancellationToken) -> Self {
        Self::new(io, ended, None)
    }

    fn new(io: TlsStream<TcpStream>, ended: CancellationToken, admission: Option<Admission>) -> Self {
        let wait = || Box::pin(ended.clone().cancelled_owned());
        Self { io, read_ended: wait(), write_ended: wait(), ended, _admission: admission }
    }

    /// Fires when the stream has to end.
    pub fn ended(&self) -> &CancellationToken {
        &self.ended
    }
}

fn withdrawn() -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionAborted, "trust in the peer was withdrawn")
}

impl AsyncRead for LinkStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        use std::future::Future;
        if self.read_ended.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Err(withdrawn()));
        }
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl AsyncWrite for LinkStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        use std::future::Future;
        if self.write_ended.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Err(withdrawn()));
        }
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        use std::future::Future;
        if self.write_ended.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Err(withdrawn()));
        }
        Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        use std::future::Future;
        if self.write_ended.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Err(withdrawn()));
        }
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
