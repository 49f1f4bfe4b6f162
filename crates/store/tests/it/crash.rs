//! Power cuts: after every single file operation, with the seed choosing what survived; and kills at every named
//! place. Then recovery, by itself, and everything must be as before the operation or as after it.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use understudy_store::files::{Crash, MemFiles};
use understudy_store::{Checkpoints, CrashPoint, StoreOptions};

use crate::scenario::{Operation, Stage};
use crate::support::*;

/// Finishing what was begun takes longer than all the rest.
const GO_ON_EVERY: u64 = 4;

/// Crash states per operation and moment; more with `UNDERSTUDY_CRASH_SEEDS`.
fn seeds() -> u64 {
    std::env::var("UNDERSTUDY_CRASH_SEEDS").ok().and_then(|n| n.parse().ok()).unwrap_or(3)
}

/// Every state a power cut during the operation could leave, as far as the seeds reach.
fn cut_power_everywhere(operation: Operation) -> u64 {
    let stage = Stage::new(operation);
    let disk = stage.files.fork();
    disk.record();
    stage.run(disk.clone().into(), options()).unwrap();
    let states = disk.recorded();
    let mut crashes = 0;
    for (i, state) in states.iter().enumerate() {
        let last = i + 1 == states.len();
        for crash in crashes_for(i as u64) {
            let disk = state.fork();
            disk.crash(crash);
            stage.judge_state(&disk, last, false);
            if crashes % GO_ON_EVERY == 0 {
                stage.go_on(&disk, &open(&disk));
            }
            crashes += 1;
        }
    }
    println!("{operation:?}: {} calls, {crashes} crash states", states.len());
    crashes
}

fn crashes_for(moment: u64) -> impl Iterator<Item = Crash> {
    let seeds = (0..seeds()).map(move |seed| Crash::Seed(moment * 1_000 + seed));
    [Crash::Killed, Crash::LostAll].into_iter().chain(seeds)
}

macro_rules! power_cuts {
    ($($name:ident: $operation:ident;)*) => {$(
        #[test]
        fn $name() {
            assert!(cut_power_everywhere(Operation::$operation) > 0);
        }
    )*};
}

power_cuts! {
    a_power_cut_while_a_replica_is_made_leaves_it_or_nothing: Create;
    a_power_cut_in_an_initial_copy_leaves_what_was_synced: InitialCopy;
    a_power_cut_in_the_first_cycle_leaves_all_or_nothing_visible: FirstCycle;
    a_power_cut_in_a_cycle_leaves_the_last_acknowledged_cut_or_this_one: Cycle;
    a_power_cut_while_points_are_dropped_leaves_all_or_the_chosen: Retain;
    a_power_cut_in_a_merge_changes_no_point: Merge;
    a_power_cut_in_a_commit_into_the_base_changes_no_point: Commit;
    a_power_cut_at_the_begin_of_a_test_leaves_it_or_nothing: Test;
    a_power_cut_at_the_end_of_a_test_leaves_it_or_nothing: EndTest;
    a_power_cut_in_a_failover_leaves_it_with_its_generation_or_nothing: FailOver;
    a_power_cut_in_a_revert_leaves_the_failover_or_what_was_before: Revert;
    a_power_cut_while_a_failover_is_committed_leaves_it_active_or_final: CommitFailover;
    a_power_cut_in_a_removal_leaves_all_or_nothing: Remove;
    a_power_cut_while_a_seed_is_copied_leaves_it_planted_or_not: PlantSeed;
    a_power_cut_while_a_seed_is_shared_leaves_it_planted_or_not: ShareSeed;
    a_power_cut_while_a_seed_is_moved_leaves_it_here_or_there: TakeSeed;
    a_power_cut_in_a_copy_that_compares_loses_neither_seed_nor_what_was_synced: SeededCopy;
    a_power_cut_while_an_import_begins_to_be_awaited_leaves_it_so_or_not: AwaitImport;
    a_power_cut_while_another_import_is_awaited_leaves_the_one_or_the_other: AwaitAnother;
    a_power_cut_in_a_cycle_before_the_import_leaves_it_or_not: AwaitingCycle;
    a_power_cut_in_an_import_leaves_all_of_it_or_nothing: ImportFirst;
    a_power_cut_in_an_import_leaves_what_was_received_meanwhile: ImportLast;
    a_power_cut_while_a_replica_makes_room_leaves_the_old_or_the_new: Replace;
}

#[test]
fn what_a_reopened_replica_shows_survives_a_power_cut() {
    for operation in [Operation::Create, Operation::Cycle, Operation::FailOver, Operation::Revert, Operation::Remove] {
        let stage = Stage::new(operation);
        let disk = stage.files.fork();
        disk.record();
        stage.run(disk.clone().into(), options()).unwrap();
        for state in disk.recorded() {
            state.crash(Crash::Killed);
            let shown = stage.is_done(&state);
            state.crash(Crash::LostAll);
            stage.judge_state(&state, shown, false);
            assert_eq!(stage.is_done(&state), shown, "{operation:?}");
        }
    }
}

#[test]
fn recovery_can_itself_be_cut_short_again_and_again() {
    for operation in [
        Operation::Cycle,
        Operation::Merge,
        Operation::Commit,
        Operation::Revert,
        Operation::Remove,
        Operation::TakeSeed,
        Operation::SeededCopy,
        Operation::Replace,
        Operation::ImportLast,
    ] {
        let stage = Stage::new(operation);
        let disk = stage.files.fork();
        disk.record();
        stage.run(disk.clone().into(), options()).unwrap();
        // Late states are the ones with something to recover.
        for (i, state) in disk.recorded().iter().enumerate().rev().step_by(3) {
            state.crash(Crash::Seed(i as u64));
            let again = state.fork();
            again.record();
            drop(open(&again));
            for (j, state) in again.recorded().iter().enumerate() {
                state.crash(Crash::Seed((i * 100 + j) as u64));
                let third = state.fork();
                third.power_off_after(2);
                let _ = understudy_store::Store::open(Arc::new(third.clone()), options());
                third.crash(Crash::LostAll);
                stage.judge(&third, false);
            }
        }
    }
}

/// Cuts the power at the n-th visit of a place.
struct CutAt {
    disk: MemFiles,
    point: CrashPoint,
    left: AtomicU64,
    hit: AtomicBool,
}

impl Checkpoints for CutAt {
    fn reached(&self, point: CrashPoint) -> std::io::Result<()> {
        if point == self.point && self.left.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.hit.store(true, Ordering::SeqCst);
            self.disk.power_off();
        }
        Ok(())
    }
}

/// Places visited by others than the store.
const ELSEWHERE: [CrashPoint; 6] = [
    CrashPoint::ReceiveAfterAck,
    CrashPoint::FailoverBeforeDefine,
    CrashPoint::FailoverDefined,
    CrashPoint::ExportMidFile,
    CrashPoint::ExportBeforeManifest,
    CrashPoint::ExportManifestSynced,
];

#[test]
fn a_crash_at_any_named_place_is_survived() {
    let mut visited = BTreeSet::new();
    for operation in Operation::ALL {
        let stage = Stage::new(operation);
        for point in places_of(&stage) {
            visited.insert(point);
            for (nth, crash) in [(1, Crash::LostAll), (1, Crash::Killed), (2, Crash::Seed(9))] {
                let disk = stage.files.fork();
                let cut = CutAt { disk: disk.clone(), point, left: AtomicU64::new(nth), hit: AtomicBool::new(false) };
                let cut = Arc::new(cut);
                let options = StoreOptions { checkpoints: cut.clone(), ..options() };
                let done = stage.run(disk.clone().into(), options).is_ok();
                disk.crash(crash);
                stage.judge(&disk, done);
                assert!(cut.hit.load(Ordering::SeqCst) || nth > 1, "{point} is visited again");
            }
        }
    }
    visited.extend(ELSEWHERE);
    let all: BTreeSet<_> = CrashPoint::ALL.iter().chain(CrashPoint::DETOURS).copied().collect();
    assert_eq!(visited, all, "every named place is visited by some operation");
}

#[test]
fn an_error_at_any_named_place_is_an_error_of_the_operation_and_nothing_worse() {
    for operation in Operation::ALL {
        let stage = Stage::new(operation);
        for point in places_of(&stage) {
            let disk = stage.files.fork();
            let fail = move |at: CrashPoint| if at == point { Err(std::io::Error::other("planted")) } else { Ok(()) };
            let options = StoreOptions { checkpoints: Arc::new(fail), ..options() };
            let done = stage.run(disk.clone().into(), options);
            assert!(done.is_err(), "{operation:?} at {point}");
            disk.crash(Crash::LostAll);
            stage.judge(&disk, false);
        }
    }
}

/// The named places an operation passes.
fn places_of(stage: &Stage) -> BTreeSet<CrashPoint> {
    let seen = Arc::new(Mutex::new(BTreeSet::new()));
    let note = seen.clone();
    let listen = move |point: CrashPoint| {
        note.lock().unwrap().insert(point);
        Ok(())
    };
    let options = StoreOptions { checkpoints: Arc::new(listen), ..options() };
    stage.run(stage.files.fork().into(), options).unwrap();
    seen.lock().unwrap().clone()
}
