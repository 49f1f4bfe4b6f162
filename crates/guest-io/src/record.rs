//! One journal record: 4 KiB that say which write this was and what was durable before it.
//!
//! ```text
//!  0  magic "USJRNL01"            24  wall clock at the write, ns      44  CRC-32C of all other bytes
//!  8  run id                      32  number durable before this one   48  contents made from run and number
//! 16  number, from 1              40  index of the disk (u32)
//! ```
//!
//! Record n goes to disk (n-1) mod disks, slot ((n-1) / disks) mod slots: consecutive records alternate between the disks, and
//! each disk is a ring. Everything is little-endian.

use crate::checksum::{Random, crc32c};

/// Bytes of a record: one page, the unit in which a guest's page cache writes.
pub const RECORD_BYTES: usize = 4096;
const MAGIC: [u8; 8] = *b"USJRNL01";
const CRC_AT: usize = 44;
const CONTENTS_AT: usize = 48;

/// The facts a record carries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Which journal this belongs to; two journals on the same disks are told apart by it.
    pub run: u64,
    /// Counts from 1 over all disks.
    pub number: u64,
    /// Guest's wall clock just before the write.
    pub time_ns: u64,
    /// Last record that was durable when this one was written; 0 for none.
    pub after: u64,
    /// Index of the disk it was meant for.
    pub disk: u32,
}

/// What a slot on a disk holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Slot {
    /// Nothing was ever written: all zero.
    Empty,
    /// A whole record.
    Record(Record),
    /// Bytes that are no whole record: torn, or not ours.
    Damaged,
}

impl Record {
    /// The record's bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![0u8; RECORD_BYTES];
        bytes[..8].copy_from_slice(&MAGIC);
        bytes[8..16].copy_from_slice(&self.run.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.number.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.time_ns.to_le_bytes());
        bytes[32..40].copy_from_slice(&self.after.to_le_bytes());
        bytes[40..44].copy_from_slice(&self.disk.to_le_bytes());
        Random::seeded(self.run ^ self.number).fill(&mut bytes[CONTENTS_AT..]);
        let crc = crc32c(&[&bytes[..CRC_AT], &bytes[CONTENTS_AT..]]);
        bytes[CRC_AT..CONTENTS_AT].copy_from_slice(&crc.to_le_bytes());
        bytes
    }
}

impl Slot {
    /// Judges the bytes of a slot.
    pub fn decode(bytes: &[u8]) -> Slot {
        if bytes.iter().all(|&b| b == 0) {
            return Slot::Empty;
        }
        let word = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"));
        let half = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"));
        if bytes[..8] != MAGIC || half(CRC_AT) != crc32c(&[&bytes[..CRC_AT], &bytes[CONTENTS_AT..]]) {
            return Slot::Damaged;
        }
        Slot::Record(Record { run: word(8), number: word(16), time_ns: word(24), after: word(32), disk: half(40) })
    }
}

/// Where the records of a journal lie.
#[derive(Debug, Clone, Copy)]
pub struct Layout {
    /// How many disks take turns.
    pub disks: u64,
    /// Slots of each disk's ring.
    pub slots: u64,
}

impl Layout {
    /// Index of the disk that holds a record.
    pub fn disk_of(self, number: u64) -> u64 {
        (number - 1) % self.disks
    }

    /// Slot that holds a record.
    pub fn slot_of(self, number: u64) -> u64 {
        ((number - 1) / self.disks) % self.slots
    }

    /// Byte offset of a slot.
    pub fn offset_of(self, slot: u64) -> u64 {
        slot * RECORD_BYTES as u64
    }

    /// The record that must be in a slot of a disk whose newest record is `last`, if any was ever written there.
    pub fn expected(self, disk: u64, slot: u64, last: u64) -> Option<u64> {
        let rounds = last.checked_sub(disk + 1)? / self.disks; // turns this disk had before its newest
        let turn = rounds.checked_sub((rounds + self.slots - slot) % self.slots)?;
        Some(turn * self.disks + disk + 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_reads_back_and_any_flipped_bit_is_seen() {
        let record = Record { run: 9, number: 1234, time_ns: 55, after: 1233, disk: 1 };
        let bytes = record.encode();
        assert_eq!(bytes.len(), RECORD_BYTES);
        assert_eq!(Slot::decode(&bytes), Slot::Record(record));
        for at in [0, 9, 17, 25, 33, 41, 45, 48, 2000, 4095] {
            let mut hurt = bytes.clone();
            hurt[at] ^= 4;
            assert_eq!(Slot::decode(&hurt), Slot::Damaged, "byte {at}");
        }
        assert_eq!(Slot::decode(&[0; RECORD_BYTES]), Slot::Empty);
    }

    #[test]
    fn the_expected_record_of_each_slot_is_what_writing_in_order_leaves() {
        for disks in 1..=3u64 {
            let layout = Layout { disks, slots: 4 };
            let mut rings = vec![[None; 4]; disks as usize];
            let mut newest = vec![0; disks as usize];
            for number in 1..60 {
                let disk = layout.disk_of(number) as usize;
                rings[disk][layout.slot_of(number) as usize] = Some(number);
                newest[disk] = number;
                for (disk, ring) in rings.iter().enumerate() {
                    for (slot, held) in ring.iter().enumerate() {
                        assert_eq!(layout.expected(disk as u64, slot as u64, newest[disk]), *held);
                    }
                }
            }
        }
    }
}
