//! Comparing with a committed file: bytes, documents and texts that must stay what they were unless somebody means them to change.

use std::fs;

use crate::cache;

/// Set to `write`, the file is written instead of compared with; `cargo xtask golden` sets it.
pub const VARIABLE: &str = "UNDERSTUDY_GOLDEN";

/// Fails unless the file at this path, from the root of the source tree, holds exactly this text.
#[track_caller]
pub fn assert_golden(path: &str, actual: &str) {
    let file = cache::source_dir().join(path);
    if std::env::var_os(VARIABLE).is_some_and(|word| word == "write") {
        fs::create_dir_all(file.parent().expect("a path below the root")).expect("the directory can be created");
        return fs::write(&file, actual).expect("the file can be written");
    }
    let expected = fs::read_to_string(&file).unwrap_or_default();
    if expected != actual {
        let line = expected.lines().zip(actual.lines()).take_while(|(a, b)| a == b).count();
        let shown = |text: &str| text.lines().skip(line).take(3).collect::<Vec<_>>().join("\n");
        panic!(
            "{path} differs from line {} on; `cargo xtask golden` writes it anew.\n--- committed\n{}\n--- now\n{}",
            line + 1,
            shown(&expected),
            shown(actual)
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_difference_is_shown_where_it_begins() {
        if std::env::var_os(VARIABLE).is_some() {
            return; // nothing is compared, and nothing must be written
        }
        let text = fs::read_to_string(cache::source_dir().join("rustfmt.toml")).unwrap();
        assert_golden("rustfmt.toml", &text);
        let other = text.replacen("120", "80", 1);
        let panic = std::panic::catch_unwind(|| assert_golden("rustfmt.toml", &other)).unwrap_err();
        assert!(panic.downcast_ref::<String>().unwrap().contains("max_width = 80"));
    }
}
