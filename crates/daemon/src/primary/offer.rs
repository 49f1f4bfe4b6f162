//! Says what blocks of a live disk are, and learns which of them the target has other content for.

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use understudy_engine::primary::Failure;
use understudy_hypervisor::driver::DiskReader;
use understudy_model::{DiskId, Extent};
use understudy_run::cluster_hash;
use understudy_wire::Message;
use understudy_wire::limits::BASE_RECORD_MAX;
use understudy_wire::message::offer::{BLOCK, Claim, PART, PART_HASH, PARTS, PartHash};
use understudy_wire::message::{Offer, OfferParts, Wanted, WantedParts};

use super::failure::{bug, driver};
use super::pieces::{Jobs, Piece, split};
use super::session::{Session, unexpected};
use super::throttle::Budget;

/// Bytes of a disk that one offer speaks of: 1024 hashes, which are 44 KiB on the wire.
pub const WINDOW: u64 = 1024 * BLOCK;
/// Jobs of one window under way at once.
const JOBS_AT_ONCE: usize = 4;
/// Blocks of which parts are offered at once.
const PARTS_AT_ONCE: usize = 256;

/// Windows of a disk whose offers are planned at once: 4 GiB.
const WINDOWS_AT_ONCE: u64 = 64;

/// The windows of a disk from `from` on, in groups.
pub fn windows(from: u64, size: u64) -> impl Iterator<Item = Vec<Extent>> {
    let groups = (from..size).step_by((WINDOWS_AT_ONCE * WINDOW) as usize);
    groups.map(move |start| {
        let end = (start + WINDOWS_AT_ONCE * WINDOW).min(size);
        let offsets = (start..end).step_by(WINDOW as usize);
        offsets.map(|offset| Extent::new(offset, WINDOW.min(end - offset))).collect()
    })
}

/// Reads a window of a disk and says what its blocks are.
pub async fn prepare(
    reader: &dyn DiskReader,
    disk: DiskId,
    window: Extent,
    budget: &Budget,
) -> Result<(Extent, Offer), Failure> {
    let mut jobs = Jobs::default();
    for piece in split(reader, window, BLOCK).await? {
        jobs.push(piece, BASE_RECORD_MAX as u64);
    }
    let work: Vec<_> = jobs.finish().into_iter().map(|job| claim_job(reader, job, budget)).collect();
    let claims: Vec<Vec<Claim>> = stream::iter(work).buffered(JOBS_AT_ONCE).try_collect().await?;
    Ok((window, Offer::new(disk.0, window.offset, &claims.concat())))
}

async fn claim_job(reader: &dyn DiskReader, job: Vec<Piece>, budget: &Budget) -> Result<Vec<Claim>, Failure> {
    let _share = budget.job().await;
    let data = futures::future::try_join_all(job.iter().map(|piece| read(reader, *piece))).await?;
    let hashing = move || job.iter().zip(&data).flat_map(|(piece, bytes)| claims_of(*piece, bytes)).collect();
    tokio::task::spawn_blocking(hashing).await.map_err(|_| bug("hashing a part of a disk panicked"))
}

async fn read(reader: &dyn DiskReader, piece: Piece) -> Result<Bytes, Failure> {
    match piece {
        Piece::Zero(_) => Ok(Bytes::new()),
        Piece::Read(extent) => reader.read(extent).await.map_err(|e| driver(&e)),
    }
}

fn claims_of(piece: Piece, bytes: &Bytes) -> Vec<Claim> {
    match piece {
        Piece::Zero(extent) => vec![Claim::Zero; extent.len.div_ceil(BLOCK) as usize],
        Piece::Read(extent) => {
            let block = |(i, block): (usize, &[u8])| claim(extent.offset + i as u64 * BLOCK, block);
            bytes.chunks(BLOCK as usize).enumerate().map(block).collect()
        }
    }
}

fn claim(address: u64, block: &[u8]) -> Claim {
    if block.iter().all(|byte| *byte == 0) {
        return Claim::Zero;
    }
    Claim::Hash(hash_padded(address, block, BLOCK))
}

/// The hash of a piece that the end of the disk may have cut short: it is filled up with zeros.
fn hash_padded(address: u64, piece: &[u8], len: u64) -> [u8; 32] {
    if piece.len() as u64 == len {
        return cluster_hash(address, piece).0;
    }
    let mut whole = vec![0; len as usize];
    whole[..piece.len()].copy_from_slice(piece);
    cluster_hash(address, &whole).0
}

/// Makes an offer, and gives the extents of the blocks that the target wants.
pub async fn ask(session: &Session, offer: Offer, size: u64) -> Result<Vec<Extent>, Failure> {
    let (offset, blocks) = (offer.offset, offer.blocks as usize);
    let wanted = match session.request(&Message::Offer(offer)).await? {
        Message::Wanted(wanted) => wanted,
        other => return Err(unexpected(&other)),
    };
    ranges(&wanted, offset, blocks, size)
}

fn ranges(wanted: &Wanted, offset: u64, blocks: usize, size: u64) -> Result<Vec<Extent>, Failure> {
    wanted.flags(blocks).map_err(|_| bug("the target wants blocks it was not offered"))?;
    let extent = |(first, count): &(u32, u32)| {
        let start = offset + u64::from(*first) * BLOCK;
        let end = (start + u64::from(*count) * BLOCK).min(size);
        Extent::new(start, end - start)
    };
    Ok(wanted.ranges.iter().map(extent).collect())
}

/// Narrows blocks that differ down to the parts of them that do. A block of which that cannot be told stays whole.
pub async fn narrow(
    session: &Session,
    reader: &dyn DiskReader,
    disk: DiskId,
    differing: Vec<Extent>,
) -> Result<Vec<Extent>, Failure> {
    let size = reader.size();
    let blocks = differing.iter().flat_map(|extent| (extent.offset..extent.end()).step_by(BLOCK as usize));
    let blocks: Vec<u64> = blocks.collect();
    let mut narrowed = Vec::new();
    for group in blocks.chunks(PARTS_AT_ONCE) {
        let reads: Vec<_> = group.iter().map(|block| parts_of(reader, *block, size)).collect();
        let parts: Vec<_> = stream::iter(reads).buffered(JOBS_AT_ONCE).try_collect().await?;
        let masks = match session.request(&Message::OfferParts(OfferParts::new(disk.0, &parts))).await? {
            Message::WantedParts(WantedParts { masks }) if masks.len() == group.len() => masks,
            other => return Err(unexpected(&other)),
        };
        for (block, mask) in group.iter().zip(masks) {
            narrowed.extend(masked(*block, mask, size));
        }
    }
    Ok(narrowed)
}

async fn parts_of(reader: &dyn DiskReader, block: u64, size: u64) -> Result<(u64, [PartHash; PARTS]), Failure> {
    let extent = Extent::new(block, BLOCK.min(size - block));
    let bytes = reader.read(extent).await.map_err(|e| driver(&e))?;
    let hashing = move || {
        let mut hashes = [[0; PART_HASH]; PARTS];
        for (at, hash) in hashes.iter_mut().enumerate() {
            let from = (at as u64 * PART).min(bytes.len() as u64) as usize;
            let part = &bytes[from..(from + PART as usize).min(bytes.len())];
            hash.copy_from_slice(&hash_padded(block + at as u64 * PART, part, PART)[..PART_HASH]);
        }
        (block, hashes)
    };
    tokio::task::spawn_blocking(hashing).await.map_err(|_| bug("hashing a block panicked"))
}

fn masked(block: u64, mask: u16, size: u64) -> impl Iterator<Item = Extent> {
    let parts = (0..PARTS as u64).filter(move |part| mask & (1 << part) != 0).map(move |part| block + part * PART);
    parts.filter(move |at| *at < size).map(move |at| Extent::new(at, PART.min(size - at)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mask_names_parts_and_the_end_of_the_disk_cuts_the_last_short() {
        let size = BLOCK + 5 * 512;
        let parts: Vec<Extent> = masked(BLOCK, 0b1011, size).collect();
        assert_eq!(parts, [Extent::new(BLOCK, 2560)]);
        let parts: Vec<Extent> = masked(0, 0x8001, size).collect();
        assert_eq!(parts, [Extent::new(0, 4096), Extent::new(15 * 4096, 4096)]);
    }

    #[test]
    fn a_block_cut_short_by_the_end_of_the_disk_is_claimed_as_if_zeros_followed() {
        let mut whole = vec![0; BLOCK as usize];
        whole[..512].fill(7);
        assert_eq!(claim(BLOCK, &whole[..512]), claim(BLOCK, &whole));
        assert_eq!(claim(0, &[0; 512]), Claim::Zero);
    }

    #[test]
    fn wishes_beyond_the_offer_are_refused() {
        let wanted = Wanted { ranges: vec![(1, 2)] };
        assert_eq!(ranges(&wanted, 0, 3, 3 * BLOCK).unwrap(), [Extent::new(BLOCK, 2 * BLOCK)]);
        assert!(ranges(&wanted, 0, 2, 3 * BLOCK).is_err());
    }
}
