//! What all transfers of a host share: memory for jobs, so that it never grows with disks or VMs.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Jobs of all transfers under way at once: 16 of at most 1 MiB read and 1 MiB packed stay within 32 MiB.
const JOBS_MAX: usize = 16;

/// The host's share-out of jobs. Fair: whoever asked first is served first, so one VM delays another by a job at most.
#[derive(Debug, Clone)]
pub struct Budget {
    jobs: Arc<Semaphore>,
}

impl Default for Budget {
    fn default() -> Self {
        Self { jobs: Arc::new(Semaphore::new(JOBS_MAX)) }
    }
}

impl Budget {
    /// Waits for leave to run a job; dropping the result gives it back.
    pub async fn job(&self) -> OwnedSemaphorePermit {
        self.jobs.clone().acquire_owned().await.expect("the semaphore is never closed")
    }
}
