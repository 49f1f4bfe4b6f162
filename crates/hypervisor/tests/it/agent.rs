//! A guest agent that is told how to behave.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use serde_json::json;

use crate::qmp_peer::Peer;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Manner {
    Good,
    Refuses,
    HangsUpWhileFreezing,
    IsFrozenBySomebodyElse,
}

pub struct Agent {
    peer: Peer,
    seen: Arc<Mutex<Vec<String>>>,
}

impl Agent {
    pub fn start(manner: Manner) -> Self {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let notes = seen.clone();
        let peer = Peer::tell(move |mut talk| {
            let notes = notes.clone();
            async move {
                talk.synchronise().await;
                while let Some(command) = talk.hear().await {
                    let name = command["execute"].as_str().unwrap().trim_start_matches("guest-fsfreeze-").to_owned();
                    notes.lock().unwrap().push(name.clone());
                    let answer = match (name.as_str(), manner) {
                        ("status", Manner::IsFrozenBySomebodyElse) => json!({"return": "frozen"}),
                        ("status", _) => json!({"return": "thawed"}),
                        ("freeze", Manner::Refuses) => json!({"error": {"class": "GenericError", "desc": "busy"}}),
                        ("freeze", Manner::HangsUpWhileFreezing) => return,
                        _ => json!({"return": 1}),
                    };
                    talk.say_line(answer).await;
                }
            }
        });
        Self { peer, seen }
    }

    pub fn socket(&self) -> PathBuf {
        self.peer.socket()
    }

    pub fn seen(&self) -> Vec<String> {
        self.seen.lock().unwrap().clone()
    }
}
