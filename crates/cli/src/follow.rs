//! Follows a job to its end: a bar with rate and time left on a terminal, plain lines elsewhere.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::Value;
use understudy_daemon::faces::rest::types::Job;

use crate::client::{Client, path, read};
use crate::failure::Failure;
use crate::show;

/// Between two plain lines, unless the words change.
const LINE_EVERY: Duration = Duration::from_secs(10);

/// Waits for the end of a job and shows how far it is, unless `quiet`. A job that ended badly is a failure.
pub async fn job(client: &Client, id: &str, quiet: bool) -> Result<Value, Failure> {
    let mut shown = Shown::new(quiet);
    let ask = path("/api/v1/jobs", id, "/wait?seconds=1");
    loop {
        let answer = client.get(&ask).await?;
        let job: Job = read(&answer)?;
        shown.update(&job);
        if job.has_ended {
            shown.clear();
            return if job.state == "completed" { Ok(answer) } else { Err(Failure::Job(Box::new(job))) };
        }
    }
}

/// Follows a job that began another for the same VM (the transfer of an initial replication) to the end of both.
pub async fn job_and_transfer(client: &Client, id: &str, quiet: bool) -> Result<Value, Failure> {
    let ended = job(client, id, quiet).await?;
    let first: Job = read(&ended)?;
    let jobs: Vec<Job> = read(&client.get("/api/v1/jobs").await?)?;
    let transfer =
        jobs.iter().find(|j| j.kind == "send-initial" && j.vm == first.vm && j.submitted_at >= first.submitted_at);
    match transfer {
        Some(transfer) => job(client, &transfer.id, quiet).await,
        None => Ok(ended),
    }
}

enum Shown {
    Nothing,
    Bar { bar: ProgressBar, moves_bytes: Option<bool> },
    Lines { last: Option<(Instant, String)> },
}

impl Shown {
    fn new(quiet: bool) -> Self {
        if quiet {
            Shown::Nothing
        } else if std::io::stderr().is_terminal() {
            Shown::Bar { bar: ProgressBar::new(100), moves_bytes: None }
        } else {
            Shown::Lines { last: None }
        }
    }

    fn update(&mut self, job: &Job) {
        match self {
            Shown::Nothing => {}
            Shown::Bar { bar, moves_bytes } => {
                let moves = job.bytes_total > 0;
                if *moves_bytes != Some(moves) {
                    *moves_bytes = Some(moves);
                    bar.set_style(style(moves));
                }
                let (at, len) = if moves { (job.bytes_done, job.bytes_total) } else { (job.percent.into(), 100) };
                bar.set_length(len);
                bar.set_position(at);
                bar.set_message(job.status.clone());
            }
            Shown::Lines { last } => {
                let due = last.as_ref().is_none_or(|(at, status)| at.elapsed() >= LINE_EVERY || *status != job.status);
                if due && !job.has_ended {
                    eprintln!("{}", line(job));
                    *last = Some((Instant::now(), job.status.clone()));
                }
            }
        }
    }

    fn clear(&self) {
        if let Shown::Bar { bar, .. } = self {
            bar.finish_and_clear();
        }
    }
}

fn style(moves_bytes: bool) -> ProgressStyle {
    let template = if moves_bytes {
        "{msg}  {wide_bar} {binary_bytes} of {binary_total_bytes}  {binary_bytes_per_sec}  {eta} left"
    } else {
        "{msg}  {wide_bar} {percent} %  {elapsed}"
    };
    ProgressStyle::with_template(template).expect("the template is a constant of the right form")
}

fn line(job: &Job) -> String {
    if job.bytes_total > 0 {
        let (done, total) = (show::bytes(job.bytes_done), show::bytes(job.bytes_total));
        format!("{}: {} %, {done} of {total}", job.status, job.percent)
    } else {
        format!("{}: {} %", job.status, job.percent)
    }
}
