//! The VMs an administrator has named to this host.

use rusqlite::{Connection, OptionalExtension, Row};
use understudy_model::{DiskId, DiskSpec, Timestamp, VmId};

use super::error::is_taken;
use super::rows::{Column, column, signed, unsigned};
use super::{Catalogue, CatalogueError};

/// A VM of this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VmRecord {
    /// Its identity.
    pub id: VmId,
    /// Its name, unique on this host.
    pub name: String,
    /// Path of its QMP socket, unique on this host.
    pub qmp: String,
    /// How to build it elsewhere, if that is known: text that only hypervisor drivers read.
    pub definition: Option<String>,
    /// Its disks, ascending. A number once given to a disk's key stays with it.
    pub disks: Vec<DiskSpec>,
    /// When it was added (wall clock).
    pub added_at: Timestamp,
}

impl Catalogue {
    /// Adds a VM. Refused if its identity, name or socket is taken.
    pub async fn add_vm(&self, vm: VmRecord) -> Result<(), CatalogueError> {
        self.write(move |c| {
            let doing = CatalogueError::doing("add a VM");
            let sql = "INSERT INTO vm (id, name, qmp, definition, added_at) VALUES (?1, ?2, ?3, ?4, ?5)";
            let values = (Column(vm.id), &vm.name, &vm.qmp, &vm.definition, Column(vm.added_at));
            c.execute(sql, values).map_err(|err| if is_taken(&err) { taken(c, &vm) } else { doing(err) })?;
            vm.disks.iter().try_for_each(|disk| put_disk(c, vm.id, disk).map_err(doing))
        })
        .await
    }

    /// Replaces what is known of a VM's disks and definition. Disks not named are forgotten.
    pub async fn update_vm(
        &self,
        id: VmId,
        definition: Option<String>,
        disks: Vec<DiskSpec>,
    ) -> Result<(), CatalogueError> {
        self.write(move |c| {
            let doing = CatalogueError::doing("update a VM");
            c.execute("UPDATE vm SET definition = ?2 WHERE id = ?1", (Column(id), definition)).map_err(doing)?;
            c.execute("DELETE FROM disk WHERE vm = ?1", [Column(id)]).map_err(doing)?;
            disks.iter().try_for_each(|disk| put_disk(c, id, disk).map_err(doing))
        })
        .await
    }

    /// Forgets a VM, unless it is replicated from here. Says whether it was forgotten.
    pub async fn remove_vm(&self, id: VmId) -> Result<bool, CatalogueError> {
        self.write(move |c| {
            let sql = "DELETE FROM vm WHERE id = ?1
                       AND NOT EXISTS (SELECT 1 FROM relationship WHERE vm = ?1 AND side = 'primary')";
            let gone = c.execute(sql, [Column(id)]).map_err(CatalogueError::doing("remove a VM"))?;
            Ok(gone > 0)
        })
        .await
    }

    /// All VMs, by name.
    pub async fn vms(&self) -> Result<Vec<VmRecord>, CatalogueError> {
        self.read(|c| {
            let doing = CatalogueError::doing("read the VMs");
            let mut statement = c.prepare_cached("SELECT * FROM vm ORDER BY name").map_err(doing)?;
            let found = statement.query_map([], record).map_err(doing)?;
            let mut vms = found.collect::<rusqlite::Result<Vec<_>>>().map_err(doing)?;
            for vm in &mut vms {
                vm.disks = disks(c, vm.id).map_err(doing)?;
            }
            Ok(vms)
        })
        .await
    }

    /// One VM.
    pub async fn vm(&self, id: VmId) -> Result<Option<VmRecord>, CatalogueError> {
        self.read(move |c| {
            let doing = CatalogueError::doing("read a VM");
            let found = c.query_row("SELECT * FROM vm WHERE id = ?1", [Column(id)], record).optional();
            let Some(mut vm) = found.map_err(doing)? else { return Ok(None) };
            vm.disks = disks(c, id).map_err(doing)?;
            Ok(Some(vm))
        })
        .await
    }
}

fn record(row: &Row<'_>) -> rusqlite::Result<VmRecord> {
    Ok(VmRecord {
        id: column(row, "id")?,
        name: row.get("name")?,
        qmp: row.get("qmp")?,
        definition: row.get("definition")?,
        disks: Vec::new(),
        added_at: column(row, "added_at")?,
    })
}

fn disks(connection: &Connection, vm: VmId) -> rusqlite::Result<Vec<DiskSpec>> {
    let mut statement = connection.prepare_cached("SELECT * FROM disk WHERE vm = ?1 ORDER BY number")?;
    let disk = |row: &Row<'_>| {
        Ok(DiskSpec { id: DiskId(row.get("number")?), key: row.get("key")?, size: unsigned(row, "size")? })
    };
    statement.query_map([Column(vm)], disk)?.collect()
}

fn put_disk(connection: &Connection, vm: VmId, disk: &DiskSpec) -> rusqlite::Result<()> {
    let sql = "INSERT INTO disk (vm, number, key, size) VALUES (?1, ?2, ?3, ?4)";
    connection.prepare_cached(sql)?.execute((Column(vm), disk.id.0, &disk.key, signed(disk.size))).map(|_| ())
}

/// Which of the things that must be there once only is there already.
fn taken(connection: &Connection, vm: &VmRecord) -> CatalogueError {
    let has = |sql: &str, value: &dyn rusqlite::ToSql| {
        connection.query_row(sql, [value], |row| row.get::<_, String>(0)).optional().ok().flatten()
    };
    let what = if has("SELECT name FROM vm WHERE name = ?1", &vm.name).is_some() {
        format!("a VM named {:?}", vm.name)
    } else if let Some(other) = has("SELECT name FROM vm WHERE qmp = ?1", &vm.qmp) {
        format!("the QMP socket {} (as VM {other:?})", vm.qmp)
    } else if let Some(other) = has("SELECT name FROM vm WHERE id = ?1", &Column(vm.id)) {
        format!("the VM {} (as {other:?})", vm.id)
    } else {
        "one of the VM's disks".to_owned()
    };
    CatalogueError::Taken { what }
}
