//! Shows jobs, waits for them, and asks them to end early.

use std::time::Duration;

use understudy_model::job::Job;
use understudy_model::{JobId, Refusal};

use super::{Done, Operate, Operations, Permit, View, to_the_end};
use crate::jobs::unknown;

/// Longest single wait; whoever wants more asks again.
pub const WAIT_MAX: Duration = Duration::from_secs(60);

impl Operations {
    /// All jobs, newest first.
    pub fn job_list(&self, _permit: &Permit<View>) -> Vec<Job> {
        self.parts.jobs.list()
    }

    /// One job.
    pub fn job_show(&self, _permit: &Permit<View>, id: JobId) -> Result<Job, Refusal> {
        self.parts.jobs.get(id).ok_or_else(|| unknown(id))
    }

    /// The job that an answer names, for those who were given the answer.
    pub fn job_of_answer(&self, id: JobId) -> Option<Job> {
        self.parts.jobs.get(id)
    }

    /// Waits until a job has ended, at most for `limit`; then shows it as it is.
    pub async fn job_wait(&self, _permit: &Permit<View>, id: JobId, limit: Duration) -> Result<Job, Refusal> {
        match tokio::time::timeout(limit.min(WAIT_MAX), self.parts.jobs.wait(id)).await {
            Ok(job) => job.ok_or_else(|| unknown(id)),
            Err(_) => self.parts.jobs.get(id).ok_or_else(|| unknown(id)),
        }
    }

    /// Asks a job to end early.
    pub async fn job_cancel(&self, _permit: &Permit<Operate>, id: JobId) -> Result<Done<Job>, Refusal> {
        let jobs = self.parts.jobs.clone();
        to_the_end(async move { jobs.cancel(id).await.map(Done::now) }).await
    }
}
