//! Relationships: which VM is replicated to or from which peer, under which settings, and what the engine remembers.

use rusqlite::{Connection, OptionalExtension, Row};
use understudy_model::{CutNumber, PeerId, RelationshipId, Settings, Timestamp, VmId};

use super::error::is_taken;
use super::rows::{Column, SettingsJson, column, json, to_json, unsigned};
use super::{Catalogue, CatalogueError};

/// Which end of a relationship this host is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Side {
    /// The source: it cuts and sends.
    Primary,
    /// The target: it receives and keeps.
    Replica,
}

impl Side {
    /// The word for logs, rows and JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Side::Primary => "primary",
            Side::Replica => "replica",
        }
    }

    fn from_name(name: &str) -> Option<Self> {
        [Side::Primary, Side::Replica].into_iter().find(|s| s.name() == name)
    }
}

/// What is needed to record a relationship.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewRelationship {
    /// The VM and the leg.
    pub id: RelationshipId,
    /// The VM's name on the primary, for people.
    pub vm_name: String,
    /// Which end this host is.
    pub side: Side,
    /// The host at the other end.
    pub peer: PeerId,
    /// Its settings.
    pub settings: Settings,
    /// The engine's record, if there is one already.
    pub engine: Option<String>,
    /// When it was made (wall clock).
    pub made_at: Timestamp,
}

/// A relationship as recorded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RelationshipRecord {
    /// The VM and the leg.
    pub id: RelationshipId,
    /// The VM's name, for people.
    pub vm_name: String,
    /// Which end this host is.
    pub side: Side,
    /// The host at the other end.
    pub peer: PeerId,
    /// Its settings.
    pub settings: Settings,
    /// The engine's own durable record. `None` until its creation was carried through: a relationship that is found
    /// so after a restart, and whose creation nobody goes on with, was never made and is dropped.
    pub engine: Option<String>,
    /// The highest cut number ever handed out; 0 is none.
    pub last_cut: CutNumber,
    /// When it was made (wall clock).
    pub made_at: Timestamp,
}

impl Catalogue {
    /// Records a relationship. Refused if the VM has one on this leg.
    pub async fn add_relationship(&self, new: NewRelationship) -> Result<RelationshipRecord, CatalogueError> {
        self.write(move |c| {
            let sql = "INSERT INTO relationship (vm, leg, vm_name, side, peer, settings, engine, made_at)
                       VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)";
            let (id, settings) = (new.id, to_json(&SettingsJson::from(&new.settings)));
            let (vm, side, peer, made) = (Column(id.vm), new.side.name(), Column(new.peer), Column(new.made_at));
            match c.execute(sql, (vm, id.leg, new.vm_name, side, peer, settings, new.engine, made)) {
                Ok(_) => read(c, id)?.ok_or(CatalogueError::NoRelationship(id)),
                Err(err) if is_taken(&err) => Err(CatalogueError::Taken { what: format!("relationship {id}") }),
                Err(err) => Err(CatalogueError::doing("record a relationship")(err)),
            }
        })
        .await
    }

    /// Replaces the engine's record.
    pub async fn save_engine(&self, id: RelationshipId, engine: String) -> Result<(), CatalogueError> {
        let sql = "UPDATE relationship SET engine = ?3 WHERE vm = ?1 AND leg = ?2";
        self.write(move |c| one(c.prepare_cached(sql).and_then(|mut s| s.execute((Column(id.vm), id.leg, engine))), id))
            .await
    }

    /// Replaces the engine's record and the settings, in one.
    pub async fn save_record(
        &self,
        id: RelationshipId,
        engine: String,
        settings: Settings,
    ) -> Result<(), CatalogueError> {
        let sql = "UPDATE relationship SET engine = ?3, settings = ?4 WHERE vm = ?1 AND leg = ?2";
        let settings = to_json(&SettingsJson::from(&settings));
        let save = move |c: &Connection| {
            c.prepare_cached(sql).and_then(|mut s| s.execute((Column(id.vm), id.leg, engine, settings)))
        };
        self.write(move |c| one(save(c), id)).await
    }

    /// Replaces the settings.
    pub async fn save_settings(&self, id: RelationshipId, settings: Settings) -> Result<(), CatalogueError> {
        let sql = "UPDATE relationship SET settings = ?3 WHERE vm = ?1 AND leg = ?2";
        let settings = to_json(&SettingsJson::from(&settings));
        self.write(move |c| one(c.execute(sql, (Column(id.vm), id.leg, settings)), id)).await
    }

    /// Changes which end this host is and who is at the other: what a reversal does.
    pub async fn save_side(&self, id: RelationshipId, side: Side, peer: PeerId) -> Result<(), CatalogueError> {
        let sql = "UPDATE relationship SET side = ?3, peer = ?4 WHERE vm = ?1 AND leg = ?2";
        self.write(move |c| one(c.execute(sql, (Column(id.vm), id.leg, side.name(), Column(peer))), id)).await
    }

    /// Hands out the next cut number. It is on stable storage before it is returned, and whatever becomes of the cut,
    /// the number is never handed out again.
    pub async fn next_cut(&self, id: RelationshipId) -> Result<CutNumber, CatalogueError> {
        self.advance_cut(id, CutNumber(0)).await
    }

    /// As [`Catalogue::next_cut`], and the number is above `floor` too: for a host that takes over a history in which
    /// numbers up to `floor` were used by another.
    pub async fn advance_cut(&self, id: RelationshipId, floor: CutNumber) -> Result<CutNumber, CatalogueError> {
        let sql = "UPDATE relationship SET last_cut = max(last_cut, ?3) + 1 WHERE vm = ?1 AND leg = ?2
                   RETURNING last_cut";
        self.write(move |c| {
            let values = (Column(id.vm), id.leg, super::rows::signed(floor.0));
            let read = |row: &Row<'_>| unsigned(row, "last_cut").map(CutNumber);
            let next = c.prepare_cached(sql).and_then(|mut s| s.query_row(values, read).optional());
            next.map_err(CatalogueError::doing("number a cut"))?.ok_or(CatalogueError::NoRelationship(id))
        })
        .await
    }

    /// Forgets a relationship and its history. Says whether it was there.
    pub async fn remove_relationship(&self, id: RelationshipId) -> Result<bool, CatalogueError> {
        self.write(move |c| {
            let doing = CatalogueError::doing("remove a relationship");
            c.execute("DELETE FROM cycle WHERE vm = ?1 AND leg = ?2", (Column(id.vm), id.leg)).map_err(doing)?;
            let sql = "DELETE FROM relationship WHERE vm = ?1 AND leg = ?2";
            Ok(c.execute(sql, (Column(id.vm), id.leg)).map_err(doing)? > 0)
        })
        .await
    }

    /// One relationship.
    pub async fn relationship(&self, id: RelationshipId) -> Result<Option<RelationshipRecord>, CatalogueError> {
        self.read(move |c| read(c, id)).await
    }

    /// All relationships, by name of the VM.
    pub async fn relationships(&self) -> Result<Vec<RelationshipRecord>, CatalogueError> {
        self.read(|c| {
            let doing = CatalogueError::doing("read the relationships");
            let sql = "SELECT * FROM relationship ORDER BY vm_name, vm, leg";
            let mut statement = c.prepare_cached(sql).map_err(doing)?;
            let rows = statement.query_map([], raw).map_err(doing)?;
            rows.map(|row| row.map_err(doing).and_then(finish)).collect()
        })
        .await
    }
}

/// A change that must have met exactly the one relationship.
fn one(changed: rusqlite::Result<usize>, id: RelationshipId) -> Result<(), CatalogueError> {
    match changed.map_err(CatalogueError::doing("change a relationship"))? {
        0 => Err(CatalogueError::NoRelationship(id)),
        _ => Ok(()),
    }
}

fn read(connection: &Connection, id: RelationshipId) -> Result<Option<RelationshipRecord>, CatalogueError> {
    let sql = "SELECT * FROM relationship WHERE vm = ?1 AND leg = ?2";
    let found = connection.query_row(sql, (Column(id.vm), id.leg), raw).optional();
    found.map_err(CatalogueError::doing("read a relationship"))?.map(finish).transpose()
}

/// A row, with its side and settings as text.
fn raw(row: &Row<'_>) -> rusqlite::Result<(RelationshipRecord, String, String)> {
    let record = RelationshipRecord {
        id: RelationshipId { vm: column::<VmId>(row, "vm")?, leg: row.get("leg")? },
        vm_name: row.get("vm_name")?,
        side: Side::Primary,
        peer: column(row, "peer")?,
        settings: Settings::default(),
        engine: row.get("engine")?,
        last_cut: CutNumber(unsigned(row, "last_cut")?),
        made_at: column(row, "made_at")?,
    };
    Ok((record, row.get("side")?, row.get("settings")?))
}

fn finish(
    (record, side, settings): (RelationshipRecord, String, String),
) -> Result<RelationshipRecord, CatalogueError> {
    let side = Side::from_name(&side).ok_or_else(|| CatalogueError::row("side", &side))?;
    let settings = json::<SettingsJson>("relationship's settings", &settings)?.into();
    Ok(RelationshipRecord { side, settings, ..record })
}
