//! Between columns and the types of `model`.

use rusqlite::types::{FromSql, FromSqlError, FromSqlResult, ToSqlOutput, ValueRef};
use rusqlite::{Row, ToSql};
use serde::{Deserialize, Serialize};
use understudy_model::settings::{PointEvery, ResyncWindow};
use understudy_model::{DiskId, Millis, PeerId, Settings, Timestamp, VmId};
use uuid::Uuid;

use super::CatalogueError;

/// A type of `model` as a column.
pub(super) struct Column<T>(pub(super) T);

macro_rules! blob_column {
    ($type:ty, $len:literal, $to:expr, $from:expr) => {
        impl FromSql for Column<$type> {
            fn column_result(value: ValueRef<'_>) -> FromSqlResult<Self> {
                let bytes = <[u8; $len]>::try_from(value.as_blob()?).map_err(|_| FromSqlError::InvalidType)?;
                let from: fn([u8; $len]) -> $type = $from;
                Ok(Column(from(bytes)))
            }
        }

        impl ToSql for Column<$type> {
            fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
                let to: fn(&$type) -> &[u8] = $to;
                Ok(ToSqlOutput::from(to(&self.0)))
            }
        }
    };
}

blob_column!(VmId, 16, |id| id.0.as_bytes(), |bytes| VmId(Uuid::from_bytes(bytes)));
blob_column!(understudy_model::JobId, 16, |id| id.0.as_bytes(), |bytes| understudy_model::JobId(Uuid::from_bytes(
    bytes
)));
blob_column!(PeerId, 32, |id| &id.0, PeerId);

impl FromSql for Column<Timestamp> {
    fn column_result(value: ValueRef<'_>) -> FromSqlResult<Self> {
        let ms = u64::try_from(value.as_i64()?).map_err(|_| FromSqlError::OutOfRange(value.as_i64().unwrap_or(0)))?;
        Ok(Column(Timestamp(ms)))
    }
}

impl ToSql for Column<Timestamp> {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(ToSqlOutput::from(signed(self.0.0)))
    }
}

/// SQLite's integers are signed: what does not fit is held at the largest, which is 292 million years or 8 EiB.
pub(super) fn signed(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

/// A counter or size out of a column; negative ones were never written.
pub(super) fn unsigned(row: &Row<'_>, column: &str) -> rusqlite::Result<u64> {
    let value: i64 = row.get(column)?;
    u64::try_from(value).map_err(|_| rusqlite::Error::IntegralValueOutOfRange(0, value))
}

/// A column of a type of `model`.
pub(super) fn column<T>(row: &Row<'_>, name: &str) -> rusqlite::Result<T>
where
    Column<T>: FromSql,
{
    Ok(row.get::<_, Column<T>>(name)?.0)
}

/// The same where the column may be empty.
pub(super) fn optional<T>(row: &Row<'_>, name: &str) -> rusqlite::Result<Option<T>>
where
    Column<T>: FromSql,
{
    Ok(row.get::<_, Option<Column<T>>>(name)?.map(|c| c.0))
}

/// A text that should be JSON of a known shape.
pub(super) fn json<T: for<'de> Deserialize<'de>>(what: &'static str, text: &str) -> Result<T, CatalogueError> {
    serde_json::from_str(text).map_err(|_| CatalogueError::row(what, text))
}

/// JSON of our own types, which have no serialiser that fails.
pub(super) fn to_json<T: Serialize>(value: &T) -> String {
    serde_json::to_string(value).expect("catalogue types have string keys and no failing serialisers")
}

/// Settings as they stand in the catalogue. Fields of later versions have defaults, so that this build's rows stay
/// readable.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SettingsJson {
    interval_ms: u64,
    points: u16,
    /// 0 keeps each cut.
    point_every_ms: u64,
    #[serde(default)]
    application_consistent_every_ms: Option<u64>,
    compression: bool,
    excluded_disks: Vec<u16>,
    #[serde(default)]
    auto_resync_ms: Option<(u64, u64)>,
}

impl From<&Settings> for SettingsJson {
    fn from(s: &Settings) -> Self {
        Self {
            interval_ms: s.interval.0,
            points: s.points,
            point_every_ms: match s.point_every {
                PointEvery::Cycle => 0,
                PointEvery::Span(span) => span.0,
            },
            application_consistent_every_ms: s.application_consistent_every.map(|m| m.0),
            compression: s.compression,
            excluded_disks: s.excluded_disks.iter().map(|d| d.0).collect(),
            auto_resync_ms: s.auto_resync.map(|w| (w.start.0, w.end.0)),
        }
    }
}

impl From<SettingsJson> for Settings {
    fn from(s: SettingsJson) -> Self {
        Self {
            interval: Millis(s.interval_ms),
            points: s.points,
            point_every: match s.point_every_ms {
                0 => PointEvery::Cycle,
                span => PointEvery::Span(Millis(span)),
            },
            application_consistent_every: s.application_consistent_every_ms.map(Millis),
            compression: s.compression,
            excluded_disks: s.excluded_disks.into_iter().map(DiskId).collect(),
            auto_resync: s.auto_resync_ms.map(|(start, end)| ResyncWindow { start: Millis(start), end: Millis(end) }),
        }
    }
}
