//! Two copies of the manifest, each with a checksum: a flipped bit or a torn file costs nothing.
//!
//! ```text
//! {"format":"understudy-store","version":2,"blake3":"<of version and body>","body":{...}}
//! ```
//!
//! Writing: both copies are written beside the old ones and synced; then each takes its place; then the directory is
//! synced. Until the first rename nothing has happened. From then on either copy may be the one a crash leaves, and
//! both are whole: the one of the higher sequence counts. So the copies are never "current" and "previous": losing
//! one to the disk never takes back what was acknowledged.

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::{Manifest, format};
use crate::error::FileError;
use crate::files::{Access, read_exact_at, write_all_at};
use crate::paths::{MANIFESTS, MANIFESTS_NEW};
use crate::place::Place;

/// The version this program writes. Those from [`OLDEST`] on are read and written anew at the first opening.
pub(crate) const VERSION: u32 = 2;
/// The oldest version this program reads.
const OLDEST: u32 = 1;
const FORMAT: &str = "understudy-store";
/// Longest manifest that is looked at: some 2 KiB for each of the most links there can be, and room.
const LEN_MAX: u64 = 256 << 20;
const CONTEXT: &str = "understudy store manifest v1";

#[derive(Serialize, Deserialize)]
struct Envelope<'a> {
    format: String,
    version: u32,
    blake3: String,
    #[serde(borrow)]
    body: &'a RawValue,
}

/// What a copy turned out to be.
enum Found {
    Missing,
    Damaged,
    /// Whole, but of a version this program does not know.
    Unknown(u32),
    /// Whole, and whether it is of the present version.
    Whole(Box<Manifest>, bool),
}

/// Why there is no manifest to go by.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LoadError {
    #[error("cannot read the manifest")]
    File(#[from] FileError),
    #[error("the store is of format version {found}; this program knows {OLDEST} to {VERSION}")]
    Newer { found: u32 },
    #[error("both copies of the manifest are damaged or missing")]
    Damaged,
    #[error("the manifest contradicts itself: {what}")]
    Contradiction { what: &'static str },
}

/// A manifest and whether both copies say it, in the present version.
pub(crate) struct Loaded {
    pub(crate) manifest: Manifest,
    pub(crate) copies_agree: bool,
}

/// Reads the copy of the higher sequence.
pub(crate) fn load(place: &Place) -> Result<Loaded, LoadError> {
    let mut whole: Vec<Manifest> = Vec::new();
    let mut are_present = true;
    for path in MANIFESTS {
        match read_copy(place, path)? {
            Found::Unknown(found) => return Err(LoadError::Newer { found }),
            Found::Whole(manifest, is_present) => {
                are_present &= is_present;
                whole.push(*manifest);
            }
            Found::Missing | Found::Damaged => {}
        }
    }
    let copies_agree = are_present && whole.len() == MANIFESTS.len() && whole[0] == whole[1];
    let manifest = whole.into_iter().max_by_key(|m| m.sequence).ok_or(LoadError::Damaged)?;
    match manifest.contradiction() {
        Some(what) => Err(LoadError::Contradiction { what }),
        None => Ok(Loaded { manifest, copies_agree }),
    }
}

fn read_copy(place: &Place, path: &str) -> Result<Found, FileError> {
    let Some(file) = place.open_if_there(path, Access::Read)? else { return Ok(Found::Missing) };
    let len = place.len(&file, path)?;
    if len > LEN_MAX {
        return Ok(Found::Damaged);
    }
    let mut bytes = vec![0; len as usize];
    match read_exact_at(&*file, 0, &mut bytes) {
        Ok(()) => Ok(parse(&bytes)),
        // A sector that cannot be read is damage that the other copy heals.
        Err(err) if err.kind() == std::io::ErrorKind::UnexpectedEof || err.raw_os_error() == Some(5) => {
            Ok(Found::Damaged)
        }
        Err(err) => Err(FileError::new("read", place.path(path), err)),
    }
}

fn parse(bytes: &[u8]) -> Found {
    let Ok(envelope) = serde_json::from_slice::<Envelope<'_>>(bytes) else { return Found::Damaged };
    let body = envelope.body.get();
    if envelope.format != FORMAT || envelope.blake3 != checksum(envelope.version, body) {
        return Found::Damaged;
    }
    if !(OLDEST..=VERSION).contains(&envelope.version) {
        return Found::Unknown(envelope.version);
    }
    let manifest = format::upgrade(envelope.version, body).and_then(format::read);
    manifest.map_or(Found::Damaged, |m| Found::Whole(Box::new(m), envelope.version == VERSION))
}

fn checksum(version: u32, body: &str) -> String {
    let mut hasher = blake3::Hasher::new_derive_key(CONTEXT);
    hasher.update(&version.to_le_bytes());
    hasher.update(body.as_bytes());
    hasher.finalize().to_hex().to_string()
}

fn render(manifest: &Manifest) -> Vec<u8> {
    let body = serde_json::to_string(&format::write(manifest)).expect("the form has only texts, numbers and lists");
    let blake3 = checksum(VERSION, &body);
    let body = RawValue::from_string(body).expect("what was just written is JSON");
    let envelope = Envelope { format: FORMAT.to_owned(), version: VERSION, blake3, body: &body };
    serde_json::to_vec(&envelope).expect("the envelope has only texts and numbers")
}

/// Writes both copies beside the old ones, synced. Nothing has changed yet, whether this succeeds or fails.
pub(crate) fn prepare(place: &Place, manifest: &Manifest) -> Result<(), FileError> {
    let written = write_new(place, &render(manifest));
    if written.is_err() {
        // Half a manifest is no use and takes space; what stays is overwritten or cleared away later.
        MANIFESTS_NEW.iter().for_each(|path| drop(place.unlink_if_there(path)));
    }
    written
}

fn write_new(place: &Place, bytes: &[u8]) -> Result<(), FileError> {
    for path in MANIFESTS_NEW {
        let file = place.create_anew(path)?;
        write_all_at(&*file, 0, bytes).map_err(|err| FileError::new("write", place.path(path), err))?;
        place.sync(&file, path)?;
    }
    Ok(())
}

/// Puts what was prepared in place. After a failure it is unknown which version is durable.
pub(crate) fn publish(place: &Place) -> Result<(), FileError> {
    for (new, path) in MANIFESTS_NEW.into_iter().zip(MANIFESTS) {
        place.rename(new, path)?;
    }
    place.sync_dir("")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::{Crash, Files, MemFiles};
    use std::sync::Arc;

    fn saved(sequence: u64) -> (MemFiles, Place) {
        let files = MemFiles::new();
        let place = Place::new(Arc::new(files.clone()), String::new());
        save(&place, sequence);
        (files, place)
    }

    fn save(place: &Place, sequence: u64) {
        prepare(place, &Manifest { sequence, ..format::sample() }).unwrap();
        publish(place).unwrap();
    }

    fn flip(files: &MemFiles, path: &str, at: u64, bit: u8) {
        files.damage(path, at, |b| b[0] ^= 1 << bit, 1).unwrap();
    }

    #[test]
    fn what_was_published_survives_a_power_cut() {
        let (files, place) = saved(1);
        save(&place, 2);
        files.crash(Crash::LostAll);
        let loaded = load(&place).unwrap();
        assert_eq!(loaded.manifest.sequence, 2);
        assert!(loaded.copies_agree);
    }

    #[test]
    fn any_flipped_bit_in_either_copy_is_survived_and_noticed() {
        let (files, place) = saved(7);
        let len = files.content("manifest.json").unwrap().len() as u64;
        for path in MANIFESTS {
            for at in 0..len {
                flip(&files, path, at, (at % 8) as u8);
                let loaded = load(&place).unwrap();
                assert_eq!(loaded.manifest, Manifest { sequence: 7, ..format::sample() }, "byte {at}");
                assert!(!loaded.copies_agree, "byte {at}");
                flip(&files, path, at, (at % 8) as u8);
            }
        }
    }

    #[test]
    fn two_damaged_copies_are_never_guessed_from() {
        let (files, place) = saved(1);
        MANIFESTS.iter().for_each(|path| flip(&files, path, 200, 1));
        assert!(matches!(load(&place), Err(LoadError::Damaged)));
        files.unlink("manifest.json").unwrap();
        assert!(matches!(load(&place), Err(LoadError::Damaged)));
    }

    #[test]
    fn a_newer_version_is_refused_even_in_one_copy() {
        let (files, place) = saved(1);
        let text = String::from_utf8(files.content("manifest.json").unwrap()).unwrap();
        let body = text.split_once("\"body\":").unwrap().1.strip_suffix('}').unwrap();
        let newer = text.replace("\"version\":2", "\"version\":3").replace(&checksum(2, body), &checksum(3, body));
        let file = files.open("manifest.json", Access::Write).unwrap();
        write_all_at(&*file, 0, newer.as_bytes()).unwrap();
        assert!(matches!(load(&place), Err(LoadError::Newer { found: 3 })));
    }

    /// A manifest as version 1 had it.
    fn first_version(manifest: &Manifest) -> Vec<u8> {
        let mut body = serde_json::to_value(format::write(manifest)).unwrap();
        let fields = body.as_object_mut().unwrap();
        assert!(fields.remove("seeds").is_some() && fields.remove("waiting").is_some());
        for damage in fields["damage"].as_array_mut().unwrap() {
            damage.as_object_mut().unwrap().remove("covered").unwrap();
        }
        let body = RawValue::from_string(body.to_string()).unwrap();
        let blake3 = checksum(1, body.get());
        serde_json::to_vec(&Envelope { format: FORMAT.to_owned(), version: 1, blake3, body: &body }).unwrap()
    }

    #[test]
    fn the_first_version_is_read_and_asks_to_be_written_anew() {
        let (files, place) = saved(1);
        let mut expected = Manifest { sequence: 9, ..format::sample() };
        expected.damage.iter_mut().for_each(|d| d.covered = None);
        for path in MANIFESTS {
            files.unlink(path).unwrap();
            write_all_at(&*files.create(path).unwrap(), 0, &first_version(&expected)).unwrap();
            let loaded = load(&place).unwrap();
            assert!(!loaded.copies_agree);
            assert_eq!(loaded.manifest.sequence, 9);
        }
        assert_eq!(load(&place).unwrap().manifest, expected);
        save(&place, 10);
        assert!(load(&place).unwrap().copies_agree);
    }

    #[test]
    fn what_pretends_to_be_older_than_its_fields_is_damaged() {
        let (files, place) = saved(1);
        for path in MANIFESTS {
            let text = String::from_utf8(files.content(path).unwrap()).unwrap();
            let body = text.split_once("\"body\":").unwrap().1.strip_suffix('}').unwrap();
            let older = text.replace("\"version\":2", "\"version\":1").replace(&checksum(2, body), &checksum(1, body));
            let file = files.open(path, Access::Write).unwrap();
            write_all_at(&*file, 0, older.as_bytes()).unwrap();
        }
        assert!(matches!(load(&place), Err(LoadError::Damaged)));
    }

    #[test]
    fn a_crash_at_any_call_leaves_the_old_or_the_new_one() {
        let (files, place) = saved(1);
        files.record();
        save(&place, 2);
        let states = files.recorded();
        for (i, state) in states.iter().enumerate() {
            for seed in 0..40 {
                let disk = state.fork();
                disk.crash(Crash::Seed(seed));
                let place = Place::new(Arc::new(disk), String::new());
                let sequence = load(&place).unwrap().manifest.sequence;
                assert!((1..=2).contains(&sequence));
                assert!(i + 1 < states.len() || sequence == 2, "the last sync made it durable");
            }
        }
    }

    #[test]
    fn a_failure_before_the_first_rename_changes_nothing() {
        let (files, place) = saved(1);
        files.set_capacity(files.used() + 4096);
        let mut large = format::sample();
        large.disks[0].spec.key = "k".repeat(100_000);
        assert!(prepare(&place, &large).unwrap_err().is_no_space());
        assert_eq!(load(&place).unwrap().manifest.sequence, 1);
    }
}
