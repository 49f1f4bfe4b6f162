use super::*;
use crate::mof::class_text;
use crate::path::{KeyValue, ObjectPath};
use crate::schema::{Embedded, Instance, has};
use crate::value::{CimType, Scalar, Value};

/// A small world: boxes that hold devices, and a service.
pub(crate) const TOYS: &str = r#"
[Abstract, Description("Anything.")]
class Toy_Element {
  [Description("What people call it.")] string Caption = "toy";
  [Write] string Notes;
};
[Version("1.0")]
class Toy_Box : Toy_Element {
  [Key, MaxLen(64)] string Name;
};
class Toy_Device : Toy_Element {
  [Key] string BoxName;
  [Key] uint16 Slot;
  [Override("Caption"), Description("What is printed on it."), Write] string Caption = "device";
  [ValueMap{"0","1"}, Values{"Off","On"}] uint16 State = 0;
  uint32 Samples[4];
  [EmbeddedInstance("Toy_Part")] string Parts[];
  [EmbeddedObject] string Anything;
  [Description("Starts again.")] uint32 Reset([In, Description("How hard.")] uint16 Level, [In(false), Out] Toy_Box REF Box);
};
class Toy_Motor : Toy_Device {
  real32 Speed;
  [Override("Reset")] uint32 Reset([In] uint16 Level, [In(false), Out] Toy_Box REF Box, [In] boolean Hard);
};
class Toy_Part { string Label; uint8 Size; };
class Toy_Clock { datetime Now; [Static] uint32 Set([In] datetime Now); };
[Association]
class Toy_Holds {
  [Key] Toy_Box REF Holder;
  [Key] Toy_Device REF Held;
};
"#;

pub(crate) fn toys() -> Repository {
    let mut repository = Repository::with_standard_qualifiers();
    repository.add_text(TOYS).unwrap_or_else(|err| panic!("{err}: {:?}", err.problem));
    repository
}

fn problem(text: &str) -> SchemaProblem {
    toys().add_text(text).expect_err(text).problem
}

fn path(text: &str) -> ObjectPath {
    ObjectPath::parse(text).unwrap()
}

#[test]
fn a_class_has_what_it_inherits_with_its_origin() {
    let toys = toys();
    let motor = toys.class(&"TOY_MOTOR".into()).unwrap();
    let property = |name: &str| crate::schema::find(&motor.properties, name).unwrap();
    assert_eq!(motor.properties.len(), 9);
    assert_eq!(property("Notes").class_origin, Some("Toy_Element".into()));
    assert_eq!(property("Caption").class_origin, Some("Toy_Device".into()));
    assert!(property("Caption").is_propagated && !property("Speed").is_propagated);
    assert_eq!(property("Caption").value, Value::from("device"));
    assert!(property("Slot").is_key() && property("Slot").kind.base == CimType::Uint16);
    assert_eq!(property("Parts").kind.embedded, Some(Embedded::Instance));
    assert_eq!(property("Parts").kind.class, Some("Toy_Part".into()));
    assert_eq!(property("Anything").kind.embedded, Some(Embedded::Object));
    let reset = &motor.methods[0];
    assert!(!reset.is_propagated && reset.parameters.len() == 3);
    assert!(reset.parameters[1].is_out() && !reset.parameters[1].is_in());
    // From the method and the parameter that it overrides.
    assert!(crate::schema::find(&reset.qualifiers, "Description").unwrap().is_propagated);
    assert!(crate::schema::find(&reset.parameters[0].qualifiers, "Description").is_some());
}

#[test]
fn qualifiers_travel_by_their_flavors() {
    let toys = toys();
    let device = toys.class(&"Toy_Device".into()).unwrap();
    // Restricted: the class below an abstract one is not abstract.
    assert!(toys.class(&"Toy_Element".into()).unwrap().is_abstract() && !device.is_abstract());
    assert_eq!(crate::schema::find(&device.qualifiers, "Description").unwrap().value, Value::from("Anything."));
    let caption = crate::schema::find(&device.properties, "Caption").unwrap();
    assert_eq!(
        crate::schema::find(&caption.qualifiers, "Description").unwrap().value,
        Value::from("What is printed on it.")
    );
    assert!(has(&caption.qualifiers, "Write"));
    let motor = toys.class(&"Toy_Motor".into()).unwrap();
    let caption = crate::schema::find(&motor.properties, "Caption").unwrap();
    assert!(crate::schema::find(&caption.qualifiers, "Override").is_none());
    assert_eq!(
        problem("class A : Toy_Box { [Override(\"Name\"), Key(false)] string Name; };"),
        SchemaProblem::NotOverridable { name: "Key".into() }
    );
}

#[test]
fn who_extends_whom_is_known() {
    let toys = toys();
    let names = |classes: Vec<&Class>| classes.into_iter().map(|class| class.name.to_string()).collect::<Vec<_>>();
    assert!(
        toys.is_a(&"toy_motor".into(), &"Toy_Element".into()) && !toys.is_a(&"Toy_Box".into(), &"Toy_Device".into())
    );
    assert_eq!(names(toys.family(&"Toy_Element".into())), ["Toy_Element", "Toy_Box", "Toy_Device", "Toy_Motor"]);
    assert_eq!(names(toys.subclasses(Some(&"Toy_Element".into()))), ["Toy_Box", "Toy_Device"]);
    assert_eq!(names(toys.subclasses(None)), ["Toy_Clock", "Toy_Element", "Toy_Holds", "Toy_Part"]);
    assert!(toys.family(&"Nothing".into()).is_empty());
}

#[test]
fn declarations_that_make_no_sense_are_refused() {
    let name = || Name::from("A");
    assert_eq!(problem("class toy_box {};"), SchemaProblem::Exists { name: "toy_box".into() });
    assert_eq!(problem("class A : B {};"), SchemaProblem::Superclass { name: "B".into() });
    assert_eq!(problem("[Nice] class A {};"), SchemaProblem::Qualifier { name: "Nice".into() });
    assert_eq!(problem("[Key] class A {};"), SchemaProblem::Scope { name: "Key".into() });
    assert_eq!(problem("[Association] class A { [Key] B REF A; };"), SchemaProblem::Class { name: "B".into() });
    assert_eq!(problem("class A { Toy_Box REF A; };"), SchemaProblem::Reference { name: name() });
    assert_eq!(problem("class A : Toy_Box { string Name; };"), SchemaProblem::NeedsOverride { name: "Name".into() });
    assert_eq!(
        problem("class A : Toy_Box { [Override(\"Name\")] uint8 Name; };"),
        SchemaProblem::OverrideType { name: "Name".into() }
    );
    assert_eq!(
        problem("class A : Toy_Box { [Override(\"Name\")] string A; };"),
        SchemaProblem::Override { name: name() }
    );
    assert_eq!(problem("class A : Toy_Box { [Override(\"A\")] string A; };"), SchemaProblem::Override { name: name() });
    assert_eq!(problem("[Association] class A : Toy_Box { };"), SchemaProblem::Association);
    assert!(matches!(problem("class A { uint8 B = 256; };"), SchemaProblem::Mof(_)));
    assert!(matches!(problem("class A { uint8 B = {1}; };"), SchemaProblem::Mof(_)));
    assert!(matches!(problem("[Version(1)] class A {};"), SchemaProblem::Mof(_)));
    // A reference may become more special, never less.
    assert!(toys().add_text("[Association] class A : Toy_Holds { [Override(\"Held\")] Toy_Motor REF Held; };").is_ok());
    assert!(toys().add_text("[Association] class A : Toy_Holds { [Override(\"Held\")] Toy_Box REF Held; };").is_err());
    let late = "[Association] class A : Toy_Holds { [Override(\"Held\")] B REF Held; }; class B : Toy_Box {};";
    assert_eq!(problem(late), SchemaProblem::OverrideType { name: "Held".into() });
    let mut row: String = (1..ANCESTORS_MAX + 5).map(|n| format!("class C{n} : C{} {{}};", n - 1)).collect();
    row.insert_str(0, "class C0 {};");
    assert_eq!(problem(&row), SchemaProblem::TooManyAncestors);
}

#[test]
fn a_class_that_was_written_is_understood_the_same() {
    let toys = toys();
    let mut again = Repository::with_standard_qualifiers();
    let mut text = String::new();
    for top in toys.subclasses(None) {
        toys.family(&top.name).into_iter().for_each(|class| text.push_str(&class_text(class)));
    }
    again.add_text(&text).unwrap_or_else(|err| panic!("{err}\n{text}"));
    for class in toys.classes() {
        assert_eq!(again.class(&class.name), Some(class), "{}", class_text(class));
    }
}

#[test]
fn instances_take_the_types_of_their_class() {
    let toys = toys();
    let sent = Instance::new("toy_device")
        .with("slot", 3i64)
        .with("BoxName", "b")
        .with("Samples", vec![1i64, 2])
        .with("__PATH", "x");
    assert_eq!(
        toys.conform(sent.clone(), Unknown::Refuse),
        Err(InstanceProblem::Property { class: "Toy_Device".into(), property: "__PATH".into() })
    );
    let instance = toys.conform(sent, Unknown::Ignore).unwrap();
    let names: Vec<_> = instance.properties.iter().map(|p| p.name.as_str()).collect();
    assert_eq!((instance.class.as_str(), names), ("Toy_Device", vec!["BoxName", "Slot", "Samples"]));
    assert_eq!(instance.get("Slot"), &Value::from(3u16));
    assert_eq!(instance.get("Samples"), &Value::from(vec![1u32, 2]));
    let whole = toys.complete(instance);
    assert_eq!(whole.properties.len(), 8);
    assert_eq!(whole.property("Parts").unwrap().kind.base, CimType::String);
    assert_eq!(toys.instance_of(&"Toy_Device".into()).unwrap().get("State"), &Value::from(0u16));
    for bad in [
        Instance::new("Toy_Device").with("Slot", 65_536),
        Instance::new("Toy_Device").with("Samples", vec![1u8; 5]),
        Instance::new("Toy_Device").with("Parts", Instance::new("Toy_Part").with("Size", 256)),
        Instance::new("Toy_Nothing"),
    ] {
        assert!(toys.conform(bad.clone(), Unknown::Ignore).is_err(), "{bad:?}");
    }
    let parts = Instance::new("Toy_Device").with("Parts", Instance::new("toy_part").with("size", 5));
    let Value::Array(parts) = toys.conform(parts, Unknown::Refuse).unwrap().get("Parts").clone() else { panic!() };
    assert_eq!(parts[0], Some(Scalar::from(Instance { class: "Toy_Part".into(), properties: instance_part() })));
}

fn instance_part() -> Vec<Property> {
    let part = toys().conform(Instance::new("Toy_Part").with("Size", 5u8), Unknown::Refuse).unwrap();
    part.properties
}

#[test]
fn paths_get_their_declared_names_types_and_order() {
    let toys = toys();
    let complete = |text: &str| toys.complete_path(&path(text)).map(|path| path.to_string());
    assert_eq!(complete(r#"x:toy_device.slot="3",boxname="b""#).unwrap(), r#"x:Toy_Device.BoxName="b",Slot=3"#);
    assert_eq!(complete(r#"Toy_Box="b""#).unwrap(), r#"Toy_Box.Name="b""#);
    assert_eq!(complete(r#"Toy_Box=5"#).unwrap(), r#"Toy_Box.Name="5""#);
    assert_eq!(complete("Toy_Clock=@").unwrap(), "Toy_Clock=@");
    assert_eq!(complete("toy_clock").unwrap(), "Toy_Clock");
    let holds = r#"Toy_Holds.Held="Toy_Device.Slot=1,BoxName=\"b\"",Holder="x:Toy_Box=\"b\"""#;
    let completed = toys.complete_path(&path(holds)).unwrap();
    assert!(matches!(completed.key("Holder"), Some(KeyValue::Reference(path)) if path.key_str("Name") == Some("b")));
    assert_eq!(completed.key("Held").unwrap().plain(), r#"Toy_Device.BoxName="b",Slot=1"#);
    let class = || Name::from("Toy_Device");
    assert_eq!(complete(r#"Toy_Device="b""#), Err(InstanceProblem::NotOneKey { class: class() }));
    assert_eq!(
        complete(r#"Toy_Device.Slot=3"#),
        Err(InstanceProblem::MissingKey { class: class(), key: "BoxName".into() })
    );
    assert_eq!(
        complete(r#"Toy_Device.Slot=3,BoxName="b",X=1"#),
        Err(InstanceProblem::UnknownKey { class: class(), key: "X".into() })
    );
    assert_eq!(
        complete(r#"Toy_Device.Slot="x",BoxName="b""#),
        Err(InstanceProblem::Key { class: class(), key: "Slot".into() })
    );
    assert!(complete("Nothing=@").is_err());
    let instance = Instance::new("Toy_Device").with("Slot", 3u16).with("BoxName", "b");
    assert_eq!(toys.path_of(&instance).unwrap().to_string(), r#"Toy_Device.BoxName="b",Slot=3"#);
    assert!(toys.path_of(&Instance::new("Toy_Device").with("Slot", 3u16)).is_err());
}

#[test]
fn instances_in_a_text_may_refer_to_each_other() {
    let text = r#"
instance of Toy_Box as $B { Name = "b"; };
instance of Toy_Device as $D { BoxName = "b"; Slot = 1; Parts = {instance of Toy_Part { Size = 2; }}; };
instance of Toy_Holds { Holder = $B; Held = $D; };
"#;
    let made = toys().add_text(text).unwrap();
    assert_eq!(made[2].path.key("Held").unwrap().plain(), r#"Toy_Device.BoxName="b",Slot=1"#);
    assert_eq!(made[1].instance.get("Slot"), &Value::from(1u16));
    assert!(toys().add_text("instance of Toy_Holds { Holder = $X; };").is_err());
    assert!(toys().add_text("instance of Toy_Box { };").is_err());
}

#[test]
fn a_view_shows_what_was_asked_for() {
    let toys = toys();
    let motor = toys.class(&"Toy_Motor".into()).unwrap();
    let local = View { local_only: true, qualifiers: false, class_origin: false, properties: None }.class(motor);
    assert_eq!((local.properties.len(), local.methods.len()), (1, 1));
    assert!(local.qualifiers.is_empty() && local.properties[0].class_origin.is_none());
    assert!(local.methods[0].parameters.iter().all(|parameter| parameter.qualifiers.is_empty()));
    let some = View { properties: Some(vec!["slot".into(), "nothing".into()]), ..View::default() };
    assert_eq!(some.class(motor).properties.len(), 1);
    assert_eq!(some.instance(&toys.instance_of(&motor.name).unwrap()).properties.len(), 1);
    assert_eq!(View { properties: Some(Vec::new()), ..View::default() }.class(motor).properties.len(), 0);
}
