use proptest::prelude::*;

use super::*;
use crate::schema::{Instance, Scope};

fn problem(text: &str) -> (u32, u32, MofProblem) {
    let err = parse(text).expect_err(text);
    (err.place.line, err.place.column, err.problem)
}

const DEVICE: &str = r#"
// A toy.
#pragma locale ("en_US")
Qualifier Key : boolean = false, Scope(property, reference), Flavor(DisableOverride);
Qualifier Values : string[], Scope(any), Flavor(EnableOverride, Translatable);
/* Two
   lines. */
[Abstract, Description ("A \"device\" " // goes on
   "of \x00e4 toy\\box\n"), Version("1.0")]
class Toy_Device : CIM_ManagedElement {
    [Key, MaxLen(256)] string Name;
    [Values {"Off", "On"} : Amended ToSubclass, ValueMap {"0", "1"}] uint16 State = 0x1;
    boolean Flags[4] = {true, FALSE, null};
    sint64 Numbers[] = {-5, 101b, 017, +7};
    real32 Ratio = -1.5e-3;
    char16 Letter = '\'';
    datetime Since = "20250301140000.000000+000";
    Toy_Box REF Box;
    [Static] uint32 Reset([In] uint16 Level, [In(false), Out] Toy_Job REF Job, [Out] string Lines[]);
    uint32 Stop();
};
instance of Toy_Device as $One { Name = "a"; [Description("x")] State = 1; Box = $Other; };
"#;

#[test]
fn a_text_in_every_form_is_understood() {
    let declarations = parse(DEVICE).unwrap();
    assert_eq!(declarations.len(), 5);
    assert_eq!(declarations[0], Declaration::Pragma { name: "locale".into(), argument: "en_US".into() });
    let Declaration::Qualifier(values) = &declarations[2] else { panic!() };
    assert!(values.kind.is_array() && values.scopes == Scopes::ANY);
    assert_eq!((values.flavors.overridable, values.flavors.translatable), (Some(true), Some(true)));
    let Declaration::Qualifier(key) = &declarations[1] else { panic!() };
    assert!(key.scopes.contains(Scope::Reference) && !key.scopes.contains(Scope::Class));
    let Declaration::Class(class) = &declarations[3] else { panic!() };
    assert_eq!(class.superclass, Some("CIM_ManagedElement".into()));
    assert_eq!(class.qualifiers[1].value, Some(Literal::Text("A \"device\" of ä toy\\box\n".into())));
    let property = |name: &str| class.properties.iter().find(|p| p.name.is(name)).unwrap();
    assert_eq!(property("State").default, Some(Literal::Integer(1)));
    assert_eq!(property("State").qualifiers[0].flavors.to_subclass, Some(true));
    assert_eq!(property("Flags").kind.array, Some(Some(4)));
    let numbers = [-5, 5, 15, 7].map(Literal::Integer).to_vec();
    assert_eq!(property("Numbers").default, Some(Literal::Array(numbers)));
    assert_eq!(property("Ratio").default, Some(Literal::Real(-0.0015)));
    assert_eq!(property("Letter").default, Some(Literal::Char('\'')));
    assert_eq!(property("Box").kind, Kind::reference("Toy_Box"));
    assert_eq!(class.methods[0].parameters.len(), 3);
    assert_eq!(class.methods[0].parameters[1].kind, Kind::reference("Toy_Job"));
    let Declaration::Instance(instance) = &declarations[4] else { panic!() };
    assert_eq!(instance.alias, Some("One".into()));
    assert_eq!(instance.properties[2].2, Literal::Alias("Other".into()));
}

#[test]
fn errors_say_where_and_what() {
    let (line, column, what) = problem("class A {\n  uint99 B;\n};");
    assert_eq!((line, column), (2, 3));
    assert!(matches!(what, MofProblem::Expected { found, .. } if found == "uint99"));
    assert_eq!(problem("class A {\n uint8 B;\n uint8 b; };"), (3, 8, MofProblem::Twice { name: "b".into() }));
    assert_eq!(problem("/* never"), (1, 1, MofProblem::Unclosed { what: "comment" }));
    assert_eq!(problem("class A { string B = \"x; };"), (1, 22, MofProblem::Unclosed { what: "text" }));
    assert_eq!(problem("class A { string B = \"\\q\"; };").2, MofProblem::Escape);
    assert_eq!(problem("class A { uint8 B = 12z; };").2, MofProblem::Number);
    assert_eq!(
        problem("class A { uint8 B = 1 }").2,
        MofProblem::Expected { expected: "';' behind a property", found: "'}'".into() }
    );
    assert_eq!(
        problem("clas A {};").2,
        MofProblem::Expected { expected: "a class, an instance, a qualifier or a pragma", found: "clas".into() }
    );
    assert_eq!(problem("class A {}; @").2, MofProblem::Character('@'));
    assert_eq!(problem("[A, a] class B {};").2, MofProblem::Twice { name: "a".into() });
    // A class without REF is a WMI idea.
    assert!(parse("class A { uint32 M([In] Toy_Box Box); };").is_err());
    let err = parse_files(&[("a.mof", "\n  class {};")], "a.mof").unwrap_err();
    assert_eq!(err.to_string(), "a.mof:2:9: expected a name, found '{'");
}

#[test]
fn includes_find_only_what_was_handed_in() {
    let files = [("main.mof", "#pragma include (\"parts\\\\b.mof\")\nclass A {};"), ("parts/b.mof", "class B {};")];
    let names: Vec<_> = parse_files(&files, "main.mof").unwrap();
    assert!(matches!(&names[0], Declaration::Class(class) if class.name.is("B")));
    assert_eq!(names.len(), 2);
    let strange = parse("#pragma include (\"/etc/passwd\")").unwrap_err();
    assert_eq!(strange.problem, MofProblem::Include { name: "/etc/passwd".into() });
    let circle = parse_files(&[("a", "#pragma include (\"a\")")], "a").unwrap_err();
    assert_eq!(circle.problem, MofProblem::TooDeep);
}

#[test]
fn size_count_and_depth_are_bounded() {
    assert_eq!(parse(&" ".repeat(MOF_LEN_MAX + 1)).unwrap_err().problem, MofProblem::TooLong);
    let deep = format!("{}1{}", "instance of A { B = ".repeat(40), "; }".repeat(40));
    assert_eq!(parse(&format!("{deep};")).unwrap_err().problem, MofProblem::TooDeep);
    assert_eq!(parse_instance(&deep).unwrap_err().problem, MofProblem::TooDeep);
    let many: String = (0..2_000).map(|n| format!("uint8 P{n};")).collect();
    assert_eq!(parse(&format!("class A {{ {many} }};")).unwrap_err().problem, MofProblem::TooMany { what: "members" });
    let long = format!("instance of A {{ B = {{{}}}; }};", "1,".repeat(ELEMENTS_MAX) + "1");
    assert_eq!(parse(&long).unwrap_err().problem, MofProblem::TooMany { what: "elements" });
    assert_eq!(
        parse(&"class A {};".repeat(DECLARATIONS_MAX + 1)).unwrap_err().problem,
        MofProblem::TooMany { what: "declarations" }
    );
}

#[test]
fn an_instance_can_stand_alone_with_instances_in_it() {
    let text = "\u{feff}instance of Toy_Box { Name = \"a\"; Parts = {instance of Toy_Part { Size = 18446744073709551615; }}; Gone = NULL; }";
    let instance = parse_instance(text).unwrap();
    assert_eq!(instance.get_str("name"), Some("a"));
    let Value::Array(parts) = instance.get("Parts") else { panic!() };
    let Some(Scalar::Instance(part)) = &parts[0] else { panic!() };
    assert_eq!(part.get("Size"), &Value::from(u64::MAX));
    assert!(instance.property("Gone").is_some() && instance.get("Gone").is_null());
    assert!(parse_instance("instance of A { B = $C; };").is_err());
    assert!(parse_instance("instance of A { }; class B {};").is_err());
    assert!(parse_instance("instance of A { B = 99999999999999999999999; };").is_err());
}

#[test]
fn a_qualifier_that_was_written_is_read_back() {
    let declaration = crate::schema::QualifierDeclaration {
        name: "Values".into(),
        kind: Kind::array(CimType::String),
        value: Value::from(vec!["a"]),
        scopes: Scopes::ANY,
        flavors: Flavors { overridable: Some(false), ..Flavors::default() },
    };
    let text = qualifier_text(&declaration);
    assert_eq!(text, "Qualifier Values : string[] = {\"a\"}, Scope(any), Flavor(DisableOverride);\n");
    assert!(matches!(parse(&text).unwrap().pop(), Some(Declaration::Qualifier(q)) if q.scopes == Scopes::ANY));
}

fn any_instance() -> impl Strategy<Value = Instance> {
    let scalar = crate::value::tests::any_scalar();
    let value = prop_oneof![
        Just(Value::Null),
        scalar.prop_map(Value::Scalar),
        proptest::collection::vec(proptest::option::of(any::<u32>().prop_map(Scalar::Uint32)), 0..4)
            .prop_map(Value::Array),
    ];
    proptest::collection::vec(value, 0..8).prop_map(|values| {
        let mut instance = Instance::new("Toy_Device");
        for (index, value) in values.into_iter().enumerate() {
            instance.properties.push(crate::schema::Property::of(Name::parse(&format!("P{index}")).unwrap(), value));
        }
        instance
    })
}

proptest! {
    #[test]
    fn every_instance_is_read_back_with_the_same_values(instance in any_instance()) {
        let again = parse_instance(&instance_text(&instance)).unwrap();
        prop_assert_eq!(again.properties.len(), instance.properties.len());
        for (read, written) in again.properties.iter().zip(&instance.properties) {
            prop_assert_eq!(read.value.clone().conform(&written.kind).unwrap(), written.value.clone());
        }
    }

    #[test]
    fn any_text_is_read_or_refused(text in r#"[\[\](){};:,=$"'#/*\\ \na-c0-9.xe+-]{0,80}"#) {
        let _ = parse(&text);
        let _ = parse_instance(&text);
        let _ = parse_instance(&format!("instance of a {{ b = {text}; }};"));
        let _ = parse(&format!("class a {{ {text} }};"));
    }
}
