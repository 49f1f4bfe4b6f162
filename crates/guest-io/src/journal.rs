//! Writes the journal: one record at a time, alternating over the disks, each durable before the next begins.
//!
//! A journal that is already there is carried on under its run id and number, so a guest that was failed over goes on with the
//! same evidence. `ACK number time_ns` is printed after the sync; what was announced must never be missing later.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use crate::Outcome;
use crate::args::Args;
use crate::disk::{Disk, say, wall_clock_ns};
use crate::record::{Layout, RECORD_BYTES, Record};
use crate::verify::{self, SLOTS_DEFAULT};

/// When to stop, how fast to go, how often to announce.
struct Pace {
    count: u64,
    seconds: Duration,
    every: Duration,
    announce: Duration,
}

impl Pace {
    fn from(args: &mut Args) -> Result<Self, String> {
        let rate = args.number_or("rate", 0)?;
        Ok(Pace {
            count: args.number_or("count", u64::MAX)?,
            seconds: Duration::from_secs(args.number_or("seconds", u64::from(u32::MAX))?),
            every: if rate == 0 { Duration::ZERO } else { Duration::from_secs(1) / rate.min(1_000_000) as u32 },
            announce: Duration::from_millis(args.number_or("ack-ms", 0)?),
        })
    }
}

/// `guest-io journal`: writes until count, time or the guest's end.
pub fn run(mut args: Args) -> Outcome {
    let pace = Pace::from(&mut args)?;
    let slots = args.number_or("slots", SLOTS_DEFAULT)?;
    let run_id = args.number_or("run", 0)?;
    let new = args.word("new").is_some();
    args.finish()?;
    let mut disks = args.disks.iter().map(|path| Disk::open(path)).collect::<Result<Vec<_>, _>>()?;
    for disk in &mut disks {
        disk.grow_file_to(slots * RECORD_BYTES as u64)?;
    }
    let layout = verify::layout(&disks, Some(slots))?;
    if new {
        erase(&disks, layout)?;
    }
    let start = continue_from(&disks, layout, run_id)?;
    say(&format!("GUEST-IO journal-start run={} next={} slots={}", start.run, start.number, layout.slots));
    write(&disks, layout, &pace, start)
}

/// Where to go on: after the newest record, or at 1 with a run id of our own.
fn continue_from(disks: &[Disk], layout: Layout, run_id: u64) -> Result<Record, String> {
    let found = verify::read(disks, layout)?;
    if !found.consistent() {
        return Err("the journal on the disks is damaged; verify says how, --new starts afresh".into());
    }
    let fresh = if run_id == 0 { wall_clock_ns() } else { run_id };
    let run = if found.last == 0 { fresh } else { found.run };
    Ok(Record { run, number: found.last + 1, time_ns: 0, after: found.last, disk: 0 })
}

fn erase(disks: &[Disk], layout: Layout) -> Result<(), String> {
    let zeros = vec![0u8; 256 * RECORD_BYTES];
    for disk in disks {
        let end = layout.offset_of(layout.slots);
        for offset in (0..end).step_by(zeros.len()) {
            let length = (end - offset).min(zeros.len() as u64) as usize;
            disk.write_at(&zeros[..length], offset)?;
        }
        disk.sync()?;
    }
    Ok(())
}

fn write(disks: &[Disk], layout: Layout, pace: &Pace, mut record: Record) -> Outcome {
    let started = Instant::now();
    let (mut written, mut announced) = (0u64, None::<Instant>);
    while written < pace.count && started.elapsed() < pace.seconds {
        record.disk = layout.disk_of(record.number) as u32;
        record.time_ns = wall_clock_ns();
        let disk = &disks[record.disk as usize];
        disk.write_at(&record.encode(), layout.offset_of(layout.slot_of(record.number)))?;
        disk.sync()?;
        if announced.is_none_or(|at| at.elapsed() >= pace.announce) {
            say(&format!("ACK {} {}", record.number, record.time_ns));
            announced = Some(Instant::now());
        }
        written += 1;
        record.after = record.number;
        record.number += 1;
        wait_for_turn(started, pace.every, written);
    }
    say(&format!("ACK {} {}", record.after, record.time_ns));
    say(&format!("GUEST-IO journal written={written} last={} ms={}", record.after, started.elapsed().as_millis()));
    Ok(ExitCode::SUCCESS)
}

/// Keeps the asked rate; a load that cannot keep up does not run after its arrears.
fn wait_for_turn(started: Instant, every: Duration, written: u64) {
    let due = every.saturating_mul(u32::try_from(written).unwrap_or(u32::MAX));
    if let Some(left) = due.checked_sub(started.elapsed()) {
        std::thread::sleep(left);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn journal(dir: &std::path::Path, extra: &str) -> Outcome {
        let path = |name| dir.join(name).display().to_string();
        let line = format!("{} {} --slots 16 {extra}", path("a"), path("b"));
        run(Args::parse(line.split_whitespace().map(String::from)).unwrap())
    }

    fn findings(dir: &std::path::Path) -> verify::Findings {
        let disks = ["a", "b"].map(|name| Disk::open(&dir.join(name).display().to_string()).unwrap());
        let layout = verify::layout(&disks, Some(16)).unwrap();
        verify::read(&disks, layout).unwrap()
    }

    #[test]
    fn a_journal_goes_on_where_it_ended_until_told_to_start_afresh() {
        let dir = tempfile::tempdir().unwrap();
        journal(dir.path(), "--count 25 --run 5").unwrap();
        assert_eq!((findings(dir.path()).run, findings(dir.path()).last), (5, 25));
        journal(dir.path(), "--count 20 --run 6").unwrap();
        let found = findings(dir.path());
        assert_eq!((found.run, found.last, found.records), (5, 45, 32));
        assert!(found.consistent());
        journal(dir.path(), "--count 3 --run 6 --new").unwrap();
        let found = findings(dir.path());
        assert_eq!((found.run, found.last, found.records), (6, 3, 3));
    }

    #[test]
    fn a_damaged_journal_is_not_carried_on() {
        let dir = tempfile::tempdir().unwrap();
        journal(dir.path(), "--count 10").unwrap();
        let disk = Disk::open(&dir.path().join("a").display().to_string()).unwrap();
        disk.write_at(b"hurt", 4096 + 100).unwrap();
        assert_eq!(findings(dir.path()).torn, 1);
        assert!(journal(dir.path(), "--count 1").is_err());
    }
}
