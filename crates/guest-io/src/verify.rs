//! Reads a journal back and says what is wrong with it: what is missing, torn, out of order between the disks, or foreign.
//!
//! Judged disk by disk first: below the newest record of a disk every slot must hold exactly the record that writing in order
//! leaves there. Then across the disks: no record may name a predecessor that the other disk does not have. The one write that
//! may have been under way when the guest died is not counted, for it was never announced.

use std::process::ExitCode;

use crate::Outcome;
use crate::args::Args;
use crate::disk::{Disk, say};
use crate::record::{Layout, RECORD_BYTES, Record, Slot};

/// Slots of a ring unless said otherwise: 64 MiB on each disk.
pub const SLOTS_DEFAULT: u64 = 16_384;

/// What a journal was found to hold.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Findings {
    /// The journal's run id, 0 when nothing was found.
    pub run: u64,
    /// Whole records in their places.
    pub records: u64,
    /// The newest record, over all disks; 0 for none.
    pub last: u64,
    /// The guest's clock when it was written.
    pub last_time_ns: u64,
    /// Newest record of each disk.
    pub last_of: Vec<u64>,
    /// Records below a disk's newest that are not there.
    pub missing: u64,
    /// Slots with damaged contents, but for the write under way at the end.
    pub torn: u64,
    /// Slots with the write that was under way at the end, half done.
    pub torn_tail: u64,
    /// Records whose named predecessor the other disk lacks.
    pub order: u64,
    /// Records of another run.
    pub foreign: u64,
    /// Whole records on the wrong disk or in the wrong slot.
    pub misplaced: u64,
}

impl Findings {
    /// True when the disks are a state the guest really passed through.
    pub fn consistent(&self) -> bool {
        self.missing + self.torn + self.order + self.foreign + self.misplaced == 0
    }
}

/// `guest-io verify`: 0 for consistent, 1 for not, 2 for an empty journal.
pub fn run(mut args: Args) -> Outcome {
    let slots = args.number("slots")?;
    args.finish()?;
    let disks = args.disks.iter().map(|path| Disk::open(path)).collect::<Result<Vec<_>, _>>()?;
    let layout = layout(&disks, slots)?;
    let findings = read(&disks, layout)?;
    let last_of: Vec<_> = findings.last_of.iter().map(u64::to_string).collect();
    let Findings { run, records, last, last_time_ns, missing, torn, torn_tail, order, foreign, misplaced, .. } =
        findings;
    say(&format!(
        "GUEST-IO verify consistent={} records={records} last={last} last_time_ns={last_time_ns} missing={missing} \
         torn={torn} torn_tail={torn_tail} order={order} foreign={foreign} misplaced={misplaced} run={run} last_of={}",
        u8::from(findings.consistent()),
        last_of.join(",")
    ));
    Ok(match (records, findings.consistent()) {
        (_, false) => ExitCode::from(1),
        (0, true) => ExitCode::from(2),
        (_, true) => ExitCode::SUCCESS,
    })
}

/// The layout a set of disks implies: the smallest disk bounds the rings.
pub fn layout(disks: &[Disk], slots: Option<u64>) -> Result<Layout, String> {
    let smallest = disks.iter().map(|disk| disk.size).min().ok_or("at least one disk is needed")?;
    let room = smallest / RECORD_BYTES as u64;
    match slots.unwrap_or(SLOTS_DEFAULT).min(room) {
        0 => Err("the disks have no room for a journal".into()),
        slots => Ok(Layout { disks: disks.len() as u64, slots }),
    }
}

/// Reads all rings and judges them.
pub fn read(disks: &[Disk], layout: Layout) -> Result<Findings, String> {
    let rings = disks.iter().map(|disk| read_ring(disk, layout)).collect::<Result<Vec<_>, _>>()?;
    Ok(judge(&rings, layout))
}

/// Slots read at once: a megabyte.
const SLOTS_AT_ONCE: u64 = 256;

fn read_ring(disk: &Disk, layout: Layout) -> Result<Vec<Slot>, String> {
    let mut ring = Vec::new();
    let mut buffer = Vec::new();
    for first in (0..layout.slots).step_by(SLOTS_AT_ONCE as usize) {
        let count = SLOTS_AT_ONCE.min(layout.slots - first) as usize;
        buffer.resize(count * RECORD_BYTES, 0);
        disk.read_at(&mut buffer, layout.offset_of(first))?;
        ring.extend(buffer.chunks_exact(RECORD_BYTES).map(Slot::decode));
    }
    Ok(ring)
}

fn judge(rings: &[Vec<Slot>], layout: Layout) -> Findings {
    let newest = newest_record(rings);
    let mut findings = Findings { run: newest.as_ref().map_or(0, |r| r.run), ..Findings::default() };
    findings.last_of = rings.iter().enumerate().map(|(disk, ring)| last_of(disk, ring, findings.run, layout)).collect();
    for (disk, ring) in rings.iter().enumerate() {
        judge_ring(disk as u64, ring, layout, &mut findings);
    }
    findings
}

/// The record that names the run: the one with the latest time, whatever its place.
fn newest_record(rings: &[Vec<Slot>]) -> Option<Record> {
    whole(rings.iter().flatten()).max_by_key(|record| (record.time_ns, record.number)).cloned()
}

fn last_of(disk: usize, ring: &[Slot], run: u64, layout: Layout) -> u64 {
    let ours = ring.iter().enumerate().filter_map(|(slot, held)| match held {
        Slot::Record(r) if r.run == run && is_in_place(r, disk as u64, slot as u64, layout) => Some(r.number),
        _ => None,
    });
    ours.max().unwrap_or(0)
}

fn judge_ring(disk: u64, ring: &[Slot], layout: Layout, findings: &mut Findings) {
    let last = findings.last_of[disk as usize];
    let next = if last == 0 { disk + 1 } else { last + layout.disks };
    for (slot, held) in ring.iter().enumerate() {
        let expected = layout.expected(disk, slot as u64, last);
        match held {
            Slot::Empty => findings.missing += u64::from(expected.is_some()),
            Slot::Damaged if slot as u64 == layout.slot_of(next) => findings.torn_tail += 1,
            Slot::Damaged => findings.torn += 1,
            Slot::Record(r) if r.run != findings.run => findings.foreign += 1,
            Slot::Record(r) if !is_in_place(r, disk, slot as u64, layout) => findings.misplaced += 1,
            Slot::Record(r) if Some(r.number) != expected => findings.missing += 1,
            Slot::Record(r) => count_record(r, layout, findings),
        }
    }
}

fn count_record(record: &Record, layout: Layout, findings: &mut Findings) {
    findings.records += 1;
    if record.number > findings.last {
        findings.last = record.number;
        findings.last_time_ns = record.time_ns;
    }
    if record.after > 0 && record.after > findings.last_of[layout.disk_of(record.after) as usize] {
        findings.order += 1;
    }
}

fn is_in_place(record: &Record, disk: u64, slot: u64, layout: Layout) -> bool {
    let named = u64::from(record.disk) == disk && record.number > 0;
    named && layout.disk_of(record.number) == disk && layout.slot_of(record.number) == slot
}

fn whole<'a>(slots: impl Iterator<Item = &'a Slot>) -> impl Iterator<Item = &'a Record> {
    slots.filter_map(|slot| match slot {
        Slot::Record(record) => Some(record),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const LAYOUT: Layout = Layout { disks: 2, slots: 8 };

    fn written(count: u64) -> Vec<Vec<Slot>> {
        let mut rings = vec![vec![Slot::Empty; LAYOUT.slots as usize]; 2];
        for number in 1..=count {
            put(&mut rings, number);
        }
        rings
    }

    fn put(rings: &mut [Vec<Slot>], number: u64) {
        let (disk, slot) = (LAYOUT.disk_of(number), LAYOUT.slot_of(number));
        let record = Record { run: 3, number, time_ns: number * 10, after: number - 1, disk: disk as u32 };
        rings[disk as usize][slot as usize] = Slot::Record(record);
    }

    #[test]
    fn a_journal_in_order_is_consistent_at_every_length() {
        for count in 0..50 {
            let findings = judge(&written(count), LAYOUT);
            assert!(findings.consistent(), "{count}: {findings:?}");
            assert_eq!(findings.last, count);
            assert_eq!(findings.last_time_ns, count * 10);
            assert_eq!(findings.records, count.min(16));
        }
    }

    #[test]
    fn a_hole_is_missing_even_where_an_older_round_still_lies() {
        let mut rings = written(10);
        rings[0][1] = Slot::Empty;
        assert_eq!(judge(&rings, LAYOUT).missing, 1);
        let mut rings = written(30);
        let slot = LAYOUT.slot_of(25) as usize;
        rings[0][slot] = written(16)[0][slot].clone();
        assert_eq!(judge(&rings, LAYOUT).missing, 1);
    }

    #[test]
    fn a_damaged_record_is_torn_unless_it_was_the_one_under_way() {
        let mut rings = written(20);
        rings[1][LAYOUT.slot_of(22) as usize] = Slot::Damaged;
        let findings = judge(&rings, LAYOUT);
        assert!(findings.consistent());
        assert_eq!(findings.torn_tail, 1);
        rings[1][LAYOUT.slot_of(18) as usize] = Slot::Damaged;
        assert_eq!(judge(&rings, LAYOUT).torn, 1);
    }

    #[test]
    fn a_disk_cut_later_than_the_other_shows_as_order() {
        let mut rings = written(20);
        for number in [22, 24, 26] {
            put(&mut rings, number); // disk 1 goes on, disk 0 stays at 19
        }
        let findings = judge(&rings, LAYOUT);
        assert_eq!((findings.order, findings.missing), (3, 0));
        assert!(!findings.consistent());
    }

    #[test]
    fn swapped_disks_and_other_runs_are_seen() {
        let mut rings = written(20);
        rings.swap(0, 1);
        assert_eq!(judge(&rings, LAYOUT).misplaced, 16);
        let mut rings = written(20);
        rings[0][0] = Slot::Record(Record { run: 4, number: 17, time_ns: 1, after: 0, disk: 0 });
        assert_eq!(judge(&rings, LAYOUT).foreign, 1);
    }
}
