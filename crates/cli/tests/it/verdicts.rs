//! Exit codes, `--json`, and what happens where nobody answers.

use serde_json::{Value, json};
use understudy_daemon::jobs::JobEnd;
use understudy_model::{Refusal, RelationshipId, ReturnCode, State};

use crate::support::World;

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

fn object(bytes: &[u8]) -> Value {
    serde_json::from_slice(bytes).unwrap_or_else(|_| panic!("no JSON: {}", text(bytes)))
}

#[tokio::test(flavor = "multi_thread")]
async fn every_kind_of_failure_has_its_exit_code() {
    let world = World::new("alpha").await;
    let code = async |words: &[&str]| world.run(words).await.status.code();
    assert_eq!(code(&["vm", "list"]).await, Some(0));
    assert_eq!(code(&["vm", "show", "none"]).await, Some(1));
    assert_eq!(code(&["vm", "shrink"]).await, Some(2));
    assert_eq!(code(&["--socket", "/nowhere/s", "vm", "list"]).await, Some(3));
    assert_eq!(code(&["help"]).await, Some(0));

    let id = world.add_replica("web", understudy_model::PeerId([1; 32])).await;
    let ended = async |end: JobEnd| {
        let (owner, job) = world.busy_owner(id).await;
        owner.set_state(State::Replicating);
        job.end(end).await;
    };
    let failed = JobEnd::Failed(Refusal::new(ReturnCode::Failed, "the disk is damaged").hint("replace it"));
    let (output, ()) = tokio::join!(world.run(&["failover", "start", "web", "--yes"]), ended(failed));
    assert_eq!(output.status.code(), Some(4));
    let err = text(&output.stderr);
    assert!(err.contains("the disk is damaged (Failed, 32768)") && err.contains("hint: replace it"), "{err}");
    let (output, ()) = tokio::join!(world.run(&["failover", "start", "web", "--yes"]), ended(JobEnd::Terminated));
    assert_eq!(output.status.code(), Some(5));
}

#[tokio::test(flavor = "multi_thread")]
async fn json_is_the_apis_own_in_good_and_in_bad() {
    let world = World::new("alpha").await;
    world.sides.machines.put("/run/web.qmp", None, &[1 << 20]);
    let added = world.run(&["--json", "vm", "add", "web", "--qmp", "/run/web.qmp"]).await;
    let added = object(&added.stdout);
    assert_eq!((&added["return_value"], &added["vm"]["name"]), (&json!(0), &json!("web")));
    let listed = object(&world.run(&["vm", "list", "--json"]).await.stdout);
    assert_eq!(listed[0]["id"], added["vm"]["id"]);
    let refused = world.run(&["--json", "replication", "start", "web"]).await;
    assert_eq!(refused.status.code(), Some(1));
    assert!(refused.stdout.is_empty());
    assert_eq!(object(&refused.stderr)["code"], 32775);
    let nobody = world.run(&["--json", "--socket", "/nowhere/s", "host", "show"]).await;
    assert_eq!(object(&nobody.stderr)["code"], 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_prints_its_job_and_the_job_can_be_waited_for_and_cancelled() {
    let (replica, world) = (World::new("replica").await, World::new("alpha").await);
    world.sides.machines.put("/run/web.qmp", None, &[1 << 20]);
    world.run(&["vm", "add", "web", "--qmp", "/run/web.qmp"]).await;
    let token = text(&replica.run(&["peer", "invite"]).await.stdout);
    let joined = world.run_with_input(&["peer", "join", "-"], &token).await;
    assert!(joined.status.success(), "{joined:?}");
    assert!(world.run(&["replication", "create", "web", "--to", "replica"]).await.status.success());
    let started = object(&world.run(&["--json", "replication", "start", "web"]).await.stdout);
    let job = started["job"]["id"].as_str().unwrap().to_owned();
    assert_eq!(started["return_value"], 4096);
    let shown = text(&world.run(&["job", "show", &job]).await.stdout);
    assert!(shown.contains("start (94)") && shown.contains("running (4)"), "{shown}");
    assert!(world.run(&["job", "cancel", &job]).await.status.success());
    let id = RelationshipId::first(world.daemon.base().catalogue.vms().await.unwrap()[0].id);
    let (_, held) = world.busy_owner(id).await;
    let words = ["job", "wait", &job];
    let (waited, ()) = tokio::join!(world.run(&words), held.end(JobEnd::Terminated));
    assert_eq!(waited.status.code(), Some(5));
}

#[tokio::test(flavor = "multi_thread")]
async fn serve_refuses_what_cannot_work_and_says_why() {
    let world = World::new("alpha").await;
    let state = world.daemon.base().config.state.to_str().unwrap().to_owned();
    let second = world.run(&["serve", "--state", &state, "--listen", "127.0.0.1:0"]).await;
    assert_eq!(second.status.code(), Some(1));
    let err = text(&second.stderr);
    assert!(err.contains("another daemon") && err.contains("hint:"), "{err}");
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("c.toml");
    std::fs::write(&file, "[link]\nhandshakes_max = 1\n").unwrap();
    let bad = world.run(&["serve", "--config", file.to_str().unwrap()]).await;
    assert!(text(&bad.stderr).contains("link.handshakes_max"), "{}", text(&bad.stderr));
}

#[tokio::test(flavor = "multi_thread")]
async fn serve_runs_until_it_is_told_to_stop() {
    use std::io::{BufRead, BufReader};
    let dir = tempfile::Builder::new().prefix("cli-").tempdir_in("/tmp").unwrap();
    let (state, socket) = (dir.path().join("state"), dir.path().join("s"));
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_understudy"));
    command.args(["serve", "--state", state.to_str().unwrap(), "--listen", "127.0.0.1:0"]);
    command.args(["--socket", socket.to_str().unwrap()]).stderr(std::process::Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let listening = lines.by_ref().map(Result::unwrap).find(|line| line.contains("listening")).unwrap();
    assert!(listening.contains("127.0.0.1:"), "{listening}");
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    let rest: Vec<String> = lines.map(Result::unwrap).collect();
    assert!(child.wait().unwrap().success());
    assert!(rest.iter().any(|line| line.contains("service has stopped")), "{rest:?}");
    assert!(!rest.iter().any(|line| line.contains("WARN") || line.contains("ERROR")), "{rest:?}");
    assert!(!socket.exists());
}
