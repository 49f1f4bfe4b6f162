//! The durable form of what the sending side must remember: JSON in the catalogue, a contract of its own.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use understudy_engine::primary::{Base, Compare, InitialKind, Record};
use understudy_hypervisor::driver::{ImageFormat, ImageRecord, ImageStamp};
use understudy_model::{
    CutNumber, CutRef, DiskId, DiskSpec, Extent, ExtentSet, Generation, JobId, RelationshipId, SessionNumber, Settings,
    State, Timestamp,
};

use super::owner::Durable;

/// Why a stored record cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// Not JSON, or not of this shape.
    #[error("the record of a relationship cannot be read")]
    Json(#[from] serde_json::Error),
    /// Written by a later version.
    #[error("the record of a relationship has version {found}, this program knows {known}")]
    Version {
        /// What it says.
        found: u32,
        /// What we know.
        known: u32,
    },
    /// A value nobody writes.
    #[error("the record of a relationship holds an impossible {0}")]
    Value(&'static str),
}

/// Version of the form.
const VERSION: u32 = 1;

#[derive(Serialize, Deserialize)]
struct Stored {
    version: u32,
    state: String,
    disks: Vec<StoredDisk>,
    generation: u64,
    map_generation: u64,
    session_last: u64,
    cut_last: u64,
    #[serde(default)]
    acked: Option<StoredCut>,
    #[serde(default)]
    sent: Option<StoredCut>,
    #[serde(default)]
    base: Option<StoredBase>,
    #[serde(default)]
    is_seeded: bool,
    #[serde(default)]
    compare: Option<StoredCompare>,
    #[serde(default)]
    transfer_job: Option<String>,
    #[serde(default)]
    cause: Option<String>,
    #[serde(default)]
    images: Vec<StoredImage>,
    #[serde(default)]
    newest_at: Option<u64>,
}

#[derive(Serialize, Deserialize)]
struct StoredDisk {
    id: u16,
    key: String,
    size: u64,
}

/// A cut, named.
#[derive(Serialize, Deserialize)]
pub struct StoredCut {
    generation: u64,
    number: u64,
    digest: String,
}

#[derive(Serialize, Deserialize)]
struct StoredBase {
    first_map: u64,
    is_tracked: bool,
}

#[derive(Serialize, Deserialize)]
struct StoredCompare {
    first_map: u64,
    is_tracked: bool,
    against: Option<StoredCut>,
    is_done: bool,
}

#[derive(Serialize, Deserialize)]
struct StoredImage {
    disk: u16,
    path: PathBuf,
    format: String,
    stamp: Option<StoredStamp>,
    #[serde(default)]
    map: Option<u64>,
    /// Pairs of offset and length.
    #[serde(default)]
    held: Option<Vec<(u64, u64)>>,
}

#[derive(Serialize, Deserialize)]
struct StoredStamp {
    device: u64,
    inode: u64,
    len: u64,
    modified_ns: String,
    changed_ns: String,
}

impl From<&CutRef> for StoredCut {
    fn from(cut: &CutRef) -> Self {
        Self { generation: cut.generation.0, number: cut.number.0, digest: cut.digest.to_string() }
    }
}

impl TryFrom<&StoredCut> for CutRef {
    type Error = RecordError;
    fn try_from(cut: &StoredCut) -> Result<Self, RecordError> {
        let digest = cut.digest.parse().map_err(|_| RecordError::Value("digest"))?;
        Ok(Self { generation: Generation(cut.generation), number: CutNumber(cut.number), digest })
    }
}

/// The text to store.
pub fn write(durable: &Durable) -> String {
    let r = &durable.record;
    let stored = Stored {
        version: VERSION,
        state: r.state.name().to_owned(),
        disks: r.disks.iter().map(|d| StoredDisk { id: d.id.0, key: d.key.clone(), size: d.size }).collect(),
        generation: r.generation.0,
        map_generation: r.map_generation.0,
        session_last: r.session_last.0,
        cut_last: r.cut_last.0,
        acked: r.acked.as_ref().map(StoredCut::from),
        sent: r.sent.as_ref().map(StoredCut::from),
        base: r.base.map(|b| StoredBase { first_map: b.first_map.0, is_tracked: b.is_tracked }),
        is_seeded: r.initial == InitialKind::Seeded,
        compare: r.compare.map(|c| StoredCompare {
            first_map: c.first_map.0,
            is_tracked: c.is_tracked,
            against: c.against.as_ref().map(StoredCut::from),
            is_done: c.is_done,
        }),
        transfer_job: r.transfer_job.map(|j| j.to_string()),
        cause: r.cause.clone(),
        images: durable.images.iter().filter_map(write_image).collect(),
        newest_at: durable.newest_at.map(|t| t.0),
    };
    serde_json::to_string(&stored).expect("plain data with string keys always serialises")
}

/// An image of a format we do not open ourselves is of no use later.
fn write_image(image: &ImageRecord) -> Option<StoredImage> {
    let stamp = image.stamp.map(|s| StoredStamp {
        device: s.device,
        inode: s.inode,
        len: s.len,
        modified_ns: s.modified_ns.to_string(),
        changed_ns: s.changed_ns.to_string(),
    });
    let format = image.format.name()?.to_owned();
    let pairs = |held: &ExtentSet| held.iter().map(|e| (e.offset, e.len)).collect();
    Some(StoredImage {
        disk: image.disk.0,
        path: image.path.clone(),
        format,
        stamp,
        map: image.map.map(|m| m.0),
        held: image.held.as_ref().map(pairs),
    })
}

/// Reads what [`write()`] wrote. Identity and settings stand elsewhere in the catalogue.
pub fn read(text: &str, id: RelationshipId, settings: Settings) -> Result<Durable, RecordError> {
    let stored: Stored = serde_json::from_str(text)?;
    if stored.version != VERSION {
        return Err(RecordError::Version { found: stored.version, known: VERSION });
    }
    let job = stored.transfer_job.as_deref().map(str::parse::<JobId>).transpose();
    let record = Record {
        id,
        state: State::from_name(&stored.state).ok_or(RecordError::Value("state"))?,
        settings,
        disks: stored.disks.into_iter().map(|d| DiskSpec { id: DiskId(d.id), key: d.key, size: d.size }).collect(),
        generation: Generation(stored.generation),
        map_generation: Generation(stored.map_generation),
        session_last: SessionNumber(stored.session_last),
        cut_last: CutNumber(stored.cut_last),
        acked: stored.acked.as_ref().map(CutRef::try_from).transpose()?,
        sent: stored.sent.as_ref().map(CutRef::try_from).transpose()?,
        base: stored.base.map(|b| Base { first_map: CutNumber(b.first_map), is_tracked: b.is_tracked }),
        initial: if stored.is_seeded { InitialKind::Seeded } else { InitialKind::Network },
        compare: stored.compare.map(read_compare).transpose()?,
        transfer_job: job.map_err(|_| RecordError::Value("job"))?,
        cause: stored.cause,
    };
    let images = stored.images.into_iter().map(read_image).collect::<Result<_, _>>()?;
    Ok(Durable { record, images, newest_at: stored.newest_at.map(Timestamp) })
}

fn read_compare(stored: StoredCompare) -> Result<Compare, RecordError> {
    Ok(Compare {
        first_map: CutNumber(stored.first_map),
        is_tracked: stored.is_tracked,
        against: stored.against.as_ref().map(CutRef::try_from).transpose()?,
        is_done: stored.is_done,
    })
}

fn read_image(image: StoredImage) -> Result<ImageRecord, RecordError> {
    let format = match image.format.as_str() {
        "raw" => ImageFormat::Raw,
        "qcow2" => ImageFormat::Qcow2,
        _ => return Err(RecordError::Value("image format")),
    };
    let time = |text: &str| text.parse().map_err(|_| RecordError::Value("time"));
    let stamp = match image.stamp {
        None => None,
        Some(s) => Some(ImageStamp {
            device: s.device,
            inode: s.inode,
            len: s.len,
            modified_ns: time(&s.modified_ns)?,
            changed_ns: time(&s.changed_ns)?,
        }),
    };
    let held = |pairs: Vec<(u64, u64)>| pairs.into_iter().map(|(offset, len)| Extent::new(offset, len)).collect();
    Ok(ImageRecord {
        disk: DiskId(image.disk),
        path: image.path,
        format,
        stamp,
        map: image.map.map(CutNumber),
        held: image.held.map(held),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use understudy_model::{CutDigest, VmId};

    fn durable() -> Durable {
        let vm: VmId = "7f2c0b6e-0000-4000-8000-0123456789ab".parse().expect("a uuid");
        let disk = DiskSpec { id: DiskId(1), key: "id:vda".into(), size: 1 << 20 };
        let mut record = Record::new(RelationshipId::first(vm), Generation(3), vec![disk], Settings::default());
        let cut = CutRef { generation: Generation(3), number: CutNumber(9), digest: CutDigest([7; 32]) };
        record.state = State::Suspended;
        record.acked = Some(cut);
        record.sent = Some(CutRef { number: CutNumber(10), ..cut });
        record.base = Some(Base { first_map: CutNumber(2), is_tracked: true });
        record.initial = InitialKind::Seeded;
        let against = Some(CutRef { number: CutNumber(8), ..cut });
        record.compare = Some(Compare { first_map: CutNumber(11), is_tracked: true, against, is_done: true });
        record.cause = Some("why".into());
        let stamp = ImageStamp { device: 1, inode: 2, len: 3, modified_ns: -4, changed_ns: i128::MAX };
        let image = ImageRecord {
            disk: DiskId(1),
            path: "/x".into(),
            format: ImageFormat::Raw,
            stamp: Some(stamp),
            map: Some(CutNumber(9)),
            held: Some([Extent::new(65536, 512)].into_iter().collect()),
        };
        Durable { record, images: vec![image], newest_at: Some(Timestamp(8)) }
    }

    #[test]
    fn a_record_comes_back_as_it_was() {
        let durable = durable();
        let text = write(&durable);
        assert_eq!(read(&text, durable.record.id, durable.record.settings.clone()).unwrap(), durable);
    }

    #[test]
    fn a_record_of_a_later_version_is_left_alone() {
        let text = write(&durable()).replace("\"version\":1", "\"version\":2");
        let err = read(&text, durable().record.id, Settings::default()).unwrap_err();
        assert!(matches!(err, RecordError::Version { found: 2, known: 1 }));
    }
}
