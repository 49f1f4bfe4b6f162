//! What we depend on: under which licences, from where, each once where twice would hurt, and each with its reason on a page.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use anyhow::{Context, Result, bail};
use serde_json::Value;
use understudy_testkit::cache;

use crate::cargo::cargo;
use crate::licence;

/// The page with a row for each direct dependency.
const PAGE: &str = "docs/dependencies.md";
/// Not to be linked: a second TLS or crypto stack beside the chosen one.
const BANNED: [&str; 5] = ["ring", "openssl", "openssl-sys", "native-tls", "aws-lc-fips-sys"];
/// Two versions of these in one program would not fit each other, or double what is linked from C.
const ONCE: [&str; 14] = [
    "aws-lc-rs",
    "aws-lc-sys",
    "axum",
    "blake3",
    "bytes",
    "http",
    "hyper",
    "rustls",
    "serde",
    "serde_json",
    "tokio",
    "uuid",
    "zerocopy",
    "zstd-sys",
];
/// What is built and tested.
const PLATFORM: &str = "x86_64-unknown-linux-gnu";

/// Runs every check and names all that is wrong.
pub fn check() -> Result<()> {
    let metadata = metadata()?;
    let mut found = Vec::new();
    let linked = linked(&metadata)?;
    for package in &linked {
        judge(package, &mut found);
    }
    twice(&linked, &mut found);
    let page = fs::read_to_string(cache::source_dir().join(PAGE)).with_context(|| format!("cannot read {PAGE}"))?;
    compare_with_page(&direct(&metadata), &page, &mut found);
    for complaint in &found {
        eprintln!("{complaint}");
    }
    if !found.is_empty() {
        bail!("{} complaints about dependencies", found.len());
    }
    println!("{} packages linked, all as they should be", linked.len());
    Ok(())
}

/// Fails when the lock file is not up to date.
fn metadata() -> Result<Value> {
    let mut command = cargo(&["metadata", "--format-version", "1", "--filter-platform", PLATFORM]);
    let output = command.output().context("cannot run cargo metadata")?;
    if !output.status.success() {
        bail!("cargo metadata failed: {}", String::from_utf8_lossy(&output.stderr));
    }
    serde_json::from_slice(&output.stdout).context("cargo metadata gave no JSON")
}

fn list<'a>(value: &'a Value, name: &str) -> &'a [Value] {
    value[name].as_array().map_or(&[], Vec::as_slice)
}

fn text<'a>(value: &'a Value, name: &str) -> &'a str {
    value[name].as_str().unwrap_or_default()
}

/// Packages that are really built on our platform with the features we ask for. The metadata alone also names optional ones that no
/// feature turns on; `cargo tree` does not.
fn linked(metadata: &Value) -> Result<Vec<&Value>> {
    let mut command = cargo(&["tree", "--workspace", "--target", PLATFORM, "--prefix", "none", "--format", "{p}"]);
    let output = command.output().context("cannot run cargo tree")?;
    if !output.status.success() {
        bail!("cargo tree failed: {}", String::from_utf8_lossy(&output.stderr));
    }
    let tree = String::from_utf8_lossy(&output.stdout);
    let named: BTreeSet<(&str, &str)> = tree.lines().filter_map(name_and_version).collect();
    let is_named = |package: &&Value| named.contains(&(text(package, "name"), text(package, "version")));
    let packages: Vec<_> = list(metadata, "packages").iter().filter(is_named).collect();
    if packages.len() != named.len() {
        bail!("cargo tree names {} packages, cargo metadata knows {} of them", named.len(), packages.len());
    }
    Ok(packages)
}

/// `name v1.2.3`, and perhaps more.
fn name_and_version(line: &str) -> Option<(&str, &str)> {
    let mut words = line.split_whitespace();
    Some((words.next()?, words.next()?.strip_prefix('v')?))
}

fn is_ours(package: &Value) -> bool {
    package["source"].is_null()
}

fn judge(package: &Value, found: &mut Vec<String>) {
    let (name, version) = (text(package, "name"), text(package, "version"));
    let named = format!("{name} {version}");
    if BANNED.contains(&name) {
        found.push(format!("{named} must not be linked; `cargo tree -i {name}` says who asks for it"));
    }
    if !licence::is_allowed(text(package, "license")) {
        found.push(format!("{named}: the licence {} is not allowed", package["license"]));
    }
    if is_ours(package) {
        let manifest = text(package, "manifest_path");
        if !cache::source_dir().join(manifest).starts_with(cache::source_dir()) {
            found.push(format!("{named} comes from outside this tree"));
        }
    } else if !text(package, "source").starts_with("registry+") {
        found.push(format!("{named} comes from {}, not from a registry", package["source"]));
    }
}

fn twice(linked: &[&Value], found: &mut Vec<String>) {
    let mut versions: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for package in linked {
        versions.entry(text(package, "name")).or_default().push(text(package, "version"));
    }
    for name in ONCE {
        if let Some(versions) = versions.get(name).filter(|versions| versions.len() > 1) {
            found.push(format!("{name} is linked more than once: {}", versions.join(", ")));
        }
    }
}

/// Names the workspace's own manifests ask for, of packages that are not ours.
fn direct(metadata: &Value) -> BTreeSet<String> {
    let ours = list(metadata, "packages").iter().filter(|package| is_ours(package));
    let asked = ours.flat_map(|package| list(package, "dependencies"));
    asked.filter(|wanted| wanted["path"].is_null()).map(|wanted| text(wanted, "name").to_string()).collect()
}

fn compare_with_page(direct: &BTreeSet<String>, page: &str, found: &mut Vec<String>) {
    let rows: BTreeMap<&str, &str> = page.lines().filter_map(row).collect();
    for name in direct.iter().filter(|name| !rows.contains_key(name.as_str())) {
        found.push(format!("{name} has no row in {PAGE}: say why it is taken and what else there was"));
    }
    for name in rows.keys().filter(|name| !direct.contains(**name)) {
        found.push(format!("{PAGE} has a row for {name}, which nothing depends on"));
    }
    for (name, _) in rows.iter().filter(|(_, rest)| rest.split('|').filter(|cell| !cell.trim().is_empty()).count() < 2)
    {
        found.push(format!("{PAGE}: the row of {name} lacks its reason or its alternatives"));
    }
}

/// A table row that begins with a crate's name: "| `name` | why | alternatives |".
fn row(line: &str) -> Option<(&str, &str)> {
    line.strip_prefix("| `")?.split_once("` |")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn judged(package: Value) -> Vec<String> {
        let mut found = Vec::new();
        judge(&package, &mut found);
        found
    }

    #[test]
    fn licence_and_origin_of_each_package_are_judged() {
        let package = |name: &str, license: &str, source: &str| json!({"name": name, "version": "1.0.0", "license": license, "source": source});
        assert!(judged(package("fine", "MIT OR Apache-2.0", "registry+index")).is_empty());
        assert_eq!(judged(package("ring", "MIT", "registry+index")).len(), 1);
        assert_eq!(judged(package("copyleft", "GPL-3.0", "registry+index")).len(), 1);
        assert_eq!(judged(package("forked", "MIT", "git+somewhere")).len(), 1);
        assert_eq!(judged(json!({"name": "silent", "version": "1", "source": "registry+i"})).len(), 1);
    }

    #[test]
    fn the_page_and_the_manifests_name_the_same_crates() {
        let direct = BTreeSet::from(["tokio".to_string(), "zstd".to_string()]);
        let mut found = Vec::new();
        compare_with_page(
            &direct,
            "| `tokio` | runs tasks | none |\n| `zstd` | packs |\n| `gone` | a | b |\n",
            &mut found,
        );
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(found[0].contains("gone") && found[1].contains("zstd"));
    }
}
