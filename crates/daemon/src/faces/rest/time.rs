//! Times from outside: RFC 3339, or the datetime of CIM (`yyyymmddHHMMSS.mmmmmmsUTC`), whose offset is in minutes.

use understudy_model::{Refusal, ReturnCode, Timestamp};

/// Length of a datetime of CIM (DSP0004, 5.2.4).
const CIM_LEN: usize = 25;

/// Reads a time. A span where a time is asked for, or one with places left open, is a wrong value; what is no time at all
/// is of the wrong type.
pub(super) fn read_time(text: &str) -> Result<Timestamp, Refusal> {
    let at = match is_cim(text) {
        true => read_cim(text)?,
        false => text.parse::<jiff::Timestamp>().map_err(|_| no_time())?,
    };
    // Before 1970 is gone by, like any other time in the past.
    Ok(Timestamp(u64::try_from(at.as_millisecond()).unwrap_or(0)))
}

fn no_time() -> Refusal {
    Refusal::new(
        ReturnCode::IncorrectDataType,
        "the start time is neither a time such as 2026-01-31T20:00:00Z nor one such as 20260131200000.000000+060",
    )
}

fn is_cim(text: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_digit() || b".:+-*".contains(&byte);
    text.len() == CIM_LEN && text.as_bytes()[14] == b'.' && text.bytes().all(allowed)
}

fn read_cim(text: &str) -> Result<jiff::Timestamp, Refusal> {
    let wrong = |what: &str| Refusal::new(ReturnCode::InvalidParameter, format!("the start time {text} {what}"));
    if text.as_bytes()[21] == b':' {
        return Err(wrong("is a span of time and not a time"));
    }
    if text.contains('*') {
        return Err(wrong("leaves places open"));
    }
    let number = |from: usize, to: usize| text[from..to].parse::<i32>().map_err(|_| no_time());
    let sign = match text.as_bytes()[21] {
        b'+' => 1,
        b'-' => -1,
        _ => return Err(no_time()),
    };
    let civil = jiff::civil::DateTime::new(
        number(0, 4)? as i16,
        number(4, 6)? as i8,
        number(6, 8)? as i8,
        number(8, 10)? as i8,
        number(10, 12)? as i8,
        number(12, 14)? as i8,
        number(15, 21)? * 1000,
    );
    let civil = civil.map_err(|_| wrong("is none that any calendar has"))?;
    let offset = jiff::tz::Offset::from_seconds(sign * number(22, 25)? * 60);
    let offset = offset.map_err(|_| wrong("has an offset that no place on earth has"))?;
    offset.to_timestamp(civil).map_err(|_| wrong("is out of range"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(text: &str) -> u64 {
        read_time(text).unwrap().0
    }

    #[test]
    fn both_spellings_name_the_same_instant() {
        let at = ms("2026-01-31T20:00:00Z");
        assert_eq!(ms("20260131200000.000000+000"), at);
        assert_eq!(ms("20260131210000.000000+060"), at);
        assert_eq!(ms("20260131123000.000000-450"), at);
        assert_eq!(ms("2026-01-31T21:00:00+01:00"), at);
        assert_eq!(ms("20260131200000.250000+000"), at + 250);
        assert_eq!(ms("19600131200000.000000+000"), 0, "gone by");
    }

    #[test]
    fn what_is_no_time_is_told_from_a_time_that_cannot_be() {
        let code = |text: &str| read_time(text).unwrap_err().code;
        assert_eq!(code("00000001000000.000000:000"), ReturnCode::InvalidParameter);
        assert_eq!(code("20260131******.000000+000"), ReturnCode::InvalidParameter);
        assert_eq!(code("20261331200000.000000+000"), ReturnCode::InvalidParameter);
        assert_eq!(code("tomorrow"), ReturnCode::IncorrectDataType);
        assert_eq!(code("20260131200000.0000000000"), ReturnCode::IncorrectDataType);
        assert_eq!(code(""), ReturnCode::IncorrectDataType);
    }
}
