//! A small world in memory, for tests: its classes and instances are the MOF files beside this one.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use understudy_cim::broker::Broker;
use understudy_cim::provider::{Answer, Call, Context, Provider, Wanted};
use understudy_cim::repository::{Repository, Unknown};
use understudy_cim::schema::{Class, NamedInstance};
use understudy_cim::{Instance, Name, ObjectPath, Status, StatusCode, Value, embedded};

/// Its classes.
pub const SCHEMA: &str = include_str!("toy.mof");
/// What is in it at the beginning.
pub const INSTANCES: &str = include_str!("instances.mof");
/// Where it is served.
pub const NAMESPACE: &str = "root/toy";

/// The toy world.
pub struct Toys {
    repository: Arc<Repository>,
    things: Mutex<Vec<NamedInstance>>,
}

impl Toys {
    /// The world as it is at the beginning.
    pub fn new() -> Self {
        let mut repository = Repository::with_standard_qualifiers();
        repository.add_text(SCHEMA).unwrap();
        let mut things = repository.add_text(INSTANCES).unwrap();
        // A part within a device, as no portable MOF can say it.
        let part = Instance::new("Toy_Part").with("Label", "<cog>").with("Size", 7u8);
        let lamp = &mut things[3].instance;
        lamp.set("Parts", vec![part.clone(), Instance::new("Toy_Part")]);
        lamp.set("Anything", part);
        Toys { repository: Arc::new(repository), things: Mutex::new(things) }
    }

    /// Its classes.
    pub fn repository(&self) -> Arc<Repository> {
        self.repository.clone()
    }

    fn things(&self) -> std::sync::MutexGuard<'_, Vec<NamedInstance>> {
        self.things.lock().unwrap()
    }

    fn import(&self, call: &Call<'_>) -> Result<Answer, Status> {
        let Some(text) = call.input("Settings").as_str() else { return Ok(Answer::new(32773u32)) };
        let read = embedded::read(text).ok().and_then(|read| self.repository.conform(read, Unknown::Ignore).ok());
        let Some(settings) = read else { return Ok(Answer::new(32776u32)) };
        let device = ObjectPath::instance("Toy_Device", [("BoxName", "red"), ("Slot", "1")]);
        Ok(Answer::new(0u32).with("Understood", embedded::to_cim_xml(&settings).as_str()).with("Device", device))
    }
}

/// A broker that serves the toy world and nothing else.
pub fn broker() -> Broker<String> {
    let toys = Arc::new(Toys::new());
    let mut broker = Broker::new("toyhost");
    broker.serve(NAMESPACE.into(), toys.repository(), toys);
    broker
}

/// A moment, for requests whose time does not matter.
pub const NOW: Duration = Duration::from_secs(1_000);

#[async_trait]
impl Provider<String> for Toys {
    async fn instances(
        &self,
        _context: &Context<'_, String>,
        class: &Class,
        _wanted: Wanted<'_>,
    ) -> Result<Vec<Instance>, Status> {
        Ok(self
            .things()
            .iter()
            .filter(|thing| thing.path.class == class.name)
            .map(|thing| thing.instance.clone())
            .collect())
    }

    async fn modify(&self, context: &Context<'_, String>, path: &ObjectPath, changes: Instance) -> Result<(), Status> {
        if context.caller == "guest" {
            return Err(Status::new(StatusCode::AccessDenied, "guests only look"));
        }
        let mut things = self.things();
        let thing =
            things.iter_mut().find(|thing| thing.path.matches(path)).expect("the broker asked for one that exists");
        for property in changes.properties {
            thing.instance.set(property.name, property.value);
        }
        Ok(())
    }

    async fn create(&self, _context: &Context<'_, String>, instance: Instance) -> Result<ObjectPath, Status> {
        let missing = |_| Status::new(StatusCode::InvalidParameter, "a key is missing");
        let path = self.repository.path_of(&instance).map_err(missing)?;
        let mut things = self.things();
        if things.iter().any(|thing| thing.path.matches(&path)) {
            return Err(Status::new(StatusCode::AlreadyExists, format!("{path} exists")));
        }
        things.push(NamedInstance { path: path.clone(), instance });
        Ok(path)
    }

    async fn delete(&self, _context: &Context<'_, String>, path: &ObjectPath) -> Result<(), Status> {
        self.things().retain(|thing| !thing.path.matches(path));
        Ok(())
    }

    async fn invoke(&self, _context: &Context<'_, String>, call: Call<'_>) -> Result<Answer, Status> {
        match call.method.name.as_str() {
            "Reset" => Ok(Answer::new(4096u32).with("Was", call.input("Level").clone())),
            "Echo" => Ok(Answer { value: Value::from(0u32), outputs: call.inputs.clone() }),
            "Import" => self.import(&call),
            "Ping" => Ok(Answer::new(0u32).with("Echoed", call.input("Text").clone())),
            "Rest" => Ok(Answer::new(0u32)),
            "Fail" => match call.input("Code").as_integer() {
                Some(code) if code > 0 => Ok(Answer { value: call.input("Code").clone(), outputs: Vec::new() }),
                _ => Err(Status::new(StatusCode::Failed, "failed as it was told")),
            },
            other => panic!("nobody declared {other}"),
        }
    }
}

/// A name from a text that is one.
pub fn name(text: &str) -> Name {
    Name::parse(text).unwrap()
}
