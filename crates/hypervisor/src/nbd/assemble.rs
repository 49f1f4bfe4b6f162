//! Puts an answer together from its chunks, checking that they are an answer to what was asked: inside the request,
//! never twice the same byte, and in the end all of it.

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt};
use understudy_model::Extent;

use super::error::NbdError;
use super::wire::Headers;

/// Most descriptors in one chunk of block status: the protocol's own limit. QEMU sends at most an eighth of it.
const DESCRIPTORS_MAX: u64 = 1 << 20;
/// Most runs kept of one answer, over all contexts: 2 MiB. What is beyond is asked for again.
const RUNS_KEPT: usize = 1 << 17;

/// The bytes of one read.
pub(super) struct ReadAssembly {
    asked: Extent,
    /// As long as the furthest chunk so far; gaps before it read as zero until they are filled.
    bytes: BytesMut,
    covered: Coverage,
}

impl ReadAssembly {
    /// `asked.len` is at most `Client::READ_LEN_MAX`, and is what the memory taken here is bounded by.
    pub fn new(asked: Extent) -> Self {
        Self { asked, bytes: BytesMut::new(), covered: Coverage::default() }
    }

    /// Reads a chunk of data from the connection.
    pub async fn data<R: AsyncRead + Unpin>(&mut self, input: &mut R, chunk: Extent) -> Result<(), NbdError> {
        let at = self.place(chunk)?;
        let len = chunk.len as usize;
        if at < self.bytes.len() {
            input.read_exact(&mut self.bytes[at..at + len]).await?;
            return Ok(());
        }
        self.bytes.reserve(self.asked.len as usize - self.bytes.len());
        self.bytes.resize(at, 0);
        let mut input = input.take(chunk.len);
        while self.bytes.len() < at + len {
            if input.read_buf(&mut self.bytes).await? == 0 {
                return Err(NbdError::Closed);
            }
        }
        Ok(())
    }

    /// Notes a chunk that reads as zeros.
    pub fn hole(&mut self, chunk: Extent) -> Result<(), NbdError> {
        let at = self.place(chunk)?;
        if at >= self.bytes.len() {
            self.bytes.resize(at + chunk.len as usize, 0);
        }
        Ok(())
    }

    /// The bytes, once every one of them was sent.
    pub fn finish(self) -> Result<Bytes, NbdError> {
        match self.covered.is(self.asked.len) && self.bytes.len() as u64 == self.asked.len {
            true => Ok(self.bytes.freeze()),
            false => Err(NbdError::Protocol("an answer that leaves out part of a read")),
        }
    }

    /// Where a chunk belongs in the buffer. The end of the buffer is the end of some chunk, so a chunk that overlaps
    /// no other lies wholly before it or wholly after it.
    fn place(&mut self, chunk: Extent) -> Result<usize, NbdError> {
        let at = chunk.offset.checked_sub(self.asked.offset);
        let range = at.and_then(|at| Some((at, at.checked_add(chunk.len)?)));
        let (start, end) = range
            .filter(|(start, end)| start < end && *end <= self.asked.len)
            .ok_or(NbdError::Protocol("data outside the read it answers"))?;
        match self.covered.add(start, end) {
            true => Ok(start as usize),
            false => Err(NbdError::Protocol("the same byte twice in one answer")),
        }
    }
}

/// Which bytes of a read have come: disjoint, sorted, neighbours joined. Its length is bounded by the number of chunks
/// an answer may have.
#[derive(Default)]
struct Coverage(Vec<(u64, u64)>);

impl Coverage {
    /// Adds `start..end`; false if any byte of it was there already.
    fn add(&mut self, start: u64, end: u64) -> bool {
        let next = self.0.partition_point(|(s, _)| *s < start);
        if next > 0 && self.0[next - 1].1 > start || next < self.0.len() && self.0[next].0 < end {
            return false;
        }
        let joins_before = next > 0 && self.0[next - 1].1 == start;
        let joins_after = next < self.0.len() && self.0[next].0 == end;
        match (joins_before, joins_after) {
            (true, true) => {
                self.0[next - 1].1 = self.0[next].1;
                self.0.remove(next);
            }
            (true, false) => self.0[next - 1].1 = end,
            (false, true) => self.0[next].0 = start,
            (false, false) => self.0.insert(next, (start, end)),
        }
        true
    }

    fn is(&self, len: u64) -> bool {
        self.0 == [(0, len)]
    }
}

/// A stretch of bytes with one status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Run {
    pub len: u64,
    pub flags: u64,
}

/// The block status of one request: for each context the runs from its start on, perhaps not to its end.
pub(super) struct StatusAssembly {
    asked: u64,
    ids: std::sync::Arc<[u32]>,
    runs: Vec<Vec<Run>>,
}

impl StatusAssembly {
    pub fn new(asked: Extent, ids: std::sync::Arc<[u32]>) -> Self {
        Self { asked: asked.len, runs: vec![Vec::new(); ids.len()], ids }
    }

    /// Reads a chunk of `len` bytes from the connection.
    pub async fn chunk<R>(&mut self, input: &mut R, headers: Headers, len: u64) -> Result<(), NbdError>
    where
        R: AsyncRead + Unpin,
    {
        let (head, width) = match headers {
            Headers::Structured => (4, 8),
            Headers::Extended => (8, 16),
        };
        let count = len.checked_sub(head).filter(|rest| rest % width == 0).map(|rest| rest / width);
        let count = count.filter(|count| (1..=DESCRIPTORS_MAX).contains(count));
        let count = count.ok_or(NbdError::Protocol("block status of impossible length"))?;
        let at = self.context(input.read_u32().await?)?;
        if headers == Headers::Extended && u64::from(input.read_u32().await?) != count {
            return Err(NbdError::Protocol("block status with a wrong count"));
        }
        self.descriptors(input, at, count, width as usize).await
    }

    fn context(&self, id: u32) -> Result<usize, NbdError> {
        match self.ids.iter().position(|known| *known == id) {
            Some(at) if self.runs[at].is_empty() => Ok(at),
            Some(_) => Err(NbdError::Protocol("block status of one context twice")),
            None => Err(NbdError::Protocol("block status of a context that was not asked for")),
        }
    }

    async fn descriptors<R>(&mut self, input: &mut R, at: usize, count: u64, width: usize) -> Result<(), NbdError>
    where
        R: AsyncRead + Unpin,
    {
        let kept_max = RUNS_KEPT / self.ids.len();
        let mut buffer = [0; 4096];
        let mut covered = 0u64;
        let mut left = count as usize;
        while left > 0 {
            let part = &mut buffer[..(left * width).min(4096)];
            input.read_exact(part).await?;
            left -= part.len() / width;
            for run in part.chunks_exact(width).map(descriptor) {
                if run.len == 0 || covered >= self.asked {
                    return Err(NbdError::Protocol("block status beyond the end of what was asked"));
                }
                // Only the last one may reach further than was asked; that part is asked for in its turn.
                let run = Run { len: run.len.min(self.asked - covered), ..run };
                covered += run.len;
                keep(&mut self.runs[at], run, kept_max);
            }
        }
        Ok(())
    }

    /// The runs of each context, in the order in which the contexts were asked for; none of them empty.
    pub fn finish(self) -> Result<Vec<Vec<Run>>, NbdError> {
        match self.runs.iter().any(Vec::is_empty) {
            true => Err(NbdError::Protocol("block status without one of its contexts")),
            false => Ok(self.runs),
        }
    }
}

fn descriptor(bytes: &[u8]) -> Run {
    let (len, flags) = bytes.split_at(bytes.len() / 2);
    Run { len: big_endian(len), flags: big_endian(flags) }
}

fn big_endian(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0, |n, b| n << 8 | u64::from(*b))
}

/// Appends a run, joined with the last one where they agree. Once `max` runs are kept, further ones are left out.
fn keep(runs: &mut Vec<Run>, run: Run, max: usize) {
    if runs.len() >= max {
        return;
    }
    match runs.last_mut() {
        Some(last) if last.flags == run.flags => last.len += run.len,
        _ => runs.push(run),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::executor::block_on;
    use proptest::prelude::*;

    const ASKED: Extent = Extent::new(1 << 20, 4096);

    fn pattern(at: u64) -> u8 {
        (at * 7 + at / 251) as u8
    }

    /// Cuts the read into pieces at `cuts` and deals them out in the order of `keys`, every third one a hole.
    fn pieces(cuts: &[u16], keys: &[u32]) -> Vec<(Extent, bool)> {
        let mut edges: Vec<u64> = cuts.iter().map(|c| u64::from(*c)).chain([0, ASKED.len]).collect();
        edges.sort_unstable();
        edges.dedup();
        let mut dealt: Vec<_> = edges
            .windows(2)
            .zip(keys.iter().cycle())
            .enumerate()
            .map(|(i, (edge, key))| (key, Extent::new(ASKED.offset + edge[0], edge[1] - edge[0]), i % 3 == 2))
            .collect();
        dealt.sort_by_key(|(key, ..)| **key);
        dealt.into_iter().map(|(_, extent, hole)| (extent, hole)).collect()
    }

    fn feed(read: &mut ReadAssembly, extent: Extent, hole: bool) -> Result<(), NbdError> {
        if hole {
            return read.hole(extent);
        }
        let bytes: Vec<u8> = (extent.offset..extent.end()).map(pattern).collect();
        block_on(read.data(&mut bytes.as_slice(), extent))
    }

    proptest! {
        #[test]
        fn a_read_in_any_pieces_and_order_is_put_together(
            cuts in proptest::collection::vec(1u16..4096, 0..20),
            keys in proptest::collection::vec(any::<u32>(), 1..20),
        ) {
            let pieces = pieces(&cuts, &keys);
            let mut read = ReadAssembly::new(ASKED);
            for (extent, hole) in &pieces {
                feed(&mut read, *extent, *hole).unwrap();
            }
            let bytes = read.finish().unwrap();
            prop_assert_eq!(bytes.len() as u64, ASKED.len);
            for (extent, hole) in pieces {
                for at in extent.offset..extent.end() {
                    let want = if hole { 0 } else { pattern(at) };
                    prop_assert_eq!(bytes[(at - ASKED.offset) as usize], want);
                }
            }
        }

        #[test]
        fn a_read_with_a_piece_missing_or_doubled_is_no_answer(
            cuts in proptest::collection::vec(1u16..4096, 1..20),
            keys in proptest::collection::vec(any::<u32>(), 1..20),
            pick in any::<prop::sample::Index>(),
        ) {
            let mut pieces = pieces(&cuts, &keys);
            let (extent, hole) = pieces.remove(pick.index(pieces.len()));
            let mut read = ReadAssembly::new(ASKED);
            for (extent, hole) in pieces {
                feed(&mut read, extent, hole).unwrap();
            }
            if pick.index(2) == 0 {
                feed(&mut read, extent, hole).unwrap();
                prop_assert!(feed(&mut read, Extent::new(extent.offset, 1), hole).is_err());
            } else {
                prop_assert!(read.finish().is_err());
            }
        }

        #[test]
        fn whatever_a_server_sends_every_request_ends(
            mode in any::<u8>(),
            chunks in proptest::collection::vec(chunk_bytes(), 0..8),
            tail in proptest::collection::vec(any::<u8>(), 0..64),
        ) {
            let extended = mode & 1 == 1;
            let chunks = chunks.iter().flat_map(|chunk| chunk.encode(extended));
            let bytes: Vec<u8> = [mode].into_iter().chain(chunks).chain(tail).collect();
            super::super::fuzzing::reply(&bytes);
            super::super::fuzzing::greeting(&bytes[1..]);
        }
    }

    /// A chunk that is nearly right: the requests of the fuzzing entry have the cookies 1 to 3 and ask for 4096+8192.
    #[derive(Debug, Clone)]
    struct NearlyChunk {
        done: bool,
        kind: u16,
        cookie: u64,
        len_error: i8,
        payload: Vec<u8>,
    }

    impl NearlyChunk {
        fn encode(&self, extended: bool) -> Vec<u8> {
            let magic: u32 = if extended { 0x6e8a_278c } else { 0x668e_33ef };
            let len = (self.payload.len() as u64).saturating_add_signed(self.len_error.into());
            let mut out = magic.to_be_bytes().to_vec();
            out.extend(u16::from(self.done).to_be_bytes());
            out.extend(self.kind.to_be_bytes());
            out.extend(self.cookie.to_be_bytes());
            match extended {
                true => out.extend([4096u64.to_be_bytes(), len.to_be_bytes()].concat()),
                false => out.extend((len as u32).to_be_bytes()),
            }
            out.extend(&self.payload);
            out
        }
    }

    fn chunk_bytes() -> impl Strategy<Value = NearlyChunk> {
        let kind = prop::sample::select(vec![0u16, 1, 2, 5, 6, 0x8001, 0x8002, 0x8009]);
        let len_error = prop_oneof![8 => Just(0i8), 1 => any::<i8>()];
        (any::<bool>(), kind, 1u64..5, len_error, payload())
            .prop_map(|(done, kind, cookie, len_error, payload)| NearlyChunk { done, kind, cookie, len_error, payload })
    }

    fn payload() -> impl Strategy<Value = Vec<u8>> {
        let data = (0u64..3, 1usize..8192)
            .prop_map(|(n, len)| [(4096 + n * 4096).to_be_bytes().to_vec(), vec![1; len]].concat());
        let hole = (0u64..3, 0u32..9000)
            .prop_map(|(n, len)| [&(4096 + n * 4096).to_be_bytes()[..], &len.to_be_bytes()].concat());
        let status = (1u8..4, 1u8..4, proptest::collection::vec(0u8..64, 8..80));
        let status = status.prop_map(|(id, count, rest)| [vec![0, 0, 0, id, 0, 0, 0, count], rest].concat());
        let error = (0u8..3, 0u16..20)
            .prop_map(|(errno, len)| [vec![0, 0, 0, errno], len.to_be_bytes().to_vec(), vec![b'x'; 12]].concat());
        prop_oneof![Just(Vec::new()), data, hole, status, error]
    }

    #[test]
    fn a_status_answer_keeps_a_bounded_number_of_runs() {
        let descriptors: Vec<u8> = [[0u8, 0, 0, 1, 0, 0, 0, 0], [0, 0, 0, 1, 0, 0, 0, 1]].concat();
        let count = RUNS_KEPT * 2;
        let mut chunk = 7u32.to_be_bytes().to_vec();
        chunk.extend(descriptors.repeat(count / 2));
        let asked = Extent::new(0, 1 << 31);
        let mut status = StatusAssembly::new(asked, std::sync::Arc::new([7, 8]));
        block_on(status.chunk(&mut chunk.as_slice(), Headers::Structured, chunk.len() as u64)).unwrap();
        assert_eq!(status.runs[0].len(), RUNS_KEPT / 2);
        assert!(status.runs[0].iter().all(|run| run.len == 1));
    }

    #[test]
    fn a_status_chunk_longer_than_the_protocol_allows_is_refused_unread() {
        let mut status = StatusAssembly::new(Extent::new(0, 1 << 31), std::sync::Arc::new([7]));
        let len = 4 + 8 * (DESCRIPTORS_MAX + 1);
        let outcome = block_on(status.chunk(&mut [0u8; 0].as_slice(), Headers::Structured, len));
        assert!(matches!(outcome, Err(NbdError::Protocol(_))));
    }
}
