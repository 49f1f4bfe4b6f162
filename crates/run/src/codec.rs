//! Compressing a cluster once, on the primary, and getting exactly one cluster back, wherever it went.
//!
//! A compressed cluster is a single zstd frame that states its content's size and needs no window beyond it (the
//! "single segment" form). [`Decoder`] refuses every other frame before it takes memory, so a frame can neither grow
//! past its cluster nor mean something else to QEMU, whose stream decoder takes the same path for such frames.

use understudy_model::ErrorKind;
use zstd::zstd_safe::{self, CCtx, CParameter, DCtx};

/// How a data cluster's bytes are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Stored {
    /// As one zstd frame, shorter than the cluster.
    Compressed,
    /// As they are.
    Plain,
}

/// What became of a cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Encoded<'a> {
    /// All zeros: only that is kept.
    Zero,
    /// A frame worth keeping.
    Compressed(&'a [u8]),
    /// It does not shrink: keep the bytes that were handed in.
    Plain,
}

/// Why bytes are not one cluster.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CodecError {
    /// The compression level is not one that zstd knows.
    #[error("compression level {level} is not between {} and {}", LEVELS.start(), LEVELS.end())]
    Level {
        /// What was asked for.
        level: i32,
    },
    /// zstd has no memory for its working state.
    #[error("no memory for compression")]
    NoMemory,
    /// Plain bytes of another length than the cluster's, or a frame that is not shorter than it.
    #[error("{len} stored bytes cannot be a cluster of {cluster_size}")]
    StoredLength {
        /// Number of stored bytes.
        len: usize,
        /// Bytes in a cluster.
        cluster_size: usize,
    },
    /// Not a single zstd frame in the single-segment form with the cluster's size as its content size.
    #[error("stored bytes are not one zstd frame holding exactly {cluster_size} bytes")]
    Frame {
        /// Bytes in a cluster.
        cluster_size: usize,
    },
    /// The frame is damaged inside.
    #[error("a compressed cluster does not decompress: {reason}")]
    Damaged {
        /// zstd's word for it.
        reason: &'static str,
    },
}

impl CodecError {
    /// What the caller does next.
    pub fn kind(&self) -> ErrorKind {
        match self {
            CodecError::Level { .. } => ErrorKind::Refused,
            CodecError::NoMemory => ErrorKind::Retry,
            _ => ErrorKind::Corrupt,
        }
    }
}

/// Levels that can be asked for: zstd's fast ones down to a third of its speed's end, and the usual ones. Beyond 19 a
/// decompressor would need more memory than a cluster is worth.
pub const LEVELS: std::ops::RangeInclusive<i32> = -50..=19;

/// Compresses clusters. One per thread; keeps its working memory from cluster to cluster.
pub struct Encoder {
    context: Option<CCtx<'static>>,
    frame: Vec<u8>,
}

impl Encoder {
    /// An encoder at a zstd level out of [`LEVELS`].
    pub fn new(level: i32) -> Result<Self, CodecError> {
        if !LEVELS.contains(&level) {
            return Err(CodecError::Level { level });
        }
        let mut context = CCtx::try_create().ok_or(CodecError::NoMemory)?;
        context.set_parameter(CParameter::CompressionLevel(level)).map_err(|_| CodecError::Level { level })?;
        Ok(Self { context: Some(context), frame: Vec::new() })
    }

    /// An encoder for links and disks faster than compression: finds zeros and leaves the rest plain.
    pub fn plain() -> Self {
        Self { context: None, frame: Vec::new() }
    }

    /// Encodes one whole cluster. The last, partial cluster of a disk is handed in padded with zeros.
    pub fn encode(&mut self, raw: &[u8]) -> Encoded<'_> {
        if is_zero(raw) {
            return Encoded::Zero;
        }
        let Some(context) = &mut self.context else { return Encoded::Plain };
        // Given no room for more than what is worth keeping, zstd gives up early on what does not shrink.
        self.frame.resize(worth_keeping(raw.len()), 0);
        match context.compress2(self.frame.as_mut_slice(), raw) {
            Ok(len) => Encoded::Compressed(&self.frame[..len]),
            Err(_) => Encoded::Plain,
        }
    }
}

/// A frame must save at least a sixteenth: less is not worth decompressing at each read.
fn worth_keeping(cluster_size: usize) -> usize {
    cluster_size - cluster_size / 16
}

/// Decompresses clusters. One per thread; keeps its working memory from cluster to cluster.
pub struct Decoder {
    context: DCtx<'static>,
    cluster: Vec<u8>,
}

impl Decoder {
    /// A decoder.
    pub fn new() -> Result<Self, CodecError> {
        let context = DCtx::try_create().ok_or(CodecError::NoMemory)?;
        Ok(Self { context, cluster: Vec::new() })
    }

    /// Fills `out`, one whole cluster, from its stored bytes.
    pub fn decode(&mut self, stored: Stored, bytes: &[u8], out: &mut [u8]) -> Result<(), CodecError> {
        check_length(stored, bytes.len(), out.len())?;
        match stored {
            Stored::Plain => out.copy_from_slice(bytes),
            Stored::Compressed => inflate(&mut self.context, bytes, out)?,
        }
        Ok(())
    }

    /// The cluster's bytes, without copying those that are stored plain.
    pub fn cluster<'a>(
        &'a mut self,
        stored: Stored,
        bytes: &'a [u8],
        cluster_size: usize,
    ) -> Result<&'a [u8], CodecError> {
        check_length(stored, bytes.len(), cluster_size)?;
        if stored == Stored::Plain {
            return Ok(bytes);
        }
        self.cluster.resize(cluster_size, 0);
        inflate(&mut self.context, bytes, &mut self.cluster)?;
        Ok(&self.cluster)
    }
}

fn check_length(stored: Stored, len: usize, cluster_size: usize) -> Result<(), CodecError> {
    let fits = match stored {
        Stored::Plain => len == cluster_size,
        Stored::Compressed => len > 0 && len < cluster_size,
    };
    if fits { Ok(()) } else { Err(CodecError::StoredLength { len, cluster_size }) }
}

fn inflate(context: &mut DCtx<'static>, frame: &[u8], out: &mut [u8]) -> Result<(), CodecError> {
    if !is_single_segment_of(frame, out.len()) || zstd_safe::find_frame_compressed_size(frame) != Ok(frame.len()) {
        return Err(CodecError::Frame { cluster_size: out.len() });
    }
    match context.decompress(out, frame) {
        Ok(len) if len == out.len() => Ok(()),
        Ok(_) => Err(CodecError::Frame { cluster_size: out.len() }),
        Err(code) => Err(CodecError::Damaged { reason: zstd_safe::get_error_name(code) }),
    }
}

/// Reads the frame header (RFC 8878, section 3.1.1.1): single segment, no dictionary, nothing reserved, content size as
/// expected.
fn is_single_segment_of(frame: &[u8], content_size: usize) -> bool {
    const MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];
    const SINGLE_SEGMENT: u8 = 0x20;
    const RESERVED_AND_DICTIONARY: u8 = 0x0b;
    let Some((magic, rest)) = frame.split_first_chunk::<4>() else { return false };
    let Some((&descriptor, rest)) = rest.split_first() else { return false };
    if *magic != MAGIC || descriptor & SINGLE_SEGMENT == 0 || descriptor & RESERVED_AND_DICTIONARY != 0 {
        return false;
    }
    let stated = match descriptor >> 6 {
        0 => rest.first().map(|n| u64::from(*n)),
        // The two-byte form counts from 256, so that no size can be written in two ways.
        1 => rest.first_chunk().map(|n| u64::from(u16::from_le_bytes(*n)) + 256),
        2 => rest.first_chunk().map(|n| u64::from(u32::from_le_bytes(*n))),
        _ => rest.first_chunk().map(|n| u64::from_le_bytes(*n)),
    };
    stated == Some(content_size as u64)
}

/// Whether all bytes are zero. Folds whole blocks with OR, which compilers turn into vector code, and looks up only
/// between blocks, so that data is told from zeros after the first few bytes.
pub fn is_zero(bytes: &[u8]) -> bool {
    const BLOCK: usize = 256;
    let (blocks, tail) = bytes.as_chunks::<BLOCK>();
    blocks.iter().all(block_is_zero) && tail.iter().fold(0, |all, byte| all | byte) == 0
}

fn block_is_zero(block: &[u8; 256]) -> bool {
    let (words, _) = block.as_chunks::<8>();
    words.iter().fold(0, |all, word| all | u64::from_ne_bytes(*word)) == 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn text(len: usize) -> Vec<u8> {
        (0..len).map(|i| b"the guest's bytes "[i % 18]).collect()
    }

    fn noise(len: usize) -> Vec<u8> {
        let mut out = vec![0; len];
        blake3::Hasher::new().finalize_xof().fill(&mut out);
        out
    }

    #[test]
    fn every_level_makes_frames_that_the_decoder_takes() {
        for level in [-50, -5, -1, 1, 2, 3, 4, 6, 9, 13, 16, 19] {
            let mut encoder = Encoder::new(level).unwrap();
            for bits in 12..=18 {
                let raw = text(1 << bits);
                let Encoded::Compressed(frame) = encoder.encode(&raw) else { panic!("text shrinks") };
                let mut out = vec![0; raw.len()];
                Decoder::new().unwrap().decode(Stored::Compressed, frame, &mut out).unwrap();
                assert_eq!(out, raw, "level {level}, 2^{bits}");
            }
        }
        assert_eq!(Encoder::new(20).err(), Some(CodecError::Level { level: 20 }));
    }

    #[test]
    fn zeros_and_what_does_not_shrink_are_told_apart() {
        let mut encoder = Encoder::new(1).unwrap();
        assert_eq!(encoder.encode(&[0; 4096]), Encoded::Zero);
        assert_eq!(encoder.encode(&noise(4096)), Encoded::Plain);
        assert_eq!(Encoder::plain().encode(&text(4096)), Encoded::Plain);
        assert_eq!(Encoder::plain().encode(&[0; 4096]), Encoded::Zero);
    }

    #[test]
    fn a_decompression_bomb_ends_at_the_cluster() {
        let mut bomb = vec![0; 1 << 20];
        let huge = vec![0; 64 << 20];
        let len = CCtx::create().compress2(bomb.as_mut_slice(), &huge).unwrap();
        let mut out = vec![0; 65536];
        let err = Decoder::new().unwrap().decode(Stored::Compressed, &bomb[..len], &mut out).unwrap_err();
        assert_eq!(err, CodecError::Frame { cluster_size: 65536 });
    }

    #[test]
    fn a_lie_about_the_content_size_is_damage_and_not_a_longer_cluster() {
        let mut encoder = Encoder::new(1).unwrap();
        let raw = text(65536 * 2);
        let Encoded::Compressed(frame) = encoder.encode(&raw) else { panic!("text shrinks") };
        let mut frame = frame.to_vec();
        assert_eq!(frame[4] >> 6, 2, "a four-byte content size");
        frame[5..9].copy_from_slice(&65536u32.to_le_bytes());
        let mut out = vec![0; 65536];
        let err = Decoder::new().unwrap().decode(Stored::Compressed, &frame, &mut out).unwrap_err();
        assert!(matches!(err, CodecError::Damaged { .. }), "{err}");
    }

    #[test]
    fn frames_with_something_before_inside_or_behind_are_refused() {
        let mut encoder = Encoder::new(1).unwrap();
        let raw = text(4096);
        let Encoded::Compressed(frame) = encoder.encode(&raw) else { panic!("text shrinks") };
        let mut out = vec![0; 4096];
        let mut decoder = Decoder::new().unwrap();
        let behind = [frame, &[0]].concat();
        let skippable = [&[0x50, 0x2a, 0x4d, 0x18, 0, 0, 0, 0], frame].concat();
        let twice = [frame, frame].concat();
        for bytes in [&behind, &skippable, &twice, &frame[..frame.len() - 1].to_vec(), &frame[..3].to_vec()] {
            assert!(decoder.decode(Stored::Compressed, bytes, &mut out).is_err());
        }
        assert!(decoder.decode(Stored::Compressed, &[], &mut out).is_err());
        assert!(decoder.decode(Stored::Compressed, &[1; 4096], &mut out).is_err());
        assert!(decoder.decode(Stored::Plain, &[1; 4095], &mut out).is_err());
    }

    #[test]
    fn a_frame_without_a_content_size_is_refused() {
        let mut context = CCtx::create();
        context.set_parameter(CParameter::ContentSizeFlag(false)).unwrap();
        let mut frame = vec![0; 4096];
        let len = context.compress2(frame.as_mut_slice(), &text(4096)).unwrap();
        let err = Decoder::new().unwrap().decode(Stored::Compressed, &frame[..len], &mut [0; 4096]).unwrap_err();
        assert_eq!(err, CodecError::Frame { cluster_size: 4096 });
    }

    proptest! {
        #[test]
        fn one_bit_anywhere_is_not_zero(len in 1usize..2000, at in any::<prop::sample::Index>(), bit in 0u8..8) {
            let mut bytes = vec![0; len];
            prop_assert!(is_zero(&bytes));
            bytes[at.index(len)] = 1 << bit;
            prop_assert!(!is_zero(&bytes));
        }

        #[test]
        fn foreign_bytes_never_decode_to_anything_but_a_cluster(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let mut frame = vec![0x28, 0xb5, 0x2f, 0xfd];
            frame.extend_from_slice(&bytes);
            let mut out = vec![0; 4096];
            let _ = Decoder::new().unwrap().decode(Stored::Compressed, &frame, &mut out);
            prop_assert_eq!(out.len(), 4096);
        }
    }
}
