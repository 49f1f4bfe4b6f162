//! Power cuts on real file systems: XFS and ext4 on a loop device are shut down without flushing their logs, at a place in the
//! store's code that the round decides, then mounted again. What the disk in memory plays, the kernel does here.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use understudy_model::CutDigest;
use understudy_store::files::RealFiles;
use understudy_store::{Checkpoints, CrashPoint, FailoverPurpose, Store, StoreOptions, VmStore};

use crate::support::*;

const ROUNDS: u64 = 40;

fn run(words: &[&str]) -> bool {
    let output = Command::new(words[0]).args(&words[1..]).output().unwrap_or_else(|err| panic!("{words:?}: {err}"));
    if !output.status.success() {
        eprintln!("{words:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
    output.status.success()
}

/// A file system of its own, taken down with it.
struct Mount {
    dir: tempfile::TempDir,
}

impl Mount {
    fn new(make: &[&str]) -> Self {
        let mount = Self { dir: tempfile::tempdir().unwrap() };
        let image = mount.image();
        std::fs::File::create(&image).unwrap().set_len(400 << 20).unwrap();
        std::fs::create_dir(mount.path()).unwrap();
        assert!(run(&[make, &[image.to_str().unwrap()]].concat()));
        mount
    }

    fn image(&self) -> PathBuf {
        self.dir.path().join("image")
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("mnt")
    }

    fn up(&self) {
        assert!(run(&["mount", "-o", "loop", self.image().to_str().unwrap(), self.path().to_str().unwrap()]));
    }

    fn down(&self) -> bool {
        run(&["umount", self.path().to_str().unwrap()])
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        self.down();
    }
}

/// Cuts the power at the n-th named place that the code gets to.
struct CutAfter {
    path: PathBuf,
    left: AtomicU64,
}

impl Checkpoints for CutAfter {
    fn reached(&self, _point: CrashPoint) -> std::io::Result<()> {
        if self.left.fetch_sub(1, Ordering::SeqCst) == 1 {
            cut_power(&self.path);
        }
        Ok(())
    }
}

fn cut_power(path: &Path) {
    assert!(run(&["xfs_io", "-x", "-c", "shutdown", path.to_str().unwrap()]));
}

/// What the primary knows: every cut it ever tried, and the last one that was acknowledged.
struct Known {
    tried: BTreeMap<CutDigest, Images>,
    acknowledged: CutDigest,
}

#[test]
#[ignore = "needs root, a loop device and XFS"]
fn power_cuts_on_xfs_lose_nothing_that_was_acknowledged() {
    cut_and_judge(&Mount::new(&["mkfs.xfs", "-q"]));
}

#[test]
#[ignore = "needs root, a loop device and ext4"]
fn power_cuts_on_ext4_lose_nothing_that_was_acknowledged() {
    cut_and_judge(&Mount::new(&["mkfs.ext4", "-q", "-F"]));
}

fn cut_and_judge(mount: &Mount) {
    mount.up();
    let mut primary = Primary::new(&[1 << 20, DISK]);
    primary.write(0, 0, 700_000, 1);
    let mut known = Known { tried: BTreeMap::new(), acknowledged: CutDigest::ZERO };
    {
        let files = RealFiles::open(&mount.path()).unwrap();
        let store = Store::open(Arc::new(files), options()).unwrap();
        let vm = primary.start(&store);
        work(&mut primary, &vm, &mut known, 0);
    }
    cut_power(&mount.path());
    let mut cuts = 0;
    for round in 1..=ROUNDS {
        assert!(mount.down());
        mount.up();
        let files = Arc::new(RealFiles::open(&mount.path()).unwrap());
        let cut = CutAfter { path: mount.path(), left: AtomicU64::new(1 + round * 7 % 61) };
        let store = Store::open(files, StoreOptions { checkpoints: Arc::new(cut), ..options() }).unwrap();
        assert_eq!(store.unopened(), []);
        let vm = store.vm(primary.vm).unwrap();
        judge(&mut primary, &vm, &mut known);
        cuts += u64::from(!work(&mut primary, &vm, &mut known, round));
    }
    assert_eq!(cuts, ROUNDS, "each round ended in a power cut");
    assert!(mount.down());
    mount.up();
    let store = Store::open(Arc::new(RealFiles::open(&mount.path()).unwrap()), options()).unwrap();
    let vm = store.vm(primary.vm).unwrap();
    judge(&mut primary, &vm, &mut known);
    assert_eq!(vm.check(&mut unpaced).unwrap().damage, []);
    eprintln!("{cuts} power cuts, {} cuts tried", known.tried.len());
}

fn judge(primary: &mut Primary, vm: &Arc<VmStore>, known: &mut Known) {
    let newest = vm.newest().unwrap().id;
    assert!(newest.digest == known.acknowledged || newest.number == primary.number, "what was acknowledged is there");
    known.acknowledged = newest.digest;
    primary.parent = newest.digest;
    (primary.generation, primary.session) = (vm.report().generation, vm.report().session);
    for point in vm.points() {
        assert!(images_read(vm, point.cut.point()) == known.tried[&point.cut.id.digest], "{:?}", point.cut);
    }
    assert_eq!(vm.report().damage, [] as [String; 0]);
}

/// Cycles, retention, upkeep and tests until the power goes; `false` if it did. The dirty maps of this primary are
/// never cleared, so each cycle carries what an earlier one may have lost.
fn work(primary: &mut Primary, vm: &Arc<VmStore>, known: &mut Known, round: u64) -> bool {
    for i in 0..12 {
        primary.write(0, (round * 97 + i * 31) % 200 * GRANULE, 20_000, round * 100 + i + 1);
        primary.write(1, (round * 13 + i * 7) % 50 * GRANULE, 9_000, round * 100 + i + 1);
        let cycle = primary.cut();
        known.tried.insert(cycle.digest, cycle.images.clone());
        let session = primary.session.next();
        let Ok(session) = vm.admit_session(primary.generation, session) else { return false };
        primary.session = session.number;
        let Ok(cut) = send(vm, session, &cycle, i % 2 == 0) else { return false };
        known.acknowledged = cut.id.digest;
        primary.parent = cut.id.digest;
        let points = vm.points();
        let keep: Vec<_> = points.iter().rev().take(3).map(|p| p.cut.point()).collect();
        let kept = vm.retain(&keep).is_ok() && vm.upkeep(&mut unpaced).is_ok();
        let tested =
            kept && vm.begin_failover(keep[0], FailoverPurpose::Test).is_ok_and(|id| vm.revert_failover(id).is_ok());
        if !tested || vm.stopped().is_some() {
            return false;
        }
    }
    true
}
