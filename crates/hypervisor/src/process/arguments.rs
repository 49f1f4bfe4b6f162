//! The command line of a running QEMU: whether it is the one we started, and what its monitor does not tell (the
//! processor's features, the clock).
//!
//! A process can rewrite its command line, so what is read here of a foreign one is as little to be trusted as its
//! answers, and passes through the same types.

use std::fs::File;
use std::io::{self, Read};

/// Longest command line looked at. The kernel allows 2 MiB of arguments; `libvirt` writes some 10 KiB.
const COMMAND_LINE_MAX: u64 = 1 << 20;

/// The arguments of a running QEMU.
#[derive(Debug, Clone, Default)]
pub(crate) struct Arguments(Vec<String>);

impl Arguments {
    /// Of the process `pid`.
    pub fn of(pid: u32) -> io::Result<Self> {
        let mut bytes = Vec::new();
        File::open(format!("/proc/{pid}/cmdline"))?.take(COMMAND_LINE_MAX).read_to_end(&mut bytes)?;
        Ok(Self(bytes.split(|b| *b == 0).map(|a| String::from_utf8_lossy(a).into_owned()).collect()))
    }

    /// The value of the last option of this name, as in `-name value` or `--name value`.
    fn option(&self, name: &str) -> Option<&str> {
        let is_it = |a: &String| a.strip_prefix('-').map(|a| a.strip_prefix('-').unwrap_or(a)) == Some(name);
        let at = self.0.iter().rposition(is_it)?;
        self.0.get(at + 1).map(String::as_str)
    }

    /// The features of `-cpu model,features`, each with its value.
    pub fn cpu_features(&self) -> Vec<(String, String)> {
        let Some((_, features)) = self.option("cpu").and_then(|cpu| cpu.split_once(',')) else { return Vec::new() };
        features.split(',').map(feature).filter(|(name, _)| !name.is_empty()).collect()
    }

    /// Whether the guest's clock shows local time.
    pub fn clock_is_local(&self) -> bool {
        self.option("rtc").is_some_and(|rtc| rtc.split(',').any(|part| part == "base=localtime" || part == "localtime"))
    }

    /// Whether the process was started with exactly this option and value.
    pub fn has(&self, name: &str, value: &str) -> bool {
        self.option(name) == Some(value)
    }
}

fn feature(text: &str) -> (String, String) {
    let (name, value) = match (text.strip_prefix('+'), text.strip_prefix('-'), text.split_once('=')) {
        (Some(name), ..) => (name, "on"),
        (_, Some(name), _) => (name, "off"),
        (_, _, Some((name, value))) => (name, value),
        _ => (text, "on"),
    };
    (name.to_owned(), value.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arguments(words: &[&str]) -> Arguments {
        Arguments(words.iter().map(|w| (*w).to_owned()).collect())
    }

    #[test]
    fn the_last_of_an_option_counts() {
        let line = arguments(&["qemu", "-cpu", "host", "--cpu", "EPYC,+svm,-x2apic,hv_relaxed,hv-spinlocks=0x1fff"]);
        let features = line.cpu_features();
        let features: Vec<_> = features.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
        assert_eq!(features, [("svm", "on"), ("x2apic", "off"), ("hv_relaxed", "on"), ("hv-spinlocks", "0x1fff")]);
        assert!(arguments(&["qemu", "-cpu"]).cpu_features().is_empty());
        assert!(line.has("cpu", "EPYC,+svm,-x2apic,hv_relaxed,hv-spinlocks=0x1fff") && !line.has("cpu", "host"));
    }

    #[test]
    fn the_clock_is_universal_unless_said_otherwise() {
        assert!(!arguments(&["qemu", "-rtc", "base=utc,driftfix=slew"]).clock_is_local());
        assert!(arguments(&["qemu", "-rtc", "driftfix=slew,base=localtime"]).clock_is_local());
    }

    #[test]
    fn our_own_arguments_are_found() {
        let own = Arguments::of(std::process::id()).unwrap();
        assert_eq!(own.0[0], std::env::args().next().unwrap());
        assert!(Arguments::of(u32::MAX).is_err());
    }
}
