//! Starting, stopping, and what survives in between.

use serde_json::{Value, json};
use understudy_daemon::catalogue::CatalogueError;
use understudy_daemon::service::ServiceError;
use understudy_daemon::state_dir::StateDirError;

use crate::support::daemon::{Site, pair};
use crate::support::host::soon;

#[tokio::test]
async fn what_was_told_is_there_after_a_restart() {
    let site = Site::new("alpha");
    let first = site.start().await;
    first.add_vm(&site, "web").await;
    let id = first.get("/api/v1/host").await.good()["id"].clone();
    soon("the stop", first.daemon.stop()).await;
    assert!(!site.config.socket_path().exists(), "the socket goes with the daemon");

    let second = site.start().await;
    let host = second.get("/api/v1/host").await.good();
    assert_eq!((&host["id"], &host["starts"], &host["vms"]), (&id, &json!(2), &json!(1)));
    assert_eq!(host["audit_fault"], Value::Null);
    assert_eq!(second.get("/api/v1/vms").await.good()[0]["name"], "web");
}

#[tokio::test]
async fn a_second_daemon_on_the_same_state_is_refused_and_the_first_lives_on() {
    let site = Site::new("alpha");
    let first = site.start().await;
    let refused = site.try_start().await.err().unwrap();
    assert!(matches!(&refused, ServiceError::StateDir(StateDirError::InUse { .. })), "{refused:?}");
    assert!(!refused.hint().is_empty());
    first.get("/api/v1/host").await.good();
}

#[tokio::test]
async fn a_relationship_goes_on_after_a_restart_and_one_half_made_is_dropped() {
    let replica = Site::new("replica").start().await;
    let site = Site::new("primary");
    let first = site.start().await;
    pair(&replica, &first).await;
    first.add_vm(&site, "web").await;
    first.post("/api/v1/relationships", json!({ "vm": "web", "peer": "replica" })).await.good();
    let started = first.post("/api/v1/relationships/web/start", Value::Null).await.good();
    // A record without an engine's: what a crash in the middle of a creation leaves.
    let id = understudy_model::RelationshipId::first(understudy_model::VmId(uuid::Uuid::from_u128(5)));
    let new = understudy_daemon::catalogue::NewRelationship {
        id,
        vm_name: "cannot-be-opened".into(),
        side: understudy_daemon::catalogue::Side::Primary,
        peer: understudy_model::PeerId([1; 32]),
        settings: understudy_model::Settings::default(),
        engine: None,
        made_at: understudy_model::Timestamp(0),
    };
    first.daemon.base().catalogue.add_relationship(new).await.unwrap();
    soon("the stop", first.daemon.stop()).await;

    let second = site.start().await;
    let all = second.get("/api/v1/relationships").await.good();
    assert_eq!(all.as_array().unwrap().len(), 1, "{all}");
    assert_eq!(all[0]["vm_name"], "web");
    assert_eq!(second.get("/api/v1/peers").await.good()[0]["name"], "replica");
    let job = second.wait_job(&started["job"]["id"]).await;
    assert_eq!((&job["state_value"], &job["error"]["code"]), (&json!(10), &json!(32768)));
    assert!(job["error"]["description"].as_str().unwrap().contains("restarted"));
}

#[tokio::test]
async fn a_relationship_that_cannot_be_taken_up_is_shown_and_can_be_removed() {
    let site = Site::new("alpha");
    let first = site.start().await;
    let id = understudy_model::RelationshipId::first(understudy_model::VmId(uuid::Uuid::from_u128(5)));
    let new = understudy_daemon::catalogue::NewRelationship {
        id,
        vm_name: "cannot-be-opened".into(),
        side: understudy_daemon::catalogue::Side::Replica,
        peer: understudy_model::PeerId([1; 32]),
        settings: understudy_model::Settings::default(),
        engine: Some("{}".into()),
        made_at: understudy_model::Timestamp(0),
    };
    first.daemon.base().catalogue.add_relationship(new).await.unwrap();
    soon("the stop", first.daemon.stop()).await;

    let second = site.start().await;
    let shown = second.get("/api/v1/relationships/cannot-be-opened").await.good();
    assert_eq!((&shown["state"], &shown["health"]), (&json!("critical"), &json!("critical")));
    let asked = second.post("/api/v1/relationships/cannot-be-opened/suspend", Value::Null).await;
    assert_eq!(asked.code(), 32775);
    assert_eq!(second.delete("/api/v1/relationships/cannot-be-opened").await.good(), json!({ "return_value": 0 }));
    assert_eq!(second.get("/api/v1/relationships").await.good(), json!([]));
}

#[tokio::test]
async fn an_exchanged_key_or_a_damaged_catalogue_stops_the_start() {
    let site = Site::new("alpha");
    soon("the stop", site.start().await.daemon.stop()).await;
    let (key, kept) = (site.state_file("host.key"), std::fs::read(site.state_file("host.key")).unwrap());
    std::fs::remove_file(&key).unwrap();
    let refused = site.try_start().await.err().unwrap();
    assert!(matches!(refused, ServiceError::OtherHost { .. }), "{refused:?}");
    std::fs::write(&key, kept).unwrap();
    std::fs::write(site.state_file("catalogue.db"), "no database at all, but some text").unwrap();
    let refused = site.try_start().await.err().unwrap();
    assert!(matches!(refused, ServiceError::Catalogue(CatalogueError::Foreign { .. })), "{refused:?}");
}

#[tokio::test]
async fn an_address_in_use_stops_the_start_and_is_named() {
    let first = Site::new("alpha").start().await;
    let mut site = Site::new("beta");
    site.config.listen = first.daemon.address();
    let refused = site.try_start().await.err().unwrap();
    assert!(refused.to_string().contains(&first.daemon.address().to_string()), "{refused}");
}

#[tokio::test]
async fn an_altered_audit_log_is_shown_and_the_service_runs() {
    let site = Site::new("alpha");
    let first = site.start().await;
    first.post("/api/v1/peers/invite", Value::Null).await.good();
    soon("the stop", first.daemon.stop()).await;
    let text = std::fs::read_to_string(site.state_file("audit.log")).unwrap();
    std::fs::write(site.state_file("audit.log"), text.replacen("uid", "pid", 1)).unwrap();
    let second = site.start().await;
    let host = second.get("/api/v1/host").await.good();
    assert_eq!(host["audit_fault"], "line 1 of the audit log was altered");
}
