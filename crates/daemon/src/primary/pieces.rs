//! Cuts what must be read into jobs of bounded size: reading, hashing and packing go job by job, many at once.

use understudy_hypervisor::driver::{Content, DiskReader};
use understudy_model::{Extent, ExtentSet};

use super::failure::driver;
use understudy_engine::primary::Failure;

/// Bytes read by one job. Sixteen jobs of a host hold at most this much twice, read and packed.
pub const JOB_BYTES: u64 = 1 << 20;
/// Pieces of one job: requests in flight at a time within it.
pub const JOB_PIECES: usize = 256;
/// Extents at least this long are asked for holes before they are read: after a trim nearly a whole disk is dirty and
/// zero.
const WORTH_ASKING: u64 = 256 << 10;
/// Most of a disk that is asked about at once, so that the answer for a fragmented disk stays small.
pub const STATUS_WINDOW: u64 = 16 << 30;

/// A part of a disk to be carried over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Piece {
    /// Known to be zero.
    Zero(Extent),
    /// To be read.
    Read(Extent),
}

impl Piece {
    /// Where it lies.
    pub fn extent(self) -> Extent {
        match self {
            Piece::Zero(extent) | Piece::Read(extent) => extent,
        }
    }
}

/// Gathers pieces into jobs.
#[derive(Debug, Default)]
pub struct Jobs {
    done: Vec<Vec<Piece>>,
    open: Vec<Piece>,
    open_bytes: u64,
}

impl Jobs {
    /// Adds a piece, cut at `cut` bytes where it must be read.
    pub fn push(&mut self, piece: Piece, cut: u64) {
        match piece {
            Piece::Zero(extent) if extent.len > 0 => self.push_one(piece, 0),
            Piece::Zero(_) => {}
            Piece::Read(extent) => {
                let mut at = extent.offset;
                while at < extent.end() {
                    let end = ((at / cut + 1) * cut).min(extent.end());
                    self.push_one(Piece::Read(Extent::new(at, end - at)), end - at);
                    at = end;
                }
            }
        }
    }

    fn push_one(&mut self, piece: Piece, bytes: u64) {
        if self.open.len() == JOB_PIECES || (self.open_bytes > 0 && self.open_bytes + bytes > JOB_BYTES) {
            self.close();
        }
        self.open.push(piece);
        self.open_bytes += bytes;
    }

    fn close(&mut self) {
        if !self.open.is_empty() {
            self.done.push(std::mem::take(&mut self.open));
            self.open_bytes = 0;
        }
    }

    /// The jobs, in order.
    pub fn finish(mut self) -> Vec<Vec<Piece>> {
        self.close();
        self.done
    }
}

/// Splits `extent` into what reads as zeros and what must be read, in units of `unit` bytes (a power of two): a unit
/// counts as zero only when all of it is.
pub async fn split(reader: &dyn DiskReader, extent: Extent, unit: u64) -> Result<Vec<Piece>, Failure> {
    if extent.len < WORTH_ASKING {
        return Ok(vec![Piece::Read(extent)]);
    }
    let status = reader.status(extent).await.map_err(|e| driver(&e))?;
    let zeros: ExtentSet = status.into_iter().filter(|(_, c)| *c == Content::Zero).map(|(e, _)| e).collect();
    Ok(cut_out(extent, &zeros, unit, reader.size()))
}

/// `extent` as pieces, where `zeros` of it is known to be zero.
fn cut_out(extent: Extent, zeros: &ExtentSet, unit: u64, size: u64) -> Vec<Piece> {
    let mut pieces = Vec::new();
    let mut at = extent.offset;
    for zero in zeros.iter() {
        let start = zero.offset.max(extent.offset).next_multiple_of(unit);
        let end = zero.end().min(extent.end());
        // The last unit of a disk may be cut short by its end.
        let end = if end == size { end } else { end & !(unit - 1) };
        if start >= end || start < at {
            continue;
        }
        if at < start {
            pieces.push(Piece::Read(Extent::new(at, start - at)));
        }
        pieces.push(Piece::Zero(Extent::new(start, end - start)));
        at = end;
    }
    if at < extent.end() {
        pieces.push(Piece::Read(Extent::new(at, extent.end() - at)));
    }
    pieces
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(offset: u64, len: u64) -> Piece {
        Piece::Read(Extent::new(offset, len))
    }

    #[test]
    fn only_whole_units_count_as_zero() {
        let zeros: ExtentSet = [Extent::new(1000, 7192)].into_iter().collect();
        let pieces = cut_out(Extent::new(0, 16384), &zeros, 4096, 16384);
        assert_eq!(pieces, [read(0, 4096), Piece::Zero(Extent::new(4096, 4096)), read(8192, 8192)]);
    }

    #[test]
    fn the_short_last_unit_of_a_disk_may_be_zero() {
        let zeros: ExtentSet = [Extent::new(4096, 1024)].into_iter().collect();
        let pieces = cut_out(Extent::new(0, 5120), &zeros, 4096, 5120);
        assert_eq!(pieces, [read(0, 4096), Piece::Zero(Extent::new(4096, 1024))]);
    }

    proptest! {
        #[test]
        fn pieces_cover_the_extent_in_order(zeros in prop::collection::vec((0u64..200, 1u64..60), 0..9), start in 0u64..20, len in 1u64..40) {
            let extent = Extent::new(start * 8, len * 8);
            let set: ExtentSet = zeros.into_iter().map(|(o, l)| Extent::new(o, l)).collect();
            let pieces = cut_out(extent, &set, 8, 1 << 20);
            let mut at = extent.offset;
            for piece in &pieces {
                prop_assert_eq!(piece.extent().offset, at);
                if let Piece::Zero(e) = piece {
                    prop_assert!(set.contains(*e));
                }
                at = piece.extent().end();
            }
            prop_assert_eq!(at, extent.end());
        }

        #[test]
        fn jobs_are_bounded_and_keep_everything(lens in prop::collection::vec(1u64..600, 1..80)) {
            let mut jobs = Jobs::default();
            let mut at = 0;
            for len in lens {
                jobs.push(read(at * 4096, len * 4096), 256 << 10);
                at += len;
            }
            let jobs = jobs.finish();
            let bytes = |job: &Vec<Piece>| job.iter().map(|p| p.extent().len).sum::<u64>();
            prop_assert!(jobs.iter().all(|j| bytes(j) <= JOB_BYTES && j.len() <= JOB_PIECES));
            prop_assert_eq!(jobs.iter().map(bytes).sum::<u64>(), at * 4096);
        }
    }
}
