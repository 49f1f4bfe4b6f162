//! Replays what is kept for the fuzzers, so that a change that breaks one shows at once.

use std::path::Path;

use understudy_hypervisor::machine::Definition;
use understudy_hypervisor::nbd::fuzzing;

fn replay(target: &str, feed: impl Fn(&str, &[u8])) {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus").join(target);
    let files: Vec<_> = std::fs::read_dir(corpus).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert!(!files.is_empty());
    for file in files.iter().filter(|file| file.is_file()) {
        feed(file.file_name().unwrap().to_str().unwrap(), &std::fs::read(file).unwrap());
    }
}

#[test]
fn the_corpora_of_the_fuzzers_hurt_nobody() {
    replay("nbd_reply", |_, bytes| fuzzing::reply(bytes));
    replay("nbd_greeting", |_, bytes| fuzzing::greeting(bytes));
    replay("machine_definition", |name, bytes| {
        let is_read = Definition::from_json(bytes).is_ok();
        match name {
            "example" | "smallest" => assert!(is_read, "{name}"),
            "libvirt" => assert!(!is_read),
            // What a fuzzer has left on this machine.
            _ => {}
        }
    });
}
