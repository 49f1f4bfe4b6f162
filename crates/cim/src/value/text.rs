//! Values as text, the way CIM-XML and WS-Management write them.

use super::convert::ConvertError;
use super::{CimType, Scalar};
use crate::datetime::DateTime;
use crate::path::ObjectPath;

/// Longest text of a number that is looked at: `-0x` and 32 digits are more than any type holds.
const NUMBER_LEN_MAX: usize = 400;

impl Scalar {
    /// Reads the text of a value. Numbers, booleans and datetimes may have spaces around them; texts are taken as they are.
    pub fn parse(cim_type: CimType, text: &str) -> Result<Self, ConvertError> {
        let refused = || ConvertError::text(cim_type, text);
        match cim_type {
            CimType::Boolean => parse_boolean(text).map(Scalar::Boolean).ok_or_else(refused),
            CimType::Real32 => parse_real(text).and_then(narrow).map(Scalar::Real32).ok_or_else(refused),
            CimType::Real64 => parse_real(text).map(Scalar::Real64).ok_or_else(refused),
            CimType::Char16 => parse_char(text).map(Scalar::Char16).ok_or_else(refused),
            CimType::String => Ok(Scalar::String(text.to_string())),
            CimType::Datetime => DateTime::parse_any(text).map(Scalar::Datetime).map_err(|_| refused()),
            CimType::Reference => ObjectPath::parse(text.trim()).map(Scalar::from).map_err(|_| refused()),
            _ => Scalar::integer(cim_type, parse_integer(text).ok_or_else(refused)?),
        }
    }

    /// An integer of that type, if it fits.
    pub fn integer(cim_type: CimType, number: i128) -> Result<Self, ConvertError> {
        let out_of_range = || ConvertError::OutOfRange { number: number.to_string(), cim_type };
        macro_rules! fit {
            ($variant:ident) => {
                number.try_into().map(Scalar::$variant).map_err(|_| out_of_range())
            };
        }
        match cim_type {
            CimType::Uint8 => fit!(Uint8),
            CimType::Uint16 => fit!(Uint16),
            CimType::Uint32 => fit!(Uint32),
            CimType::Uint64 => fit!(Uint64),
            CimType::Sint8 => fit!(Sint8),
            CimType::Sint16 => fit!(Sint16),
            CimType::Sint32 => fit!(Sint32),
            CimType::Sint64 => fit!(Sint64),
            _ => Err(ConvertError::Type { from: CimType::Sint64, to: cim_type }),
        }
    }

    /// The text of everything but what is embedded, whose form depends on the protocol. Booleans are in lower case.
    pub fn text(&self) -> Option<String> {
        Some(match self {
            Scalar::Boolean(value) => value.to_string(),
            Scalar::Real32(n) => real32_text(*n),
            Scalar::Real64(n) => real_text(*n),
            Scalar::Char16(c) => c.to_string(),
            Scalar::String(text) => text.clone(),
            Scalar::Datetime(value) => value.to_string(),
            Scalar::Reference(path) => path.to_string(),
            Scalar::Instance(_) | Scalar::Class(_) => return None,
            _ => self.as_integer()?.to_string(),
        })
    }
}

fn parse_boolean(text: &str) -> Option<bool> {
    match text.trim() {
        "1" => Some(true),
        "0" => Some(false),
        word if word.eq_ignore_ascii_case("true") => Some(true),
        word if word.eq_ignore_ascii_case("false") => Some(false),
        _ => None,
    }
}

/// Decimal or, behind `0x`, hexadecimal.
pub(crate) fn parse_integer(text: &str) -> Option<i128> {
    let text = text.trim();
    if text.len() > NUMBER_LEN_MAX {
        return None;
    }
    let (is_negative, digits) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    let hex = digits.strip_prefix("0x").or_else(|| digits.strip_prefix("0X"));
    let (digits, radix) = hex.map_or((digits, 10), |digits| (digits, 16));
    let is_number = !digits.is_empty() && digits.chars().all(|c| c.is_digit(radix));
    let magnitude = is_number.then(|| i128::from_str_radix(digits, radix).ok())??;
    Some(if is_negative { -magnitude } else { magnitude })
}

pub(crate) fn parse_real(text: &str) -> Option<f64> {
    let text = text.trim();
    match text {
        "INF" | "+INF" => return Some(f64::INFINITY),
        "-INF" => return Some(f64::NEG_INFINITY),
        "NaN" => return Some(f64::NAN),
        _ => {}
    }
    // The standard library also knows words for infinity that CIM does not.
    let is_number = text.len() <= NUMBER_LEN_MAX && text.bytes().all(|b| b.is_ascii_digit() || b"+-.eE".contains(&b));
    is_number.then(|| text.parse().ok()).flatten().filter(|n: &f64| n.is_finite())
}

/// Refuses what a 32-bit number cannot reach, and takes the nearest of those it can.
pub(crate) fn narrow(n: f64) -> Option<f32> {
    let narrowed = n as f32;
    (narrowed.is_finite() || !n.is_finite()).then_some(narrowed)
}

fn parse_char(text: &str) -> Option<char> {
    let mut chars = text.chars();
    chars.next().filter(|c| chars.next().is_none() && c.len_utf16() == 1)
}

/// Shortest text that reads as the same number, with the point that MOF wants.
pub(crate) fn real_text(n: f64) -> String {
    special(n).map_or_else(|| with_point(&format!("{n:?}")), str::to_string)
}

fn real32_text(n: f32) -> String {
    special(n.into()).map_or_else(|| with_point(&format!("{n:?}")), str::to_string)
}

fn special(n: f64) -> Option<&'static str> {
    match n {
        n if n.is_nan() => Some("NaN"),
        f64::INFINITY => Some("INF"),
        f64::NEG_INFINITY => Some("-INF"),
        _ => None,
    }
}

fn with_point(text: &str) -> String {
    match text.split_once('e') {
        Some((mantissa, exponent)) if !mantissa.contains('.') => format!("{mantissa}.0e{exponent}"),
        _ => text.to_string(),
    }
}
