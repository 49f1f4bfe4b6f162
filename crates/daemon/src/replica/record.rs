//! The durable form of what the receiving side must remember: JSON in the catalogue, a contract of its own.
//!
//! Generation and session also stand in the store's manifest, which has the last word: the higher ones count.

use serde::{Deserialize, Serialize};
use understudy_engine::replica::{Failover, Record};
use understudy_model::{CutRef, FailoverKind, Generation, RelationshipId, SessionNumber, Settings, State, Timestamp};

use crate::primary::record::{RecordError, StoredCut};

/// Version of the form.
const VERSION: u32 = 1;

/// What is durable about the receiving side.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Durable {
    /// The engine's.
    pub record: Record,
    /// The store's number of the failover under way or done.
    pub failover_number: Option<u64>,
}

#[derive(Serialize, Deserialize)]
struct Stored {
    version: u32,
    state: String,
    generation: u64,
    session_last: u64,
    #[serde(default)]
    is_handed_back: bool,
    #[serde(default)]
    failover: Option<StoredFailover>,
    #[serde(default)]
    before_failover: Option<String>,
    #[serde(default)]
    failover_number: Option<u64>,
}

#[derive(Serialize, Deserialize)]
struct StoredFailover {
    cut: StoredCut,
    kind: String,
    taken_at: u64,
}

/// The text to store.
pub fn write(durable: &Durable) -> String {
    let r = &durable.record;
    let stored = Stored {
        version: VERSION,
        state: r.state.name().to_owned(),
        generation: r.generation.0,
        session_last: r.session_last.0,
        is_handed_back: r.is_handed_back,
        failover: r.failover.map(|f| StoredFailover {
            cut: StoredCut::from(&f.cut),
            kind: f.kind.name().to_owned(),
            taken_at: f.taken_at.0,
        }),
        before_failover: r.before_failover.map(|s| s.name().to_owned()),
        failover_number: durable.failover_number,
    };
    serde_json::to_string(&stored).expect("plain data with string keys always serialises")
}

/// Reads what [`write()`] wrote. Identity and settings stand elsewhere in the catalogue.
pub fn read(text: &str, id: RelationshipId, settings: Settings) -> Result<Durable, RecordError> {
    let stored: Stored = serde_json::from_str(text)?;
    if stored.version != VERSION {
        return Err(RecordError::Version { found: stored.version, known: VERSION });
    }
    let state = |name: &str| State::from_name(name).ok_or(RecordError::Value("state"));
    let failover = match stored.failover {
        None => None,
        Some(f) => Some(Failover {
            cut: CutRef::try_from(&f.cut)?,
            kind: FailoverKind::from_name(&f.kind).ok_or(RecordError::Value("kind of failover"))?,
            taken_at: Timestamp(f.taken_at),
        }),
    };
    let record = Record {
        id,
        state: state(&stored.state)?,
        settings,
        generation: Generation(stored.generation),
        session_last: SessionNumber(stored.session_last),
        is_handed_back: stored.is_handed_back,
        failover,
        before_failover: stored.before_failover.as_deref().map(state).transpose()?,
    };
    Ok(Durable { record, failover_number: stored.failover_number })
}

#[cfg(test)]
mod tests {
    use super::*;
    use understudy_model::{CutDigest, CutNumber, VmId};

    #[test]
    fn a_record_comes_back_as_it_was() {
        let vm: VmId = "7f2c0b6e-0000-4000-8000-0123456789ab".parse().expect("a uuid");
        let mut record = Record::new(RelationshipId::first(vm), Generation(3), Settings::default());
        let cut = CutRef { generation: Generation(3), number: CutNumber(9), digest: CutDigest([7; 32]) };
        record.state = State::FailedOver;
        record.failover = Some(Failover { cut, kind: FailoverKind::Regular, taken_at: Timestamp(5) });
        record.before_failover = Some(State::Suspended);
        let durable = Durable { record, failover_number: Some(3) };
        let text = write(&durable);
        assert_eq!(read(&text, durable.record.id, Settings::default()).unwrap(), durable);
    }
}
