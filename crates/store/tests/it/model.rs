//! Random sequences of everything a replica goes through, against a model of whole images.

use std::collections::BTreeMap;
use std::sync::Arc;

use proptest::prelude::*;
use understudy_model::{CutDigest, Generation};
use understudy_store::files::{Crash, MemFiles};
use understudy_store::{FailoverId, FailoverPurpose, Store, VmStore};

use crate::support::*;

#[derive(Debug, Clone)]
enum Step {
    Write { disk: usize, granule: u64, granules: u64, stamp: u64 },
    Odd { disk: usize, offset: u64, len: u64, stamp: u64 },
    Receive { keep: bool, bits: u32 },
    GiveUp,
    Retain { mask: u16 },
    Upkeep { steps: usize },
    Test { pick: usize },
    EndTest,
    FailOver { pick: usize },
    Revert,
    Commit,
    Reopen { crash: Crash },
    Check,
}

fn crash() -> impl Strategy<Value = Crash> {
    prop_oneof![Just(Crash::Killed), Just(Crash::LostAll), any::<u64>().prop_map(Crash::Seed)]
}

fn step() -> impl Strategy<Value = Step> {
    let stamp = prop_oneof![1 => Just(0u64), 4 => 1u64..1_000_000];
    let odd = (0usize..2, 0..DISK, 1u64..20_000, 1u64..1_000_000);
    prop_oneof![
        6 => (0usize..2, 0u64..64, 1u64..20, stamp)
            .prop_map(|(disk, granule, granules, stamp)| Step::Write { disk, granule, granules, stamp }),
        2 => odd.prop_map(|(disk, offset, len, stamp)| Step::Odd { disk, offset, len, stamp }),
        8 => (any::<bool>(), 12u32..=16).prop_map(|(keep, bits)| Step::Receive { keep, bits }),
        1 => Just(Step::GiveUp),
        2 => any::<u16>().prop_map(|mask| Step::Retain { mask }),
        4 => (1usize..8).prop_map(|steps| Step::Upkeep { steps }),
        1 => any::<usize>().prop_map(|pick| Step::Test { pick }),
        1 => Just(Step::EndTest),
        1 => any::<usize>().prop_map(|pick| Step::FailOver { pick }),
        2 => Just(Step::Revert),
        1 => Just(Step::Commit),
        2 => crash().prop_map(|crash| Step::Reopen { crash }),
        1 => Just(Step::Check),
    ]
}

/// What should be there: whole images, and which of them may be seen.
#[derive(Default)]
struct Model {
    cuts: Vec<(CutDigest, Images, bool)>,
    tests: Vec<(FailoverId, CutDigest)>,
    active: Option<(FailoverId, CutDigest)>,
    committed: Option<(FailoverId, CutDigest)>,
}

impl Model {
    fn used(&self, cut: CutDigest) -> bool {
        self.tests.iter().chain(&self.active).chain(&self.committed).any(|(_, c)| *c == cut)
    }

    fn visible(&self) -> BTreeMap<CutDigest, Images> {
        let newest = self.cuts.last().map(|c| c.0);
        let seen = self.cuts.iter().filter(|(cut, _, kept)| *kept || Some(*cut) == newest || self.used(*cut));
        seen.map(|(cut, images, _)| (*cut, images.clone())).collect()
    }

    /// What cannot be seen can never be seen again.
    fn forget_hidden(&mut self) {
        let visible = self.visible();
        self.cuts.retain(|c| visible.contains_key(&c.0));
    }

    fn pick(&self, pick: usize) -> Option<CutDigest> {
        let visible: Vec<_> = self.visible().into_keys().collect();
        visible.get(pick % visible.len().max(1)).copied()
    }
}

struct World {
    files: MemFiles,
    store: Option<Store>,
    vm: Arc<VmStore>,
    primary: Primary,
    model: Model,
}

impl World {
    fn new() -> Self {
        let files = MemFiles::new();
        let store = open(&files);
        let mut primary = Primary::small();
        primary.write(0, 0, 100_000, 1);
        let vm = primary.start(&store);
        let mut world = Self { files, store: Some(store), vm, primary, model: Model::default() };
        world.take(&Step::Receive { keep: true, bits: 12 });
        world
    }

    fn take(&mut self, step: &Step) {
        match *step {
            Step::Write { disk, granule, granules, stamp } => {
                self.primary.write(disk, granule * GRANULE, granules * GRANULE, stamp);
            }
            Step::Odd { disk, offset, len, stamp } => self.primary.write(disk, offset, len, stamp),
            Step::Receive { keep, bits } => self.receive(keep, bits),
            Step::GiveUp => self.give_up(),
            Step::Retain { mask } => self.retain(mask),
            Step::Upkeep { steps } => {
                for _ in 0..steps {
                    self.vm.upkeep(&mut unpaced).unwrap();
                }
            }
            Step::Test { pick } => self.test(pick),
            Step::EndTest => self.end_test(),
            Step::FailOver { pick } => self.fail_over(pick),
            Step::Revert => self.revert(),
            Step::Commit => self.commit(),
            Step::Reopen { crash } => self.reopen(crash),
            Step::Check => assert_eq!(self.vm.check(&mut unpaced).unwrap().damage, []),
        }
        self.model.forget_hidden();
        assert_points(&self.files, &self.vm, &self.model.visible());
    }

    fn receive(&mut self, keep: bool, bits: u32) {
        if self.model.committed.is_some() {
            return;
        }
        self.primary.cluster_bits = bits;
        let cycle = self.primary.cut();
        let session = self.primary.admit(&self.vm);
        match send(&self.vm, session, &cycle, keep) {
            Ok(cut) => {
                self.primary.acknowledged(cut.id.digest);
                self.model.cuts.push((cut.id.digest, cycle.images, keep));
            }
            Err(err) => assert!(self.model.active.is_some(), "{err:?}"),
        }
    }

    fn give_up(&mut self) {
        let cycle = self.primary.cut();
        let session = self.primary.admit(&self.vm);
        let Ok(mut receiver) = self.vm.begin_cycle(session, cycle.header.clone()) else { return };
        cycle.batches.iter().take(2).for_each(|(disk, batch)| receiver.push(*disk, batch).unwrap());
    }

    fn retain(&mut self, mask: u16) {
        let visible = self.model.visible();
        let chosen: Vec<_> =
            visible.keys().enumerate().filter(|(i, _)| mask >> (i % 16) & 1 == 1).map(|(_, c)| *c).collect();
        self.vm.retain(&chosen.iter().map(|c| c.point()).collect::<Vec<_>>()).unwrap();
        self.model.cuts.iter_mut().for_each(|(cut, _, kept)| *kept = chosen.contains(cut));
    }

    fn test(&mut self, pick: usize) {
        let Some(cut) = self.model.pick(pick) else { return };
        let id = self.vm.begin_failover(cut.point(), FailoverPurpose::Test).unwrap();
        self.model.tests.push((id, cut));
        self.assert_overlays(id, cut);
    }

    fn end_test(&mut self) {
        if let Some((id, _)) = self.model.tests.pop() {
            self.vm.revert_failover(id).unwrap();
        }
    }

    fn fail_over(&mut self, pick: usize) {
        let Some(cut) = self.model.pick(pick) else { return };
        let generation = Generation(self.primary.generation.0 + 1);
        let begun = self.vm.begin_failover(cut.point(), FailoverPurpose::TakeOver { generation });
        if self.model.active.is_some() || self.model.committed.is_some() {
            begun.unwrap_err();
            return;
        }
        // The next session is of the raised generation, as after a handshake.
        self.primary.generation = generation;
        self.model.active = Some((begun.unwrap(), cut));
        self.assert_overlays(self.model.active.unwrap().0, cut);
    }

    fn revert(&mut self) {
        if let Some((id, _)) = self.model.active.take() {
            self.vm.revert_failover(id).unwrap();
        }
    }

    fn commit(&mut self) {
        let Some((id, cut)) = self.model.active else { return };
        let at = self.model.cuts.iter().position(|c| c.0 == cut).unwrap();
        let above = |other: &CutDigest| self.model.cuts[at + 1..].iter().any(|c| c.0 == *other);
        let blocked = self.model.tests.iter().any(|(_, c)| above(c));
        let committed = self.vm.commit_failover(id);
        assert_eq!(committed.is_err(), blocked);
        if !blocked {
            self.model.cuts.truncate(at + 1);
            self.model.committed = self.model.active.take();
        }
    }

    fn reopen(&mut self, crash: Crash) {
        self.store = None;
        self.files.crash(crash);
        let store = open(&self.files);
        assert_eq!(store.unopened(), []);
        self.vm = store.vm(self.primary.vm).unwrap();
        self.store = Some(store);
        assert_no_leftovers(&self.files, &self.vm);
        for (id, cut) in self.model.tests.iter().chain(&self.model.active).chain(&self.model.committed) {
            self.assert_overlays(*id, *cut);
        }
    }

    /// A failover's disks are the cut's.
    fn assert_overlays(&self, id: FailoverId, cut: CutDigest) {
        let images = &self.model.visible()[&cut];
        let read = |path: &str| self.files.content(path).unwrap();
        let paths = self.vm.overlay_paths(id).unwrap();
        assert_eq!(paths.len(), images.len());
        for ((_, path), image) in paths.iter().zip(images) {
            let path = path.strip_prefix("/memory").unwrap().to_str().unwrap();
            assert!(crate::image::read_qcow2(&read, path) == *image, "{path}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, max_shrink_iters: 2_000, ..ProptestConfig::default() })]

    #[test]
    fn every_point_is_what_the_model_says_whatever_happens(steps in prop::collection::vec(step(), 1..60)) {
        let mut world = World::new();
        for step in &steps {
            world.take(step);
        }
        let visible = world.model.visible();
        for (cut, images) in &visible {
            prop_assert!(images_read(&world.vm, cut.point()) == *images);
        }
        prop_assert_eq!(world.vm.check(&mut unpaced).unwrap().damage, vec![]);
    }
}
