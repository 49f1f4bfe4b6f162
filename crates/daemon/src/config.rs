//! The configuration of one daemon: a TOML file, with flags of `understudy serve` on top.
//!
//! Every key has a default that stands at the field; an unknown key is refused; values carry their units. The
//! reference page is made from the text at the fields, see [`mod@reference`].

mod reference;
mod values;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use understudy_model::{ErrorKind, Millis};

pub use reference::reference;
pub use values::{ByteSize, ParseValueError, Span};

/// Largest configuration file: ours has some forty keys.
const FILE_MAX: u64 = 256 << 10;

/// Longest path of a unix socket on Linux, without the ending zero (`sun_path` has 108 bytes).
const SOCKET_PATH_MAX: usize = 107;

/// Longest runtime directory: below it come a directory of 12 digits for each VM and a socket's name, with room to spare.
const RUNTIME_PATH_MAX: usize = 75;

/// What the reference page says about one key.
struct KeyDoc {
    key: &'static str,
    text: &'static str,
}

/// Declares a table of the configuration: the struct, its defaults and its part of the reference page.
macro_rules! table {
    ($(#[doc = $doc:literal])+ $name:ident { $($(#[doc = $text:literal])+ $key:ident : $type:ty = $default:expr,)+ }) => {
        $(#[doc = $doc])+
        #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
        #[serde(deny_unknown_fields, default)]
        pub struct $name { $($(#[doc = $text])+ pub $key: $type,)+ }

        impl Default for $name {
            fn default() -> Self {
                Self { $($key: $default,)+ }
            }
        }

        impl $name {
            const ABOUT: &'static str = concat!($($doc, "\n",)+);
            const KEYS: &'static [KeyDoc] =
                &[$(KeyDoc { key: stringify!($key), text: concat!($($text, "\n",)+) },)+];
        }
    };
}

table! {
    /// Keys at the top of the file.
    Config {
        /// State directory: identity, catalogue, audit log, and the socket unless `socket` says otherwise. Only the
        /// user the daemon runs as may enter it.
        state: PathBuf = PathBuf::from("/var/lib/understudy"),
        /// Where replicas are stored. Unset: `storage` inside the state directory.
        storage: Option<PathBuf> = None,
        /// Address and port on which other hosts connect. Port 0 lets the system choose one.
        listen: SocketAddr = SocketAddr::from(([0, 0, 0, 0], 7843)),
        /// Addresses (`host:port`) under which other hosts reach this one; they stand in invitations. Empty: the
        /// address of `listen`, or, if that is "any", the one the default route uses and the host's name.
        advertise: Vec<String> = Vec::new(),
        /// The unix socket of the API. Unset: `understudy.sock` in the state directory.
        socket: Option<PathBuf> = None,
        /// This host's name, for people. Unset: the system's host name.
        name: Option<String> = None,
        /// Connections between hosts.
        link: Link = Link::default(),
        /// Invitations, see `understudy peer invite`.
        invite: Invite = Invite::default(),
        /// Jobs.
        jobs: Jobs = Jobs::default(),
        /// VMs of this host, and those it starts from replicas.
        vms: Vms = Vms::default(),
        /// The API on the unix socket.
        api: Api = Api::default(),
        /// The log on standard error.
        log: Log = Log::default(),
    }
}

table! {
    /// Connections between hosts.
    Link {
        /// Congestion control of the sockets: `bbr` where the kernel allows it (a lossy long link carries ten times
        /// more with it), or `system` for the system's default. `understudy host show` tells which is in force.
        congestion_control: Congestion = Congestion::Bbr,
        /// Time a stranger has to finish the TLS handshake and to say hello.
        handshake_time_limit: Span = Span::secs(10),
        /// Handshakes at once. One more ends the oldest unfinished one.
        handshakes_max: usize = 256,
        /// Connections one peer may hold: 16 for each of some hundred busy VMs.
        connections_per_peer_max: usize = 2048,
        /// Time to reach one address of a peer.
        connect_time_limit: Span = Span::secs(10),
        /// Silence after which the kernel begins to ask whether the other side is alive.
        keepalive: Span = Span::secs(15),
    }
}

table! {
    /// Invitations.
    Invite {
        /// How long an invitation may be used.
        lifetime: Span = Span::secs(3600),
        /// Invitations that may be open at once.
        open_max: usize = 16,
        /// Wrong secrets taken in a minute before every attempt is refused.
        attempts_per_minute: u32 = 10,
    }
}

table! {
    /// Jobs.
    Jobs {
        /// How long an ended job can be looked at.
        keep_for: Span = Span::secs(86_400),
        /// Ended jobs kept at most; the oldest go first.
        keep_count: usize = 1000,
        /// Jobs under way at most.
        open_max: usize = 10_000,
    }
}

table! {
    /// The API on the unix socket.
    Api {
        /// Connections at once.
        connections_max: usize = 64,
        /// Largest body of a request.
        request_body_max: ByteSize = ByteSize(1 << 20),
        /// Time for a request's header, and for its answer. Streams of events and waiting for a job are not bound.
        request_time_limit: Span = Span::secs(60),
    }
}

table! {
    /// VMs of this host, and those it starts from replicas.
    Vms {
        /// Sockets through which a VM's frozen disks are read, a directory for each VM below it. QEMU's user must be
        /// able to enter it. Unset: `run` inside the state directory.
        runtime: Option<PathBuf> = None,
        /// Scratch files of cuts: what the guest overwrites while its frozen disks are read. A local disk; QEMU's user
        /// must be able to enter it. Unset: `scratch` inside the state directory.
        scratch: Option<PathBuf> = None,
        /// Most scratch space of one cut. Beyond it the guest's writes win and the cycle is given up.
        scratch_max: ByteSize = ByteSize(16 << 30),
        /// Whether VMs with disks on I/O threads may be replicated. A QEMU of 8.2 or later may lose an interrupt of such a
        /// disk at the instant of a cut; the guest then waits for it for ever.
        allow_iothreads: bool = false,
        /// The QEMU that starts VMs from replicas.
        emulator: PathBuf = PathBuf::from("/usr/bin/qemu-system-x86_64"),
        /// Whether that QEMU locks itself in (seccomp).
        sandbox: bool = true,
    }
}

table! {
    /// The log on standard error.
    Log {
        /// What is logged: a level (`error`, `warn`, `info`, `debug`, `trace`) or a filter such as
        /// `info,understudy_daemon::link=debug`.
        filter: String = "info".to_owned(),
        /// `text` or `json`.
        format: LogFormat = LogFormat::Text,
    }
}

/// Congestion control of the sockets between hosts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Congestion {
    /// BBR where the kernel allows it, else the system's.
    Bbr,
    /// What the system is set to.
    System,
}

/// Form of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// Lines for people.
    Text,
    /// One JSON object a line.
    Json,
}

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        err: std::io::Error,
    },
    /// The file is too large to be a configuration.
    #[error("{path} is larger than {FILE_MAX} bytes and therefore no configuration")]
    TooLarge {
        /// The file.
        path: PathBuf,
    },
    /// The file is no configuration.
    #[error("the configuration {path} is not understood")]
    Parse {
        /// The file.
        path: PathBuf,
        /// Where and why.
        #[source]
        err: Box<toml::de::Error>,
    },
    /// A value is out of its range.
    #[error("`{key}` {reason}")]
    Value {
        /// The key.
        key: &'static str,
        /// What is wrong with its value.
        reason: String,
    },
}

impl ConfigError {
    /// What the caller does next: somebody must change the file.
    pub fn kind(&self) -> ErrorKind {
        ErrorKind::Operator
    }
}

impl Config {
    /// Reads a file. Values are checked by [`Config::check`], after flags were applied.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let failed = |err| ConfigError::Read { path: path.to_owned(), err };
        let len = std::fs::metadata(path).map_err(failed)?.len();
        if len > FILE_MAX {
            return Err(ConfigError::TooLarge { path: path.to_owned() });
        }
        let text = std::fs::read_to_string(path).map_err(failed)?;
        toml::from_str(&text).map_err(|err| ConfigError::Parse { path: path.to_owned(), err: Box::new(err) })
    }

    /// The directory of the replicas.
    pub fn storage_dir(&self) -> PathBuf {
        self.storage.clone().unwrap_or_else(|| self.state.join("storage"))
    }

    /// The API's socket.
    pub fn socket_path(&self) -> PathBuf {
        self.socket.clone().unwrap_or_else(|| self.state.join("understudy.sock"))
    }

    /// The directory of the sockets through which frozen disks are read.
    pub fn runtime_dir(&self) -> PathBuf {
        self.vms.runtime.clone().unwrap_or_else(|| self.state.join("run"))
    }

    /// The directory of the scratch files of cuts.
    pub fn scratch_dir(&self) -> PathBuf {
        self.vms.scratch.clone().unwrap_or_else(|| self.state.join("scratch"))
    }

    /// Refuses what cannot work, before anything is touched.
    pub fn check(&self) -> Result<(), ConfigError> {
        let value = |key, reason: &str| Err(ConfigError::Value { key, reason: reason.to_owned() });
        if !self.state.is_absolute() {
            return value("state", "must be an absolute path");
        }
        if !self.storage_dir().is_absolute() {
            return value("storage", "must be an absolute path");
        }
        if !self.runtime_dir().is_absolute() {
            return value("vms.runtime", "must be an absolute path");
        }
        if self.runtime_dir().as_os_str().len() > RUNTIME_PATH_MAX {
            return value("vms.runtime", "is too long for sockets below it; choose a path of at most 75 bytes");
        }
        if !self.scratch_dir().is_absolute() || !self.vms.emulator.is_absolute() {
            return value("vms", "must name absolute paths");
        }
        if self.socket_path().as_os_str().len() > SOCKET_PATH_MAX {
            return value(
                "socket",
                "is longer than the 107 bytes the system allows for a socket; choose a shorter one",
            );
        }
        if let Some(bad) = self.advertise.iter().find(|a| !is_host_port(a)) {
            return Err(ConfigError::Value {
                key: "advertise",
                reason: format!("has {bad:?}, which is not host:port"),
            });
        }
        if self.advertise.len() > ADVERTISE_MAX {
            return value("advertise", "has more than 8 addresses");
        }
        if self.name.as_deref().is_some_and(|n| !crate::names::is_name(n)) {
            return value("name", "must be 1 to 100 letters, digits, '.', '_', '-' or spaces");
        }
        self.check_numbers()
    }

    fn check_numbers(&self) -> Result<(), ConfigError> {
        let (link, invite, jobs, api) = (&self.link, &self.invite, &self.jobs, &self.api);
        between("link.handshake_time_limit", link.handshake_time_limit.0, Millis(100), Millis::from_secs(60))?;
        between("link.handshakes_max", link.handshakes_max, 4, 4096)?;
        between("link.connections_per_peer_max", link.connections_per_peer_max, 4, 65_536)?;
        between("link.connect_time_limit", link.connect_time_limit.0, Millis(100), Millis::from_secs(120))?;
        between("link.keepalive", link.keepalive.0, Millis::from_secs(1), Millis::from_secs(600))?;
        between("invite.lifetime", invite.lifetime.0, Millis::from_secs(1), Millis::from_secs(7 * 86_400))?;
        between("invite.open_max", invite.open_max, 1, 256)?;
        between("invite.attempts_per_minute", invite.attempts_per_minute, 1, 600)?;
        between("vms.scratch_max", self.vms.scratch_max, ByteSize(1 << 20), ByteSize(64 << 40))?;
        between("jobs.keep_for", jobs.keep_for.0, Millis::from_secs(1), Millis::from_secs(366 * 86_400))?;
        between("jobs.keep_count", jobs.keep_count, 10, 100_000)?;
        between("jobs.open_max", jobs.open_max, 10, 100_000)?;
        between("api.connections_max", api.connections_max, 4, 4096)?;
        between("api.request_body_max", api.request_body_max.0, 64 << 10, 64 << 20)?;
        between("api.request_time_limit", api.request_time_limit.0, Millis::from_secs(1), Millis::from_secs(3600))
    }
}

/// Most addresses of this host in an invitation: both families on a few networks.
pub const ADVERTISE_MAX: usize = 8;

/// Whether a text is `host:port` with a host that is a name, an IPv4 address or an IPv6 address in brackets.
pub fn is_host_port(text: &str) -> bool {
    let Some((host, port)) = text.rsplit_once(':') else { return false };
    let plain = |h: &str| h.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b));
    let host_ok = match host.strip_prefix('[').and_then(|h| h.strip_suffix(']')) {
        Some(v6) => v6.parse::<std::net::Ipv6Addr>().is_ok(),
        None => !host.is_empty() && plain(host),
    };
    host_ok && text.len() <= 256 && port.parse::<u16>().is_ok_and(|p| p != 0)
}

fn between<T: PartialOrd + std::fmt::Display>(key: &'static str, value: T, min: T, max: T) -> Result<(), ConfigError> {
    if value >= min && value <= max {
        return Ok(());
    }
    Err(ConfigError::Value { key, reason: format!("is {value}; it must be from {min} to {max}") })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Config, String> {
        let config: Config = toml::from_str(text).map_err(|e| e.to_string())?;
        config.check().map_err(|e| e.to_string())?;
        Ok(config)
    }

    #[test]
    fn the_defaults_are_legal_and_an_empty_file_means_them() {
        assert_eq!(parse(""), Ok(Config::default()));
        let config = Config::default();
        assert_eq!(config.socket_path(), Path::new("/var/lib/understudy/understudy.sock"));
        assert_eq!(config.storage_dir(), Path::new("/var/lib/understudy/storage"));
    }

    #[test]
    fn values_carry_units_and_tables_may_be_given_in_part() {
        let config = parse("listen = \"[::1]:7\"\n[link]\nhandshake_time_limit = \"1500ms\"\n").unwrap();
        assert_eq!(config.link.handshake_time_limit, Span(Millis(1500)));
        assert_eq!(config.link.handshakes_max, Link::default().handshakes_max);
    }

    #[test]
    fn an_unknown_key_is_refused_by_name() {
        let err = parse("[link]\nhandshake_timeout = \"1s\"\n").unwrap_err();
        assert!(err.contains("handshake_timeout"), "{err}");
        assert!(parse("storge = \"/x\"\n").unwrap_err().contains("storge"));
    }

    #[test]
    fn a_value_out_of_range_is_refused_with_its_borders() {
        let err = parse("[invite]\nlifetime = \"8d\"\n").unwrap_err();
        assert_eq!(err, "`invite.lifetime` is 691200 s; it must be from 1 s to 604800 s");
        for bad in [
            "state = \"here\"",
            "name = \"a/b\"",
            "advertise = [\"host\"]",
            "advertise = [\"h:0\"]",
            "advertise=[\"a b:1\"]",
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
        let deep = format!("state = \"/{}\"", "x".repeat(75));
        assert!(parse(&deep).unwrap_err().contains("vms.runtime"));
        let long = format!("socket = \"/{}\"", "x".repeat(107));
        assert!(parse(&long).unwrap_err().contains("socket"));
        assert!(parse("advertise = [\"h.example:7\", \"10.0.0.1:7\", \"[fe80::1]:7\"]").is_ok());
    }

    #[test]
    fn a_file_that_is_missing_huge_or_no_toml_is_refused_with_its_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c.toml");
        assert!(matches!(Config::read(&path), Err(ConfigError::Read { .. })));
        std::fs::write(&path, "listen = ").unwrap();
        assert!(matches!(Config::read(&path), Err(ConfigError::Parse { .. })));
        std::fs::write(&path, vec![b'#'; FILE_MAX as usize + 1]).unwrap();
        assert!(matches!(Config::read(&path), Err(ConfigError::TooLarge { .. })));
    }
}
