//! Retention and upkeep of one replica in the background: drop surplus points, merge and commit runs, at a bounded pace.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;
use understudy_model::ErrorKind;
use understudy_store::UpkeepStep;

use super::place::Place;
use crate::chain;

/// Bytes a second that upkeep may move: a fraction of what a disk gives, so that receiving is not slowed.
const BYTES_PER_SECOND: u64 = 100 << 20;
/// How often is looked without being told: what was pinned may be free now.
const LOOK_EVERY: Duration = Duration::from_secs(60);
/// Pause after a step that failed.
const AFTER_FAILURE: Duration = Duration::from_secs(30);

/// Looks after a replica until `stop`.
pub async fn look_after(place: Arc<Place>, stop: CancellationToken) {
    loop {
        tokio::select! {
            () = place.upkeep.notified() => {}
            () = tokio::time::sleep(LOOK_EVERY) => {}
            () = stop.cancelled() => return,
        }
        if !(get_up(&place).await && look(&place, &stop).await) {
            tokio::select! {
                () = tokio::time::sleep(AFTER_FAILURE) => {}
                () = stop.cancelled() => return,
            }
        }
    }
}

/// Opens the store anew if it has stopped: after a sync that failed only what is read back counts.
pub(super) async fn get_up(place: &Arc<Place>) -> bool {
    if place.store().stopped().is_none() {
        return true;
    }
    let opening = place.clone();
    let is_open = tokio::task::spawn_blocking(move || opening.recover()).await.unwrap_or(false);
    is_open && place.settle().await
}

async fn look(place: &Arc<Place>, stop: &CancellationToken) -> bool {
    let (at_work, stopping) = (place.clone(), stop.clone());
    tokio::task::spawn_blocking(move || work(&at_work, &stopping)).await.unwrap_or(false)
}

/// Does all there is to do. `false` if something failed.
fn work(place: &Place, stop: &CancellationToken) -> bool {
    if let Err(failure) = place.apply_retention() {
        tracing::warn!(relationship = %place.id(), cause = %failure.refusal, "recovery points cannot be dropped");
        return false;
    }
    let mut debt = Debt { since: Instant::now(), bytes: 0, stop };
    loop {
        match place.store().upkeep(&mut |bytes| debt.pay(bytes)) {
            Ok(UpkeepStep::Idle | UpkeepStep::Deferred) => return true,
            Ok(_) => {}
            Err(_) if stop.is_cancelled() => return true,
            Err(err) if err.kind() == ErrorKind::Corrupt => {
                tracing::error!(relationship = %place.id(), cause = chain(&err), "the replica is damaged");
                return false;
            }
            Err(err) => {
                tracing::warn!(relationship = %place.id(), cause = chain(&err), "upkeep of the replica is put off");
                return false;
            }
        }
    }
}

/// Sleeps so that the pace is kept.
struct Debt<'a> {
    since: Instant,
    bytes: u64,
    stop: &'a CancellationToken,
}

impl Debt<'_> {
    fn pay(&mut self, bytes: u64) -> ControlFlow<()> {
        self.bytes += bytes;
        let due = Duration::from_secs_f64(self.bytes as f64 / BYTES_PER_SECOND as f64);
        if let Some(early) = due.checked_sub(self.since.elapsed()) {
            std::thread::sleep(early.min(Duration::from_secs(1)));
        }
        if self.stop.is_cancelled() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }
}
