//! The server's side of an NBD connection, played by hand.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::task::JoinHandle;
use understudy_hypervisor::nbd::{Client, NbdError, Options};

pub const SIZE: u64 = 1 << 30;
/// Read, trim and block status, as the server sees them.
pub const READ: u16 = 0;
pub const TRIM: u16 = 4;
pub const BLOCK_STATUS: u16 = 7;

pub const DONE: u16 = 1;
pub const NONE: u16 = 0;
pub const DATA: u16 = 1;
pub const HOLE: u16 = 2;
pub const STATUS: u16 = 5;
pub const STATUS_EXT: u16 = 6;
pub const ERROR: u16 = 0x8001;
pub const ERROR_OFFSET: u16 = 0x8002;

const OPT_GO: u32 = 7;
const OPT_STRUCTURED: u32 = 8;
const OPT_CONTEXT: u32 = 10;
const OPT_EXTENDED: u32 = 11;
const REP_ACK: u32 = 1;
const REP_INFO: u32 = 3;
const REP_CONTEXT: u32 = 4;
const REP_UNSUP: u32 = 0x8000_0001;

/// A request as it arrived.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Asked {
    pub command: u16,
    pub cookie: u64,
    pub offset: u64,
    pub len: u64,
}

/// The server's end of a connection.
pub struct Peer {
    pub stream: UnixStream,
    pub extended: bool,
}

impl Peer {
    pub async fn greet(&mut self) {
        self.send(&[b"NBDMAGICIHAVEOPT".as_slice(), &3u16.to_be_bytes()].concat()).await;
        assert_eq!(self.stream.read_u32().await.unwrap(), 3);
    }

    /// Reads one option and its data.
    pub async fn option(&mut self) -> (u32, Vec<u8>) {
        assert_eq!(self.stream.read_u64().await.unwrap(), 0x4948_4156_454f_5054);
        let option = self.stream.read_u32().await.unwrap();
        let mut data = vec![0; self.stream.read_u32().await.unwrap() as usize];
        self.stream.read_exact(&mut data).await.unwrap();
        (option, data)
    }

    pub async fn option_reply(&mut self, option: u32, kind: u32, data: &[u8]) {
        self.option_head(option, kind, data.len() as u32).await;
        self.send(data).await;
    }

    pub async fn option_head(&mut self, option: u32, kind: u32, len: u32) {
        self.send(&0x0003_e889_0455_65a9u64.to_be_bytes()).await;
        self.send(&[option.to_be_bytes(), kind.to_be_bytes(), len.to_be_bytes()].concat()).await;
    }

    /// A whole handshake: `contexts` get the numbers from 1 on.
    pub async fn handshake(&mut self, contexts: &[&str]) {
        self.greet().await;
        assert_eq!(self.option().await, (OPT_EXTENDED, vec![]));
        if self.extended {
            self.option_reply(OPT_EXTENDED, REP_ACK, &[]).await;
        } else {
            self.option_reply(OPT_EXTENDED, REP_UNSUP, b"what is that?").await;
            assert_eq!(self.option().await, (OPT_STRUCTURED, vec![]));
            self.option_reply(OPT_STRUCTURED, REP_ACK, &[]).await;
        }
        if !contexts.is_empty() {
            assert_eq!(self.option().await.0, OPT_CONTEXT);
            for (name, id) in contexts.iter().zip(1u32..) {
                self.option_reply(OPT_CONTEXT, REP_CONTEXT, &context(id, name)).await;
            }
            self.option_reply(OPT_CONTEXT, REP_ACK, &[]).await;
        }
        assert_eq!(self.option().await.0, OPT_GO);
        self.option_reply(OPT_GO, REP_INFO, &export_info(SIZE, 1 | 1 << 5)).await;
        self.option_reply(OPT_GO, REP_INFO, &[&[0, 2][..], b"a description that nobody asked for"].concat()).await;
        self.option_reply(OPT_GO, REP_INFO, &block_sizes(1, 4096, 32 << 20)).await;
        self.option_reply(OPT_GO, REP_ACK, &[]).await;
    }

    pub async fn request(&mut self) -> Asked {
        let magic = self.stream.read_u32().await.unwrap();
        assert_eq!(magic, if self.extended { 0x21e4_1c71 } else { 0x2560_9513 });
        assert_eq!(self.stream.read_u16().await.unwrap(), 0, "command flags");
        let command = self.stream.read_u16().await.unwrap();
        let cookie = self.stream.read_u64().await.unwrap();
        let offset = self.stream.read_u64().await.unwrap();
        let len = match self.extended {
            true => self.stream.read_u64().await.unwrap(),
            false => self.stream.read_u32().await.unwrap().into(),
        };
        Asked { command, cookie, offset, len }
    }

    /// The head of a chunk that claims to have `len` bytes.
    pub async fn head(&mut self, asked: &Asked, flags: u16, kind: u16, len: u64) {
        let magic: u32 = if self.extended { 0x6e8a_278c } else { 0x668e_33ef };
        let mut head = magic.to_be_bytes().to_vec();
        head.extend([flags.to_be_bytes(), kind.to_be_bytes()].concat());
        head.extend(asked.cookie.to_be_bytes());
        match self.extended {
            true => head.extend([asked.offset.to_be_bytes(), len.to_be_bytes()].concat()),
            false => head.extend((len as u32).to_be_bytes()),
        }
        self.send(&head).await;
    }

    pub async fn chunk(&mut self, asked: &Asked, flags: u16, kind: u16, payload: &[u8]) {
        self.head(asked, flags, kind, payload.len() as u64).await;
        self.send(payload).await;
    }

    /// Answers a read with the pattern.
    pub async fn answer_read(&mut self, asked: &Asked) {
        assert_eq!(asked.command, READ);
        self.chunk(asked, DONE, DATA, &data(asked.offset, &pattern(asked.offset, asked.len))).await;
    }

    /// Sends bytes. A client that has hung up is no fault of the server's.
    pub async fn send(&mut self, bytes: &[u8]) {
        let _ = self.stream.write_all(bytes).await;
    }

    /// Waits until the client has hung up; what it sent before is thrown away.
    pub async fn until_hung_up(mut self) {
        let mut rest = [0; 512];
        while self.stream.read(&mut rest).await.is_ok_and(|n| n > 0) {}
    }
}

/// What a disk of the peer's holds.
pub fn pattern(offset: u64, len: u64) -> Vec<u8> {
    (offset..offset + len).map(|at| (at / 512 * 31 + at) as u8).collect()
}

pub fn context(id: u32, name: &str) -> Vec<u8> {
    [&id.to_be_bytes()[..], name.as_bytes()].concat()
}

pub fn export_info(size: u64, flags: u16) -> Vec<u8> {
    [&[0, 0][..], &size.to_be_bytes(), &flags.to_be_bytes()].concat()
}

pub fn block_sizes(min: u32, preferred: u32, max: u32) -> Vec<u8> {
    [&[0, 3][..], &min.to_be_bytes(), &preferred.to_be_bytes(), &max.to_be_bytes()].concat()
}

/// The payload of a data chunk.
pub fn data(offset: u64, bytes: &[u8]) -> Vec<u8> {
    [&offset.to_be_bytes()[..], bytes].concat()
}

/// The payload of a hole chunk.
pub fn hole(offset: u64, len: u32) -> Vec<u8> {
    [&offset.to_be_bytes()[..], &len.to_be_bytes()].concat()
}

/// The payload of an error chunk.
pub fn error(errno: u32, text: &[u8]) -> Vec<u8> {
    [&errno.to_be_bytes()[..], &(text.len() as u16).to_be_bytes(), text].concat()
}

/// The payload of a block status chunk with compact headers.
pub fn status(id: u32, runs: &[(u32, u32)]) -> Vec<u8> {
    let runs = runs.iter().flat_map(|(len, flags)| [len.to_be_bytes(), flags.to_be_bytes()].concat());
    id.to_be_bytes().into_iter().chain(runs).collect()
}

/// The payload of a block status chunk with extended headers.
pub fn status_ext(id: u32, count: u32, runs: &[(u64, u64)]) -> Vec<u8> {
    let runs = runs.iter().flat_map(|(len, flags)| [len.to_be_bytes(), flags.to_be_bytes()].concat());
    [id.to_be_bytes(), count.to_be_bytes()].concat().into_iter().chain(runs).collect()
}

/// Two ends of a connection.
pub fn pair(extended: bool) -> (UnixStream, Peer) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    (ours, Peer { stream: theirs, extended })
}

/// A client whose server goes through a handshake and then does what `script` says.
pub async fn client<F>(
    options: Options,
    extended: bool,
    script: impl FnOnce(Peer) -> F + Send + 'static,
) -> (Client, JoinHandle<F::Output>)
where
    F: Future + Send + 'static,
    F::Output: Send,
{
    let (ours, mut peer) = pair(extended);
    let contexts = options.contexts.clone();
    let server = tokio::spawn(async move {
        peer.handshake(&contexts.iter().map(String::as_str).collect::<Vec<_>>()).await;
        script(peer).await
    });
    (Client::over(ours, &options).await.unwrap(), server)
}

/// What a client makes of a handshake in which the server does what `script` says.
pub async fn handshake<F>(options: Options, script: impl FnOnce(Peer) -> F) -> Result<Client, NbdError>
where
    F: Future + Send + 'static,
    F::Output: Send,
{
    let (ours, peer) = pair(true);
    let server = tokio::spawn(script(peer));
    let outcome = Client::over(ours, &options).await;
    server.abort();
    outcome
}
