//! The toy world, the Interop namespace and both protocols behind one loopback server.

use std::sync::Arc;
use std::time::Duration;

use understudy_cim::broker::Broker;
use understudy_cim::cimxml::CimXml;
use understudy_cim::http::{HttpRequest, HttpResponse};
use understudy_cim::interop::{
    Change, INDICATION_CLASSES, Interop, RegisteredProfile, ServerDescription, SubscriptionPolicy,
};

use understudy_cim::repository::Repository;
use understudy_cim::wsman::{Settings, WsMan};
use understudy_cim::{Instance, Status};

use crate::server::{Site, deliver, run, serve};
use crate::toy::{NAMESPACE, Toys};

struct World {
    cimxml: CimXml<String>,
    wsman: WsMan<String>,
    interop: Arc<Interop<String>>,
    repository: Arc<Repository>,
}

impl World {
    /// Tells everybody who wants to know that the lamp was changed.
    fn tell(&self) {
        let lamp =
            Instance::new("Toy_Device").with("BoxName", "red").with("Slot", 1).with("State", 2).with("Notes", "<&>");
        let event = Instance::new("CIM_InstModification").with("SourceInstance", lamp);
        for delivery in self.interop.deliveries(&NAMESPACE.into(), &self.repository, event).unwrap() {
            assert_eq!(deliver(&delivery).unwrap(), 200);
        }
    }
}

impl Site for World {
    fn answer(&self, path: &str, request: HttpRequest<'_>, caller: &str, now: Duration) -> HttpResponse {
        let caller = &caller.to_string();
        match path {
            "/cimom" => {
                let response = run(self.cimxml.handle(request, caller, now));
                if request.header("CIMMethod") == Some("ModifyInstance") {
                    self.tell();
                }
                response
            }
            "/wsman" | "/wsman/" => run(self.wsman.handle(request, caller, now)),
            _ => HttpResponse::empty(404),
        }
    }
}

struct Everything;

impl SubscriptionPolicy<String> for Everything {
    fn admit(&self, _: &String, _: Change<'_>) -> Result<(), Status> {
        Ok(())
    }
}

/// A running server with a fresh toy world.
pub struct Running {
    /// Its port on loopback.
    pub port: u16,
}

impl Running {
    /// Starts one.
    pub fn start() -> Self {
        let toys = Arc::new(Toys::new());
        let mut repository = (*toys.repository()).clone();
        repository.add_text(INDICATION_CLASSES).unwrap();
        let mut broker = Broker::new("toyhost");
        let repository = Arc::new(repository);
        broker.serve(NAMESPACE.into(), repository.clone(), toys);
        let profile = RegisteredProfile { organization: "SNIA".into(), name: "Toys".into(), version: "1.0".into() };
        let description = ServerDescription {
            system_name: "toyhost".into(),
            name: "toys".into(),
            element_name: "Toys".into(),
            description: "Toys version 1.2".into(),
            version: "1.2".into(),
            profiles: vec![profile],
        };
        let interop = Interop::serve(&mut broker, description, Box::new(Everything));
        let broker = Arc::new(broker);
        let settings = Settings {
            vendor: "Toymakers".into(),
            version: "1.2".into(),
            default_namespace: NAMESPACE.into(),
            seed: 0x0123_4567_89ab_cdef_0123_4567_89ab_cdef,
        };
        let (cimxml, wsman) = (CimXml::new(broker.clone()), WsMan::new(broker, settings));
        let world = World { cimxml, wsman, interop, repository };
        Running { port: serve(Arc::new(world)) }
    }

    /// Its address.
    #[allow(dead_code)] // The example prints it in another form.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }
}
