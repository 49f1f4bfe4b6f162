//! The catalogue: what this host knows durably about itself, its VMs, peers, relationships and jobs. SQLite underneath.
//!
//! Every method that changes something returns after the change is on stable storage, and not before; what is read is
//! what was committed. So whatever is shown from here survives a crash right after. The data of replicas is not in
//! here (see `store`): a lost catalogue loses no recovery point.
//!
//! What the rows mean to replication is decided elsewhere. In particular a relationship's *engine record* is an opaque
//! text to the catalogue; only its counter of cut numbers is kept here in the open, because it must never run backwards.
//!
//! Invariant: a file of a newer version, or of another program, is refused and not changed by a single byte.

mod error;
mod history;
mod host;
mod invites;
mod jobs;
mod peers;
mod relationships;
mod rows;
mod schema;
mod vms;
mod writer;

#[cfg(test)]
mod tests;

use std::path::Path;
use std::sync::Arc;

use prometheus_client::metrics::counter::Counter;
use rusqlite::{Connection, OpenFlags};

pub use error::CatalogueError;
pub use history::{CycleOutcome, CycleRecord};
pub use host::HostRecord;
pub use invites::InviteRecord;
pub use peers::{Authorization, PeerRecord};
pub use relationships::{NewRelationship, RelationshipRecord, Side};
pub use vms::VmRecord;
use writer::Thread;

/// Cycles remembered of each relationship: two days of 3-minute cycles, eight hours of 30-second ones.
pub const CYCLES_KEPT: u32 = 1000;

/// A handle to the open catalogue. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Catalogue {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    writer: Thread,
    reader: Thread,
    commits: Counter,
}

impl Catalogue {
    /// Opens the file, or makes it, and brings it to this build's version. Blocks.
    pub fn open(path: &Path) -> Result<Self, CatalogueError> {
        let found = if path.exists() { look(path)? } else { 0 };
        let mut connection = Connection::open(path).map_err(CatalogueError::open(path))?;
        prepare(&connection).map_err(CatalogueError::open(path))?;
        schema::migrate(&mut connection, found).map_err(CatalogueError::open(path))?;
        // Copies what a crash left in the write-ahead log into the file and syncs that: nothing read from now on rests
        // on a sync that may have failed before.
        checkpoint(&connection).map_err(CatalogueError::open(path))?;
        close_to_others(path)?;
        let reading =
            Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX);
        let reading = reading.map_err(CatalogueError::open(path))?;
        reading.busy_timeout(BUSY).map_err(CatalogueError::open(path))?;
        let commits = Counter::default();
        let writer =
            Thread::writer(connection, commits.clone()).map_err(|err| CatalogueError::Thread(Arc::new(err)))?;
        let reader = Thread::reader(reading).map_err(|err| CatalogueError::Thread(Arc::new(err)))?;
        Ok(Self { inner: Arc::new(Inner { writer, reader, commits }) })
    }

    /// Counts commits, since it was opened.
    pub fn commits(&self) -> Counter {
        self.inner.commits.clone()
    }

    /// Ends the threads after what was handed over is done, if this is the last handle. Blocks.
    pub fn close(self) {
        if let Ok(inner) = Arc::try_unwrap(self.inner) {
            inner.reader.close();
            inner.writer.close();
        }
    }

    /// Changes something; returns once it is durable.
    async fn write<T, F>(&self, call: F) -> Result<T, CatalogueError>
    where
        T: Send + 'static,
        F: FnOnce(&Connection) -> Result<T, CatalogueError> + Send + 'static,
    {
        self.inner.writer.run(call).await
    }

    /// Looks at what is committed.
    async fn read<T, F>(&self, call: F) -> Result<T, CatalogueError>
    where
        T: Send + 'static,
        F: FnOnce(&Connection) -> Result<T, CatalogueError> + Send + 'static,
    {
        self.inner.reader.run(call).await
    }
}

/// Waiting for a lock; nobody but us opens the file, save an administrator who looks into it.
const BUSY: std::time::Duration = std::time::Duration::from_secs(5);

/// Looks at an existing file without changing it: whose it is, its version, and whether it is whole.
fn look(path: &Path) -> Result<i32, CatalogueError> {
    let opened = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX);
    let connection = opened.map_err(CatalogueError::open(path))?;
    connection.busy_timeout(BUSY).map_err(CatalogueError::open(path))?;
    let number = |name| connection.query_row(&format!("PRAGMA {name}"), [], |row| row.get::<_, i32>(0));
    let tables: i32 = connection
        .query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))
        .map_err(CatalogueError::open(path))?;
    let (owner, version) = (number("application_id"), number("user_version"));
    let (owner, version) = (owner.map_err(CatalogueError::open(path))?, version.map_err(CatalogueError::open(path))?);
    if owner != schema::APPLICATION_ID {
        // An empty file is what a crash before the first migration leaves.
        let untouched = owner == 0 && version == 0 && tables == 0;
        return if untouched { Ok(0) } else { Err(CatalogueError::Foreign { path: path.to_owned() }) };
    }
    if version > schema::VERSION {
        return Err(CatalogueError::Newer { path: path.to_owned(), found: version, known: schema::VERSION });
    }
    let verdict: String =
        connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0)).map_err(CatalogueError::open(path))?;
    if verdict != "ok" {
        return Err(CatalogueError::Damaged { path: path.to_owned(), verdict });
    }
    Ok(version)
}

fn prepare(connection: &Connection) -> rusqlite::Result<()> {
    connection.busy_timeout(BUSY)?;
    connection.execute_batch(
        "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA foreign_keys = ON; PRAGMA trusted_schema = OFF;",
    )
}

fn checkpoint(connection: &Connection) -> rusqlite::Result<()> {
    connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))
}

fn close_to_others(path: &Path) -> Result<(), CatalogueError> {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))
        .map_err(|err| CatalogueError::Mode { path: path.to_owned(), err: Arc::new(err) })
}
