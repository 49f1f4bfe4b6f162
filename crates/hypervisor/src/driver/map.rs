//! Our dirty maps: their names, their granularity, and the rule that says whether they cover everything.
//!
//! The name carries whose map it is, so a map that outlived its relationship or its generation is recognised and never
//! trusted. Bitmaps with other names belong to other tools and are never touched.

use std::fmt;
use std::str::FromStr;

use understudy_model::{CutNumber, Generation, RelationshipId, VmId};

/// What every name of ours begins with, in bitmaps and elsewhere in a hypervisor.
pub const NAME_PREFIX: &str = "understudy-";

/// Finest granularity: the block size of nearly all file systems, so a coarser one would carry bytes nobody wrote.
pub const MAP_GRANULARITY_MIN: u64 = 4 << 10;

/// Most memory one map may take in the hypervisor: 16 MiB. Reached at 512 GiB with granules of 4 KiB.
pub const MAP_BYTES_MAX: u64 = 16 << 20;

/// The granularity of the maps of a disk of `size` bytes: the finest power of two, from [`MAP_GRANULARITY_MIN`] on, at
/// which one bit a granule fits in [`MAP_BYTES_MAX`]. So 4 KiB up to 512 GiB, 8 KiB up to 1 TiB, 512 KiB at 64 TiB.
pub fn granularity(size: u64) -> u64 {
    let finest = size.div_ceil(MAP_BYTES_MAX * 8);
    finest.next_power_of_two().max(MAP_GRANULARITY_MIN)
}

/// Whose maps: one relationship in one generation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MapOwner {
    /// The relationship that is tracked for.
    pub relationship: RelationshipId,
    /// The generation; maps of lower ones are stale.
    pub generation: Generation,
}

impl MapOwner {
    /// The bitmap name of map `number`. At most 88 bytes, and a format may store 1023.
    pub fn map_name(&self, number: CutNumber) -> String {
        let RelationshipId { vm, leg } = self.relationship;
        format!("{NAME_PREFIX}{}-{leg}-g{}-m{number}", vm.0.simple(), self.generation)
    }

    /// The owner and number a bitmap's name tells; `None` for a name that is not exactly what we write.
    pub fn parse(name: &str) -> Option<(MapOwner, CutNumber)> {
        let mut parts = name.strip_prefix(NAME_PREFIX)?.split('-');
        let vm = VmId::from_str(parts.next()?).ok()?;
        let leg = parts.next()?.parse().ok()?;
        let generation = Generation(parts.next()?.strip_prefix('g')?.parse().ok()?);
        let number = CutNumber(parts.next()?.strip_prefix('m')?.parse().ok()?);
        let owner = MapOwner { relationship: RelationshipId { vm, leg }, generation };
        (owner.map_name(number) == name).then_some((owner, number))
    }

    /// Whether `other` is a former or the present owner in the same relationship.
    pub fn supersedes(&self, other: &MapOwner) -> bool {
        self.relationship == other.relationship && other.generation <= self.generation
    }
}

impl fmt::Display for MapOwner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} generation {}", self.relationship, self.generation)
    }
}

/// One map of ours on one disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct MapInfo {
    /// The number of the cut after which it began.
    pub number: CutNumber,
    /// Whether it still takes in writes.
    pub recording: bool,
    /// Whether the hypervisor itself says that it may lack writes.
    pub inconsistent: bool,
    /// Whether it outlives an orderly end of the hypervisor process.
    pub persistent: bool,
    /// Whether something is using it now, so that it cannot be changed or removed.
    pub busy: bool,
    /// Bytes per bit.
    pub granularity: u64,
    /// Bytes marked.
    pub dirty: u64,
}

/// The maps of one owner on one disk.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DiskMaps {
    /// The disk's durable key.
    pub key: String,
    /// The disk's size in bytes.
    pub size: u64,
    /// Ascending by number, each number once.
    pub maps: Vec<MapInfo>,
    /// Names of maps of the same relationship from other generations: never used, removed by tracking anew.
    pub stale: Vec<String>,
}

impl DiskMaps {
    /// Whether the union of the maps holds everything written since cut `base`, and goes on holding it.
    pub fn covers(&self, base: CutNumber) -> Result<(), LostTracking> {
        let oldest = self.maps.first().ok_or(LostTracking::Missing)?;
        if let Some(bad) = self.maps.iter().find(|m| m.inconsistent) {
            return Err(LostTracking::Inconsistent { number: bad.number });
        }
        let expected = granularity(self.size);
        if let Some(bad) = self.maps.iter().find(|m| m.granularity != expected) {
            return Err(LostTracking::Granularity { number: bad.number, found: bad.granularity, expected });
        }
        if !self.maps.iter().any(|m| m.recording) {
            return Err(LostTracking::NotRecording);
        }
        if oldest.number > base {
            return Err(LostTracking::TooYoung { oldest: oldest.number, base });
        }
        Ok(())
    }

    /// Whether the maps are those of the image as it was at the base, or of a later state. An image that was put back to
    /// an earlier state brings its earlier maps along, and those know nothing of the way back. `youngest` is what was
    /// recorded with the base: each cut that carries something begins a map, so an earlier state has only older ones.
    pub fn reaches(&self, youngest: Option<CutNumber>) -> Result<(), LostTracking> {
        match (youngest, self.youngest()) {
            (Some(expected), Some(found)) if found < expected => Err(LostTracking::PutBack { expected, found }),
            _ => Ok(()),
        }
    }

    /// The number of the youngest map.
    pub fn youngest(&self) -> Option<CutNumber> {
        self.maps.last().map(|map| map.number)
    }
}

/// The maps of one owner on all disks of a VM.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct MapInventory {
    /// One entry for each disk that can be replicated, also for those without a map.
    pub disks: Vec<DiskMaps>,
}

impl MapInventory {
    /// The maps of the disk with this key.
    pub fn disk(&self, key: &str) -> Option<&DiskMaps> {
        self.disks.iter().find(|d| d.key == key)
    }
}

/// In which way tracking was lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LostTracking {
    /// There is no map of ours.
    #[error("no map is present")]
    Missing,
    /// The hypervisor ended without closing the map in good order.
    #[error("map {number} is inconsistent: the VM was not closed in good order")]
    Inconsistent {
        /// Which map.
        number: CutNumber,
    },
    /// A map is not as we make them for a disk of this size.
    #[error("map {number} has granules of {found} bytes where {expected} belong")]
    Granularity {
        /// Which map.
        number: CutNumber,
        /// Its granularity.
        found: u64,
        /// What it should be.
        expected: u64,
    },
    /// No map takes in writes.
    #[error("no map is recording")]
    NotRecording,
    /// The maps begin after the cut that the replica holds.
    #[error("the oldest map begins after cut {oldest}, and the replica holds cut {base}")]
    TooYoung {
        /// The oldest map's number.
        oldest: CutNumber,
        /// The cut that the replica holds.
        base: CutNumber,
    },
    /// A map with the number of the cut to be taken is there already: numbers were used twice.
    #[error("a map with the number {number} of the new cut is present already")]
    NumberTaken {
        /// The number.
        number: CutNumber,
    },
    /// The map has more pieces than can be worked with.
    #[error("the map has more than {limit} extents")]
    TooFragmented {
        /// The bound.
        limit: usize,
    },
    /// The image is an earlier state of itself.
    #[error("an earlier state of the image was put back: its youngest map is {found}, and {expected} had begun")]
    PutBack {
        /// The youngest map that had begun.
        expected: CutNumber,
        /// The youngest one there is.
        found: CutNumber,
    },
    /// The image was changed while no hypervisor was tracking it, or nothing shows that it was not.
    #[error("the image may have been changed while the VM was off")]
    ChangedWhileOff,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use understudy_model::DiskSpec;
    use uuid::Uuid;

    use super::*;

    fn map(number: u64) -> MapInfo {
        MapInfo {
            number: CutNumber(number),
            recording: false,
            inconsistent: false,
            persistent: false,
            busy: false,
            granularity: 4096,
            dirty: 0,
        }
    }

    fn maps(list: &[MapInfo]) -> DiskMaps {
        DiskMaps { key: "id:a".into(), size: 1 << 20, maps: list.to_vec(), stale: Vec::new() }
    }

    proptest! {
        #[test]
        fn names_read_back_and_fit(vm: u128, leg: u8, generation: u64, number: u64) {
            let relationship = RelationshipId { vm: VmId(Uuid::from_u128(vm)), leg };
            let owner = MapOwner { relationship, generation: Generation(generation) };
            let name = owner.map_name(CutNumber(number));
            prop_assert!(name.len() <= 1023);
            prop_assert_eq!(MapOwner::parse(&name), Some((owner, CutNumber(number))));
        }

        #[test]
        fn a_name_that_is_not_exactly_ours_is_nobodys(text in "(understudy-)?[0-9a-f+ -]{0,60}(-g[0-9+]{1,3}-m[0-9]{1,3})?") {
            if let Some((owner, number)) = MapOwner::parse(&text) {
                prop_assert_eq!(owner.map_name(number), text);
            }
        }

        #[test]
        fn a_map_is_small_and_no_coarser_than_it_must_be(size in 512u64..=DiskSpec::SIZE_MAX) {
            let granule = granularity(size);
            let bytes = |granule: u64| size.div_ceil(granule).div_ceil(8);
            prop_assert!(granule.is_power_of_two());
            prop_assert!(bytes(granule) <= MAP_BYTES_MAX);
            prop_assert!(granule == MAP_GRANULARITY_MIN || bytes(granule / 2) > MAP_BYTES_MAX);
        }
    }

    #[test]
    fn granularity_steps_where_the_manual_says() {
        assert_eq!(granularity(512), 4 << 10);
        assert_eq!(granularity(512 << 30), 4 << 10);
        assert_eq!(granularity((512 << 30) + 512), 8 << 10);
        assert_eq!(granularity(DiskSpec::SIZE_MAX), 512 << 10);
    }

    #[test]
    fn maps_cover_a_base_only_from_their_oldest_on() {
        let live = MapInfo { recording: true, ..map(9) };
        let set = maps(&[map(7), live]);
        assert_eq!(set.covers(CutNumber(7)), Ok(()));
        assert_eq!(set.covers(CutNumber(8)), Ok(()));
        let young = LostTracking::TooYoung { oldest: CutNumber(7), base: CutNumber(6) };
        assert_eq!(set.covers(CutNumber(6)), Err(young));
    }

    #[test]
    fn an_image_that_was_put_back_has_only_older_maps() {
        let set = maps(&[map(3), MapInfo { recording: true, ..map(7) }]);
        assert_eq!(set.reaches(None), Ok(()));
        assert_eq!(set.reaches(Some(CutNumber(7))), Ok(()));
        let put_back = LostTracking::PutBack { expected: CutNumber(8), found: CutNumber(7) };
        assert_eq!(set.reaches(Some(CutNumber(8))), Err(put_back));
    }

    #[test]
    fn every_way_to_lose_tracking_is_told() {
        let live = MapInfo { recording: true, ..map(9) };
        assert_eq!(maps(&[]).covers(CutNumber(9)), Err(LostTracking::Missing));
        assert_eq!(maps(&[map(7)]).covers(CutNumber(9)), Err(LostTracking::NotRecording));
        let broken = MapInfo { inconsistent: true, ..map(7) };
        assert_eq!(
            maps(&[broken, live]).covers(CutNumber(9)),
            Err(LostTracking::Inconsistent { number: CutNumber(7) })
        );
        let coarse = MapInfo { granularity: 65536, ..live };
        assert!(matches!(maps(&[coarse]).covers(CutNumber(9)), Err(LostTracking::Granularity { .. })));
    }

    #[test]
    fn an_owner_supersedes_its_own_past_only() {
        let owner = |vm, generation| MapOwner {
            relationship: RelationshipId::first(VmId(Uuid::from_u128(vm))),
            generation: Generation(generation),
        };
        assert!(owner(1, 5).supersedes(&owner(1, 5)));
        assert!(owner(1, 5).supersedes(&owner(1, 4)));
        assert!(!owner(1, 5).supersedes(&owner(1, 6)));
        assert!(!owner(1, 5).supersedes(&owner(2, 4)));
    }
}
