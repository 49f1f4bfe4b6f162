//! Damaged bytes: found, named, never served, and independent points stay usable.

use std::collections::BTreeMap;
use std::sync::Arc;

use understudy_model::{CutDigest, DiskId, ErrorKind};
use understudy_store::files::{Crash, MemFiles};
use understudy_store::{CycleError, Definition, FailoverPurpose, Object, Store, UpkeepError, VmStore};

use crate::support::*;

struct World {
    files: MemFiles,
    _store: Store,
    vm: Arc<VmStore>,
    primary: Primary,
    cuts: Vec<(CutDigest, Images)>,
}

/// Data follows a header of one cluster.
const IN_FIRST_CLUSTER: u64 = 4_120;

/// A base, a stub, three links, a definition with a blob.
fn world() -> World {
    let files = MemFiles::new();
    let store = open(&files);
    let mut primary = Primary::small();
    (0..16).for_each(|i| primary.write(i % 2, i as u64 * 12_288, 9_000, i as u64 + 1));
    let vm = primary.start(&store);
    let blob = b"kernel".to_vec();
    let mut receiver = vm.begin_blob(*blake3::hash(&blob).as_bytes(), 6).unwrap();
    receiver.push(&blob).unwrap();
    receiver.finish().unwrap();
    let blobs = vec![*blake3::hash(&blob).as_bytes()];
    primary.definition = Some(Definition { extension: "xml".into(), bytes: b"<domain/>".to_vec(), blobs });
    let mut cuts = Vec::new();
    for i in 0..5 {
        primary.write(0, i * 30_000, 20_000, 50 + i);
        primary.write(1, i * 10_000, 5_000, 60 + i);
        let cut = primary.replicate(&vm, true);
        cuts.push((cut.id.digest, primary.images.clone()));
    }
    vm.retain(&cuts[1..].iter().map(|(d, _)| d.point()).collect::<Vec<_>>()).unwrap();
    upkeep(&vm);
    cuts.remove(0);
    World { files, _store: store, vm, primary, cuts }
}

impl World {
    fn path(&self, inner: &str) -> String {
        format!("{}/{inner}", self.primary.vm)
    }

    fn flip(&self, inner: &str, at: u64) {
        self.files.damage(&self.path(inner), at, |b| b[0] ^= 0x10, 1).unwrap();
    }

    fn runs(&self, disk: &str) -> Vec<String> {
        let prefix = self.path(disk);
        let of_disk = |p: &String| p.starts_with(&prefix) && p.ends_with(".qcow2");
        let prefix = self.path("");
        self.files.tree().into_iter().filter(of_disk).map(|p| p.strip_prefix(&prefix).unwrap().to_owned()).collect()
    }

    fn check(&self) -> Vec<String> {
        let report = self.vm.check(&mut unpaced).unwrap();
        report.damage.iter().map(|d| d.object.to_string()).collect()
    }

    fn served(&self) -> Vec<bool> {
        let served = |(digest, images): &(CutDigest, Images)| match self.vm.chain(digest.point()) {
            Ok(_) => {
                assert!(images_read(&self.vm, digest.point()) == *images);
                true
            }
            Err(err) => {
                assert_eq!(err.kind(), ErrorKind::Corrupt);
                assert!(self.vm.open_point(digest.point()).is_err());
                assert!(self.vm.begin_failover(digest.point(), FailoverPurpose::Test).is_err());
                false
            }
        };
        self.cuts.iter().map(served).collect()
    }
}

#[test]
fn a_whole_replica_is_found_whole() {
    let world = world();
    let report = world.vm.check(&mut unpaced).unwrap();
    assert_eq!(report.damage, []);
    assert!(report.objects >= 10 && report.bytes > 2 * DISK, "{report:?}");
    assert_eq!(world.served(), [true; 4]);
}

#[test]
fn a_flipped_bit_anywhere_is_found_and_named() {
    let world = world();
    let mut objects = world.runs("disk-0");
    objects.extend(world.runs("disk-1"));
    objects.extend(["disk-0/base.raw", "disk-0/base.sums", "disk-1/base.raw"].map(str::to_owned));
    let definitions: Vec<_> = world.files.tree().into_iter().filter(|p| p.contains("/vm/")).collect();
    assert_eq!(definitions.len(), 2);
    objects.extend(definitions.iter().map(|p| p.strip_prefix(&world.path("")).unwrap().to_owned()));
    assert!(objects.len() >= 13, "{objects:?}");
    for object in &objects {
        let len = world.files.content(&world.path(object)).unwrap().len() as u64;
        let step = (len / 23).max(1);
        for at in (0..len).step_by(step as usize).chain([len - 1]) {
            world.flip(object, at);
            let named = world.check();
            let expected = object.replace(".sums", ".raw").replace(".xml", "");
            assert_eq!(named, [expected], "byte {at} of {object}");
            world.flip(object, at);
        }
    }
    assert_eq!(world.check(), [""; 0], "and whole again, it is served again");
    assert_eq!(world.served(), [true; 4]);
}

#[test]
fn points_below_a_damaged_run_stay_usable_and_those_above_are_not_served() {
    let world = world();
    let third = world.runs("disk-0")[2].clone();
    world.flip(&third, IN_FIRST_CLUSTER);
    assert_eq!(world.check(), [third]);
    assert_eq!(world.served(), [true, true, false, false]);
    let report = world.vm.points();
    assert!(report[3].damaged.as_ref().unwrap().contains("cluster"), "{report:?}");
}

#[test]
fn damage_is_remembered_after_a_restart() {
    let World { files, _store, vm, primary, cuts } = world();
    let path = format!("{}/disk-1/base.raw", primary.vm);
    files.damage(&path, 100, |b| b[0] ^= 1, 1).unwrap();
    assert_eq!(vm.check(&mut unpaced).unwrap().damage.len(), 1);
    drop((_store, vm));
    files.crash(Crash::LostAll);
    let store = open(&files);
    let vm = store.vm(primary.vm).unwrap();
    let world = World { files, _store: store, vm, primary, cuts };
    assert_eq!(world.served(), [false; 4]);
}

#[test]
fn damage_is_found_by_reading_and_never_handed_out() {
    for inner in ["disk-0/base.raw", "run"] {
        let world = world();
        let runs = world.runs("disk-0");
        let object = if inner == "run" { &runs[3] } else { "disk-0/base.raw" };
        world.flip(object, IN_FIRST_CLUSTER);
        let point = world.cuts[3].0.point();
        let reader = world.vm.open_point(point).unwrap();
        let mut disk = reader.disk(DiskId(0)).unwrap();
        let mut image = vec![0; DISK as usize];
        let err = disk.read_at(0, &mut image).unwrap_err();
        assert_eq!(err.kind(), ErrorKind::Corrupt, "{err:?}");
        drop(reader);
        assert!(world.vm.report().damage[0].starts_with(object), "{:?}", world.vm.report().damage);
        assert!(!world.served()[3]);
    }
}

#[test]
fn a_missing_or_cut_file_is_named_at_opening() {
    for cut in [None, Some(0), Some(300)] {
        let World { files, _store, vm, primary, cuts } = world();
        let victim = format!("{}/disk-1/", primary.vm);
        let victim = files.tree().into_iter().rfind(|p| p.starts_with(&victim) && p.ends_with(".qcow2")).unwrap();
        drop((_store, vm));
        use understudy_store::files::{Access, Files};
        match cut {
            None => files.unlink(&victim).unwrap(),
            Some(len) => files.open(&victim, Access::Write).unwrap().set_len(len).unwrap(),
        }
        let store = open(&files);
        let vm = store.vm(primary.vm).unwrap();
        let damage = vm.report().damage;
        assert!(victim.ends_with(damage[0].split(':').next().unwrap()), "{damage:?}");
        let world = World { files, _store: store, vm, primary, cuts };
        assert_eq!(world.served(), [true, true, true, false]);
    }
}

#[test]
fn nothing_is_put_on_top_of_a_damaged_newest_state() {
    let mut world = world();
    world.flip(&world.runs("disk-0")[3], IN_FIRST_CLUSTER);
    world.check();
    let session = world.primary.admit(&world.vm);
    let err = send(&world.vm, session, &world.primary.cut(), true).unwrap_err();
    assert!(matches!(err, CycleError::Damaged { .. }), "{err:?}");
    assert_eq!(err.kind(), ErrorKind::Corrupt);
}

#[test]
fn upkeep_neither_spreads_damage_nor_stops_at_it() {
    let mut world = world();
    // Two more, so that there is something to merge above the damage.
    for i in 0..3 {
        world.primary.write(0, i * 9_000, 9_000, 90 + i);
        let cut = world.primary.replicate(&world.vm, true);
        world.cuts.push((cut.id.digest, world.primary.images.clone()));
    }
    let damaged = world.runs("disk-0")[2].clone();
    world.flip(&damaged, IN_FIRST_CLUSTER);
    let keep: Vec<_> = [0, 3, 6].iter().map(|i| world.cuts[*i].0.point()).collect();
    world.vm.retain(&keep).unwrap();
    let err = world.vm.upkeep(&mut unpaced).unwrap_err();
    assert!(matches!(&err, UpkeepError::Damaged { object, .. } if object.to_string() == damaged), "{err:?}");
    assert!(upkeep(&world.vm) >= 1, "the rest goes on");
    assert_eq!(world.check(), [damaged]);
    assert!(images_read(&world.vm, world.cuts[0].0.point()) == world.cuts[0].1);
}

#[test]
fn a_damaged_base_is_never_written_into() {
    let world = world();
    // In a block that the next commit touches, but beside what it writes.
    world.flip("disk-1/base.raw", 60_000);
    world.vm.retain(&[world.cuts[3].0.point()]).unwrap();
    let err = world.vm.upkeep(&mut unpaced).unwrap_err();
    assert!(matches!(err, UpkeepError::Damaged { object: Object::Base { disk: DiskId(1) }, .. }), "{err:?}");
    world.flip("disk-1/base.raw", 60_000);
    assert_eq!(world.check(), [""; 0]);
    upkeep(&world.vm);
    let expected = BTreeMap::from([world.cuts[3].clone()]);
    assert_points(&world.files, &world.vm, &expected);
}

#[test]
fn swapped_blocks_of_equal_shape_are_found() {
    let world = world();
    let path = world.path("disk-0/base.raw");
    let content = world.files.content(&path).unwrap();
    let (a, b) = (content[..65_536].to_vec(), content[65_536..131_072].to_vec());
    assert!(a != b);
    world.files.damage(&path, 0, |bytes| bytes.copy_from_slice(&[b, a].concat()), 131_072).unwrap();
    assert_eq!(world.check(), ["disk-0/base.raw"]);
}
