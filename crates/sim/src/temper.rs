//! What a run is like: drawn once from the seed, so that runs differ in kind and not only in detail.

use understudy_model::settings::PointEvery;
use understudy_model::{DiskId, DiskSpec, Millis, Settings};

use crate::chance::Chance;
use crate::fault::Fault;
use crate::image::GRANULE;
use crate::operator::Deed;

/// See the module's description.
#[derive(Debug, Clone)]
pub struct Temper {
    /// The VM's disks, and whether each keeps its maps over an orderly end of QEMU.
    pub disks: Vec<(DiskSpec, bool)>,
    /// The relationship's settings at first.
    pub settings: Settings,
    /// Longest pause of the guest between two bursts of writes.
    pub guest_pause: u64,
    /// How long faults go on.
    pub length: Millis,
    /// Time between faults, on average.
    pub fault_every: u64,
    /// How likely each fault is.
    pub faults: Vec<u64>,
    /// Time between an operator's deeds, on average; zero for an operator who does nothing.
    pub deed_every: u64,
    /// How likely each deed is.
    pub deeds: Vec<u64>,
    /// Whether the operator puts things right when the faults are over.
    pub is_tidy: bool,
    /// Most scratch space of a cut.
    pub scratch_limit: u64,
    /// Bytes the replica's disk holds.
    pub capacity: u64,
}

impl Temper {
    /// Draws one.
    pub fn draw(chance: &mut Chance) -> Self {
        let disks = (0..chance.between(1, 3)).map(|i| draw_disk(i as u16, chance)).collect();
        let interval = *chance.pick(&[1_000, 1_000, 2_000, 3_000, 5_000, 10_000]);
        Self {
            disks,
            settings: draw_settings(Millis(interval), chance),
            guest_pause: *chance.pick(&[60, 200, 200, 800, 3_000]),
            length: Millis(chance.between(10, 24) * interval.clamp(2_000, 5_000)),
            fault_every: interval * chance.between(1, 8),
            faults: draw_weights(Fault::KINDS.iter().map(|(_, weight)| *weight), chance),
            deed_every: if chance.percent(25) { 0 } else { interval * chance.between(2, 10) },
            deeds: draw_weights(Deed::ALL.iter().map(|(_, weight)| *weight), chance),
            is_tidy: chance.percent(80),
            scratch_limit: *chance.pick(&[u64::MAX, u64::MAX, 512 << 10, 128 << 10]),
            capacity: chance.between(12, 64) << 20,
        }
    }
}

/// Some kinds are left out of a run altogether, others come much more often: faults of one kind in a row reach places
/// that an even mixture does not.
fn draw_weights(base: impl Iterator<Item = u64>, chance: &mut Chance) -> Vec<u64> {
    base.map(|weight| weight * *chance.pick(&[0, 0, 1, 1, 1, 6])).collect()
}

fn draw_disk(number: u16, chance: &mut Chance) -> (DiskSpec, bool) {
    let granules = *chance.pick(&[16, 17, 31, 64, 100, 128, 256]);
    // Now and then the last granule is cut short by the end of the disk.
    let short = if chance.percent(30) { chance.between(1, 7) * 512 } else { 0 };
    let size = granules * GRANULE as u64 - short;
    (DiskSpec { id: DiskId(number), key: format!("id:disk{number}"), size }, chance.percent(60))
}

/// Settings within their legal range.
pub fn draw_settings(interval: Millis, chance: &mut Chance) -> Settings {
    Settings {
        interval,
        points: *chance.pick(&[0, 1, 2, 3, 5, 24]),
        point_every: match chance.below(3) {
            0 => PointEvery::Cycle,
            _ => PointEvery::Span(Millis(interval.0.max(1_000) * chance.between(1, 4))),
        },
        application_consistent_every: None,
        compression: chance.percent(80),
        excluded_disks: Vec::new(),
        auto_resync: None,
    }
}
