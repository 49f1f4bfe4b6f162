//! The requests that were sent and not yet answered, by cookie.
//!
//! A request stays here until its answer has come whole, also when its caller no longer waits: the server will answer
//! it anyway, and its place among those in flight is taken until then. The table dies once, with one error, which
//! everyone who waits or comes later is told.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, oneshot};
use understudy_model::Extent;

use super::assemble::{ReadAssembly, Run, StatusAssembly};
use super::error::{NbdError, ServerError};
use super::wire::Command;

/// What a request is answered with.
pub(super) enum Answer {
    Bytes(Bytes),
    Status(Vec<Vec<Run>>),
    Done,
}

/// What has come of an answer so far.
pub(super) enum Work {
    Read(ReadAssembly),
    Status(StatusAssembly),
    Plain,
}

impl Work {
    fn finish(self) -> Result<Answer, NbdError> {
        match self {
            Work::Read(read) => read.finish().map(Answer::Bytes),
            Work::Status(status) => status.finish().map(Answer::Status),
            Work::Plain => Ok(Answer::Done),
        }
    }

    /// How many chunks an answer may come in: QEMU sends one per stretch of data or hole and its sectors are 512
    /// bytes; for the rest a few.
    fn chunks_max(&self, extent: Extent) -> u64 {
        match self {
            Work::Read(_) => 16 + extent.len / 512,
            Work::Status(_) => 16 + super::CONTEXTS_MAX as u64,
            Work::Plain => 16,
        }
    }
}

/// One request whose answer is awaited.
pub(super) struct Request {
    pub command: Command,
    pub extent: Extent,
    pub work: Work,
    /// The first error chunk, if there was one: the request has failed, though more chunks may follow.
    pub error: Option<ServerError>,
    chunks_left: u64,
    answer: oneshot::Sender<Result<Answer, NbdError>>,
    _slot: OwnedSemaphorePermit,
}

impl Request {
    /// Counts one more chunk.
    pub fn count_chunk(&mut self) -> Result<(), NbdError> {
        self.chunks_left = self.chunks_left.checked_sub(1).ok_or(NbdError::Protocol("an answer in too many pieces"))?;
        Ok(())
    }

    /// Hands the answer over. An error returned here is the connection's, not the request's.
    pub fn complete(self) -> Result<(), NbdError> {
        let outcome = match self.error {
            Some(error) => Err(NbdError::Request { command: self.command.verb(), extent: self.extent, error }),
            None => match self.work.finish() {
                Ok(answer) => Ok(answer),
                Err(broken) => {
                    let _ = self.answer.send(Err(broken.clone()));
                    return Err(broken);
                }
            },
        };
        // A caller that went away wants no answer.
        let _ = self.answer.send(outcome);
        Ok(())
    }
}

/// All requests in flight on one connection.
pub(super) struct InFlight {
    slots: Arc<Semaphore>,
    table: Mutex<Table>,
    killed: Notify,
}

struct Table {
    requests: HashMap<u64, Request>,
    next_cookie: u64,
    dead: Option<NbdError>,
}

impl InFlight {
    pub fn new(slots: usize) -> Self {
        let table = Table { requests: HashMap::new(), next_cookie: 1, dead: None };
        Self { slots: Arc::new(Semaphore::new(slots)), table: Mutex::new(table), killed: Notify::new() }
    }

    /// Waits for a place. Nothing is lost when the caller goes away meanwhile.
    pub async fn slot(&self) -> Result<OwnedSemaphorePermit, NbdError> {
        match self.slots.clone().acquire_owned().await {
            Ok(slot) => Ok(slot),
            Err(_) => Err(self.dead().unwrap_or(NbdError::Closed)),
        }
    }

    /// Enters a request; returns its cookie and where its answer will come.
    pub fn enter(
        &self,
        command: Command,
        extent: Extent,
        work: Work,
        slot: OwnedSemaphorePermit,
    ) -> Result<(u64, oneshot::Receiver<Result<Answer, NbdError>>), NbdError> {
        let (answer, reply) = oneshot::channel();
        let chunks_left = work.chunks_max(extent);
        let request = Request { command, extent, work, error: None, chunks_left, answer, _slot: slot };
        let mut table = self.table();
        if let Some(dead) = &table.dead {
            return Err(dead.clone());
        }
        let cookie = table.next_cookie;
        table.next_cookie += 1;
        table.requests.insert(cookie, request);
        Ok((cookie, reply))
    }

    /// Takes a request out, to work on its answer.
    pub fn take(&self, cookie: u64) -> Option<Request> {
        self.table().requests.remove(&cookie)
    }

    /// Puts back a request whose answer is not yet whole.
    pub fn put_back(&self, cookie: u64, request: Request) {
        let mut table = self.table();
        match table.dead.clone() {
            Some(dead) => drop(request.answer.send(Err(dead))),
            None => drop(table.requests.insert(cookie, request)),
        }
    }

    /// Ends everything with `error`. Only the first call counts.
    pub fn kill(&self, error: NbdError) {
        let requests = {
            let mut table = self.table();
            if table.dead.is_some() {
                return;
            }
            table.dead = Some(error.clone());
            std::mem::take(&mut table.requests)
        };
        self.slots.close();
        for request in requests.into_values() {
            let _ = request.answer.send(Err(error.clone()));
        }
        self.killed.notify_one();
    }

    /// Why the connection ended, if it did.
    pub fn dead(&self) -> Option<NbdError> {
        self.table().dead.clone()
    }

    /// Returns once the table was killed.
    pub async fn killed(&self) {
        self.killed.notified().await;
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        // Each change of the table is one step, so a panic elsewhere leaves it whole.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
