//! What names content: the hash of a cluster, the digest of a run, the digest of a cut.
//!
//! All three cover the guest's bytes and where they lie, and nothing of how they were compressed, batched or laid out
//! in a file. So both sides compute them on their own, at any compression level, and equal digests mean equal disks.
//! `docs/formats/run.md` spells them out byte by byte.

use std::fmt;

use understudy_model::id::write_hex;
use understudy_model::{Consistency, CutDigest, CutNumber, DiskId, ErrorKind, Generation, Timestamp, VmId};

use crate::geometry::Geometry;

macro_rules! hash_type {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub [u8; 32]);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write_hex(f, &self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write_hex(f, &self.0[..6])
            }
        }
    };
}

hash_type!(
    /// The hash of one cluster's bytes and its address on the disk.
    ClusterHash);
hash_type!(
    /// The digest of a run: of every cluster in it, with its address.
    RunDigest);

const CLUSTER_DOMAIN: &[u8; 24] = b"understudy cluster v1\0\0\0";
const STORED_DOMAIN: &[u8; 24] = b"understudy stored v1\0\0\0\0";
const RUN_CONTEXT: &str = "understudy run digest v1";
const CUT_CONTEXT: &str = "understudy cut digest v1";

/// Hashes a cluster (or any other piece of a disk) together with its address. The address goes into the key, so it
/// costs nothing, and bytes moved to another place no longer match.
pub fn cluster_hash(address: u64, bytes: &[u8]) -> ClusterHash {
    ClusterHash(*blake3::keyed_hash(&addressed_key(CLUSTER_DOMAIN, address), bytes).as_bytes())
}

/// What is told of a part of a block that differs.
pub type PartHash = [u8; 16];

/// The first half of the [`cluster_hash`]: tells which parts of a block differ at half the cost. Nobody can make two
/// parts that it takes for equal in fewer than some 2⁶⁴ attempts.
pub fn part_hash(address: u64, bytes: &[u8]) -> PartHash {
    let hash = cluster_hash(address, bytes);
    let (first, _) = hash.0.split_first_chunk().expect("a hash is longer than its half");
    *first
}

/// A short check of a cluster's stored bytes, so that frames can be copied and forwarded without decompressing them
/// first. Against damage, not against people: what counts is the hash of what the frame holds.
pub(crate) fn stored_check(address: u64, stored: &[u8]) -> u64 {
    let hash = blake3::keyed_hash(&addressed_key(STORED_DOMAIN, address), stored);
    let (first, _) = hash.as_bytes().split_first_chunk().expect("a hash is longer than a check");
    u64::from_le_bytes(*first)
}

fn addressed_key(domain: &[u8; 24], address: u64) -> [u8; 32] {
    let mut key = [0; 32];
    key[..24].copy_from_slice(domain);
    key[24..].copy_from_slice(&address.to_le_bytes());
    key
}

/// What a cluster holds. All-zero clusters are always of the zero kind, so that equal content has one digest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClusterKind {
    /// Nothing but zeros.
    Zero,
    /// Something else, of this hash.
    Data(ClusterHash),
}

/// Clusters came to a digest out of order, twice, unaligned, or beyond the disk's end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("cluster at {address} where one at {next} or after it was expected")]
pub struct OrderError {
    /// The cluster's address.
    pub address: u64,
    /// The lowest that would have been in order.
    pub next: u64,
}

impl OrderError {
    /// What the caller does next.
    pub fn kind(&self) -> ErrorKind {
        ErrorKind::Corrupt
    }
}

/// Computes a [`RunDigest`] from clusters in ascending order.
pub struct RunDigester {
    geometry: Geometry,
    hasher: blake3::Hasher,
    /// Items gather here, because hashing few bytes at a time is slow.
    pending: Vec<u8>,
    /// A range of zeros that may still grow: only maximal ranges are hashed, so that it does not matter in which
    /// pieces they came.
    zeros: Option<(u64, u64)>,
    next: u64,
    data_clusters: u64,
    zero_clusters: u64,
}

impl RunDigester {
    const TAG_END: u8 = 0;
    const TAG_ZEROS: u8 = 1;
    const TAG_DATA: u8 = 2;
    const GATHER: usize = 16 << 10;

    /// The digest of a run on a disk of this geometry.
    pub fn new(geometry: Geometry) -> Self {
        let mut pending = Vec::with_capacity(Self::GATHER + 64);
        pending.extend_from_slice(&geometry.virtual_size().to_le_bytes());
        pending.extend_from_slice(&geometry.cluster_bits().to_le_bytes());
        let hasher = blake3::Hasher::new_derive_key(RUN_CONTEXT);
        Self { geometry, hasher, pending, zeros: None, next: 0, data_clusters: 0, zero_clusters: 0 }
    }

    /// Adds one cluster.
    pub fn push(&mut self, address: u64, kind: ClusterKind) -> Result<(), OrderError> {
        match kind {
            ClusterKind::Zero => self.push_zeros(address, 1),
            ClusterKind::Data(hash) => self.push_data(address, &hash),
        }
    }

    /// Adds a data cluster.
    pub fn push_data(&mut self, address: u64, hash: &ClusterHash) -> Result<(), OrderError> {
        self.advance(address, 1)?;
        self.settle_zeros();
        self.item(Self::TAG_DATA, &[&address.to_le_bytes(), &hash.0]);
        self.data_clusters += 1;
        Ok(())
    }

    /// Adds `count` zero clusters in a row.
    pub fn push_zeros(&mut self, address: u64, count: u64) -> Result<(), OrderError> {
        if count == 0 {
            return Ok(());
        }
        let adjacent = address == self.next;
        self.advance(address, count)?;
        match &mut self.zeros {
            Some((_, clusters)) if adjacent => *clusters += count,
            _ => {
                self.settle_zeros();
                self.zeros = Some((address, count));
            }
        }
        self.zero_clusters += count;
        Ok(())
    }

    /// The digest of all that was pushed.
    pub fn finish(mut self) -> RunDigest {
        self.settle_zeros();
        let (data, zero) = (self.data_clusters.to_le_bytes(), self.zero_clusters.to_le_bytes());
        self.item(Self::TAG_END, &[&data, &zero]);
        self.hasher.update(&self.pending);
        RunDigest(*self.hasher.finalize().as_bytes())
    }

    fn advance(&mut self, address: u64, count: u64) -> Result<(), OrderError> {
        let bits = self.geometry.cluster_bits();
        let left = self.geometry.clusters().saturating_sub(address >> bits);
        if address < self.next || !self.geometry.is_cluster(address) || count > left {
            return Err(OrderError { address, next: self.next });
        }
        self.next = address + (count << bits);
        Ok(())
    }

    fn settle_zeros(&mut self) {
        if let Some((address, count)) = self.zeros.take() {
            self.item(Self::TAG_ZEROS, &[&address.to_le_bytes(), &count.to_le_bytes()]);
        }
    }

    fn item(&mut self, tag: u8, fields: &[&[u8]]) {
        self.pending.push(tag);
        fields.iter().for_each(|field| self.pending.extend_from_slice(field));
        if self.pending.len() >= Self::GATHER {
            self.hasher.update(&self.pending);
            self.pending.clear();
        }
    }
}

/// What a cut says of itself, as far as its digest covers it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CutHeader {
    /// The VM whose disks were frozen.
    pub vm: VmId,
    /// Generation it was taken in.
    pub generation: Generation,
    /// Its number in the relationship.
    pub number: CutNumber,
    /// When the disks were frozen, by the primary's wall clock.
    pub taken_at: Timestamp,
    /// What it promises.
    pub consistency: Consistency,
}

/// The digest of a cut: its parent's, what it says of itself, and for each disk its size and the digest of the run that
/// leads here. The order in which disks are listed does not matter; listing one twice is our mistake.
pub fn cut_digest(parent: CutDigest, header: &CutHeader, disks: &[(DiskId, u64, RunDigest)]) -> CutDigest {
    let mut disks = disks.to_vec();
    disks.sort_by_key(|(disk, ..)| *disk);
    assert!(disks.windows(2).all(|pair| pair[0].0 != pair[1].0), "a disk is listed once in a cut");
    let mut hasher = blake3::Hasher::new_derive_key(CUT_CONTEXT);
    hasher.update(&parent.0);
    hasher.update(header.vm.0.as_bytes());
    hasher.update(&header.generation.0.to_le_bytes());
    hasher.update(&header.number.0.to_le_bytes());
    hasher.update(&header.taken_at.0.to_le_bytes());
    hasher.update(&[consistency_byte(header.consistency)]);
    hasher.update(&(disks.len() as u64).to_le_bytes());
    for (disk, virtual_size, run) in &disks {
        hasher.update(&disk.0.to_le_bytes());
        hasher.update(&virtual_size.to_le_bytes());
        hasher.update(&run.0);
    }
    CutDigest(*hasher.finalize().as_bytes())
}

fn consistency_byte(consistency: Consistency) -> u8 {
    match consistency {
        Consistency::Standard => 0,
        Consistency::Application => 1,
        Consistency::Planned => 2,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use uuid::Uuid;

    fn geometry() -> Geometry {
        Geometry::new(1 << 20, 12).unwrap()
    }

    fn header() -> CutHeader {
        CutHeader {
            vm: VmId(Uuid::from_u128(7)),
            generation: Generation(1),
            number: CutNumber(2),
            taken_at: Timestamp(3),
            consistency: Consistency::Standard,
        }
    }

    #[test]
    fn the_same_bytes_elsewhere_hash_differently() {
        assert_eq!(cluster_hash(4096, b"x"), cluster_hash(4096, b"x"));
        assert_ne!(cluster_hash(4096, b"x"), cluster_hash(8192, b"x"));
        assert_ne!(cluster_hash(4096, b"x"), cluster_hash(4096, b"y"));
    }

    #[test]
    fn digests_are_what_they_were() {
        // Computed by another program from the description of the format.
        let hash = cluster_hash(0x1234_5000, &[0xa5; 4096]);
        assert_eq!(hash.to_string(), "7ff22085823efacc714537987aede1106c1067925791148e046f16db9cb8a66f");
        let mut digester = RunDigester::new(geometry());
        digester.push_zeros(4096, 3).unwrap();
        digester.push_data(0x8000, &hash).unwrap();
        let run = digester.finish();
        assert_eq!(run.to_string(), "060082b5407b165a729e0560657ab86514b5e1c872f864b70ee343fb55341fd6");
        let cut = cut_digest(CutDigest::ZERO, &header(), &[(DiskId(0), 1 << 20, run), (DiskId(1), 512, run)]);
        assert_eq!(cut.to_string(), "183e83a9b3901a392ef8b1c54e24c62f75709c5eb5de06674903474071323958");
    }

    #[test]
    fn clusters_out_of_order_or_off_the_disk_are_refused() {
        let hash = ClusterHash([1; 32]);
        let mut digester = RunDigester::new(geometry());
        digester.push_data(8192, &hash).unwrap();
        for address in [0, 8192, 4096, 12289, 1 << 20, u64::MAX] {
            assert!(digester.push_data(address, &hash).is_err(), "{address}");
        }
        assert!(digester.push_zeros(12288, 254).is_err());
        assert!(digester.push_zeros(12288, u64::MAX).is_err());
        assert!(digester.push_zeros(12288, 253).is_ok());
    }

    #[test]
    fn a_cut_digest_covers_all_it_should() {
        let run = RunDigest([9; 32]);
        let disks = [(DiskId(0), 512, run), (DiskId(1), 1024, run)];
        let cut = cut_digest(CutDigest::ZERO, &header(), &disks);
        let swapped = [disks[1], disks[0]];
        assert_eq!(cut, cut_digest(CutDigest::ZERO, &header(), &swapped));
        let changed = [
            cut_digest(CutDigest([1; 32]), &header(), &disks),
            cut_digest(CutDigest::ZERO, &CutHeader { vm: VmId(Uuid::from_u128(8)), ..header() }, &disks),
            cut_digest(CutDigest::ZERO, &CutHeader { generation: Generation(9), ..header() }, &disks),
            cut_digest(CutDigest::ZERO, &CutHeader { number: CutNumber(9), ..header() }, &disks),
            cut_digest(CutDigest::ZERO, &CutHeader { taken_at: Timestamp(9), ..header() }, &disks),
            cut_digest(CutDigest::ZERO, &CutHeader { consistency: Consistency::Planned, ..header() }, &disks),
            cut_digest(CutDigest::ZERO, &header(), &disks[..1]),
            cut_digest(CutDigest::ZERO, &header(), &[disks[0], (DiskId(2), 1024, run)]),
            cut_digest(CutDigest::ZERO, &header(), &[disks[0], (DiskId(1), 1536, run)]),
            cut_digest(CutDigest::ZERO, &header(), &[disks[0], (DiskId(1), 1024, RunDigest([8; 32]))]),
        ];
        assert!(changed.iter().all(|other| *other != cut));
    }

    proptest! {
        #[test]
        fn pieces_of_zeros_do_not_matter(pieces in prop::collection::vec(1u64..9, 1..20), skip in 0u64..50) {
            let total = pieces.iter().sum();
            let mut whole = RunDigester::new(geometry());
            whole.push_zeros(skip << 12, total).unwrap();
            let mut parts = RunDigester::new(geometry());
            let mut at = skip;
            for count in pieces {
                parts.push_zeros(at << 12, count).unwrap();
                at += count;
            }
            prop_assert_eq!(whole.finish(), parts.finish());
        }
    }
}
