//! The fixed newstyle handshake: from a fresh connection to an export that answers requests, or to a list of exports.
//!
//! ```text
//! greeting -> EXTENDED_HEADERS, or else STRUCTURED_REPLY -> SET_META_CONTEXT (if contexts are wanted) -> GO
//!          -> LIST -> ABORT
//! ```
//!
//! Invariant: no length or count from the server is believed before it was compared with a bound.

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use understudy_model::DiskSpec;

use super::error::{NbdError, OptionRefusal};
use super::wire::{
    Headers, NBD_MAGIC, OPTION_MAGIC, OPTION_REPLY_MAGIC, STRING_MAX, handshake, info, option, option_reply,
    transmission,
};

/// Most meta contexts of one connection: `base:allocation` and the dirty maps of one disk, of which there are two or
/// three for each target.
pub const CONTEXTS_MAX: usize = 32;
/// Most exports a listing may have: a VM has at most 256 disks, and a QEMU exports each once or twice.
const EXPORTS_MAX: usize = 1024;
/// Most information items about one export. The protocol knows four.
const INFOS_MAX: usize = 32;
/// The payload limit that the protocol lets a client assume when the server names none.
const PAYLOAD_DEFAULT: u32 = 32 << 20;

/// What to ask a server for.
#[derive(Debug, Clone)]
pub struct Options {
    /// The export's name.
    pub export: String,
    /// The meta contexts whose block status will be asked for, at most [`CONTEXTS_MAX`]. All of them must exist.
    pub contexts: Vec<String>,
    /// Whether to try extended headers first. Turned off only to test what QEMU before 8.2 gives.
    pub extended_headers: bool,
    /// Most requests in flight at once; further ones wait.
    pub in_flight: usize,
    /// How long the handshake may take.
    pub handshake_timeout: std::time::Duration,
    /// How long a request may take before the whole connection is given up.
    pub reply_timeout: std::time::Duration,
}

impl Options {
    /// Requests in flight at once: more than 16 gained nothing against QEMU 10.0 on two cores.
    pub const IN_FLIGHT: usize = 32;

    /// The usual options for `export`, without contexts.
    pub fn new(export: impl Into<String>) -> Self {
        Self {
            export: export.into(),
            contexts: Vec::new(),
            extended_headers: true,
            in_flight: Self::IN_FLIGHT,
            handshake_timeout: std::time::Duration::from_secs(10),
            reply_timeout: std::time::Duration::from_secs(60),
        }
    }

    /// Asks for one more meta context.
    #[must_use]
    pub fn context(mut self, name: impl Into<String>) -> Self {
        self.contexts.push(name.into());
        self
    }

    /// Asks for the dirty bitmap `name` of the exported disk.
    #[must_use]
    pub fn bitmap(self, name: &str) -> Self {
        self.context(format!("{}{name}", super::BITMAP_CONTEXT_PREFIX))
    }

    fn check(&self) -> Result<(), NbdError> {
        let names = || self.contexts.iter().chain([&self.export]);
        if self.contexts.len() > CONTEXTS_MAX {
            return Err(NbdError::Misuse(format!("{} meta contexts", self.contexts.len())));
        }
        if let Some(name) = names().find(|n| n.len() > STRING_MAX) {
            return Err(NbdError::Misuse(format!("a name of {} bytes", name.len())));
        }
        let repeated = |i: usize, c| self.contexts[..i].contains(c);
        match self.contexts.iter().enumerate().find(|(i, c)| repeated(*i, *c)) {
            Some((_, context)) => Err(NbdError::Misuse(format!("meta context {context:?} asked for twice"))),
            None => Ok(()),
        }
    }
}

/// An export as its server describes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExportInfo {
    /// Size in bytes, at most [`DiskSpec::SIZE_MAX`].
    pub size: u64,
    /// Whether the server refuses changes.
    pub read_only: bool,
    /// Whether the server takes trims.
    pub can_trim: bool,
    /// Whether the server can be asked to answer a read in one piece.
    pub unfragmented: bool,
    /// Whether several connections may be used at once and see the same bytes.
    pub multi_conn: bool,
    /// Requests start and end at multiples of this (a power of two), the disk's end apart.
    pub block_min: u32,
    /// Longest read the server answers.
    pub payload_max: u32,
}

/// What a handshake agreed on.
#[derive(Debug)]
pub(super) struct Agreed {
    pub headers: Headers,
    pub export: ExportInfo,
    /// The server's numbers for the contexts asked for, in the order of [`Options::contexts`].
    pub contexts: Vec<u32>,
}

/// Goes from a fresh connection to an export.
pub(super) async fn negotiate<S>(stream: &mut S, options: &Options) -> Result<Agreed, NbdError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    options.check()?;
    let mut peer = Peer { stream, export: &options.export };
    peer.greet().await?;
    let headers = peer.choose_headers(options.extended_headers).await?;
    let contexts = match options.contexts.is_empty() {
        true => Vec::new(),
        false => peer.set_contexts(&options.contexts).await?,
    };
    let export = peer.go().await?;
    Ok(Agreed { headers, export, contexts })
}

/// Asks a fresh connection for the names of its exports, and ends it.
pub(super) async fn list<S>(stream: &mut S) -> Result<Vec<String>, NbdError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut peer = Peer { stream, export: "" };
    peer.greet().await?;
    let names = peer.list().await?;
    // A courtesy only: the server may hang up without reading it.
    let _ = peer.send(option::ABORT, &[]).await;
    Ok(names)
}

struct Peer<'a, S> {
    stream: &'a mut S,
    export: &'a str,
}

/// The head of an answer to an option.
struct Reply {
    kind: u32,
    len: u32,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Peer<'_, S> {
    async fn greet(&mut self) -> Result<(), NbdError> {
        if self.stream.read_u64().await? != NBD_MAGIC {
            return Err(NbdError::Protocol("no NBD server greeted us"));
        }
        if self.stream.read_u64().await? != OPTION_MAGIC {
            return Err(NbdError::Unsupported("the newstyle handshake"));
        }
        let flags = self.stream.read_u16().await?;
        if flags & handshake::FIXED_NEWSTYLE == 0 {
            return Err(NbdError::Unsupported("the fixed newstyle handshake"));
        }
        let answer = u32::from(flags & (handshake::FIXED_NEWSTYLE | handshake::NO_ZEROES));
        self.stream.write_all(&answer.to_be_bytes()).await?;
        Ok(())
    }

    async fn choose_headers(&mut self, try_extended: bool) -> Result<Headers, NbdError> {
        if try_extended && self.ask(option::EXTENDED_HEADERS).await?.is_ok() {
            return Ok(Headers::Extended);
        }
        match self.ask(option::STRUCTURED_REPLY).await? {
            Ok(()) => Ok(Headers::Structured),
            Err(OptionRefusal::Unsupported) => Err(NbdError::Unsupported("structured replies")),
            Err(reason) => Err(self.refused("structured replies", reason)),
        }
    }

    /// Sends an option that has no data and is answered by yes or no.
    async fn ask(&mut self, option: u32) -> Result<Result<(), OptionRefusal>, NbdError> {
        self.send(option, &[]).await?;
        let reply = self.reply(option).await?;
        if let Some(reason) = self.refusal(&reply).await? {
            return Ok(Err(reason));
        }
        self.acknowledged(&reply)?;
        Ok(Ok(()))
    }

    async fn set_contexts(&mut self, names: &[String]) -> Result<Vec<u32>, NbdError> {
        let mut data = Vec::new();
        put_string(&mut data, self.export);
        data.extend_from_slice(&(names.len() as u32).to_be_bytes());
        names.iter().for_each(|name| put_string(&mut data, name));
        self.send(option::SET_META_CONTEXT, &data).await?;

        let mut ids: Vec<Option<u32>> = vec![None; names.len()];
        loop {
            let reply = self.reply(option::SET_META_CONTEXT).await?;
            if let Some(reason) = self.refusal(&reply).await? {
                return Err(self.refused("meta contexts", reason));
            }
            if reply.kind != option_reply::META_CONTEXT {
                self.acknowledged(&reply)?;
                break;
            }
            let (id, name) = self.context(&reply).await?;
            if ids.contains(&Some(id)) {
                return Err(NbdError::Protocol("two meta contexts with one number"));
            }
            // Each name fills its place once, so the loop ends whatever the server sends.
            match names.iter().position(|n| *n == name) {
                Some(at) if ids[at].is_none() => ids[at] = Some(id),
                _ => return Err(NbdError::Protocol("a meta context that was not asked for")),
            }
        }
        let missing =
            |context: &String| NbdError::MissingContext { export: self.export.to_owned(), context: context.clone() };
        names.iter().zip(ids).map(|(name, id)| id.ok_or_else(|| missing(name))).collect()
    }

    async fn context(&mut self, reply: &Reply) -> Result<(u32, String), NbdError> {
        let len = (reply.len as usize).checked_sub(4).filter(|len| *len <= STRING_MAX);
        let len = len.ok_or(NbdError::Protocol("a meta context of impossible length"))?;
        let id = self.stream.read_u32().await?;
        Ok((id, self.string(len).await?))
    }

    async fn go(&mut self) -> Result<ExportInfo, NbdError> {
        let mut data = Vec::new();
        put_string(&mut data, self.export);
        data.extend_from_slice(&1u16.to_be_bytes());
        data.extend_from_slice(&info::BLOCK_SIZE.to_be_bytes());
        self.send(option::GO, &data).await?;

        let mut infos = Infos::default();
        for _ in 0..=INFOS_MAX {
            let reply = self.reply(option::GO).await?;
            if let Some(reason) = self.refusal(&reply).await? {
                return Err(self.refused("the export", reason));
            }
            if reply.kind != option_reply::INFO {
                self.acknowledged(&reply)?;
                return infos.export();
            }
            self.info(&reply, &mut infos).await?;
        }
        Err(NbdError::Protocol("endless information about an export"))
    }

    async fn info(&mut self, reply: &Reply, infos: &mut Infos) -> Result<(), NbdError> {
        let len = (reply.len as usize).checked_sub(2).filter(|len| *len <= STRING_MAX);
        let len = len.ok_or(NbdError::Protocol("information of impossible length"))?;
        match (self.stream.read_u16().await?, len) {
            (info::EXPORT, 10) => {
                infos.export = Some((self.stream.read_u64().await?, self.stream.read_u16().await?));
            }
            (info::BLOCK_SIZE, 12) => {
                let min = self.stream.read_u32().await?;
                let _preferred = self.stream.read_u32().await?;
                infos.blocks = Some((min, self.stream.read_u32().await?));
            }
            (info::EXPORT | info::BLOCK_SIZE, _) => {
                return Err(NbdError::Protocol("information of wrong length"));
            }
            _ => self.skip(len).await?,
        }
        Ok(())
    }

    async fn list(&mut self) -> Result<Vec<String>, NbdError> {
        self.send(option::LIST, &[]).await?;
        let mut names = Vec::new();
        loop {
            let reply = self.reply(option::LIST).await?;
            if let Some(reason) = self.refusal(&reply).await? {
                return Err(self.refused("a list", reason));
            }
            if reply.kind != option_reply::SERVER {
                self.acknowledged(&reply)?;
                return Ok(names);
            }
            if names.len() == EXPORTS_MAX {
                return Err(NbdError::Protocol("too many exports in a list"));
            }
            names.push(self.listed(&reply).await?);
        }
    }

    async fn listed(&mut self, reply: &Reply) -> Result<String, NbdError> {
        let bad = NbdError::Protocol("an export in a list has an impossible length");
        let Some(rest) = (reply.len as usize).checked_sub(4).filter(|rest| *rest <= 2 * STRING_MAX) else {
            return Err(bad);
        };
        let len = self.stream.read_u32().await? as usize;
        if len > rest.min(STRING_MAX) {
            return Err(bad);
        }
        let name = self.string(len).await?;
        self.skip(rest - len).await?;
        Ok(name)
    }

    async fn send(&mut self, option: u32, data: &[u8]) -> Result<(), NbdError> {
        let mut message = Vec::with_capacity(16 + data.len());
        message.extend_from_slice(&OPTION_MAGIC.to_be_bytes());
        message.extend_from_slice(&option.to_be_bytes());
        message.extend_from_slice(&(data.len() as u32).to_be_bytes());
        message.extend_from_slice(data);
        self.stream.write_all(&message).await?;
        Ok(())
    }

    async fn reply(&mut self, option: u32) -> Result<Reply, NbdError> {
        if self.stream.read_u64().await? != OPTION_REPLY_MAGIC {
            return Err(NbdError::Protocol("an answer to an option without its magic number"));
        }
        if self.stream.read_u32().await? != option {
            return Err(NbdError::Protocol("an answer to an option that was not asked"));
        }
        Ok(Reply { kind: self.stream.read_u32().await?, len: self.stream.read_u32().await? })
    }

    /// Reads an error answer to its end; `None` if it is no error.
    async fn refusal(&mut self, reply: &Reply) -> Result<Option<OptionRefusal>, NbdError> {
        if reply.kind & option_reply::ERROR_BIT == 0 {
            return Ok(None);
        }
        if reply.len as usize > STRING_MAX {
            return Err(NbdError::Protocol("an error text of impossible length"));
        }
        self.skip(reply.len as usize).await?;
        Ok(Some(OptionRefusal::from_reply(reply.kind)))
    }

    fn acknowledged(&self, reply: &Reply) -> Result<(), NbdError> {
        match (reply.kind, reply.len) {
            (option_reply::ACK, 0) => Ok(()),
            _ => Err(NbdError::Protocol("an unexpected answer to an option")),
        }
    }

    fn refused(&self, option: &'static str, reason: OptionRefusal) -> NbdError {
        NbdError::Option { export: self.export.to_owned(), option, reason }
    }

    async fn string(&mut self, len: usize) -> Result<String, NbdError> {
        let mut bytes = vec![0; len];
        self.stream.read_exact(&mut bytes).await?;
        String::from_utf8(bytes).map_err(|_| NbdError::Protocol("a name that is not UTF-8"))
    }

    async fn skip(&mut self, len: usize) -> Result<(), NbdError> {
        let mut scratch = vec![0; len];
        self.stream.read_exact(&mut scratch).await?;
        Ok(())
    }
}

#[derive(Default)]
struct Infos {
    export: Option<(u64, u16)>,
    blocks: Option<(u32, u32)>,
}

impl Infos {
    fn export(self) -> Result<ExportInfo, NbdError> {
        let (size, flags) = self.export.ok_or(NbdError::Protocol("an export without a size"))?;
        if size > DiskSpec::SIZE_MAX {
            return Err(NbdError::Unsupported("exports of this size"));
        }
        if flags & transmission::HAS_FLAGS == 0 {
            return Err(NbdError::Protocol("an export without flags"));
        }
        // A server that names no block sizes promises to take requests of 512 bytes.
        let (block_min, payload_max) = self.blocks.unwrap_or((512, PAYLOAD_DEFAULT));
        if !block_min.is_power_of_two() || block_min > 64 << 10 || payload_max < block_min.max(4096) {
            return Err(NbdError::Protocol("impossible block sizes"));
        }
        let read_only = flags & transmission::READ_ONLY != 0;
        Ok(ExportInfo {
            size,
            read_only,
            can_trim: flags & transmission::SEND_TRIM != 0 && !read_only,
            unfragmented: flags & transmission::SEND_DF != 0,
            multi_conn: flags & transmission::MULTI_CONN != 0,
            block_min,
            payload_max,
        })
    }
}

fn put_string(data: &mut Vec<u8>, text: &str) {
    data.extend_from_slice(&(text.len() as u32).to_be_bytes());
    data.extend_from_slice(text.as_bytes());
}
