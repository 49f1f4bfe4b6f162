//! Prints what contenders used: medians, least and most, and ratios to the first contender.

use std::time::Duration;

use crate::meter::Figures;

/// A contender's turns.
#[derive(Debug, Clone)]
pub struct Row {
    /// Who.
    pub name: String,
    /// One for each turn; or why there is none.
    pub turns: Result<Vec<Figures>, String>,
}

/// Median, least and most.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Spread {
    /// The middle one; of two, their mean.
    pub median: f64,
    /// The least.
    pub least: f64,
    /// The most.
    pub most: f64,
}

impl Spread {
    /// Of these values, of which there is at least one.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Self {
        let mut sorted: Vec<f64> = values.into_iter().collect();
        sorted.sort_by(f64::total_cmp);
        let half = sorted.len() / 2;
        let median = match sorted.len() {
            0 => f64::NAN,
            n if n % 2 == 0 => f64::midpoint(sorted[half - 1], sorted[half]),
            _ => sorted[half],
        };
        let end = |value: Option<&f64>| value.copied().unwrap_or(f64::NAN);
        Spread { median, least: end(sorted.first()), most: end(sorted.last()) }
    }

    fn shown(&self, digits: usize) -> String {
        format!("{:.digits$} ({:.digits$}–{:.digits$})", self.median, self.least, self.most)
    }
}

/// Seconds as a number.
pub fn seconds(span: Duration) -> f64 {
    span.as_secs_f64()
}

/// Bytes in MiB.
pub fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

/// Prints a table of contenders, the first being ours; `unit` is the bytes that the bytes on the wire are set against.
pub fn print(title: &str, unit: (&str, u64), rows: &[Row]) {
    println!("\n== {title}");
    let per_unit = format!("wire / {}", unit.0);
    println!(
        "{:<26} {:>21} {:>7} {:>21} {:>7} {:>10} {:>7} {:>16}",
        "", "wall s (least–most)", "× ours", "CPU s (least–most)", "× ours", "wire MiB", "× ours", per_unit
    );
    let ours = rows.first().and_then(|row| row.turns.as_ref().ok()).map(|turns| spreads(turns));
    for row in rows {
        match &row.turns {
            Ok(turns) => print_row(&row.name, spreads(turns), ours, unit.1),
            Err(why) => println!("{:<26} not available: {why}", row.name),
        }
    }
}

fn print_row(name: &str, [wall, cpu, wire]: [Spread; 3], ours: Option<[Spread; 3]>, unit: u64) {
    let ratio = |own: Spread, which: usize| ours.map_or(f64::NAN, |ours| own.median / ours[which].median);
    println!(
        "{name:<26} {:>21} {:>7.2} {:>21} {:>7.2} {:>10.1} {:>7.2} {:>16.3}",
        wall.shown(2),
        ratio(wall, 0),
        cpu.shown(2),
        ratio(cpu, 1),
        wire.median,
        ratio(wire, 2),
        wire.median / mib(unit)
    );
}

fn spreads(turns: &[Figures]) -> [Spread; 3] {
    let of = |value: fn(&Figures) -> f64| Spread::of(turns.iter().map(value));
    [of(|turn| seconds(turn.wall)), of(|turn| turn.cpu), of(|turn| mib(turn.wire))]
}

/// Prints one measured thing: `what: median unit (least–most)`.
pub fn print_line(what: &str, values: impl IntoIterator<Item = f64>, digits: usize, unit: &str) {
    println!("{what:<44} {} {unit}", Spread::of(values).shown(digits));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_in_the_middle() {
        assert_eq!(Spread::of([3.0, 1.0, 10.0]), Spread { median: 3.0, least: 1.0, most: 10.0 });
        assert_eq!(Spread::of([1.0, 2.0]).median, 1.5);
        assert_eq!(Spread::of([1.0, 2.0, 4.0]).shown(1), "2.0 (1.0–4.0)");
    }
}
