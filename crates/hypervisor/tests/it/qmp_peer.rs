//! The other end of a monitor or agent socket, played by hand.

use std::path::PathBuf;

use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinHandle;

pub const GREETING: &str =
    r#"{"QMP":{"version":{"qemu":{"micro":22,"minor":2,"major":7},"package":""},"capabilities":["oob"]}}"#;

/// One conversation with one client.
pub struct Talk {
    stream: BufReader<UnixStream>,
}

impl Talk {
    pub async fn say(&mut self, text: impl AsRef<[u8]>) {
        // A client that has hung up is part of some stories.
        let _ = self.stream.get_mut().write_all(text.as_ref()).await;
    }

    pub async fn say_line(&mut self, value: Value) {
        self.say(format!("{value}\r\n")).await;
    }

    /// The next command of the client; `None` once it has hung up.
    pub async fn hear(&mut self) -> Option<Value> {
        let mut line = Vec::new();
        self.stream.read_until(b'\n', &mut line).await.ok().filter(|n| *n > 0)?;
        let start = line.iter().rposition(|b| *b == 0xff).map_or(0, |at| at + 1);
        Some(serde_json::from_slice(&line[start..]).unwrap())
    }

    /// Hears a command and returns its name and id.
    pub async fn hear_name(&mut self) -> (String, Value) {
        let command = self.hear().await.expect("a command");
        (command["execute"].as_str().unwrap().to_owned(), command["id"].clone())
    }

    /// As a monitor does: greets and lets the client in.
    pub async fn greet(&mut self) {
        self.greet_as(GREETING).await;
    }

    pub async fn greet_as(&mut self, greeting: &str) {
        self.say(format!("{greeting}\r\n")).await;
        // A client that lost patience in the queue is greeted too.
        let Some(command) = self.hear().await else { return };
        assert_eq!(command["execute"], "qmp_capabilities");
        self.say_line(json!({"return": {}, "id": command["id"]})).await;
    }

    /// As an agent does: answers the synchronisation.
    pub async fn synchronise(&mut self) {
        let command = self.hear().await.expect("a command");
        assert_eq!(command["execute"], "guest-sync-delimited");
        self.say([0xff]).await;
        self.say_line(json!({"return": command["arguments"]["id"]})).await;
    }

    /// Waits until the client hangs up.
    pub async fn until_hung_up(&mut self) {
        while self.hear().await.is_some() {}
    }
}

/// A socket whose clients are served one after the other by a story.
pub struct Peer {
    directory: TempDir,
    task: JoinHandle<()>,
}

impl Peer {
    pub fn tell<F>(mut story: impl FnMut(Talk) -> F + Send + 'static) -> Self
    where
        F: Future<Output = ()> + Send,
    {
        let directory = TempDir::new().unwrap();
        let listener = UnixListener::bind(directory.path().join("socket")).unwrap();
        let task = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                story(Talk { stream: BufReader::new(stream) }).await;
            }
        });
        Self { directory, task }
    }

    pub fn socket(&self) -> PathBuf {
        self.directory.path().join("socket")
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.task.abort();
    }
}
