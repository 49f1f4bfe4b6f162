//! WS-Management clients.

use crate::programs::{installed, said, script};
use crate::server::USER;
use crate::world::Running;

#[test]
fn pypsrp_drives_every_operation() {
    let server = Running::start();
    script("wsman_pypsrp.py", &server.url());
}

#[test]
fn dracclient_enumerates_and_invokes() {
    let server = Running::start();
    script("wsman_dracclient.py", &server.url());
}

#[test]
fn wsl_finds_gets_and_invokes() {
    let server = Running::start();
    // It writes its settings and its answers where it runs.
    let place = tempfile::tempdir().unwrap();
    let run = |program: &str, words: &[&str]| {
        let mut command = installed(program);
        command.args(words).current_dir(&place).env("HOME", place.path());
        command.env("WSENDPOINT", format!("127.0.0.1:{}", server.port)).env("WSUSER", USER.0).env("WSPASS", USER.1);
        command.env("WSNOSSL", "true").env("OUTLEVEL", "1");
        // Some of its programs end with a failure when all went well.
        said(&mut command)
    };
    let class = |name: &str| format!("http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/{name}");
    let (device, service) = (class("Toy_Device"), class("Toy_Service"));
    let has = |answer: String, wanted: &[&str]| {
        wanted.iter().for_each(|text| assert!(answer.contains(text), "{text}:\n{answer}"))
    };
    has(run("wslid", &["check"]), &["<wsmid:ProductVendor>Toymakers</wsmid:ProductVendor>"]);
    has(
        run("wslenum", &[&device, "-ns", "root/toy"]),
        &["<p:Caption>lamp</p:Caption>", "<p:Caption>motor</p:Caption>"],
    );
    let query = "select * from Toy_Device where Slot=1";
    has(run("wslenum", &[&device, "-ns", "root/toy", "-mode", "epr", "-filter", query]), &[">red</w:Selector>"]);
    std::fs::copy(place.path().join("response.xml"), place.path().join("lamp.xml")).unwrap();
    has(
        run("wslenum", &[&device, "-ns", "root/toy", "-mode", "objepr", "-opti", "2"]),
        &["<w:Item>", "<p:Slot>3</p:Slot>"],
    );
    // It has the two kinds the wrong way round.
    has(
        run("wslenum", &[&device, "-ns", "root/toy", "-references", "BoxName=red", "Slot=1"]),
        &["<p:Name>keeper</p:Name>"],
    );
    has(
        run("wslget", &[&device, "BoxName=red", "Slot=1", "__cimnamespace=root/toy"]),
        &["<p:Balance>-9223372036854775808"],
    );
    has(
        run("wslinvoke", &[&device, "Reset", "Level=3", "-ns", "root/toy", "-inst", "lamp.xml"]),
        &["<p:Was>3</p:Was>"],
    );
    let echo = ["Echo", "Text=a b", "Device=FILE:lamp.xml", "Numbers=1", "Numbers=2", "-ns", "root/toy"];
    let words: Vec<&str> = std::iter::once(service.as_str()).chain(echo).collect();
    has(
        run("wslinvoke", &words),
        &["<p:Text>a b</p:Text>", "Name=\"Slot\">1</w:Selector>", "<p:Numbers>2</p:Numbers>"],
    );
}
