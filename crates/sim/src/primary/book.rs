//! What the primary's daemon made durable: the record of the relationship, and the ends of jobs.
//!
//! Each write is whole or not there, as a transaction of the catalogue is. A state directory that is full refuses
//! writes until it has room again.

use std::collections::BTreeMap;

use understudy_engine::primary::Record;
use understudy_hypervisor::driver::ImageRecord;
use understudy_model::{JobId, Refusal};

/// See the module's description.
#[derive(Debug, Default)]
pub struct Book {
    record: Option<Record>,
    images: Vec<ImageRecord>,
    jobs: BTreeMap<JobId, Option<Result<(), Refusal>>>,
    /// Whether the state directory takes nothing at present.
    pub is_full: bool,
}

impl Book {
    /// The record, if there is a relationship.
    pub fn record(&self) -> Option<&Record> {
        self.record.as_ref()
    }

    /// The images as they were at the last cut whose acknowledgement was recorded.
    pub fn images(&self) -> &[ImageRecord] {
        &self.images
    }

    /// Writes the record, and what is known of the images; false if there is no room.
    pub fn save(&mut self, record: &Record, images: &[ImageRecord]) -> bool {
        if !self.is_full {
            self.record = Some(record.clone());
            self.images = images.to_vec();
        }
        !self.is_full
    }

    /// Forgets the relationship.
    pub fn forget(&mut self) {
        self.record = None;
    }

    /// Begins a job.
    pub fn begin_job(&mut self, job: JobId) {
        self.jobs.insert(job, None);
    }

    /// Ends a job; an end once recorded stays.
    pub fn finish_job(&mut self, job: JobId, result: Result<(), Refusal>) {
        let end = self.jobs.entry(job).or_insert(None);
        if end.is_none() {
            *end = Some(result);
        }
    }

    /// After a restart: jobs that nobody goes on with end as failures.
    pub fn settle_orphans(&mut self, adopted: Option<JobId>) -> Vec<JobId> {
        let orphans = self.jobs.iter().filter(|(job, end)| end.is_none() && Some(**job) != adopted);
        let orphans: Vec<JobId> = orphans.map(|(job, _)| *job).collect();
        for job in &orphans {
            let why = "the service was restarted while this was under way";
            let refusal = Refusal::new(understudy_model::ReturnCode::Failed, why);
            self.jobs.insert(*job, Some(Err(refusal)));
        }
        orphans
    }

    /// Every job, with its end if it has one.
    pub fn jobs(&self) -> &BTreeMap<JobId, Option<Result<(), Refusal>>> {
        &self.jobs
    }
}
