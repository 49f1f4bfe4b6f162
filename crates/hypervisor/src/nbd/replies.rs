//! Reads what a server sends after the handshake, and gives each piece to the request it answers.
//!
//! One reader per connection. Whatever does not fit ends the connection: a stream that went wrong once says nothing
//! true any more. No length is believed before it was held against what the request allows.

use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncReadExt};
use understudy_model::Extent;

use super::error::{NbdError, ServerError};
use super::in_flight::{InFlight, Request, Work};
use super::wire::{
    Command, EXTENDED_REPLY_MAGIC, Headers, SIMPLE_REPLY_MAGIC, STRING_MAX, STRUCTURED_REPLY_MAGIC, chunk, printable,
};

/// The head of a reply or of one chunk of it.
enum Head {
    Simple { error: u32, cookie: u64 },
    Chunk(Chunk),
}

struct Chunk {
    done: bool,
    kind: u16,
    cookie: u64,
    /// The request's offset, which extended headers repeat.
    offset: Option<u64>,
    len: u64,
}

pub(super) struct Replies<R> {
    pub input: R,
    pub headers: Headers,
    pub in_flight: Arc<InFlight>,
}

impl<R: AsyncRead + Unpin> Replies<R> {
    /// Reads until the connection ends, and returns why it did.
    pub async fn run(&mut self) -> NbdError {
        loop {
            if let Err(err) = self.next().await {
                return err;
            }
        }
    }

    async fn next(&mut self) -> Result<(), NbdError> {
        match self.head().await? {
            Head::Simple { error, cookie } => self.simple(error, cookie),
            Head::Chunk(head) => self.chunk(head).await,
        }
    }

    async fn head(&mut self) -> Result<Head, NbdError> {
        let input = &mut self.input;
        match (input.read_u32().await?, self.headers) {
            (SIMPLE_REPLY_MAGIC, Headers::Structured) => {
                Ok(Head::Simple { error: input.read_u32().await?, cookie: input.read_u64().await? })
            }
            (STRUCTURED_REPLY_MAGIC, Headers::Structured) => {
                let (done, kind) = flags_and_kind(input.read_u32().await?)?;
                let cookie = input.read_u64().await?;
                Ok(Head::Chunk(Chunk { done, kind, cookie, offset: None, len: input.read_u32().await?.into() }))
            }
            (EXTENDED_REPLY_MAGIC, Headers::Extended) => {
                let (done, kind) = flags_and_kind(input.read_u32().await?)?;
                let (cookie, offset) = (input.read_u64().await?, input.read_u64().await?);
                Ok(Head::Chunk(Chunk { done, kind, cookie, offset: Some(offset), len: input.read_u64().await? }))
            }
            _ => Err(NbdError::Protocol("a reply without its magic number")),
        }
    }

    /// A simple reply, which without extended headers may still answer what has no data.
    fn simple(&mut self, error: u32, cookie: u64) -> Result<(), NbdError> {
        let mut request = self.take(cookie)?;
        if request.command == Command::Read {
            self.in_flight.put_back(cookie, request);
            return Err(NbdError::Protocol("a simple reply to a read"));
        }
        if error != 0 {
            request.error.get_or_insert(ServerError { errno: error, message: String::new(), offset: None });
        }
        request.complete()
    }

    async fn chunk(&mut self, head: Chunk) -> Result<(), NbdError> {
        let mut request = self.take(head.cookie)?;
        match self.payload(&mut request, &head).await {
            Ok(()) if head.done => request.complete(),
            outcome => {
                // Also when it went wrong: whoever waits for it is told why when the table is killed.
                self.in_flight.put_back(head.cookie, request);
                outcome
            }
        }
    }

    fn take(&self, cookie: u64) -> Result<Request, NbdError> {
        self.in_flight.take(cookie).ok_or(NbdError::Protocol("an answer to a request that is not in flight"))
    }

    async fn payload(&mut self, request: &mut Request, head: &Chunk) -> Result<(), NbdError> {
        request.count_chunk()?;
        if head.offset.is_some_and(|offset| offset != request.extent.offset) {
            return Err(NbdError::Protocol("an answer for another offset than was asked"));
        }
        let headers = self.headers;
        match (head.kind, &mut request.work) {
            (chunk::NONE, _) if head.len == 0 && head.done => Ok(()),
            (chunk::OFFSET_DATA, Work::Read(read)) => {
                let len = head.len.checked_sub(8).ok_or(NbdError::Protocol("data of impossible length"))?;
                let offset = self.input.read_u64().await?;
                read.data(&mut self.input, Extent::new(offset, len)).await
            }
            (chunk::OFFSET_HOLE, Work::Read(read)) if head.len == 12 => {
                let offset = self.input.read_u64().await?;
                read.hole(Extent::new(offset, self.input.read_u32().await?.into()))
            }
            (chunk::BLOCK_STATUS, Work::Status(status)) if headers == Headers::Structured => {
                status.chunk(&mut self.input, headers, head.len).await
            }
            (chunk::BLOCK_STATUS_EXT, Work::Status(status)) if headers == Headers::Extended => {
                status.chunk(&mut self.input, headers, head.len).await
            }
            (kind, _) if kind & chunk::ERROR_BIT != 0 => {
                let error = self.error(kind, head.len).await?;
                request.error.get_or_insert(error);
                Ok(())
            }
            _ => Err(NbdError::Protocol("a chunk that does not belong into this answer")),
        }
    }

    /// An error chunk. Those of types unknown to us begin alike, and what follows is skipped.
    async fn error(&mut self, kind: u16, len: u64) -> Result<ServerError, NbdError> {
        let rest = len.checked_sub(6).filter(|rest| *rest <= 2 * STRING_MAX as u64);
        let rest = rest.ok_or(NbdError::Protocol("an error of impossible length"))? as usize;
        let errno = self.input.read_u32().await?;
        let text_len = usize::from(self.input.read_u16().await?);
        if errno == 0 || text_len > rest.min(STRING_MAX) {
            return Err(NbdError::Protocol("an error that makes no sense"));
        }
        let mut tail = vec![0; rest];
        self.input.read_exact(&mut tail).await?;
        let (text, after) = tail.split_at(text_len);
        let offset = match (kind, <[u8; 8]>::try_from(after)) {
            (chunk::ERROR_OFFSET, Ok(bytes)) => Some(u64::from_be_bytes(bytes)),
            _ => None,
        };
        Ok(ServerError { errno, message: printable(text, ServerError::MESSAGE_MAX), offset })
    }
}

fn flags_and_kind(word: u32) -> Result<(bool, u16), NbdError> {
    let (flags, kind) = ((word >> 16) as u16, word as u16);
    match flags & !chunk::DONE {
        0 => Ok((flags & chunk::DONE != 0, kind)),
        _ => Err(NbdError::Protocol("a reply with unknown flags")),
    }
}
