//! Offers: how two sides find out what differs without sending it.
//!
//! The source says of each block of 64 KiB whether it is zero, and else its hash, which has the block's address mixed in;
//! the target asks for those it has other content for. Of a block that differs the source may then say what its sixteen
//! parts of 4 KiB are, by the first sixteen bytes of their hashes.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD as BASE64;
use serde::{Deserialize, Serialize};

use super::ConvertError;
use super::convert::count;
use crate::limits;

/// Bytes of a block that an offer speaks of: what the target keeps one checksum for.
pub const BLOCK: u64 = 64 << 10;
/// Bytes of a part of a block.
pub const PART: u64 = 4 << 10;
/// Bytes of a part's hash that are told.
pub const PART_HASH: usize = 16;
/// What is told of a part.
pub type PartHash = [u8; PART_HASH];
/// Parts of a block.
pub const PARTS: usize = (BLOCK / PART) as usize;

/// Begins a comparison.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CompareBegin {
    /// Digest of the target's newest cut, as the source knows it.
    pub against: String,
}

/// What the source's blocks are, from `offset` on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Offer {
    /// The disk.
    pub disk: u16,
    /// Where the first block begins: a multiple of [`BLOCK`].
    pub offset: u64,
    /// How many blocks.
    pub blocks: u32,
    /// Ranges of blocks that are all zero: first, counted from the offer's first, and count. Ascending.
    #[serde(default)]
    pub zeros: Vec<(u32, u32)>,
    /// Base64 of the hashes of all other blocks, one after the other.
    #[serde(default)]
    pub hashes: String,
}

/// Ranges of an offer's blocks that the target wants: first, counted from the offer's first, and count. Ascending.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Wanted {
    /// The ranges.
    pub ranges: Vec<(u32, u32)>,
}

/// What the parts of blocks are.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct OfferParts {
    /// The disk.
    pub disk: u16,
    /// Where the blocks begin.
    pub offsets: Vec<u64>,
    /// Base64 of [`PARTS`] times [`PART_HASH`] bytes for each block.
    pub hashes: String,
}

/// For each block of [`OfferParts`], a bit for each part that differs; the lowest is the first part.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct WantedParts {
    /// The masks.
    pub masks: Vec<u16>,
}

/// What a block is said to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Claim {
    /// All zero.
    Zero,
    /// Of this hash.
    Hash([u8; 32]),
}

impl Offer {
    /// An offer of these blocks.
    pub fn new(disk: u16, offset: u64, claims: &[Claim]) -> Self {
        let (mut zeros, mut hashes) = (Vec::<(u32, u32)>::new(), Vec::new());
        for (at, claim) in claims.iter().enumerate() {
            let at = at as u32;
            match (claim, zeros.last_mut()) {
                (Claim::Hash(hash), _) => hashes.extend_from_slice(hash),
                (Claim::Zero, Some((first, count))) if *first + *count == at => *count += 1,
                (Claim::Zero, _) => zeros.push((at, 1)),
            }
        }
        Self { disk, offset, blocks: claims.len() as u32, zeros, hashes: BASE64.encode(hashes) }
    }

    /// What the blocks are said to be.
    pub fn claims(&self) -> Result<Vec<Claim>, ConvertError> {
        check(self)?;
        let bytes = decode("hashes of an offer", &self.hashes)?;
        let mut claims: Vec<Option<Claim>> = vec![None; self.blocks as usize];
        for (first, count) in &self.zeros {
            claims[*first as usize..(*first + *count) as usize].fill(Some(Claim::Zero));
        }
        let (hashes, rest) = bytes.as_chunks::<32>();
        let open = claims.iter().filter(|claim| claim.is_none()).count();
        if !rest.is_empty() || hashes.len() != open {
            return Err(ConvertError::Count { what: "hashes", count: hashes.len(), max: open });
        }
        let mut hashes = hashes.iter();
        Ok(claims.into_iter().map(|claim| claim.unwrap_or_else(|| next(&mut hashes))).collect())
    }
}

fn next(hashes: &mut std::slice::Iter<'_, [u8; 32]>) -> Claim {
    Claim::Hash(*hashes.next().expect("there are as many hashes as blocks without one"))
}

impl Wanted {
    /// The ranges of the blocks that are wanted.
    pub fn new(wanted: &[bool]) -> Self {
        let mut ranges = Vec::<(u32, u32)>::new();
        for (at, _) in wanted.iter().enumerate().filter(|(_, wanted)| **wanted) {
            match ranges.last_mut() {
                Some((first, count)) if *first as usize + *count as usize == at => *count += 1,
                _ => ranges.push((at as u32, 1)),
            }
        }
        Self { ranges }
    }

    /// Which of `blocks` blocks are wanted.
    pub fn flags(&self, blocks: usize) -> Result<Vec<bool>, ConvertError> {
        check_ranges("wanted ranges", &self.ranges, blocks as u64)?;
        let mut flags = vec![false; blocks];
        for (first, count) in &self.ranges {
            flags[*first as usize..(*first + *count) as usize].fill(true);
        }
        Ok(flags)
    }
}

impl OfferParts {
    /// An offer of the parts of these blocks.
    pub fn new(disk: u16, parts: &[(u64, [PartHash; PARTS])]) -> Self {
        let bytes: Vec<u8> = parts.iter().flat_map(|(_, hashes)| hashes.as_flattened()).copied().collect();
        Self { disk, offsets: parts.iter().map(|(offset, _)| *offset).collect(), hashes: BASE64.encode(bytes) }
    }

    /// The blocks, and what their parts are.
    pub fn parts(&self) -> Result<Vec<(u64, [PartHash; PARTS])>, ConvertError> {
        check_parts(self)?;
        let bytes = decode("hashes of parts", &self.hashes)?;
        let (hashes, rest) = bytes.as_chunks::<PART_HASH>();
        let (blocks, over) = hashes.as_chunks::<PARTS>();
        if !rest.is_empty() || !over.is_empty() || blocks.len() != self.offsets.len() {
            return Err(ConvertError::Count { what: "hashes", count: hashes.len(), max: self.offsets.len() * PARTS });
        }
        Ok(self.offsets.iter().copied().zip(blocks.iter().copied()).collect())
    }
}

fn decode(what: &'static str, text: &str) -> Result<Vec<u8>, ConvertError> {
    BASE64.decode(text).map_err(|_| ConvertError::Digest { what })
}

/// Holds an offer to its limits.
pub(super) fn check(offer: &Offer) -> Result<(), ConvertError> {
    count("blocks", offer.blocks as usize, limits::OFFER_BLOCKS_MAX)?;
    if !offer.offset.is_multiple_of(BLOCK) {
        return Err(ConvertError::Offset { offset: offer.offset });
    }
    check_ranges("zero ranges", &offer.zeros, u64::from(offer.blocks))
}

/// Holds an offer of parts to its limits.
pub(super) fn check_parts(offer: &OfferParts) -> Result<(), ConvertError> {
    count("blocks", offer.offsets.len(), limits::OFFER_PARTS_MAX)?;
    match offer.offsets.iter().find(|offset| !offset.is_multiple_of(BLOCK)) {
        Some(offset) => Err(ConvertError::Offset { offset: *offset }),
        None => Ok(()),
    }
}

/// Ascending, not touching one another in disorder, within `blocks`.
fn check_ranges(what: &'static str, ranges: &[(u32, u32)], blocks: u64) -> Result<(), ConvertError> {
    let mut end = 0;
    for (first, count) in ranges {
        let (first, count) = (u64::from(*first), u64::from(*count));
        if first < end || count == 0 || first + count > blocks {
            return Err(ConvertError::Count { what, count: (first + count) as usize, max: blocks as usize });
        }
        end = first + count;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn claim() -> impl Strategy<Value = Claim> {
        prop_oneof![Just(Claim::Zero), any::<[u8; 32]>().prop_map(Claim::Hash)]
    }

    proptest! {
        #[test]
        fn offers_come_back_as_they_were_made(claims in proptest::collection::vec(claim(), 0..200), block in 0_u64..1000) {
            let offer = Offer::new(3, block * BLOCK, &claims);
            prop_assert_eq!(offer.claims().unwrap(), claims);
        }

        #[test]
        fn wishes_come_back_as_they_were_made(wanted in proptest::collection::vec(any::<bool>(), 0..200)) {
            prop_assert_eq!(Wanted::new(&wanted).flags(wanted.len()).unwrap(), wanted);
        }

        #[test]
        fn no_offer_is_read_beyond_its_bounds(
            blocks in any::<u32>(),
            zeros in proptest::collection::vec(any::<(u32, u32)>(), 0..5),
            hashes in "[A-Za-z0-9+/]{0,90}",
        ) {
            let _ = Offer { disk: 0, offset: 0, blocks, zeros: zeros.clone(), hashes }.claims();
            let _ = Wanted { ranges: zeros }.flags(64);
        }
    }

    #[test]
    fn parts_come_back_as_they_were_made() {
        let parts = vec![(BLOCK, [[1; 16]; PARTS]), (5 * BLOCK, [[2; 16]; PARTS])];
        let offer = OfferParts::new(1, &parts);
        assert_eq!(offer.parts().unwrap(), parts);
        let short = OfferParts { hashes: offer.hashes[..20].to_owned(), ..offer };
        assert!(short.parts().is_err());
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let offer = Offer::new(0, 0, &[Claim::Hash([1; 32]), Claim::Zero]);
        assert!(Offer { offset: 512, ..offer.clone() }.claims().is_err());
        assert!(Offer { blocks: 3, ..offer.clone() }.claims().is_err());
        assert!(Offer { zeros: vec![(1, 2)], ..offer.clone() }.claims().is_err());
        assert!(Offer { zeros: vec![(1, 1), (0, 1)], ..offer }.claims().is_err());
        assert!(Wanted { ranges: vec![(0, 9)] }.flags(8).is_err());
    }
}
