//! Identities. Each is a newtype, so that a VM can never be passed where a job is meant.

use std::fmt;
use std::str::FromStr;

use uuid::Uuid;

/// Why a text is no identity.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a {what}")]
pub struct ParseIdError {
    /// The kind of identity that was expected.
    pub what: &'static str,
    /// What was given, cut to a printable length.
    pub text: String,
}

impl ParseIdError {
    fn new(what: &'static str, text: &str) -> Self {
        Self { what, text: text.chars().take(80).collect() }
    }
}

macro_rules! uuid_id {
    ($(#[$doc:meta])* $name:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub Uuid);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.hyphenated().fmt(f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.hyphenated().fmt(f)
            }
        }

        impl FromStr for $name {
            type Err = ParseIdError;
            fn from_str(text: &str) -> Result<Self, ParseIdError> {
                Uuid::try_parse(text).map(Self).map_err(|_| ParseIdError::new($what, text))
            }
        }
    };
}

uuid_id!(
    /// A virtual machine. The replica bears the same identity as its primary, as Hyper-V's does.
    VmId, "VM id");
uuid_id!(
    /// A job: one long operation that somebody can follow.
    JobId, "job id");
uuid_id!(
    /// A recovery point. Made from the digest of its cut, so both sides name it alike without talking.
    PointId, "recovery point id");

/// One disk of one VM: its position in the VM's list of disks as first registered. Never reused within a VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DiskId(pub u16);

impl fmt::Display for DiskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "disk-{}", self.0)
    }
}

impl FromStr for DiskId {
    type Err = ParseIdError;
    fn from_str(text: &str) -> Result<Self, ParseIdError> {
        text.strip_prefix("disk-")
            .and_then(|n| n.parse().ok())
            .map(Self)
            .ok_or_else(|| ParseIdError::new("disk id", text))
    }
}

/// A host: the blake3 hash of its public key (SubjectPublicKeyInfo, DER). What a certificate says besides the key
/// does not matter to a paired host.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PeerId(pub [u8; 32]);

impl fmt::Display for PeerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_hex(f, &self.0)
    }
}

impl fmt::Debug for PeerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_hex(f, &self.0[..6])
    }
}

impl FromStr for PeerId {
    type Err = ParseIdError;
    fn from_str(text: &str) -> Result<Self, ParseIdError> {
        parse_hex32(text).map(Self).ok_or_else(|| ParseIdError::new("peer id", text))
    }
}

/// One replication relationship: a VM and which of its at most two legs. Leg 0 is primary to replica, leg 1 replica
/// to extended replica (the numbers are those of the CIM `InstanceID`, `Microsoft:<VM>\HVR\<leg>`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RelationshipId {
    /// The replicated VM.
    pub vm: VmId,
    /// 0 or 1.
    pub leg: u8,
}

impl RelationshipId {
    /// The first leg of `vm`.
    pub fn first(vm: VmId) -> Self {
        Self { vm, leg: 0 }
    }
}

impl fmt::Display for RelationshipId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.vm, self.leg)
    }
}

/// Writes bytes as lower-case hexadecimal.
pub fn write_hex(f: &mut fmt::Formatter<'_>, bytes: &[u8]) -> fmt::Result {
    bytes.iter().try_for_each(|b| write!(f, "{b:02x}"))
}

/// Reads exactly 32 bytes of hexadecimal, in either case.
pub fn parse_hex32(text: &str) -> Option<[u8; 32]> {
    if text.len() != 64 || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    let mut out = [0; 32];
    for (i, byte) in out.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&text[2 * i..2 * i + 2], 16).ok()?;
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identities_read_back_what_they_print() {
        let vm = VmId(Uuid::from_u128(0x7f2c_0b6e_0000_4000_8000_0123_4567_89ab));
        assert_eq!(vm.to_string().parse(), Ok(vm));
        assert_eq!(vm.to_string().to_uppercase().parse(), Ok(vm));
        assert_eq!(DiskId(3).to_string().parse(), Ok(DiskId(3)));
        let peer = PeerId([0xab; 32]);
        assert_eq!(peer.to_string().parse(), Ok(peer));
    }

    #[test]
    fn a_text_that_is_no_identity_is_refused_and_named() {
        assert!("disk-".parse::<DiskId>().is_err());
        assert!("disk-65536".parse::<DiskId>().is_err());
        let err = "zz".parse::<VmId>().unwrap_err();
        assert_eq!(err.to_string(), "\"zz\" is not a VM id");
        assert!("+f".repeat(32).parse::<PeerId>().is_err());
    }
}
