//! One connection to one export, used by any number of callers at once.
//!
//! ```text
//! callers ── enter the table, queue a frame ──> one task: writes frames, reads replies ──> callers
//! ```
//!
//! A call may be dropped at any point: until its frame is queued nothing has happened, and afterwards the answer is
//! still read, and thrown away, in its turn. A frame is never half written.

use std::future::Future;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use understudy_model::Extent;

use super::assemble::{ReadAssembly, Run, StatusAssembly};
use super::error::NbdError;
use super::handshake::{self, Agreed, ExportInfo, Options};
use super::in_flight::{Answer, InFlight, Work};
use super::replies::Replies;
use super::wire::{Command, Frame, Headers, command_flag};

/// Large enough for a few reply heads; whatever is longer is read around it, straight to where it belongs.
const READ_BUFFER: usize = 4096;
/// How long a server may take to read our goodbye.
const GOODBYE_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest piece asked about at once with compact headers: fits 32 bits, and a multiple of any block size.
const COMPACT_LEN_MAX: u64 = 1 << 31;

/// A connection to one export of an NBD server.
pub struct Client {
    in_flight: Arc<InFlight>,
    frames: mpsc::Sender<Frame>,
    task: JoinHandle<()>,
    headers: Headers,
    export: ExportInfo,
    context_names: Vec<String>,
    context_ids: Arc<[u32]>,
    reply_timeout: Duration,
}

impl Client {
    /// Longest read. A buffer of this size is what one request in flight can cost.
    pub const READ_LEN_MAX: u64 = 4 << 20;

    /// Connects to the export that `options` name at a unix socket.
    pub async fn connect(socket: &Path, options: &Options) -> Result<Client, NbdError> {
        let mut stream = dial(socket, options.handshake_timeout).await?;
        let agreed = in_time(options.handshake_timeout, handshake::negotiate(&mut stream, options)).await?;
        let (input, output) = stream.into_split();
        Ok(Self::start(input, output, agreed, options))
    }

    /// The same over a connection that exists already.
    pub async fn over<S>(mut stream: S, options: &Options) -> Result<Client, NbdError>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let agreed = in_time(options.handshake_timeout, handshake::negotiate(&mut stream, options)).await?;
        let (input, output) = tokio::io::split(stream);
        Ok(Self::start(input, output, agreed, options))
    }

    fn start<R, W>(input: R, output: W, agreed: Agreed, options: &Options) -> Client
    where
        R: AsyncRead + Unpin + Send + 'static,
        W: AsyncWrite + Unpin + Send + 'static,
    {
        let slots = options.in_flight.max(1);
        let in_flight = Arc::new(InFlight::new(slots));
        // One frame for each place in flight and one for the goodbye: sending never waits.
        let (frames, queue) = mpsc::channel(slots + 1);
        let task = tokio::spawn(carry(input, output, agreed.headers, in_flight.clone(), queue));
        Client {
            in_flight,
            frames,
            task,
            headers: agreed.headers,
            export: agreed.export,
            context_names: options.contexts.clone(),
            context_ids: agreed.contexts.into(),
            reply_timeout: options.reply_timeout,
        }
    }

    /// The export, as the server described it.
    pub fn export(&self) -> &ExportInfo {
        &self.export
    }

    /// The meta contexts of this connection, in the order in which they were asked for.
    pub fn contexts(&self) -> &[String] {
        &self.context_names
    }

    /// Whether the server speaks extended headers (QEMU from 8.2 on).
    pub fn has_extended_headers(&self) -> bool {
        self.headers == Headers::Extended
    }

    /// Longest read this export answers.
    pub fn read_len_max(&self) -> u64 {
        Self::READ_LEN_MAX.min(u64::from(self.export.payload_max))
    }

    /// Why the connection ended, if it did.
    pub fn failure(&self) -> Option<NbdError> {
        self.in_flight.dead()
    }

    /// Reads `extent`, which is at most [`Client::read_len_max`] long. The answer has exactly its length.
    pub async fn read(&self, extent: Extent) -> Result<Bytes, NbdError> {
        self.check(Command::Read, extent)?;
        if extent.len > self.read_len_max() {
            return Err(misuse(Command::Read, extent, "longer than one read may be"));
        }
        match self.issue(Command::Read, extent, Work::Read(ReadAssembly::new(extent))).await? {
            Answer::Bytes(bytes) => Ok(bytes),
            _ => Err(NbdError::Protocol("the answer to another command")),
        }
    }

    /// Tells the server that nobody will read `extent` again, so that it may give the space back.
    pub async fn trim(&self, extent: Extent) -> Result<(), NbdError> {
        self.check(Command::Trim, extent)?;
        if !self.export.can_trim {
            return Err(NbdError::Unsupported("trim on this export"));
        }
        let mut at = extent.offset;
        while at < extent.end() {
            let part = self.part(at, extent.end());
            self.issue(Command::Trim, part, Work::Plain).await?;
            at = part.end();
        }
        Ok(())
    }

    /// One answer about `extent`: for each context the runs from its start on, perhaps not to its end.
    pub(super) async fn status(&self, extent: Extent) -> Result<Vec<Vec<Run>>, NbdError> {
        self.check(Command::BlockStatus, extent)?;
        let work = Work::Status(StatusAssembly::new(extent, self.context_ids.clone()));
        match self.issue(Command::BlockStatus, extent, work).await? {
            Answer::Status(runs) => Ok(runs),
            _ => Err(NbdError::Protocol("the answer to another command")),
        }
    }

    /// The longest piece of `at..end` that one request can be about.
    pub(super) fn part(&self, at: u64, end: u64) -> Extent {
        let len = end - at;
        match self.headers {
            Headers::Structured => Extent::new(at, len.min(COMPACT_LEN_MAX)),
            Headers::Extended => Extent::new(at, len),
        }
    }

    /// Says goodbye and closes the connection. Dropping a client closes it as well, without the goodbye.
    pub async fn disconnect(mut self) {
        let goodbye = Frame { command: Command::Disconnect, flags: 0, cookie: 0, offset: 0, len: 0 };
        if self.frames.try_send(goodbye).is_ok() {
            // Out of time or not, the connection is closed now.
            let _ = timeout(GOODBYE_TIMEOUT, &mut self.task).await;
        }
    }

    fn check(&self, command: Command, extent: Extent) -> Result<(), NbdError> {
        let aligned = |at: u64| at.is_multiple_of(u64::from(self.export.block_min));
        let end = extent.offset.checked_add(extent.len).filter(|end| *end <= self.export.size);
        match end {
            None => Err(misuse(command, extent, "beyond the end of the export")),
            Some(_) if extent.len == 0 => Err(misuse(command, extent, "nothing")),
            Some(end) if !aligned(extent.offset) || !(aligned(end) || end == self.export.size) => {
                Err(misuse(command, extent, "not aligned to the export's blocks"))
            }
            Some(_) => Ok(()),
        }
    }

    /// Reads ask for one piece. QEMU then answers a failing read with its error; without, it hangs up (seen with 10.0.2).
    /// It also spares QEMU a look for holes on each read; callers know the holes from the block status.
    fn flags(&self, command: Command) -> u16 {
        match command {
            Command::Read if self.export.unfragmented => command_flag::DF,
            _ => 0,
        }
    }

    async fn issue(&self, command: Command, extent: Extent, work: Work) -> Result<Answer, NbdError> {
        let slot = self.in_flight.slot().await?;
        let (cookie, reply) = self.in_flight.enter(command, extent, work, slot)?;
        // The queue has room for every place in flight, so this fails only when the connection is gone; then the table
        // is killed, or about to be, and that answers.
        let flags = self.flags(command);
        let _ = self.frames.try_send(Frame { command, flags, cookie, offset: extent.offset, len: extent.len });
        match timeout(self.reply_timeout, reply).await {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(_)) => Err(self.failure().unwrap_or(NbdError::Closed)),
            Err(_) => {
                self.in_flight.kill(NbdError::Stalled(self.reply_timeout));
                Err(NbdError::Stalled(self.reply_timeout))
            }
        }
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client").field("export", &self.export).field("contexts", &self.context_names).finish()
    }
}

/// The names of the exports that the server at a unix socket offers.
pub async fn list_exports(socket: &Path, handshake_timeout: Duration) -> Result<Vec<String>, NbdError> {
    let mut stream = dial(socket, handshake_timeout).await?;
    in_time(handshake_timeout, handshake::list(&mut stream)).await
}

async fn dial(socket: &Path, limit: Duration) -> Result<UnixStream, NbdError> {
    let failed = |err| NbdError::Connect { path: socket.to_owned(), err: Arc::new(err) };
    in_time(limit, async { UnixStream::connect(socket).await.map_err(failed) }).await
}

async fn in_time<T>(limit: Duration, step: impl Future<Output = Result<T, NbdError>>) -> Result<T, NbdError> {
    timeout(limit, step).await.unwrap_or(Err(NbdError::Stalled(limit)))
}

/// The connection's task. When it ends, both halves are closed, and everyone who waits knows why.
async fn carry<R, W>(input: R, output: W, headers: Headers, in_flight: Arc<InFlight>, queue: mpsc::Receiver<Frame>)
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let mut replies =
        Replies { input: BufReader::with_capacity(READ_BUFFER, input), headers, in_flight: in_flight.clone() };
    let why = tokio::select! {
        why = replies.run() => why,
        why = write_frames(output, headers, queue) => why,
        () = in_flight.killed() => return,
    };
    in_flight.kill(why);
}

/// Writes frames as they are queued, as many as there are at once, until a goodbye or an error.
async fn write_frames<W: AsyncWrite + Unpin>(
    mut output: W,
    headers: Headers,
    mut queue: mpsc::Receiver<Frame>,
) -> NbdError {
    let mut frames = Vec::new();
    let mut bytes = Vec::new();
    while queue.recv_many(&mut frames, Options::IN_FLIGHT).await > 0 {
        bytes.clear();
        let goodbye = frames.iter().any(|frame| frame.command == Command::Disconnect);
        frames.drain(..).for_each(|frame| frame.encode(headers, &mut bytes));
        if let Err(err) = output.write_all(&bytes).await {
            return err.into();
        }
        if goodbye {
            let _ = output.shutdown().await;
            break;
        }
    }
    NbdError::Closed
}

fn misuse(command: Command, extent: Extent, why: &str) -> NbdError {
    NbdError::Misuse(format!("{} {}+{}: {why}", command.verb(), extent.offset, extent.len))
}
