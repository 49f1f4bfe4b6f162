//! The reference page of the configuration, made from the text at the fields and the defaults in the code.

use super::{Api, Config, Invite, Jobs, KeyDoc, Link, Log, Vms};

/// The page, as Markdown.
pub fn reference() -> String {
    let mut page = String::from(HEAD);
    let defaults = toml::Table::try_from(Config::default()).expect("the defaults can be written as TOML");
    section(&mut page, "Top of the file", Config::ABOUT, top_keys(), &defaults);
    for (name, about, keys) in TABLES {
        let defaults = defaults.get(*name).and_then(toml::Value::as_table).expect("every table has defaults");
        section(&mut page, &format!("`[{name}]`"), about, keys.iter(), defaults);
    }
    page
}

const HEAD: &str = "# Configuration\n\n\
<!-- made from the code; refresh with UNDERSTUDY_GOLDEN=write cargo test -p understudy-daemon golden -->\n\n\
`understudy serve --config FILE` reads one TOML file. Every key may be left out. A key nobody knows is refused, and so\n\
is a value out of its range: the daemon then does not start, and says which key it was. Flags of `serve` win over the\n\
file. Spans of time are written `500ms`, `30s`, `5m`, `1h30m`, `2d`; sizes `512`, `64KiB`, `1MiB`.\n";

type Table = (&'static str, &'static str, &'static [KeyDoc]);
const TABLES: &[Table] = &[
    ("link", Link::ABOUT, Link::KEYS),
    ("invite", Invite::ABOUT, Invite::KEYS),
    ("jobs", Jobs::ABOUT, Jobs::KEYS),
    ("vms", Vms::ABOUT, Vms::KEYS),
    ("api", Api::ABOUT, Api::KEYS),
    ("log", Log::ABOUT, Log::KEYS),
];

fn top_keys() -> impl Iterator<Item = &'static KeyDoc> {
    Config::KEYS.iter().filter(|k| !TABLES.iter().any(|(name, ..)| *name == k.key))
}

fn section(
    page: &mut String,
    title: &str,
    about: &str,
    keys: impl Iterator<Item = &'static KeyDoc>,
    defaults: &toml::Table,
) {
    page.push_str(&format!("\n## {title}\n\n{}\n\n", joined(about)));
    page.push_str("| key | default | meaning |\n|---|---|---|\n");
    for doc in keys {
        let default = defaults.get(doc.key).map_or("unset".to_owned(), |v| format!("`{v}`"));
        page.push_str(&format!("| `{}` | {default} | {} |\n", doc.key, joined(doc.text)));
    }
}

/// The lines of a doc comment as one line.
fn joined(text: &str) -> String {
    text.lines().map(str::trim).filter(|l| !l.is_empty()).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_stands_on_the_page_with_its_default() {
        let page = reference();
        let keys = TABLES.iter().flat_map(|(.., keys)| keys.iter()).chain(top_keys());
        for doc in keys {
            assert!(page.contains(&format!("| `{}` |", doc.key)), "{}", doc.key);
            assert!(!joined(doc.text).is_empty(), "{} is described", doc.key);
        }
        assert!(page.contains("| `lifetime` | `\"1h\"` | How long an invitation may be used. |"), "{page}");
    }
}
