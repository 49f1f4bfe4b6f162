//! The comparison of a resynchronisation: hashes of the live disks go to the target, which says what differs.
//!
//! No content travels here. What differs is noted in the ledger, and the next cut carries it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::{StreamExt, TryStreamExt, stream};
use understudy_engine::primary::{Failure, Progress};
use understudy_hypervisor::driver::Machine;
use understudy_model::{CutNumber, CutRef, DiskSpec, ErrorKind, ReturnCode};
use understudy_wire::Message;
use understudy_wire::message::CompareBegin;

use super::failure::{bug, chain, driver};
use super::ledger::{Comparison, Ledger};
use super::offer::{ask, narrow, prepare, windows};
use super::session::{Session, unexpected};
use super::throttle::Budget;

/// Offers prepared ahead: the next is read and hashed while the target looks at the last.
const AHEAD: usize = 2;
/// How often is noted how far it got: what a crash costs at most.
const SAVE_EVERY: Duration = Duration::from_secs(2);

/// A comparison to be made.
pub struct Compare<'a> {
    /// Names the span of change tracking it rests on.
    pub attempt: CutNumber,
    /// The target's newest cut.
    pub against: CutRef,
    /// The disks.
    pub disks: &'a [DiskSpec],
    /// Where is noted what differs.
    pub ledger: &'a Ledger,
    /// Told how far it is.
    pub progress: &'a (dyn Fn(Progress) + Send + Sync),
}

/// Compares everything that was not compared yet.
pub async fn compare(
    session: &Arc<Session>,
    machine: &dyn Machine,
    job: &Compare<'_>,
    budget: &Budget,
) -> Result<(), Failure> {
    let begin = Message::CompareBegin(CompareBegin { against: job.against.digest.to_string() });
    match session.request(&begin).await? {
        Message::Done => {}
        other => return Err(unexpected(&other)),
    }
    let found = load(job).await?;
    let mut work = Work { session, job, budget, found, saved: Instant::now() };
    for spec in job.disks {
        work.compare_disk(machine, spec).await?;
    }
    work.save().await?;
    tracing::info!(attempt = %job.attempt, differing = work.found.differing(), "compared with the replica");
    if work.found.is_complete(job.disks) { Ok(()) } else { Err(bug("a comparison ended before the disks did")) }
}

async fn load(job: &Compare<'_>) -> Result<Comparison, Failure> {
    let (ledger, attempt) = (job.ledger.clone(), job.attempt);
    let noted = tokio::task::spawn_blocking(move || ledger.load(attempt)).await;
    let noted = noted.map_err(|_| bug("reading a ledger panicked"))?;
    let fits = |noted: &Comparison| {
        noted.against == job.against.digest
            && noted.disks.len() == job.disks.len()
            && noted.disks.iter().zip(job.disks).all(|(d, spec)| d.disk == spec.id && d.position <= spec.size)
    };
    Ok(noted.filter(fits).unwrap_or_else(|| Comparison::new(job.attempt, job.against.digest, job.disks)))
}

struct Work<'a> {
    session: &'a Arc<Session>,
    job: &'a Compare<'a>,
    budget: &'a Budget,
    found: Comparison,
    saved: Instant,
}

impl Work<'_> {
    async fn compare_disk(&mut self, machine: &dyn Machine, spec: &DiskSpec) -> Result<(), Failure> {
        let at = self.found.disks.iter().position(|d| d.disk == spec.id);
        let at = at.ok_or_else(|| bug("a disk is missing from the comparison"))?;
        let from = self.found.disks[at].position;
        self.report();
        if from >= spec.size {
            return Ok(());
        }
        let reader = machine.read_live(spec).await.map_err(|e| driver(&e))?;
        let (reader, budget) = (&*reader, self.budget);
        for group in windows(from, spec.size) {
            let offers: Vec<_> = group.into_iter().map(|window| prepare(reader, spec.id, window, budget)).collect();
            let mut offers = stream::iter(offers).buffered(AHEAD);
            while let Some((window, offer)) = offers.try_next().await? {
                let differing = ask(self.session, offer, spec.size).await?;
                let differing = narrow(self.session, reader, spec.id, differing).await?;
                self.found.disks[at].advance(window.end(), differing, spec.size);
                self.report();
                if self.saved.elapsed() >= SAVE_EVERY {
                    self.save().await?;
                }
            }
        }
        Ok(())
    }

    async fn save(&mut self) -> Result<(), Failure> {
        let (ledger, found) = (self.job.ledger.clone(), self.found.clone());
        let saved = tokio::task::spawn_blocking(move || ledger.save(&found)).await;
        let saved = saved.map_err(|_| bug("writing a ledger panicked"))?;
        self.saved = Instant::now();
        saved.map_err(|err| {
            let reason = format!("what a comparison found cannot be noted: {}", chain(&err));
            Failure::new(ErrorKind::Operator, ReturnCode::Failed, reason)
        })
    }

    fn report(&self) {
        let done = self.found.disks.iter().map(|d| d.position).sum();
        let total = self.job.disks.iter().map(|d| d.size).sum();
        (self.job.progress)(Progress { done, total });
    }
}
