use proptest::prelude::*;

use super::*;

fn parse(text: &str) -> ObjectPath {
    ObjectPath::parse(text).unwrap_or_else(|err| panic!("{text}: {err}"))
}

#[test]
fn every_spelling_leads_to_the_same_instance() {
    let wanted = ObjectPath::instance("Toy_Device", [("Name", "a"), ("Bus", "2")]).within(&"root/toy/v2".into());
    for text in [
        r#"root/toy/v2:Toy_Device.Name="a",Bus=2"#,
        r#"/root/toy/v2:Toy_Device.Name="a",Bus=2"#,
        r#"ROOT\toy\v2:toy_device.bus=0x2 , NAME='a'"#,
        r#"//host/root/toy/v2:Toy_Device.Bus=2,Name="a""#,
        r#"\\.\root\toy\v2:Toy_Device.Name="a",Bus=2"#,
        r#"\\HOST\root\toy\v2:Toy_Device.Name="a",Bus=2"#,
        r#"https://host:5989/root/toy/v2:Toy_Device.Name="a",Bus=2"#,
        r#"//[::1]:5988/root/toy/v2:Toy_Device.Name="a",Bus=2"#,
        r#"Toy_Device.Name="a",Bus=2"#,
    ] {
        assert!(parse(text).matches(&wanted), "{text}: {:?}", parse(text));
    }
    assert_eq!(parse(r"\\HOST\root\toy:C").host.as_deref(), Some("HOST"));
    assert_eq!(parse("//[::1]:5988/root/toy:C").host.as_deref(), Some("[::1]:5988"));
    assert_eq!(parse("//./root/toy:C").host, None);
}

#[test]
fn classes_singletons_and_single_keys_are_told_apart() {
    assert!(parse("Toy_Device").is_class());
    assert!(parse("root/toy:Toy_Device").is_class());
    assert_eq!(parse("Toy_Service=@").keys, Keys::Singleton);
    assert_eq!(parse("Toy_Device=\"a:b.c\"").keys, Keys::Single("a:b.c".into()));
    assert_eq!(parse("Toy_Device=5").keys, Keys::Single(KeyValue::Integer(5)));
    assert!(parse("Toy_Device=\"A\"").matches(&parse("Toy_Device.Name=\"a\"")));
    assert!(!parse("Toy_Device").matches(&parse("Toy_Device=\"a\"")));
    assert!(!parse("root/a:Toy_Device=\"a\"").matches(&parse("root/b:Toy_Device=\"a\"")));
}

#[test]
fn quotes_and_backslashes_in_values_are_understood() {
    let value = |text: &str| parse(text).key("K").cloned().unwrap().plain();
    assert_eq!(value(r#"C.K="a\"b\\c""#), r#"a"b\c"#);
    assert_eq!(value(r#"C.K='it\'s'"#), "it's");
    assert_eq!(value(r#"C.K="Toy:1\\2\\3""#), r"Toy:1\2\3");
    // Not escaped, as people write file names.
    assert_eq!(value(r#"C.K="C:\dir\new""#), r"C:\dir\new");
    assert_eq!(value(r#"C.K="x=y,z.w""#), "x=y,z.w");
    let outer = parse(r#"A.Left="root/toy:B.K=\"a\\\\b\"",Right="C=@""#);
    let inner = parse(outer.key_str("Left").unwrap());
    assert_eq!(inner.key_str("K"), Some(r"a\b"));
    assert!(KeyValue::Reference(Box::new(inner)).matches(outer.key("Left").unwrap()));
}

#[test]
fn what_is_no_path_is_refused() {
    for text in [
        "",
        ".",
        ":",
        "root/toy:",
        "C.K",
        "C.K=",
        "C.K=\"a",
        "C.K=\"a\"x",
        "C.K=\"a\",",
        "C.=1",
        "C.K=word",
        "C=1,2",
        "1C.K=1",
    ] {
        assert!(ObjectPath::parse(text).is_err(), "{text}");
    }
    assert_eq!(ObjectPath::parse("C.K=1,k=2"), Err(PathError::Twice { key: "K".into() }));
    let many: Vec<String> = (0..=KEYS_MAX).map(|n| format!("K{n}={n}")).collect();
    assert_eq!(ObjectPath::parse(&format!("C.{}", many.join(","))), Err(PathError::TooManyKeys));
    assert!(matches!(ObjectPath::parse(&"C".repeat(PATH_LEN_MAX + 1)), Err(PathError::TooLong { .. })));
}

#[test]
fn each_reader_gets_the_form_it_knows() {
    let mut path = parse(r#"root/toy:Toy_Device.Name="a\\b",On=TRUE"#);
    path.host = Some("h".into());
    assert_eq!(path.to_wbem_uri(), r#"//h/root/toy:Toy_Device.Name="a\\b",On=TRUE"#);
    assert_eq!(path.to_wmi(), r#"\\h\root\toy:Toy_Device.Name="a\\b",On=TRUE"#);
    assert_eq!(path.to_local(), r#"Toy_Device.Name="a\\b",On=TRUE"#);
    path.host = None;
    assert_eq!(path.to_string(), r#"root/toy:Toy_Device.Name="a\\b",On=TRUE"#);
    assert_eq!(path.to_wmi(), r#"\\.\root\toy:Toy_Device.Name="a\\b",On=TRUE"#);
    assert_eq!(parse("C=@").to_wbem_uri(), "C=@");
}

/// Any path; keys that are references are texts once they were written and read.
pub(crate) fn any_path() -> impl Strategy<Value = ObjectPath> {
    let value = prop_oneof![
        ".{0,12}".prop_map(KeyValue::Text),
        any::<i64>().prop_map(|n| KeyValue::Integer(n.into())),
        any::<bool>().prop_map(KeyValue::Boolean),
    ];
    let named = proptest::collection::btree_map("[A-Z][A-Za-z0-9_]{0,6}", value, 1..5);
    let named = named.prop_map(|keys| {
        let mut named: Vec<(Name, KeyValue)> = Vec::new();
        for (name, value) in keys {
            let name = Name::parse(&name).unwrap();
            if !named.iter().any(|(known, _)| *known == name) {
                named.push((name, value));
            }
        }
        Keys::Named(named)
    });
    let keys = prop_oneof![Just(Keys::None), Just(Keys::Singleton), named];
    (proptest::option::of("[a-z]{1,8}(:[0-9]{2,4})?"), proptest::option::of("[a-z]{1,4}/[a-z0-9]{1,4}"), keys).prop_map(
        |(host, namespace, keys)| {
            let namespace = namespace.map(|text| Namespace::parse(&text).unwrap());
            let host = host.filter(|_| namespace.is_some());
            ObjectPath { host, namespace, class: "Toy_Device".into(), keys }
        },
    )
}

proptest! {
    #[test]
    fn every_path_is_read_back_from_each_of_its_forms(path in any_path()) {
        prop_assert_eq!(&parse(&path.to_string()), &path);
        prop_assert_eq!(&parse(&path.to_wbem_uri()), &path);
        prop_assert_eq!(&parse(&path.to_wmi()), &path);
        prop_assert_eq!(parse(&path.to_local()), path.local());
    }

    #[test]
    fn any_text_is_read_or_refused(text in r#"[A-Za-z0-9_./\\:="',@ é-]{0,60}"#) {
        if let Ok(path) = ObjectPath::parse(&text) {
            prop_assert!(parse(&path.to_string()).matches(&path), "{}", path);
        }
    }
}
