//! Control messages: JSON inside a frame of kind [`FrameKind::Message`].
//!
//! These types are the contract between versions: fields are only ever added, with defaults; unknown ones are
//! ignored. They convert from and to `model` and are used nowhere else.

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use understudy_model as model;

use crate::frame::{Frame, FrameKind};
use crate::limits;

pub mod convert;
mod hex;
pub mod offer;

pub use convert::ConvertError;
pub use offer::{CompareBegin, Offer, OfferParts, Wanted, WantedParts};

/// Everything one side may say to the other.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case")]
pub enum Message {
    /// First word of the side that dialled.
    Hello(Hello),
    /// Answer to [`Message::Hello`]: the version both will speak.
    Welcome(Hello),
    /// Presents the secret of an invitation; the only thing an unknown key may say after the greeting.
    Join(Join),
    /// The invitation was accepted; both sides now trust each other's key.
    Joined(Joined),
    /// Asks whether this side would be served: answered with [`Message::Done`] or [`Message::Refused`].
    Test,
    /// Asks for a place for a replica; idempotent while nothing was received.
    Prepare(Box<Prepare>),
    /// Opens a session of one relationship on this connection.
    Open(Open),
    /// Answer to [`Message::Open`]: what the target has.
    Opened(Opened),
    /// Joins this connection to an open session as one more carrier of bulk frames.
    Attach(Attach),
    /// Asks which of these blobs the target lacks.
    Blobs(Blobs),
    /// Answer to [`Message::Blobs`]: those that are missing.
    Missing(Blobs),
    /// Begins, or goes on with, an initial replication.
    BaseBegin(BaseBegin),
    /// Answer to [`Message::BaseBegin`] and [`Message::BaseSync`]: durable positions.
    BasePositions(BasePositions),
    /// Asks the target to make everything received so far durable.
    BaseSync(BaseSync),
    /// Begins, or goes on with, a comparison with the target's newest cut.
    CompareBegin(CompareBegin),
    /// Says what the source's blocks are; what the target has other content for, it asks for. In an initial replication
    /// that goes by difference, or in a comparison.
    Offer(Offer),
    /// Answer to [`Message::Offer`].
    Wanted(Wanted),
    /// Says what the parts of blocks are that the target has other content for; in a comparison.
    OfferParts(OfferParts),
    /// Answer to [`Message::OfferParts`].
    WantedParts(WantedParts),
    /// Begins a cycle.
    CycleBegin(Box<CycleBegin>),
    /// All data of the cycle was sent.
    CycleEnd(CycleEnd),
    /// The cycle is durable on the target.
    CycleAcked(CycleAcked),
    /// The source gives the cycle up.
    CycleAbandon(CycleNumber),
    /// Settings of the relationship changed.
    Settings(Settings),
    /// What the target wants the source to know, unasked.
    Notice(Notice),
    /// Are you there?
    Ping(Ping),
    /// Yes.
    Pong(Ping),
    /// Done as asked, nothing more to say.
    Done,
    /// The request before this is not carried out, and changed nothing.
    Refused(Refused),
}

/// Who speaks, and which versions.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Hello {
    /// Lowest version spoken; in a welcome, the chosen one.
    pub version_min: u16,
    /// Highest version spoken; in a welcome, the chosen one.
    pub version_max: u16,
    /// Program and version, for people.
    #[serde(default)]
    pub software: String,
    /// The host's own name, for people.
    #[serde(default)]
    pub host: String,
    /// Optional abilities, by name.
    #[serde(default)]
    pub features: Vec<String>,
}

/// The secret of an invitation.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
pub struct Join {
    /// Hexadecimal.
    pub secret: String,
    /// Name of the joining host, for people.
    pub name: String,
    /// Where the joining host can be reached, for the way back; may be empty.
    #[serde(default)]
    pub addresses: Vec<String>,
}

impl std::fmt::Debug for Join {
    /// Secrets never reach a log.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Join").field("name", &self.name).finish_non_exhaustive()
    }
}

/// The other side of a new trust.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Joined {
    /// Name of the inviting host, for people.
    pub name: String,
    /// Where the inviting host can be reached; may be empty.
    #[serde(default)]
    pub addresses: Vec<String>,
}

/// A relationship, named.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Relationship {
    /// The VM.
    pub vm: uuid::Uuid,
    /// 0 or 1.
    #[serde(default)]
    pub leg: u8,
}

/// One disk.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Disk {
    /// Number within the VM.
    pub id: u16,
    /// Durable name of the device on the source.
    pub key: String,
    /// Size in bytes.
    pub size: u64,
}

/// How a VM is built, as text that only hypervisor drivers read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Definition {
    /// Which language the text is in, for example `understudy-machine`.
    pub format: String,
    /// The text.
    pub text: String,
    /// Hashes (blake3, hexadecimal) of the blobs the text names.
    #[serde(default)]
    pub blobs: Vec<Blob>,
}

/// A blob a definition names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Blob {
    /// blake3 of the content, hexadecimal.
    pub hash: String,
    /// Length in bytes.
    pub len: u64,
}

/// Asks for a place for a replica.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Prepare {
    /// Which relationship.
    pub relationship: Relationship,
    /// Generation of the source.
    pub generation: u64,
    /// Name of the VM, for people.
    pub name: String,
    /// Its disks.
    pub disks: Vec<Disk>,
    /// Its settings.
    pub settings: Settings,
}

/// Opens a session.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Open {
    /// Which relationship.
    pub relationship: Relationship,
    /// Generation of the source.
    pub generation: u64,
    /// Number proposed for the session; must be above every earlier one.
    pub session: u64,
    /// Current settings.
    pub settings: Settings,
}

/// What the target has.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Opened {
    /// Newest cut, if there is one.
    #[serde(default)]
    pub newest: Option<CutRef>,
    /// The initial replication in staging, if one was begun.
    #[serde(default)]
    pub base: Option<BasePositions>,
    /// Whether replication is paused on the target.
    #[serde(default)]
    pub suspended: bool,
}

/// A cut, named.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CutRef {
    /// Generation it was taken in.
    pub generation: u64,
    /// Its number.
    pub number: u64,
    /// Its digest, hexadecimal.
    pub digest: String,
}

/// One more connection for a session.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Attach {
    /// Which relationship.
    pub relationship: Relationship,
    /// The session it joins.
    pub session: u64,
}

/// A set of blobs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Blobs {
    /// The blobs.
    pub blobs: Vec<Blob>,
}

/// Begins an initial replication.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BaseBegin {
    /// Names the unbroken span of change tracking the copy rests on. Data of another attempt is not built upon.
    pub attempt: u64,
    /// The disks to come.
    pub disks: Vec<Disk>,
    /// Whether the copy goes by difference from what the target has already.
    #[serde(default)]
    pub seeded: bool,
}

/// Durable positions of an initial replication.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BasePositions {
    /// The attempt.
    pub attempt: u64,
    /// Everything of the disk below this offset is durable.
    pub positions: Vec<Position>,
}

/// Position on one disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Position {
    /// The disk.
    pub disk: u16,
    /// Bytes durable from the start of the disk.
    pub offset: u64,
}

/// Asks for durability.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BaseSync {
    /// Bulk frames sent so far in this transfer: all of them must have been processed first, and more may have been.
    pub frames: u64,
    /// Up to where each disk was sent without a gap.
    pub positions: Vec<Position>,
}

/// One disk's part of a cycle.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CycleDisk {
    /// The disk.
    pub id: u16,
    /// Its size at the cut.
    pub size: u64,
    /// Cluster size of the run, as a power of two.
    pub cluster_bits: u8,
}

/// Begins a cycle.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CycleBegin {
    /// Number of the cut the cycle leads to.
    pub number: u64,
    /// Digest of the cut it starts from, hexadecimal.
    pub parent: String,
    /// When the disks were frozen, milliseconds since 1970 by the source's wall clock.
    pub taken_at: u64,
    /// What the cut promises: `standard`, `application`, `planned`.
    pub consistency: String,
    /// Every replicated disk, changed or not.
    pub disks: Vec<CycleDisk>,
    /// The VM's definition at the cut, when it changed since the last one sent.
    #[serde(default)]
    pub definition: Option<Definition>,
}

/// Ends a cycle.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CycleEnd {
    /// Number of the cut.
    pub number: u64,
    /// Bulk frames sent.
    pub frames: u64,
    /// Digest of the cut as the source computed it, hexadecimal.
    pub digest: String,
}

/// A cycle is durable.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CycleAcked {
    /// Number of the cut.
    pub number: u64,
    /// Digest of the cut as the target computed it, hexadecimal.
    pub digest: String,
}

/// A cycle, named.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CycleNumber {
    /// Number of the cut.
    pub number: u64,
}

/// What the target tells unasked.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "notice", rename_all = "kebab-case")]
pub enum Notice {
    /// Replication was paused on the target.
    Suspended,
    /// Replication was resumed on the target.
    Resumed,
    /// The target took over; the generation is higher now.
    FailedOver {
        /// The new generation.
        generation: u64,
    },
    /// The relationship was removed on the target.
    Removed,
    /// The target cannot go on until somebody acts.
    Trouble {
        /// What is wrong.
        reason: String,
    },
    /// Something a later version says; nothing follows from it.
    #[serde(other)]
    Unknown,
}

/// A sign of life.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Ping {
    /// Echoed in the answer.
    pub token: u64,
}

/// Why a request is not carried out.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Refused {
    /// A return code of the service.
    pub code: u32,
    /// What the asking side should do next: `retry`, `resync`, `refused`, `corrupt`, `operator`, `bug`.
    pub kind: String,
    /// What was wrong.
    pub reason: String,
    /// What a reader can do about it.
    #[serde(default)]
    pub hint: String,
    /// The refusing side's generation, where that is the cause.
    #[serde(default)]
    pub generation: Option<u64>,
    /// Highest session number seen, where that is the cause.
    #[serde(default)]
    pub session: Option<u64>,
    /// Whether the asking side may take the generation over: the failover that raised it was reverted.
    #[serde(default)]
    pub handed_back: bool,
}

/// Settings of a relationship.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Settings {
    /// Time between cuts.
    pub interval_ms: u64,
    /// Points kept beside the newest state.
    pub points: u16,
    /// Span between points; 0 keeps each cut.
    pub point_every_ms: u64,
    /// Span between application-consistent points; 0 is off.
    #[serde(default)]
    pub application_consistent_every_ms: u64,
    /// Whether data is compressed.
    #[serde(default = "yes")]
    pub compression: bool,
    /// Disks left out.
    #[serde(default)]
    pub excluded_disks: Vec<u16>,
}

fn yes() -> bool {
    true
}

/// Why a payload is no message.
#[derive(Debug, thiserror::Error)]
pub enum MessageError {
    /// Not JSON, or not of a known shape.
    #[error("a control message cannot be read")]
    Json(#[source] serde_json::Error),
    /// A value is out of its range.
    #[error("a control message is not acceptable")]
    Value(#[source] ConvertError),
}

impl Message {
    /// The frame that carries this message.
    pub fn to_frame(&self, version: u16, session: u64) -> Frame {
        let payload = serde_json::to_vec(self).expect("messages have string keys and no failing serialisers");
        Frame { kind: FrameKind::Message, version, session, sequence: 0, payload: Bytes::from(payload) }
    }

    /// Reads a message and holds every text and list in it to its limit.
    pub fn from_payload(payload: &[u8]) -> Result<Self, MessageError> {
        let message: Message = serde_json::from_slice(payload).map_err(MessageError::Json)?;
        message.check_bounds().map_err(MessageError::Value)?;
        Ok(message)
    }

    /// A refusal as a message.
    pub fn refused(refusal: &model::Refusal, kind: model::ErrorKind) -> Self {
        Message::Refused(Refused {
            code: refusal.code.value(),
            kind: kind.name().to_owned(),
            reason: refusal.reason.chars().take(limits::TEXT_MAX / 4).collect(),
            hint: refusal.hint.chars().take(limits::TEXT_MAX / 4).collect(),
            generation: None,
            session: None,
            handed_back: false,
        })
    }

    fn check_bounds(&self) -> Result<(), ConvertError> {
        use convert::{count, text};
        let disks = model::DiskSpec::COUNT_MAX;
        match self {
            Message::Hello(h) | Message::Welcome(h) => {
                text("software", &h.software, limits::NAME_MAX)?;
                text("host", &h.host, limits::NAME_MAX)?;
                count("features", h.features.len(), 64)?;
                h.features.iter().try_for_each(|f| text("feature", f, 64))
            }
            Message::Join(j) => {
                text("secret", &j.secret, 128)?;
                text("name", &j.name, limits::NAME_MAX)?;
                addresses(&j.addresses)
            }
            Message::Joined(j) => {
                text("name", &j.name, limits::NAME_MAX)?;
                addresses(&j.addresses)
            }
            Message::Prepare(p) => {
                text("name", &p.name, limits::NAME_MAX)?;
                count("disks", p.disks.len(), disks)
            }
            Message::Blobs(b) | Message::Missing(b) => count("blobs", b.blobs.len(), limits::BLOBS_MAX),
            Message::BaseBegin(b) => count("disks", b.disks.len(), disks),
            Message::Offer(o) => offer::check(o),
            Message::Wanted(w) => count("ranges", w.ranges.len(), limits::OFFER_BLOCKS_MAX),
            Message::OfferParts(o) => offer::check_parts(o),
            Message::WantedParts(w) => count("masks", w.masks.len(), limits::OFFER_PARTS_MAX),
            Message::BasePositions(b) => count("positions", b.positions.len(), disks),
            Message::BaseSync(b) => count("positions", b.positions.len(), disks),
            Message::CycleBegin(c) => {
                count("disks", c.disks.len(), disks)?;
                c.definition.as_ref().map_or(Ok(()), |d| {
                    text("definition", &d.text, limits::DEFINITION_MAX)?;
                    text("definition format", &d.format, 64)?;
                    count("blobs", d.blobs.len(), limits::BLOBS_MAX)
                })
            }
            Message::Refused(r) => {
                text("reason", &r.reason, limits::TEXT_MAX)?;
                text("hint", &r.hint, limits::TEXT_MAX)
            }
            Message::Notice(Notice::Trouble { reason }) => text("reason", reason, limits::TEXT_MAX),
            _ => Ok(()),
        }
    }
}

fn addresses(list: &[String]) -> Result<(), ConvertError> {
    convert::count("addresses", list.len(), 16)?;
    list.iter().try_for_each(|a| convert::text("address", a, 256))
}

#[cfg(test)]
mod tests;
