//! Damage: whatever is wrong with a file is found and named, and a file that was cut short is none.

use std::fs::File;
use std::io;
use std::sync::LazyLock;

use proptest::prelude::*;
use tempfile::TempDir;
use understudy_model::ErrorKind;
use understudy_run::pace::unpaced;
use understudy_run::read::{Part, ReadError};
use understudy_run::{BackingFormat, BuildError, Run, RunBuilder, RunSink, VerifyError, fuzzing};

use crate::qemu;
use crate::support::{Clusters, Fill, build, cases, params};

/// A run with every structure in it: plain, compressed and zero clusters, several level 2 tables, two pages of entries.
fn sample() -> Vec<u8> {
    static SAMPLE: LazyLock<Vec<u8>> = LazyLock::new(build_sample);
    SAMPLE.clone()
}

fn build_sample() -> Vec<u8> {
    let mut clusters: Clusters = (0..290).map(|n| (n * 3, Fill::Text(n as u8))).collect();
    clusters.extend([(1, Fill::Noise(1)), (4, Fill::Zeros), (5, Fill::Zeros), (1600, Fill::HalfNoise(2))]);
    let params = params(7 << 20, 12, Some(("base.raw", BackingFormat::Raw)));
    build(Vec::new(), params, &clusters, 1).1
}

fn find(bytes: &[u8]) -> Result<(), VerifyError> {
    Run::open(bytes)?.verify(&mut unpaced).map(|_| ())
}

/// The part that an error names.
fn named(bytes: &[u8]) -> Option<Part> {
    match find(bytes) {
        Err(VerifyError::Read(ReadError::Damaged { part })) => Some(part),
        _ => None,
    }
}

#[test]
fn a_flipped_bit_in_any_sector_is_found() {
    let mut bytes = sample();
    find(&bytes).unwrap();
    let flips = crate::support::noise(1, bytes.len().div_ceil(512) * 2);
    for (sector, flip) in flips.chunks(2).enumerate() {
        let at = (sector * 512 + usize::from(u16::from_le_bytes([flip[0], flip[1]]) % 512)).min(bytes.len() - 1);
        let mask = 1 << (flip[0] >> 5);
        bytes[at] ^= mask;
        assert!(find(&bytes).is_err(), "bit {mask:#x} of byte {at}");
        bytes[at] ^= mask;
    }
    find(&bytes).unwrap();
}

#[test]
fn a_flipped_bit_in_any_byte_of_the_header_and_the_footer_is_found() {
    let mut bytes = sample();
    let len = bytes.len();
    for at in (0..512).chain(len - 192..len) {
        for bit in 0..8 {
            bytes[at] ^= 1 << bit;
            let err = Run::open(bytes.as_slice()).map(|_| ()).unwrap_err();
            assert!(matches!(err.kind(), ErrorKind::Corrupt | ErrorKind::Refused), "byte {at}: {err}");
            bytes[at] ^= 1 << bit;
        }
    }
}

proptest! {
    #![proptest_config(cases(150))]

    #[test]
    fn any_flipped_bit_is_found(at in any::<prop::sample::Index>(), bit in 0u8..8) {
        let mut bytes = sample();
        let at = at.index(bytes.len());
        bytes[at] ^= 1 << bit;
        prop_assert!(find(&bytes).is_err(), "byte {}", at);
    }

    #[test]
    fn a_file_cut_short_or_with_something_behind_is_no_run(at in any::<prop::sample::Index>(), more in 1usize..600) {
        let mut bytes = sample();
        prop_assert!(Run::open(&bytes[..at.index(bytes.len())]).is_err());
        bytes.resize(bytes.len() + more, 0);
        prop_assert!(Run::open(bytes.as_slice()).is_err());
    }
}

proptest! {
    // Few, for each does everything to two runs; the fuzzer does more.
    #![proptest_config(cases(30))]

    #[test]
    fn mutated_runs_do_no_harm(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6)
    ) {
        let mut bytes = sample();
        let len = bytes.len();
        changes.into_iter().for_each(|(at, value)| bytes[at.index(len)] = value);
        fuzzing::run_open(&bytes);
    }

    #[test]
    fn forged_trailers_do_no_harm(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4)
    ) {
        // Footer, directory and entries, most of which fuzzing puts back under hashes that fit.
        let mut bytes = sample();
        let len = bytes.len();
        let trailer = 192 + 2 * 40 + 293 * 64;
        changes.into_iter().for_each(|(at, value)| bytes[len - 1 - at.index(trailer)] = value);
        fuzzing::run_open(&bytes);
    }
}

#[test]
fn a_flipped_bit_that_does_not_change_what_a_frame_holds_is_found_too() {
    // Bit 4 of a frame's descriptor means nothing to zstd (RFC 8878, section 3.1.1.1.1.4).
    let clusters: Clusters = [(0, Fill::Text(1))].into();
    let mut bytes = build(Vec::new(), params(1 << 20, 12, None), &clusters, 1).1;
    bytes[4096 + 4] ^= 0x10;
    let run = Run::open(bytes.as_slice()).unwrap();
    let mut reader = run.reader().unwrap();
    let entry = reader.next_from(0).unwrap().unwrap();
    assert_eq!(reader.read_cluster(&entry).unwrap(), Fill::Text(1).bytes(4096), "the guest's bytes are still right");
    assert!(reader.record(&entry).is_err(), "but it is not copied on");
    assert_eq!(named(&bytes), Some(Part::Cluster { address: 0 }));
}

#[test]
fn entries_that_contradict_the_tables_are_found_although_their_hashes_fit() {
    // Each change is to one little-endian field of the first entry of a forged run: its address, place, length, kind.
    let clusters: Clusters = (1..4).map(|n| (n, Fill::Text(n as u8))).collect();
    let original = build(Vec::new(), params(1 << 20, 12, None), &clusters, 1).1;
    let entry = original.len() - 192 - 40 - 3 * 64;
    let changes = [
        (0, 0x00),
        (1, 0x20),
        (7, 1),
        (8, 1),
        (9, 0),
        (14, 1),
        (16, 1),
        (19, 0xff),
        (20, 0),
        (20, 2),
        (20, 9),
        (24, 0),
        (32, 0),
    ];
    for (field, value) in changes {
        let mut bytes = original.clone();
        assert!(field == 0 || bytes[entry + field] != value);
        bytes[entry + field] = value;
        let forged = fuzzing::forge(&bytes).expect("the footer is as it was");
        assert_eq!(find(&forged).is_ok(), field == 0, "byte {field} set to {value:#x}");
    }
}

#[test]
fn entries_out_of_order_are_found_although_their_hashes_fit() {
    let original = sample();
    let entry = |number: usize| original.len() - 192 - 2 * 40 - (293 - number) * 64;
    let forged = |change: &dyn Fn(&mut [u8])| {
        let mut bytes = original.clone();
        change(&mut bytes);
        named(&fuzzing::forge(&bytes).expect("the footer is as it was"))
    };
    let swap = |bytes: &mut [u8], one: usize, other: usize| {
        (0..64).for_each(|byte| bytes.swap(entry(one) + byte, entry(other) + byte));
    };
    assert_eq!(forged(&|_| {}), None);
    assert_eq!(forged(&|bytes| swap(bytes, 0, 1)), Some(Part::Page { number: 0 }), "within a page");
    assert_eq!(forged(&|bytes| swap(bytes, 0, 256)), Some(Part::Directory), "from page to page");
    let over_the_edge = |bytes: &mut [u8]| bytes.copy_within(entry(255)..entry(255) + 8, entry(256));
    assert_eq!(forged(&over_the_edge), Some(Part::Page { number: 0 }), "a page that reaches into the next");
}

#[test]
fn the_corpus_does_no_harm() {
    let corpus = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus");
    let replay = |target: &str, entry: fn(&[u8])| {
        let files = std::fs::read_dir(corpus.join(target)).unwrap();
        let count = files.map(|file| entry(&std::fs::read(file.unwrap().path()).unwrap())).count();
        assert!(count >= 3, "{count} files for {target}");
    };
    replay("run_open", fuzzing::run_open);
    replay("run_batch", fuzzing::run_batch);
}

#[test]
fn damage_is_named() {
    let bytes = sample();
    let run = Run::open(bytes.clone()).unwrap();
    let layout_of = |address: u64| {
        let entry = run.reader().unwrap().next_from(address).unwrap().unwrap();
        let understudy_run::EntryContent::Data { at, .. } = entry.content else { panic!("a data cluster") };
        at as usize
    };
    let flip = |at: usize| {
        let mut bytes = bytes.clone();
        bytes[at] ^= 4;
        named(&bytes)
    };
    assert_eq!(flip(layout_of(3 << 12) + 5), Some(Part::Cluster { address: 3 << 12 }));
    assert_eq!(flip(layout_of(1 << 12) + 5), Some(Part::Cluster { address: 1 << 12 }), "a plain one");
    assert_eq!(flip(0), Some(Part::Header));
    assert_eq!(flip(20), Some(Part::Header));
    assert_eq!(flip(112), Some(Part::Header));
    assert_eq!(flip(600), Some(Part::Header));
    assert_eq!(flip(bytes.len() - 1), Some(Part::Footer));
    assert_eq!(flip(bytes.len() - 193), Some(Part::Directory));
    let pages_end = bytes.len() - 192 - 2 * 40;
    assert_eq!(flip(pages_end - 1), Some(Part::Page { number: 1 }));
    assert_eq!(flip(pages_end - 292 * 64), Some(Part::Page { number: 0 }));
    let header_of_plain = layout_of(1 << 12);
    assert_eq!(header_of_plain % 4096, 0);
    assert!(matches!(flip(header_of_plain - 1), Some(Part::Padding { .. })));
}

#[test]
fn clusters_that_changed_places_are_found() {
    let clusters: Clusters = [(0, Fill::Noise(1)), (1, Fill::Noise(2))].into();
    let mut bytes = build(Vec::new(), params(1 << 20, 12, None), &clusters, 1).1;
    let (first, second) = bytes[4096..12288].split_at_mut(4096);
    first.swap_with_slice(second);
    assert_eq!(named(&bytes), Some(Part::Cluster { address: 0 }));
}

#[test]
fn other_files_are_told_from_damaged_runs() {
    let dir = TempDir::new().unwrap();
    let foreign = dir.path().join("foreign.qcow2");
    understudy_run::overlay::write_empty(File::create_new(&foreign).unwrap(), 1 << 20, 16, None).unwrap();
    let open = |bytes: &[u8]| Run::open(bytes).map(|_| ()).unwrap_err();
    assert!(matches!(open(&std::fs::read(&foreign).unwrap()), ReadError::NotARun));
    assert!(matches!(open(&[]), ReadError::NotARun));
    assert!(matches!(open(&[0; 100_000]), ReadError::NotARun));
    let bytes = sample();
    assert!(matches!(open(&bytes[..bytes.len() - 1]), ReadError::Damaged { part: Part::Footer }));
    let mut newer = bytes.clone();
    let footer = newer.len() - 192;
    newer[footer + 8] = 2;
    let hash = blake3::derive_key("understudy run footer v1", &newer[footer..footer + 160]);
    newer[footer + 160..].copy_from_slice(&hash);
    assert!(matches!(open(&newer), ReadError::Version { version: 2 }));
}

/// A disk that takes `left` more writes, and of the next one only the first half.
struct FailingSink {
    file: File,
    left: usize,
}

impl RunSink for FailingSink {
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        if self.left == 0 {
            RunSink::write_at(&mut self.file, offset, &bytes[..bytes.len() / 2])?;
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.left -= 1;
        RunSink::write_at(&mut self.file, offset, bytes)
    }
}

#[test]
fn a_run_whose_building_was_cut_short_is_no_qcow2_file() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("run.qcow2");
    for left in 0.. {
        let sink = FailingSink { file: File::create(&path).unwrap(), left };
        // A long name reaches into the header's second half, so that half a header is not the whole one by chance.
        let below = ["b"; 200].concat();
        let params = params(1 << 40, 16, Some((&below, BackingFormat::Raw)));
        let mut builder = RunBuilder::new(sink, params).unwrap();
        let clusters = (0..40u64).try_for_each(|n| {
            let address = n << 24;
            let raw = crate::support::noise(n as u8, 65536);
            let hash = understudy_run::cluster_hash(address, &raw);
            builder.push(address, understudy_run::Stored::Plain, &raw, &hash)
        });
        match clusters.and_then(|()| builder.finish()) {
            Ok(_) => {
                assert!(left > 3, "the file took several writes");
                assert!(Run::open(File::open(&path).unwrap()).is_ok());
                assert!(qemu::info(&path).is_some());
                return;
            }
            Err(err) => {
                assert!(matches!(err, BuildError::Write(_)) && err.kind() == ErrorKind::Operator);
                assert!(Run::open(File::open(&path).unwrap()).is_err());
                // Half of the last write, the header, is no header that QEMU would take for whole.
                let header_torn = std::fs::read(&path).unwrap().starts_with(b"QFI\xfb");
                assert!(header_torn || qemu::info(&path).is_none(), "after {left} writes");
            }
        }
    }
}

#[test]
fn every_error_says_what_to_do_next() {
    let full = BuildError::Write(io::ErrorKind::StorageFull.into());
    assert_eq!(full.kind(), ErrorKind::Operator);
    assert_eq!(ReadError::Io(io::ErrorKind::Interrupted.into()).kind(), ErrorKind::Retry);
    assert_eq!(ReadError::NotARun.kind(), ErrorKind::Refused);
    let damaged = Run::open(&sample()[..9000]).map(|_| ()).unwrap_err();
    assert_eq!(damaged.kind(), ErrorKind::Corrupt);
    assert_eq!(damaged.to_string(), "the run is damaged: footer");
}
