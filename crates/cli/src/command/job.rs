//! `understudy job`

use understudy_daemon::faces::rest::types;

use super::Session;
use crate::arguments::Job;
use crate::client::{path, read};
use crate::failure::Failure;
use crate::{follow, show};

const JOBS: &str = "/api/v1/jobs";

impl Session {
    pub(super) async fn job(&self, verb: Job) -> Result<(), Failure> {
        match verb {
            Job::List => {
                let answer = self.client.get(JOBS).await?;
                self.tell(&answer, || {
                    let jobs: Vec<types::Job> = read(&answer)?;
                    let header = ["JOB", "DOES", "STATE", "DONE", "ASKED FOR", "NOW"];
                    show::table(&header, jobs.into_iter().map(row).collect());
                    Ok(())
                })
            }
            Job::Show { id } => {
                let answer = self.client.get(&path(JOBS, &id, "")).await?;
                self.tell(&answer, || {
                    show::details(&lines(&read(&answer)?));
                    Ok(())
                })
            }
            Job::Wait { id } => {
                let answer = follow::job(&self.client, &id, self.json).await?;
                self.tell(&answer, || {
                    println!("Job {id} is completed.");
                    Ok(())
                })
            }
            Job::Cancel { id } => {
                let answer = self.client.act(&path(JOBS, &id, "/cancel")).await?;
                self.tell(&answer, || {
                    println!("Job {id} was asked to end.");
                    Ok(())
                })
            }
        }
    }
}

fn row(job: types::Job) -> Vec<String> {
    let now = job.error.as_ref().map_or(job.status.clone(), |error| error.description.clone());
    vec![job.id, job.kind, job.state, format!("{} %", job.percent), show::time(&job.submitted_at), now]
}

fn lines(job: &types::Job) -> Vec<(&'static str, String)> {
    let mut lines = vec![
        ("Job", job.id.clone()),
        ("Does", format!("{} ({})", job.kind, job.kind_value)),
        ("VM", show::or_dash(job.vm.clone())),
        ("State", format!("{} ({})", job.state, job.state_value)),
        ("Now", job.status.clone()),
    ];
    let done = match job.bytes_total {
        0 => format!("{} %", job.percent),
        total => format!("{} %, {} of {}", job.percent, show::bytes(job.bytes_done), show::bytes(total)),
    };
    lines.push(("Done", done));
    lines.push(("Asked for", show::time(&job.submitted_at)));
    lines.extend(job.ended_at.as_deref().map(|at| ("Ended", show::time(at))));
    if let Some(error) = &job.error {
        lines.push(("Error", format!("{} ({}, {})", error.description, error.name, error.code)));
        if !error.hint.is_empty() {
            lines.push(("Hint", error.hint.clone()));
        }
    }
    lines
}
