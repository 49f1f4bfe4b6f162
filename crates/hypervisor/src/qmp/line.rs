//! Lines of JSON from somebody we do not trust: bounded before they are kept, checked before they are parsed.

use std::io;

use bytes::{Buf, BufMut, BytesMut};
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncReadExt};

use super::QmpError;

/// Longest line taken. The longest honest one, `query-named-block-nodes` for 256 disks, is about 1 MiB.
pub(super) const LINE_MAX: usize = 4 << 20;
/// Deepest nesting taken. QEMU's own parser takes 1024, its answers need about 12.
pub(super) const DEPTH_MAX: usize = 64;
/// Most values in one line: what [`LINE_MAX`] of honest text holds. A parsed value takes some 32 bytes or more however
/// short its text is, so this is what bounds the memory.
pub(super) const VALUES_MAX: usize = 200_000;

/// Most bytes read at once, so that a line gets past its bound by no more.
const PART: usize = 16 << 10;

/// What stands before a line from an agent that was just synchronised; it also resets QEMU's parsers.
pub(super) const RESET: u8 = 0xff;

/// Cuts a stream into lines. A future that is dropped half-way loses nothing.
#[derive(Debug)]
pub(super) struct Lines<R> {
    input: R,
    buffer: BytesMut,
    /// How much of the buffer is known to hold no line's end.
    searched: usize,
}

impl<R: AsyncRead + Unpin> Lines<R> {
    pub fn new(input: R) -> Self {
        Self { input, buffer: BytesMut::new(), searched: 0 }
    }

    /// The next line, without its end; `None` when the other side hung up, also in the middle of a line.
    pub async fn next(&mut self, during: &'static str) -> Result<Option<BytesMut>, QmpError> {
        loop {
            if let Some(at) = self.buffer[self.searched..].iter().position(|b| *b == b'\n') {
                let line = self.buffer.split_to(self.searched + at);
                self.buffer.advance(1);
                self.searched = 0;
                return Ok(Some(line));
            }
            self.searched = self.buffer.len();
            if self.searched > LINE_MAX {
                return Err(QmpError::Protocol("a line without end"));
            }
            self.buffer.reserve(PART);
            match self.input.read_buf(&mut (&mut self.buffer).limit(PART)).await {
                Ok(0) => return Ok(None),
                Ok(_) => {}
                Err(err) if err.kind() == io::ErrorKind::ConnectionReset => return Ok(None),
                Err(err) => return Err(QmpError::Io { during, err }),
            }
        }
    }
}

/// Parses one line.
pub(super) fn parse(line: &[u8]) -> Result<Value, QmpError> {
    check_shape(line)?;
    serde_json::from_slice(line).map_err(|_| QmpError::Protocol("a line that is no JSON"))
}

/// Refuses what would take much more memory than its text, without building anything.
fn check_shape(line: &[u8]) -> Result<(), QmpError> {
    let (mut depth, mut values, mut in_string, mut escaped) = (0usize, 0usize, false, false);
    for byte in line {
        match (in_string, byte) {
            (true, _) if escaped => escaped = false,
            (true, b'\\') => escaped = true,
            (_, b'"') => in_string = !in_string,
            (true, _) => {}
            (false, b'[' | b'{') => (depth, values) = (depth + 1, values + 1),
            (false, b']' | b'}') => depth = depth.saturating_sub(1),
            (false, b',' | b':') => values += 1,
            _ => {}
        }
        if depth > DEPTH_MAX {
            return Err(QmpError::Protocol("values nested too deeply"));
        }
        if values > VALUES_MAX {
            return Err(QmpError::Protocol("too many values in one line"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn lines_come_out_whole_however_they_are_cut() {
        let text = b"{}\n\n{\"a\":1}\nrest";
        let mut lines = Lines::new(&text[..]);
        let mut seen = Vec::new();
        while let Some(line) = lines.next("a test").await.unwrap() {
            seen.push(line.to_vec());
        }
        assert_eq!(seen, [&b"{}"[..], b"", b"{\"a\":1}"]);
    }

    #[tokio::test]
    async fn a_line_without_end_is_refused_at_the_bound() {
        let mut lines = Lines::new(tokio::io::repeat(b'x'));
        assert!(matches!(lines.next("a test").await, Err(QmpError::Protocol(_))));
        assert!(lines.buffer.len() <= LINE_MAX + PART);
    }

    #[test]
    fn deep_and_wide_lines_are_refused_before_they_are_parsed() {
        assert!(parse(&b"[".repeat(DEPTH_MAX + 1)).is_err());
        let wide = format!("[{}0]", "0,".repeat(VALUES_MAX));
        assert!(matches!(parse(wide.as_bytes()), Err(QmpError::Protocol(what)) if what.contains("many")));
        let honest = format!("[{}0]", "0,".repeat(1000));
        assert_eq!(parse(honest.as_bytes()).unwrap().as_array().unwrap().len(), 1001);
    }

    #[test]
    fn brackets_in_strings_count_for_nothing() {
        let text = format!("{{\"a\":\"{}\\\"{}\"}}", "[".repeat(100), "{".repeat(100));
        assert!(parse(text.as_bytes()).is_ok());
    }
}
