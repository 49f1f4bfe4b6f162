//! Asking a frozen image for bytes in ways that every QEMU survives and answers rightly.
//!
//! Two faults of older versions shape this, both found here with Debian's 7.2 and read in its source:
//!
//! - Before 8.0, a request that begins in what was copied to scratch and ends in what was not is answered wholly from
//!   the disk: with the guest's newer bytes, and without an error. So there no request crosses a neighbourhood, within
//!   which either all was copied or nothing.
//! - Before 9.2 (and some late stable releases before), two requests in flight about the same bytes abort QEMU, and the
//!   guest with it. So such requests wait for each other, and since the answer to a request whose asker lost interest is
//!   still on its way, that is heeded as well.

use std::sync::{Arc, Mutex, MutexGuard};

use bytes::{Bytes, BytesMut};
use futures::stream::{self, StreamExt, TryStreamExt};
use tokio::sync::Notify;
use understudy_model::Extent;

use crate::driver::{Content, NEIGHBOURHOOD};
use crate::nbd::{Client, NbdError};
use crate::qmp::Version;

/// Oldest QEMU that answers requests over several neighbourhoods rightly.
const WHOLE_SINCE: Version = Version::new(8, 0);

/// Pieces of one call in flight at once: as many as hide the round trip.
const PIECES_IN_FLIGHT: usize = 16;

/// A connection to a frozen disk.
#[derive(Clone)]
pub struct Source {
    client: Arc<Client>,
    lanes: Arc<Lanes>,
    /// Whether requests must be cut at neighbourhoods.
    is_cut: bool,
}

impl Source {
    pub fn new(client: Client, version: Version) -> Self {
        Self { client: Arc::new(client), lanes: Arc::default(), is_cut: version < WHOLE_SINCE }
    }

    /// The bytes of `extent`.
    pub async fn read(&self, extent: Extent) -> Result<Bytes, NbdError> {
        let mut parts =
            stream::iter(self.pieces(extent)).map(|piece| self.read_piece(piece)).buffered(PIECES_IN_FLIGHT);
        let first = parts.try_next().await?.unwrap_or_default();
        if first.len() as u64 == extent.len {
            return Ok(first);
        }
        let mut whole = BytesMut::with_capacity(extent.len as usize);
        whole.extend_from_slice(&first);
        while let Some(part) = parts.try_next().await? {
            whole.extend_from_slice(&part);
        }
        Ok(whole.freeze())
    }

    async fn read_piece(&self, piece: Extent) -> Result<Bytes, NbdError> {
        let client = self.client.clone();
        self.alone(piece, async move { client.read(piece).await }).await
    }

    /// What `extent` holds, as a gapless sequence.
    pub async fn allocation(&self, extent: Extent) -> Result<Vec<(Extent, Content)>, NbdError> {
        let parts =
            stream::iter(self.pieces(extent)).map(|piece| self.piece_allocation(piece)).buffered(PIECES_IN_FLIGHT);
        let mut parts = std::pin::pin!(parts);
        let mut all: Vec<(Extent, Content)> = Vec::new();
        while let Some(part) = parts.try_next().await? {
            for (extent, content) in part {
                match all.last_mut() {
                    Some((last, kind)) if *kind == content => last.len += extent.len,
                    _ => all.push((extent, content)),
                }
            }
        }
        Ok(all)
    }

    async fn piece_allocation(&self, piece: Extent) -> Result<Vec<(Extent, Content)>, NbdError> {
        let client = self.client.clone();
        self.alone(piece, async move { client.allocation(piece).await }).await
    }

    /// Gives `extent` up. It must lie outside of everything that is still asked for.
    pub async fn trim(&self, extent: Extent) -> Result<(), NbdError> {
        self.client.trim(extent).await
    }

    /// `extent`, or its parts in each neighbourhood.
    fn pieces(&self, extent: Extent) -> impl Iterator<Item = Extent> + use<> {
        let step = if self.is_cut { NEIGHBOURHOOD } else { u64::MAX };
        let mut at = extent.offset;
        std::iter::from_fn(move || {
            let len = (extent.end() - at).min(step - at % step);
            let piece = Extent::new(at, len);
            at += len;
            (len > 0).then_some(piece)
        })
    }

    /// Makes a request while no other is in flight about the same bytes. In a task of its own, so that it counts as in
    /// flight until it is answered, also if nobody waits for it any more.
    async fn alone<T: Send + 'static>(
        &self,
        piece: Extent,
        request: impl Future<Output = Result<T, NbdError>> + Send + 'static,
    ) -> Result<T, NbdError> {
        let lane = self.lanes.clone().enter(piece).await;
        let task = tokio::spawn(async move {
            let answer = request.await;
            drop(lane);
            answer
        });
        match task.await {
            Ok(answer) => answer,
            Err(err) => match err.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                // The runtime is going down.
                Err(_) => Err(NbdError::Closed),
            },
        }
    }
}

/// What is in flight: a few dozen extents at most, so a list is searched fastest.
#[derive(Default)]
struct Lanes {
    taken: Mutex<Vec<Extent>>,
    left: Notify,
}

impl Lanes {
    async fn enter(self: Arc<Self>, extent: Extent) -> Lane {
        loop {
            // Registered before the look, so that no leaving is missed.
            let left = self.left.notified();
            {
                let mut taken = self.lock();
                if !taken.iter().any(|other| other.offset < extent.end() && extent.offset < other.end()) {
                    taken.push(extent);
                    break;
                }
            }
            left.await;
        }
        Lane { lanes: self, extent }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Extent>> {
        self.taken.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

/// A place in flight.
struct Lane {
    lanes: Arc<Lanes>,
    extent: Extent,
}

impl Drop for Lane {
    fn drop(&mut self) {
        let mut taken = self.lanes.lock();
        if let Some(at) = taken.iter().position(|extent| *extent == self.extent) {
            taken.swap_remove(at);
        }
        drop(taken);
        self.lanes.left.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn requests_about_the_same_bytes_wait_for_each_other_and_others_do_not() {
        let lanes = Arc::<Lanes>::default();
        let first = lanes.clone().enter(Extent::new(0, 100)).await;
        let beside = lanes.clone().enter(Extent::new(100, 100)).await;
        let mut over = Box::pin(lanes.clone().enter(Extent::new(50, 100)));
        assert!(futures::poll!(&mut over).is_pending());
        drop(first);
        assert!(futures::poll!(&mut over).is_pending(), "the other one is still in flight");
        drop(beside);
        let over = over.await;
        assert_eq!(*lanes.lock(), [Extent::new(50, 100)]);
        drop(over);
        assert!(lanes.lock().is_empty());
    }

    #[tokio::test]
    async fn a_request_nobody_waits_for_any_more_is_in_flight_until_it_is_answered() {
        let lanes = Arc::<Lanes>::default();
        let lane = lanes.clone().enter(Extent::new(0, 100)).await;
        let (answer, answered) = tokio::sync::oneshot::channel::<()>();
        let task = tokio::spawn(async move {
            let _ = answered.await;
            drop(lane);
        });
        drop(task);
        let mut next = Box::pin(lanes.clone().enter(Extent::new(0, 1)));
        assert!(futures::poll!(&mut next).is_pending());
        answer.send(()).unwrap();
        next.await;
    }
}
