//! The service: one file per operation, or per few that differ in a word. Check, answer, start the job; faces
//! translate and nothing else.
//!
//! The first check that fails answers, in this order: the caller's right ([`access`]; by type: an operation cannot be
//! called without a permit), then values, then what this build does not offer, then the state, then the rest. Up to the
//! last check nothing durable has happened. Whatever changes something runs to its end once it has begun, also when
//! the caller has gone away.

pub mod access;
mod failover;
pub mod fake;
mod host;
mod job;
pub mod machines;
pub mod owner;
mod peer_invite;
mod peer_join;
mod peer_list;
mod peer_remove;
mod peer_test;
mod point_list;
pub mod registry;
mod replication_command;
mod replication_create;
mod replication_remove;
mod replication_seed;
mod replication_start;
mod replication_statistics;
mod replication_status;
mod resolve;
mod vm_add;
mod vm_list;
mod vm_remove;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use understudy_model::{JobId, Refusal, ReturnCode};

use crate::audit::{Act, Audit, BegunAct};
use crate::catalogue::Catalogue;
use crate::clock::Clock;
use crate::entropy::Entropy;
use crate::events::Events;
use crate::jobs::{JobTicket, Jobs};
use crate::link::pairing::Pairing;
use crate::link::{Dialler, Trust};
use machines::Machines;
use owner::{Answer, Command, OwnerFactory, RelationshipOwner};
use registry::Registry;

pub use access::{Administer, Caller, Failover, Operate, Permit, View};
pub use host::HostReport;
pub use peer_join::PeerJoin;
pub use peer_list::PeerReport;
pub use peer_remove::PeerRemoved;
pub use replication_create::{DiskChoice, ReplicationCreate};
pub use replication_seed::ReplicationSeed;
pub use replication_start::{InitialReplication, ReplicationStart};
pub use replication_statistics::{Ages, Statistics};
pub use replication_status::RelationshipView;
pub use vm_add::VmAdd;
pub use vm_list::VmView;

/// Time an owner has to accept or refuse a command. Far beyond what it should take; past it the outcome is unknown.
const ASK_LIMIT: Duration = Duration::from_secs(30);

/// The service. Cheap to clone.
#[derive(Clone)]
pub struct Operations {
    parts: Arc<Parts>,
}

/// What the service works with.
pub struct Parts {
    /// What is known durably.
    pub catalogue: Catalogue,
    /// Jobs.
    pub jobs: Jobs,
    /// The owners of relationships.
    pub registry: Registry,
    /// Makes owners.
    pub factory: Arc<dyn OwnerFactory>,
    /// Looks at VMs.
    pub machines: Arc<dyn Machines>,
    /// Whom this host trusts.
    pub trust: Arc<Trust>,
    /// Makes and takes invitations.
    pub pairing: Arc<Pairing>,
    /// Reaches other hosts.
    pub dialler: Arc<Dialler>,
    /// Where security-relevant acts are recorded.
    pub audit: Audit,
    /// Who is told of changes.
    pub events: Events,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Randomness.
    pub entropy: Arc<dyn Entropy>,
    /// What is known of this host from its start.
    pub about: About,
}

/// What is known of this host from its start.
#[derive(Debug, Clone)]
pub struct About {
    /// Its identity.
    pub id: understudy_model::PeerId,
    /// Its name.
    pub name: String,
    /// The address on which other hosts connect.
    pub listen: SocketAddr,
    /// The state directory.
    pub state: PathBuf,
    /// Where replicas are stored.
    pub storage: PathBuf,
    /// Congestion control that new connections get, as the kernel names it.
    pub congestion_control: String,
    /// Times a daemon has been started on this state directory.
    pub starts: u64,
    /// Steady time of the start.
    pub started_at: understudy_model::Timestamp,
    /// The first fault of the audit log's chain, found at the start.
    pub audit_fault: Option<String>,
}

/// What a call that was carried out answers: 0, or 4096 and a job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Done<T = ()> {
    /// The job that goes on with it.
    pub job: Option<JobId>,
    /// What else there is to say.
    pub value: T,
}

impl<T> Done<T> {
    /// Done, with nothing to follow.
    pub fn now(value: T) -> Self {
        Self { job: None, value }
    }

    /// The number to answer.
    pub fn code(&self) -> ReturnCode {
        if self.job.is_some() { ReturnCode::JobStarted } else { ReturnCode::Completed }
    }
}

impl From<Answer> for Done {
    fn from(answer: Answer) -> Self {
        match answer {
            Answer::Done => Done::now(()),
            Answer::Job(id) => Done { job: Some(id), value: () },
        }
    }
}

impl Operations {
    /// The service made of these parts.
    pub fn new(parts: Parts) -> Self {
        Self { parts: Arc::new(parts) }
    }

    /// Who is told of changes, for streams of events.
    pub fn events(&self) -> &Events {
        &self.parts.events
    }

    /// Asks an owner, within the time it has.
    async fn ask(&self, owner: &dyn RelationshipOwner, command: Command, ticket: JobTicket) -> Result<Answer, Refusal> {
        let answer = tokio::time::timeout(ASK_LIMIT, owner.ask(command, ticket)).await;
        answer.unwrap_or_else(|_| {
            Err(Refusal::new(ReturnCode::StatusUnknown, "it is not known yet whether this will be carried out")
                .hint("look at the state of the VM's replication before asking again"))
        })
    }

    /// Asks an owner for something that belongs into the audit log, whose outcome is written when it is known.
    async fn ask_audited(
        &self,
        act: Act,
        owner: &dyn RelationshipOwner,
        command: Command,
        ticket: JobTicket,
    ) -> Result<Done, Refusal> {
        let begun = self.parts.audit.begin(act).await?;
        match self.ask(owner, command, ticket).await {
            Ok(Answer::Job(id)) => {
                self.follow(begun, id);
                Ok(Answer::Job(id).into())
            }
            Ok(Answer::Done) => {
                begun.done().await;
                Ok(Answer::Done.into())
            }
            Err(refusal) => {
                begun.refused(&refusal).await;
                Err(refusal)
            }
        }
    }

    /// Writes a job's outcome into the audit log once it has ended.
    fn follow(&self, begun: BegunAct, id: JobId) {
        let jobs = self.parts.jobs.clone();
        tokio::spawn(async move {
            let outcome = match jobs.wait(id).await {
                Some(job) => match job.error {
                    Some(error) => format!("job {id} {}: {}", job.state.name(), error.description),
                    None => format!("job {id} {}", job.state.name()),
                },
                None => format!("job {id} is unknown"),
            };
            begun.end(outcome).await;
        });
    }
}

/// Runs a change to its end, whether or not the caller still waits for it. A panic inside becomes a refusal.
async fn to_the_end<T: Send + 'static>(
    change: impl Future<Output = Result<T, Refusal>> + Send + 'static,
) -> Result<T, Refusal> {
    tokio::spawn(change).await.unwrap_or_else(|_| {
        Err(Refusal::new(ReturnCode::StatusUnknown, "the call failed by a fault of this program")
            .hint("the log has the details; look at the state of things before asking again"))
    })
}

fn invalid(reason: impl Into<String>) -> Refusal {
    Refusal::new(ReturnCode::InvalidParameter, reason)
}
