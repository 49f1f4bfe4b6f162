//! What is generated from the code and committed. `UNDERSTUDY_GOLDEN=write` writes it anew.

use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn compare(path: &Path, made: &str) {
    if std::env::var_os("UNDERSTUDY_GOLDEN").is_some_and(|v| v == "write") {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, made).unwrap();
        return;
    }
    let committed = std::fs::read_to_string(path).unwrap_or_default();
    let differs = made.lines().zip(committed.lines()).position(|(a, b)| a != b);
    assert!(
        made == committed,
        "{} is not what the code makes of it (first difference in line {:?}); refresh it with UNDERSTUDY_GOLDEN=write",
        path.display(),
        differs.map(|n| n + 1)
    );
}

#[test]
fn the_openapi_document_is_the_committed_one() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/openapi.json");
    compare(&path, &understudy_daemon::faces::rest::document());
}

#[test]
fn the_reference_of_the_configuration_is_the_committed_one() {
    compare(&root().join("docs/reference/config.md"), &understudy_daemon::config::reference());
}

#[test]
fn the_reference_of_the_api_is_the_committed_one() {
    compare(&root().join("docs/reference/rest.md"), &understudy_daemon::faces::rest::reference());
}
