//! A daemon, and the program run against it.

use std::io::Write;
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::time::Duration;

use understudy_daemon::catalogue::{NewRelationship, Side};
use understudy_daemon::clock::ManualClock;
use understudy_daemon::config::Config;
use understudy_daemon::entropy::SeededEntropy;
use understudy_daemon::operations::fake::{FakeOwner, FakeOwners};
use understudy_daemon::service::Daemon;
use understudy_daemon::service::fake::FakeSides;
use understudy_model::{PeerId, RelationshipId, Settings, Timestamp, VmId};

/// Time after which a test says that something it waits for will not come.
const PATIENCE: Duration = Duration::from_secs(30);

pub struct World {
    pub sides: FakeSides,
    pub owners: Arc<FakeOwners>,
    pub daemon: Daemon,
    dir: tempfile::TempDir,
}

impl World {
    pub async fn new(name: &str) -> Self {
        let dir = tempfile::Builder::new().prefix("cli-").tempdir_in("/tmp").unwrap();
        let config = Config {
            state: dir.path().join("state"),
            listen: "127.0.0.1:0".parse().unwrap(),
            name: Some(name.to_owned()),
            ..Config::default()
        };
        let sides = FakeSides::default();
        let clock = Arc::new(ManualClock::new(Timestamp(1_800_000_000_000)));
        let entropy = Arc::new(SeededEntropy::new(7));
        let daemon = Daemon::start_with(config, &sides, clock, entropy).await.unwrap();
        let owners = sides.owners().unwrap();
        Self { sides, owners, daemon, dir }
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_understudy"));
        command.args(words).env("UNDERSTUDY_SOCKET", self.dir.path().join("state/understudy.sock"));
        command.env("TZ", "UTC").stdin(Stdio::null());
        command
    }

    /// Runs the program with this on its standard input.
    pub async fn run_with_input(&self, words: &[&str], input: &str) -> Output {
        let mut command = self.command(words);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let input = input.to_owned();
        let ended = tokio::task::spawn_blocking(move || {
            let mut child = command.spawn().unwrap();
            child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
            child.wait_with_output()
        });
        tokio::time::timeout(PATIENCE, ended).await.expect("the program ends").unwrap().unwrap()
    }

    /// Runs the program to its end.
    pub async fn run(&self, words: &[&str]) -> Output {
        let mut command = self.command(words);
        let ended = tokio::task::spawn_blocking(move || command.output());
        tokio::time::timeout(PATIENCE, ended).await.expect("the program ends").unwrap().unwrap()
    }

    /// The first relationship's owner of a VM, once it holds a job.
    pub async fn busy_owner(&self, id: RelationshipId) -> (Arc<FakeOwner>, understudy_daemon::jobs::JobHandle) {
        let waiting = async {
            loop {
                if let Some(owner) = self.owners.get(id)
                    && let Some(job) = owner.take_job()
                {
                    return (owner, job);
                }
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(PATIENCE, waiting).await.expect("the owner is given a job")
    }

    /// Puts the replica side of a relationship here.
    pub async fn add_replica(&self, vm_name: &str, peer: PeerId) -> RelationshipId {
        let id = RelationshipId::first(VmId(uuid::Uuid::from_u128(0x1234)));
        let new = NewRelationship {
            id,
            vm_name: vm_name.to_owned(),
            side: Side::Replica,
            peer,
            settings: Settings { points: 24, ..Settings::default() },
            engine: Some("{}".to_owned()),
            made_at: Timestamp(0),
        };
        self.daemon.base().registry.create(self.owners.as_ref(), new).await.unwrap();
        id
    }

    /// What differs from run to run, replaced by words of the same length where columns depend on it.
    pub fn steady(&self, text: &str) -> String {
        let text = text.replace(self.dir.path().to_str().unwrap(), "/DIR");
        let text: String = text.split_inclusive('\n').map(steady_line).collect();
        let words = text.split_inclusive(|c: char| !(c.is_ascii_alphanumeric() || "-_.:".contains(c)));
        words.map(steady_word).collect()
    }
}

/// What depends on the machine: free space, and what its kernel offers.
fn steady_line(line: &str) -> String {
    if line.starts_with("Storage ") && line.contains(", ") {
        return line.split(", ").next().unwrap().to_owned() + ", ROOM free\n";
    }
    if line.starts_with("Congestion ") {
        return "Congestion  the kernel's\n".to_owned();
    }
    line.to_owned()
}

fn steady_word(word: &str) -> String {
    let end = word.find(|c: char| !(c.is_ascii_alphanumeric() || "-_.:".contains(c))).unwrap_or(word.len());
    let (core, rest) = word.split_at(end);
    let hex = |len| core.len() == len && core.bytes().all(|b| b.is_ascii_hexdigit());
    let steady = if core.starts_with("understudy-") && core.len() > 100 {
        "TOKEN".to_owned()
    } else if hex(64) || hex(16) {
        "KEY_____________".to_owned()
    } else if core.starts_with("127.0.0.1:") {
        "127.0.0.1:PORT".to_owned()
    } else {
        core.to_owned()
    };
    steady + rest
}
