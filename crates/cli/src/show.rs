//! How things look: tables, sizes, ages, times.

use comfy_table::presets::NOTHING;
use comfy_table::{Row, Table};
use jiff::tz::TimeZone;
use serde_json::Value;

/// Prints a table without lines around it: easy to read, easy to cut up with other tools.
pub fn table(header: &[&str], rows: Vec<Vec<String>>) {
    print!("{}", table_text(header, rows));
}

/// The same as text.
pub fn table_text(header: &[&str], rows: Vec<Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(NOTHING).set_header(Row::from(header.to_vec()));
    for row in rows {
        table.add_row(Row::from(row));
    }
    let lines = table.lines().map(|line| line.trim_end().trim_start().to_owned() + "\n");
    lines.collect()
}

/// Prints names and values, one a line.
pub fn details(rows: &[(&str, String)]) {
    print!("{}", details_text(rows));
}

/// The same as text. Values of several lines go on below their first.
pub fn details_text(rows: &[(&str, String)]) -> String {
    let width = rows.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    let mut text = String::new();
    for (name, value) in rows {
        for (n, line) in value.lines().enumerate() {
            let name = if n == 0 { *name } else { "" };
            text.push_str(&format!("{name:width$}  {line}\n"));
        }
    }
    text
}

/// Prints an object of the API.
pub fn json(value: &Value) {
    println!("{}", serde_json::to_string_pretty(value).expect("JSON can be written as text"));
}

/// A number of bytes, as people say it.
pub fn bytes(n: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if n < 1024 {
        return format!("{n} B");
    }
    let mut value = n as f64 / 1024.0;
    let mut unit = 0;
    // 1023.95 would be shown as 1024.0 of the smaller unit.
    while value >= 1023.95 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

/// A span, as people say it: the two largest units.
pub fn span(ms: u64) -> String {
    if ms < 1000 {
        return format!("{ms} ms");
    }
    let secs = ms / 1000;
    if secs < 10 && !ms.is_multiple_of(1000) {
        return format!("{}.{} s", secs, ms % 1000 / 100);
    }
    let units = [("d", 86_400), ("h", 3600), ("min", 60), ("s", 1)];
    let mut rest = secs;
    let mut parts = Vec::new();
    for (unit, len) in units {
        let n = rest / len;
        rest %= len;
        if n > 0 {
            parts.push(format!("{n} {unit}"));
        } else if !parts.is_empty() {
            break;
        }
    }
    parts.truncate(2);
    parts.join(" ")
}

/// A time of the API in the reader's zone, to the second.
pub fn time(text: &str) -> String {
    match text.parse::<jiff::Timestamp>() {
        Ok(at) => at.to_zoned(TimeZone::system()).strftime("%Y-%m-%d %H:%M:%S").to_string(),
        Err(_) => text.to_owned(),
    }
}

/// The first digits of a long identity: enough to tell a host's few peers apart.
pub fn short(id: &str) -> String {
    id.chars().take(16).collect()
}

/// A value that may be missing.
pub fn or_dash(value: Option<String>) -> String {
    value.unwrap_or_else(|| "-".to_owned())
}

/// One or several.
pub fn count(n: usize, one: &str) -> String {
    if n == 1 { format!("1 {one}") } else { format!("{n} {one}s") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_spans_read_as_people_say_them() {
        assert_eq!([bytes(0), bytes(1023), bytes(1024)], ["0 B", "1023 B", "1.0 KiB"]);
        assert_eq!([bytes(1536), bytes((1 << 20) - 1), bytes(64 << 40)], ["1.5 KiB", "1.0 MiB", "64.0 TiB"]);
        assert_eq!(bytes(u64::MAX), "16.0 EiB");
        assert_eq!([span(0), span(999), span(1000), span(1500)], ["0 ms", "999 ms", "1 s", "1.5 s"]);
        assert_eq!([span(61_000), span(3_600_000), span(90_061_000)], ["1 min 1 s", "1 h", "1 d 1 h"]);
        assert_eq!(span(3_601_000), "1 h");
    }

    #[test]
    fn values_of_several_lines_stay_in_their_column() {
        let text = details_text(&[("a", "1\n2".into()), ("long", "3".into())]);
        assert_eq!(text, "a     1\n      2\nlong  3\n");
    }
}
