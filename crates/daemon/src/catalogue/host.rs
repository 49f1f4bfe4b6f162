//! What the catalogue knows of this host itself.

use rusqlite::{Connection, OptionalExtension};
use understudy_model::{PeerId, Timestamp};

use super::rows::{Column, column, unsigned};
use super::{Catalogue, CatalogueError};

/// This host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostRecord {
    /// Hash of its own public key. A key that does not match it means that somebody exchanged one of the two.
    pub peer: PeerId,
    /// When the catalogue was made (wall clock).
    pub made_at: Timestamp,
    /// Times a daemon has opened it: rises with each start, so nothing that an earlier start handed out is reused.
    pub starts: u64,
}

impl Catalogue {
    /// Records a start of the daemon under this identity, and says what is known of the host. The identity recorded
    /// first stays: it is for the caller to compare.
    pub async fn record_start(&self, own: PeerId, now: Timestamp) -> Result<HostRecord, CatalogueError> {
        self.write(move |c| {
            let doing = CatalogueError::doing("record the start");
            let sql = "INSERT INTO host (one, peer, made_at, starts) VALUES (1, ?1, ?2, 1)
                       ON CONFLICT (one) DO UPDATE SET starts = starts + 1";
            c.execute(sql, (Column(own), Column(now))).map_err(doing)?;
            read(c)?.ok_or(CatalogueError::row("host", "no row after it was written"))
        })
        .await
    }

    /// What is known of the host; nothing before the first start.
    pub async fn host(&self) -> Result<Option<HostRecord>, CatalogueError> {
        self.read(read).await
    }
}

fn read(connection: &Connection) -> Result<Option<HostRecord>, CatalogueError> {
    let record = |row: &rusqlite::Row<'_>| {
        Ok(HostRecord {
            peer: column(row, "peer")?,
            made_at: column(row, "made_at")?,
            starts: unsigned(row, "starts")?,
        })
    };
    let found = connection.query_row("SELECT * FROM host", [], record).optional();
    found.map_err(CatalogueError::doing("read the host"))
}
