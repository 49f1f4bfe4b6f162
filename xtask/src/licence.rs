//! Reads licence expressions (SPDX: names, OR, AND, WITH, parentheses) and says whether one of their choices is allowed.

/// Licences that ask for no more than to be named.
const ALLOWED: [&str; 15] = [
    "0BSD",
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "BSL-1.0",
    "CC0-1.0",
    "CDLA-Permissive-2.0",
    "ISC",
    "MIT",
    "MIT-0",
    "Unicode-3.0",
    "Unicode-DFS-2016",
    "Unlicense",
    "Zlib",
];

/// True when the expression can be met with allowed licences alone. What cannot be read is not allowed.
pub fn is_allowed(expression: &str) -> bool {
    // A slash between names is how crates said OR before there was a standard.
    let spaced = expression.replace('/', " OR ").replace('(', " ( ").replace(')', " ) ");
    let words: Vec<&str> = spaced.split_whitespace().collect();
    let mut left = words.as_slice();
    either(&mut left) == Some(true) && left.is_empty()
}

fn either(left: &mut &[&str]) -> Option<bool> {
    let mut allowed = both(left)?;
    while take(left, "OR") {
        allowed |= both(left)?;
    }
    Some(allowed)
}

fn both(left: &mut &[&str]) -> Option<bool> {
    let mut allowed = one(left)?;
    while take(left, "AND") {
        allowed &= one(left)?;
    }
    Some(allowed)
}

fn one(left: &mut &[&str]) -> Option<bool> {
    if take(left, "(") {
        let allowed = either(left)?;
        return take(left, ")").then_some(allowed);
    }
    let (name, rest) = left.split_first()?;
    *left = rest;
    if !take(left, "WITH") {
        return Some(ALLOWED.contains(name));
    }
    let (exception, rest) = left.split_first()?;
    *left = rest;
    // An exception only gives more than its licence does, so a licence that is allowed needs none to be named.
    Some(ALLOWED.contains(name) || ALLOWED.contains(&format!("{name} WITH {exception}").as_str()))
}

fn take(left: &mut &[&str], word: &str) -> bool {
    match left.split_first() {
        Some((first, rest)) if *first == word => {
            *left = rest;
            true
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_allowed_choice_is_enough_and_every_part_is_needed() {
        for allowed in [
            "MIT",
            "MIT/Apache-2.0",
            "GPL-3.0 OR MIT",
            "(MIT OR Apache-2.0) AND Unicode-3.0",
            "Apache-2.0 WITH LLVM-exception OR Apache-2.0 OR MIT",
            "ISC AND (Apache-2.0 OR ISC)",
        ] {
            assert!(is_allowed(allowed), "{allowed}");
        }
        for refused in
            ["GPL-3.0", "MIT AND GPL-3.0", "MIT OR", "(MIT", "MIT MIT", "", "GPL-2.0 WITH Classpath-exception-2.0"]
        {
            assert!(!is_allowed(refused), "{refused}");
        }
    }
}
