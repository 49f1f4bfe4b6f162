use proptest::prelude::*;

use super::*;
use crate::repository::Unknown;
use crate::repository::tests::toys;
use crate::schema::Instance;
use crate::value::Value;

fn select(text: &str) -> Select {
    match Query::parse(text, Language::Wql).unwrap_or_else(|err| panic!("{text}: {err}")) {
        Query::Select(select) => select,
        other => panic!("{other:?}"),
    }
}

fn device() -> Instance {
    let instance = Instance::new("Toy_Motor")
        .with("BoxName", r"Toy\1 it's")
        .with("Slot", 3u16)
        .with("Caption", "Red Motor")
        .with("Speed", 1.5f32)
        .with("Samples", vec![1u32])
        .with("Anything", Instance::new("Toy_Part").with("Size", 7u8).with("Label", "x"));
    toys().complete(toys().conform(instance, Unknown::Refuse).unwrap())
}

fn selects(condition: &str) -> bool {
    let repository = toys();
    let evaluator = Evaluator::new(&repository, Language::Wql);
    evaluator.selects(&Condition::parse(condition).unwrap_or_else(|err| panic!("{condition}: {err}")), &device())
}

#[test]
fn conditions_hold_or_not() {
    for yes in [
        "Slot = 3",
        "slot <> 4",
        "Slot != 4 AND Slot >= 3 and Slot<=3",
        "3 = Slot",
        "Slot = '3'",
        "Slot = 0x3",
        "Slot < 3.5 AND Slot > -1",
        "Speed = 1.5",
        "Speed > 1 AND NOT Speed > 2",
        "Caption = 'red motor'",
        r#"Caption = "RED MOTOR""#,
        r"BoxName = 'Toy\\1 it\'s'",
        "BoxName = 'Toy\\\\1 it''s'",
        "Caption LIKE 'red%'",
        "Caption LIKE '%MOT_r'",
        "Caption LIKE '[p-s]e[^x]%'",
        "Caption NOT LIKE 'blue%'",
        "Caption LIKE '%'",
        "Notes IS NULL",
        "Notes = NULL",
        "Caption IS NOT NULL AND Caption <> NULL",
        "(Slot = 1 OR Slot = 3) AND (Speed = 1.5)",
        "NOT (Slot = 1 OR Slot = 2)",
        "Anything.Size = 7",
        "Anything ISA Toy_Part",
        "Anything ISA 'Toy_Part' AND NOT Anything ISA 'Toy_Box'",
        "__CLASS = 'Toy_Motor'",
        "__this ISA 'Toy_Device'",
        "BoxName <> Caption",
    ] {
        assert!(selects(yes), "{yes}");
    }
    for no in [
        "Slot = 4",
        "Caption LIKE 'red'",
        "Caption LIKE '_'",
        "Notes = 'x'",
        "Notes <> 'x'",
        "NOT Notes = 'x'",
        "Notes LIKE '%'",
        "NOT Notes LIKE '%'",
        "Samples = 1",
        "Slot = 'three'",
        "NOT Slot = 'three'",
        "Notes = 'x' AND Slot = 3",
        "Anything.Size = 8",
        "Anything.Nothing.Size = 7",
        "Anything ISA Toy_Box",
    ] {
        assert!(!selects(no), "{no}");
    }
    // One that cannot be told does not spoil another that holds.
    assert!(selects("Notes = 'x' OR Slot = 3"));
}

#[test]
fn moments_booleans_and_references_compare_as_what_they_are() {
    let repository = toys();
    let instance = Instance::new("Toy_Clock")
        .with("Now", DateTime::parse("20250301120000.000000+060").unwrap())
        .with("On", true)
        .with("For", DateTime::parse("00000001000000.000000:000").unwrap())
        .with("Box", ObjectPath::parse(r#"root/toy:Toy_Box.Name="b""#).unwrap());
    let evaluator = Evaluator::new(&repository, Language::Cql);
    let selects = |text: &str| evaluator.selects(&Condition::parse(text).unwrap(), &instance);
    assert!(selects("Now = '20250301110000.000000+000' AND Now > '2025-03-01T10:59:59Z'"));
    assert!(selects("On = TRUE AND On = 1 AND On <> false AND On = 'true'"));
    assert!(selects("For < '00000001000000.000001:000'"));
    assert!(!selects("For < Now") && !selects("Now > 'yesterday'"));
    assert!(selects(r#"Box = 'Toy_Box.Name="b"'"#) && !selects(r#"Box = 'Toy_Box.Name="c"'"#));
    assert!(!selects("Box < 'Toy_Box.Name=\"b\"'"));
    // Case counts outside of WQL.
    let box_ = Instance::new("Toy_Box").with("Name", "A");
    assert!(!evaluator.selects(&Condition::parse("Name = 'a'").unwrap(), &box_));
    assert!(!evaluator.selects(&Condition::parse("Name LIKE 'a'").unwrap(), &box_));
}

#[test]
fn queries_that_tools_send_are_understood() {
    let all = select("select * from Toy_Device");
    assert_eq!((all.properties, all.condition), (None, None));
    let some =
        select("SELECT Caption, Toy_Device.Slot FROM Toy_Device WHERE Toy_Device.Slot = 1 AND Caption LIKE '%x%'");
    assert_eq!(some.properties, Some(vec![PropertyPath(vec!["Caption".into()]), PropertyPath(vec!["Slot".into()])]));
    assert_eq!(some.condition.unwrap().properties().len(), 2);
    let event = select(
        "SELECT * FROM __InstanceModificationEvent WITHIN 0.5 WHERE TargetInstance ISA 'Toy_Device' AND TargetInstance.State = 2",
    );
    assert_eq!((event.class.as_str(), event.within), ("__InstanceModificationEvent", Some(0.5)));
    let cql = "SELECT * FROM CIM_InstModification WHERE SourceInstance ISA Toy_Device AND SourceInstance.Toy_Device::State <> 2";
    let Ok(Query::Select(cql)) = Query::parse(cql, Language::Cql) else { panic!() };
    assert_eq!(cql.condition.unwrap().properties()[1], &PropertyPath(vec!["SourceInstance".into(), "State".into()]));
    let text = r#"ASSOCIATORS OF {Toy_Device.BoxName='a}b',Slot=1} WHERE AssocClass = Toy_Holds ResultClass=Toy_Box Role = Held ResultRole = Holder ClassDefsOnly"#;
    let Ok(Query::Associators(found)) = Query::parse(text, Language::Wql) else { panic!() };
    assert_eq!(found.source.key_str("BoxName"), Some("a}b"));
    assert_eq!((found.association_class, found.result_class), (Some("Toy_Holds".into()), Some("Toy_Box".into())));
    assert_eq!((found.role, found.result_role, found.classes_only), (Some("Held".into()), Some("Holder".into()), true));
    let text = r#"references of {\\.\root\toy:Toy_Box="a\\b"} where ResultClass = Toy_Holds"#;
    let Ok(Query::References(found)) = Query::parse(text, Language::Wql) else { panic!() };
    assert_eq!(found.result_class, Some("Toy_Holds".into()));
    assert_eq!(Language::parse("DMTF:CQL"), Some(Language::Cql));
    assert_eq!(Language::parse("SQL"), None);
}

#[test]
fn what_is_no_query_is_refused() {
    for text in [
        "",
        "SELECT",
        "SELECT FROM A",
        "SELECT * FROM",
        "SELECT * FROM A WHERE",
        "SELECT * FROM A B",
        "SELECT a, FROM A",
        "SELECT * FROM A WHERE b",
        "SELECT * FROM A WHERE b = ",
        "SELECT * FROM A WHERE b = 'x",
        "SELECT * FROM A WHERE b LIKE 5",
        "SELECT * FROM A WHERE b NOT 5",
        "SELECT * FROM A WHERE b < NULL",
        "SELECT * FROM A WHERE (b = 1",
        "SELECT * FROM A WHERE b = 1z",
        "SELECT * FROM A WHERE b ; 1",
        "SELECT * FROM A WITHIN x",
        "DELETE FROM A",
        "ASSOCIATORS OF {A.b=1",
        "ASSOCIATORS OF {b=}",
        "ASSOCIATORS OF {A.b=1} WHERE Colour = red",
        "REFERENCES OF {A.b=1} WHERE AssocClass = C",
    ] {
        assert!(Query::parse(text, Language::Wql).is_err(), "{text}");
    }
    assert!(Query::parse("Slot = 3", Language::Fql).is_err());
    assert!(Query::parse("ASSOCIATORS OF {A.b=1}", Language::Cql).is_err());
    let deep = format!("{}a = 1{}", "(".repeat(40), ")".repeat(40));
    assert_eq!(Condition::parse(&deep), Err(QueryError::TooDeep));
    assert_eq!(Condition::parse(&"NOT ".repeat(40)), Err(QueryError::TooDeep));
    assert_eq!(Condition::parse(&"a=1 OR ".repeat(4_000)), Err(QueryError::TooLong));
    assert_eq!(Condition::parse(&" ".repeat(QUERY_LEN_MAX + 1)), Err(QueryError::TooLong));
}

#[test]
fn patterns_that_try_hard_end_all_the_same() {
    let text = "a".repeat(5_000);
    let instance = Instance::new("Toy_Box").with("Name", text.as_str());
    let repository = toys();
    let evaluator = Evaluator::new(&repository, Language::Wql);
    let condition = Condition::Like(PropertyPath(vec!["Name".into()]), format!("%{}b", "a".repeat(1_000)));
    assert!(!evaluator.selects(&condition, &instance) && !evaluator.is_exhausted());
    // A query has only so much work in it, whatever it asks.
    let all = Condition::Or(vec![condition; 10]);
    assert!(!evaluator.selects(&all, &instance) && evaluator.is_exhausted());
}

proptest! {
    #[test]
    fn any_text_is_read_or_refused(text in r#"(SELECT|FROM|WHERE|NOT|AND|OR|LIKE|IS|NULL|ISA|a|B\.c|'x'|"y"|[0-9]{1,3}|[-.*(),=<>{}\\ ]){0,20}"#) {
        let _ = Query::parse(&text, Language::Wql);
        if let Ok(condition) = Condition::parse(&text) {
            let repository = toys();
            Evaluator::new(&repository, Language::Wql).selects(&condition, &device());
        }
    }

    #[test]
    fn like_agrees_with_a_plain_search(text in "[ab]{0,8}", pattern in "[ab%_]{0,6}") {
        fn plain(text: &[u8], pattern: &[u8]) -> bool {
            match pattern.split_first() {
                None => text.is_empty(),
                Some((b'%', rest)) => (0..=text.len()).any(|n| plain(&text[n..], rest)),
                Some((b'_', rest)) => !text.is_empty() && plain(&text[1..], rest),
                Some((c, rest)) => text.first() == Some(c) && plain(&text[1..], rest),
            }
        }
        let instance = Instance::new("Toy_Box").with("Name", Value::from(text.as_str()));
        let repository = toys();
        let evaluator = Evaluator::new(&repository, Language::Wql);
        let condition = Condition::Like(PropertyPath(vec!["Name".into()]), pattern.clone());
        prop_assert_eq!(evaluator.selects(&condition, &instance), plain(text.as_bytes(), pattern.as_bytes()));
    }
}
