//! Digests as texts of 64 hexadecimal digits.

use understudy_model::id::parse_hex32;

use super::ConvertError;

/// The 32 bytes behind a text.
pub fn read(what: &'static str, text: &str) -> Result<[u8; 32], ConvertError> {
    parse_hex32(text).ok_or(ConvertError::Digest { what })
}
