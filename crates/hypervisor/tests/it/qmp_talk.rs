//! The monitor and agent clients against peers that misbehave.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use understudy_hypervisor::qmp::{Agent, Command, Monitor, Patience, QmpError, Version};
use understudy_model::ErrorKind;

use crate::qmp_peer::{GREETING, Peer};

const SHORT: Patience = Patience { connect: Duration::from_millis(300), command: Duration::from_millis(300) };
const LONG: Patience = Patience { connect: Duration::from_secs(20), command: Duration::from_secs(20) };

#[tokio::test]
async fn answers_are_matched_by_id_in_whatever_order_they_come() {
    let peer = Peer::tell(async |mut talk| {
        talk.greet().await;
        let (a, b) = (talk.hear_name().await, talk.hear_name().await);
        talk.say_line(
            json!({"event": "BRAND_NEW_EVENT", "data": {"x": [1]}, "timestamp": {"seconds": 2, "microseconds": 5}}),
        )
        .await;
        talk.say_line(json!({"return": "second", "id": b.1})).await;
        talk.say_line(json!({"return": "nobody's", "id": 999})).await;
        talk.say_line(json!({"error": {"class": "GenericError", "desc": "no\nway"}, "id": a.1})).await;
        talk.say_line(json!({"return": "again", "id": b.1})).await;
        talk.until_hung_up().await;
    });
    let mut monitor = Monitor::connect(&peer.socket(), LONG).await.unwrap();
    assert_eq!(monitor.version(), Version { major: 7, minor: 2, patch: 22 });
    assert_eq!(monitor.peer().pid, Some(std::process::id()));
    let answers = monitor.pipeline(&[Command::bare("a"), Command::bare("b")]).await.unwrap();
    assert_eq!(answers[0].as_ref().unwrap_err().to_string(), "a: no way");
    assert_eq!(answers[1], Ok(Value::from("second")));
    let events = monitor.take_events();
    assert_eq!((events[0].name.as_str(), events[0].at_us), ("BRAND_NEW_EVENT", 2_000_005));
}

#[tokio::test]
async fn an_answer_that_comes_too_late_is_not_taken_for_the_next_one() {
    let peer = Peer::tell(async |mut talk| {
        talk.greet().await;
        let (_, late) = talk.hear_name().await;
        let (_, next) = talk.hear_name().await;
        talk.say_line(json!({"return": "late", "id": late})).await;
        talk.say_line(json!({"return": "next", "id": next})).await;
        talk.until_hung_up().await;
    });
    let mut monitor = Monitor::connect(&peer.socket(), SHORT).await.unwrap();
    let err = monitor.execute(Command::bare("slow")).await.unwrap_err();
    assert!(matches!(err, QmpError::Timeout { command: "slow", .. }), "{err}");
    assert_eq!(monitor.execute(Command::bare("next")).await.unwrap(), "next");
}

#[tokio::test]
async fn a_socket_whose_one_client_is_somebody_else_is_busy_not_broken() {
    let peer = Peer::tell(async |mut talk| {
        talk.greet().await;
        talk.until_hung_up().await;
    });
    let held = Monitor::connect(&peer.socket(), LONG).await.unwrap();
    let err = Monitor::connect(&peer.socket(), SHORT).await.unwrap_err();
    assert!(matches!(err, QmpError::Busy { .. }), "{err}");
    assert_eq!(err.kind(), ErrorKind::Retry);
    drop(held);
    Monitor::connect(&peer.socket(), LONG).await.expect("free again");
}

#[tokio::test]
async fn nothing_listening_is_told_from_everything_else() {
    let directory = tempfile::TempDir::new().unwrap();
    let path = directory.path().join("socket");
    assert!(matches!(Monitor::connect(&path, LONG).await, Err(QmpError::Absent { .. })));
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    assert!(matches!(Monitor::connect(&path, LONG).await, Err(QmpError::Absent { .. })), "a socket left behind");
}

#[tokio::test]
async fn whatever_a_hostile_monitor_says_ends_in_an_error() {
    let deep = "[".repeat(100_000);
    let wide = format!("{{\"return\":[{}0]}}", "0,".repeat(300_000));
    let long = "x".repeat(5 << 20);
    let lines = ["garbage", "", "{\"return\":", "nul\0", &deep, &wide, &long, "{\"id\":2}", "{\"QMP\":{}}"];
    for (at, line) in lines.into_iter().enumerate() {
        let text = line.to_owned();
        let peer = Peer::tell(move |mut talk| {
            let text = text.clone();
            async move {
                talk.greet().await;
                talk.hear().await;
                talk.say(text).await;
                talk.say("\n").await;
            }
        });
        let mut monitor = Monitor::connect(&peer.socket(), LONG).await.unwrap();
        let err = monitor.execute(Command::bare("query-status")).await.unwrap_err();
        let is_told = matches!(err, QmpError::Protocol(_) | QmpError::Closed { .. });
        assert!(is_told && !err.leaves_connection_usable(), "line {at}: {err}");
    }
}

#[tokio::test]
async fn a_greeting_that_is_none_is_refused() {
    for greeting in ["RFB 003.008\n", "{}\n", "{\"QMP\":{\"version\":{\"qemu\":{\"major\":-1}}}}\n", "\n"] {
        let peer = Peer::tell(move |mut talk| async move { talk.say(greeting).await });
        let err = Monitor::connect(&peer.socket(), LONG).await.unwrap_err();
        assert!(matches!(err, QmpError::Protocol(_)), "{greeting:?}: {err}");
    }
    let peer = Peer::tell(async |mut talk| talk.say(&GREETING[..40]).await);
    let err = Monitor::connect(&peer.socket(), LONG).await.unwrap_err();
    assert!(matches!(err, QmpError::Closed { .. }), "{err}");
}

#[tokio::test]
async fn a_flood_of_events_does_not_get_past_the_deadline_or_fill_memory() {
    let peer = Peer::tell(async |mut talk| {
        talk.greet().await;
        talk.hear().await;
        let flood = "{\"event\":\"STOP\"}\n".repeat(1000);
        for _ in 0..100_000 {
            talk.say(&flood).await;
        }
    });
    let mut monitor = Monitor::connect(&peer.socket(), SHORT).await.unwrap();
    let begun = Instant::now();
    let err = monitor.execute(Command::bare("query-status")).await.unwrap_err();
    assert!(matches!(err, QmpError::Timeout { .. }), "{err}");
    assert!(begun.elapsed() < Duration::from_secs(10));
    assert!(monitor.take_events().len() <= 64);
}

#[tokio::test]
async fn a_monitor_that_hangs_up_in_the_middle_is_noticed() {
    let peer = Peer::tell(async |mut talk| {
        talk.greet().await;
        talk.hear().await;
        talk.say("{\"return\": {}, ").await;
    });
    let mut monitor = Monitor::connect(&peer.socket(), LONG).await.unwrap();
    let err = monitor.execute(Command::bare("query-status")).await.unwrap_err();
    assert!(matches!(err, QmpError::Closed { during: "query-status" }), "{err}");
}

#[tokio::test]
async fn an_agent_is_synchronised_past_old_answers_and_noise() {
    let peer = Peer::tell(async |mut talk| {
        talk.say("{\"return\": 3}\nnoise from the serial line\n{\"return\": 77}\n").await;
        talk.synchronise().await;
        assert_eq!(talk.hear().await.unwrap()["execute"], "guest-fsfreeze-freeze");
        talk.say_line(json!({"return": 2})).await;
        assert_eq!(talk.hear().await.unwrap()["execute"], "guest-fsfreeze-status");
        talk.say_line(json!({"return": "frozen"})).await;
        assert_eq!(talk.hear().await.unwrap()["execute"], "guest-fsfreeze-thaw");
        talk.say_line(json!({"error": {"class": "GenericError", "desc": "no"}})).await;
        talk.until_hung_up().await;
    });
    let wait = Duration::from_secs(20);
    let mut agent = Agent::connect(&peer.socket(), u64::MAX, wait).await.unwrap();
    assert_eq!(agent.freeze(wait).await.unwrap(), 2);
    assert!(agent.is_frozen(wait).await.unwrap());
    assert!(matches!(agent.thaw(wait).await, Err(QmpError::Refused(_))));
}

#[tokio::test]
async fn an_agent_that_floods_or_says_nothing_costs_its_budget_and_no_more() {
    let silent = Peer::tell(async |mut talk| talk.until_hung_up().await);
    let flooding = Peer::tell(async |mut talk| {
        let flood = "{\"return\": 1}\n".repeat(1000);
        for _ in 0..100_000 {
            talk.say(&flood).await;
        }
    });
    for peer in [silent, flooding] {
        let begun = Instant::now();
        let err = Agent::connect(&peer.socket(), 7, Duration::from_millis(200)).await.unwrap_err();
        assert!(matches!(err, QmpError::Timeout { .. }), "{err}");
        assert!(begun.elapsed() < Duration::from_secs(10));
    }
}
