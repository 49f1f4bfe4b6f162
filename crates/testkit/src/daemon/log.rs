//! Reads a daemon's log for what must not be in it: errors and warnings that no test has listed, and panics.

use serde_json::Value;

/// The lines of a log that are errors, warnings or panics, without those that contain one of the allowed texts.
pub fn complaints<'a>(log: &'a str, allowed: &[String]) -> Vec<&'a str> {
    let is_allowed = |line: &str| allowed.iter().any(|text| line.contains(text.as_str()));
    log.lines().filter(|line| is_complaint(line) && !is_allowed(line)).collect()
}

/// A panic is no log line and cannot be allowed by one: its text is the place in our code.
fn is_complaint(line: &str) -> bool {
    if line.contains("panicked at ") {
        return true;
    }
    match serde_json::from_str::<Value>(line) {
        Ok(Value::Object(fields)) => fields.get("level").and_then(Value::as_str).is_some_and(is_level),
        _ => without_colour(line).split_whitespace().take(3).any(is_level),
    }
}

fn is_level(word: &str) -> bool {
    matches!(word, "ERROR" | "WARN")
}

/// A line without the terminal's escape sequences.
fn without_colour(line: &str) -> String {
    let mut pieces = line.split('\u{1b}');
    let first = pieces.next().unwrap_or_default().to_string();
    pieces.fold(first, |text, piece| text + piece.split_once('m').map_or("", |(_, rest)| rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_and_warnings_are_found_in_every_form_a_log_has() {
        let log = "2026-11-22T14:00:00Z  INFO understudy: all is well, no ERROR here\n\
                   2026-11-22T14:00:01Z  WARN understudy::link: peer lost peer=b\n\
                   \u{1b}[2m2026-11-22T14:00:02Z\u{1b}[0m \u{1b}[31mERROR\u{1b}[0m understudy: disk full\n\
                   {\"timestamp\":\"2026\",\"level\":\"ERROR\",\"fields\":{\"message\":\"x\"}}\n\
                   {\"timestamp\":\"2026\",\"level\":\"INFO\",\"fields\":{\"message\":\"WARN\"}}\n\
                   thread 'main' panicked at src/main.rs:1:1:\n";
        let found = complaints(log, &[]);
        assert_eq!(found.len(), 4, "{found:?}");
        let found = complaints(log, &["peer lost".into(), "disk full".into()]);
        assert_eq!(found.len(), 2, "{found:?}");
    }
}
