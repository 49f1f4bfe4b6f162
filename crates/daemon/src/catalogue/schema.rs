//! The catalogue's tables, and the steps that lead an older file to them.
//!
//! `user_version` counts the steps taken. A step is never changed once released: a new one is added. The file also
//! bears an `application_id`, so that another program's database is never taken for ours.

use rusqlite::Connection;

/// `application_id`: "USTY".
pub(super) const APPLICATION_ID: i32 = i32::from_be_bytes(*b"USTY");

/// The version this build writes.
pub(super) const VERSION: i32 = STEPS.len() as i32;

const STEPS: &[&str] = &[STEP_1, STEP_2];

/// Identities are stored as blobs (16 bytes of a UUID, 32 of a peer's hash), times as milliseconds since 1970, spans
/// as milliseconds, words as the texts of `model`.
const STEP_1: &str = "
CREATE TABLE host (
    one        INTEGER PRIMARY KEY CHECK (one = 1),
    peer       BLOB    NOT NULL CHECK (length(peer) = 32), -- hash of this host's own key
    made_at    INTEGER NOT NULL,
    starts     INTEGER NOT NULL                            -- times a daemon has opened this catalogue
) STRICT;

CREATE TABLE vm (
    id         BLOB    PRIMARY KEY CHECK (length(id) = 16),
    name       TEXT    NOT NULL UNIQUE,
    qmp        TEXT    NOT NULL UNIQUE,                    -- path of the QMP socket
    definition TEXT,                                       -- how to build it elsewhere; only drivers read it
    added_at   INTEGER NOT NULL
) STRICT;

CREATE TABLE disk (
    vm         BLOB    NOT NULL REFERENCES vm (id) ON DELETE CASCADE,
    number     INTEGER NOT NULL CHECK (number BETWEEN 0 AND 65535),
    key        TEXT    NOT NULL,
    size       INTEGER NOT NULL,
    PRIMARY KEY (vm, number),
    UNIQUE (vm, key)
) STRICT;

CREATE TABLE peer (
    id         BLOB    PRIMARY KEY CHECK (length(id) = 32),
    name       TEXT    NOT NULL UNIQUE,
    addresses  TEXT    NOT NULL,                           -- JSON array of host:port
    added_at   INTEGER NOT NULL,
    replicates INTEGER NOT NULL CHECK (replicates IN (0, 1)), -- may place replicas here
    storage    TEXT,                                       -- where; NULL: the host's own place
    trust      TEXT    NOT NULL                            -- trust group
) STRICT;

CREATE TABLE invite (
    secret     BLOB    PRIMARY KEY CHECK (length(secret) = 32), -- hash of the secret
    made_at    INTEGER NOT NULL,
    expires_at INTEGER NOT NULL,
    used_at    INTEGER,
    used_by    BLOB
) STRICT;

CREATE TABLE relationship (
    vm         BLOB    NOT NULL CHECK (length(vm) = 16),
    leg        INTEGER NOT NULL CHECK (leg IN (0, 1)),
    vm_name    TEXT    NOT NULL,
    side       TEXT    NOT NULL CHECK (side IN ('primary', 'replica')),
    peer       BLOB    NOT NULL CHECK (length(peer) = 32),
    settings   TEXT    NOT NULL,                           -- JSON
    engine     TEXT,                                       -- the engine's own durable record, JSON, opaque here
    last_cut   INTEGER NOT NULL DEFAULT 0,                 -- highest cut number ever handed out
    made_at    INTEGER NOT NULL,
    PRIMARY KEY (vm, leg)
) STRICT;

CREATE TABLE job (
    id           BLOB    PRIMARY KEY CHECK (length(id) = 16),
    kind         INTEGER NOT NULL,
    vm           BLOB,
    state        INTEGER NOT NULL,
    percent      INTEGER NOT NULL,
    bytes_done   INTEGER NOT NULL,
    bytes_total  INTEGER NOT NULL,
    status       TEXT    NOT NULL,
    submitted_at INTEGER NOT NULL,
    started_at   INTEGER,
    ended_at     INTEGER,
    cancellable  INTEGER NOT NULL CHECK (cancellable IN (0, 1)),
    error_code   INTEGER,
    error_text   TEXT,
    error_hint   TEXT
) STRICT;

CREATE TABLE cycle (
    seq          INTEGER PRIMARY KEY AUTOINCREMENT,
    vm           BLOB    NOT NULL,
    leg          INTEGER NOT NULL,
    cut          INTEGER NOT NULL,
    outcome      TEXT    NOT NULL,
    consistency  TEXT    NOT NULL,
    taken_at     INTEGER NOT NULL,
    ended_at     INTEGER NOT NULL,
    changed      INTEGER NOT NULL,
    sent         INTEGER NOT NULL,
    detail       TEXT    NOT NULL
) STRICT;
CREATE INDEX cycle_of ON cycle (vm, leg, seq);
";

/// Jobs that begin at a later time.
const STEP_2: &str = "
ALTER TABLE job ADD COLUMN scheduled_at INTEGER;
";

/// Takes the steps a file lacks, each in a transaction of its own.
pub(super) fn migrate(connection: &mut Connection, from: i32) -> rusqlite::Result<()> {
    let taken = usize::try_from(from).unwrap_or(0);
    for (index, step) in STEPS.iter().enumerate().skip(taken) {
        let transaction = connection.transaction()?;
        transaction.execute_batch(step)?;
        transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
        transaction.pragma_update(None, "user_version", index as i32 + 1)?;
        transaction.commit()?;
    }
    Ok(())
}
