//! Tests the connection to another host (`TestReplicationConnection`): can it be reached, is its key the one that is
//! trusted, does it trust ours, do we speak a common version.
//!
//! Only hosts that are trusted here can be tested: nobody makes this host knock elsewhere.

use std::time::Duration;

use understudy_model::job::JobKind;
use understudy_model::{PeerId, Refusal, ReturnCode};
use understudy_wire::message::Message;

use super::{Administer, Done, Operations, Permit, to_the_end};

/// Time the host has to answer once it is connected.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);

impl Operations {
    /// Tests the connection to a peer. The job tells how it went.
    pub async fn peer_test(&self, _permit: &Permit<Administer>, peer: &str) -> Result<Done, Refusal> {
        let peer = self.find_peer(peer)?.id;
        let this = self.clone();
        to_the_end(async move { this.peer_test_now(peer).await }).await
    }

    async fn peer_test_now(&self, peer: PeerId) -> Result<Done, Refusal> {
        let under_way =
            |job: &understudy_model::job::Job| job.kind == JobKind::TestConnection && !job.state.is_terminal();
        if self.parts.jobs.list().iter().any(under_way) {
            return Err(Refusal::new(ReturnCode::SystemInUse, "a connection is being tested already")
                .hint("wait for its job to end"));
        }
        let job = self.parts.jobs.ticket(JobKind::TestConnection, None).begin("connecting").await?;
        let (id, this) = (job.id(), self.clone());
        tokio::spawn(async move { job.end(this.knock(peer).await).await });
        Ok(Done { job: Some(id), value: () })
    }

    async fn knock(&self, peer: PeerId) -> Result<(), Refusal> {
        let mut connection = self.parts.dialler.connect(peer).await.map_err(|err| err.refusal())?;
        match connection.request(&Message::Test, ANSWER_LIMIT).await {
            Ok(Message::Done) => Ok(()),
            Ok(other) => Err(Refusal::new(ReturnCode::Failed, format!("the host answered {:?}", other.name()))),
            Err(err) => Err(err.refusal()),
        }
    }
}
