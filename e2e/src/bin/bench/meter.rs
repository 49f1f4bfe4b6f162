//! What a contender used: time on the wall, processor time of all its processes on both hosts, bytes on the wire.
//!
//! Processor time is that of commands that were run and waited for (this program's account for its children), and of the processes that
//! were there before and after, with all below them. What the kernel does in its own name, such as writing back and most of the
//! network, is nobody's and not in it, for anyone.

use std::collections::HashMap;
use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

/// Ticks of the processor's accounts in a second: fixed for programs on Linux, whatever the kernel's own.
const TICKS_PER_SECOND: f64 = 100.0;
/// The wire's name inside the namespaces.
const WIRE: &str = "wire:";

/// What one turn of a contender used.
#[derive(Debug, Clone, Copy)]
pub struct Figures {
    /// From the command until the copy is durable.
    pub wall: Duration,
    /// Seconds of processor time.
    pub cpu: f64,
    /// Bytes both ways, with the headers of packets.
    pub wire: u64,
}

/// Measures from its start to its end.
#[derive(Debug)]
pub struct Meter<'a> {
    /// Processes that take part and live on.
    servers: &'a [u32],
    /// A process in the namespace at one end of the wire.
    on_wire: u32,
    ticks: u64,
    bytes: u64,
    began: Instant,
}

impl<'a> Meter<'a> {
    /// Begins to measure.
    pub fn start(servers: &'a [u32], on_wire: u32) -> Result<Self> {
        let (ticks, bytes) = (ticks_of(servers)?, wire_bytes(on_wire)?);
        Ok(Meter { servers, on_wire, ticks, bytes, began: Instant::now() })
    }

    /// What was used since the start.
    pub fn stop(self) -> Result<Figures> {
        let wall = self.began.elapsed();
        let ticks = ticks_of(self.servers)?.saturating_sub(self.ticks);
        let wire = wire_bytes(self.on_wire)?.saturating_sub(self.bytes);
        Ok(Figures { wall, cpu: ticks as f64 / TICKS_PER_SECOND, wire })
    }
}

/// Most memory a process has held, in bytes.
pub fn memory_peak(process: u32) -> Result<u64> {
    let text = fs::read_to_string(format!("/proc/{process}/status")).context("cannot read a process' state")?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("no peak of memory")?;
    let kib: u64 = line.trim().trim_end_matches(" kB").parse().context("no number of kB")?;
    Ok(kib << 10)
}

fn wire_bytes(process: u32) -> Result<u64> {
    let text = fs::read_to_string(format!("/proc/{process}/net/dev")).context("cannot read the wire's counters")?;
    let line = text.lines().find_map(|line| line.trim().strip_prefix(WIRE)).context("there is no wire")?;
    let numbers: Vec<u64> = line.split_whitespace().filter_map(|word| word.parse().ok()).collect();
    // Received bytes stand first, sent bytes ninth.
    Ok(numbers.first().context("no counter")? + numbers.get(8).context("no counter")?)
}

fn ticks_of(servers: &[u32]) -> Result<u64> {
    let all = accounts()?;
    let own = all.get(&std::process::id()).map_or(0, |account| account.waited_for);
    let mut left = servers.to_vec();
    let mut sum = own;
    while let Some(id) = left.pop() {
        let Some(account) = all.get(&id) else { continue };
        sum += account.used + account.waited_for;
        left.extend(all.iter().filter(|(_, child)| child.parent == id).map(|(id, _)| *id));
    }
    Ok(sum)
}

#[derive(Debug, Clone, Copy)]
struct Account {
    parent: u32,
    used: u64,
    /// By children that have ended and were waited for.
    waited_for: u64,
}

fn accounts() -> Result<HashMap<u32, Account>> {
    let entries = fs::read_dir("/proc").context("cannot list the processes")?;
    let ids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok());
    // One that ends while we look is no longer of interest: its parent has its account.
    Ok(ids.filter_map(|id| Some((id, account(&fs::read_to_string(format!("/proc/{id}/stat")).ok()?)?))).collect())
}

/// The name may hold anything, also spaces and brackets; the numbers begin behind the last bracket.
fn account(stat: &str) -> Option<Account> {
    let words: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let number = |at: usize| words.get(at)?.parse::<u64>().ok();
    Some(Account {
        parent: u32::try_from(number(1)?).ok()?,
        used: number(11)? + number(12)?,
        waited_for: number(13)? + number(14)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_with_an_odd_name_is_read_like_any_other() {
        let stat = "77 (a) b (c) S 12 1 1 0 -1 0 0 0 0 0 100 20 3 4 20 0 1 0 99";
        let account = account(stat).unwrap();
        assert_eq!((account.parent, account.used, account.waited_for), (12, 120, 7));
    }

    #[test]
    fn what_a_command_used_is_in_the_account_of_its_parent() {
        let before = ticks_of(&[]).unwrap();
        let script = "i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done";
        understudy_testkit::process::run("sh", ["-c", script]).unwrap();
        assert!(ticks_of(&[]).unwrap() > before);
    }
}
