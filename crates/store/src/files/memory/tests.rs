use super::super::{read_exact_at, write_all_at};
use super::*;

fn text(files: &MemFiles, path: &str) -> String {
    String::from_utf8(files.content(path).unwrap()).unwrap()
}

fn put(files: &MemFiles, path: &str, bytes: &[u8]) -> FileRef {
    let file = files.create(path).unwrap();
    write_all_at(&*file, 0, bytes).unwrap();
    file
}

#[test]
fn a_name_is_durable_only_after_its_directory_was_synced() {
    let files = MemFiles::new();
    put(&files, "a", b"one").sync().unwrap();
    let lost = files.fork();
    lost.crash(Crash::LostAll);
    assert!(lost.tree().is_empty());
    files.sync_dir("").unwrap();
    files.crash(Crash::LostAll);
    assert_eq!(text(&files, "a"), "one");
}

#[test]
fn bytes_are_durable_only_after_their_file_was_synced() {
    let files = MemFiles::new();
    let file = put(&files, "a", b"one");
    files.sync_dir("").unwrap();
    let early = files.fork();
    early.crash(Crash::LostAll);
    assert_eq!(text(&early, "a"), "");
    file.sync().unwrap();
    write_all_at(&*file, 0, b"two").unwrap();
    files.crash(Crash::LostAll);
    assert_eq!(text(&files, "a"), "one");
}

#[test]
fn a_killed_process_loses_nothing_but_its_handles_and_locks() {
    let files = MemFiles::new();
    let file = put(&files, "a", b"one");
    let _lock = files.lock("lock").unwrap();
    files.crash(Crash::Killed);
    assert_eq!(text(&files, "a"), "one");
    assert!(file.len().is_err());
    files.lock("lock").unwrap();
}

#[test]
fn a_rename_is_kept_or_lost_whole() {
    for seed in 0..200 {
        let files = MemFiles::new();
        put(&files, "a", b"old").sync().unwrap();
        files.make_dir("d").unwrap();
        put(&files, "d/b", b"new").sync().unwrap();
        files.sync_dir("").unwrap();
        files.sync_dir("d").unwrap();
        files.rename("d/b", "a").unwrap();
        files.crash(Crash::Seed(seed));
        let renamed = text(&files, "a") == "new";
        assert_eq!(files.tree().contains(&"d/b".to_owned()), !renamed, "seed {seed}");
    }
}

#[test]
fn a_later_change_of_a_name_never_survives_without_the_earlier_one() {
    for seed in 0..200 {
        let files = MemFiles::new();
        put(&files, "new", b"x").sync().unwrap();
        files.rename("new", "a").unwrap();
        files.unlink("a").unwrap();
        put(&files, "other", b"y");
        files.crash(Crash::Seed(seed));
        let tree = files.tree();
        assert!(!(tree.contains(&"new".to_owned()) && tree.contains(&"a".to_owned())), "seed {seed}: {tree:?}");
    }
}

#[test]
fn syncing_a_directory_commits_what_its_names_were_built_on() {
    let files = MemFiles::new();
    files.make_dir("s").unwrap();
    files.make_dir("d").unwrap();
    files.sync_dir("").unwrap();
    put(&files, "s/a", b"x").sync().unwrap();
    files.rename("s/a", "d/a").unwrap();
    files.sync_dir("d").unwrap();
    files.crash(Crash::LostAll);
    assert_eq!(files.tree(), ["d/a", "d", "s"]);
}

#[test]
fn seeds_reach_lost_kept_older_and_torn_pages() {
    let (mut lost, mut kept, mut older, mut torn) = (0, 0, 0, 0);
    for seed in 0..400 {
        let files = MemFiles::new();
        let file = put(&files, "a", &[1; 4096]);
        file.sync().unwrap();
        files.sync_dir("").unwrap();
        write_all_at(&*file, 0, &[2; 4096]).unwrap();
        write_all_at(&*file, 0, &[3; 4096]).unwrap();
        files.crash(Crash::Seed(seed));
        let bytes = files.content("a").unwrap();
        match (bytes.iter().all(|b| *b == bytes[0]), bytes[0]) {
            (true, 1) => lost += 1,
            (true, 2) => older += 1,
            (true, 3) => kept += 1,
            _ => torn += 1,
        }
    }
    assert!(lost > 20 && kept > 20 && older > 20 && torn > 20, "{lost} {kept} {older} {torn}");
}

#[test]
fn a_failed_sync_loses_what_a_later_one_seems_to_have_stored() {
    let files = MemFiles::new();
    let file = put(&files, "a", b"one");
    file.sync().unwrap();
    files.sync_dir("").unwrap();
    write_all_at(&*file, 0, b"two").unwrap();
    files.lose_next_sync();
    assert!(file.sync().is_err());
    file.sync().unwrap();
    assert_eq!(text(&files, "a"), "two");
    files.crash(Crash::Seed(1));
    assert_eq!(text(&files, "a"), "one");
}

#[test]
fn what_a_failed_sync_lost_shows_once_nothing_is_remembered() {
    let files = MemFiles::new();
    let file = put(&files, "a", b"one");
    file.sync().unwrap();
    write_all_at(&*file, 0, b"two").unwrap();
    file.forget_cached().unwrap();
    assert_eq!(text(&files, "a"), "two", "what is not synced is not forgotten");
    files.lose_next_sync();
    assert!(file.sync().is_err());
    file.forget_cached().unwrap();
    assert_eq!(text(&files, "a"), "one");
}

#[test]
fn a_file_of_the_outside_is_moved_whole_or_not_and_a_shared_one_is_not_durable_yet() {
    for seed in 0..100 {
        let files = MemFiles::new();
        files.make_dir("d").unwrap();
        put(&files, "seed", b"bytes").sync().unwrap();
        files.sync_dir("").unwrap();
        files.take(&files.as_outside("seed").unwrap(), "d/taken").unwrap();
        files.crash(Crash::Seed(seed));
        let path = if files.tree().contains(&"seed".to_owned()) { "seed" } else { "d/taken" };
        assert_eq!(text(&files, path), "bytes");
        files.share(&files.as_outside(path).unwrap(), "d/shared").unwrap();
        assert_eq!(text(&files, "d/shared"), "bytes");
        files.sync_dir("d").unwrap();
        files.crash(Crash::LostAll);
        assert_eq!(text(&files, "d/shared"), "");
        assert_eq!(text(&files, path), "bytes");
    }
}

#[test]
fn data_is_told_from_holes() {
    let files = MemFiles::new();
    let file = files.create("a").unwrap();
    file.set_len(100_000).unwrap();
    assert_eq!(file.data_from(0).unwrap(), None);
    write_all_at(&*file, 10_000, &[1; 10_000]).unwrap();
    write_all_at(&*file, 98_000, &[1; 2_000]).unwrap();
    let ranges: Vec<_> = crate::files::data_ranges(&*file, 0).collect::<Result<_, _>>().unwrap();
    assert_eq!(ranges, [8192..20480, 94208..100_000]);
    assert_eq!(file.data_from(9_000).unwrap(), Some(9_000..20480));
}

#[test]
fn a_full_disk_refuses_and_gives_space_back() {
    let files = MemFiles::with_capacity(3 * 4096);
    let a = put(&files, "a", &[1; 8192]);
    let err = write_all_at(&*files.create("b").unwrap(), 0, &[1; 8192]).unwrap_err();
    assert!(crate::files::is_no_space(&err));
    a.punch(0, 4096).unwrap();
    write_all_at(&*files.open("b", Access::Write).unwrap(), 0, &[1; 8192]).unwrap();
    assert_eq!(files.free_space().unwrap(), 0);
    files.unlink("b").unwrap();
    assert_eq!(files.free_space().unwrap(), 8192);
    let reserve = files.create("r").unwrap();
    reserve.allocate(8192).unwrap();
    assert_eq!(files.free_space().unwrap(), 0);
    reserve.set_len(0).unwrap();
    assert_eq!(files.free_space().unwrap(), 8192);
}

#[test]
fn an_unlinked_file_lives_as_long_as_its_handle() {
    let files = MemFiles::new();
    let file = put(&files, "a", b"one");
    files.unlink("a").unwrap();
    let mut buf = [0; 3];
    read_exact_at(&*file, 0, &mut buf).unwrap();
    assert_eq!(&buf, b"one");
    assert_eq!(files.used(), 4096);
    drop(file);
    assert_eq!(files.used(), 0);
}

#[test]
fn the_power_goes_off_after_the_given_number_of_changes() {
    let files = MemFiles::new();
    files.power_off_after(2);
    let file = put(&files, "a", b"one");
    assert!(file.sync().is_err());
    assert!(files.create("b").is_err());
    files.crash(Crash::Killed);
    assert_eq!(files.tree(), ["a"]);
}

#[test]
fn a_recording_holds_the_disk_after_each_change() {
    let files = MemFiles::new();
    files.record();
    put(&files, "a", b"one").sync().unwrap();
    files.sync_dir("").unwrap();
    let states = files.recorded();
    assert_eq!(states.len(), 4);
    states.iter().for_each(|s| s.crash(Crash::LostAll));
    assert_eq!(states[2].tree(), [""; 0]);
    assert_eq!(text(&states[3], "a"), "one");
}

#[test]
fn the_same_seed_leaves_the_same_disk() {
    let build = || {
        let files = MemFiles::new();
        (0..20u8).for_each(|i| drop(put(&files, &format!("f{i}"), &[i; 9000])));
        files.crash(Crash::Seed(7));
        files.tree().iter().map(|p| files.content(p).unwrap()).collect::<Vec<_>>()
    };
    assert_eq!(build(), build());
}
