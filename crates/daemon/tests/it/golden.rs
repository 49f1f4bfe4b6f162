//! What is generated from the code and committed. `UNDERSTUDY_GOLDEN=write` writes it anew.

use understudy_testkit::golden::assert_golden;

#[test]
fn the_openapi_document_is_the_committed_one() {
    assert_golden("crates/daemon/tests/golden/openapi.json", &understudy_daemon::faces::rest::document());
}

#[test]
fn the_reference_of_the_configuration_is_the_committed_one() {
    assert_golden("docs/reference/config.md", &understudy_daemon::config::reference());
}

#[test]
fn the_reference_of_the_api_is_the_committed_one() {
    assert_golden("docs/reference/rest.md", &understudy_daemon::faces::rest::reference());
}
