//! Invitations: single-use, expiring permissions for an unknown host to become a peer.
//!
//! Only a hash of the secret is stored, so that a copy of the catalogue invites nobody.

use rusqlite::Row;
use understudy_model::Timestamp;

use super::rows::{Column, column, optional};
use super::{Catalogue, CatalogueError, PeerRecord, peers};

/// An invitation that was handed out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InviteRecord {
    /// Hash of its secret.
    pub secret: [u8; 32],
    /// When it was made (wall clock).
    pub made_at: Timestamp,
    /// When it ends (wall clock).
    pub expires_at: Timestamp,
    /// When it was used.
    pub used_at: Option<Timestamp>,
}

impl Catalogue {
    /// Records an invitation, unless `open_max` are open. Says whether it was recorded. Old ones are dropped.
    pub async fn add_invite(&self, invite: InviteRecord, open_max: usize) -> Result<bool, CatalogueError> {
        self.write(move |c| {
            let doing = CatalogueError::doing("record an invitation");
            c.execute("DELETE FROM invite WHERE expires_at <= ?1", [Column(invite.made_at)]).map_err(doing)?;
            let open: usize = c
                .query_row("SELECT count(*) FROM invite WHERE used_at IS NULL", [], |row| row.get::<_, i64>(0))
                .map(|n| usize::try_from(n).unwrap_or(0))
                .map_err(doing)?;
            if open >= open_max {
                return Ok(false);
            }
            let sql = "INSERT INTO invite (secret, made_at, expires_at) VALUES (?1, ?2, ?3)";
            let values = (invite.secret.as_slice(), Column(invite.made_at), Column(invite.expires_at));
            c.execute(sql, values).map_err(doing).map(|_| true)
        })
        .await
    }

    /// Every recorded invitation, used or not.
    pub async fn invites(&self) -> Result<Vec<InviteRecord>, CatalogueError> {
        self.read(|c| {
            let doing = CatalogueError::doing("read the invitations");
            let mut statement = c.prepare_cached("SELECT * FROM invite ORDER BY made_at").map_err(doing)?;
            statement.query_map([], record).map_err(doing)?.collect::<rusqlite::Result<_>>().map_err(doing)
        })
        .await
    }

    /// Uses an invitation up and stores the peer that presented it, both or neither. Says whether the invitation was
    /// still open: of two that present it at once, one wins.
    pub async fn use_invite(&self, secret: [u8; 32], now: Timestamp, peer: PeerRecord) -> Result<bool, CatalogueError> {
        self.write(move |c| {
            let sql = "UPDATE invite SET used_at = ?2, used_by = ?3
                       WHERE secret = ?1 AND used_at IS NULL AND expires_at > ?2";
            let used = c.execute(sql, (secret.as_slice(), Column(now), Column(peer.id)));
            if used.map_err(CatalogueError::doing("use an invitation"))? == 0 {
                return Ok(false);
            }
            peers::put(c, &peer).map(|()| true)
        })
        .await
    }
}

fn record(row: &Row<'_>) -> rusqlite::Result<InviteRecord> {
    Ok(InviteRecord {
        secret: row.get("secret")?,
        made_at: column(row, "made_at")?,
        expires_at: column(row, "expires_at")?,
        used_at: optional(row, "used_at")?,
    })
}
