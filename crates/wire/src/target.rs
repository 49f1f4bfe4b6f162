//! The receiving end of a connection: which frames may come when.
//!
//! ```text
//!   greeting ──hello──▶ unbound ──open──▶ bound ──base-begin──▶ base ──(first cycle-begin)──▶ cycle
//!                          │                ▲ ╰──cycle-begin──▶ cycle ──cycle-end/abandon──▶ bound
//!                          ├─join, test, prepare (stay)    ├──compare-begin──▶ compare ──cycle-begin──▶ cycle
//!                          ╰─attach──▶ carrier (bulk frames only)
//! ```
//!
//! The machine decides on order, numbers and kinds alone; whether the peer *may* (its key, its VM, its generation) is
//! decided by whoever carries out what comes out of here. A frame that does not fit closes the connection.

use bytes::Bytes;

use crate::bulk::{self, BaseRecord, BulkError};
use crate::frame::{Frame, FrameKind};
use crate::message::{Hello, Message, MessageError};
use crate::{VERSIONS, limits};
use understudy_model::DiskId;

/// What came in, whole and in order.
#[derive(Debug, PartialEq)]
pub enum Incoming {
    /// A control message.
    Message(Message),
    /// Records of an initial replication.
    Base(DiskId, Vec<BaseRecord>),
    /// A batch of a cycle's run.
    Cycle(DiskId, Bytes),
    /// Part of a blob: name, offset, bytes.
    Blob([u8; 32], u64, Bytes),
    /// A bulk frame on a carrier connection: to be put in order with the others of its session first.
    Carried(Frame),
}

/// Why the other side cannot be followed any further.
#[derive(Debug, thiserror::Error)]
pub enum ProtocolError {
    /// A frame that may not come now.
    #[error("{what} may not come while the connection is {phase}")]
    Order {
        /// What came.
        what: &'static str,
        /// Where we stood.
        phase: &'static str,
    },
    /// A frame of another session.
    #[error("a frame of session {given} came in session {open}")]
    Session {
        /// What the frame says.
        given: u64,
        /// What is open.
        open: u64,
    },
    /// No common version.
    #[error("the peer speaks protocol versions {min} to {max}, this host {} to {}", VERSIONS.0, VERSIONS.1)]
    Version {
        /// The peer's lowest.
        min: u16,
        /// The peer's highest.
        max: u16,
    },
    /// An unreadable message.
    #[error("a message cannot be accepted")]
    Message(#[from] MessageError),
    /// An unreadable bulk payload.
    #[error("bulk data cannot be accepted")]
    Bulk(#[from] BulkError),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Greeting,
    Unbound,
    Bound,
    Base,
    Compare,
    Cycle,
    Carrier,
}

impl Phase {
    fn name(self) -> &'static str {
        match self {
            Phase::Greeting => "not greeted",
            Phase::Unbound => "without a session",
            Phase::Bound => "idle in its session",
            Phase::Base => "in an initial replication",
            Phase::Compare => "in a comparison",
            Phase::Cycle => "in a cycle",
            Phase::Carrier => "a carrier",
        }
    }
}

/// See the module's description.
#[derive(Debug)]
pub struct Target {
    phase: Phase,
    session: u64,
}

impl Default for Target {
    fn default() -> Self {
        Self::new()
    }
}

impl Target {
    /// A fresh connection.
    pub fn new() -> Self {
        Self { phase: Phase::Greeting, session: 0 }
    }

    /// Checks the next frame and says what it is.
    pub fn accept(&mut self, frame: Frame) -> Result<Incoming, ProtocolError> {
        if frame.session != self.session {
            return Err(ProtocolError::Session { given: frame.session, open: self.session });
        }
        match (frame.kind, self.phase) {
            (FrameKind::Message, _) => self.accept_message(&frame.payload).map(Incoming::Message),
            (_, Phase::Carrier) => Ok(Incoming::Carried(frame)),
            (kind, _) => self.read_bulk(kind, &frame.payload),
        }
    }

    /// Reads a bulk frame that was put in order, by the phase of the session's own connection.
    pub fn read_bulk(&self, kind: FrameKind, payload: &Bytes) -> Result<Incoming, ProtocolError> {
        match (kind, self.phase) {
            (FrameKind::BaseData, Phase::Base) => {
                let (disk, records) = bulk::read_base(payload)?;
                Ok(Incoming::Base(disk, records))
            }
            (FrameKind::CycleData, Phase::Cycle) => {
                let (disk, batch) = bulk::read_cycle(payload)?;
                Ok(Incoming::Cycle(disk, batch))
            }
            (FrameKind::BlobData, Phase::Bound | Phase::Base | Phase::Compare) => {
                let (name, offset, bytes) = bulk::read_blob(payload)?;
                Ok(Incoming::Blob(name, offset, bytes))
            }
            _ => Err(self.order("bulk data")),
        }
    }

    /// To be called when an `open` or `attach` was granted: later frames must bear the session's number.
    pub fn granted(&mut self, session: u64, carrier: bool) {
        self.session = session;
        self.phase = if carrier { Phase::Carrier } else { Phase::Bound };
    }

    /// To be called when a request that changed the phase was refused: the session is idle again.
    pub fn refused(&mut self) {
        if matches!(self.phase, Phase::Base | Phase::Compare | Phase::Cycle) {
            self.phase = Phase::Bound;
        }
    }

    fn accept_message(&mut self, payload: &[u8]) -> Result<Message, ProtocolError> {
        let message = Message::from_payload(payload)?;
        let next = match (&message, self.phase) {
            (Message::Hello(hello), Phase::Greeting) => {
                choose_version(hello)?;
                Phase::Unbound
            }
            (Message::Join(_) | Message::Test | Message::Prepare(_), Phase::Unbound) => self.phase,
            (Message::Open(_) | Message::Attach(_), Phase::Unbound) => self.phase,
            (Message::Ping(_), phase) if phase != Phase::Greeting => phase,
            (Message::Blobs(_) | Message::Settings(_), Phase::Bound | Phase::Base | Phase::Compare) => self.phase,
            (Message::BaseBegin(_), Phase::Bound | Phase::Base) => Phase::Base,
            (Message::BaseSync(_), Phase::Base) => Phase::Base,
            (Message::CompareBegin(_), Phase::Bound | Phase::Compare) => Phase::Compare,
            (Message::Offer(_), Phase::Base | Phase::Compare) => self.phase,
            (Message::OfferParts(_), Phase::Compare) => self.phase,
            (Message::CycleBegin(_), Phase::Bound | Phase::Base | Phase::Compare) => Phase::Cycle,
            (Message::CycleEnd(_) | Message::CycleAbandon(_), Phase::Cycle) => Phase::Bound,
            _ => return Err(self.order(message.name())),
        };
        self.phase = next;
        Ok(message)
    }

    fn order(&self, what: &'static str) -> ProtocolError {
        ProtocolError::Order { what, phase: self.phase.name() }
    }
}

/// The highest version both sides speak.
pub fn choose_version(hello: &Hello) -> Result<u16, ProtocolError> {
    let version = hello.version_max.min(VERSIONS.1);
    if version >= hello.version_min.max(VERSIONS.0) {
        Ok(version)
    } else {
        Err(ProtocolError::Version { min: hello.version_min, max: hello.version_max })
    }
}

impl Message {
    /// The word for errors and logs.
    pub fn name(&self) -> &'static str {
        match self {
            Message::Hello(_) => "hello",
            Message::Welcome(_) => "welcome",
            Message::Join(_) => "join",
            Message::Joined(_) => "joined",
            Message::Test => "test",
            Message::Prepare(_) => "prepare",
            Message::Open(_) => "open",
            Message::Opened(_) => "opened",
            Message::Attach(_) => "attach",
            Message::Blobs(_) => "blobs",
            Message::Missing(_) => "missing",
            Message::BaseBegin(_) => "base-begin",
            Message::BasePositions(_) => "base-positions",
            Message::BaseSync(_) => "base-sync",
            Message::CompareBegin(_) => "compare-begin",
            Message::Offer(_) => "offer",
            Message::Wanted(_) => "wanted",
            Message::OfferParts(_) => "offer-parts",
            Message::WantedParts(_) => "wanted-parts",
            Message::CycleBegin(_) => "cycle-begin",
            Message::CycleEnd(_) => "cycle-end",
            Message::CycleAcked(_) => "cycle-acked",
            Message::CycleAbandon(_) => "cycle-abandon",
            Message::Settings(_) => "settings",
            Message::Notice(_) => "notice",
            Message::Ping(_) => "ping",
            Message::Pong(_) => "pong",
            Message::Done => "done",
            Message::Refused(_) => "refused",
        }
    }
}

/// The greeting of this build.
pub fn hello(software: &str, host: &str) -> Hello {
    let cut = |s: &str| s.chars().take(limits::NAME_MAX / 4).collect();
    Hello {
        version_min: VERSIONS.0,
        version_max: VERSIONS.1,
        software: cut(software),
        host: cut(host),
        features: vec![],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::{BaseBegin, CycleEnd, Open, Ping, Relationship, Settings};

    fn say(target: &mut Target, message: &Message, session: u64) -> Result<Incoming, ProtocolError> {
        target.accept(message.to_frame(1, session))
    }

    fn open() -> Message {
        let relationship = Relationship { vm: uuid::Uuid::nil(), leg: 0 };
        let settings = Settings::from(&understudy_model::Settings::default());
        Message::Open(Open { relationship, generation: 1, session: 5, settings })
    }

    fn bound() -> Target {
        let mut target = Target::new();
        say(&mut target, &Message::Hello(hello("t", "h")), 0).unwrap();
        say(&mut target, &open(), 0).unwrap();
        target.granted(5, false);
        target
    }

    #[test]
    fn nothing_but_a_greeting_opens_a_connection() {
        for message in [Message::Test, open(), Message::Ping(Ping { token: 0 }), Message::Done] {
            assert!(matches!(say(&mut Target::new(), &message, 0), Err(ProtocolError::Order { .. })));
        }
    }

    #[test]
    fn data_is_only_taken_where_it_was_announced() {
        let data = |kind| Frame { kind, version: 1, session: 5, sequence: 0, payload: vec![0; 40].into() };
        let mut target = bound();
        assert!(target.accept(data(FrameKind::CycleData)).is_err());
        assert!(target.accept(data(FrameKind::BaseData)).is_err());
        say(&mut target, &Message::BaseBegin(BaseBegin { attempt: 1, disks: vec![], seeded: false }), 5).unwrap();
        assert!(target.accept(data(FrameKind::CycleData)).is_err());
        let empty = Frame { payload: vec![0; 8].into(), ..data(FrameKind::BaseData) };
        assert_eq!(target.accept(empty).unwrap(), Incoming::Base(DiskId(0), vec![]));
    }

    #[test]
    fn a_frame_of_another_session_is_refused() {
        let mut target = bound();
        let err = say(&mut target, &Message::Ping(Ping { token: 0 }), 4).unwrap_err();
        assert!(matches!(err, ProtocolError::Session { given: 4, open: 5 }));
    }

    #[test]
    fn a_cycle_cannot_end_before_it_began() {
        let end = Message::CycleEnd(CycleEnd { number: 1, frames: 0, digest: "00".repeat(32) });
        assert!(say(&mut bound(), &end, 5).is_err());
    }

    #[test]
    fn sides_without_a_common_version_name_both() {
        let old = Hello { version_min: 7, version_max: 9, ..hello("t", "h") };
        let err = choose_version(&old).unwrap_err();
        assert_eq!(err.to_string(), "the peer speaks protocol versions 7 to 9, this host 1 to 1");
        let wide = Hello { version_min: 0, version_max: 9, ..hello("t", "h") };
        assert_eq!(choose_version(&wide).unwrap(), 1);
    }

    #[test]
    fn answers_never_come_to_the_target() {
        let mut target = bound();
        for message in [Message::Done, Message::Pong(Ping { token: 0 })] {
            assert!(matches!(say(&mut target, &message, 5), Err(ProtocolError::Order { .. })));
        }
    }
}
