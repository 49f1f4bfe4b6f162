//! The numbers and fixed layouts of the NBD protocol, big-endian throughout, and nothing that does I/O.
//!
//! ```text
//! request, compact    magic u32 | flags u16 | command u16 | cookie u64 | offset u64 | length u32            28 bytes
//! request, extended   magic u32 | flags u16 | command u16 | cookie u64 | offset u64 | length u64            32 bytes
//! reply, simple       magic u32 | error u32 | cookie u64                                                    16 bytes
//! reply, structured   magic u32 | flags u16 | type u16 | cookie u64 | length u32                            20 bytes
//! reply, extended     magic u32 | flags u16 | type u16 | cookie u64 | offset u64 | length u64               32 bytes
//! ```
//!
//! Extended headers came with QEMU 8.2. Without them lengths are 32 bits wide.

pub(super) const NBD_MAGIC: u64 = 0x4e42_444d_4147_4943; // "NBDMAGIC"
pub(super) const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054; // "IHAVEOPT"
pub(super) const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
const REQUEST_MAGIC: u32 = 0x2560_9513;
const EXTENDED_REQUEST_MAGIC: u32 = 0x21e4_1c71;
pub(super) const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
pub(super) const STRUCTURED_REPLY_MAGIC: u32 = 0x668e_33ef;
pub(super) const EXTENDED_REPLY_MAGIC: u32 = 0x6e8a_278c;

/// Handshake flags, the same bits in both directions.
pub(super) mod handshake {
    pub const FIXED_NEWSTYLE: u16 = 1 << 0;
    pub const NO_ZEROES: u16 = 1 << 1;
}

/// Options of the handshake.
pub(super) mod option {
    pub const ABORT: u32 = 2;
    pub const LIST: u32 = 3;
    pub const GO: u32 = 7;
    pub const STRUCTURED_REPLY: u32 = 8;
    pub const SET_META_CONTEXT: u32 = 10;
    pub const EXTENDED_HEADERS: u32 = 11;
}

/// Replies to options.
pub(super) mod option_reply {
    pub const ACK: u32 = 1;
    pub const SERVER: u32 = 2;
    pub const INFO: u32 = 3;
    pub const META_CONTEXT: u32 = 4;
    pub const ERROR_BIT: u32 = 1 << 31;
}

/// Kinds of information about an export.
pub(super) mod info {
    pub const EXPORT: u16 = 0;
    pub const BLOCK_SIZE: u16 = 3;
}

/// What an export can do.
pub(super) mod transmission {
    pub const HAS_FLAGS: u16 = 1 << 0;
    pub const READ_ONLY: u16 = 1 << 1;
    pub const SEND_TRIM: u16 = 1 << 5;
    pub const SEND_DF: u16 = 1 << 7;
    pub const MULTI_CONN: u16 = 1 << 8;
}

/// Wishes that go with a request.
pub(super) mod command_flag {
    pub const DF: u16 = 1 << 2;
}

/// Chunks of a reply.
pub(super) mod chunk {
    pub const DONE: u16 = 1 << 0;
    pub const NONE: u16 = 0;
    pub const OFFSET_DATA: u16 = 1;
    pub const OFFSET_HOLE: u16 = 2;
    pub const BLOCK_STATUS: u16 = 5;
    pub const BLOCK_STATUS_EXT: u16 = 6;
    pub const ERROR_BIT: u16 = 1 << 15;
    pub const ERROR_OFFSET: u16 = ERROR_BIT | 2;
}

/// Longest string of the protocol ("SHOULD be no longer than 4096 bytes", and QEMU refuses longer ones).
pub(super) const STRING_MAX: usize = 4096;

/// Which of the two header layouts a connection agreed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Headers {
    Structured,
    Extended,
}

/// What we ask of a server. There is no write: nothing here can change a guest's data, trim apart, which a server
/// allows only on scratch space it exported for that.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Command {
    Read,
    Disconnect,
    Trim,
    BlockStatus,
}

impl Command {
    const fn number(self) -> u16 {
        match self {
            Command::Read => 0,
            Command::Disconnect => 2,
            Command::Trim => 4,
            Command::BlockStatus => 7,
        }
    }

    /// The word for error texts, after "could not".
    pub const fn verb(self) -> &'static str {
        match self {
            Command::Read => "read",
            Command::Disconnect => "disconnect",
            Command::Trim => "trim",
            Command::BlockStatus => "tell the status of",
        }
    }
}

/// One request as it is sent.
#[derive(Debug, Clone, Copy)]
pub(super) struct Frame {
    pub command: Command,
    pub flags: u16,
    pub cookie: u64,
    pub offset: u64,
    pub len: u64,
}

impl Frame {
    /// Appends the request to `out`. With compact headers the length fits 32 bits: `Client` splits what does not.
    pub fn encode(&self, headers: Headers, out: &mut Vec<u8>) {
        let magic = match headers {
            Headers::Structured => REQUEST_MAGIC,
            Headers::Extended => EXTENDED_REQUEST_MAGIC,
        };
        out.extend_from_slice(&magic.to_be_bytes());
        out.extend_from_slice(&self.flags.to_be_bytes());
        out.extend_from_slice(&self.command.number().to_be_bytes());
        out.extend_from_slice(&self.cookie.to_be_bytes());
        out.extend_from_slice(&self.offset.to_be_bytes());
        match headers {
            Headers::Structured => {
                let len = u32::try_from(self.len).expect("requests are split to the width of the headers");
                out.extend_from_slice(&len.to_be_bytes());
            }
            Headers::Extended => out.extend_from_slice(&self.len.to_be_bytes()),
        }
    }
}

/// Text from a server, made fit for a log: printable, on one line, cut.
pub(super) fn printable(bytes: &[u8], max: usize) -> String {
    let text = String::from_utf8_lossy(&bytes[..bytes.len().min(max)]);
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_has_the_size_its_headers_say() {
        let frame = Frame { command: Command::BlockStatus, flags: 4, cookie: 0x0102, offset: 1 << 40, len: 4096 };
        let mut compact = Vec::new();
        frame.encode(Headers::Structured, &mut compact);
        assert_eq!(compact.len(), 28);
        assert_eq!(compact[..8], [0x25, 0x60, 0x95, 0x13, 0, 4, 0, 7]);
        let mut extended = Vec::new();
        frame.encode(Headers::Extended, &mut extended);
        assert_eq!(extended.len(), 32);
        assert_eq!(extended[..8], [0x21, 0xe4, 0x1c, 0x71, 0, 4, 0, 7]);
        assert_eq!(extended[24..], 4096u64.to_be_bytes());
    }

    #[test]
    fn a_servers_text_cannot_forge_log_lines() {
        assert_eq!(printable(b"no\nspace\x1b[2J", 64), "no space [2J");
        assert_eq!(printable(&[0xff; 8], 2), "\u{fffd}\u{fffd}");
    }
}
