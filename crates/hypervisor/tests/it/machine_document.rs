//! Definitions as documents: what is read, what is refused, and how it is said.

use proptest::prelude::*;
use serde_json::{Value, json};
use understudy_hypervisor::machine::{Accelerator, Bus, DOCUMENT_MAX, Definition, DocumentError, NicModel};
use understudy_model::{DiskId, ErrorKind};

const PAGE: &str = include_str!("../../../../docs/reference/definition.md");

/// The example of the reference page.
fn example() -> Value {
    let (_, rest) = PAGE.split_once("```json\n").unwrap();
    serde_json::from_str(rest.split_once("```").unwrap().0).unwrap()
}

fn read(document: &Value) -> Result<Definition, DocumentError> {
    Definition::from_json(document.to_string().as_bytes())
}

/// Reads the example after `change`, which must refuse it; returns why.
fn refused(change: impl FnOnce(&mut Value)) -> String {
    let mut document = example();
    change(&mut document);
    let err = read(&document).expect_err("the changed example is no definition");
    assert_eq!(err.kind(), ErrorKind::Refused);
    err.to_string()
}

#[test]
fn the_example_of_the_reference_is_read_and_written_back() {
    let definition = read(&example()).unwrap();
    assert_eq!(definition.name.as_str(), "web 1");
    assert_eq!(definition.accelerator, Accelerator::Kvm);
    assert_eq!(definition.cpu.count(), Some(4));
    assert_eq!((definition.disks[1].disk, definition.disks[1].bus), (DiskId(1), Bus::VirtioScsi));
    assert_eq!(definition.nics[0].model, NicModel::Virtio);
    assert_eq!(definition.blobs().len(), 2);
    assert_eq!(Definition::from_json(&definition.to_json()).unwrap(), definition);
    assert_eq!(Definition::from_json(&definition.to_json()).unwrap().to_json(), definition.to_json());
}

#[test]
fn every_field_of_the_example_is_in_the_reference() {
    fn fields(value: &Value, found: &mut Vec<String>) {
        match value {
            Value::Object(object) => object.iter().filter(|(name, _)| *name != "features").for_each(|(name, value)| {
                found.push(name.clone());
                fields(value, found);
            }),
            Value::Array(list) => list.iter().for_each(|value| fields(value, found)),
            _ => {}
        }
    }
    let tables = PAGE.split_once("## Fields").unwrap().1;
    let mut found = Vec::new();
    fields(&example(), &mut found);
    for field in found {
        assert!(tables.contains(&format!("`{field}`")), "{field}");
    }
}

#[test]
fn fields_that_are_not_known_refuse_the_document_and_are_named() {
    assert!(refused(|d| d["qemu_arguments"] = json!(["-chardev", "file"])).contains("unknown field `qemu_arguments`"));
    assert!(refused(|d| d["disks"][0]["path"] = json!("/etc/shadow")).contains("unknown field `path`"));
    assert!(refused(|d| d["nics"][0]["script"] = json!("/bin/sh")).contains("unknown field `script`"));
    assert!(refused(|d| d["cpu"]["numa"] = json!(1)).contains("unknown field `numa`"));
    assert!(refused(|d| d["kernel"]["shim"] = json!("x")).contains("unknown field `shim`"));
    assert!(refused(|d| d["root_ports"][0]["bus"] = json!("x")).contains("unknown field `bus`"));
    assert!(refused(|d| d["disks"][0]["place"]["x"] = json!(1)).contains("unknown field `x`"));
}

#[test]
fn texts_that_would_be_more_than_they_say_are_refused() {
    assert!(refused(|d| d["machine"] = json!("q35,firmware=/etc/shadow")).contains("no machine type"));
    assert!(refused(|d| d["cpu"]["model"] = json!("host,-x")).contains("no processor model"));
    assert!(refused(|d| d["cpu"]["features"] = json!({ "a": "b,c=d" })).contains("no value of a processor feature"));
    assert!(refused(|d| d["kernel"]["image"] = json!("/boot/vmlinuz")).contains("no blob name"));
    assert!(refused(|d| d["nics"][0]["network"] = json!("a/b")).contains("no network name"));
    assert!(refused(|d| d["nics"][0]["mac"] = json!("ff:ff:ff:ff:ff:ff")).contains("no MAC address"));
    assert!(refused(|d| d["name"] = json!("a\u{0}b")).contains("no VM name"));
}

#[test]
fn words_and_numbers_out_of_bounds_are_refused() {
    assert!(refused(|d| d["accelerator"] = json!("xen")).contains("unknown variant `xen`"));
    assert!(refused(|d| d["disks"][0]["bus"] = json!("usb")).contains("unknown variant `usb`"));
    assert!(refused(|d| d["memory_mib"] = json!(0)).contains("memory_mib"));
    assert!(refused(|d| d["memory_mib"] = json!(1u64 << 60)).contains("memory_mib"));
    assert!(refused(|d| d["memory_mib"] = json!(-1)).contains("invalid value"));
    assert!(refused(|d| d["cpu"]["cores"] = json!(0)).contains("number of processors"));
    assert!(refused(|d| d["cpu"]["cores"] = json!(u32::MAX)).contains("number of processors"));
    assert!(refused(|d| d["disks"][0]["logical_block"] = json!(520)).contains("sector sizes"));
    assert!(refused(|d| d["disks"][0]["logical_block"] = json!(4096)).contains("sector sizes"));
    assert!(refused(|d| d["disks"][0]["disk"] = json!(65536)).contains("invalid value"));
    assert!(refused(|d| d["machine"] = json!("virt-10.0")).contains("machine type virt-10.0 is not supported"));
}

#[test]
fn parts_that_do_not_go_together_are_refused() {
    assert!(refused(|d| d["disks"][1]["disk"] = json!(0)).contains("the same disk twice"));
    assert!(refused(|d| d["nics"] = json!([d["nics"][0], d["nics"][0]])).contains("the same MAC address twice"));
    let rtc = refused(|d| d["machine_options"] = json!({ "rtc": "on" }));
    assert!(rtc.contains("machine type pc-q35-10.0 has no option rtc"), "{rtc}");
    assert!(refused(|d| d["machine_options"] = json!({ "firmware": "on" })).contains("unknown variant `firmware`"));
    assert!(refused(|d| d["machine_options"] = json!({ "hpet": "/x" })).contains("unknown variant `/x`"));
    assert!(refused(|d| d["nics"][0]["boot"] = json!(1)).contains("boot order"));
    assert!(refused(|d| d["nics"][0]["place"]["port"] = json!(0)).contains("taken twice"));
    assert!(refused(|d| d["nics"][0]["place"]["port"] = json!(2)).contains("root port that is not there"));
    assert!(refused(|d| d["nics"][0]["place"] = json!({ "slot": 32 })).contains("no PCI place"));
    assert!(refused(|d| d["disks"][1]["place"] = json!({ "slot": 9 })).contains("no PCI place of its own"));
    assert!(refused(|d| d["disks"][0]["bus"] = json!("ide")).contains("disk-0: this machine type has no ide"));
    assert!(refused(|d| d["disks"][0]["wwn"] = json!(1)).contains("no world wide name"));
    assert!(refused(|d| d["machine"] = json!("pc-i440fx-10.0")).contains("no PCI Express root ports"));
    let nvme = refused(|d| d["disks"][1] = json!({ "disk": 1, "bus": "nvme" }));
    assert!(nvme.contains("disk-1: an NVMe disk needs a serial number"), "{nvme}");
    let many = (0..300).map(|n| json!({ "disk": n, "bus": "virtio-scsi" })).collect::<Vec<_>>();
    assert!(refused(|d| d["disks"] = json!(many)).contains("more than 256 disks"));
    let micro = |d: &mut Value| {
        d["machine"] = json!("microvm");
        d["machine_options"] = json!({});
        d["root_ports"] = json!([]);
        d["disks"] = json!([]);
        d["nics"] = json!([]);
    };
    let mut microvm = example();
    micro(&mut microvm);
    read(&microvm).unwrap();
    for (field, value) in [("firmware", "uefi"), ("video", "vga")] {
        assert!(
            refused(|d| {
                micro(d);
                d[field] = json!(value);
            })
            .contains("a microvm has no")
        );
    }
}

#[test]
fn a_libvirt_domain_is_recognised_and_refused() {
    let dumps = [
        "<domain type='kvm' id='3'>\n  <name>web</name>\n</domain>\n",
        "\u{feff}<?xml version=\"1.0\"?>\n<!-- edited by hand -->\n<domain type=\"kvm\"><name>web</name></domain>",
    ];
    for dump in dumps {
        let err = Definition::from_json(dump.as_bytes()).unwrap_err();
        assert!(matches!(err, DocumentError::Libvirt), "{err}");
        assert!(err.to_string().starts_with("this is a libvirt domain in XML, which is not supported"));
    }
}

#[test]
fn anything_else_is_no_vm_definition_and_says_why() {
    let said = |text: &[u8]| Definition::from_json(text).unwrap_err().to_string();
    assert_eq!(said(b""), "not a VM definition: it is empty");
    assert_eq!(said(b" \n"), "not a VM definition: it is empty");
    assert_eq!(said(b"<html></html>"), "not a VM definition: it is XML, and no libvirt domain either");
    assert_eq!(said(b"\xff\xfe{}"), "not a VM definition: not UTF-8 text");
    assert_eq!(said(b"{}"), "not a VM definition: \"format\" is not \"understudy-machine\"");
    assert_eq!(said(br#"{"format": "understudy-machine"}"#), "not a VM definition: it has no \"version\"");
    assert!(said(b"bios: 1\nboot: order=scsi0").starts_with("not a VM definition: expected value at line 1"));
    assert!(said(&vec![b' '; DOCUMENT_MAX + 1]).contains("at most 262144 are read"));
    assert!(said("[".repeat(100_000).as_bytes()).starts_with("not a VM definition: "));
    let newer = Definition::from_json(br#"{"format": "understudy-machine", "version": 2, "pods": []}"#).unwrap_err();
    assert!(matches!(newer, DocumentError::Version { found: 2 }));
    assert_eq!(newer.to_string(), "VM definition of version 2, and this program reads version 1");
}

proptest! {
    #[test]
    fn bytes_of_any_kind_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let _ = Definition::from_json(&bytes);
    }

    /// One value of the example exchanged for any other: whatever is still read is written back as it is.
    #[test]
    fn what_is_read_is_written_back(at in any::<prop::sample::Index>(), value in anything()) {
        let mut document = example();
        let paths = paths(&document, String::new());
        *document.pointer_mut(&paths[at.index(paths.len())]).unwrap() = value;
        if let Ok(definition) = read(&document) {
            prop_assert_eq!(Definition::from_json(&definition.to_json()).unwrap(), definition);
        }
    }
}

fn anything() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<u16>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        "[a-z0-9:, /-]{0,20}".prop_map(Value::from),
        ".{0,20}".prop_map(Value::from),
        Just(json!([])),
        Just(json!({})),
    ]
}

fn paths(value: &Value, at: String) -> Vec<String> {
    let below = match value {
        Value::Object(object) => object.iter().flat_map(|(name, v)| paths(v, format!("{at}/{name}"))).collect(),
        Value::Array(list) => list.iter().enumerate().flat_map(|(n, v)| paths(v, format!("{at}/{n}"))).collect(),
        _ => Vec::new(),
    };
    [at].into_iter().chain(below).collect()
}
