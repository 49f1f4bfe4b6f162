//! Sees to it that the specification names only tests that exist.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};
use understudy_testkit::cache;

const PAGE: &str = "docs/SPECIFICATION.md";
/// Where tests live.
const SOURCES: [&str; 2] = ["crates", "e2e"];

/// Fails when the page names a test that no source file has.
pub fn check() -> Result<()> {
    let root = cache::source_dir();
    let page = fs::read_to_string(root.join(PAGE)).with_context(|| format!("cannot read {PAGE}"))?;
    let mut wanted = named(&page);
    for directory in SOURCES {
        strike_out(&root.join(directory), &mut wanted)?;
    }
    if wanted.is_empty() {
        return Ok(());
    }
    let names: Vec<&str> = wanted.iter().map(String::as_str).collect();
    bail!("{PAGE} names tests that do not exist: {}", names.join(", "))
}

/// The tests a page names: words in code marks that read like a sentence.
fn named(page: &str) -> BTreeSet<String> {
    let is_test = |word: &&str| {
        word.matches('_').count() >= 3 && word.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
    };
    page.split('`').skip(1).step_by(2).filter(is_test).map(String::from).collect()
}

fn strike_out(directory: &Path, wanted: &mut BTreeSet<String>) -> Result<()> {
    for entry in fs::read_dir(directory).with_context(|| format!("cannot list {}", directory.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            strike_out(&path, wanted)?;
        } else if path.extension().is_some_and(|end| end == "rs") {
            let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
            wanted.retain(|name| !text.contains(&format!("fn {name}(")));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sentences_in_code_marks_are_tests_and_other_words_are_not() {
        let page =
            "A `promise_that_is_kept_here` and `resync-required`, `cargo xtask ci`, `a_b`, `another_one_of_these_2`.";
        let names: Vec<String> = named(page).into_iter().collect();
        assert_eq!(names, ["another_one_of_these_2", "promise_that_is_kept_here"]);
    }
}
