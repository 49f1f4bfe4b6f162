//! The initial copy of a running VM's disk to the other host.

use anyhow::Result;

use crate::lab::Lab;
use crate::meter::memory_peak;
use crate::peers::{self, order};
use crate::table;

/// Runs and prints it.
pub fn run(lab: &Lab) -> Result<()> {
    let image = lab.image()?;
    let mut guest = lab.guest("full", &[("a", &image)])?;
    let mut entries = peers::for_full_copies(lab, &image)?;
    let mut memory = Vec::new();
    for repetition in 0..lab.options.repetitions {
        for at in order(entries.len(), repetition) {
            entries[at].attempt(&mut guest, |contender, guest| {
                contender.prepare(guest)?;
                let figures = peers::turn(contender, guest)?;
                if contender.name() == peers::OURS {
                    memory.extend(contender.servers().into_iter().map(memory_peak));
                }
                contender.check(&image)?;
                contender.finish(guest)?;
                Ok(Some(figures))
            })?;
        }
    }
    let title = format!("initial copy of a running VM's disk of {} MiB", lab.options.size);
    let rows: Vec<_> = entries.into_iter().map(|entry| entry.row).collect();
    table::print(&title, ("image", lab.options.image_bytes()), &rows);
    let peaks = memory.into_iter().collect::<Result<Vec<u64>>>()?;
    table::print_line("memory of each of our daemons, most", peaks.into_iter().map(table::mib), 1, "MiB");
    Ok(())
}
