//! Those who are compared: ours, and other programs that bring a disk to another host.

mod job;
mod libvirt;
mod nbd;
mod rsync;
mod us;

use std::path::Path;

use anyhow::{Context, Result};
use understudy_testkit::disk::{self, Format};
use understudy_testkit::guest::Guest;
use understudy_testkit::process;

pub use job::BackupJob;
pub use libvirt::VirtNbdBackup;
pub use nbd::{Nbd, Tool};
pub use rsync::Rsync;
pub use us::{Hosts, NAME as OURS, Us};

use crate::lab::Lab;
use crate::meter::{Figures, Meter};
use crate::table::Row;

/// Somebody who brings a guest's disk to the other host.
pub trait Contender {
    /// As it stands in the table.
    fn name(&self) -> String;

    /// Starts what has to run and makes the place ready; not measured.
    fn prepare(&mut self, guest: &mut Guest) -> Result<()>;

    /// Processes that live through the turn and work for it, beside the guest's QEMU.
    fn servers(&self) -> Vec<u32>;

    /// The turn: returns when the copy is durable on the other host.
    fn run(&mut self, guest: &mut Guest) -> Result<()>;

    /// Lets another guest do what ours did, for who cannot copy from ours.
    fn follow(&mut self, _command: &str) -> Result<()> {
        Ok(())
    }

    /// After a turn, before the guest writes again; not measured.
    fn rest(&mut self) -> Result<()> {
        Ok(())
    }

    /// Fails unless the copy reads as the original.
    fn check(&mut self, original: &Path) -> Result<()>;

    /// Ends what `prepare` started.
    fn finish(&mut self, guest: &mut Guest) -> Result<()>;
}

/// A contender with its turns so far.
pub struct Entry<'a> {
    /// Who; gone once it has failed.
    contender: Option<Box<dyn Contender + 'a>>,
    /// Its figures.
    pub row: Row,
}

impl<'a> Entry<'a> {
    /// Nothing measured yet.
    pub fn new(contender: impl Contender + 'a) -> Self {
        let row = Row { name: contender.name(), turns: Ok(Vec::new()) };
        Entry { contender: Some(Box::new(contender)), row }
    }

    /// Does something with the contender, unless it failed before. A peer's failure stands in the table; ours ends the bench.
    pub fn attempt(
        &mut self,
        guest: &mut Guest,
        what: impl FnOnce(&mut dyn Contender, &mut Guest) -> Result<Option<Figures>>,
    ) -> Result<()> {
        let (Some(contender), Ok(turns)) = (&mut self.contender, &mut self.row.turns) else { return Ok(()) };
        match what(contender.as_mut(), guest) {
            Ok(figures) => turns.extend(figures),
            Err(err) if contender.name() == OURS => return Err(err),
            Err(err) => {
                self.row.turns = Err(format!("{err:#}"));
                // Whatever it had started must be out of the way of the others; what it says about that adds nothing.
                let _ = contender.finish(guest);
                self.contender = None;
            }
        }
        Ok(())
    }
}

/// One measured turn.
pub fn turn(contender: &mut dyn Contender, guest: &mut Guest) -> Result<Figures> {
    // What others left to be written back is not to be paid for here.
    process::run("sync", [] as [&str; 0])?;
    let mut servers = contender.servers();
    servers.push(guest.id());
    let meter = Meter::start(&servers, guest.id())?;
    contender.run(guest)?;
    meter.stop()
}

/// Everyone takes turns, beginning with another each time.
pub fn order(count: usize, repetition: u64) -> impl Iterator<Item = usize> {
    let first = usize::try_from(repetition).unwrap_or_default() % count.max(1);
    (0..count).map(move |at| (first + at) % count)
}

/// Everything that was written to a file is on its disk when this returns.
fn sync(path: &Path) -> Result<()> {
    process::run("sync", [path]).map(drop)
}

/// Compares two raw images.
fn same(a: &Path, b: &Path) -> Result<()> {
    disk::assert_same((a, Format::Raw), (b, Format::Raw))
}

/// A file in a directory of the lab, as text for a command line.
fn word(path: &Path) -> Result<&str> {
    path.to_str().with_context(|| format!("{} is not UTF-8", path.display()))
}

/// A new, empty target of the image's size.
fn empty_target(path: &Path, bytes: u64) -> Result<()> {
    if path.exists() {
        std::fs::remove_file(path).with_context(|| format!("cannot remove {}", path.display()))?;
    }
    disk::create(path, Format::Raw, bytes).map(drop)
}

/// All contenders for a full copy.
pub fn for_full_copies<'a>(lab: &'a Lab, original: &Path) -> Result<Vec<Entry<'a>>> {
    if lab.options.alone {
        return Ok(vec![Entry::new(Us::new(lab))]);
    }
    Ok(vec![
        Entry::new(Us::new(lab)),
        Entry::new(Nbd::new(lab, Tool::QemuImg, original)?),
        Entry::new(Nbd::new(lab, Tool::NbdCopy, original)?),
        Entry::new(Rsync::new(lab, original, false)),
        Entry::new(Rsync::new(lab, original, true)),
        Entry::new(VirtNbdBackup::new(lab, original, false)),
        Entry::new(VirtNbdBackup::new(lab, original, true)),
    ])
}

/// All contenders for deltas.
pub fn for_deltas<'a>(lab: &'a Lab, original: &Path) -> Result<Vec<Entry<'a>>> {
    if lab.options.alone {
        return Ok(vec![Entry::new(Us::in_cycles(lab))]);
    }
    Ok(vec![
        Entry::new(Us::in_cycles(lab)),
        Entry::new(BackupJob::new(lab, original)?),
        Entry::new(Rsync::again(lab, original)),
        Entry::new(VirtNbdBackup::incremental(lab, original)),
    ])
}
