//! Names from outside: which texts may be the name of a VM, a host or a peer.
//!
//! A name is for people and for finding things. It never becomes a path, an option of a program or a line of its own
//! in a log; the set of characters makes sure of that before anything else has to.

/// Longest name, in characters. Hyper-V's limit for a VM.
pub const NAME_MAX: usize = 100;

/// Whether a text may be a name: 1 to 100 letters, digits, `.`, `_`, `-` or single spaces inside; the first character
/// a letter or digit, so that a name is never taken for an option or a hidden file.
pub fn is_name(text: &str) -> bool {
    let inner = |c: char| c.is_alphanumeric() || matches!(c, '.' | '_' | '-' | ' ');
    text.chars().count() <= NAME_MAX
        && text.chars().all(inner)
        && text.starts_with(char::is_alphanumeric)
        && !text.ends_with(' ')
        && !text.contains("  ")
}

/// A text from outside made fit to be shown as a name: what [`is_name`] refuses is left out.
pub fn to_name(text: &str) -> Option<String> {
    let kept: String = text.chars().filter(|c| c.is_alphanumeric() || matches!(c, '.' | '_' | '-')).collect();
    let kept: String = kept.trim_start_matches(['.', '_', '-']).chars().take(NAME_MAX).collect();
    is_name(&kept).then_some(kept)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn names_people_use_are_taken_and_hostile_ones_refused() {
        for good in ["web", "Web Server 01", "db-1.prod_a", "Bücher", "7", &"x".repeat(100)] {
            assert!(is_name(good), "{good:?}");
        }
        let long = "x".repeat(101);
        let bad = [
            "",
            " ",
            ".",
            "..",
            "-rf",
            "--help",
            "a/b",
            "../a",
            "a\nb",
            "a\0b",
            " a",
            "a ",
            "a  b",
            "$(x)",
            "a;b",
            "\u{202e}a",
            &long,
        ];
        for bad in bad {
            assert!(!is_name(bad), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn whatever_is_made_a_name_is_one(text in any::<String>()) {
            if let Some(name) = to_name(&text) {
                prop_assert!(is_name(&name));
            }
        }
    }
}
