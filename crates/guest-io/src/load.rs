//! Loads without evidence of their own: they make disks busy, dirty or full in known amounts, and measure what a write costs.

use std::collections::BTreeSet;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use crate::Outcome;
use crate::args::Args;
use crate::checksum::Random;
use crate::disk::{Disk, say};

const PAGE: u64 = 4096;
/// Most samples a latency run keeps: four bytes each.
const SAMPLES_MAX: u64 = 4_000_000;

/// The part of a disk a load may write.
struct Region {
    disk: Disk,
    from: u64,
    random: Random,
}

impl Region {
    fn open(args: &mut Args) -> Result<Self, String> {
        let from = args.number_or("from", 0)?;
        let seed = args.number_or("seed", 1)?;
        let disk = Disk::open(args.one_disk()?)?;
        Ok(Region { disk, from, random: Random::seeded(seed) })
    }

    /// How many whole blocks fit behind `from`.
    fn blocks(&self, block: u64) -> Result<u64, String> {
        match self.disk.size.saturating_sub(self.from).checked_div(block) {
            None | Some(0) => Err(format!("no block of {block} bytes fits behind {}", self.from)),
            Some(count) => Ok(count),
        }
    }
}

/// `guest-io dirty`: writes one page into each of N different clusters, chosen at random.
pub fn dirty(mut args: Args) -> Outcome {
    let clusters = args.number("clusters")?.ok_or("--clusters is needed")?;
    let size = args.number_or("cluster-size", 65_536)?.max(PAGE);
    let mut region = Region::open(&mut args)?;
    args.finish()?;
    let room = region.blocks(size)?;
    if clusters > room {
        return Err(format!("{clusters} clusters of {size} do not fit: there is room for {room}"));
    }
    let started = Instant::now();
    let mut page = vec![0u8; PAGE as usize];
    for cluster in choose(&mut region.random, clusters, room) {
        region.random.fill(&mut page);
        let within = region.random.below(size / PAGE) * PAGE;
        region.disk.write_at(&page, region.from + cluster * size + within)?;
    }
    region.disk.sync()?;
    say(&format!("GUEST-IO dirty clusters={clusters} bytes={} ms={}", clusters * PAGE, started.elapsed().as_millis()));
    Ok(ExitCode::SUCCESS)
}

/// `count` different numbers below `bound`, in ascending order.
fn choose(random: &mut Random, count: u64, bound: u64) -> BTreeSet<u64> {
    // Choosing the smaller side keeps the number of draws low when nearly all are wanted.
    let (draws, invert) = if count * 2 > bound { (bound - count, true) } else { (count, false) };
    let mut chosen = BTreeSet::new();
    while (chosen.len() as u64) < draws {
        chosen.insert(random.below(bound));
    }
    if invert { (0..bound).filter(|n| !chosen.contains(n)).collect() } else { chosen }
}

/// `guest-io heavy`: random writes as fast as they go, synced now and then.
pub fn heavy(mut args: Args) -> Outcome {
    let limit = Duration::from_secs(args.number_or("seconds", 10)?);
    let block = args.number_or("block", 65_536)?.clamp(512, 16 << 20);
    let sync_every = args.number_or("sync-every", 64)?.max(1);
    let mut region = Region::open(&mut args)?;
    args.finish()?;
    let blocks = region.blocks(block)?;
    let mut buffer = vec![0u8; block as usize];
    region.random.fill(&mut buffer);
    let started = Instant::now();
    let mut writes = 0u64;
    while started.elapsed() < limit {
        buffer[..8].copy_from_slice(&writes.to_le_bytes()); // no two blocks are the same
        region.disk.write_at(&buffer, region.from + region.random.below(blocks) * block)?;
        writes += 1;
        if writes.is_multiple_of(sync_every) {
            region.disk.sync()?;
        }
    }
    region.disk.sync()?;
    let ms = started.elapsed().as_millis();
    say(&format!("GUEST-IO heavy writes={writes} bytes={} ms={ms}", writes * block));
    Ok(ExitCode::SUCCESS)
}

/// `guest-io latency`: random 4 KiB write and fdatasync, and how long each took.
pub fn latency(mut args: Args) -> Outcome {
    let count = args.number_or("count", SAMPLES_MAX)?.min(SAMPLES_MAX);
    let limit = Duration::from_secs(args.number_or("seconds", 10)?);
    let span = args.number("span")?;
    let mut region = Region::open(&mut args)?;
    args.finish()?;
    let blocks = region.blocks(PAGE)?.min(span.map_or(u64::MAX, |bytes| (bytes / PAGE).max(1)));
    let mut page = vec![0u8; PAGE as usize];
    let mut samples = Vec::new();
    let started = Instant::now();
    while (samples.len() as u64) < count && started.elapsed() < limit {
        region.random.fill(&mut page);
        let offset = region.from + region.random.below(blocks) * PAGE;
        let before = Instant::now();
        region.disk.write_at(&page, offset)?;
        region.disk.sync()?;
        samples.push(u32::try_from(before.elapsed().as_micros()).unwrap_or(u32::MAX));
    }
    say(&describe(&mut samples, started.elapsed()));
    Ok(ExitCode::SUCCESS)
}

fn describe(samples: &mut [u32], elapsed: Duration) -> String {
    samples.sort_unstable();
    let at = |per_mille: usize| {
        let rank = (samples.len() * per_mille).div_ceil(1000).max(1) - 1;
        samples.get(rank).copied().unwrap_or(0)
    };
    let rate = samples.len() as u128 * 1000 / elapsed.as_millis().max(1);
    format!(
        "GUEST-IO latency count={} per_second={rate} p50_us={} p99_us={} p999_us={} max_us={}",
        samples.len(),
        at(500),
        at(990),
        at(999),
        at(1000)
    )
}

/// `guest-io fill`: a stretch of bytes that compress well, not at all, or to nothing.
pub fn fill(mut args: Args) -> Outcome {
    let bytes = args.number("bytes")?.ok_or("--bytes is needed")?;
    let pattern = args.word("pattern").unwrap_or_else(|| "random".into());
    let mut region = Region::open(&mut args)?;
    args.finish()?;
    region.disk.grow_file_to(region.from + bytes)?;
    let started = Instant::now();
    let mut buffer = vec![0u8; 1 << 20];
    let mut done = 0;
    while done < bytes {
        paint(&mut buffer, &pattern, &mut region.random)?;
        let length = (bytes - done).min(buffer.len() as u64);
        region.disk.write_at(&buffer[..length as usize], region.from + done)?;
        done += length;
    }
    region.disk.sync()?;
    say(&format!("GUEST-IO fill pattern={pattern} bytes={bytes} ms={}", started.elapsed().as_millis()));
    Ok(ExitCode::SUCCESS)
}

fn paint(buffer: &mut [u8], pattern: &str, random: &mut Random) -> Result<(), String> {
    match pattern {
        "zero" => buffer.fill(0),
        "random" => random.fill(buffer),
        "text" => paint_text(buffer, random),
        other => return Err(format!("no pattern is called {other}")),
    }
    Ok(())
}

/// Lines like those of a log: common words, a number that changes; shrinks to about a third.
fn paint_text(buffer: &mut [u8], random: &mut Random) {
    const WORDS: [&str; 8] = ["accepted", "connection", "from", "session", "opened", "for", "closed", "request"];
    let mut filled = 0;
    while filled < buffer.len() {
        let word = WORDS[random.below(8) as usize];
        let piece = format!("{word} {:05}{}", random.below(100_000), if random.below(6) == 0 { '\n' } else { ' ' });
        let length = piece.len().min(buffer.len() - filled);
        buffer[filled..filled + length].copy_from_slice(&piece.as_bytes()[..length]);
        filled += length;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_disk(command: fn(Args) -> Outcome, options: &str) -> (Outcome, Vec<u8>) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk");
        std::fs::write(&path, vec![0u8; 1 << 20]).unwrap();
        let line = format!("{} {options}", path.display());
        let outcome = command(Args::parse(line.split_whitespace().map(String::from)).unwrap());
        (outcome, std::fs::read(&path).unwrap())
    }

    fn touched(bytes: &[u8], cluster: usize) -> usize {
        bytes.chunks(cluster).filter(|chunk| chunk.iter().any(|&b| b != 0)).count()
    }

    #[test]
    fn dirty_touches_exactly_so_many_clusters() {
        for clusters in [0, 1, 5, 15, 16] {
            let (outcome, bytes) = with_disk(dirty, &format!("--clusters {clusters} --seed 3"));
            outcome.unwrap();
            assert_eq!((touched(&bytes, 65_536), touched(&bytes, 4096)), (clusters, clusters));
        }
        assert!(with_disk(dirty, "--clusters 17").0.is_err());
    }

    #[test]
    fn loads_stay_behind_from() {
        for (command, options) in [
            (dirty as fn(Args) -> Outcome, "--clusters 8 --from 524288"),
            (latency, "--count 20 --from 524288"),
            (fill, "--bytes 65536 --from 524288 --pattern text"),
        ] {
            let (outcome, bytes) = with_disk(command, options);
            outcome.unwrap();
            assert_eq!(touched(&bytes[..524_288], 4096), 0);
            assert!(touched(&bytes[524_288..], 4096) > 0);
        }
    }

    #[test]
    fn ranks_are_those_of_the_sorted_samples() {
        let mut samples: Vec<u32> = (1..=1000).rev().collect();
        let line = describe(&mut samples, Duration::from_secs(2));
        assert_eq!(line, "GUEST-IO latency count=1000 per_second=500 p50_us=500 p99_us=990 p999_us=999 max_us=1000");
        assert!(describe(&mut [], Duration::ZERO).contains("count=0"));
    }

    #[test]
    fn fill_writes_what_it_was_asked_for() {
        let (outcome, bytes) = with_disk(fill, "--bytes 100000 --pattern random --seed 2");
        outcome.unwrap();
        assert!(bytes[99_990..100_000].iter().any(|&b| b != 0));
        assert!(bytes[100_000..].iter().all(|&b| b == 0));
        assert!(with_disk(fill, "--bytes 10 --pattern nice").0.is_err());
    }
}
