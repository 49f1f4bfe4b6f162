//! Hosts this one trusts, and what each may do here.

use rusqlite::{OptionalExtension, Row};
use understudy_model::{PeerId, Timestamp};

use super::error::is_taken;
use super::rows::{Column, column, json, to_json};
use super::{Catalogue, CatalogueError};

/// A trusted host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerRecord {
    /// Hash of its key: the only thing it is recognised by.
    pub id: PeerId,
    /// Its name, unique on this host; for people.
    pub name: String,
    /// Where it can be reached (`host:port`); may be empty for a host that only connects to us.
    pub addresses: Vec<String>,
    /// When trust began (wall clock).
    pub added_at: Timestamp,
    /// What it may do here.
    pub authorization: Authorization,
}

/// The authorization entry of a host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Authorization {
    /// Whether it may place replicas here.
    pub may_replicate_here: bool,
    /// Where its replicas go; `None` is the host's own place.
    pub storage: Option<String>,
    /// Hosts of one trust group may take over each other's replicas.
    pub trust_group: String,
}

impl Authorization {
    /// The trust group of hosts nobody has sorted.
    pub const DEFAULT_GROUP: &str = "default";

    /// An entry of the default trust group and storage place.
    pub fn new(may_replicate_here: bool) -> Self {
        Self { may_replicate_here, storage: None, trust_group: Self::DEFAULT_GROUP.to_owned() }
    }
}

impl Catalogue {
    /// Stores a peer; one with the same key is replaced. Refused if another peer bears the name.
    pub async fn put_peer(&self, peer: PeerRecord) -> Result<(), CatalogueError> {
        self.write(move |c| put(c, &peer)).await
    }

    /// Withdraws trust. Says whether there was any.
    pub async fn remove_peer(&self, id: PeerId) -> Result<bool, CatalogueError> {
        self.write(move |c| {
            let gone = c.execute("DELETE FROM peer WHERE id = ?1", [Column(id)]);
            Ok(gone.map_err(CatalogueError::doing("remove a peer"))? > 0)
        })
        .await
    }

    /// All peers, by name.
    pub async fn peers(&self) -> Result<Vec<PeerRecord>, CatalogueError> {
        self.read(|c| {
            let doing = CatalogueError::doing("read the peers");
            let mut statement = c.prepare_cached("SELECT * FROM peer ORDER BY name").map_err(doing)?;
            let rows = statement.query_map([], raw).map_err(doing)?;
            rows.map(|row| row.map_err(doing).and_then(finish)).collect()
        })
        .await
    }

    /// One peer.
    pub async fn peer(&self, id: PeerId) -> Result<Option<PeerRecord>, CatalogueError> {
        self.read(move |c| {
            let found = c.query_row("SELECT * FROM peer WHERE id = ?1", [Column(id)], raw).optional();
            found.map_err(CatalogueError::doing("read a peer"))?.map(finish).transpose()
        })
        .await
    }
}

pub(super) fn put(connection: &rusqlite::Connection, peer: &PeerRecord) -> Result<(), CatalogueError> {
    let sql = "INSERT INTO peer (id, name, addresses, added_at, replicates, storage, trust)
               VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)
               ON CONFLICT (id) DO UPDATE SET name = ?2, addresses = ?3, added_at = ?4, replicates = ?5,
                                              storage = ?6, trust = ?7";
    let entry = &peer.authorization;
    let (addresses, added) = (to_json(&peer.addresses), Column(peer.added_at));
    let values =
        (Column(peer.id), &peer.name, addresses, added, entry.may_replicate_here, &entry.storage, &entry.trust_group);
    match connection.execute(sql, values) {
        Ok(_) => Ok(()),
        Err(err) if is_taken(&err) => Err(CatalogueError::Taken { what: format!("a peer named {:?}", peer.name) }),
        Err(err) => Err(CatalogueError::doing("store a peer")(err)),
    }
}

/// A row, and its addresses as text.
fn raw(row: &Row<'_>) -> rusqlite::Result<(PeerRecord, String)> {
    let authorization = Authorization {
        may_replicate_here: row.get("replicates")?,
        storage: row.get("storage")?,
        trust_group: row.get("trust")?,
    };
    let (id, name, added_at) = (column(row, "id")?, row.get("name")?, column(row, "added_at")?);
    Ok((PeerRecord { id, name, addresses: Vec::new(), added_at, authorization }, row.get("addresses")?))
}

fn finish((peer, addresses): (PeerRecord, String)) -> Result<PeerRecord, CatalogueError> {
    Ok(PeerRecord { addresses: json("list of addresses", &addresses)?, ..peer })
}
