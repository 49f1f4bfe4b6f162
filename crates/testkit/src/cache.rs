//! Where what is costly to make is kept: `guest/` in cargo's target directory, or the directory `UNDERSTUDY_GUEST_CACHE` names.
//!
//! Several test programs may come for the same thing at once. Whoever holds the lock makes it, under another name, and renames it when
//! it is whole; the others find it done.

use std::collections::hash_map::DefaultHasher;
use std::fs::{self, File};
use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// Environment variable that moves the cache elsewhere, so that several checkouts can share one.
pub const CACHE_VARIABLE: &str = "UNDERSTUDY_GUEST_CACHE";

/// Files cargo leaves in a target directory; the first only in one it has created itself.
const MARKS: [&str; 2] = ["CACHEDIR.TAG", ".rustc_info.json"];

/// Cargo's target directory: the one the running program was built into.
pub fn target_dir() -> Result<PathBuf> {
    let program = std::env::current_exe().context("cannot tell which program is running")?;
    let marked = program.ancestors().find(|dir| MARKS.iter().any(|mark| dir.join(mark).is_file()));
    Ok(marked.map_or_else(|| source_dir().join("target"), Path::to_path_buf))
}

/// Directory of the profile the running program was built with, such as `target/debug`.
pub fn profile_dir() -> Result<PathBuf> {
    let target = target_dir()?;
    let program = std::env::current_exe()?;
    let profile = program.strip_prefix(&target).ok().and_then(|rest| rest.iter().next());
    Ok(target.join(profile.unwrap_or("debug".as_ref())))
}

/// The root of the source tree this was built from.
pub fn source_dir() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.ancestors().nth(2).unwrap_or(here).to_path_buf()
}

/// The cache directory, created if need be.
pub fn dir() -> Result<PathBuf> {
    let dir = match std::env::var_os(CACHE_VARIABLE) {
        Some(dir) => PathBuf::from(dir),
        None => target_dir()?.join("guest"),
    };
    fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
    Ok(dir)
}

/// The cached thing of this name; `make` is called with a path to create when it is not there, and what it leaves is kept.
pub fn get_or_make(name: &str, make: impl FnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
    let dir = dir()?;
    let done = dir.join(name);
    if done.exists() {
        return Ok(done);
    }
    let _lock = lock(&dir, name)?;
    if done.exists() {
        return Ok(done);
    }
    let under_way = dir.join(format!("{name}.part"));
    remove(&under_way)?;
    make(&under_way).with_context(|| format!("cannot make {}", done.display()))?;
    fs::rename(&under_way, &done).with_context(|| format!("cannot finish {}", done.display()))?;
    Ok(done)
}

/// A short name for a set of inputs; the same inputs give the same name in every process.
pub fn key(inputs: impl Hash) -> String {
    let mut hasher = DefaultHasher::new(); // fixed keys, unlike those of a HashMap
    inputs.hash(&mut hasher);
    format!("{:016x}", hasher.finish())
}

/// One lock for each thing: making one may need another. Released when dropped, and by the system when its holder dies.
fn lock(dir: &Path, name: &str) -> Result<File> {
    let path = dir.join(format!("{name}.lock"));
    let file = File::create(&path).with_context(|| format!("cannot create {}", path.display()))?;
    file.lock().with_context(|| format!("cannot lock {}", path.display()))?;
    Ok(file)
}

fn remove(path: &Path) -> Result<()> {
    let removed = match fs::symlink_metadata(path) {
        Err(_) => Ok(()),
        Ok(meta) if meta.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
    };
    removed.with_context(|| format!("cannot remove {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thing_is_made_once_and_a_failed_one_leaves_no_trace() {
        let name = format!("self-test-{}", std::process::id());
        let failed = get_or_make(&name, |path| {
            fs::write(path, "half")?;
            anyhow::bail!("ran out")
        });
        assert!(failed.is_err());
        assert!(!dir().unwrap().join(&name).exists());
        let made = get_or_make(&name, |path| Ok(fs::write(path, "whole")?)).unwrap();
        let again = get_or_make(&name, |_| panic!("made twice")).unwrap();
        assert_eq!(fs::read_to_string(&again).unwrap(), "whole");
        fs::remove_file(made).unwrap();
        fs::remove_file(dir().unwrap().join(format!("{name}.lock"))).unwrap();
    }

    #[test]
    fn the_profile_directory_lies_in_the_target_directory() {
        assert!(profile_dir().unwrap().starts_with(target_dir().unwrap()));
        assert!(source_dir().join("crates/testkit/Cargo.toml").is_file());
    }
}
