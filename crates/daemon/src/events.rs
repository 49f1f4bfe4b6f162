//! Tells whoever watches that something changed: streams of events, `--watch`, progress bars.
//!
//! A notice says *what* changed and carries no truth of its own, save for jobs: the reader looks at the thing. A
//! reader that falls behind loses notices and is told so; nobody waits for it.

use tokio::sync::broadcast;
use understudy_model::job::Job;
use understudy_model::{PeerId, RelationshipId, VmId};

/// Notices kept for slow readers: a burst of all jobs of a host, with room.
const BACKLOG_MAX: usize = 4096;

/// Something changed.
#[derive(Debug, Clone)]
pub enum Notice {
    /// A job is new, went on, or ended. What it says is durable already, save for progress.
    Job(Box<Job>),
    /// A relationship is new or shows something else than before.
    Relationship(RelationshipId),
    /// A relationship is gone from this host.
    RelationshipRemoved(RelationshipId),
    /// A VM was added.
    Vm(VmId),
    /// A VM was removed from this host's list.
    VmRemoved(VmId),
    /// A peer was added or changed.
    Peer(PeerId),
    /// A peer was removed.
    PeerRemoved(PeerId),
}

/// Where notices are given and taken. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Events {
    sender: broadcast::Sender<Notice>,
}

impl Default for Events {
    fn default() -> Self {
        Self::new()
    }
}

impl Events {
    /// Nobody listens yet.
    pub fn new() -> Self {
        Self { sender: broadcast::Sender::new(BACKLOG_MAX) }
    }

    /// Tells everybody who listens now.
    pub fn tell(&self, notice: Notice) {
        // Without listeners there is nobody to tell, and that is in order.
        let _ = self.sender.send(notice);
    }

    /// Listens from now on.
    pub fn listen(&self) -> broadcast::Receiver<Notice> {
        self.sender.subscribe()
    }
}
