//! Two network namespaces with a wire between them: separate addresses, firewalls and limits for the two hosts of a test, on one machine.
//!
//! The kernel limits rates (`tbf`) and drops or resets packets (`nft`). It cannot delay them on every machine; for delay there is
//! [`crate::link`]. Needs root.
//!
//! Invariant: namespaces are named for the process that made them; only those of this process, or of processes that are gone, are removed.

use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::process::{self, Owned};
use crate::wait::wait_for;
use crate::{packages, skip};

/// Begins the name of every namespace made here; the maker's process id follows.
const PREFIX: &str = "understudy-test-";
/// Name of the wire's end inside each namespace.
const WIRE: &str = "wire";
/// Table of the firewall that holds a test's faults.
const TABLE: &str = "fault";
/// What a rate limit lets through at once: enough for a few hundred Mbit/s at the kernel's tick.
const BURST: &str = "64kb";
/// How long a packet may wait at a rate limit before it is dropped.
const PATIENCE: &str = "200ms";

/// The kernel notices a carrier within a second.
const WIRE_BOUND: Duration = Duration::from_secs(10);

/// What happens to packets a firewall takes out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// They vanish, as behind a cut cable.
    Dropped,
    /// Their connection is reset, as by a host where nobody listens.
    Reset,
}

/// One of the two hosts.
#[derive(Debug)]
pub struct Host {
    namespace: String,
    address: Ipv4Addr,
    peer: String,
}

/// The two hosts and the wire. Dropping it removes them; what still runs in them must be ended before.
#[derive(Debug)]
pub struct Net {
    /// One end.
    pub a: Host,
    /// The other.
    pub b: Host,
}

impl Net {
    /// For a test's first lines: true, and said aloud, when there can be no namespaces on this machine.
    pub fn must_skip(test: &str) -> bool {
        let missing = ["ip", "tc", "nft"].into_iter().find(|program| !process::is_installed(program));
        let why = match missing {
            _ if !packages::is_root() => "network namespaces need root".to_string(),
            Some(missing) => format!("{missing} is not installed"),
            None => return false,
        };
        skip::say(test, &why);
        true
    }

    /// Two hosts that reach each other.
    pub fn start() -> Result<Self> {
        static COUNTER: AtomicU32 = AtomicU32::new(0);
        remove_left_over()?;
        let number = COUNTER.fetch_add(1, Ordering::Relaxed);
        let name = |letter: char| format!("{PREFIX}{}-{number}{letter}", std::process::id());
        // Addresses of a network set aside for documentation.
        let host =
            |own, peer, last| Host { namespace: name(own), address: Ipv4Addr::new(192, 0, 2, last), peer: name(peer) };
        let net = Net { a: host('a', 'b', 1), b: host('b', 'a', 2) };
        let (a, b) = (net.a.namespace.as_str(), net.b.namespace.as_str());
        ip(&["netns", "add", a])?;
        ip(&["netns", "add", b])?;
        ip(&["link", "add", WIRE, "netns", a, "type", "veth", "peer", "name", WIRE, "netns", b])?;
        for host in [&net.a, &net.b] {
            let address = format!("{}/24", host.address);
            ip(&["-n", &host.namespace, "address", "add", &address, "dev", WIRE])?;
            host.plug("up")?;
            ip(&["-n", &host.namespace, "link", "set", "lo", "up"])?;
        }
        net.a.wait_for_wire()?;
        Ok(net)
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        for host in [&self.a, &self.b] {
            remove(&host.namespace);
        }
    }
}

impl Host {
    /// Its address on the wire.
    pub fn address(&self) -> IpAddr {
        self.address.into()
    }

    /// A command that runs on this host.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.namespace, program]);
        command
    }

    /// Words to put before a program so that it runs on this host, under the same process id.
    pub fn prefix(&self) -> Vec<String> {
        ["ip", "netns", "exec", &self.namespace].map(String::from).to_vec()
    }

    /// Starts a program on this host.
    pub fn start(&self, program: &str, arguments: &[&str], prepare: impl FnOnce(&mut Command)) -> Result<Owned> {
        let words = [&["netns", "exec", &self.namespace, program], arguments].concat();
        Owned::start("ip", words, prepare)
    }

    /// Limits what this host sends; `None` lifts the limit.
    pub fn rate(&self, bits_per_second: Option<u64>) -> Result<()> {
        let rate = bits_per_second.map(|rate| format!("{rate}bit"));
        match &rate {
            Some(rate) => {
                self.tc(&["replace", "dev", WIRE, "root", "tbf", "rate", rate, "burst", BURST, "latency", PATIENCE])
            }
            None => self.tc(&["delete", "dev", WIRE, "root"]),
        }
    }

    fn tc(&self, words: &[&str]) -> Result<()> {
        let mut command = self.command("tc");
        command.arg("qdisc").args(words);
        process::run_command(command).map(drop)
    }

    /// What other hosts send to this port of this host meets this fate until [`Host::heal`].
    pub fn refuse_port(&self, port: u16, fate: Fate) -> Result<()> {
        let verdict = match fate {
            Fate::Dropped => "drop",
            Fate::Reset => "reject with tcp reset",
        };
        self.nft(&format!("add rule inet {TABLE} input tcp dport {port} {verdict}"))
    }

    /// Nothing from the wire arrives at this host until [`Host::heal`], while what it sends goes out.
    pub fn deafen(&self) -> Result<()> {
        self.nft(&format!("add rule inet {TABLE} input iifname {WIRE} drop"))
    }

    /// Takes every fault of this host's firewall away.
    pub fn heal(&self) -> Result<()> {
        self.nft(&format!("flush chain inet {TABLE} input"))
    }

    fn nft(&self, rule: &str) -> Result<()> {
        let mut command = self.command("nft");
        command.arg(format!(
            "add table inet {TABLE}; add chain inet {TABLE} input {{ type filter hook input priority 0; }}; {rule}"
        ));
        process::run_command(command).map(drop)
    }

    /// Takes the cable out.
    pub fn down(&self) -> Result<()> {
        self.plug("down")
    }

    /// Puts the cable back, and waits until both ends have noticed.
    pub fn up(&self) -> Result<()> {
        self.plug("up")?;
        self.wait_for_wire()?;
        // A question for the other's hardware address that was asked meanwhile is about to fail, and would take new connections along.
        for namespace in [&self.namespace, &self.peer] {
            ip(&["-n", namespace, "neighbour", "flush", "dev", WIRE])?;
        }
        Ok(())
    }

    fn plug(&self, state: &str) -> Result<()> {
        ip(&["-n", &self.namespace, "link", "set", WIRE, state])
    }

    fn wait_for_wire(&self) -> Result<()> {
        let is_up = |namespace: &str| {
            let shown = process::run("ip", ["-n", namespace, "link", "show", WIRE])?;
            Ok::<_, anyhow::Error>(shown.contains("state UP"))
        };
        wait_for("the wire to carry", WIRE_BOUND, || Ok((is_up(&self.namespace)? && is_up(&self.peer)?).then_some(())))
    }
}

fn ip(words: &[&str]) -> Result<()> {
    process::run("ip", words).map(drop)
}

fn remove(namespace: &str) {
    if let Err(err) = ip(&["netns", "delete", namespace]) {
        eprintln!("{err:#}");
    }
}

/// Removes what killed tests left behind.
fn remove_left_over() -> Result<()> {
    let Ok(entries) = fs::read_dir("/run/netns") else { return Ok(()) };
    for entry in entries {
        let name = entry.context("cannot list the namespaces")?.file_name().to_string_lossy().into_owned();
        let maker = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next());
        if maker.is_some_and(|id| !Path::new("/proc").join(id).exists()) {
            let _ = ip(&["netns", "delete", &name]); // another test may be at it too
        }
    }
    Ok(())
}
