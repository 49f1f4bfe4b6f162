//! What may be typed: noun, then verb. The help texts are the manual.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use understudy_daemon::config::Span;

/// Replication of virtual machines for QEMU/KVM hosts
///
/// A running VM keeps a second, ready-to-start copy on another host: an initial copy over the network, then what
/// changed every few seconds, recovery points, and failover. `understudy serve` runs the service, one on each host; every
/// other command asks the service of this host.
#[derive(Parser)]
#[command(name = "understudy", version, after_long_help = EXIT_CODES)]
pub struct Arguments {
    /// Socket of the service
    ///
    /// Where `serve` answers and where every other command asks. Without it, `understudy.sock` in the state directory.
    #[arg(long, global = true, env = "UNDERSTUDY_SOCKET", hide_env_values = true, value_name = "PATH")]
    pub socket: Option<PathBuf>,

    /// Print the API's objects as JSON
    #[arg(long, global = true)]
    pub json: bool,

    #[command(subcommand)]
    pub command: Command,
}

/// Told at the end of the long help, and in the reference.
pub const EXIT_CODES: &str = "\
Exit codes:
  0  done
  1  refused, or failed: the reason is on standard error
  2  the command line is not understood
  3  the service cannot be reached
  4  the job that was waited for failed
  5  the job that was waited for was cancelled
  6  not confirmed";

#[derive(Subcommand)]
pub enum Command {
    /// Run the service of this host, in the foreground
    ///
    /// Logs to standard error. Ends in good order on SIGTERM, within 10 seconds; a cycle under way is given up, and what
    /// it carried is sent with the next. What is not given here is taken from the configuration file, and what is not
    /// there has a default.
    Serve(Serve),
    /// Hosts that this one trusts
    #[command(subcommand)]
    Peer(Peer),
    /// VMs of this host
    #[command(subcommand)]
    Vm(Vm),
    /// Replication of VMs, to this host and from it
    #[command(subcommand)]
    Replication(Replication),
    /// Recovery points; on the replica
    #[command(subcommand)]
    Point(Point),
    /// Taking over; on the replica
    #[command(subcommand)]
    Failover(Failover),
    /// Long work
    #[command(subcommand)]
    Job(Job),
    /// This host
    #[command(subcommand)]
    Host(Host),
    /// Print the OpenAPI document of the API
    Openapi,
    /// Lets a VM run on should the daemon die while it holds it still; started by the daemon itself
    #[command(hide = true)]
    Guard,
}

/// Flags of `serve`.
#[derive(Args)]
pub struct Serve {
    /// Configuration file (TOML)
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// State directory: identity, catalogue, audit log, socket [default: /var/lib/understudy]
    #[arg(long, value_name = "DIR")]
    pub state: Option<PathBuf>,
    /// Address and port on which other hosts connect [default: 0.0.0.0:7843]
    #[arg(long, value_name = "ADDR:PORT")]
    pub listen: Option<SocketAddr>,
    /// Where replicas are stored [default: storage, in the state directory]
    #[arg(long, value_name = "DIR")]
    pub storage: Option<PathBuf>,
    /// Address under which other hosts reach this one, for invitations; may be repeated
    #[arg(long, value_name = "HOST:PORT")]
    pub advertise: Vec<String>,
    /// This host's name, for people [default: the system's]
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,
}

#[derive(Subcommand)]
pub enum Peer {
    /// Invite another host: prints a token for its `peer join`
    ///
    /// The host that presents the token may then replicate VMs to this one. The token serves once and ends after an hour.
    /// It is a secret until then: who has it can join.
    Invite,
    /// Accept an invitation: both hosts then trust each other's key
    Join {
        /// What `understudy peer invite` printed on the other host; `-` reads it from standard input
        token: String,
    },
    /// List the trusted hosts
    List,
    /// Test the connection to a trusted host
    Test {
        /// Name or identity, or the first 8 or more digits of it
        peer: String,
    },
    /// Withdraw trust from a host, at once
    ///
    /// Its connections end. Relationships with it stay and stand still; pairing the same host again makes them go on.
    Remove {
        /// Name or identity, or the first 8 or more digits of it
        peer: String,
    },
}

#[derive(Subcommand)]
pub enum Vm {
    /// Add a VM that is running already
    ///
    /// The VM is looked at through its QMP socket and not touched: no restart, no change of its configuration.
    Add {
        /// Name to give it here
        name: String,
        /// Its QMP socket, as in `-qmp unix:PATH,server=on,wait=off`
        #[arg(long, value_name = "SOCKET")]
        qmp: PathBuf,
        /// How to build the VM on another host; without it that is derived from the running VM
        #[arg(long, value_name = "FILE")]
        definition: Option<PathBuf>,
    },
    /// List the VMs
    List,
    /// Show a VM, its disks, and what it does now
    Show {
        /// Name or identity
        name: String,
    },
    /// Take a VM off the list; the VM itself is not touched
    Remove {
        /// Name or identity
        name: String,
    },
}

#[derive(Subcommand)]
pub enum Replication {
    /// Make a relationship: a VM is to be replicated to a peer. Nothing is copied before it is started
    Create(Create),
    /// Start the initial copy
    ///
    /// The VM runs on. The copy goes on where it stopped after a restart of either host or a lost connection.
    Start {
        /// Name or identity of the VM
        name: String,
        /// How: everything over the network, or only what differs from what was placed on the replica host before
        #[arg(long = "type", value_enum, default_value_t = InitialType::Network)]
        kind: InitialType,
        /// When to begin, at most 7 days ahead: 2026-01-31T20:00:00+01:00, 2026-01-31T20:00 (this host's time), or 20:00
        #[arg(long, value_name = "TIME", value_parser = at)]
        at: Option<String>,
        /// Wait for the end of the copy and show how far it is
        #[arg(long)]
        wait: bool,
    },
    /// Show how replication goes: of one VM in detail, or of all
    Status {
        /// Name or identity of the VM
        name: Option<String>,
        /// Go on showing it, once a second
        #[arg(long)]
        watch: bool,
    },
    /// Show the latest cycles of a VM, newest first
    History {
        /// Name or identity of the VM
        name: String,
        /// Most cycles to show
        #[arg(long, default_value_t = 20, value_name = "N")]
        count: u32,
    },
    /// Show what replication of a VM did, and how old its replica was meanwhile
    Statistics {
        /// Name or identity of the VM
        name: String,
        /// Count from now on
        #[arg(long)]
        reset: bool,
    },
    /// Change the settings of a relationship; what is not given stays
    Modify(Modify),
    /// Pause replication
    Suspend {
        /// Name or identity of the VM
        name: String,
    },
    /// Go on with replication; everything changed since the pause is sent
    Resume {
        /// Name or identity of the VM
        name: String,
    },
    /// Place an image on this replica host for a seeded initial copy to begin with
    ///
    /// A restored backup, the disk of an old primary, an image made from the same template: nothing is believed of it,
    /// since every block of it is compared. Then, on the primary: replication start NAME --type seeded
    Seed {
        /// Name or identity of the VM
        name: String,
        /// Which disk (disk-0), and the raw image for it; may be repeated
        #[arg(long, value_name = "ID=PATH", required = true, value_parser = placed)]
        disk: Vec<(String, String)>,
        /// The images' format, if they begin like another one: raw
        #[arg(long)]
        format: Option<String>,
        /// Move the images instead of copying them
        #[arg(long)]
        take: bool,
    },
    /// Compare both sides and send what differs
    ///
    /// For a relationship that is in state resync-required, paused or critical. The VM runs on, and the replica's recovery
    /// points stay.
    Resync {
        /// Name or identity of the VM
        name: String,
        /// When to begin, at most 7 days ahead: 2026-01-31T20:00:00+01:00, 2026-01-31T20:00 (this host's time), or 20:00
        #[arg(long, value_name = "TIME", value_parser = at)]
        at: Option<String>,
        /// Wait for the end and show how far it is
        #[arg(long)]
        wait: bool,
    },
    /// Give up an initial copy or a resynchronisation, under way or to begin later
    Stop {
        /// Name or identity of the VM
        name: String,
    },
    /// End a relationship on this host; what the other host holds stays there
    Remove {
        /// Name or identity of the VM
        name: String,
    },
}

/// Flags of `replication create`.
#[derive(Args)]
pub struct Create {
    /// Name or identity of the VM
    pub name: String,
    /// The peer to replicate to: name or identity
    #[arg(long, value_name = "PEER")]
    pub to: String,
    /// Time between two cuts, 1s to 15m [default: 5m]
    #[arg(long, value_name = "SPAN")]
    pub interval: Option<Span>,
    /// Recovery points to keep beside the newest state, 0 to 24 [default: 0]
    #[arg(long, value_name = "N")]
    pub points: Option<u16>,
    /// How often a cut becomes a recovery point: a span such as 1h, or `cycle` for each [default: 1h]
    #[arg(long, value_name = "SPAN|cycle", value_parser = point_every)]
    pub point_every: Option<PointEvery>,
    /// Leave a disk out, by number (disk-1) or by the device's name in QEMU; may be repeated
    #[arg(long, value_name = "ID")]
    pub exclude_disk: Vec<String>,
    /// Send and keep data uncompressed
    #[arg(long)]
    pub no_compression: bool,
    /// When a resynchronisation that became necessary may start by itself: always, never, or hours such as 22:00-05:00
    /// [default: never]
    #[arg(long, value_name = "HOURS", value_parser = auto_resync)]
    pub auto_resync: Option<AutoResync>,
}

/// Flags of `replication modify`.
#[derive(Args)]
pub struct Modify {
    /// Name or identity of the VM
    pub name: String,
    /// Time between two cuts, 1s to 15m
    #[arg(long, value_name = "SPAN")]
    pub interval: Option<Span>,
    /// Recovery points to keep beside the newest state, 0 to 24
    #[arg(long, value_name = "N")]
    pub points: Option<u16>,
    /// How often a cut becomes a recovery point: a span such as 1h, or `cycle` for each
    #[arg(long, value_name = "SPAN|cycle", value_parser = point_every)]
    pub point_every: Option<PointEvery>,
    /// Whether to send and keep data compressed
    #[arg(long, value_name = "true|false")]
    pub compression: Option<bool>,
    /// When a resynchronisation that became necessary may start by itself: always, never, or hours such as 22:00-05:00
    #[arg(long, value_name = "HOURS", value_parser = auto_resync)]
    pub auto_resync: Option<AutoResync>,
}

/// How the first full copy comes to the replica.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum InitialType {
    /// Everything over the network
    Network,
    /// What differs from what was placed on the replica host before
    Seeded,
}

impl InitialType {
    /// `InitialReplicationType`.
    pub fn value(self) -> u16 {
        match self {
            InitialType::Network => 1,
            InitialType::Seeded => 3,
        }
    }
}

/// When resynchronisations may start by themselves: times since midnight, or never.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AutoResync(pub Option<(u64, u64)>);

fn auto_resync(text: &str) -> Result<AutoResync, String> {
    let hours = || "neither `always`, `never`, nor hours such as 22:00-05:00".to_owned();
    match text {
        "never" => Ok(AutoResync(None)),
        "always" => Ok(AutoResync(Some((0, 0)))),
        text => {
            let (start, end) = text.split_once('-').ok_or_else(hours)?;
            let since_midnight = |text: &str| {
                let time: jiff::civil::Time = text.trim().parse().map_err(|_| hours())?;
                let seconds = i64::from(time.hour()) * 3600 + i64::from(time.minute()) * 60 + i64::from(time.second());
                Ok::<_, String>(seconds.unsigned_abs() * 1000)
            };
            let (start, end) = (since_midnight(start)?, since_midnight(end)?);
            if start == end {
                Err("the hours must not be empty".to_owned())
            } else {
                Ok(AutoResync(Some((start, end))))
            }
        }
    }
}

fn placed(text: &str) -> Result<(String, String), String> {
    let (disk, path) = text.split_once('=').ok_or("not like disk-0=/path/of/image.raw")?;
    let path = std::path::absolute(path).map_err(|err| err.to_string())?;
    let path = path.to_str().ok_or("the path is not UTF-8")?;
    Ok((disk.to_owned(), path.to_owned()))
}

/// A time to come, as the API takes it.
fn at(text: &str) -> Result<String, String> {
    let zoned = |civil: jiff::civil::DateTime| {
        let zoned = civil.to_zoned(jiff::tz::TimeZone::system());
        zoned.map(|z| z.timestamp()).map_err(|_| "no such time here".to_owned())
    };
    if let Ok(at) = text.parse::<jiff::Timestamp>() {
        return Ok(at.to_string());
    }
    if let Ok(civil) = text.parse::<jiff::civil::DateTime>() {
        return zoned(civil).map(|at| at.to_string());
    }
    let time: jiff::civil::Time = text.parse().map_err(|_| {
        "neither a time such as 2026-01-31T20:00:00+01:00 or 2026-01-31T20:00, nor one of the day such as 20:00"
            .to_owned()
    })?;
    let now = jiff::Zoned::now();
    let today = zoned(now.date().to_datetime(time))?;
    let next = if today > now.timestamp() {
        today
    } else {
        let tomorrow = now.date().tomorrow().map_err(|_| "out of range".to_owned())?;
        zoned(tomorrow.to_datetime(time))?
    };
    Ok(next.to_string())
}

/// How often a cut becomes a recovery point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PointEvery {
    /// Each one.
    Cycle,
    /// The first after each such span.
    Span(Span),
}

impl PointEvery {
    /// As the API has it.
    pub fn ms(self) -> u64 {
        match self {
            PointEvery::Cycle => 0,
            PointEvery::Span(span) => span.0.0,
        }
    }
}

fn point_every(text: &str) -> Result<PointEvery, String> {
    if text == "cycle" {
        return Ok(PointEvery::Cycle);
    }
    let span: Span = text.parse().map_err(|err| format!("{err}, nor `cycle`"))?;
    // In the API 0 stands for each cycle; a span of nothing must not come to mean that.
    if span.0.0 == 0 { Err("the span must be longer than nothing".to_owned()) } else { Ok(PointEvery::Span(span)) }
}

#[derive(Subcommand)]
pub enum Point {
    /// List the recovery points of a VM, oldest first
    List {
        /// Name or identity of the VM
        name: String,
    },
}

#[derive(Subcommand)]
pub enum Failover {
    /// Take over: make a recovery point startable on this host
    ///
    /// Replication into this host stops, and the old primary is refused from then on. Can be reverted until it is
    /// committed. On a terminal it shows what will happen and asks.
    Start {
        /// Name or identity of the VM
        name: String,
        /// The recovery point; without it, the newest state received
        #[arg(long, value_name = "ID")]
        point: Option<String>,
        /// Start the VM too
        #[arg(long)]
        power_on: bool,
        /// Do not ask
        #[arg(long, short)]
        yes: bool,
        /// Show what would happen, and do nothing
        #[arg(long)]
        dry_run: bool,
    },
    /// Undo a failover: the VM started from it ends, and what it wrote is lost
    Revert {
        /// Name or identity of the VM
        name: String,
        /// Do not ask
        #[arg(long, short)]
        yes: bool,
    },
    /// Make a failover final: all other recovery points go
    Commit {
        /// Name or identity of the VM
        name: String,
        /// Do not ask
        #[arg(long, short)]
        yes: bool,
    },
}

#[derive(Subcommand)]
pub enum Job {
    /// List the jobs, newest first
    List,
    /// Show a job
    Show {
        /// Identity of the job
        id: String,
    },
    /// Wait for the end of a job and show how far it is
    Wait {
        /// Identity of the job
        id: String,
    },
    /// Ask a job to end early
    Cancel {
        /// Identity of the job
        id: String,
    },
}

#[derive(Subcommand)]
pub enum Host {
    /// Show this host: its identity, where it listens and stores, what it holds
    Show,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_tree_of_commands_is_sound() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn global_options_stand_before_or_after_the_verb() {
        let before = Arguments::try_parse_from(["understudy", "--socket", "/s", "--json", "vm", "list"]).unwrap();
        let after = Arguments::try_parse_from(["understudy", "vm", "list", "--json", "--socket", "/s"]).unwrap();
        assert!(before.json && after.json);
        assert_eq!((before.socket, after.socket), (Some("/s".into()), Some("/s".into())));
    }

    #[test]
    fn spans_and_points_are_read_with_their_units() {
        let parse = |every: &str| {
            let words = [
                "understudy",
                "replication",
                "create",
                "web",
                "--to",
                "b",
                "--interval",
                "30s",
                "--point-every",
                every,
            ];
            Arguments::try_parse_from(words).map(|a| match a.command {
                Command::Replication(Replication::Create(create)) => (create.interval, create.point_every),
                _ => panic!("another command"),
            })
        };
        assert_eq!(parse("cycle").unwrap(), (Some(Span::secs(30)), Some(PointEvery::Cycle)));
        assert_eq!(parse("1h").unwrap().1, Some(PointEvery::Span(Span::secs(3600))));
        for bad in ["0s", "often", "30"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
