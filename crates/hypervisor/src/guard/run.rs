//! The guard's own process.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::os::fd::OwnedFd;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::net::unix::pipe;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;

use super::{Duty, LINE_MAX, Message, READY};

/// Runs a guard whose orders come from `input`, a pipe, until that closes and everything left to do is done.
///
/// Says "ready" on standard output once it can no longer be ended by the signals that end its parent.
pub fn run(input: impl Into<OwnedFd>) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(watch(input.into()))
}

async fn watch(input: OwnedFd) -> io::Result<()> {
    // A service manager ends all processes of a service together. The guard ends when its input closes, not before:
    // a handler that does nothing keeps the signals from ending it.
    let _deaf = [SignalKind::terminate(), SignalKind::interrupt(), SignalKind::hangup(), SignalKind::quit()]
        .map(signal)
        .into_iter()
        .collect::<io::Result<Vec<_>>>()?;
    let mut input = BufReader::new(pipe::Receiver::from_owned_fd(input)?);
    let mut stdout = io::stdout();
    stdout.write_all(READY.as_bytes())?;
    stdout.flush()?;

    let mut armed = BTreeMap::new();
    let mut under_way = JoinSet::new();
    while let Some(message) = next(&mut input).await? {
        match message {
            Message::Arm { id, duty } => drop(armed.insert(id, duty)),
            Message::Done { id } => drop(armed.remove(&id)),
            Message::Act { id } => {
                if let Some(duty) = armed.remove(&id) {
                    under_way.spawn(carry_out(duty));
                }
            }
        }
    }
    for duty in armed.into_values() {
        under_way.spawn(carry_out(duty));
    }
    while under_way.join_next().await.is_some() {}
    Ok(())
}

/// The next order; `None` once the other side is gone, also in the middle of one: half an order was never relied on.
async fn next(input: &mut BufReader<pipe::Receiver>) -> io::Result<Option<Message>> {
    let mut line = Vec::new();
    let mut bounded = input.take(LINE_MAX as u64);
    bounded.read_until(b'\n', &mut line).await?;
    if line.last() != Some(&b'\n') {
        return Ok(None);
    }
    serde_json::from_slice(&line).map(Some).map_err(io::Error::other)
}

async fn carry_out(duty: Duty) {
    match duty.carry_out().await {
        Ok(()) => tracing::warn!(?duty, "undone in place of a daemon that died"),
        Err(err) => tracing::error!(?duty, %err, "a VM may stand still: resume or thaw it by hand"),
    }
}
