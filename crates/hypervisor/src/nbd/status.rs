//! Block status over ranges of any size: where data is, and what a dirty map has recorded.
//!
//! A server answers about as much as it likes; these loops ask on until they know everything. Where an answer would
//! grow past its bound it is made coarser, always to the safe side: a map may name too much, never too little, and
//! what is not known to be zero is data.

use understudy_model::{Extent, ExtentSet};

use super::assemble::Run;
use super::client::Client;
use super::error::NbdError;
use crate::driver::Content;

/// The context that tells holes and zeros from data.
pub const ALLOCATION_CONTEXT: &str = "base:allocation";
/// What the context of a dirty bitmap begins with; its name follows.
pub const BITMAP_CONTEXT_PREFIX: &str = "qemu:dirty-bitmap:";

/// Set for what reads as zeros.
const ALLOCATION_ZERO: u64 = 1 << 1;
/// Most pieces of an answer about allocation: 24 MiB. Beyond them the rest counts as data.
const ALLOCATION_PIECES_MAX: usize = 1 << 20;

/// How large a dirty map may grow in memory.
#[derive(Debug, Clone, Copy)]
pub struct DirtyBounds {
    /// Most extents.
    pub extents_max: usize,
    /// Largest granule to which a map with more extents may be rounded, a power of two. A frozen image may be unable to
    /// serve what lies outside its own map's granules, so only the caller knows.
    pub granule_max: u64,
}

impl Client {
    /// What `extent` holds, as a gapless sequence of pieces. Needs the context [`ALLOCATION_CONTEXT`].
    pub async fn allocation(&self, extent: Extent) -> Result<Vec<(Extent, Content)>, NbdError> {
        let wanted = self.positions(|name| name == ALLOCATION_CONTEXT)?;
        let mut pieces: Vec<(Extent, Content)> = Vec::new();
        let mut at = extent.offset;
        while at < extent.end() {
            if pieces.len() >= ALLOCATION_PIECES_MAX {
                append(&mut pieces, Extent::new(at, extent.end() - at), Content::Data);
                break;
            }
            at = self
                .page(&wanted, self.part(at, extent.end()), |part, flags| {
                    let zero = flags & ALLOCATION_ZERO != 0;
                    append(&mut pieces, part, if zero { Content::Zero } else { Content::Data });
                })
                .await?;
        }
        Ok(pieces)
    }

    /// Everything that any of this connection's dirty bitmaps has recorded. Needs at least one of them.
    pub async fn dirty(&self, bounds: DirtyBounds) -> Result<ExtentSet, NbdError> {
        let wanted = self.positions(|name| name.starts_with(BITMAP_CONTEXT_PREFIX))?;
        let size = self.export().size;
        let mut dirty = Dirty { set: ExtentSet::new(), granule: 512, bounds, size };
        let mut at = 0;
        while at < size {
            at = self.dirty_page(&wanted, self.part(at, size), &mut dirty).await?;
        }
        Ok(dirty.set)
    }

    async fn dirty_page(&self, wanted: &[usize], part: Extent, dirty: &mut Dirty) -> Result<u64, NbdError> {
        let mut found = Vec::new();
        let end = self
            .page(wanted, part, |piece, flags| {
                // Any flag counts: one that is not known today may only mean more.
                if flags != 0 {
                    found.push(piece);
                }
            })
            .await?;
        dirty.add(found)?;
        Ok(end)
    }

    /// Asks once about `extent`; calls `each` for the pieces of the wanted contexts, up to where all of them are known;
    /// returns that place, which lies beyond the start.
    async fn page(&self, wanted: &[usize], extent: Extent, mut each: impl FnMut(Extent, u64)) -> Result<u64, NbdError> {
        let answer = self.status(extent).await?;
        let known = |at: &usize| answer[*at].iter().map(|run| run.len).sum::<u64>();
        let len = wanted.iter().map(known).min().unwrap_or(extent.len);
        for at in wanted {
            pieces(&answer[*at], Extent::new(extent.offset, len)).for_each(|(piece, flags)| each(piece, flags));
        }
        Ok(extent.offset + len)
    }

    fn positions(&self, wanted: impl Fn(&str) -> bool) -> Result<Vec<usize>, NbdError> {
        let found: Vec<usize> =
            self.contexts().iter().enumerate().filter(|(_, name)| wanted(name)).map(|(at, _)| at).collect();
        match found.is_empty() {
            true => Err(NbdError::Misuse("block status without a meta context for it".to_owned())),
            false => Ok(found),
        }
    }
}

/// The runs as extents, from the start of `extent` to its end.
fn pieces(runs: &[Run], extent: Extent) -> impl Iterator<Item = (Extent, u64)> + '_ {
    let mut at = extent.offset;
    runs.iter().map_while(move |run| {
        let piece = Extent::new(at, run.len.min(extent.end() - at));
        at = piece.end();
        (piece.len > 0).then_some((piece, run.flags))
    })
}

fn append(pieces: &mut Vec<(Extent, Content)>, extent: Extent, content: Content) {
    match pieces.last_mut() {
        Some((last, kind)) if *kind == content => last.len += extent.len,
        _ => pieces.push((extent, content)),
    }
}

/// A dirty map that is made coarser when it has too many pieces.
struct Dirty {
    set: ExtentSet,
    granule: u64,
    bounds: DirtyBounds,
    size: u64,
}

impl Dirty {
    /// Adds what several maps say of one stretch of the disk. Sorted first, for a set grows cheaply at its end only.
    fn add(&mut self, mut found: Vec<Extent>) -> Result<(), NbdError> {
        found.sort_unstable();
        found.into_iter().for_each(|extent| self.set.insert(extent));
        while self.set.count() > self.bounds.extents_max {
            if self.granule >= self.bounds.granule_max {
                return Err(NbdError::TooFragmented { limit: self.bounds.extents_max });
            }
            self.granule *= 2;
            self.set = self.set.aligned(self.granule, self.size);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dirty(extents_max: usize, granule_max: u64) -> Dirty {
        let bounds = DirtyBounds { extents_max, granule_max };
        Dirty { set: ExtentSet::new(), granule: 512, bounds, size: 1 << 30 }
    }

    fn scattered(count: u64, step: u64) -> Vec<Extent> {
        (0..count).map(|i| Extent::new(i * step, 4096)).collect()
    }

    #[test]
    fn a_map_with_too_many_pieces_is_rounded_and_still_names_everything() {
        let mut map = dirty(10, 64 << 10);
        let all = scattered(64, 16 << 10);
        map.add(all.clone()).unwrap();
        assert!(map.set.count() <= 10);
        assert!(all.iter().all(|e| map.set.contains(*e)));
        assert_eq!(map.granule, 16 << 10);
    }

    #[test]
    fn a_map_that_may_not_be_rounded_further_is_refused() {
        let err = dirty(10, 64 << 10).add(scattered(64, 1 << 20)).unwrap_err();
        assert!(matches!(err, NbdError::TooFragmented { limit: 10 }));
    }

    #[test]
    fn what_several_maps_say_is_joined() {
        let mut map = dirty(10, 512);
        map.add(vec![Extent::new(8192, 4096), Extent::new(0, 4096), Extent::new(4096, 4096)]).unwrap();
        map.add(vec![Extent::new(12288, 512)]).unwrap();
        assert_eq!(map.set.iter().collect::<Vec<_>>(), [Extent::new(0, 12800)]);
    }

    #[test]
    fn pieces_end_where_they_are_told_to() {
        let runs = [Run { len: 10, flags: 0 }, Run { len: 10, flags: 1 }, Run { len: 10, flags: 0 }];
        let cut: Vec<_> = pieces(&runs, Extent::new(100, 15)).collect();
        assert_eq!(cut, [(Extent::new(100, 10), 0), (Extent::new(110, 5), 1)]);
    }
}
