//! An image like those of real disks: stretches that compress, stretches that do not, zeros that were written, and holes.

use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
use std::path::Path;

use anyhow::{Context, Result};

/// Stretches begin and end at a page.
const PAGE: u64 = 4 << 10;
/// They have a length between these: files and free space of an ordinary file system.
const STRETCH_MIN: u64 = 64 << 10;
const STRETCH_MAX: u64 = 4 << 20;

/// How much of an image is what, in bytes.
#[derive(Debug, Default, Clone, Copy)]
pub struct Mix {
    /// Lines of text, which shrink to about a quarter.
    pub text: u64,
    /// Noise, which does not shrink.
    pub noise: u64,
    /// Zeros that take space.
    pub zeros: u64,
    /// Never written.
    pub holes: u64,
}

/// Out of twenty stretches, so many are of each kind.
const TEXT_OF_20: u64 = 9;
const NOISE_OF_20: u64 = 4;
const ZEROS_OF_20: u64 = 2;

/// Writes such an image as a raw file.
pub fn write(path: &Path, bytes: u64, seed: u64) -> Result<Mix> {
    let mut file = File::create(path).with_context(|| format!("cannot create {}", path.display()))?;
    file.set_len(bytes).context("cannot size the image")?;
    let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    let mut mix = Mix::default();
    let (mut at, mut buffer) = (0, Vec::new());
    while at < bytes {
        let length = ((STRETCH_MIN + random.below(STRETCH_MAX - STRETCH_MIN)) / PAGE * PAGE).min(bytes - at);
        let share = match random.below(20) {
            kind if kind < TEXT_OF_20 => {
                text(&mut buffer, length, &mut random);
                &mut mix.text
            }
            kind if kind < TEXT_OF_20 + NOISE_OF_20 => {
                noise(&mut buffer, length, &mut random);
                &mut mix.noise
            }
            kind if kind < TEXT_OF_20 + NOISE_OF_20 + ZEROS_OF_20 => {
                buffer.clear();
                buffer.resize(length as usize, 0);
                &mut mix.zeros
            }
            _ => {
                buffer.clear();
                &mut mix.holes
            }
        };
        *share += length;
        file.seek(SeekFrom::Start(at))?;
        file.write_all(&buffer).context("cannot write the image")?;
        at += length;
    }
    file.sync_all().context("cannot sync the image")?;
    Ok(mix)
}

/// Numbers that are the same for the same seed (xorshift64*).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, bound: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(bound)) >> 64) as u64
    }
}

fn noise(buffer: &mut Vec<u8>, length: u64, random: &mut Random) {
    buffer.clear();
    while (buffer.len() as u64) < length {
        buffer.extend_from_slice(&random.next().to_le_bytes());
    }
    buffer.truncate(length as usize);
}

/// Lines like those of a log: a time that goes on, words that come back, numbers and names that don't.
fn text(buffer: &mut Vec<u8>, length: u64, random: &mut Random) {
    const WORDS: [&str; 16] = [
        "accepted",
        "connection",
        "from",
        "session",
        "opened",
        "for",
        "closed",
        "request",
        "user",
        "timeout",
        "query",
        "finished",
        "in",
        "cache",
        "miss",
        "retry",
    ];
    buffer.clear();
    let mut time = random.below(1 << 30);
    while (buffer.len() as u64) < length {
        time += random.below(5000);
        let mut drawn = random.next();
        buffer.extend_from_slice(format!("{time:012} host{:02} ", drawn & 31).as_bytes());
        for _ in 0..8 {
            drawn = drawn.rotate_right(5);
            buffer.extend_from_slice(WORDS[(drawn & 15) as usize].as_bytes());
            buffer.push(b' ');
        }
        buffer.extend_from_slice(format!("id={:08x}\n", random.next() as u32).as_bytes());
    }
    buffer.truncate(length as usize);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_has_some_of_everything_and_is_the_same_each_time() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (dir.path().join("a"), dir.path().join("b"));
        let mix = write(&a, 64 << 20, 3).unwrap();
        assert!([mix.text, mix.noise, mix.zeros, mix.holes].iter().all(|&share| share > 1 << 20), "{mix:?}");
        assert_eq!(mix.text + mix.noise + mix.zeros + mix.holes, 64 << 20);
        write(&b, 64 << 20, 3).unwrap();
        assert!(std::fs::read(&a).unwrap() == std::fs::read(&b).unwrap());
    }
}
