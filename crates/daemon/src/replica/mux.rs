//! Bulk frames of one session, from however many connections, back in the order in which they were sent.
//!
//! Frames may overtake the message that announces their transfer: they wait until the session's own connection has got
//! there ([`Mux::begin`]). A connection that is ahead of the others by a window waits, so a stalled one holds the rest
//! back instead of filling memory.

use std::sync::{Mutex, MutexGuard};

use tokio::sync::{Notify, mpsc};
use tokio_util::sync::CancellationToken;
use understudy_wire::Frame;
use understudy_wire::limits::{CONNECTIONS_MAX, REORDER_FRAMES_MAX};
use understudy_wire::reorder::Reorder;

/// See the module's description.
pub struct Mux {
    state: Mutex<State>,
    /// Fires when frames were taken out, or the session ended.
    moved: Notify,
    /// Held while frames go out, so that they go in order.
    going_out: tokio::sync::Mutex<mpsc::Sender<Frame>>,
    ended: CancellationToken,
}

struct State {
    order: Reorder<Frame>,
    is_open: bool,
    carriers: usize,
}

impl Mux {
    /// A session's mux, and where its frames come out. The way out has room for all that may wait for a transfer's
    /// announcement, so whoever announces it never waits for himself.
    pub fn new() -> (Self, mpsc::Receiver<Frame>) {
        let (out, frames) = mpsc::channel(REORDER_FRAMES_MAX);
        let state = State { order: Reorder::new(REORDER_FRAMES_MAX), is_open: false, carriers: 0 };
        let (moved, ended) = (Notify::new(), CancellationToken::new());
        (Self { state: Mutex::new(state), moved, going_out: tokio::sync::Mutex::new(out), ended }, frames)
    }

    /// Counts a further connection in. `false` if there are enough.
    pub fn attach(&self) -> bool {
        let mut state = self.state();
        let fits = state.carriers + 1 < CONNECTIONS_MAX && !self.ended.is_cancelled();
        state.carriers += usize::from(fits);
        fits
    }

    /// Connections that carry the session, its own included.
    pub fn connections(&self) -> usize {
        1 + self.state().carriers
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Takes a frame in, waiting while it is too far ahead. `false` once the session has ended.
    pub async fn push(&self, frame: Frame) -> bool {
        let mut frame = Some(frame);
        while let Some(next) = frame.take() {
            let moved = self.moved.notified();
            tokio::pin!(moved);
            moved.as_mut().enable();
            {
                let mut state = self.state();
                if self.ended.is_cancelled() {
                    return false;
                }
                let sequence = next.sequence;
                // Looked at first: what is refused is lost.
                if sequence < state.order.delivered() + REORDER_FRAMES_MAX as u64 {
                    let _ = state.order.push(sequence, next);
                } else {
                    frame = Some(next);
                }
            }
            if frame.is_some() {
                moved.await;
            }
        }
        self.drain().await
    }

    /// A transfer was announced: its frames may come out.
    pub async fn begin(&self) -> bool {
        self.state().is_open = true;
        self.drain().await
    }

    /// The transfer is over: what comes now belongs to the next one.
    pub fn close(&self) {
        self.state().is_open = false;
    }

    /// The session is over: nobody waits any more.
    pub fn end(&self) {
        self.ended.cancel();
        self.moved.notify_waiters();
    }

    /// Waits for the session's end.
    pub async fn ended(&self) {
        self.ended.cancelled().await;
    }

    async fn drain(&self) -> bool {
        let out = self.going_out.lock().await;
        loop {
            let next = {
                let mut state = self.state();
                if !state.is_open {
                    return !self.ended.is_cancelled();
                }
                state.order.pop()
            };
            let Some(frame) = next else { return true };
            if out.send(frame).await.is_err() {
                return false;
            }
            self.moved.notify_waiters();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use understudy_wire::FrameKind;

    fn frame(sequence: u64) -> Frame {
        Frame { kind: FrameKind::CycleData, version: 1, session: 1, sequence, payload: Default::default() }
    }

    #[tokio::test]
    async fn frames_that_overtake_their_announcement_wait_for_it() {
        let (mux, mut taken) = Mux::new();
        assert!(mux.push(frame(1)).await && mux.push(frame(0)).await);
        assert!(taken.try_recv().is_err());
        assert!(mux.begin().await);
        assert_eq!(taken.try_recv().unwrap().sequence, 0);
        assert_eq!(taken.try_recv().unwrap().sequence, 1);
        mux.close();
        assert!(mux.push(frame(2)).await);
        assert!(taken.try_recv().is_err(), "the next transfer was not announced yet");
    }

    #[tokio::test]
    async fn a_connection_far_ahead_waits_for_the_others_and_the_end_frees_it() {
        let (mux, _taken) = Mux::new();
        let mux = Arc::new(mux);
        mux.begin().await;
        let ahead = |sequence| {
            let mux = mux.clone();
            tokio::spawn(async move { mux.push(frame(sequence)).await })
        };
        let (next, stuck) = (ahead(REORDER_FRAMES_MAX as u64), ahead(1000));
        tokio::task::yield_now().await;
        assert!(!next.is_finished() && !stuck.is_finished());
        assert!(mux.push(frame(0)).await);
        assert!(next.await.unwrap());
        mux.end();
        assert!(!stuck.await.unwrap());
    }

    #[test]
    fn a_session_has_a_bounded_number_of_connections() {
        let (mux, _taken) = Mux::new();
        assert_eq!((0..100).filter(|_| mux.attach()).count() + 1, CONNECTIONS_MAX);
    }
}
