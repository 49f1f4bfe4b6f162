//! CIM's datetime: 25 characters that are either a moment with an offset from UTC or an interval, some fields perhaps unknown.
//!
//! ```text
//! moment    yyyymmddhhmmss.mmmmmmsutc   s is + or -, utc counts minutes
//! interval  ddddddddhhmmss.mmmmmm:000
//! ```
//!
//! A field whose digits are all asterisks is unknown. Microseconds may also end in asterisks, which says how exact they are.
//! The forms of XML Schema (`xs:dateTime`, `xs:duration`) that WS-Management uses are converted here too.
//!
//! Invariant: a [`DateTime`] holds a text that was checked, calendar included, so it can be written out as it is.

use std::fmt;
use std::time::Duration;

use jiff::civil;

/// Length of the text.
pub const DATETIME_LEN: usize = 25;
/// Longest text in one of XML Schema's forms that is looked at.
const XSD_LEN_MAX: usize = 64;
/// Days that the eight digits of an interval can hold.
const DAYS_MAX: u64 = 99_999_999;
const DAY: u64 = 86_400;

/// Beginning and end of each field before the microseconds, in a moment.
const MOMENT_FIELDS: [(usize, usize); 6] = [(0, 4), (4, 6), (6, 8), (8, 10), (10, 12), (12, 14)];
/// Beginning and end of each field before the microseconds, in an interval.
const INTERVAL_FIELDS: [(usize, usize); 4] = [(0, 8), (8, 10), (10, 12), (12, 14)];
const MICROS: (usize, usize) = (15, 21);
const OFFSET: (usize, usize) = (22, 25);

/// A text that is no datetime.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is no datetime")]
pub struct DateTimeError {
    /// The beginning of the text.
    pub text: String,
}

fn refused(text: &str) -> DateTimeError {
    DateTimeError { text: text.chars().take(XSD_LEN_MAX).collect() }
}

/// A moment or an interval.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct DateTime {
    text: [u8; DATETIME_LEN],
}

impl DateTime {
    /// Reads the 25 characters.
    pub fn parse(text: &str) -> Result<Self, DateTimeError> {
        let bytes: [u8; DATETIME_LEN] = text.as_bytes().try_into().map_err(|_| refused(text))?;
        let mut value = DateTime { text: bytes };
        value.is_well_formed().then_some(()).ok_or_else(|| refused(text))?;
        // Minus nothing is plus nothing; clients compare texts.
        if &value.text[21..] == b"-000" {
            value.text[21] = b'+';
        }
        Ok(value)
    }

    /// A moment in UTC, from microseconds since 1970. `None` before the year 0 and after the year 9999.
    pub fn from_unix_micros(micros: i64) -> Option<Self> {
        let stamp = jiff::Timestamp::from_microsecond(micros).ok()?;
        let moment = stamp.to_zoned(jiff::tz::TimeZone::UTC).datetime();
        Self::from_civil(moment, 0)
    }

    fn from_civil(moment: civil::DateTime, offset_minutes: i32) -> Option<Self> {
        let sign = if offset_minutes < 0 { '-' } else { '+' };
        let text = format!(
            "{:04}{:02}{:02}{:02}{:02}{:02}.{:06}{sign}{:03}",
            moment.year(),
            moment.month(),
            moment.day(),
            moment.hour(),
            moment.minute(),
            moment.second(),
            moment.subsec_nanosecond() / 1000,
            offset_minutes.abs(),
        );
        DateTime::parse(&text).ok()
    }

    /// An interval; parts of a microsecond are dropped. `None` above 99,999,999 days.
    pub fn from_interval(interval: Duration) -> Option<Self> {
        let seconds = interval.as_secs();
        let days = seconds / DAY;
        if days > DAYS_MAX {
            return None;
        }
        let (hours, minutes) = (seconds % DAY / 3600, seconds % 3600 / 60);
        let text = format!("{days:08}{hours:02}{minutes:02}{:02}.{:06}:000", seconds % 60, interval.subsec_micros());
        DateTime::parse(&text).ok()
    }

    /// The 25 characters.
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.text).expect("a datetime is made of ASCII")
    }

    /// True for an interval.
    pub fn is_interval(&self) -> bool {
        self.text[21] == b':'
    }

    /// True when a field is unknown.
    pub fn has_wildcards(&self) -> bool {
        self.text.contains(&b'*')
    }

    /// A moment as microseconds since 1970. `None` for intervals, and when a field is unknown.
    pub fn unix_micros(&self) -> Option<i64> {
        let moment = self.civil()?;
        let stamp = moment.to_zoned(jiff::tz::TimeZone::UTC).ok()?.timestamp();
        let offset = i64::from(self.offset_minutes()?) * 60 * 1_000_000;
        stamp.as_microsecond().checked_sub(offset)
    }

    /// An interval's length. `None` for moments, and when a field is unknown.
    pub fn interval(&self) -> Option<Duration> {
        if !self.is_interval() || self.has_wildcards() {
            return None;
        }
        let field = |(from, to)| self.number(from, to).unwrap_or(0);
        let [days, hours, minutes, seconds] = INTERVAL_FIELDS.map(field);
        let seconds = days * DAY + hours * 3600 + minutes * 60 + seconds;
        Some(Duration::new(seconds, u32::try_from(field(MICROS)).ok()? * 1000))
    }

    fn civil(&self) -> Option<civil::DateTime> {
        if self.is_interval() || self.has_wildcards() {
            return None;
        }
        let field = |(from, to)| self.number(from, to).and_then(|n| i16::try_from(n).ok());
        let [year, month, day, hour, minute, second] = MOMENT_FIELDS.map(field);
        let small = |n: Option<i16>| n.and_then(|n| i8::try_from(n).ok());
        let nanos = i32::try_from(self.number(MICROS.0, MICROS.1)?).ok()? * 1000;
        civil::DateTime::new(year?, small(month)?, small(day)?, small(hour)?, small(minute)?, small(second)?, nanos)
            .ok()
    }

    fn offset_minutes(&self) -> Option<i32> {
        let minutes = i32::try_from(self.number(OFFSET.0, OFFSET.1)?).ok()?;
        Some(if self.text[21] == b'-' { -minutes } else { minutes })
    }

    fn number(&self, from: usize, to: usize) -> Option<u64> {
        std::str::from_utf8(&self.text[from..to]).ok()?.parse().ok()
    }

    fn is_well_formed(&self) -> bool {
        if self.text[14] != b'.' || !self.micros_are_well_formed() {
            return false;
        }
        match self.text[21] {
            b':' => self.text[OFFSET.0..] == *b"000" && self.interval_is_possible(),
            b'+' | b'-' => self.field_is_well_formed(OFFSET) && self.moment_is_possible(),
            _ => false,
        }
    }

    fn field_is_well_formed(&self, (from, to): (usize, usize)) -> bool {
        let field = &self.text[from..to];
        field.iter().all(u8::is_ascii_digit) || field.iter().all(|b| *b == b'*')
    }

    /// Digits, then asterisks.
    fn micros_are_well_formed(&self) -> bool {
        let micros = &self.text[MICROS.0..MICROS.1];
        micros.iter().skip_while(|b| b.is_ascii_digit()).all(|b| *b == b'*')
    }

    fn interval_is_possible(&self) -> bool {
        let limits = [DAYS_MAX, 23, 59, 59];
        INTERVAL_FIELDS.iter().zip(limits).all(|(field, most)| self.field_is_within(*field, 0, most))
    }

    fn moment_is_possible(&self) -> bool {
        let limits = [(0, 9999), (1, 12), (1, 31), (0, 23), (0, 59), (0, 59)];
        let fields_fit =
            MOMENT_FIELDS.iter().zip(limits).all(|(f, (least, most))| self.field_is_within(*f, least, most));
        // Only a whole date can be held against the calendar.
        let date_is_known = !self.text[..8].contains(&b'*');
        fields_fit && (!date_is_known || self.date_exists())
    }

    fn field_is_within(&self, (from, to): (usize, usize), least: u64, most: u64) -> bool {
        self.field_is_well_formed((from, to)) && self.number(from, to).is_none_or(|n| (least..=most).contains(&n))
    }

    fn date_exists(&self) -> bool {
        let [year, month, day] = [(0, 4), (4, 6), (6, 8)].map(|(from, to)| self.number(from, to).unwrap_or(0) as i16);
        civil::Date::new(year, month as i8, day as i8).is_ok()
    }

    /// Reads any form that clients send: the 25 characters, `xs:dateTime`, `xs:date` or `xs:duration`.
    pub fn parse_any(text: &str) -> Result<Self, DateTimeError> {
        let text = text.trim();
        if text.len() > XSD_LEN_MAX {
            return Err(refused(text));
        }
        DateTime::parse(text).or_else(|err| from_xsd(text).ok_or(err))
    }

    /// As `xs:dateTime` or `xs:duration`; `None` when a field is unknown, which XML Schema cannot say.
    pub fn to_xsd(&self) -> Option<String> {
        if let Some(interval) = self.interval() {
            return Some(duration_text(interval));
        }
        let moment = self.civil()?;
        let offset = self.offset_minutes()?;
        let zone = match offset {
            0 => "Z".to_string(),
            _ => format!("{}{:02}:{:02}", if offset < 0 { '-' } else { '+' }, offset.abs() / 60, offset.abs() % 60),
        };
        let date = format!("{:04}-{:02}-{:02}", moment.year(), moment.month(), moment.day());
        let time = format!("{:02}:{:02}:{:02}", moment.hour(), moment.minute(), moment.second());
        Some(format!("{date}T{time}{}{zone}", fraction_text(moment.subsec_nanosecond() as u32 / 1000)))
    }
}

fn fraction_text(micros: u32) -> String {
    if micros == 0 { String::new() } else { format!(".{micros:06}").trim_end_matches('0').to_string() }
}

/// Days, hours, minutes and seconds, all of them: a reader that knows one form only knows this one.
fn duration_text(interval: Duration) -> String {
    let seconds = interval.as_secs();
    let (days, hours, minutes) = (seconds / DAY, seconds % DAY / 3600, seconds % 3600 / 60);
    format!("P{days}DT{hours}H{minutes}M{}{}S", seconds % 60, fraction_text(interval.subsec_micros()))
}

fn from_xsd(text: &str) -> Option<DateTime> {
    if text.starts_with('P') {
        return DateTime::from_interval(parse_xsd_duration(text)?);
    }
    let (date, rest) = text.split_at_checked(10)?;
    let date: civil::Date = is_shaped(date, "dddd-dd-dd").then(|| date.parse().ok())??;
    let Some(rest) = rest.strip_prefix('T') else {
        return DateTime::from_civil(date.to_datetime(civil::Time::midnight()), xsd_zone(rest)?);
    };
    let (time, rest) = rest.split_at_checked(8)?;
    let time: civil::Time = is_shaped(time, "dd:dd:dd").then(|| time.parse().ok())??;
    let (micros, zone) = xsd_fraction(rest)?;
    let time = time.with().subsec_nanosecond(i32::try_from(micros).ok()? * 1000).build().ok()?;
    DateTime::from_civil(date.to_datetime(time), xsd_zone(zone)?)
}

fn is_shaped(text: &str, shape: &str) -> bool {
    let fits = |(c, s): (u8, u8)| if s == b'd' { c.is_ascii_digit() } else { c == s };
    text.len() == shape.len() && text.bytes().zip(shape.bytes()).all(fits)
}

/// Digits behind the point as microseconds, and what follows them.
fn xsd_fraction(text: &str) -> Option<(u32, &str)> {
    let Some(rest) = text.strip_prefix('.') else { return Some((0, text)) };
    let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
    let micros: String = rest[..digits].chars().chain("000000".chars()).take(6).collect();
    (digits > 0).then_some((micros.parse().ok()?, &rest[digits..]))
}

/// Minutes from UTC; no zone is taken for UTC.
fn xsd_zone(text: &str) -> Option<i32> {
    if text.is_empty() || text == "Z" {
        return Some(0);
    }
    let (sign, rest) = text.split_at_checked(1)?;
    if !is_shaped(rest, "dd:dd") {
        return None;
    }
    let minutes = rest[..2].parse::<i32>().ok()? * 60 + rest[3..].parse::<i32>().ok()?;
    match sign {
        "+" => Some(minutes),
        "-" => Some(-minutes),
        _ => None,
    }
}

/// Reads an `xs:duration` that is not negative and has neither years nor months, whose length nobody knows. The `T` before hours,
/// minutes and seconds may be missing, as some clients leave it out.
pub fn parse_xsd_duration(text: &str) -> Option<Duration> {
    let text = text.trim();
    if text.len() > XSD_LEN_MAX {
        return None;
    }
    let mut rest = text.strip_prefix('P')?;
    let mut seconds: u64 = 0;
    let mut micros = 0;
    let mut units = [('D', DAY), ('H', 3600), ('M', 60), ('S', 1)].into_iter();
    let mut parts = 0;
    while !rest.is_empty() {
        rest = rest.strip_prefix('T').unwrap_or(rest);
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let count: u64 = rest[..digits].parse().ok()?;
        let (fraction, behind) = xsd_fraction(&rest[digits..])?;
        let unit = behind.chars().next()?;
        let (_, length) = units.by_ref().find(|(name, _)| *name == unit)?;
        if behind.len() < rest[digits..].len() && unit != 'S' {
            return None;
        }
        micros += fraction;
        seconds = seconds.checked_add(count.checked_mul(length)?)?;
        rest = &behind[1..];
        parts += 1;
    }
    (parts > 0).then(|| Duration::new(seconds, micros * 1000))
}

impl fmt::Debug for DateTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Display for DateTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn both_forms_are_read_and_kept_to_the_character() {
        for text in [
            "20250301140000.000000+000",
            "19980525133015.000000-300",
            "00000000183000.000000:000",
            "99999999235959.999999:000",
            "20240229000000.123456+060",
            "2025030114****.******+***",
            "********183000.000000+000",
            "20250301140000.123***+000",
            "00000012******.******:000",
        ] {
            assert_eq!(DateTime::parse(text).unwrap().as_str(), text);
        }
        assert_eq!(DateTime::parse("20250301140000.000000-000").unwrap().as_str(), "20250301140000.000000+000");
    }

    #[test]
    fn what_the_calendar_or_the_form_lacks_is_refused() {
        for text in [
            "",
            "20250301140000.000000+00",
            "20251301140000.000000+000",
            "20250230140000.000000+000",
            "20250301240000.000000+000",
            "20250301146000.000000+000",
            "2025030114*0**.000000+000",
            "20250301140000,000000+000",
            "20250301140000.***000+000",
            "20250301140000.000000 000",
            "00000000183000.000000:001",
            "00000000243000.000000:000",
            "2025030114000é.000000+000",
        ] {
            assert!(DateTime::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn moments_and_intervals_are_numbers_too() {
        let moment = DateTime::parse("20010909024640.000001+060").unwrap();
        assert_eq!(moment.unix_micros(), Some(1_000_000_000_000_001));
        assert_eq!(moment.interval(), None);
        let interval = DateTime::parse("00000001010203.000004:000").unwrap();
        assert_eq!(interval.interval(), Some(Duration::new(86_400 + 3_723, 4_000)));
        assert_eq!(interval.unix_micros(), None);
        assert_eq!(DateTime::parse("20250301******.******+000").unwrap().unix_micros(), None);
        assert_eq!(DateTime::from_interval(Duration::from_secs(u64::MAX)), None);
        assert_eq!(DateTime::from_unix_micros(i64::MAX), None);
    }

    #[test]
    fn the_forms_of_xml_schema_are_read_and_written() {
        let any = |text: &str| DateTime::parse_any(text).map(|value| value.to_string()).unwrap_or_default();
        assert_eq!(any(" 2030-01-01T00:00:00Z\n"), "20300101000000.000000+000");
        assert_eq!(any("2030-01-01T10:20:30.5-05:30"), "20300101102030.500000-330");
        assert_eq!(any("2030-01-01T10:20:30"), "20300101102030.000000+000");
        assert_eq!(any("2030-01-01"), "20300101000000.000000+000");
        assert_eq!(any("P0DT0H5M0S"), "00000000000500.000000:000");
        assert_eq!(any("PT60.000S"), "00000000000100.000000:000");
        assert_eq!(any("20300101000000.000000+000"), "20300101000000.000000+000");
        for bad in [
            "2030-01-01T00:00",
            "2030-13-01T00:00:00Z",
            "P",
            "PT",
            "P1Y",
            "-P1D",
            "PT5S1M",
            "PT1.5M",
            "2030-01-01T00:00:00X",
        ] {
            assert_eq!(any(bad), "", "{bad}");
        }
        let text = |cim: &str| DateTime::parse(cim).unwrap().to_xsd();
        assert_eq!(text("20300101102030.500000-330").unwrap(), "2030-01-01T10:20:30.5-05:30");
        assert_eq!(text("00000000000500.000000:000").unwrap(), "P0DT0H5M0S");
        assert_eq!(text("00000002010203.040000:000").unwrap(), "P2DT1H2M3.04S");
        assert_eq!(text("20300101******.******+000"), None);
    }

    #[test]
    fn durations_that_clients_send_are_understood() {
        let seconds = |text| parse_xsd_duration(text).map(|d| d.as_secs_f64());
        assert_eq!(seconds("PT60S"), Some(60.0));
        assert_eq!(seconds("PT1M30S"), Some(90.0));
        assert_eq!(seconds("P60.000S"), Some(60.0));
        assert_eq!(seconds("P1DT0.25S"), Some(86_400.25));
        assert_eq!(seconds("PT99999999999999999999S"), None);
        assert_eq!(seconds("PTS"), None);
    }

    proptest! {
        #[test]
        fn moments_survive_every_conversion(micros in -62_135_596_800_000_000i64..253_402_207_200_000_000) {
            let value = DateTime::from_unix_micros(micros).unwrap();
            prop_assert_eq!(value.unix_micros(), Some(micros));
            prop_assert_eq!(DateTime::parse(value.as_str()).unwrap(), value);
            prop_assert_eq!(DateTime::parse_any(&value.to_xsd().unwrap()).unwrap(), value);
        }

        #[test]
        fn intervals_survive_every_conversion(seconds in 0u64..=99_999_999 * 86_400 + 86_399, micros in 0u32..1_000_000) {
            let interval = Duration::new(seconds, micros * 1000);
            let value = DateTime::from_interval(interval).unwrap();
            prop_assert_eq!(value.interval(), Some(interval));
            prop_assert_eq!(DateTime::parse_any(&value.to_xsd().unwrap()).unwrap(), value);
        }

        #[test]
        fn any_text_is_read_or_refused(text in ".{0,40}") {
            if let Ok(value) = DateTime::parse_any(&text) {
                prop_assert_eq!(DateTime::parse(value.as_str()).unwrap(), value);
                let _ = (value.unix_micros(), value.interval(), value.to_xsd());
            }
        }
    }
}
