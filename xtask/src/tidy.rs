//! What no compiler looks at: left-over notes, paths of one machine, files without a header, files that grew too long.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use understudy_testkit::cache;

/// Past this, there nearly always is a second idea in a file.
const LINES_MAX: usize = 800;
/// Longer files, each with the reason why it is one idea all the same.
const LONG_FILES: [(&str, &str); 0] = [];
/// Files that are read; others are taken for data.
const KINDS: [&str; 16] = [
    "rs", "md", "toml", "sh", "yaml", "yml", "json", "html", "css", "js", "xml", "mof", "sql", "txt", "service", "lock",
];

/// Words that say a thing is not done, in two halves so that this file does not say them.
const UNFINISHED: [(&str, &str); 6] =
    [("TO", "DO"), ("FIX", "ME"), ("XX", "X"), ("todo", "!("), ("unimplemented", "!("), ("dbg", "!(")];
/// Beginnings of paths that exist on one machine only.
const PRIVATE: [(&str, &str); 3] = [("/ro", "ot/"), ("/ho", "me/"), ("/Us", "ers/")];

/// Looks at every file that is, or could be, committed.
pub fn check() -> Result<()> {
    let root = cache::source_dir();
    let mut found = Vec::new();
    for path in files(&root)? {
        let Ok(text) = fs::read_to_string(root.join(&path)) else { continue };
        look(&path, &text, &root, &mut found);
    }
    for complaint in &found {
        eprintln!("{complaint}");
    }
    match found.len() {
        0 => Ok(()),
        count => bail!("{count} untidy places"),
    }
}

fn files(root: &Path) -> Result<Vec<PathBuf>> {
    let mut command = Command::new("git");
    // A checkout may belong to another user than the one who builds it.
    command.args(["-c", "safe.directory=*", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]);
    command.current_dir(root);
    let output = command.output().context("cannot ask git for the files")?;
    if !output.status.success() {
        bail!("git ls-files failed: {}", String::from_utf8_lossy(&output.stderr));
    }
    let names = String::from_utf8(output.stdout).context("a file's name is not UTF-8")?;
    let paths = names.split('\0').filter(|name| !name.is_empty()).map(PathBuf::from);
    Ok(paths.filter(|path| path.extension().is_none_or(|end| KINDS.iter().any(|kind| end == *kind))).collect())
}

fn look(path: &Path, text: &str, root: &Path, found: &mut Vec<String>) {
    let shown = path.display();
    for (number, line) in text.lines().enumerate().map(|(index, line)| (index + 1, line)) {
        for word in UNFINISHED.iter().map(joined).filter(|word| has_word(line, word)) {
            found.push(format!("{shown}:{number}: {word} stands for work that is not done"));
        }
        let names_a_place = |private: &&String| line.contains(private.as_str()) && !is_cim_namespace(path, private);
        for private in private_paths(root).iter().filter(names_a_place) {
            found.push(format!("{shown}:{number}: {private} exists on one machine only"));
        }
    }
    if path.extension().is_some_and(|end| end == "rs") {
        look_at_source(path, text, found);
    }
}

/// In CIM `root` is the first part of every namespace, and object paths may write it like a file's.
fn is_cim_namespace(path: &Path, private: &str) -> bool {
    private == joined(&("/ro", "ot/")) && ["crates/cim", "schema"].iter().any(|place| path.starts_with(place))
}

fn look_at_source(path: &Path, text: &str, found: &mut Vec<String>) {
    let (shown, lines) = (path.display(), text.lines().count());
    if lines > LINES_MAX && !LONG_FILES.iter().any(|(name, _)| Path::new(name) == path) {
        found.push(format!("{shown}: {lines} lines; split it, or list it with a reason"));
    }
    if needs_header(path) && !text.starts_with("//!") {
        found.push(format!("{shown}: does not say at its top what it is for"));
    }
}

/// Modules of tests stand beside what they test and need no words of their own.
fn needs_header(path: &Path) -> bool {
    let within = |name: &str| path.components().any(|part| part.as_os_str() == name);
    within("src") && !path.ends_with("tests.rs") && !within("tests")
}

fn joined((head, rest): &(&str, &str)) -> String {
    format!("{head}{rest}")
}

/// Home directories anywhere, and wherever this checkout and what is built from it lie.
fn private_paths(root: &Path) -> Vec<String> {
    let mut paths: Vec<String> = PRIVATE.iter().map(joined).collect();
    let target = std::env::var_os("CARGO_TARGET_DIR").map(PathBuf::from);
    let here = [Some(root.to_path_buf()), root.parent().map(Path::to_path_buf), target];
    let deep_enough = |path: &PathBuf| path.is_absolute() && path.components().count() > 2;
    paths.extend(here.into_iter().flatten().filter(deep_enough).map(|path| format!("{}/", path.display())));
    paths
}

/// True when the word stands by itself, not inside another.
fn has_word(line: &str, word: &str) -> bool {
    let letter = |c: Option<char>| c.is_some_and(|c| c.is_alphanumeric() || c == '_');
    line.match_indices(word).any(|(at, _)| {
        let behind = if word.ends_with('(') { None } else { line[at + word.len()..].chars().next() };
        !letter(line[..at].chars().next_back()) && !letter(behind)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn complaints(path: &str, text: &str) -> Vec<String> {
        let mut found = Vec::new();
        look(Path::new(path), text, Path::new("/srv/build/checkout"), &mut found);
        found
    }

    #[test]
    fn left_over_notes_and_private_paths_are_found_where_they_stand() {
        let note = joined(&UNFINISHED[0]);
        assert!(complaints("a.md", &format!("fine\n// {note}: later"))[0].starts_with("a.md:2:"));
        assert!(complaints("a.md", &format!("my{note}s")).is_empty());
        assert_eq!(complaints("a.md", &format!("see {}me/notes", joined(&PRIVATE[1]))).len(), 1);
        assert_eq!(complaints("a.md", "built in /srv/build/checkout/target").len(), 2);
        assert_eq!(complaints("a.rs", &format!("{}x)", joined(&UNFINISHED[5]))).len(), 1);
    }

    #[test]
    fn sources_say_what_they_are_for_and_stay_short() {
        assert_eq!(complaints("crates/x/src/lib.rs", "pub fn f() {}").len(), 1);
        assert!(complaints("crates/x/src/lib.rs", "//! For this.\n").is_empty());
        assert!(complaints("crates/x/src/y/tests.rs", "use super::*;").is_empty());
        assert_eq!(complaints("crates/x/tests/it/y.rs", &"\n".repeat(LINES_MAX + 1)).len(), 1);
    }
}
