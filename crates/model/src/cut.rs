//! Cuts: the instants at which all disks of a VM are frozen together, and the numbers that tell them apart.

use std::fmt;
use std::str::FromStr;

use uuid::Uuid;

use crate::id::{ParseIdError, PointId, parse_hex32, write_hex};
use crate::time::Timestamp;

macro_rules! counter {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        pub struct $name(pub u64);

        impl $name {
            /// The next number. Numbers are never reused, also not after a failure.
            pub fn next(self) -> Self {
                Self(self.0.checked_add(1).expect("a counter of 64 bits does not run out"))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

counter!(
    /// Rises durably whenever it changes who is primary; lower ones are refused for ever.
    Generation);
counter!(
    /// One handshake between source and target inside a generation; what an old one sends late is dropped.
    SessionNumber);
counter!(
    /// A cut's number within its relationship. Recorded durably before the cut is tried, so a number that was tried
    /// and failed is never given to other content. 0 means "before the first cut".
    CutNumber);

/// The digest of a cut: computed from the parent's digest and the digests of the runs that lead from there to here,
/// by both sides on their own. Names the whole history, so equal digests mean equal disks.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CutDigest(pub [u8; 32]);

impl CutDigest {
    /// The parent of a first cut: nothing.
    pub const ZERO: CutDigest = CutDigest([0; 32]);

    /// The recovery point of this cut: the first 128 bits of the digest in the shape of a version 8 UUID (RFC 9562,
    /// section 5.8: custom data).
    pub fn point(self) -> PointId {
        let mut bytes = [0; 16];
        bytes.copy_from_slice(&self.0[..16]);
        PointId(Uuid::new_v8(bytes))
    }
}

impl fmt::Display for CutDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_hex(f, &self.0)
    }
}

impl fmt::Debug for CutDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_hex(f, &self.0[..6])
    }
}

impl FromStr for CutDigest {
    type Err = ParseIdError;
    fn from_str(text: &str) -> Result<Self, ParseIdError> {
        parse_hex32(text)
            .map(Self)
            .ok_or_else(|| ParseIdError { what: "cut digest", text: text.chars().take(80).collect() })
    }
}

/// What a cut promises about the guest's file systems and applications.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Consistency {
    /// The disks as a power cut at that instant would have left them.
    Standard,
    /// Taken while the guest agent held the file systems frozen.
    Application,
    /// Taken with the VM off, as the last step of a planned failover.
    Planned,
}

/// A cut, named: enough to ask whether two sides mean the same one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct CutRef {
    /// The generation it was taken in.
    pub generation: Generation,
    /// Its number in the relationship.
    pub number: CutNumber,
    /// Its digest.
    pub digest: CutDigest,
}

/// A cut as both sides record it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cut {
    /// Generation, number and digest.
    pub id: CutRef,
    /// Digest of the cut this one follows; [`CutDigest::ZERO`] for the first.
    pub parent: CutDigest,
    /// When the disks were frozen, by the primary's wall clock. A label: order comes from the chain.
    pub taken_at: Timestamp,
    /// What it promises.
    pub consistency: Consistency,
}

impl Cut {
    /// The recovery point that keeping this cut makes.
    pub fn point(&self) -> PointId {
        self.id.digest.point()
    }
}
