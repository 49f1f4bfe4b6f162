//! The commands that ask the service: one file for each noun.

mod failover;
mod host;
mod job;
mod peer;
mod point;
mod replication;
mod vm;

use std::path::PathBuf;

use serde_json::Value;

use crate::arguments::Command;
use crate::client::Client;
use crate::failure::Failure;
use crate::{follow, show};

/// What every command works with.
pub struct Session {
    client: Client,
    json: bool,
}

/// Runs a command.
pub async fn run(command: Command, socket: Option<PathBuf>, json: bool) -> Result<(), Failure> {
    let session = Session { client: Client::new(socket), json };
    match command {
        Command::Peer(verb) => session.peer(verb).await,
        Command::Vm(verb) => session.vm(verb).await,
        Command::Replication(verb) => session.replication(verb).await,
        Command::Point(verb) => session.point(verb).await,
        Command::Failover(verb) => session.failover(verb).await,
        Command::Job(verb) => session.job(verb).await,
        Command::Host(verb) => session.host(verb).await,
        Command::Serve(_) | Command::Openapi | Command::Guard => unreachable!("these do not ask the service"),
    }
}

impl Session {
    /// Prints an answer: as it came with `--json`, else through `people`.
    fn tell(&self, answer: &Value, people: impl FnOnce() -> Result<(), Failure>) -> Result<(), Failure> {
        if self.json {
            show::json(answer);
            return Ok(());
        }
        people()
    }

    /// Follows the job of an answer, if it has one, to its end; the answer then bears the ended job.
    async fn finish(&self, mut answer: Value) -> Result<Value, Failure> {
        let id = answer.get("job").and_then(|job| job.get("id")).and_then(Value::as_str).map(str::to_owned);
        if let Some(id) = id {
            answer["job"] = follow::job(&self.client, &id, self.json).await?;
        }
        Ok(answer)
    }

    /// Carries a call through, job included, and says that it was.
    async fn carry(&self, answer: Value, said: &str) -> Result<(), Failure> {
        let answer = self.finish(answer).await?;
        self.tell(&answer, || {
            println!("{said}");
            Ok(())
        })
    }
}
