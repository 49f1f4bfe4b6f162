//! Serves a toy world on loopback, to try clients on: `cargo run -p understudy-cim --example toys`.
//!
//! CIM-XML is at `/cimom`, WS-Management at `/wsman`; the user is `ann`, the password `toys`.

#[path = "../tests/clients/server.rs"]
mod server;
#[path = "../tests/toy/mod.rs"]
#[allow(dead_code)] // Tests use the rest.
mod toy;
#[path = "../tests/clients/world.rs"]
mod world;

fn main() {
    println!("http://{}:{}@127.0.0.1:{}", server::USER.0, server::USER.1, world::Running::start().port);
    loop {
        std::thread::park();
    }
}
