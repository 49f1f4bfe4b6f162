//! Between the contract's types and `model`. Everything that comes in is checked here.

use understudy_model as model;
use understudy_model::settings::PointEvery;
use understudy_model::{CutDigest, CutNumber, DiskId, Generation, Millis};

use super::{CutRef, Disk, Position, Refused, Relationship, Settings, hex};
use crate::limits;

/// Why a value of a message is not acceptable.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConvertError {
    /// A text is too long.
    #[error("the {what} is {len} bytes long, more than {max}")]
    Text {
        /// Which text.
        what: &'static str,
        /// Its length.
        len: usize,
        /// What is allowed.
        max: usize,
    },
    /// A list is too long.
    #[error("there are {count} {what}, more than {max}")]
    Count {
        /// Which list.
        what: &'static str,
        /// Its length.
        count: usize,
        /// What is allowed.
        max: usize,
    },
    /// Not 64 hexadecimal digits.
    #[error("the {what} is no digest")]
    Digest {
        /// Which digest.
        what: &'static str,
    },
    /// A word nobody defined.
    #[error("{word:?} is no {what}")]
    Word {
        /// What was expected.
        what: &'static str,
        /// What came.
        word: String,
    },
    /// A size no disk has.
    #[error("{size} bytes are no size for {disk}")]
    DiskSize {
        /// Which disk.
        disk: DiskId,
        /// What was claimed.
        size: u64,
    },
    /// The same disk twice.
    #[error("{disk} is named twice")]
    DiskTwice {
        /// Which disk.
        disk: DiskId,
    },
    /// Settings out of range.
    #[error("the settings are not acceptable")]
    Settings(#[from] model::settings::SettingsError),
    /// An offset that no block has.
    #[error("no block begins at {offset}")]
    Offset {
        /// What came.
        offset: u64,
    },
    /// A leg other than 0 and 1.
    #[error("there is no leg {leg} of a relationship")]
    Leg {
        /// What came.
        leg: u8,
    },
}

/// Holds a text to its limit.
pub(super) fn text(what: &'static str, value: &str, max: usize) -> Result<(), ConvertError> {
    if value.len() <= max { Ok(()) } else { Err(ConvertError::Text { what, len: value.len(), max }) }
}

/// Holds a list to its limit.
pub(super) fn count(what: &'static str, count: usize, max: usize) -> Result<(), ConvertError> {
    if count <= max { Ok(()) } else { Err(ConvertError::Count { what, count, max }) }
}

impl From<model::RelationshipId> for Relationship {
    fn from(id: model::RelationshipId) -> Self {
        Self { vm: id.vm.0, leg: id.leg }
    }
}

impl TryFrom<Relationship> for model::RelationshipId {
    type Error = ConvertError;
    fn try_from(id: Relationship) -> Result<Self, ConvertError> {
        if id.leg > 1 {
            return Err(ConvertError::Leg { leg: id.leg });
        }
        Ok(Self { vm: model::VmId(id.vm), leg: id.leg })
    }
}

impl From<&model::DiskSpec> for Disk {
    fn from(disk: &model::DiskSpec) -> Self {
        Self { id: disk.id.0, key: disk.key.clone(), size: disk.size }
    }
}

/// Checks a list of disks: possible sizes, short keys, none twice.
pub fn disks(list: &[Disk]) -> Result<Vec<model::DiskSpec>, ConvertError> {
    let mut out: Vec<model::DiskSpec> = Vec::with_capacity(list.len().min(model::DiskSpec::COUNT_MAX));
    count("disks", list.len(), model::DiskSpec::COUNT_MAX)?;
    for disk in list {
        let id = DiskId(disk.id);
        text("disk key", &disk.key, limits::NAME_MAX)?;
        check_disk_size(id, disk.size)?;
        if out.iter().any(|d| d.id == id) {
            return Err(ConvertError::DiskTwice { disk: id });
        }
        out.push(model::DiskSpec { id, key: disk.key.clone(), size: disk.size });
    }
    Ok(out)
}

/// Whether a disk may have this size.
pub fn check_disk_size(disk: DiskId, size: u64) -> Result<(), ConvertError> {
    let possible = size > 0 && size.is_multiple_of(512) && size <= model::DiskSpec::SIZE_MAX;
    if possible { Ok(()) } else { Err(ConvertError::DiskSize { disk, size }) }
}

impl From<&model::CutRef> for CutRef {
    fn from(cut: &model::CutRef) -> Self {
        Self { generation: cut.generation.0, number: cut.number.0, digest: cut.digest.to_string() }
    }
}

impl TryFrom<&CutRef> for model::CutRef {
    type Error = ConvertError;
    fn try_from(cut: &CutRef) -> Result<Self, ConvertError> {
        Ok(Self {
            generation: Generation(cut.generation),
            number: CutNumber(cut.number),
            digest: digest("cut digest", &cut.digest)?,
        })
    }
}

/// Reads a digest.
pub fn digest(what: &'static str, text: &str) -> Result<CutDigest, ConvertError> {
    hex::read(what, text).map(CutDigest)
}

/// The word for a consistency.
pub fn consistency_word(consistency: model::Consistency) -> &'static str {
    match consistency {
        model::Consistency::Standard => "standard",
        model::Consistency::Application => "application",
        model::Consistency::Planned => "planned",
    }
}

/// Reads a consistency.
pub fn consistency(word: &str) -> Result<model::Consistency, ConvertError> {
    match word {
        "standard" => Ok(model::Consistency::Standard),
        "application" => Ok(model::Consistency::Application),
        "planned" => Ok(model::Consistency::Planned),
        _ => Err(ConvertError::Word { what: "consistency", word: word.chars().take(40).collect() }),
    }
}

impl From<(DiskId, u64)> for Position {
    fn from((disk, offset): (DiskId, u64)) -> Self {
        Self { disk: disk.0, offset }
    }
}

impl From<&Position> for (DiskId, u64) {
    fn from(position: &Position) -> Self {
        (DiskId(position.disk), position.offset)
    }
}

impl From<&model::Settings> for Settings {
    fn from(s: &model::Settings) -> Self {
        Self {
            interval_ms: s.interval.0,
            points: s.points,
            point_every_ms: match s.point_every {
                PointEvery::Cycle => 0,
                PointEvery::Span(span) => span.0,
            },
            application_consistent_every_ms: s.application_consistent_every.map_or(0, |m| m.0),
            compression: s.compression,
            excluded_disks: s.excluded_disks.iter().map(|d| d.0).collect(),
        }
    }
}

impl TryFrom<&Settings> for model::Settings {
    type Error = ConvertError;
    fn try_from(s: &Settings) -> Result<Self, ConvertError> {
        count("excluded disks", s.excluded_disks.len(), model::DiskSpec::COUNT_MAX)?;
        let settings = model::Settings {
            interval: Millis(s.interval_ms),
            points: s.points,
            point_every: match s.point_every_ms {
                0 => PointEvery::Cycle,
                span => PointEvery::Span(Millis(span)),
            },
            application_consistent_every: match s.application_consistent_every_ms {
                0 => None,
                span => Some(Millis(span)),
            },
            compression: s.compression,
            excluded_disks: s.excluded_disks.iter().map(|d| DiskId(*d)).collect(),
            auto_resync: None,
        };
        settings.check()?;
        Ok(settings)
    }
}

impl Refused {
    /// What the asking side should do next. A word of a later version means: somebody must look.
    pub fn error_kind(&self) -> model::ErrorKind {
        model::ErrorKind::from_name(&self.kind).unwrap_or(model::ErrorKind::Operator)
    }

    /// The refusal for the API.
    pub fn refusal(&self) -> model::Refusal {
        let code = model::ReturnCode::from_value(self.code).filter(|c| !c.is_success());
        model::Refusal::new(code.unwrap_or(model::ReturnCode::Failed), self.reason.clone()).hint(self.hint.clone())
    }
}
