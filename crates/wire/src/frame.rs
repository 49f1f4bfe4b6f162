//! Frames: the unit of the byte stream between two hosts.
//!
//! ```text
//! offset size field        all little-endian
//!      0    4 magic        "USTY"
//!      4    2 version      of the protocol, agreed in the greeting; 0 in the greeting itself
//!      6    2 kind         see FrameKind; bit 15 set: may be skipped by those who do not know it
//!      8    4 payload_len  bytes after the extension area
//!     12    2 header_len   48; larger in a later version, the surplus is skipped
//!     14    2 ext_len      bytes of extension area after the header
//!     16    8 session      number of the session the frame belongs to; 0 before one is open
//!     24    8 sequence     number of a bulk frame within its transfer; 0 for messages
//!     32   16 reserved     zero when sent, ignored when received
//! ```
//!
//! The lengths come early and the header is fixed, so that a reader knows after 16 bytes how much may follow, and
//! can refuse before it takes memory.

use bytes::{Buf, Bytes, BytesMut};
use zerocopy::byteorder::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::limits;

/// First four bytes of every frame.
pub const MAGIC: [u8; 4] = *b"USTY";
/// Length of the header this build writes.
pub const HEADER_LEN: usize = 48;
/// Longest header a later version may use.
const HEADER_LEN_MAX: usize = 256;
/// Set in `kind`: a receiver that does not know the kind skips the frame instead of closing.
const OPTIONAL: u16 = 0x8000;

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy)]
#[repr(C)]
struct Header {
    magic: [u8; 4],
    version: U16,
    kind: U16,
    payload_len: U32,
    header_len: U16,
    ext_len: U16,
    session: U64,
    sequence: U64,
    reserved: [u8; 16],
}

const _: () = assert!(size_of::<Header>() == HEADER_LEN);

/// What a frame carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FrameKind {
    /// A control message (JSON).
    Message,
    /// Part of an initial replication: see [`crate::bulk::BaseWriter`].
    BaseData,
    /// Part of a cycle: a batch of records of one disk.
    CycleData,
    /// Part of a blob that a definition names.
    BlobData,
}

impl FrameKind {
    fn number(self) -> u16 {
        match self {
            FrameKind::Message => 1,
            FrameKind::BaseData => 2,
            FrameKind::CycleData => 3,
            FrameKind::BlobData => 4,
        }
    }

    fn from_number(number: u16) -> Option<Self> {
        [FrameKind::Message, FrameKind::BaseData, FrameKind::CycleData, FrameKind::BlobData]
            .into_iter()
            .find(|k| k.number() == number)
    }

    /// Largest payload of this kind.
    pub fn payload_max(self) -> usize {
        match self {
            FrameKind::Message => limits::CONTROL_MAX,
            _ => limits::BULK_MAX,
        }
    }
}

/// One frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// What it carries.
    pub kind: FrameKind,
    /// Protocol version it was written for.
    pub version: u16,
    /// Session it belongs to; 0 before one is open.
    pub session: u64,
    /// Number within its transfer, for bulk frames.
    pub sequence: u64,
    /// The message or data.
    pub payload: Bytes,
}

impl Frame {
    /// The header bytes to send before `payload`.
    ///
    /// # Panics
    /// If the payload is larger than its kind allows: writers cut their batches below the limit.
    pub fn header(&self) -> [u8; HEADER_LEN] {
        assert!(self.payload.len() <= self.kind.payload_max(), "writers keep payloads below the limit");
        let header = Header {
            magic: MAGIC,
            version: U16::new(self.version),
            kind: U16::new(self.kind.number()),
            payload_len: U32::new(self.payload.len() as u32),
            header_len: U16::new(HEADER_LEN as u16),
            ext_len: U16::new(0),
            session: U64::new(self.session),
            sequence: U64::new(self.sequence),
            reserved: [0; 16],
        };
        zerocopy::transmute!(header)
    }

    /// Header and payload in one buffer: for small frames and tests.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = self.header().to_vec();
        out.extend_from_slice(&self.payload);
        out
    }
}

/// Why a byte stream is no sequence of frames. Any of these ends the connection.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The stream does not begin with our magic.
    #[error("the other side does not speak this protocol")]
    Magic,
    /// A kind that must not be skipped and is not known.
    #[error("frame kind {kind:#x} is unknown and must not be skipped")]
    UnknownKind {
        /// The number received.
        kind: u16,
    },
    /// A length beyond its limit.
    #[error("a frame's {what} of {len} bytes is beyond the limit of {max}")]
    TooLong {
        /// Which length.
        what: &'static str,
        /// What was announced.
        len: usize,
        /// What is allowed.
        max: usize,
    },
    /// A header shorter than the fixed part.
    #[error("a frame header of {len} bytes is too short")]
    ShortHeader {
        /// What was announced.
        len: usize,
    },
    /// The stream ended inside a frame.
    #[error("the connection ended in the middle of a frame")]
    Truncated,
}

/// Takes frames out of a byte stream. Feed it with [`Decoder::buffer`], ask with [`Decoder::next_frame`].
#[derive(Debug, Default)]
pub struct Decoder {
    buffer: BytesMut,
}

impl Decoder {
    /// An empty decoder.
    pub fn new() -> Self {
        Self::default()
    }

    /// Where received bytes are appended.
    pub fn buffer(&mut self) -> &mut BytesMut {
        &mut self.buffer
    }

    /// The next whole frame, or `None` if more bytes are needed. Skips optional frames of unknown kinds.
    pub fn next_frame(&mut self) -> Result<Option<Frame>, FrameError> {
        loop {
            let Some(header) = self.peek_header()? else { return Ok(None) };
            let total = header.skip + header.payload_len;
            if self.buffer.len() < total {
                self.buffer.reserve(total - self.buffer.len());
                return Ok(None);
            }
            self.buffer.advance(header.skip);
            let payload = self.buffer.split_to(header.payload_len).freeze();
            if let Some(kind) = header.kind {
                let (version, session, sequence) = (header.version, header.session, header.sequence);
                return Ok(Some(Frame { kind, version, session, sequence, payload }));
            }
        }
    }

    /// To be called when the stream has ended: an error if it ended inside a frame.
    pub fn finish(&self) -> Result<(), FrameError> {
        if self.buffer.is_empty() { Ok(()) } else { Err(FrameError::Truncated) }
    }

    fn peek_header(&self) -> Result<Option<Peeked>, FrameError> {
        let seen = self.buffer.len().min(MAGIC.len());
        if self.buffer[..seen] != MAGIC[..seen] {
            return Err(FrameError::Magic);
        }
        let Ok((header, _)) = Header::read_from_prefix(&self.buffer) else { return Ok(None) };
        Peeked::check(&header).map(Some)
    }
}

/// A header whose lengths have been compared with the limits.
struct Peeked {
    kind: Option<FrameKind>,
    version: u16,
    session: u64,
    sequence: u64,
    skip: usize,
    payload_len: usize,
}

impl Peeked {
    fn check(header: &Header) -> Result<Self, FrameError> {
        let number = header.kind.get();
        let kind = FrameKind::from_number(number);
        if kind.is_none() && number & OPTIONAL == 0 {
            return Err(FrameError::UnknownKind { kind: number });
        }
        let header_len = usize::from(header.header_len.get());
        if header_len < HEADER_LEN {
            return Err(FrameError::ShortHeader { len: header_len });
        }
        let payload_max = kind.map_or(limits::BULK_MAX, FrameKind::payload_max);
        let payload_len = header.payload_len.get() as usize;
        bounded("header", header_len, HEADER_LEN_MAX)?;
        bounded("extension area", usize::from(header.ext_len.get()), limits::EXTENSION_MAX)?;
        bounded("payload", payload_len, payload_max)?;
        Ok(Self {
            kind,
            version: header.version.get(),
            session: header.session.get(),
            sequence: header.sequence.get(),
            skip: header_len + usize::from(header.ext_len.get()),
            payload_len,
        })
    }
}

fn bounded(what: &'static str, len: usize, max: usize) -> Result<(), FrameError> {
    if len <= max { Ok(()) } else { Err(FrameError::TooLong { what, len, max }) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn frame(kind: FrameKind, payload: Vec<u8>) -> Frame {
        Frame { kind, version: 1, session: 7, sequence: 3, payload: payload.into() }
    }

    fn decode(bytes: &[u8]) -> Result<Vec<Frame>, FrameError> {
        let mut decoder = Decoder::new();
        decoder.buffer().extend_from_slice(bytes);
        let mut out = Vec::new();
        while let Some(f) = decoder.next_frame()? {
            out.push(f);
        }
        decoder.finish()?;
        Ok(out)
    }

    fn patched(at: usize, with: &[u8]) -> Vec<u8> {
        let mut bytes = frame(FrameKind::Message, vec![1, 2, 3]).to_bytes();
        bytes[at..at + with.len()].copy_from_slice(with);
        bytes
    }

    proptest! {
        #[test]
        fn frames_survive_any_cutting_of_the_stream(
            payloads in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..300), 1..5),
            step in 1usize..90,
        ) {
            let frames: Vec<_> = payloads.into_iter().map(|p| frame(FrameKind::CycleData, p)).collect();
            let stream: Vec<u8> = frames.iter().flat_map(Frame::to_bytes).collect();
            let (mut decoder, mut out) = (Decoder::new(), Vec::new());
            for piece in stream.chunks(step) {
                decoder.buffer().extend_from_slice(piece);
                while let Some(f) = decoder.next_frame().unwrap() {
                    out.push(f);
                }
            }
            prop_assert_eq!(out, frames);
            prop_assert!(decoder.finish().is_ok());
        }

        #[test]
        fn foreign_bytes_never_panic_and_never_reserve_beyond_the_limits(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut stream = MAGIC.to_vec();
            stream.extend(bytes);
            let mut decoder = Decoder::new();
            decoder.buffer().extend_from_slice(&stream);
            while let Ok(Some(_)) = decoder.next_frame() {}
            prop_assert!(decoder.buffer().capacity() <= 2 * (limits::BULK_MAX + limits::EXTENSION_MAX + 1024));
        }
    }

    #[test]
    fn lengths_beyond_the_limits_are_refused_before_the_payload_arrives() {
        let huge = patched(8, &u32::MAX.to_le_bytes());
        assert!(matches!(decode(&huge[..HEADER_LEN]), Err(FrameError::TooLong { what: "payload", .. })));
        let ext = patched(14, &u16::MAX.to_le_bytes());
        assert!(matches!(decode(&ext[..HEADER_LEN]), Err(FrameError::TooLong { what: "extension area", .. })));
        assert_eq!(decode(&patched(12, &47u16.to_le_bytes())), Err(FrameError::ShortHeader { len: 47 }));
    }

    #[test]
    fn an_unknown_kind_is_refused_unless_it_says_it_may_be_skipped() {
        assert_eq!(decode(&patched(6, &77u16.to_le_bytes())), Err(FrameError::UnknownKind { kind: 77 }));
        assert_eq!(decode(&patched(6, &(77u16 | OPTIONAL).to_le_bytes())), Ok(vec![]));
    }

    #[test]
    fn a_stream_of_something_else_is_refused_at_its_first_byte() {
        assert_eq!(decode(b"G"), Err(FrameError::Magic));
        assert_eq!(decode(b"USTX"), Err(FrameError::Magic));
        assert_eq!(decode(b"US"), Err(FrameError::Truncated));
    }

    #[test]
    fn a_longer_header_and_extensions_of_a_later_version_are_skipped() {
        let plain = frame(FrameKind::Message, vec![9]).to_bytes();
        let mut later = plain[..HEADER_LEN].to_vec();
        later[12..14].copy_from_slice(&56u16.to_le_bytes());
        later[14..16].copy_from_slice(&5u16.to_le_bytes());
        later.extend([0xee; 8 + 5]);
        later.push(9);
        assert_eq!(decode(&later), decode(&plain));
    }
}
