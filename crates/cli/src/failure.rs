//! How a command fails: what is printed, and the exit code.

use std::path::PathBuf;
use std::process::ExitCode;

use understudy_daemon::faces::rest::types;

/// Why a command did not do what was asked.
#[derive(Debug)]
pub enum Failure {
    /// The service said no.
    Refused(types::Error),
    /// Nobody answers at the socket.
    Unreachable {
        /// The socket.
        socket: PathBuf,
        /// Why.
        cause: String,
    },
    /// A job that was waited for ended badly.
    Job(Box<types::Job>),
    /// Somebody was asked and did not say yes.
    NotConfirmed,
    /// Anything else.
    Other(anyhow::Error),
}

impl From<anyhow::Error> for Failure {
    fn from(err: anyhow::Error) -> Self {
        Failure::Other(err)
    }
}

impl Failure {
    /// Prints it on standard error: as text with a hint, or as the API's object.
    pub fn print(&self, json: bool) {
        if json {
            eprintln!("{}", self.object());
            return;
        }
        let (reason, hint) = self.words();
        eprintln!("error: {reason}");
        if !hint.is_empty() {
            eprintln!("hint: {hint}");
        }
    }

    /// The exit code, as the manual tells it.
    pub fn exit_code(&self) -> ExitCode {
        ExitCode::from(match self {
            Failure::Refused(_) | Failure::Other(_) => 1,
            Failure::Unreachable { .. } => 3,
            Failure::Job(job) if job.state == "terminated" => 5,
            Failure::Job(_) => 4,
            Failure::NotConfirmed => 6,
        })
    }

    fn words(&self) -> (String, String) {
        match self {
            Failure::Refused(error) if error.code == 0 => (error.reason.clone(), error.hint.clone()),
            Failure::Refused(error) => {
                (format!("{} ({}, {})", error.reason, error.name, error.code), error.hint.clone())
            }
            Failure::Unreachable { socket, cause } => {
                let hint =
                    "is the service running on this host? Another socket is chosen with --socket or UNDERSTUDY_SOCKET";
                (format!("cannot reach the service at {}: {cause}", socket.display()), hint.to_owned())
            }
            Failure::Job(job) => match &job.error {
                Some(error) => {
                    let reason =
                        format!("job {} failed: {} ({}, {})", job.id, error.description, error.name, error.code);
                    (reason, error.hint.clone())
                }
                None => (format!("job {} was {}", job.id, word_for_end(&job.state)), String::new()),
            },
            Failure::NotConfirmed => ("not confirmed; nothing was done".to_owned(), String::new()),
            Failure::Other(err) => (format!("{err:#}"), String::new()),
        }
    }

    fn object(&self) -> String {
        let object = match self {
            Failure::Refused(error) => serde_json::to_string(error),
            Failure::Job(job) => serde_json::to_string(job),
            other => {
                let (reason, hint) = other.words();
                serde_json::to_string(&types::Error { code: 0, name: "Error".to_owned(), reason, hint })
            }
        };
        object.expect("the API's types can be written as JSON")
    }
}

fn word_for_end(state: &str) -> &str {
    match state {
        "terminated" => "cancelled",
        other => other,
    }
}
