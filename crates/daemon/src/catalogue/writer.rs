//! The two threads that own the database connections: one writes, one reads.
//!
//! Callers hand over closures and wait for the answer. The writer takes what has piled up, runs each closure in a
//! savepoint of its own, and makes all of them durable with one commit: many relationships cost few syncs, and one
//! caller's failure undoes its own changes only.
//!
//! Invariant: no caller hears of success before the commit that holds its changes has returned. After a commit that
//! failed to reach the disk nothing is written any more: what the file then holds is only known after reopening it.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::JoinHandle;

use prometheus_client::metrics::counter::Counter;
use rusqlite::{Connection, TransactionBehavior};
use tokio::sync::{mpsc, oneshot};

use super::CatalogueError;

/// Calls waiting for a thread. Beyond it callers wait to hand over: back-pressure instead of memory.
const QUEUE_MAX: usize = 1024;

/// Calls made durable by one commit. A commit takes milliseconds; so many small changes take less.
const BATCH_MAX: usize = 64;

/// What a step tells its caller, once it is known whether the commit succeeded.
type Reply = Box<dyn FnOnce(Result<(), CommitFailure>) + Send>;
/// Runs a call and says whether its changes are to be kept; without a connection it only tells its caller why.
type Step = Box<dyn FnOnce(Result<&Connection, CommitFailure>) -> Option<(Verdict, Reply)> + Send>;

/// What becomes of a call's changes.
#[derive(Debug)]
enum Verdict {
    Keep,
    /// The call failed, by the database's fault if there is an error.
    Undo(Option<Arc<rusqlite::Error>>),
}

/// Why a batch was not made durable.
#[derive(Debug, Clone)]
pub(super) struct CommitFailure(Arc<rusqlite::Error>);

/// A thread with a connection.
#[derive(Debug)]
pub(super) struct Thread {
    queue: mpsc::Sender<Step>,
    joined: JoinHandle<()>,
}

impl Thread {
    /// A thread whose calls are committed.
    pub(super) fn writer(connection: Connection, commits: Counter) -> std::io::Result<Self> {
        Self::start("catalogue-write", move |queue| write_all(connection, queue, &commits))
    }

    /// A thread whose calls only look.
    pub(super) fn reader(connection: Connection) -> std::io::Result<Self> {
        Self::start("catalogue-read", move |mut queue| {
            while let Some(step) = queue.blocking_recv() {
                if let Some((_, reply)) = step(Ok(&connection)) {
                    reply(Ok(()));
                }
            }
        })
    }

    fn start(name: &str, run: impl FnOnce(mpsc::Receiver<Step>) + Send + 'static) -> std::io::Result<Self> {
        let (queue, steps) = mpsc::channel(QUEUE_MAX);
        let joined = std::thread::Builder::new().name(name.to_owned()).spawn(move || run(steps))?;
        Ok(Self { queue, joined })
    }

    /// Runs a call on the thread.
    pub(super) async fn run<T, F>(&self, call: F) -> Result<T, CatalogueError>
    where
        T: Send + 'static,
        F: FnOnce(&Connection) -> Result<T, CatalogueError> + Send + 'static,
    {
        let (answer, outcome) = oneshot::channel();
        let step: Step = Box::new(move |connection| {
            // A caller may have given up waiting; then nobody needs the answer.
            let tell = |result| drop(answer.send(result));
            let connection = match connection {
                Ok(connection) => connection,
                Err(CommitFailure(err)) => {
                    tell(Err(CatalogueError::Commit(err)));
                    return None;
                }
            };
            let result = catch_unwind(AssertUnwindSafe(|| call(connection))).unwrap_or(Err(CatalogueError::Panicked));
            let verdict = match &result {
                Ok(_) => Verdict::Keep,
                Err(CatalogueError::Statement { err, .. }) => Verdict::Undo(Some(err.clone())),
                Err(_) => Verdict::Undo(None),
            };
            let reply = move |commit: Result<(), CommitFailure>| {
                let commit = commit.map_err(|CommitFailure(err)| CatalogueError::Commit(err));
                // The call's own failure says more than what became of the batch.
                tell(result.and_then(|value| commit.map(|()| value)));
            };
            Some((verdict, Box::new(reply)))
        });
        self.queue.send(step).await.map_err(|_| CatalogueError::Closed)?;
        outcome.await.map_err(|_| CatalogueError::Closed)?
    }

    /// Ends the thread after the calls already handed over. Blocks.
    pub(super) fn close(self) {
        drop(self.queue);
        if self.joined.join().is_err() {
            tracing::error!("a catalogue thread ended by a panic");
        }
    }
}

fn write_all(mut connection: Connection, mut queue: mpsc::Receiver<Step>, commits: &Counter) {
    let mut stopped: Option<CommitFailure> = None;
    let mut batch = Vec::with_capacity(BATCH_MAX);
    while queue.blocking_recv_many(&mut batch, BATCH_MAX) > 0 {
        if let Some(failure) = &stopped {
            refuse(batch.drain(..), failure);
            continue;
        }
        match write_batch(&mut connection, batch.drain(..)) {
            Ok(()) => drop(commits.inc()),
            Err(failure) if is_lasting(&failure.0) => {
                tracing::error!(err = %failure.0, "catalogue can no longer be written; it stops until a restart");
                stopped = Some(failure);
            }
            Err(_) => {}
        }
    }
}

/// Runs the steps and commits once; then every caller hears how it went.
fn write_batch(connection: &mut Connection, mut steps: impl Iterator<Item = Step>) -> Result<(), CommitFailure> {
    let mut replies = Vec::with_capacity(BATCH_MAX);
    let outcome = run_batch(connection, &mut steps, &mut replies).map_err(CommitFailure);
    replies.into_iter().for_each(|reply| reply(outcome.clone()));
    outcome.inspect_err(|failure| refuse(steps, failure))
}

fn run_batch(
    connection: &mut Connection,
    steps: &mut impl Iterator<Item = Step>,
    replies: &mut Vec<Reply>,
) -> Result<(), Arc<rusqlite::Error>> {
    let mut transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    for step in steps {
        let mut savepoint = transaction.savepoint()?;
        let Some((verdict, reply)) = step(Ok(&savepoint)) else { continue };
        replies.push(reply);
        match verdict {
            Verdict::Keep => {}
            // SQLite itself gives the whole transaction up over a full disk or an I/O error
            // (https://www.sqlite.org/lang_transaction.html, "Response To Errors Within A Transaction").
            Verdict::Undo(Some(err)) if savepoint.is_autocommit() => return Err(err),
            Verdict::Undo(_) => savepoint.rollback()?,
        }
        savepoint.commit()?;
    }
    Ok(transaction.commit()?)
}

fn refuse(steps: impl Iterator<Item = Step>, failure: &CommitFailure) {
    for step in steps {
        step(Err(failure.clone()));
    }
}

/// Whether nothing may be assumed of the file after this error. A full disk leaves it whole; an I/O error may not.
fn is_lasting(err: &rusqlite::Error) -> bool {
    use rusqlite::ErrorCode::{DatabaseCorrupt, NotADatabase, ReadOnly, SystemIoFailure};
    matches!(err.sqlite_error_code(), Some(SystemIoFailure | DatabaseCorrupt | NotADatabase | ReadOnly))
}
