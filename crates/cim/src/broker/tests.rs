use futures::executor::block_on;

use super::*;
use crate::path::KeyValue;
use crate::provider::Wanted;
use crate::query::Language;
use crate::schema::{Instance, NamedInstance};
use crate::toy::{NAMESPACE, NOW, Toys, broker, name};
use crate::value::{Scalar, Value};

fn path(text: &str) -> ObjectPath {
    ObjectPath::parse(text).unwrap()
}

fn caller() -> &'static String {
    static CALLER: std::sync::OnceLock<String> = std::sync::OnceLock::new();
    CALLER.get_or_init(|| "ann".to_string())
}

fn request() -> Request<'static, String> {
    Request::new(caller(), NAMESPACE.into(), NOW)
}

fn paths(found: &[NamedInstance]) -> Vec<String> {
    found.iter().map(|named| named.path.to_local()).collect()
}

fn code<T: std::fmt::Debug>(outcome: Result<T, Status>) -> StatusCode {
    outcome.expect_err("that cannot be").code
}

const LAMP: &str = r#"Toy_Device.BoxName="red",Slot=1"#;
const MOTOR: &str = r#"Toy_Motor.BoxName="red",Slot=3"#;
const SERVICE: &str = r#"Toy_Service.SystemName="toys",Name="keeper""#;

#[test]
fn instances_of_a_class_and_of_those_that_extend_it_are_found_whole() {
    let broker = broker();
    let found = block_on(broker.enumerate(&request(), &"toy_device".into())).unwrap();
    assert_eq!(paths(&found), [LAMP, r#"Toy_Device.BoxName="red",Slot=2"#, MOTOR]);
    assert_eq!(found[0].path.namespace, Some(NAMESPACE.into()));
    assert_eq!(found[1].instance.properties.len(), 16);
    assert!(found[1].instance.get("Made").is_null() && !found[1].instance.get("Samples").is_null());
    assert_eq!(code(block_on(broker.enumerate(&request(), &"Toy_Nothing".into()))), StatusCode::InvalidClass);
    let elsewhere = Request { namespace: "root/nothing".into(), ..request() };
    assert_eq!(code(block_on(broker.enumerate(&elsewhere, &"Toy_Device".into()))), StatusCode::InvalidNamespace);
}

#[test]
fn an_instance_is_found_by_its_whole_path_only() {
    let broker = broker();
    let get = |text: &str| block_on(broker.get(&request(), &path(text)));
    assert_eq!(get(LAMP).unwrap().instance.get_str("Caption"), Some("lamp"));
    assert_eq!(get(r#"toy_device.slot="1",boxname="RED""#).unwrap().path.to_local(), LAMP);
    assert_eq!(get(r#"//other/root/toy:Toy_Box="red""#).unwrap().path.to_string(), r#"root/toy:Toy_Box.Name="red""#);
    assert_eq!(code(get(r#"Toy_Device.BoxName="red",Slot=9"#)), StatusCode::NotFound);
    assert_eq!(code(get(r#"Toy_Device.BoxName="red",Slot=3"#)), StatusCode::NotFound);
    assert_eq!(code(get("Toy_Device.Slot=1")), StatusCode::InvalidParameter);
    assert_eq!(code(get("Toy_Device")), StatusCode::InvalidParameter);
    assert_eq!(code(get(r#"Toy_Box.Name="red",X=1"#)), StatusCode::InvalidParameter);
}

#[test]
fn some_keys_are_enough_when_only_one_instance_has_them() {
    let broker = broker();
    let find = |class: &str, keys: &[(&str, &str)]| {
        let keys: Vec<_> = keys.iter().map(|(key, value)| (name(key), KeyValue::from(*value))).collect();
        block_on(broker.find(&request(), &name(class), &keys)).map(|named| named.path.to_local())
    };
    assert_eq!(find("Toy_Service", &[]).unwrap(), SERVICE);
    assert_eq!(find("Toy_Service", &[("name", "KEEPER")]).unwrap(), SERVICE);
    assert_eq!(find("Toy_Device", &[("BoxName", "red"), ("Slot", "3")]).unwrap(), MOTOR);
    assert_eq!(code(find("Toy_Device", &[("BoxName", "red")])), StatusCode::InvalidParameter);
    assert_eq!(code(find("Toy_Device", &[("Slot", "77")])), StatusCode::NotFound);
    assert_eq!(code(find("Toy_Device", &[("Caption", "lamp")])), StatusCode::InvalidParameter);
    // Of several that differ in case only, the one that is meant.
    block_on(broker.create(&request(), Instance::new("Toy_Box").with("Name", "RED"))).unwrap_err();
}

#[test]
fn only_what_changes_reaches_the_provider() {
    struct Strict(Toys);
    #[async_trait::async_trait]
    impl Provider<String> for Strict {
        async fn instances(
            &self,
            context: &Context<'_, String>,
            class: &Class,
            wanted: Wanted<'_>,
        ) -> Result<Vec<Instance>, Status> {
            self.0.instances(context, class, wanted).await
        }
        async fn modify(
            &self,
            context: &Context<'_, String>,
            path: &ObjectPath,
            changes: Instance,
        ) -> Result<(), Status> {
            let names: Vec<_> = changes.properties.iter().map(|property| property.name.as_str()).collect();
            assert_eq!(names, ["Notes", "Samples"]);
            self.0.modify(context, path, changes).await
        }
    }
    let toys = Toys::new();
    let mut broker = Broker::new("h");
    broker.serve(NAMESPACE.into(), toys.repository(), Arc::new(Strict(toys)));
    let mut given = block_on(broker.get(&request(), &path(LAMP))).unwrap().instance;
    given.set("Notes", "new");
    given.set("Samples", vec![9i64]);
    block_on(broker.modify(&request(), &path(LAMP), given.clone(), None)).unwrap();
    // The same once more changes nothing, and the provider would complain.
    block_on(broker.modify(&request(), &path(LAMP), given, None)).unwrap();
    let now = block_on(broker.get(&request(), &path(LAMP))).unwrap().instance;
    assert_eq!((now.get_str("Notes"), now.get("Samples")), (Some("new"), &Value::from(vec![9u32])));
}

#[test]
fn a_change_is_held_against_the_class() {
    let broker = broker();
    let modify = |text: &str, given: Instance, names: Option<&[Name]>| {
        block_on(broker.modify(&request(), &path(text), given, names)).map(drop)
    };
    let device = || Instance::new("Toy_Device");
    assert_eq!(code(modify(LAMP, device().with("X", 1), None)), StatusCode::NoSuchProperty);
    assert_eq!(code(modify(LAMP, device().with("Samples", "x"), None)), StatusCode::TypeMismatch);
    assert_eq!(code(modify(LAMP, device().with("Slot", 2), None)), StatusCode::InvalidParameter);
    assert_eq!(code(modify(LAMP, Instance::new("Toy_Motor"), None)), StatusCode::InvalidParameter);
    assert_eq!(code(modify(r#"Toy_Box="x""#, Instance::new("Toy_Box"), None)), StatusCode::NotFound);
    assert_eq!(code(modify(LAMP, device(), Some(&["X".into()]))), StatusCode::NoSuchProperty);
    let get = || block_on(broker.get(&request(), &path(LAMP))).unwrap().instance;
    // Named and given, named and not given, given and not named.
    let given = device().with("Notes", "a").with("Slot", 1).with("State", 1);
    modify(LAMP, given, Some(&["notes".into(), "Caption".into()])).unwrap();
    assert_eq!((get().get_str("Notes"), get().get_str("Caption")), (Some("a"), Some("device")));
    assert_eq!(get().get("State"), &Value::from(2u16));
    let guest = "guest".to_string();
    let as_guest = Request { caller: &guest, ..request() };
    let refused = block_on(broker.modify(&as_guest, &path(LAMP), device().with("Notes", "b"), None));
    assert_eq!(code(refused), StatusCode::AccessDenied);
}

#[test]
fn instances_come_and_go() {
    let broker = broker();
    let create = |given: Instance| block_on(broker.create(&request(), given));
    let made = create(Instance::new("toy_device").with("BoxName", "red").with("Slot", 8)).unwrap();
    assert_eq!(made.to_string(), r#"root/toy:Toy_Device.BoxName="red",Slot=8"#);
    assert_eq!(block_on(broker.get(&request(), &made)).unwrap().instance.get_str("Caption"), Some("device"));
    assert_eq!(
        code(create(Instance::new("Toy_Device").with("BoxName", "red").with("Slot", 8))),
        StatusCode::AlreadyExists
    );
    assert_eq!(code(create(Instance::new("Toy_Device").with("Slot", 8))), StatusCode::InvalidParameter);
    assert_eq!(code(create(Instance::new("Toy_Element"))), StatusCode::NotSupported);
    assert_eq!(code(create(Instance::new("Toy_X"))), StatusCode::InvalidClass);
    block_on(broker.delete(&request(), &made)).unwrap();
    assert_eq!(code(block_on(broker.delete(&request(), &made))), StatusCode::NotFound);
}

#[test]
fn associations_lead_from_end_to_end() {
    let broker = broker();
    let follow = |text: &str, traversal: &Traversal| {
        let found = block_on(broker.associators(&request(), &path(text), traversal)).unwrap();
        paths(&found)
    };
    let all = Traversal::default();
    let red = r#"Toy_Box.Name="red""#;
    assert_eq!(follow(LAMP, &all), [red, SERVICE, MOTOR]);
    assert_eq!(follow(MOTOR, &all), [red, LAMP, r#"Toy_Device.BoxName="red",Slot=2"#]);
    let only = |association: &str| Traversal { association_class: Some(name(association)), ..all.clone() };
    assert_eq!(follow(red, &only("Toy_Holds")).len(), 3);
    let of_motor = Traversal { role: Some("needy".into()), ..only("Toy_Needs") };
    assert_eq!(follow(MOTOR, &of_motor), [r#"Toy_Device.BoxName="red",Slot=2"#]);
    let to_needy = Traversal { result_role: Some("NEEDY".into()), ..all.clone() };
    assert_eq!(follow(MOTOR, &to_needy), [LAMP]);
    let to_motors = Traversal { result_class: Some("Toy_Motor".into()), ..all.clone() };
    assert_eq!(follow(red, &to_motors), [MOTOR]);
    assert_eq!(follow(SERVICE, &all), [red, LAMP]);
    let found = block_on(broker.references(&request(), &path(LAMP), &all)).unwrap();
    assert_eq!(found.len(), 3);
    assert_eq!(found[0].instance.get("Since"), &Value::from(1999u32));
    let held = found[0].instance.get("Held").as_path().unwrap();
    assert_eq!(held.to_string(), format!("root/toy:{LAMP}"));
    let narrow = Traversal { result_class: Some("Toy_Holds".into()), role: Some("Holder".into()), ..all.clone() };
    assert!(block_on(broker.references(&request(), &path(LAMP), &narrow)).unwrap().is_empty());
    let strange = Traversal { result_class: Some("Toy_X".into()), ..all.clone() };
    assert_eq!(code(block_on(broker.references(&request(), &path(LAMP), &strange))), StatusCode::InvalidParameter);
    assert_eq!(code(block_on(broker.associators(&request(), &path("Toy_X=1"), &all))), StatusCode::InvalidParameter);
}

#[test]
fn classes_are_associated_too() {
    let broker = broker();
    let names = |classes: Vec<&Class>| classes.into_iter().map(|class| class.name.to_string()).collect::<Vec<_>>();
    let namespace: Namespace = NAMESPACE.into();
    let all = Traversal::default();
    let referring = broker.reference_classes(&namespace, &"Toy_Motor".into(), &all).unwrap();
    assert_eq!(names(referring), ["Toy_Holds", "Toy_LooksAfter", "Toy_Needs"]);
    let found = broker.associator_classes(&namespace, &"Toy_Motor".into(), &all).unwrap();
    assert_eq!(names(found), ["Toy_Box", "Toy_Service", "Toy_Device"]);
    let held = Traversal { role: Some("Held".into()), ..all };
    assert_eq!(names(broker.associator_classes(&namespace, &"Toy_Motor".into(), &held).unwrap()), ["Toy_Box"]);
}

#[test]
fn methods_get_what_they_declare_and_give_no_more() {
    let broker = broker();
    let invoke = |on: &str, method: &str, inputs: Vec<(&str, Value)>| {
        let inputs = inputs.into_iter().map(|(key, value)| (name(key), value)).collect();
        block_on(broker.invoke(&request(), &path(on), method, inputs))
    };
    let answer = invoke(LAMP, "reset", vec![("level", Value::from(3i64))]).unwrap();
    assert_eq!((answer.value, answer.outputs), (Value::from(4096u32), vec![("Was".into(), Value::from(3u16))]));
    let part = "instance of Toy_Part { Size = 3; };";
    let inputs = vec![
        ("Truth", Value::from(1u8)),
        ("Numbers", Value::from(7u16)),
        ("Device", Value::from(path(LAMP))),
        ("Part", Value::from(part)),
        ("Text", Value::Null),
    ];
    let answer = invoke(SERVICE, "Echo", inputs).unwrap();
    let output = |key: &str| answer.outputs.iter().find(|(known, _)| known.is(key)).map(|(_, value)| value).unwrap();
    assert_eq!(output("Truth"), &Value::from(true));
    assert_eq!(output("Numbers"), &Value::from(vec![7u16]));
    assert_eq!(output("Device").as_path().unwrap().namespace, Some(NAMESPACE.into()));
    assert_eq!(output("Part").as_instance().unwrap().get("Size"), &Value::from(3u8));
    assert!(output("Text").is_null());
    assert_eq!(invoke("Toy_Service", "Ping", vec![("Text", "x".into())]).unwrap().outputs[0].1, Value::from("x"));
    assert_eq!(code(invoke("Toy_Service", "Rest", vec![])), StatusCode::InvalidParameter);
    assert_eq!(code(invoke(SERVICE, "Sing", vec![])), StatusCode::MethodNotFound);
    assert_eq!(code(invoke(SERVICE, "Rest", vec![("X", Value::Null)])), StatusCode::InvalidParameter);
    assert_eq!(code(invoke(LAMP, "Reset", vec![("Was", Value::from(1u16))])), StatusCode::InvalidParameter);
    assert_eq!(code(invoke(LAMP, "Reset", vec![("Level", Value::from(70_000))])), StatusCode::TypeMismatch);
    let twice = vec![("Level", Value::from(1u16)), ("level", Value::from(1u16))];
    assert_eq!(code(invoke(LAMP, "Reset", twice)), StatusCode::InvalidParameter);
    assert_eq!(code(invoke(r#"Toy_Service.SystemName="toys",Name="x""#, "Rest", vec![])), StatusCode::NotFound);
    assert_eq!(code(invoke(SERVICE, "Fail", vec![("Code", Value::from(0u32))])), StatusCode::Failed);
    assert_eq!(invoke(SERVICE, "Fail", vec![("Code", Value::from(32773u32))]).unwrap().value, Value::from(32773u32));
}

#[test]
fn queries_select_project_and_follow() {
    let broker = broker();
    let query = |text: &str| block_on(broker.query(&request(), text, Language::Wql));
    let found = |text: &str| match query(text).unwrap_or_else(|err| panic!("{text}: {err}")) {
        Selection::Instances { found, .. } => found,
        other => panic!("{other:?}"),
    };
    assert_eq!(paths(&found("select * from Toy_Device where Caption like '%o%'")), [MOTOR]);
    let some = found("select State, caption from Toy_Device where Slot = 1");
    let names: Vec<_> = some[0].instance.properties.iter().map(|property| property.name.as_str()).collect();
    assert_eq!(names, ["State", "Caption"]);
    assert_eq!(some[0].path.to_local(), LAMP);
    assert_eq!(paths(&found("select * from Toy_Device where Anything.Size = 7")), [LAMP]);
    let text = r"ASSOCIATORS OF {\\.\root\toy:Toy_Device.BoxName='red',Slot=1} WHERE ResultClass = Toy_Box";
    assert_eq!(paths(&found(text)), [r#"Toy_Box.Name="red""#]);
    assert_eq!(found("REFERENCES OF {Toy_Device.BoxName='red',Slot=1} WHERE ResultClass = Toy_Needs").len(), 1);
    let classes = query("ASSOCIATORS OF {Toy_Device.BoxName='red',Slot=1} WHERE ClassDefsOnly").unwrap();
    assert!(matches!(classes, Selection::Classes(classes) if classes.len() == 3));
    assert_eq!(code(query("select * from Toy_X")), StatusCode::InvalidClass);
    assert_eq!(code(query("select X from Toy_Box")), StatusCode::InvalidQuery);
    assert_eq!(code(query("select * from Toy_Box where X = 1")), StatusCode::InvalidQuery);
    assert_eq!(code(query("select")), StatusCode::InvalidQuery);
}

#[test]
fn what_a_provider_gives_is_held_against_the_class() {
    struct Liar(Instance);
    #[async_trait::async_trait]
    impl Provider<String> for Liar {
        async fn instances(&self, _: &Context<'_, String>, _: &Class, _: Wanted<'_>) -> Result<Vec<Instance>, Status> {
            Ok(vec![self.0.clone()])
        }
        async fn invoke(&self, _: &Context<'_, String>, _: Call<'_>) -> Result<Answer, Status> {
            Ok(Answer::new(0u32).with("Level", 1u16))
        }
    }
    use crate::provider::{Answer, Call};
    let enumerate = |instance: Instance| {
        let mut broker = Broker::new("h");
        broker.serve(NAMESPACE.into(), Toys::new().repository(), Arc::new(Liar(instance)));
        let outcome = block_on(broker.enumerate(&request(), &"Toy_Box".into()));
        (outcome, broker)
    };
    for bad in [
        Instance::new("Toy_Device"),
        Instance::new("Toy_Box"),
        Instance::new("Toy_Box").with("Name", "a").with("X", 1),
        Instance::new("Toy_Box").with("Name", "a").with("Weight", "heavy"),
    ] {
        assert_eq!(code(enumerate(bad).0), StatusCode::Failed);
    }
    let device = Instance::new("Toy_Device").with("BoxName", "a").with("Slot", 1);
    let broker = enumerate(device).1;
    let outcome = block_on(broker.invoke(&request(), &path(r#"Toy_Device.BoxName="a",Slot=1"#), "Reset", vec![]));
    assert_eq!(code(outcome), StatusCode::Failed);
}

#[test]
fn a_namespace_that_a_client_cut_in_two_is_mended() {
    let broker = broker();
    let normalize = |text: &str| broker.normalize(&path(text), &NAMESPACE.into()).to_string();
    let wanted = r#"root/toy:Toy_Box.Name="a""#;
    assert_eq!(normalize(r#"//root/toy:Toy_Box.Name="a""#), wanted);
    assert_eq!(normalize(r#"//toyhost/root/toy:Toy_Box.Name="a""#), wanted);
    assert_eq!(normalize(r#"Toy_Box.Name="a""#), wanted);
    assert_eq!(normalize(r#"//h/other:Toy_Box.Name="a""#), r#"other:Toy_Box.Name="a""#);
    let mut value = Value::Array(vec![Some(Scalar::from(path(r#"Toy_Device.slot="1",boxname="a""#))), None]);
    broker.locate(&mut value, &request());
    assert_eq!(value.scalars().next().unwrap().text().unwrap(), r#"root/toy:Toy_Device.BoxName="a",Slot=1"#);
}
