//! Asks the service over its unix socket: one connection for each request.

use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow};
use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::{Method, Request};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::net::UnixStream;
use understudy_daemon::config::Config;
use understudy_daemon::faces::rest::types;

use crate::failure::Failure;

/// Largest answer: a list of all a host may hold stays far below.
const ANSWER_MAX: usize = 64 << 20;

/// The service of this host.
pub struct Client {
    socket: PathBuf,
}

impl Client {
    /// The service at this socket, or at the default one.
    pub fn new(socket: Option<PathBuf>) -> Self {
        Self { socket: socket.unwrap_or_else(|| Config::default().socket_path()) }
    }

    /// Asks for something to look at.
    pub async fn get(&self, path: &str) -> Result<Value, Failure> {
        self.request(Method::GET, path, None).await
    }

    /// Asks for something to be done.
    pub async fn post(&self, path: &str, body: &impl serde::Serialize) -> Result<Value, Failure> {
        let body = serde_json::to_vec(body).context("cannot write the request")?;
        self.request(Method::POST, path, Some(body)).await
    }

    /// Asks for something to be replaced.
    pub async fn put(&self, path: &str, body: &impl serde::Serialize) -> Result<Value, Failure> {
        let body = serde_json::to_vec(body).context("cannot write the request")?;
        self.request(Method::PUT, path, Some(body)).await
    }

    /// Asks for something to be done that needs no words.
    pub async fn act(&self, path: &str) -> Result<Value, Failure> {
        self.request(Method::POST, path, None).await
    }

    /// Asks for something to be removed.
    pub async fn delete(&self, path: &str) -> Result<Value, Failure> {
        self.request(Method::DELETE, path, None).await
    }

    async fn request(&self, method: Method, path: &str, body: Option<Vec<u8>>) -> Result<Value, Failure> {
        let stream = UnixStream::connect(&self.socket).await.map_err(|err| self.unreachable(&err))?;
        let exchange = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
        let (mut sender, connection) = exchange.map_err(|err| self.unreachable(&err))?;
        // Ends with the sender; what goes wrong on it is told by the request.
        let driver = tokio::spawn(connection);
        let request = Request::builder().method(method).uri(path).header("host", "localhost");
        let body = Full::new(Bytes::from(body.unwrap_or_default()));
        let request =
            request.header("content-type", "application/json").body(body).context("cannot make the request")?;
        let answer = sender.send_request(request).await.map_err(|err| self.unreachable(&err))?;
        let status = answer.status();
        let body = Limited::new(answer.into_body(), ANSWER_MAX).collect().await;
        driver.abort();
        let bytes = body.map_err(|err| anyhow!("{err}").context("the service's answer was cut short"))?.to_bytes();
        if status.is_success() {
            return Ok(serde_json::from_slice(&bytes).context("the service's answer is no JSON")?);
        }
        match serde_json::from_slice::<types::Error>(&bytes) {
            Ok(error) => Err(Failure::Refused(error)),
            Err(_) => Err(anyhow!("the service answered with status {status}").into()),
        }
    }

    fn unreachable(&self, err: &dyn std::error::Error) -> Failure {
        Failure::Unreachable { socket: self.socket.clone(), cause: understudy_daemon::chain(err) }
    }
}

/// An answer as the type it should be.
pub fn read<T: DeserializeOwned>(answer: &Value) -> Result<T, Failure> {
    Ok(T::deserialize(answer).context("the service's answer is not understood; is it of another version?")?)
}

/// A path with a name from outside in it.
pub fn path(base: &str, name: &str, rest: &str) -> String {
    let mut out = format!("{base}/");
    for byte in name.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => out.push(char::from(byte)),
            other => out.push_str(&format!("%{other:02X}")),
        }
    }
    out + rest
}

/// A file to be sent, as text.
pub fn file(path: &Path) -> Result<String, Failure> {
    Ok(std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_never_leaves_its_place_in_the_path() {
        assert_eq!(path("/api/v1/vms", "web 1", ""), "/api/v1/vms/web%201");
        assert_eq!(path("/api/v1/vms", "../peers?x#y", "/start"), "/api/v1/vms/..%2Fpeers%3Fx%23y/start");
        assert_eq!(path("/v", "ü", ""), "/v/%C3%BC");
    }
}
