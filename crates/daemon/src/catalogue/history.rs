//! What became of the latest cycles of each relationship: for people, never for decisions.

use rusqlite::Row;
use understudy_model::{Consistency, CutNumber, RelationshipId, Timestamp};

use super::rows::{Column, column, signed, unsigned};
use super::{CYCLES_KEPT, Catalogue, CatalogueError};

/// How a cycle ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CycleOutcome {
    /// The replica has it.
    Acknowledged,
    /// Given up; the next one carries its changes.
    GivenUp,
}

impl CycleOutcome {
    /// The word for rows and JSON.
    pub const fn name(self) -> &'static str {
        match self {
            CycleOutcome::Acknowledged => "acknowledged",
            CycleOutcome::GivenUp => "given-up",
        }
    }
}

/// One cycle.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CycleRecord {
    /// The cut it led to.
    pub cut: CutNumber,
    /// How it ended.
    pub outcome: CycleOutcome,
    /// What the cut promises.
    pub consistency: Consistency,
    /// When the disks were frozen (wall clock).
    pub taken_at: Timestamp,
    /// When it ended (wall clock).
    pub ended_at: Timestamp,
    /// Bytes of the disks that had changed.
    pub changed: u64,
    /// Bytes sent for them.
    pub sent: u64,
    /// Why it was given up, or what else is worth knowing; shortened to 500 characters.
    pub detail: String,
}

/// Longest detail of a cycle, in characters.
const DETAIL_MAX: usize = 500;

impl Catalogue {
    /// Adds a cycle to the history and drops what is beyond [`CYCLES_KEPT`].
    pub async fn add_cycle(&self, of: RelationshipId, cycle: CycleRecord) -> Result<(), CatalogueError> {
        self.write(move |c| {
            let doing = CatalogueError::doing("record a cycle");
            let sql =
                "INSERT INTO cycle (vm, leg, cut, outcome, consistency, taken_at, ended_at, changed, sent, detail)
                       VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)";
            let detail: String = cycle.detail.chars().take(DETAIL_MAX).collect();
            let (taken, ended) = (Column(cycle.taken_at), Column(cycle.ended_at));
            let values = rusqlite::params![
                Column(of.vm),
                of.leg,
                signed(cycle.cut.0),
                cycle.outcome.name(),
                consistency_word(cycle.consistency),
                taken,
                ended,
                signed(cycle.changed),
                signed(cycle.sent),
                detail
            ];
            c.prepare_cached(sql).and_then(|mut s| s.execute(values)).map_err(doing)?;
            let sql = "DELETE FROM cycle WHERE vm = ?1 AND leg = ?2 AND seq <=
                       (SELECT seq FROM cycle WHERE vm = ?1 AND leg = ?2 ORDER BY seq DESC LIMIT 1 OFFSET ?3)";
            c.prepare_cached(sql)
                .and_then(|mut s| s.execute((Column(of.vm), of.leg, CYCLES_KEPT)))
                .map_err(doing)
                .map(|_| ())
        })
        .await
    }

    /// The latest cycles, newest first, at most `count`.
    pub async fn cycles(&self, of: RelationshipId, count: u32) -> Result<Vec<CycleRecord>, CatalogueError> {
        self.read(move |c| {
            let doing = CatalogueError::doing("read the history");
            let sql = "SELECT * FROM cycle WHERE vm = ?1 AND leg = ?2 ORDER BY seq DESC LIMIT ?3";
            let mut statement = c.prepare_cached(sql).map_err(doing)?;
            let rows = statement.query_map((Column(of.vm), of.leg, count), raw).map_err(doing)?;
            rows.map(|row| row.map_err(doing).and_then(finish)).collect()
        })
        .await
    }
}

fn consistency_word(consistency: Consistency) -> &'static str {
    match consistency {
        Consistency::Standard => "standard",
        Consistency::Application => "application",
        Consistency::Planned => "planned",
    }
}

fn raw(row: &Row<'_>) -> rusqlite::Result<(CycleRecord, String, String)> {
    let record = CycleRecord {
        cut: CutNumber(unsigned(row, "cut")?),
        outcome: CycleOutcome::Acknowledged,
        consistency: Consistency::Standard,
        taken_at: column(row, "taken_at")?,
        ended_at: column(row, "ended_at")?,
        changed: unsigned(row, "changed")?,
        sent: unsigned(row, "sent")?,
        detail: row.get("detail")?,
    };
    Ok((record, row.get("outcome")?, row.get("consistency")?))
}

fn finish((record, outcome, consistency): (CycleRecord, String, String)) -> Result<CycleRecord, CatalogueError> {
    let outcomes = [CycleOutcome::Acknowledged, CycleOutcome::GivenUp];
    let promises = [Consistency::Standard, Consistency::Application, Consistency::Planned];
    let outcome = outcomes.into_iter().find(|o| o.name() == outcome);
    let consistency = promises.into_iter().find(|c| consistency_word(*c) == consistency);
    let (Some(outcome), Some(consistency)) = (outcome, consistency) else {
        return Err(CatalogueError::row("cycle", record.cut));
    };
    Ok(CycleRecord { outcome, consistency, ..record })
}
