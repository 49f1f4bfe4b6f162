//! Jobs as recorded: see [`crate::jobs`] for what they are.

use rusqlite::Row;
use understudy_model::ReturnCode;
use understudy_model::job::{Job, JobError, JobKind, JobState};
use understudy_model::{JobId, VmId};

use super::rows::{Column, column, optional, signed, unsigned};
use super::{Catalogue, CatalogueError};

impl Catalogue {
    /// Records a job, new or changed.
    pub async fn save_job(&self, job: Job) -> Result<(), CatalogueError> {
        self.write(move |c| {
            // What has ended stays as it ended: a late note of progress never wakes it up again.
            let sql = "INSERT INTO job (id, kind, vm, state, percent, bytes_done, bytes_total, status, submitted_at,
                         started_at, ended_at, cancellable, error_code, error_text, error_hint, scheduled_at)
                       VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16)
                       ON CONFLICT (id) DO UPDATE SET state = ?4, percent = ?5, bytes_done = ?6, bytes_total = ?7,
                         status = ?8, started_at = ?10, ended_at = ?11, cancellable = ?12, error_code = ?13,
                         error_text = ?14, error_hint = ?15
                       WHERE ended_at IS NULL";
            let error = job.error.as_ref();
            let values = rusqlite::params![
                Column(job.id),
                job.kind.value(),
                job.vm.map(Column),
                job.state.value(),
                job.percent,
                signed(job.bytes_done),
                signed(job.bytes_total),
                job.status,
                Column(job.submitted_at),
                job.started_at.map(Column),
                job.ended_at.map(Column),
                job.cancellable,
                error.map(|e| e.code.value()),
                error.map(|e| &e.description),
                error.map(|e| &e.hint),
                job.scheduled_at.map(Column)
            ];
            let saved = c.prepare_cached(sql).and_then(|mut s| s.execute(values));
            saved.map_err(CatalogueError::doing("record a job")).map(|_| ())
        })
        .await
    }

    /// Forgets jobs.
    pub async fn remove_jobs(&self, ids: Vec<JobId>) -> Result<(), CatalogueError> {
        self.write(move |c| {
            let doing = CatalogueError::doing("remove jobs");
            let mut statement = c.prepare_cached("DELETE FROM job WHERE id = ?1").map_err(doing)?;
            ids.into_iter().try_for_each(|id| statement.execute([Column(id)]).map(|_| ()).map_err(doing))
        })
        .await
    }

    /// All jobs, oldest first.
    pub async fn jobs(&self) -> Result<Vec<Job>, CatalogueError> {
        self.read(|c| {
            let doing = CatalogueError::doing("read the jobs");
            let mut statement = c.prepare_cached("SELECT * FROM job ORDER BY submitted_at, id").map_err(doing)?;
            let rows = statement.query_map([], raw).map_err(doing)?;
            rows.map(|row| row.map_err(doing).and_then(finish)).collect()
        })
        .await
    }
}

/// A row whose numbers have not been understood yet.
struct RawJob {
    job: Job,
    kind: u16,
    state: u16,
    error: Option<(u32, String, String)>,
}

fn raw(row: &Row<'_>) -> rusqlite::Result<RawJob> {
    let job = Job {
        id: column(row, "id")?,
        kind: JobKind::Create,
        vm: optional::<VmId>(row, "vm")?,
        state: JobState::New,
        percent: row.get("percent")?,
        bytes_done: unsigned(row, "bytes_done")?,
        bytes_total: unsigned(row, "bytes_total")?,
        status: row.get("status")?,
        submitted_at: column(row, "submitted_at")?,
        scheduled_at: optional(row, "scheduled_at")?,
        started_at: optional(row, "started_at")?,
        ended_at: optional(row, "ended_at")?,
        cancellable: row.get("cancellable")?,
        error: None,
    };
    let error = match row.get::<_, Option<u32>>("error_code")? {
        Some(code) => Some((code, row.get("error_text")?, row.get("error_hint")?)),
        None => None,
    };
    Ok(RawJob { job, kind: row.get("kind")?, state: row.get("state")?, error })
}

fn finish(raw: RawJob) -> Result<Job, CatalogueError> {
    let kind = JobKind::from_value(raw.kind).ok_or_else(|| CatalogueError::row("kind of job", raw.kind))?;
    let state = JobState::from_value(raw.state).ok_or_else(|| CatalogueError::row("state of a job", raw.state))?;
    let error = raw.error.map(|(code, description, hint)| JobError {
        code: ReturnCode::from_value(code).unwrap_or(ReturnCode::Failed),
        description,
        hint,
    });
    Ok(Job { kind, state, error, ..raw.job })
}
