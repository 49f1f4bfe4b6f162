//! The token of an invitation, as it is carried from one host to the other by a person.
//!
//! ```text
//! understudy-<base64url of:>
//!   0  1 version (1)      1  8 end of the invitation, ms since 1970, little-endian
//!   9 32 identity of the inviting host     41 16 secret     57 1 number of addresses
//!  58  … each: 1 length, bytes (host:port)     … 4 check bytes (blake3 of all before)
//! ```
//!
//! The check bytes are for people who copy half a line; what protects the invitation is its secret.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use understudy_model::{PeerId, Timestamp};

use crate::config::{ADVERTISE_MAX, is_host_port};

const PREFIX: &str = "understudy-";
const VERSION: u8 = 1;
const CHECK_LEN: usize = 4;
const HEAD_LEN: usize = 1 + 8 + 32 + 16 + 1;

/// Longest token: eight addresses of 255 bytes, in base64.
const TEXT_MAX: usize = PREFIX.len() + (HEAD_LEN + ADVERTISE_MAX * 256 + CHECK_LEN) * 4 / 3 + 4;

/// What an invitation says.
#[derive(Clone, PartialEq, Eq)]
pub struct InviteToken {
    /// Who invites: the key that must be found at the address.
    pub host: PeerId,
    /// Where it can be reached.
    pub addresses: Vec<String>,
    /// Proves that the inviting host's administrator meant us.
    pub secret: [u8; 16],
    /// When it ends, by the inviting host's wall clock.
    pub expires_at: Timestamp,
}

impl std::fmt::Debug for InviteToken {
    /// The secret never reaches a log.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("InviteToken").field("host", &self.host).finish_non_exhaustive()
    }
}

/// Why a text is no token. It does not repeat the text, which may hold a secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ParseTokenError {
    /// Something else.
    #[error("this is not an invitation of understudy")]
    Foreign,
    /// Cut short or mistyped.
    #[error("the invitation is not complete or was altered on its way")]
    Damaged,
    /// Made by a later version.
    #[error("the invitation was made by a newer version of understudy")]
    Newer,
}

impl InviteToken {
    /// The text to hand over.
    pub fn to_text(&self) -> String {
        let mut bytes = vec![VERSION];
        bytes.extend_from_slice(&self.expires_at.0.to_le_bytes());
        bytes.extend_from_slice(&self.host.0);
        bytes.extend_from_slice(&self.secret);
        let addresses = self.addresses.iter().filter(|a| a.len() <= 255).take(ADVERTISE_MAX);
        bytes.push(addresses.clone().count() as u8);
        for address in addresses {
            bytes.push(address.len() as u8);
            bytes.extend_from_slice(address.as_bytes());
        }
        let check = blake3::hash(&bytes);
        bytes.extend_from_slice(&check.as_bytes()[..CHECK_LEN]);
        format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(bytes))
    }

    /// Reads a text that was handed over.
    pub fn parse(text: &str) -> Result<Self, ParseTokenError> {
        let text = text.trim();
        let encoded = text.strip_prefix(PREFIX).ok_or(ParseTokenError::Foreign)?;
        if text.len() > TEXT_MAX {
            return Err(ParseTokenError::Damaged);
        }
        let bytes = URL_SAFE_NO_PAD.decode(encoded).map_err(|_| ParseTokenError::Damaged)?;
        let (body, check) =
            bytes.split_at_checked(bytes.len().wrapping_sub(CHECK_LEN)).ok_or(ParseTokenError::Damaged)?;
        if blake3::hash(body).as_bytes()[..CHECK_LEN] != *check {
            return Err(ParseTokenError::Damaged);
        }
        match body.first() {
            Some(&VERSION) => read(body).ok_or(ParseTokenError::Damaged),
            Some(_) => Err(ParseTokenError::Newer),
            None => Err(ParseTokenError::Damaged),
        }
    }
}

fn read(body: &[u8]) -> Option<InviteToken> {
    let (_, rest) = body.split_first()?;
    let (expires, rest) = rest.split_first_chunk::<8>()?;
    let (host, rest) = rest.split_first_chunk::<32>()?;
    let (secret, rest) = rest.split_first_chunk::<16>()?;
    let (&count, mut rest) = rest.split_first()?;
    let mut addresses = Vec::with_capacity(ADVERTISE_MAX);
    for _ in 0..count {
        let (&len, after) = rest.split_first()?;
        let (address, after) = after.split_at_checked(usize::from(len))?;
        let address = std::str::from_utf8(address).ok().filter(|a| is_host_port(a))?;
        addresses.push(address.to_owned());
        rest = after;
    }
    let whole = rest.is_empty() && addresses.len() <= ADVERTISE_MAX;
    whole.then(|| InviteToken {
        host: PeerId(*host),
        addresses,
        secret: *secret,
        expires_at: Timestamp(u64::from_le_bytes(*expires)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn token() -> InviteToken {
        InviteToken {
            host: PeerId([0xab; 32]),
            addresses: vec!["10.0.0.1:7843".into(), "[fe80::1]:7843".into(), "replica.example:7843".into()],
            secret: [0xcd; 16],
            expires_at: Timestamp(1_800_000_000_000),
        }
    }

    #[test]
    fn a_token_reads_back_and_survives_the_spaces_people_copy() {
        let text = token().to_text();
        assert_eq!(InviteToken::parse(&format!("  {text}\n")), Ok(token()));
        let bare = InviteToken { addresses: vec![], ..token() };
        assert_eq!(InviteToken::parse(&bare.to_text()), Ok(bare));
    }

    #[test]
    fn a_token_cut_short_or_mistyped_is_told_from_something_else() {
        let text = token().to_text();
        for len in PREFIX.len()..text.len() {
            assert_eq!(InviteToken::parse(&text[..len]), Err(ParseTokenError::Damaged), "{len}");
        }
        assert_eq!(InviteToken::parse("hello"), Err(ParseTokenError::Foreign));
        assert_eq!(InviteToken::parse(&"x".repeat(1 << 20)), Err(ParseTokenError::Foreign));
        assert_eq!(InviteToken::parse(&format!("{text}{}", "A".repeat(1 << 20))), Err(ParseTokenError::Damaged));
    }

    #[test]
    fn a_token_of_a_later_version_says_so() {
        let mut bytes = URL_SAFE_NO_PAD.decode(&token().to_text()[PREFIX.len()..]).unwrap();
        bytes.truncate(bytes.len() - CHECK_LEN);
        bytes[0] = 2;
        let check = blake3::hash(&bytes);
        bytes.extend_from_slice(&check.as_bytes()[..CHECK_LEN]);
        let text = format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(bytes));
        assert_eq!(InviteToken::parse(&text), Err(ParseTokenError::Newer));
    }

    #[test]
    fn the_secret_is_not_printed() {
        assert!(!format!("{:?}", token()).contains("205"), "0xcd in decimal");
    }

    proptest! {
        #[test]
        fn foreign_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut sealed = bytes.clone();
            sealed.extend_from_slice(&blake3::hash(&bytes).as_bytes()[..CHECK_LEN]);
            if let Ok(token) = InviteToken::parse(&format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(sealed))) {
                prop_assert!(token.addresses.iter().all(|a| is_host_port(a)));
            }
        }
    }
}
