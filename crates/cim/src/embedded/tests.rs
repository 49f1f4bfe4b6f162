use super::*;
use crate::repository::Unknown;
use crate::repository::tests::toys;
use crate::value::{Scalar, Value};

fn device() -> Instance {
    let instance = Instance::new("Toy_Device")
        .with("BoxName", "a & <b>")
        .with("Slot", 3u16)
        .with("Notes", Value::Null)
        .with("Samples", vec![1u32, 2])
        .with("Parts", vec![Instance::new("Toy_Part").with("Size", 7u8)]);
    toys().conform(instance, Unknown::Refuse).unwrap()
}

fn understood(text: &str) -> Instance {
    toys().conform(read(text).unwrap_or_else(|err| panic!("{text}: {err:?}")), Unknown::Ignore).unwrap()
}

#[test]
fn every_form_that_is_written_is_read_back_the_same() {
    let device = device();
    let path = ObjectPath::parse(r#"//host/root/toy:Toy_Device.BoxName="a",Slot=3"#).unwrap();
    assert_eq!(understood(&to_cim_xml(&device)), device);
    assert_eq!(understood(&to_mof(&device)), device);
    assert_eq!(understood(&to_wmi_xml(&device, None)), device);
    let wmi = to_wmi_xml(&device, Some(&path));
    assert!(wmi.contains(r#"<PROPERTY NAME="__PATH" TYPE="string" CLASSORIGIN="___SYSTEM"><VALUE>\\host\root\toy:Toy_Device.BoxName=&quot;a&quot;,Slot=3</VALUE>"#), "{wmi}");
    assert_eq!(understood(&wmi), device);
}

#[test]
fn what_wmi_adds_is_passed_over() {
    let text = "\u{feff}<?xml version=\"1.0\" encoding=\"utf-16\"?>\r\n<DECLARATIONS><DECLGROUP><VALUE.OBJECT>\
        <INSTANCE CLASSNAME=\"toy_device\"><QUALIFIER NAME=\"dynamic\" TYPE=\"boolean\"><VALUE>TRUE</VALUE></QUALIFIER>\
        <PROPERTY NAME=\"__CLASS\" CLASSORIGIN=\"___SYSTEM\" TYPE=\"string\"><VALUE>Toy_Device</VALUE></PROPERTY>\
        <PROPERTY.ARRAY NAME=\"__DERIVATION\" CLASSORIGIN=\"___SYSTEM\" TYPE=\"string\"><VALUE.ARRAY></VALUE.ARRAY></PROPERTY.ARRAY>\
        <PROPERTY NAME=\"Slot\" CLASSORIGIN=\"Toy_Device\" TYPE=\"sint32\" MODIFIED=\"TRUE\"><QUALIFIER NAME=\"CIMTYPE\" TYPE=\"string\">\
        <VALUE>uint16</VALUE></QUALIFIER><VALUE>3</VALUE></PROPERTY>\
        <PROPERTY NAME=\"Notes\" TYPE=\"string\"></PROPERTY>\
        <PROPERTY NAME=\"State\" TYPE=\"uint16\"><VALUE></VALUE></PROPERTY>\
        <PROPERTY.OBJECT NAME=\"Anything\"><VALUE.OBJECT><INSTANCE CLASSNAME=\"Toy_Part\"><PROPERTY NAME=\"Size\" TYPE=\"uint8\">\
        <VALUE>1</VALUE></PROPERTY></INSTANCE></VALUE.OBJECT></PROPERTY.OBJECT>\
        <PROPERTY.OBJECTARRAY NAME=\"Parts\"><VALUE.OBJECTARRAY><VALUE.OBJECT><INSTANCE CLASSNAME=\"Toy_Part\"></INSTANCE>\
        </VALUE.OBJECT></VALUE.OBJECTARRAY></PROPERTY.OBJECTARRAY>\
        </INSTANCE></VALUE.OBJECT></DECLGROUP></DECLARATIONS>";
    let instance = understood(text);
    let names: Vec<_> = instance.properties.iter().map(|p| p.name.as_str()).collect();
    assert_eq!(names, ["Notes", "Slot", "State", "Parts", "Anything"]);
    assert_eq!(instance.get("Slot"), &Value::from(3u16));
    assert!(instance.get("Notes").is_null() && instance.get("State").is_null());
    let part = instance.get("Anything").as_instance().unwrap();
    assert_eq!(part.get("Size"), &Value::from(1u8));
    let inner = r#"<INSTANCE CLASSNAME="Toy_Device"><PROPERTY NAME="Anything" TYPE="string" EmbeddedObject="object">
        <VALUE>&lt;INSTANCE CLASSNAME="Toy_Part"&gt;&lt;/INSTANCE&gt;</VALUE></PROPERTY></INSTANCE>"#;
    assert!(understood(inner).get("Anything").as_instance().is_some());
}

#[test]
fn embedded_properties_may_be_texts_in_any_form() {
    for text in [
        "instance of Toy_Part { Size = 7; };",
        r#"<INSTANCE CLASSNAME="Toy_Part"><PROPERTY NAME="Size" TYPE="uint8"><VALUE>7</VALUE></PROPERTY></INSTANCE>"#,
    ] {
        let instance = toys().conform(Instance::new("Toy_Device").with("Parts", vec![text]), Unknown::Refuse).unwrap();
        let Value::Array(parts) = instance.get("Parts") else { panic!() };
        let Some(Scalar::Instance(part)) = &parts[0] else { panic!() };
        assert_eq!(part.get("Size"), &Value::from(7u8));
    }
    let bad = Instance::new("Toy_Device").with("Parts", vec!["<b>"]);
    assert!(toys().conform(bad, Unknown::Refuse).is_err());
}

#[test]
fn what_is_no_instance_is_refused() {
    let long = format!("instance of A {{ B = \"{}\"; }};", "x".repeat(256 << 10));
    assert!(matches!(read(&long), Err(EmbeddedError::TooLong { .. })));
    let mut deep = r#"<INSTANCE CLASSNAME="A"></INSTANCE>"#.to_string();
    for _ in 0..=DEPTH_MAX {
        let escaped = deep.replace('&', "&amp;").replace('<', "&lt;");
        deep = format!(
            r#"<INSTANCE CLASSNAME="A"><PROPERTY NAME="B" TYPE="string" EmbeddedObject="instance"><VALUE>{escaped}</VALUE></PROPERTY></INSTANCE>"#
        );
    }
    assert!(format!("{:?}", read(&deep).unwrap_err()).contains("TooDeep"));
    for text in [
        "",
        "hello",
        "<INSTANCE/>",
        "<CLASS NAME='A'/>",
        "<DECLGROUP/>",
        "<!DOCTYPE a><INSTANCE CLASSNAME='A'/>",
        "<INSTANCE CLASSNAME='A'><PROPERTY NAME='B' TYPE='uint8'><VALUE>256</VALUE></PROPERTY></INSTANCE>",
        "<INSTANCE CLASSNAME='A'><PROPERTY NAME='B' TYPE='object'></PROPERTY></INSTANCE>",
        "<INSTANCE CLASSNAME='A'><PROPERTY NAME='B' TYPE='uint8'/><PROPERTY NAME='b' TYPE='uint8'/></INSTANCE>",
    ] {
        assert!(read(text).is_err(), "{text}");
    }
}
