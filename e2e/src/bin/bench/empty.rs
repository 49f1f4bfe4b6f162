//! The initial copy of an empty disk of 1 TiB: what it costs that nothing is there.

use std::path::Path;

use anyhow::Result;
use understudy_testkit::disk::{self, Format};

use crate::lab::Lab;
use crate::peers::{self, Entry, Nbd, Tool, Us, order};
use crate::table;

const BYTES: u64 = 1 << 40;

/// Runs and prints it. Those that read a hole as zeros would take half an hour, and are left out.
pub fn run(lab: &Lab) -> Result<()> {
    let image = disk::create(&lab.path("empty.raw"), Format::Raw, BYTES)?;
    let mut guest = lab.guest("empty", &[("a", &image)])?;
    let mut entries = contenders(lab, &image)?;
    for repetition in 0..lab.options.repetitions {
        for at in order(entries.len(), repetition) {
            entries[at].attempt(&mut guest, |contender, guest| {
                contender.prepare(guest)?;
                let figures = peers::turn(contender, guest)?;
                contender.finish(guest)?;
                Ok(Some(figures))
            })?;
        }
    }
    let rows: Vec<_> = entries.into_iter().map(|entry| entry.row).collect();
    table::print("initial copy of an empty disk of 1 TiB", ("TiB", BYTES), &rows);
    Ok(())
}

fn contenders<'a>(lab: &'a Lab, image: &Path) -> Result<Vec<Entry<'a>>> {
    Ok(vec![
        Entry::new(Us::new(lab)),
        Entry::new(Nbd::new(lab, Tool::QemuImg, image)?),
        Entry::new(Nbd::new(lab, Tool::NbdCopy, image)?),
    ])
}
