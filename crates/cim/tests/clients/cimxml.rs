//! CIM-XML clients.

use crate::programs::{in_environment, installed, output, script};
use crate::server::USER;
use crate::world::Running;

#[test]
fn pywbem_drives_every_operation() {
    let server = Running::start();
    script("pywbem_operations.py", &server.url());
}

#[test]
fn a_mock_server_of_others_answers_the_same_to_the_same_questions() {
    let server = Running::start();
    script("pywbem_same_as_mock.py", &server.url());
}
