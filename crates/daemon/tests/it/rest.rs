//! The API over a real unix socket: what each call does, and what it answers when it does not.

use std::os::unix::fs::PermissionsExt;

use hyper::{Method, StatusCode};
use serde_json::{Value, json};
use understudy_daemon::jobs::{JobEnd, Progress};
use understudy_model::{Millis, Refusal, ReturnCode, State};

use crate::support::daemon::{Running, Site, pair, raw};
use crate::support::host::soon;

async fn one() -> (Site, Running) {
    let site = Site::new("alpha");
    let running = site.start().await;
    (site, running)
}

/// A primary with a VM `web` replicated to a replica, created but not started.
async fn related() -> (Site, Running, Running, Value) {
    let replica = Site::new("replica").start().await;
    let (primary_site, primary) = one().await;
    pair(&replica, &primary).await;
    let vm = primary.add_vm(&primary_site, "web").await;
    let made = primary.post("/api/v1/relationships", json!({ "vm": "web", "peer": "replica" })).await;
    assert_eq!(made.status, StatusCode::ACCEPTED);
    let job = primary.wait_job(&made.body["job"]["id"]).await;
    assert_eq!((&job["kind_value"], &job["state_value"]), (&json!(91), &json!(7)));
    (primary_site, primary, replica, vm["id"].clone())
}

#[tokio::test]
async fn a_vm_is_added_shown_and_removed() {
    let (site, host) = one().await;
    let vm = host.add_vm(&site, "web").await;
    assert_eq!(vm["disks"][0], json!({ "id": "disk-0", "key": "virtio0", "size": 1u64 << 30 }));
    assert_eq!(host.get("/api/v1/vms").await.good().as_array().unwrap().len(), 1);
    let shown = host.get("/api/v1/vms/web").await.good();
    assert_eq!(shown["now"]["power"], "running");
    assert_eq!(shown["now"]["left_out"], json!(["cd0: removable"]));
    let by_id = host.get(&format!("/api/v1/vms/{}", vm["id"].as_str().unwrap())).await.good();
    assert_eq!(by_id["name"], "web");
    assert_eq!(host.delete("/api/v1/vms/web").await.good(), json!({ "return_value": 0 }));
    assert_eq!(host.get("/api/v1/vms").await.good(), json!([]));
    assert_eq!(host.get("/api/v1/vms/web").await.status, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn a_vm_that_cannot_be_looked_at_is_refused_and_nothing_is_recorded() {
    let (site, host) = one().await;
    let gone = host.post("/api/v1/vms", json!({ "name": "a", "qmp": "/run/none.qmp" })).await;
    assert_eq!((gone.status, gone.code()), (StatusCode::UNPROCESSABLE_ENTITY, 32779));
    site.machines.refuse("/run/dead.qmp", Refusal::new(ReturnCode::NotAvailable, "nobody answers"));
    let dead = host.post("/api/v1/vms", json!({ "name": "a", "qmp": "/run/dead.qmp" })).await;
    assert_eq!((dead.code(), dead.reason()), (32777, "nobody answers"));
    site.machines.put("/run/bare.qmp", None, &[]);
    let bare = host.post("/api/v1/vms", json!({ "name": "a", "qmp": "/run/bare.qmp" })).await;
    assert_eq!(bare.code(), 32770);
    assert!(bare.body["hint"].as_str().unwrap().contains("cd0: removable"));
    site.machines.put("/run/odd.qmp", None, &[513]);
    assert_eq!(host.post("/api/v1/vms", json!({ "name": "a", "qmp": "/run/odd.qmp" })).await.code(), 32770);
    site.machines.put("/run/a.qmp", None, &[512]);
    let bad = json!({ "name": "a", "qmp": "/run/a.qmp", "definition": "nonsense" });
    assert_eq!(host.post("/api/v1/vms", bad).await.code(), 32773);
    assert_eq!(host.get("/api/v1/vms").await.good(), json!([]));
}

#[tokio::test]
async fn hostile_names_and_paths_are_refused_by_value() {
    let (site, host) = one().await;
    site.machines.put("/run/a.qmp", None, &[512]);
    for name in ["", "../etc", "-rf", "a\nb", "a/b", "\u{202e}x"] {
        let answer = host.post("/api/v1/vms", json!({ "name": name, "qmp": "/run/a.qmp" })).await;
        assert_eq!(answer.code(), 32773, "{name:?}");
        assert!(!answer.reason().contains('\n'));
    }
    for qmp in ["", "relative.qmp", "/\u{0}", &format!("/{}", "x".repeat(107))] {
        assert_eq!(host.post("/api/v1/vms", json!({ "name": "a", "qmp": qmp })).await.code(), 32773, "{qmp:?}");
    }
}

#[tokio::test]
async fn a_vm_of_a_taken_name_or_socket_is_refused() {
    let (site, host) = one().await;
    host.add_vm(&site, "web").await;
    let again = host.post("/api/v1/vms", json!({ "name": "web", "qmp": "/run/other.qmp" })).await;
    assert_eq!((again.status, again.code()), (StatusCode::CONFLICT, 32775));
    let socket = host.post("/api/v1/vms", json!({ "name": "web2", "qmp": "/run/web.qmp" })).await;
    assert_eq!(socket.code(), 32775);
    assert!(socket.reason().contains("as VM \"web\""), "{}", socket.reason());
}

#[tokio::test]
async fn values_of_the_wrong_type_fields_nobody_knows_and_no_json_are_told_apart() {
    let (_site, host) = one().await;
    let typed = host.post("/api/v1/vms", json!({ "name": 7, "qmp": "/x" })).await;
    assert_eq!((typed.status, typed.code()), (StatusCode::BAD_REQUEST, 32776));
    let unknown = host.post("/api/v1/vms", json!({ "name": "a", "qmp": "/x", "colour": 1 })).await;
    assert_eq!(unknown.code(), 32776);
    assert!(unknown.reason().contains("colour"), "{}", unknown.reason());
    let (status, body) = raw(&host.socket, Method::POST, "/api/v1/vms", b"{\"name\":".to_vec()).await;
    let body: Value = serde_json::from_slice(&body).unwrap();
    assert_eq!((status, &body["code"]), (StatusCode::BAD_REQUEST, &json!(0)));
    let deep = [b"[".repeat(100_000), b"]".repeat(100_000)].concat();
    assert_eq!(raw(&host.socket, Method::POST, "/api/v1/vms", deep).await.0, StatusCode::BAD_REQUEST);
    assert_eq!(host.get("/api/v1/relationships/x?leg=nine").await.code(), 32776);
    assert_eq!(host.get("/api/v1/relationships/x?leg=2").await.code(), 32773);
}

#[tokio::test]
async fn what_is_too_large_or_leads_nowhere_never_reaches_the_service() {
    let (_site, host) = one().await;
    let large = raw(&host.socket, Method::POST, "/api/v1/vms", vec![b' '; (1 << 20) + 1]).await;
    assert_eq!(large.0, StatusCode::PAYLOAD_TOO_LARGE);
    let nowhere = host.get("/api/v1/nothing").await;
    assert_eq!((nowhere.status, nowhere.code()), (StatusCode::NOT_FOUND, 0));
    let method = host.call(Method::PATCH, "/api/v1/vms", Value::Null).await;
    assert_eq!((method.status, method.code()), (StatusCode::METHOD_NOT_ALLOWED, 0));
    let long = format!("/api/v1/vms/{}", "x".repeat(40_000));
    let (status, _) = raw(&host.socket, Method::GET, &long, vec![]).await;
    assert!(status.is_client_error(), "{status}");
}

#[tokio::test]
async fn hosts_are_paired_and_parted_over_the_api() {
    let (replica, primary) = (Site::new("replica").start().await, Site::new("primary").start().await);
    pair(&replica, &primary).await;
    let known = replica.get("/api/v1/peers").await.good();
    assert_eq!((&known[0]["name"], &known[0]["may_replicate_here"]), (&json!("primary"), &json!(true)));
    let known = primary.get("/api/v1/peers").await.good();
    assert_eq!((&known[0]["name"], &known[0]["may_replicate_here"]), (&json!("replica"), &json!(false)));
    assert_eq!(known[0]["addresses"], json!([replica.daemon.address().to_string()]));
    let short = known[0]["id"].as_str().unwrap()[..8].to_owned();
    let gone = primary.delete(&format!("/api/v1/peers/{short}")).await.good();
    assert_eq!((&gone["name"], &gone["relationships"]), (&json!("replica"), &json!([])));
    assert_eq!(primary.get("/api/v1/peers").await.good(), json!([]));
    assert_eq!(primary.delete("/api/v1/peers/replica").await.code(), 32773);
}

#[tokio::test]
async fn bad_invitations_are_refused_with_the_reason() {
    let (replica, primary) = (Site::new("replica").start().await, Site::new("primary").start().await);
    let invited = replica.post("/api/v1/peers/invite", Value::Null).await.good();
    let token = invited["token"].as_str().unwrap();
    let join = |token: String| primary.post("/api/v1/peers/join", json!({ "token": token }));
    assert_eq!(join("hello".into()).await.code(), 32773);
    assert_eq!(join(token[..token.len() - 3].into()).await.code(), 32773);
    let own = replica.post("/api/v1/peers/join", json!({ "token": token })).await;
    assert_eq!(own.code(), 32773);
    join(token.into()).await.good();
    // The door is shut for strangers once no invitation is open; a trusted host hears what is wrong.
    let again = join(token.into()).await;
    assert_eq!(again.code(), 32769);
    assert!(again.reason().contains("used before"), "{}", again.reason());
    assert!(!again.body.to_string().contains(token));
}

#[tokio::test]
async fn an_invitation_from_a_host_that_is_gone_says_so() {
    let replica = Site::new("replica").start().await;
    let primary = Site::new("primary").start().await;
    let invited = replica.post("/api/v1/peers/invite", Value::Null).await.good();
    replica.daemon.stop().await;
    let answer = primary.post("/api/v1/peers/join", json!({ "token": invited["token"] })).await;
    assert_eq!((answer.status, answer.code()), (StatusCode::SERVICE_UNAVAILABLE, 32777));
    assert_eq!(primary.get("/api/v1/peers").await.good(), json!([]));
}

#[tokio::test]
async fn a_relationship_is_made_started_paused_and_removed() {
    let (_site, primary, _replica, vm) = related().await;
    let shown = primary.get("/api/v1/relationships/web").await.good();
    assert_eq!((&shown["state"], &shown["state_value"]), (&json!("ready"), &json!(1)));
    assert_eq!((&shown["mode_value"], &shown["peer_name"]), (&json!(1), &json!("replica")));
    assert_eq!(shown["settings"]["interval_ms"], 300_000);
    assert_eq!(primary.delete("/api/v1/vms/web").await.code(), 32775, "a replicated VM stays listed");

    let started = primary.post("/api/v1/relationships/web/start", Value::Null).await;
    assert_eq!((started.status, &started.body["return_value"]), (StatusCode::ACCEPTED, &json!(4096)));
    let job = started.body["job"]["id"].clone();
    assert_eq!(primary.get("/api/v1/relationships/web").await.good()["state"], "initial-replication");
    let owner = primary.owner(&vm);
    let handle = owner.take_job().unwrap();
    handle.progress(Progress { bytes_done: 30, bytes_total: 100, percent: 0, status: "copying".into() });
    let now = primary.get(&format!("/api/v1/jobs/{}", job.as_str().unwrap())).await.good();
    assert_eq!((&now["percent"], &now["status"], &now["has_ended"]), (&json!(30), &json!("copying"), &json!(false)));
    owner.set_state(State::Replicating);
    handle.end(JobEnd::Completed).await;
    assert_eq!(primary.wait_job(&job).await["percent"], 100);

    assert_eq!(
        primary.post("/api/v1/relationships/web/suspend", Value::Null).await.good(),
        json!({ "return_value": 0 })
    );
    let twice = primary.post("/api/v1/relationships/web/suspend", Value::Null).await;
    assert_eq!((twice.status, twice.code()), (StatusCode::CONFLICT, 32775));
    primary.post("/api/v1/relationships/web/resume", Value::Null).await.good();

    let removed = primary.delete("/api/v1/relationships/web").await.good();
    primary.wait_job(&removed["job"]["id"]).await;
    assert_eq!(primary.get("/api/v1/relationships").await.good(), json!([]));
    primary.delete("/api/v1/vms/web").await.good();
}

#[tokio::test]
async fn bad_relationships_are_refused_and_leave_nothing() {
    let (replica, site) = (Site::new("replica").start().await, Site::new("primary"));
    let primary = site.start().await;
    pair(&replica, &primary).await;
    primary.add_vm(&site, "web").await;
    let make = |body: Value| primary.post("/api/v1/relationships", body);
    let cases = [
        (json!({ "vm": "none", "peer": "replica" }), 32773),
        (json!({ "vm": "web", "peer": "nobody" }), 32773),
        (json!({ "vm": "web", "peer": "replica", "interval_ms": 999 }), 32773),
        (json!({ "vm": "web", "peer": "replica", "interval_ms": 900_001 }), 32773),
        (json!({ "vm": "web", "peer": "replica", "points": 25 }), 32773),
        (json!({ "vm": "web", "peer": "replica", "points": -1 }), 32776),
        (json!({ "vm": "web", "peer": "replica", "application_consistent_every_ms": 3_600_000 }), 32773),
        (json!({ "vm": "web", "peer": "replica", "excluded_disks": ["disk-7"] }), 32773),
        (json!({ "vm": "web", "peer": "replica", "excluded_disks": ["virtio0", "disk-0"] }), 32773),
        (json!({ "vm": "web", "peer": "replica", "excluded_disks": ["disk-0", "disk-1"] }), 32773),
        (json!({ "vm": "web" }), 32776),
    ];
    for (body, code) in cases {
        let answer = make(body.clone()).await;
        assert_eq!(answer.code(), code, "{body}");
    }
    assert_eq!(primary.get("/api/v1/relationships").await.good(), json!([]));
    assert_eq!(primary.get("/api/v1/jobs").await.good(), json!([]));
    let good = json!({ "vm": "web", "peer": "replica", "interval_ms": 30_000, "points": 24, "point_every_ms": 0,
                       "excluded_disks": ["virtio1"], "compression": false });
    make(good.clone()).await.good();
    assert_eq!(make(good).await.code(), 32775, "a second one is refused");
    let shown = primary.get("/api/v1/relationships/web").await.good();
    let expected = json!({ "interval_ms": 30_000, "points": 24, "point_every_ms": 0, "compression": false,
                           "application_consistent_every_ms": null, "excluded_disks": ["disk-1"], "auto_resync": null });
    assert_eq!(shown["settings"], expected);
}

#[tokio::test]
async fn a_relationship_whose_owner_cannot_be_made_leaves_nothing() {
    let (replica, site) = (Site::new("replica").start().await, Site::new("primary"));
    let primary = site.start().await;
    pair(&replica, &primary).await;
    primary.add_vm(&site, "cannot-be-opened").await;
    let body = json!({ "vm": "cannot-be-opened", "peer": "replica" });
    assert_eq!(primary.post("/api/v1/relationships", body).await.code(), 32777);
    assert_eq!(primary.get("/api/v1/relationships").await.good(), json!([]));
    primary.delete("/api/v1/vms/cannot-be-opened").await.good();
}

#[tokio::test]
async fn start_replication_answers_as_its_test_vectors_say() {
    let (site, primary, _replica, _vm) = related().await;
    let start = |body: Value| primary.post("/api/v1/relationships/web/start", body);
    let time = |ms: u64| {
        let at = site.clock.as_ref();
        let at = understudy_daemon::clock::Clock::wall(at) + Millis(ms);
        understudy_daemon::clock::label(at)
    };
    let day = 86_400_000;
    let refused = [
        (json!({ "initial_replication_type": 0 }), 32773),
        (json!({ "initial_replication_type": 4 }), 32773),
        (json!({ "initial_replication_type": 65_535 }), 32773),
        (json!({ "initial_replication_type": 65_536 }), 32776),
        (json!({ "initial_replication_type": 2 }), 32773),
        (json!({ "initial_replication_type": 2, "export_location": "" }), 32773),
        (json!({ "initial_replication_type": 2, "export_location": "rel/dir" }), 32773),
        (json!({ "initial_replication_type": 2, "export_location": "/x", "start_time": time(8 * day) }), 32770),
        (json!({ "start_time": time(8 * day) }), 32773),
        (json!({ "start_time": "00000001000000.000000:000" }), 32773),
        (json!({ "start_time": "yesterday" }), 32776),
    ];
    for (body, code) in refused {
        assert_eq!(start(body.clone()).await.code(), code, "{body}");
    }
    assert_eq!(primary.get("/api/v1/relationships/web").await.good()["state"], "ready");
    // The location is ignored for a network transfer, and a time gone by is now.
    let started =
        start(json!({ "initial_replication_type": 1, "export_location": "/x", "start_time": "2020-01-01T00:00:00Z" }));
    assert_eq!(started.await.good()["return_value"], 4096);
    assert_eq!(start(Value::Null).await.code(), 32775, "it is under way");
    assert_eq!(primary.post("/api/v1/relationships/none/start", Value::Null).await.code(), 32773);
}

#[tokio::test]
async fn a_vm_that_is_not_replicated_is_in_the_wrong_state_for_it() {
    let (site, host) = one().await;
    host.add_vm(&site, "web").await;
    for path in ["start", "suspend", "resume", "stop", "failover/start", "failover/revert", "failover/commit"] {
        let answer = host.post(&format!("/api/v1/relationships/web/{path}"), Value::Null).await;
        assert_eq!(answer.code(), 32775, "{path}");
    }
}

#[tokio::test]
async fn a_failover_is_recorded_before_it_happens_and_with_its_outcome() {
    let (site, host) = one().await;
    let id = host.add_replica(7, "web").await;
    let owner = host.owners.get(id).unwrap();
    let points = host.get("/api/v1/relationships/web/points").await.good();
    assert_eq!(points.as_array().unwrap().len(), 3);
    assert_eq!((&points[1]["consistency"], &points[2]["is_newest"]), (&json!("application"), &json!(true)));

    owner.refuse_next(Refusal::new(ReturnCode::SystemInUse, "a merge is under way"));
    let busy = host.post("/api/v1/relationships/web/failover/start", json!({ "power_on": true })).await;
    assert_eq!((busy.status, busy.code()), (StatusCode::CONFLICT, 32774));
    let audit = || std::fs::read_to_string(site.state_file("audit.log")).unwrap();
    assert!(audit().contains("refused: a merge is under way"), "{}", audit());

    let body = json!({ "point": points[0]["id"], "power_on": true });
    let started = host.post("/api/v1/relationships/web/failover/start", body).await.good();
    assert!(audit().contains("failover-start") && audit().contains("power on"));
    owner.end_job(JobEnd::Completed, State::FailedOver).await;
    host.wait_job(&started["job"]["id"]).await;
    let shown = host.get("/api/v1/relationships/web").await.good();
    assert_eq!((&shown["state_value"], &shown["failover"]["is_running"]), (&json!(5), &json!(true)));
    let outcome = format!("job {} completed", started["job"]["id"].as_str().unwrap());
    soon("the outcome in the audit log", async {
        while !audit().contains(&outcome) {
            tokio::task::yield_now().await;
        }
    })
    .await;

    let bad = host.post("/api/v1/relationships/web/failover/start", json!({ "point": "newest" })).await;
    assert_eq!(bad.code(), 32773);
    host.post("/api/v1/relationships/web/failover/revert", Value::Null).await.good();
    owner.end_job(JobEnd::Completed, State::Replicating).await;
    let early = host.post("/api/v1/relationships/web/failover/commit", Value::Null).await;
    assert_eq!(early.code(), 32775);
    assert!(understudy_daemon::audit::verify(&site.state_file("audit.log")).unwrap().fault.is_none());
}

#[tokio::test]
async fn a_panic_over_one_call_leaves_everything_else_alone() {
    let (_site, host) = one().await;
    let (first, second) = (host.add_replica(1, "web").await, host.add_replica(2, "db").await);
    host.owners.get(first).unwrap().panic_next();
    let answer = host.post("/api/v1/relationships/web/suspend", Value::Null).await;
    assert_eq!((answer.status, answer.code()), (StatusCode::INTERNAL_SERVER_ERROR, 32771));
    host.owners.get(second).unwrap().panic_next();
    let answer = host.post("/api/v1/relationships/db/failover/start", Value::Null).await;
    assert_eq!(answer.code(), 32771);
    host.post("/api/v1/relationships/web/suspend", Value::Null).await.good();
    assert_eq!(host.get("/api/v1/relationships").await.good().as_array().unwrap().len(), 2);
}

#[tokio::test]
async fn a_replica_cannot_be_extended_yet_and_says_so() {
    let (_site, host) = one().await;
    host.add_replica(1, "web").await;
    let answer = host.post("/api/v1/relationships", json!({ "vm": "web", "peer": "third" })).await;
    assert_eq!((answer.status, answer.code()), (StatusCode::NOT_IMPLEMENTED, 32770));
}

/// What comes back for bytes as they are, until the connection ends.
async fn spoken(host: &Running, bytes: &[u8]) -> String {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut stream = tokio::net::UnixStream::connect(&host.socket).await.unwrap();
    stream.write_all(bytes).await.unwrap();
    let mut answer = Vec::new();
    soon("the connection's end", stream.read_to_end(&mut answer)).await.unwrap();
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test]
async fn ambiguous_http_is_refused() {
    let (_site, host) = one().await;
    let cases: [&[u8]; 5] = [
        b"POST /api/v1/vms HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\n{}",
        b"POST /api/v1/vms HTTP/1.1\r\nhost: x\r\ncontent-length: +2\r\n\r\n{}",
        b"POST /api/v1/vms HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked, gzip\r\n\r\n0\r\n\r\n",
        b"GET /api/v1/vms HTTP/1.1\r\nhost: x\r\nfolded: a\r\n b\r\n\r\n",
        b"GET /api/v1/vms HTTP/1.1\r\nhost : x\r\n\r\n",
    ];
    for bytes in cases {
        let answer = spoken(&host, bytes).await;
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 400"), "{bytes:?}: {answer}");
    }
}

#[tokio::test]
async fn a_request_that_comes_to_no_end_is_given_up() {
    let mut site = Site::new("alpha");
    site.config.api.request_time_limit = understudy_daemon::config::Span::secs(1);
    let host = site.start().await;
    let head = spoken(&host, b"GET /api/v1/vms HTTP/1.1\r\nhost: x\r\n").await;
    assert!(!head.contains("200 OK"), "{head}");
    let body = spoken(&host, b"POST /api/v1/vms HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\n{").await;
    assert!(body.starts_with("HTTP/1.1 504"), "{body}");
}

#[tokio::test]
async fn more_connections_than_allowed_are_turned_away_and_the_rest_served() {
    let mut site = Site::new("alpha");
    site.config.api.connections_max = 4;
    let host = site.start().await;
    let mut held = Vec::new();
    for _ in 0..4 {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let mut stream = tokio::net::UnixStream::connect(&host.socket).await.unwrap();
        stream.write_all(b"GET /api/v1/jobs HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
        let mut answer = [0; 15];
        soon("an answer", stream.read_exact(&mut answer)).await.unwrap();
        assert_eq!(&answer, b"HTTP/1.1 200 OK");
        held.push(stream);
    }
    let turned_away = spoken(&host, b"").await;
    assert_eq!(turned_away, "");
    held.clear();
    soon("room", async {
        loop {
            let answer = spoken(&host, b"GET /api/v1/jobs HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await;
            if answer.starts_with("HTTP/1.1 200 OK") {
                return;
            }
        }
    })
    .await;
}

#[tokio::test]
async fn two_replicas_of_one_name_are_told_apart_by_identity() {
    let (_site, host) = one().await;
    let (first, second) = (host.add_replica(1, "web").await, host.add_replica(2, "web").await);
    let answer = host.get("/api/v1/relationships/web").await;
    assert_eq!(answer.code(), 32773);
    assert!(answer.reason().contains("more than one"));
    for id in [first, second] {
        let shown = host.get(&format!("/api/v1/relationships/{}", id.vm)).await.good();
        assert_eq!(shown["vm"], json!(id.vm.to_string()));
    }
}

#[tokio::test]
async fn jobs_are_listed_waited_for_and_cancelled() {
    let (_site, primary, _replica, vm) = related().await;
    let started = primary.post("/api/v1/relationships/web/start", Value::Null).await.good();
    let id = started["job"]["id"].as_str().unwrap().to_owned();
    let waited = primary.get(&format!("/api/v1/jobs/{id}/wait?seconds=0")).await.good();
    assert_eq!(waited["has_ended"], false);
    assert_eq!(primary.get("/api/v1/jobs").await.good().as_array().unwrap().len(), 2);
    let cancelled = primary.post(&format!("/api/v1/jobs/{id}/cancel"), Value::Null).await.good();
    assert_eq!(cancelled["job"]["state"], "shutting-down");
    let owner = primary.owner(&vm);
    owner.end_job(JobEnd::Terminated, State::Ready).await;
    assert_eq!(primary.wait_job(&json!(id)).await["state_value"], 8);
    assert_eq!(primary.post(&format!("/api/v1/jobs/{id}/cancel"), Value::Null).await.code(), 32775);
    let unknown = primary.get("/api/v1/jobs/00000000-0000-0000-0000-000000000000").await;
    assert_eq!(unknown.status, StatusCode::NOT_FOUND);
    assert_eq!(primary.get("/api/v1/jobs/seven").await.code(), 32773);
}

#[tokio::test]
async fn events_tell_what_changes_as_it_changes() {
    use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
    let (site, host) = one().await;
    let mut stream = tokio::net::UnixStream::connect(&host.socket).await.unwrap();
    stream.write_all(b"GET /api/v1/events HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    let mut lines = BufReader::new(stream).lines();
    while !soon("the answer's head", lines.next_line()).await.unwrap().unwrap().is_empty() {}
    let vm = host.add_vm(&site, "web").await;
    host.add_replica(7, "db").await;
    let mut seen = Vec::new();
    while seen.len() < 2 {
        let line = soon("an event", lines.next_line()).await.unwrap().unwrap();
        if let Some(name) = line.strip_prefix("event: ") {
            let data = soon("the event's data", lines.next_line()).await.unwrap().unwrap();
            let data: Value = serde_json::from_str(data.strip_prefix("data: ").unwrap()).unwrap();
            seen.push((name.to_owned(), data));
        }
    }
    assert_eq!(seen[0], ("vm".to_owned(), json!({ "id": vm["id"] })));
    assert_eq!((seen[1].0.as_str(), &seen[1].1["vm_name"]), ("relationship", &json!("db")));
    host.daemon.stop().await;
    soon("the stream's end", async { while let Ok(Some(_)) = lines.next_line().await {} }).await;
}

#[tokio::test]
async fn monitoring_sees_relationships_jobs_and_requests() {
    let (_site, primary, _replica, vm) = related().await;
    primary.owner(&vm).set_state(State::Replicating);
    let (status, body) = raw(&primary.socket, Method::GET, "/metrics", vec![]).await;
    let text = String::from_utf8(body).unwrap();
    assert_eq!(status, StatusCode::OK);
    for expected in [
        "understudy_relationship_state{vm=\"web\",leg=\"0\"} 3",
        "understudy_relationship_rpo_actual_seconds{vm=\"web\",leg=\"0\"} 1.5",
        "understudy_jobs{state=\"completed\"} 1",
        "understudy_peer_connections{peer=\"replica\"} 0",
        "understudy_api_requests_total{method=\"POST\",status=\"202\"} 1",
        "understudy_catalogue_commits_total",
        "# EOF",
    ] {
        assert!(text.contains(expected), "{expected} is missing in\n{text}");
    }
}

#[tokio::test]
async fn the_socket_is_its_owners_alone() {
    let (_site, host) = one().await;
    let mode = std::fs::metadata(&host.socket).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[tokio::test]
async fn the_document_served_is_the_one_that_was_generated() {
    let (_site, host) = one().await;
    let (status, body) = raw(&host.socket, Method::GET, "/api/v1/openapi.json", vec![]).await;
    assert_eq!(status, StatusCode::OK);
    assert_eq!(String::from_utf8(body).unwrap(), understudy_daemon::faces::rest::document());
}
