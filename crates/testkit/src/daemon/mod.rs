//! The program under test as a process: started, asked through its command line, killed, started again with the same state.
//!
//! Each daemon has a directory with its state, its storage, its socket and its log. A test fails when the log holds an error, a warning or
//! a panic that the test has not listed.
//!
//! The program is `understudy` of the profile the test was built with, brought up to date by cargo first, or what
//! `UNDERSTUDY_BIN` names.

mod log;

use std::ffi::OsString;
use std::fs::{self, File};
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::process::Signal;
use serde_json::Value;
use tempfile::TempDir;

use crate::cache;
use crate::net::Host;
use crate::process::{self, Owned};
use crate::wait::wait_for;

/// Environment variable: the program to test, built by someone else.
pub const PROGRAM_VARIABLE: &str = "UNDERSTUDY_BIN";

/// From start to an answering socket: the catalogue is opened and the stores are looked through.
const START_BOUND: Duration = Duration::from_secs(60);
/// From SIGTERM to the end: cycles under way are given up.
const STOP_BOUND: Duration = Duration::from_secs(60);
/// How much of a log a failure shows.
const SHOWN_MAX: usize = 8000;

/// A daemon that is not running. Clones share their directory, which goes when the last of them goes.
#[derive(Debug, Clone)]
pub struct DaemonConfig {
    name: String,
    program: Vec<OsString>,
    listen: String,
    arguments: Vec<String>,
    allowed: Vec<String>,
    directory: Arc<TempDir>,
}

impl DaemonConfig {
    /// A daemon with a directory of its own, listening on a free port of loopback.
    pub fn new(name: &str) -> Result<Self> {
        Self::of_program(name, [program()?])
    }

    /// As [`DaemonConfig::new`], for another program that understands the same arguments.
    pub fn of_program(name: &str, words: impl IntoIterator<Item = impl Into<OsString>>) -> Result<Self> {
        // Socket names have at most 107 bytes, so the directory is not put below a deep target directory.
        let directory = tempfile::Builder::new().prefix("daemon-").tempdir().context("cannot create a directory")?;
        Ok(DaemonConfig {
            name: name.into(),
            program: words.into_iter().map(Into::into).collect(),
            listen: "127.0.0.1:0".into(),
            arguments: Vec::new(),
            allowed: Vec::new(),
            directory: Arc::new(directory),
        })
    }

    /// Listens here instead.
    pub fn listen(self, address: impl ToString) -> Self {
        DaemonConfig { listen: address.to_string(), ..self }
    }

    /// Runs on one of two hosts with a wire between them, and listens on its address there.
    pub fn on(self, host: &Host, port: u16) -> Self {
        let prefix = host.prefix().into_iter().map(OsString::from);
        let program = prefix.chain(self.program.iter().cloned()).collect();
        DaemonConfig { program, ..self }.listen(SocketAddr::new(host.address(), port))
    }

    /// More arguments behind `serve`.
    pub fn arguments(mut self, arguments: &[&str]) -> Self {
        self.arguments.extend(arguments.iter().map(|&word| word.to_string()));
        self
    }

    /// Errors and warnings that contain this text are expected.
    pub fn allow(mut self, text: &str) -> Self {
        self.allowed.push(text.into());
        self
    }

    /// Starts it and waits until its socket answers.
    pub fn start(&self) -> Result<Daemon> {
        for directory in [self.state(), self.storage()] {
            fs::create_dir_all(&directory).with_context(|| format!("cannot create {}", directory.display()))?;
        }
        let log = File::options().create(true).append(true).open(self.log_file()).context("cannot open the log")?;
        let from = log.metadata()?.len() as usize;
        let (program, first) = self.program.split_first().context("no program")?;
        let arguments = first.iter().cloned().chain(self.serve_words());
        let process = Owned::start(program, arguments, |command| {
            command.stderr(log);
        })?;
        let mut daemon = Daemon { config: self.clone(), process, from, checked: false };
        daemon.wait_for_socket()?;
        Ok(daemon)
    }

    fn serve_words(&self) -> Vec<OsString> {
        let mut words: Vec<OsString> = vec!["serve".into()];
        for (option, path) in [("--state", self.state()), ("--storage", self.storage()), ("--socket", self.socket())] {
            words.extend([option.into(), path.into()]);
        }
        words.extend(["--listen".into(), self.listen.clone().into()]);
        words.extend(self.arguments.iter().map(OsString::from));
        words
    }

    /// What tests call it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its directory; room for more of the test's files.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// Identity, catalogue, audit log.
    pub fn state(&self) -> PathBuf {
        self.directory().join("state")
    }

    /// Replicas.
    pub fn storage(&self) -> PathBuf {
        self.directory().join("storage")
    }

    /// The socket of its API.
    pub fn socket(&self) -> PathBuf {
        self.directory().join("api.sock")
    }

    fn log_file(&self) -> PathBuf {
        self.directory().join("log")
    }

    /// Everything it has logged, over all its starts.
    pub fn log(&self) -> String {
        fs::read_to_string(self.log_file()).unwrap_or_default()
    }

    /// A command of the command line, to be run against this daemon.
    pub fn command(&self, words: &[&str]) -> Command {
        let (program, first) = self.program.split_first().expect("the program was checked at the start");
        let mut command = Command::new(program);
        command.args(first).arg("--socket").arg(self.socket()).args(words);
        command
    }

    /// Runs a command and gives what it prints for people.
    pub fn text(&self, words: &[&str]) -> Result<String> {
        process::run_command(self.command(words)).with_context(|| self.shown_log())
    }

    /// Runs a command with `--json` and gives the object it prints; nothing printed is null.
    pub fn json(&self, words: &[&str]) -> Result<Value> {
        let text = self.text(&[&["--json"], words].concat())?;
        if text.trim().is_empty() {
            return Ok(Value::Null);
        }
        serde_json::from_str(&text).with_context(|| format!("{words:?} printed {text}"))
    }

    /// The end of what it has logged, for a failure's explanation.
    pub fn shown_log(&self) -> String {
        let log = self.log();
        let from = log.len().saturating_sub(SHOWN_MAX);
        let end = log.char_indices().find(|(at, _)| *at >= from).map_or("", |(at, _)| &log[at..]);
        format!("the log of {} ends:\n{end}", self.name)
    }
}

/// A running daemon. Dropping it kills it, and fails the test when its log holds what it must not.
#[derive(Debug)]
pub struct Daemon {
    config: DaemonConfig,
    process: Owned,
    /// Where in the log this start begins.
    from: usize,
    checked: bool,
}

impl Daemon {
    /// What it was started from.
    pub fn config(&self) -> &DaemonConfig {
        &self.config
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// What it has logged since this start.
    pub fn log(&self) -> String {
        self.config.log().get(self.from..).unwrap_or_default().to_string()
    }

    /// See [`DaemonConfig::json`].
    pub fn json(&self, words: &[&str]) -> Result<Value> {
        self.config.json(words)
    }

    /// See [`DaemonConfig::text`].
    pub fn text(&self, words: &[&str]) -> Result<String> {
        self.config.text(words)
    }

    /// Waits until it has logged a line with this text since this start, and gives the line.
    pub fn wait_for_log(&mut self, text: &str, bound: Duration) -> Result<String> {
        let what = format!("{} to log {text:?}", self.config.name);
        let found = wait_for(&what, bound, || {
            let line = self.log().lines().find(|line| line.contains(text)).map(String::from);
            if line.is_none() && self.process.ended()?.is_some() {
                bail!("{} has ended", self.config.name);
            }
            Ok(line)
        });
        found.with_context(|| self.config.shown_log())
    }

    /// The address it listens on for other hosts, as it tells itself.
    pub fn address(&self) -> Result<SocketAddr> {
        let host = self.json(&["host", "show"])?;
        let address = host["listen"].as_str().with_context(|| format!("no address in {host}"))?;
        address.parse().with_context(|| format!("{address} is no address"))
    }

    /// True while it runs.
    pub fn is_running(&mut self) -> Result<bool> {
        Ok(self.process.ended()?.is_none())
    }

    /// SIGKILL, as a crash or a power cut of the program.
    pub fn kill(mut self) -> Result<DaemonConfig> {
        self.process.kill()?;
        self.finish()
    }

    /// SIGTERM, and waits for its orderly end, which must be a good one.
    pub fn stop(mut self) -> Result<DaemonConfig> {
        self.process.signal(Signal::TERM)?;
        let status = self.process.wait(STOP_BOUND).with_context(|| self.config.shown_log())?;
        if !status.success() {
            bail!("{} ended with {status}; {}", self.config.name, self.config.shown_log());
        }
        self.finish()
    }

    /// Waits until it has ended by itself, as at a crash point, and gives how it ended.
    pub fn ended(mut self, bound: Duration) -> Result<(DaemonConfig, std::process::ExitStatus)> {
        let status = self.process.wait(bound).with_context(|| self.config.shown_log())?;
        Ok((self.finish()?, status))
    }

    fn finish(&mut self) -> Result<DaemonConfig> {
        self.checked = true;
        let log = self.log();
        let complaints = log::complaints(&log, &self.config.allowed);
        if !complaints.is_empty() {
            bail!("{} logged what no one listed:\n{}", self.config.name, complaints.join("\n"));
        }
        Ok(self.config.clone())
    }

    fn wait_for_socket(&mut self) -> Result<()> {
        let socket = self.config.socket();
        let what = format!("{} to answer on its socket", self.config.name);
        let answers = wait_for(&what, START_BOUND, || {
            if let Some(status) = self.process.ended()? {
                bail!("{} ended with {status}", self.config.name);
            }
            Ok(UnixStream::connect(&socket).ok())
        });
        self.checked = answers.is_err(); // one failure is enough
        answers.map(drop).with_context(|| self.config.shown_log())
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.config.shown_log());
        } else if !self.checked
            && let Err(err) = self.process.kill().and_then(|()| self.finish())
        {
            panic!("{err:#}");
        }
    }
}

/// The program under test, built if need be.
pub fn program() -> Result<PathBuf> {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    if let Some(built) = BUILT.get() {
        return Ok(built.clone());
    }
    let path = match std::env::var_os(PROGRAM_VARIABLE) {
        Some(path) => PathBuf::from(path),
        None => build()?,
    };
    if !path.is_file() {
        bail!("there is no program {}", path.display());
    }
    Ok(BUILT.get_or_init(|| path).clone())
}

/// Cargo finds in a moment that nothing has changed; a test of yesterday's program would be worse.
fn build() -> Result<PathBuf> {
    let profile = cache::profile_dir()?;
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(["build", "--quiet", "--package", "understudy-cli", "--bin", "understudy", "--target-dir"]);
    command.arg(cache::target_dir()?).current_dir(cache::source_dir());
    if profile.ends_with("release") {
        command.arg("--release");
    }
    process::run_command(command)?;
    Ok(profile.join("understudy"))
}
