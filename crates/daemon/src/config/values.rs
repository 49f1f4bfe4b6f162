//! Values with units, as they stand in the configuration and on the command line: `30s`, `1h30m`, `64MiB`.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use understudy_model::Millis;

/// Why a text is no value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseValueError {
    /// Not a span of time.
    #[error("{0:?} is not a span of time such as 500ms, 30s, 5m, 1h30m or 2d")]
    Span(String),
    /// Not a size.
    #[error("{0:?} is not a size such as 512, 64KiB, 1MiB or 2GiB")]
    Size(String),
}

/// A span of time: whole numbers with a unit each, added up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Span(pub Millis);

const SPAN_UNITS: [(&str, u64); 5] = [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)];

impl Span {
    /// `n` seconds.
    pub const fn secs(n: u64) -> Self {
        Self(Millis::from_secs(n))
    }

    /// For timers.
    pub const fn duration(self) -> Duration {
        Duration::from_millis(self.0.0)
    }
}

impl FromStr for Span {
    type Err = ParseValueError;
    fn from_str(text: &str) -> Result<Self, ParseValueError> {
        let bad = || ParseValueError::Span(text.chars().take(40).collect());
        let (mut rest, mut total) = (text.trim(), 0u64);
        if rest.is_empty() {
            return Err(bad());
        }
        while !rest.is_empty() {
            let (number, after) = split_at_first(rest, |c| !c.is_ascii_digit());
            let (unit, after) = split_at_first(after, |c| c.is_ascii_digit());
            let factor = SPAN_UNITS.iter().find(|(name, _)| *name == unit).ok_or_else(bad)?.1;
            let number: u64 = number.parse().map_err(|_| bad())?;
            total = number.checked_mul(factor).and_then(|n| n.checked_add(total)).ok_or_else(bad)?;
            rest = after;
        }
        Ok(Self(Millis(total)))
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rest = self.0.0;
        if rest == 0 {
            return f.write_str("0s");
        }
        for (unit, factor) in SPAN_UNITS {
            if rest >= factor {
                write!(f, "{}{unit}", rest / factor)?;
                rest %= factor;
            }
        }
        Ok(())
    }
}

/// A number of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ByteSize(pub u64);

const SIZE_UNITS: [(&str, u64); 5] = [("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10), ("", 1)];

impl FromStr for ByteSize {
    type Err = ParseValueError;
    fn from_str(text: &str) -> Result<Self, ParseValueError> {
        let bad = || ParseValueError::Size(text.chars().take(40).collect());
        let (number, unit) = split_at_first(text.trim(), |c| !c.is_ascii_digit());
        let factor = SIZE_UNITS.iter().find(|(name, _)| *name == unit.trim()).ok_or_else(bad)?.1;
        let number: u64 = number.parse().map_err(|_| bad())?;
        number.checked_mul(factor).map(Self).ok_or_else(bad)
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fits = |factor: u64| self.0 >= factor && self.0.is_multiple_of(factor);
        let (unit, factor) = SIZE_UNITS.into_iter().find(|(_, factor)| fits(*factor)).unwrap_or(("", 1));
        write!(f, "{}{unit}", self.0 / factor)
    }
}

fn split_at_first(text: &str, stop: impl Fn(char) -> bool) -> (&str, &str) {
    text.split_at(text.find(stop).unwrap_or(text.len()))
}

macro_rules! through_text {
    ($name:ident) => {
        impl TryFrom<String> for $name {
            type Error = ParseValueError;
            fn try_from(text: String) -> Result<Self, ParseValueError> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(value: $name) -> String {
                value.to_string()
            }
        }
    };
}

through_text!(Span);
through_text!(ByteSize);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn spans_and_sizes_need_a_unit_people_know() {
        assert_eq!("1h30m".parse(), Ok(Span::secs(5400)));
        assert_eq!("250ms".parse(), Ok(Span(Millis(250))));
        assert_eq!(" 2d ".parse(), Ok(Span::secs(172_800)));
        for bad in ["", "30", "s", "30 s", "-1s", "1.5h", "1w", "99999999999999999999s", "18446744073709551615d"] {
            assert!(bad.parse::<Span>().is_err(), "{bad:?}");
        }
        assert_eq!("64MiB".parse(), Ok(ByteSize(64 << 20)));
        assert_eq!("512".parse(), Ok(ByteSize(512)));
        for bad in ["", "MiB", "1MB", "-1", "1.5GiB", "18446744073709551615KiB"] {
            assert!(bad.parse::<ByteSize>().is_err(), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn values_read_back_what_they_print(n in any::<u64>()) {
            prop_assert_eq!(Span(Millis(n)).to_string().parse(), Ok(Span(Millis(n))));
            prop_assert_eq!(ByteSize(n).to_string().parse(), Ok(ByteSize(n)));
        }
    }
}
