//! What people see, command by command, compared with the committed transcripts.

use std::fmt::Write;

use understudy_daemon::jobs::{JobEnd, Progress};
use understudy_model::{RelationshipId, State};

use crate::support::World;

/// A session in a terminal: what was typed, what came, and the exit code where it is not 0.
#[derive(Default)]
struct Transcript {
    text: String,
}

impl Transcript {
    async fn run(&mut self, world: &World, line: &str) -> String {
        let words: Vec<&str> = line.split_whitespace().collect();
        self.note(world, line, world.run(&words).await)
    }

    fn note(&mut self, world: &World, line: &str, output: std::process::Output) -> String {
        let (out, err) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
        let _ = writeln!(self.text, "$ understudy {}", world.steady(line));
        self.text.push_str(&world.steady(&out));
        err.lines().for_each(|line| self.text.push_str(&format!("! {}\n", world.steady(line))));
        if !output.status.success() {
            let _ = writeln!(self.text, "[{}]", output.status.code().unwrap());
        }
        self.text.push('\n');
        out
    }

    fn check(&self, name: &str) {
        understudy_testkit::golden::assert_golden(&format!("crates/cli/tests/golden/{name}.txt"), &self.text);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_primary_from_the_first_command_to_the_last() {
    let (replica, primary) = (World::new("replica").await, World::new("primary").await);
    let mut seen = Transcript::default();
    seen.run(&primary, "vm list").await;
    seen.run(&primary, "peer list").await;
    seen.run(&primary, "replication status").await;
    primary.sides.machines.put("/run/web.qmp", None, &[10 << 30, 512 << 20]);
    seen.run(&primary, "vm add web --qmp /run/web.qmp").await;
    seen.run(&primary, "vm add web --qmp /run/web.qmp").await;
    seen.run(&primary, "vm add db --qmp /run/none.qmp").await;
    seen.run(&primary, "vm list").await;
    seen.run(&primary, "vm show web").await;
    let token = seen.run(&replica, "peer invite").await;
    seen.run(&primary, &format!("peer join {}", token.trim())).await;
    seen.run(&primary, "peer list").await;
    let create = "replication create web --to replica --interval 30s --points 24 --point-every 1h";
    seen.run(&primary, &format!("{create} --exclude-disk disk-1")).await;
    seen.run(&primary, create).await;

    let id = RelationshipId::first(primary.daemon.base().catalogue.vms().await.unwrap()[0].id);
    let started = primary.run(&["replication", "start", "web", "--wait"]);
    let worked = async {
        let (owner, job) = primary.busy_owner(id).await;
        let copied = Progress { bytes_done: 3 << 30, bytes_total: 10 << 30, percent: 0, status: "copying".into() };
        job.progress(copied);
        owner.set_state(State::Replicating);
        job.end(JobEnd::Completed).await;
    };
    let (output, ()) = tokio::join!(started, worked);
    assert!(String::from_utf8_lossy(&output.stdout).contains("is complete"), "{output:?}");
    seen.run(&primary, "replication status").await;
    seen.run(&primary, "replication status web").await;
    seen.run(&primary, "replication history web").await;
    seen.run(&primary, "replication modify web --interval 20m").await;
    seen.run(&primary, "replication modify web --interval 1m --points 3").await;
    seen.run(&primary, "replication suspend web").await;
    seen.run(&primary, "replication suspend web").await;
    seen.run(&primary, "replication resume web").await;
    seen.run(&primary, "vm remove web").await;
    seen.run(&primary, "job list").await;
    seen.run(&primary, "peer remove replica").await;
    seen.run(&primary, "replication remove web").await;
    seen.run(&primary, "vm remove web").await;
    seen.run(&primary, "host show").await;
    seen.check("primary");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_takes_over() {
    let replica = World::new("replica").await;
    let id = replica.add_replica("web", understudy_model::PeerId([0xab; 32])).await;
    let mut seen = Transcript::default();
    seen.run(&replica, "replication status web").await;
    let points = seen.run(&replica, "point list web").await;
    let first = points.lines().nth(1).unwrap().split_whitespace().next().unwrap().to_owned();
    seen.run(&replica, "failover start web --dry-run").await;
    seen.run(&replica, "failover start web --point 00000000-0000-0000-0000-000000000000x").await;
    let line = format!("failover start web --point {first} --power-on");
    let words: Vec<&str> = line.split_whitespace().collect();
    let finish = async |state| {
        let (owner, job) = replica.busy_owner(id).await;
        owner.set_state(state);
        job.end(JobEnd::Completed).await;
    };
    let (output, ()) = tokio::join!(replica.run(&words), finish(State::FailedOver));
    // How far the job was when it was looked at is a matter of chance; what is said at its end is not.
    let said = std::process::Output { stderr: vec![], ..output };
    seen.note(&replica, &line, said);
    seen.run(&replica, "replication status web").await;
    let (output, ()) = tokio::join!(replica.run(&["failover", "commit", "web"]), finish(State::Committed));
    seen.note(&replica, "failover commit web", std::process::Output { stderr: vec![], ..output });
    seen.run(&replica, "failover revert web").await;
    seen.check("replica");
}
