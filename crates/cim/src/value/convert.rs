//! Turns a value of one type into one of another, when both say the same.

use super::text::narrow;
use super::{CimType, Scalar, Value};
use crate::schema::{Embedded, Kind};

/// Why a value is none of the wanted type.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum ConvertError {
    /// A number that the type cannot hold.
    #[error("{number} does not fit {cim_type}")]
    OutOfRange {
        /// The number.
        number: String,
        /// The type.
        cim_type: CimType,
    },
    /// A text that is no value of the type.
    #[error("{text:?} is no {cim_type}")]
    Text {
        /// The beginning of the text.
        text: String,
        /// The type.
        cim_type: CimType,
    },
    /// Types that have nothing to say to each other.
    #[error("a {from} is no {to}")]
    Type {
        /// What it is.
        from: CimType,
        /// What it should be.
        to: CimType,
    },
    /// An array where one value is wanted.
    #[error("an array where a single value is wanted")]
    Array,
    /// More elements than the array holds.
    #[error("{len} elements in an array of {most}")]
    Length {
        /// Elements found.
        len: usize,
        /// Elements allowed.
        most: u32,
    },
    /// Text or something else where an embedded instance or class is wanted.
    #[error("no embedded object")]
    NotEmbedded,
}

/// How much of a refused text an error shows.
const SHOWN_MAX: usize = 80;

impl ConvertError {
    pub(super) fn text(cim_type: CimType, text: &str) -> Self {
        ConvertError::Text { text: text.chars().take(SHOWN_MAX).collect(), cim_type }
    }
}

impl Scalar {
    /// The same value in another type.
    ///
    /// Integers fit or are refused; 0 and 1 are booleans too, as scripts write them; integers become reals; texts are read; everything
    /// but texts keeps from becoming text by accident.
    pub fn convert(self, to: CimType) -> Result<Self, ConvertError> {
        let from = self.cim_type();
        if from == to {
            return Ok(self);
        }
        let mismatch = ConvertError::Type { from, to };
        match (self, to) {
            (Scalar::String(text), _) => Scalar::parse(to, &text),
            (Scalar::Real64(n), CimType::Real32) => {
                let out_of_range = || ConvertError::OutOfRange { number: n.to_string(), cim_type: to };
                narrow(n).map(Scalar::Real32).ok_or_else(out_of_range)
            }
            (Scalar::Real32(n), CimType::Real64) => Ok(Scalar::Real64(n.into())),
            (other, _) => match (other.as_integer(), to) {
                (Some(n @ (0 | 1)), CimType::Boolean) => Ok(Scalar::Boolean(n == 1)),
                (Some(n), CimType::Real32 | CimType::Real64) => integer_as_real(n, to),
                (Some(n), _) if to.integer_range().is_some() => Scalar::integer(to, n),
                _ => Err(mismatch),
            },
        }
    }

    /// As [`Scalar::convert`], to what a declaration says, embedded objects included.
    fn conform(self, kind: &Kind) -> Result<Self, ConvertError> {
        let is_embedded = matches!(self, Scalar::Instance(_) | Scalar::Class(_));
        match kind.embedded {
            Some(Embedded::Instance) if !matches!(self, Scalar::Instance(_)) => Err(ConvertError::NotEmbedded),
            Some(Embedded::Object) if !is_embedded => Err(ConvertError::NotEmbedded),
            Some(_) => Ok(self),
            None if is_embedded => Err(ConvertError::Type { from: CimType::String, to: kind.base }),
            None => self.convert(kind.base),
        }
    }
}

/// Reals that would not hold the integer exactly are refused.
fn integer_as_real(n: i128, to: CimType) -> Result<Scalar, ConvertError> {
    let out_of_range = || ConvertError::OutOfRange { number: n.to_string(), cim_type: to };
    let real = n as f64;
    if real as i128 != n {
        return Err(out_of_range());
    }
    if to == CimType::Real64 {
        return Ok(Scalar::Real64(real));
    }
    let narrowed = real as f32;
    (f64::from(narrowed) == real).then_some(Scalar::Real32(narrowed)).ok_or_else(out_of_range)
}

impl Value {
    /// The same value as a declaration wants it. A single value where an array is declared is an array of one.
    pub fn conform(self, kind: &Kind) -> Result<Self, ConvertError> {
        match self {
            Value::Null => Ok(Value::Null),
            Value::Scalar(scalar) if kind.is_array() => Ok(Value::Array(vec![Some(scalar.conform(kind)?)])),
            Value::Scalar(scalar) => Ok(Value::Scalar(scalar.conform(kind)?)),
            Value::Array(_) if !kind.is_array() => Err(ConvertError::Array),
            Value::Array(elements) => {
                if let Some(most) = kind.array_max().filter(|most| elements.len() > *most as usize) {
                    return Err(ConvertError::Length { len: elements.len(), most });
                }
                let converted = elements.into_iter().map(|element| element.map(|e| e.conform(kind)).transpose());
                Ok(Value::Array(converted.collect::<Result<_, _>>()?))
            }
        }
    }
}
