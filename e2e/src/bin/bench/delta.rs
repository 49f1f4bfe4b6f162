//! What a VM wrote since the last copy: random pages all over the disk, or one stretch.

use anyhow::Result;
use understudy_testkit::guest::Guest;

use crate::lab::Lab;
use crate::peers::{self, Entry, order};
use crate::table;

/// The guest's page, and the least it writes.
const PAGE: u64 = 4096;

/// Where the guest writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pattern {
    /// One page in each of many places, none of them in the place of another.
    Scattered,
    /// One stretch.
    Sequential,
}

/// Runs and prints both patterns.
pub fn run(lab: &Lab) -> Result<()> {
    let image = lab.image()?;
    let mut guest = lab.guest("delta", &[("a", &image)])?;
    for pattern in [Pattern::Scattered, Pattern::Sequential] {
        let mut entries = peers::for_deltas(lab, &image)?;
        for entry in &mut entries {
            entry.attempt(&mut guest, |contender, guest| contender.prepare(guest).map(|()| None))?;
        }
        for repetition in 0..lab.options.repetitions {
            write(lab, pattern, repetition, &mut guest, &mut entries)?;
            for at in order(entries.len(), repetition) {
                entries[at].attempt(&mut guest, |contender, guest| {
                    let figures = peers::turn(contender, guest)?;
                    contender.rest()?;
                    Ok(Some(figures))
                })?;
            }
        }
        for entry in &mut entries {
            entry.attempt(&mut guest, |contender, _| contender.check(&image).map(|()| None))?;
            entry.attempt(&mut guest, |contender, guest| contender.finish(guest).map(|()| None))?;
        }
        let title = format!("delta: {} MiB, {}", lab.options.dirty, pattern.described());
        let rows: Vec<_> = entries.into_iter().map(|entry| entry.row).collect();
        table::print(&title, ("written", lab.options.dirty_bytes()), &rows);
    }
    Ok(())
}

/// All guests write the same to the same places, other ones in each repetition.
fn write(lab: &Lab, pattern: Pattern, repetition: u64, guest: &mut Guest, entries: &mut [Entry]) -> Result<()> {
    let command = pattern.command(lab, repetition);
    guest.run(&command)?;
    for entry in entries {
        entry.attempt(guest, |contender, _| contender.follow(&command).map(|()| None))?;
    }
    Ok(())
}

impl Pattern {
    fn described(self) -> &'static str {
        match self {
            Pattern::Scattered => "random pages of 4 KiB with noise, each in a place of its own",
            Pattern::Sequential => "one stretch of noise",
        }
    }

    fn command(self, lab: &Lab, repetition: u64) -> String {
        let (image, bytes) = (lab.options.image_bytes(), lab.options.dirty_bytes());
        let seed = lab.options.seed * 1000 + repetition;
        match self {
            Pattern::Scattered => {
                let pages = bytes / PAGE;
                // Places as large as they can be with one page in every second of them.
                let place = (image / (pages * 2).max(1)).clamp(PAGE, 64 << 10) / PAGE * PAGE;
                format!("guest-io dirty /disk/a --clusters {pages} --cluster-size {place} --seed {seed}")
            }
            Pattern::Sequential => {
                let from = (image - bytes) / (repetition + 2) / PAGE * PAGE;
                format!("guest-io fill /disk/a --bytes {bytes} --pattern random --from {from} --seed {seed}")
            }
        }
    }
}
