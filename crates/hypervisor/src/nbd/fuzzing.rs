//! Entry points for fuzzing: a server's bytes, with the requests they could answer in flight.

use std::sync::Arc;

use futures::executor::block_on;
use understudy_model::Extent;

use super::assemble::{ReadAssembly, StatusAssembly};
use super::error::NbdError;
use super::handshake::{self, Options};
use super::in_flight::{InFlight, Work};
use super::replies::Replies;
use super::wire::{Command, Headers};

/// Where the requests in flight lie.
const ASKED: Extent = Extent::new(4096, 8192);

/// Takes `bytes` for what a server sends after the handshake, with a read, a question about two contexts and a trim in
/// flight. Whatever they are, every request must end, and a read must end with all its bytes or none.
pub fn reply(bytes: &[u8]) {
    let Some((mode, stream)) = bytes.split_first() else { return };
    let headers = if mode & 1 == 0 { Headers::Structured } else { Headers::Extended };
    let in_flight = Arc::new(InFlight::new(4));
    let status = Work::Status(StatusAssembly::new(ASKED, Arc::new([1, 2])));
    let answers = [
        enter(&in_flight, Command::Read, Work::Read(ReadAssembly::new(ASKED))),
        enter(&in_flight, Command::BlockStatus, status),
        enter(&in_flight, Command::Trim, Work::Plain),
    ];
    let why = block_on(Replies { input: stream, headers, in_flight: in_flight.clone() }.run());
    in_flight.kill(why);
    for answer in answers {
        let answer = block_on(answer).expect("a request that was killed was told so");
        if let Ok(super::in_flight::Answer::Bytes(read)) = answer {
            assert_eq!(read.len() as u64, ASKED.len);
        }
    }
}

type Awaited = tokio::sync::oneshot::Receiver<Result<super::in_flight::Answer, NbdError>>;

fn enter(in_flight: &InFlight, command: Command, work: Work) -> Awaited {
    let slot = block_on(in_flight.slot()).expect("there is room for three requests");
    in_flight.enter(command, ASKED, work, slot).expect("a fresh table takes requests").1
}

/// Takes `bytes` for a server's side of a handshake, and of a listing.
pub fn greeting(bytes: &[u8]) {
    let options = Options::new("disk").context(super::ALLOCATION_CONTEXT).bitmap("b");
    let _ = block_on(handshake::negotiate(&mut tokio::io::join(bytes, tokio::io::sink()), &options));
    let _ = block_on(handshake::list(&mut tokio::io::join(bytes, tokio::io::sink())));
}
