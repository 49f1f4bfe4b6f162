//! On real files, with QEMU's own tools as judges: every run is a clean qcow2 file, and every point is the image the
//! primary had, at each step of upkeep and through failovers.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;

use understudy_model::{CutDigest, Generation};
use understudy_store::files::RealFiles;
use understudy_store::{FailoverPurpose, Store, UpkeepStep, VmStore};

use crate::support::*;

fn qemu_img(args: &[&str], paths: &[&Path]) -> Output {
    let output = Command::new("qemu-img").args(args).args(paths).env("LC_ALL", "C").output();
    output.expect("qemu-img, the judge of these tests, is installed")
}

fn assert_clean(path: &Path) {
    let output = qemu_img(&["check", "-f", "qcow2"], &[path]);
    assert!(output.status.success(), "{}: {}", path.display(), String::from_utf8_lossy(&output.stderr));
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(said.contains("No errors were found"), "{}: {said}", path.display());
}

fn same(path: &Path, format: &str, raw: &Path) -> bool {
    qemu_img(&["compare", "-f", format, "-F", "raw"], &[path, raw]).status.success()
}

struct World {
    dir: tempfile::TempDir,
    store: Store,
    vm: Arc<VmStore>,
    primary: Primary,
    expected: BTreeMap<CutDigest, Vec<PathBuf>>,
}

impl World {
    fn new(sizes: &[u64]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("store")).unwrap();
        std::fs::create_dir(dir.path().join("expected")).unwrap();
        let files = RealFiles::open(&dir.path().join("store")).unwrap();
        let store = Store::open(Arc::new(files), options()).unwrap();
        let mut primary = Primary::new(sizes);
        (0..40).for_each(|i| primary.write(i % sizes.len(), i as u64 * 90_112, 70_000, i as u64 + 1));
        let vm = primary.start(&store);
        Self { dir, store, vm, primary, expected: BTreeMap::new() }
    }

    fn reopen(self) -> Self {
        let Self { dir, store, vm, primary, expected } = self;
        drop((store, vm));
        let files = RealFiles::open(&dir.path().join("store")).unwrap();
        let store = Store::open(Arc::new(files), options()).unwrap();
        let vm = store.vm(primary.vm).unwrap();
        Self { dir, store, vm, primary, expected }
    }

    fn replicate(&mut self, seed: u64, bits: u32) {
        for i in 0..8 {
            let stamp = if i == 3 { 0 } else { seed * 10 + i };
            let disk = (i % self.primary.images.len() as u64) as usize;
            self.primary.write(disk, (seed * 700_001 + i * 333_337) % 4_000_000, 1 + i * 9_000, stamp);
        }
        self.primary.cluster_bits = bits;
        let cut = self.primary.replicate(&self.vm, true);
        let paths = self.primary.images.iter().enumerate().map(|(i, image)| {
            let path = self.dir.path().join(format!("expected/{}-{i}.raw", cut.id.number));
            std::fs::write(&path, image).unwrap();
            path
        });
        self.expected.insert(cut.id.digest, paths.collect());
    }

    fn assert_all(&self) {
        let points = self.vm.points();
        assert_eq!(points.len(), self.expected.len());
        for (digest, images) in &self.expected {
            for (chain, image) in self.vm.chain(digest.point()).unwrap().iter().zip(images) {
                let top = &chain.files[0];
                let format = if top.is_raw { "raw" } else { "qcow2" };
                assert!(same(&top.path, format, image), "{} is not {}", top.path.display(), image.display());
                chain.files.iter().filter(|f| !f.is_raw).for_each(|f| assert_clean(&f.path));
            }
        }
    }

    fn keep(&mut self, keep: impl Fn(usize) -> bool) {
        let order: Vec<_> = self.vm.points().iter().map(|p| p.cut.id.digest).collect();
        let last = order.len() - 1;
        let kept: Vec<_> =
            order.into_iter().enumerate().filter(|(i, _)| keep(*i) || *i == last).map(|(_, d)| d).collect();
        self.vm.retain(&kept.iter().map(|d| d.point()).collect::<Vec<_>>()).unwrap();
        self.expected.retain(|d, _| kept.contains(d));
    }
}

#[test]
fn every_point_stays_what_it_was_through_each_step_of_upkeep() {
    let mut world = World::new(&[5 << 20, (4 << 20) + 512]);
    (1..=8).for_each(|i| world.replicate(i, 12 + (i % 5) as u32));
    world.assert_all();
    world.keep(|i| [0, 4, 6].contains(&i));
    let (mut merged, mut committed) = (0, 0);
    for round in 0..3 {
        loop {
            match world.vm.upkeep(&mut unpaced).unwrap() {
                UpkeepStep::Idle => break,
                UpkeepStep::Merged { .. } => merged += 1,
                UpkeepStep::Committed { .. } => committed += 1,
                UpkeepStep::Deferred => panic!("nothing is in use"),
            }
            world.assert_all();
        }
        world = world.reopen();
        (1..=2).for_each(|i| world.replicate(20 + round * 2 + i, 12 + round as u32));
        world.keep(|i| i > 1);
    }
    world.assert_all();
    assert!(merged >= 2 && committed >= 3, "{merged} merged, {committed} committed");
    let report = world.vm.check(&mut unpaced).unwrap();
    assert_eq!(report.damage, []);
    assert_eq!(report.unknown_blocks, 0);
}

#[test]
fn failovers_are_ordinary_writable_images_and_leave_the_points_alone() {
    let mut world = World::new(&[5 << 20, 4 << 20]);
    (1..=5).for_each(|i| world.replicate(i, 12));
    world.keep(|i| i != 1);
    upkeep(&world.vm);
    let order: Vec<_> = world.vm.points().iter().map(|p| p.cut.id.digest).collect();
    let test = world.vm.begin_failover(order[0].point(), FailoverPurpose::Test).unwrap();
    let take_over = FailoverPurpose::TakeOver { generation: Generation(2) };
    let failover = world.vm.begin_failover(order[2].point(), take_over).unwrap();
    for (id, cut) in [(test, order[0]), (failover, order[2])] {
        for ((_, overlay), image) in world.vm.overlay_paths(id).unwrap().iter().zip(&world.expected[&cut]) {
            assert_clean(overlay);
            assert!(same(overlay, "qcow2", image));
            scribble(overlay);
            assert!(!same(overlay, "qcow2", image), "the guest's writes are there");
            assert_clean(overlay);
        }
    }
    world.assert_all();
    world.vm.revert_failover(failover).unwrap();
    world.vm.revert_failover(test).unwrap();
    world = world.reopen();
    world.assert_all();

    let take_over = FailoverPurpose::TakeOver { generation: Generation(3) };
    let failover = world.vm.begin_failover(order[2].point(), take_over).unwrap();
    let (_, overlay) = world.vm.overlay_paths(failover).unwrap().swap_remove(0);
    scribble(&overlay);
    world.vm.commit_failover(failover).unwrap();
    world = world.reopen();
    assert_eq!(world.vm.upkeep(&mut unpaced).unwrap(), UpkeepStep::Idle, "nothing beneath the VM's disks moves");
    world.expected.retain(|d, _| order[..3].contains(d));
    world.assert_all();
    assert_clean(&overlay);
    let read = Command::new("qemu-io").args(["-f", "qcow2", "-c", "read -P 0xa5 4096 70000"]).arg(&overlay).output();
    assert!(String::from_utf8_lossy(&read.unwrap().stdout).contains("read 70000/70000"), "what the guest wrote stays");
    drop(world.store);
}

/// What a guest does to its disk.
fn scribble(overlay: &Path) {
    let output = Command::new("qemu-io").args(["-f", "qcow2", "-c", "write -P 0xa5 4096 70000"]).arg(overlay).output();
    let output = output.expect("qemu-io, which plays the guest, is installed");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn the_judge_notices_a_planted_difference() {
    let mut world = World::new(&[4 << 20]);
    world.replicate(1, 12);
    let image = world.expected.values().next().unwrap()[0].clone();
    let mut bytes = std::fs::read(&image).unwrap();
    bytes[3_000_000] ^= 1;
    std::fs::write(&image, bytes).unwrap();
    let digest = *world.expected.keys().next().unwrap();
    let chain = world.vm.chain(digest.point()).unwrap();
    assert!(!same(&chain[0].files[0].path, "qcow2", &image));
}
