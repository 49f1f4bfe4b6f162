//! The n-th call of each kind fails, in each way, once and for ever, until the operation runs through untouched.
//! What was told must be true afterwards, and what was not told must have left everything as it was or be whole.

use std::sync::Arc;

use understudy_store::files::{Call, Crash, Fault, FaultPlan, FaultyFiles, Files};

use crate::scenario::{Operation, Stage};
use crate::support::*;

/// Finishing what was begun takes longer than all the rest; recovery does not depend on it.
const GO_ON_EVERY: u64 = 10;
/// Calls of one kind that an operation may make before the loop is thought to be endless.
const CALLS_MAX: u64 = 10_000;

fn fail_every_call(operation: Operation) {
    let stage = Stage::new(operation);
    for call in Call::ALL {
        for fault in Fault::ALL {
            if fault == Fault::NoSpace && matches!(call, Call::Read | Call::List | Call::Unlink) {
                continue; // takes no space
            }
            for for_ever in [false, true] {
                fail_each(&stage, call, fault, for_ever);
            }
        }
    }
}

fn fail_each(stage: &Stage, call: Call, fault: Fault, for_ever: bool) {
    for nth in 1..CALLS_MAX {
        let disk = stage.files.fork();
        let files = FaultyFiles::over_memory(&disk);
        files.plan(Some(FaultPlan { call, fault, nth, for_ever }));
        let done = stage.run((files.clone(), disk.clone()).into(), options()).is_ok();
        if files.failures() == 0 {
            assert!(done);
            return;
        }
        let harmless = fault == Fault::Short || (fault == Fault::Interrupted && !for_ever);
        assert!(done || !harmless, "{call:?} {nth} {fault:?} is only delay");
        // What was told survives a power cut right after; what was not told is whole either way.
        let crash = if nth % 2 == 0 { Crash::LostAll } else { Crash::Seed(nth) };
        disk.crash(crash);
        let doubts = call == Call::Read && fault == Fault::Io && for_ever;
        stage.judge_state(&disk, done, doubts);
        if nth % GO_ON_EVERY == 1 {
            stage.go_on(&disk, &open(&disk));
        }
    }
    panic!("the operation never runs through");
}

macro_rules! failures {
    ($($name:ident: $operation:ident;)*) => {$(
        #[test]
        fn $name() {
            fail_every_call(Operation::$operation);
        }
    )*};
}

failures! {
    making_a_replica_survives_any_failing_call: Create;
    an_initial_copy_survives_any_failing_call: InitialCopy;
    a_first_cycle_survives_any_failing_call: FirstCycle;
    a_cycle_survives_any_failing_call: Cycle;
    dropping_points_survives_any_failing_call: Retain;
    a_merge_survives_any_failing_call: Merge;
    a_commit_into_the_base_survives_any_failing_call: Commit;
    a_test_survives_any_failing_call: Test;
    the_end_of_a_test_survives_any_failing_call: EndTest;
    a_failover_survives_any_failing_call: FailOver;
    a_revert_survives_any_failing_call: Revert;
    committing_a_failover_survives_any_failing_call: CommitFailover;
    a_removal_survives_any_failing_call: Remove;
    planting_a_seed_survives_any_failing_call: PlantSeed;
    sharing_a_seed_survives_any_failing_call: ShareSeed;
    taking_a_seed_survives_any_failing_call: TakeSeed;
    a_copy_that_compares_survives_any_failing_call: SeededCopy;
    awaiting_an_import_survives_any_failing_call: AwaitImport;
    awaiting_another_import_survives_any_failing_call: AwaitAnother;
    a_cycle_before_the_import_survives_any_failing_call: AwaitingCycle;
    an_import_survives_any_failing_call: ImportFirst;
    an_import_under_waiting_cycles_survives_any_failing_call: ImportLast;
    making_room_survives_any_failing_call: Replace;
    opening_survives_any_failing_call: Reopen;
}

#[test]
fn after_a_failed_sync_nothing_is_acknowledged_until_a_reopening() {
    let stage = Stage::new(Operation::Cycle);
    for nth in 1..CALLS_MAX {
        let disk = stage.files.fork();
        let files = FaultyFiles::over_memory(&disk);
        let store = understudy_store::Store::open(Arc::new(files.clone()) as Arc<dyn Files>, options()).unwrap();
        files.plan(Some(FaultPlan { call: Call::Sync, fault: Fault::Io, nth, for_ever: false }));
        let done = stage.run_on(&store, &disk.clone().into());
        if files.failures() == 0 {
            done.unwrap();
            return;
        }
        done.unwrap_err();
        let vm = store.vm(stage.primary.vm).unwrap();
        assert!(vm.stopped().is_some(), "sync {nth}");
        assert!(stage.run_on(&store, &disk.clone().into()).is_err(), "a later good sync proves nothing");
        files.plan(None);
        let vm = store.reopen(stage.primary.vm).unwrap();
        assert!(vm.stopped().is_none());
        drop((vm, store));
        disk.crash(Crash::LostAll);
        stage.judge(&disk, false);
    }
}
