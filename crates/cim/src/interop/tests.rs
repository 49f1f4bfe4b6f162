use futures::executor::block_on;

use super::*;
use crate::broker::Request;
use crate::embedded;
use crate::name::Name;
use crate::schema::Instance;
use crate::status::StatusCode;
use crate::toy::{NAMESPACE, NOW, Toys};
use crate::value::Value;
use crate::xml::{Bounds, parse};

/// Lets everybody do everything, but towards one host only.
struct Friends;

impl SubscriptionPolicy<String> for Friends {
    fn admit(&self, caller: &String, change: Change<'_>) -> Result<(), Status> {
        match change {
            _ if caller == "guest" => Err(Status::new(StatusCode::AccessDenied, "guests only look")),
            Change::Destination(url) if !url.contains("friend") => {
                Err(Status::new(StatusCode::AccessDenied, "a stranger"))
            }
            _ => Ok(()),
        }
    }
}

struct World {
    broker: Broker<String>,
    interop: Arc<Interop<String>>,
    repository: Repository,
}

fn world() -> World {
    let toys = Arc::new(Toys::new());
    let mut repository = (*toys.repository()).clone();
    repository.add_text(INDICATION_CLASSES).unwrap();
    let mut broker = Broker::new("toyhost");
    broker.serve(NAMESPACE.into(), Arc::new(repository.clone()), toys);
    let description = ServerDescription {
        system_name: "toyhost".into(),
        name: "toys".into(),
        element_name: "Toys".into(),
        description: "Toys version 1.2".into(),
        version: "1.2".into(),
        profiles: vec![RegisteredProfile {
            organization: "Toymakers".into(),
            name: "Toys".into(),
            version: "1.0".into(),
        }],
    };
    let interop = Interop::serve(&mut broker, description, Box::new(Friends));
    World { broker, interop, repository }
}

impl World {
    fn request<'a>(&self, caller: &'a String) -> Request<'a, String> {
        Request::new(caller, "interop".into(), NOW)
    }

    fn create(&self, instance: Instance) -> Result<ObjectPath, Status> {
        block_on(self.broker.create(&self.request(&"ann".to_string()), instance))
    }

    fn delete(&self, path: &ObjectPath) -> Result<(), Status> {
        block_on(self.broker.delete(&self.request(&"ann".to_string()), path))
    }

    fn event(&self, state: u16) -> Vec<Delivery> {
        let source = Instance::new("Toy_Device").with("BoxName", "red").with("Slot", 1).with("State", state);
        let event = Instance::new("CIM_InstModification").with("SourceInstance", source);
        self.interop.deliveries(&NAMESPACE.into(), &self.repository, event).unwrap()
    }
}

fn filter(name: &str, query: &str) -> Instance {
    Instance::new("CIM_IndicationFilter")
        .with("Name", name)
        .with("SystemName", "whatever")
        .with("SourceNamespaces", vec![NAMESPACE])
        .with("Query", query)
        .with("QueryLanguage", "WQL")
}

fn destination(name: &str, url: &str) -> Instance {
    Instance::new("CIM_ListenerDestinationCIMXML").with("Name", name).with("Destination", url)
}

fn subscription(filter: &ObjectPath, handler: &ObjectPath) -> Instance {
    Instance::new("CIM_IndicationSubscription").with("Filter", filter.clone()).with("Handler", handler.clone())
}

fn code<T: std::fmt::Debug>(outcome: Result<T, Status>) -> StatusCode {
    outcome.unwrap_err().code
}

#[test]
fn the_server_describes_itself_under_both_names() {
    let world = world();
    let ann = "ann".to_string();
    for name in INTEROP_NAMES {
        let request = Request { namespace: name.into(), ..world.request(&ann) };
        let enumerate = |class: &'static str| block_on(world.broker.enumerate(&request, &Name::from(class))).unwrap();
        let managers = enumerate("CIM_ObjectManager");
        assert_eq!(managers.len(), 1);
        assert_eq!(managers[0].instance.get_str("Description"), Some("Toys version 1.2"));
        let namespaces: Vec<_> =
            enumerate("CIM_Namespace").iter().map(|n| n.instance.get_str("Name").unwrap().to_string()).collect();
        assert_eq!(namespaces, [NAMESPACE, "interop", "root/interop"]);
        assert_eq!(
            enumerate("CIM_RegisteredProfile")[0].instance.get_str("OtherRegisteredOrganization"),
            Some("Toymakers")
        );
    }
    let namespace = Instance::new("CIM_Namespace").with("Name", "root/x").with("SystemName", "x");
    assert_eq!(code(world.create(namespace)), StatusCode::NotSupported);
}

#[test]
fn events_that_a_filter_selects_are_told_in_the_words_listeners_know() {
    let world = world();
    let on = filter(
        "on",
        "SELECT * FROM CIM_InstModification WHERE SourceInstance ISA Toy_Device AND SourceInstance.State = 2",
    );
    let on = world.create(on).unwrap();
    assert_eq!(on.key_str("SystemName"), Some("toyhost"));
    let friend = world.create(destination("d", "http://friend:5990/")).unwrap();
    assert!(world.event(2).is_empty());
    let both = world.create(subscription(&on, &friend)).unwrap();
    assert!(world.event(1).is_empty());
    let told = world.event(2);
    assert_eq!((told.len(), told[0].url.as_str()), (1, "http://friend:5990/"));
    assert!(told[0].headers.contains(&("CIMExportMethod", "ExportIndication".into())));
    let body = String::from_utf8(told[0].body.clone()).unwrap();
    let document = parse(&body, &Bounds::REQUEST).unwrap();
    let found = |name: &str| document.descendants().find(|node| node.has_tag_name(name)).unwrap();
    assert_eq!(found("EXPPARAMVALUE").attribute("NAME"), Some("NewIndication"));
    assert_eq!(found("INSTANCE").attribute("CLASSNAME"), Some("CIM_InstModification"));
    let source = embedded::read(found("VALUE").text().unwrap()).unwrap();
    assert_eq!(source.get("State"), &Value::from(2u16));
    let other =
        world.interop.deliveries(&"root/other".into(), &world.repository, Instance::new("CIM_InstModification"));
    assert!(other.unwrap().is_empty());
    // What others need cannot go, and in the right order everything goes.
    assert_eq!(code(world.delete(&on)), StatusCode::Failed);
    assert_eq!(code(world.delete(&friend)), StatusCode::Failed);
    world.delete(&both).unwrap();
    world.delete(&on).unwrap();
    world.delete(&friend).unwrap();
    assert!(world.event(2).is_empty() && world.interop.snapshot().is_empty());
}

#[test]
fn a_subscription_that_makes_no_sense_is_refused() {
    let world = world();
    let query = "SELECT * FROM CIM_InstCreation";
    assert_eq!(code(world.create(filter("f", "SELECT"))), StatusCode::InvalidQuery);
    assert_eq!(code(world.create(filter("", query))), StatusCode::InvalidParameter);
    assert_eq!(
        code(world.create(filter("f", query).with("QueryLanguage", "SQL"))),
        StatusCode::QueryLanguageNotSupported
    );
    let made = world.create(filter("f", query)).unwrap();
    assert_eq!(code(world.create(filter("f", query))), StatusCode::AlreadyExists);
    for url in ["", "friend", "ftp://friend/", "http://", "http:///x", "http://friend/\n"] {
        assert_eq!(code(world.create(destination("d", url))), StatusCode::InvalidParameter, "{url:?}");
    }
    assert_eq!(code(world.create(destination("d", "http://stranger/"))), StatusCode::AccessDenied);
    let nowhere = ObjectPath::instance("CIM_ListenerDestinationCIMXML", [("Name", "x")]);
    assert_eq!(code(world.create(subscription(&made, &nowhere))), StatusCode::InvalidParameter);
    let guest = "guest".to_string();
    let request = world.request(&guest);
    assert_eq!(code(block_on(world.broker.create(&request, filter("g", query)))), StatusCode::AccessDenied);
    assert_eq!(code(block_on(world.broker.delete(&request, &made))), StatusCode::AccessDenied);
    for number in 1..SUBSCRIPTIONS_MAX {
        world.create(filter(&format!("f{number}"), query)).unwrap();
    }
    assert_eq!(code(world.create(filter("one too many", query))), StatusCode::ServerLimitsExceeded);
}

#[test]
fn subscriptions_outlive_the_server_that_keeps_a_snapshot() {
    let world = world();
    let made = world.create(filter("f", "SELECT * FROM CIM_InstIndication")).unwrap();
    let friend = world.create(destination("d", "https://friend/")).unwrap();
    world.create(subscription(&made, &friend)).unwrap();
    let kept = world.interop.snapshot();
    let next = super::tests::world();
    assert_eq!(next.interop.restore(kept.clone()), 0);
    assert_eq!(next.event(1).len(), 1);
    assert_eq!(next.interop.restore(kept), 3);
}
