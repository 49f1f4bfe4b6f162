//! A loopback HTTP server around the kit, with just enough HTTP for the clients of these tests: plain threads, Basic credentials.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::thread;
use std::time::Instant;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use futures::executor::block_on;
use understudy_cim::http::{HttpRequest, HttpResponse};
use understudy_cim::interop::Delivery;

/// The only user, and the password.
pub const USER: (&str, &str) = ("ann", "toys");

/// Answers requests of authenticated callers, by path.
pub trait Site: Send + Sync + 'static {
    /// The answer to a request at a path. `now` counts from the server's start.
    fn answer(&self, path: &str, request: HttpRequest<'_>, caller: &str, now: std::time::Duration) -> HttpResponse;
}

/// Serves a site on a port of its own until the process ends, and says which.
pub fn serve(site: Arc<dyn Site>) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let started = Instant::now();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let (stream, site) = (stream.unwrap(), site.clone());
            // A client that goes away in the middle is its own business.
            thread::spawn(move || drop(converse(stream, &*site, started)));
        }
    });
    port
}

struct Message {
    method: String,
    path: String,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
}

impl Message {
    fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }
}

fn converse(stream: TcpStream, site: &dyn Site, started: Instant) -> io::Result<()> {
    let mut writer = stream.try_clone()?;
    let mut reader = BufReader::new(stream);
    while let Some(message) = read_message(&mut reader, &mut writer)? {
        let response = respond(&message, site, started);
        write_response(&mut writer, &response)?;
        if message.header("Connection").is_some_and(|value| value.eq_ignore_ascii_case("close")) {
            return Ok(());
        }
    }
    Ok(())
}

fn respond(message: &Message, site: &dyn Site, started: Instant) -> HttpResponse {
    let Some(caller) = message.header("Authorization").and_then(authenticated) else {
        return HttpResponse::empty(401).with("WWW-Authenticate", "Basic realm=\"toys\"");
    };
    let headers: Vec<(&str, &str)> =
        message.headers.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    let request = HttpRequest { method: &message.method, headers: &headers, body: &message.body };
    site.answer(&message.path, request, &caller, started.elapsed())
}

fn authenticated(header: &str) -> Option<String> {
    let decoded = STANDARD.decode(header.strip_prefix("Basic ")?.trim()).ok()?;
    let text = String::from_utf8(decoded).ok()?;
    let (user, password) = text.split_once(':')?;
    ((user, password) == USER).then(|| user.to_string())
}

fn read_message(reader: &mut impl BufRead, writer: &mut impl Write) -> io::Result<Option<Message>> {
    let first = line(reader)?;
    let mut words = first.split(' ').map(str::to_string);
    let (Some(method), Some(path)) = (words.next().filter(|word| !word.is_empty()), words.next()) else {
        return Ok(None);
    };
    let mut message = Message { method, path, headers: Vec::new(), body: Vec::new() };
    loop {
        let header = line(reader)?;
        let Some((name, value)) = header.split_once(':') else { break };
        message.headers.push((name.trim().to_string(), value.trim().to_string()));
    }
    if message.header("Expect").is_some() {
        writer.write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
    }
    message.body = match message.header("Transfer-Encoding") {
        Some(_) => read_chunks(reader)?,
        None => {
            let len = message.header("Content-Length").and_then(|len| len.parse().ok()).unwrap_or(0);
            read_exactly(reader, len)?
        }
    };
    Ok(Some(message))
}

fn line(reader: &mut impl BufRead) -> io::Result<String> {
    let mut line = String::new();
    reader.read_line(&mut line)?;
    Ok(line.trim_end().to_string())
}

fn read_exactly(reader: &mut impl Read, len: usize) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; len];
    reader.read_exact(&mut bytes)?;
    Ok(bytes)
}

fn read_chunks(reader: &mut impl BufRead) -> io::Result<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let size = usize::from_str_radix(line(reader)?.split(';').next().unwrap_or("0").trim(), 16).unwrap_or(0);
        body.extend(read_exactly(reader, size)?);
        line(reader)?;
        if size == 0 {
            return Ok(body);
        }
    }
}

fn write_response(writer: &mut impl Write, response: &HttpResponse) -> io::Result<()> {
    let mut text = format!("HTTP/1.1 {} Answer\r\nContent-Length: {}\r\n", response.status, response.body.len());
    for (name, value) in &response.headers {
        text.push_str(&format!("{name}: {value}\r\n"));
    }
    text.push_str("\r\n");
    writer.write_all(text.as_bytes())?;
    writer.write_all(&response.body)?;
    writer.flush()
}

/// Sends what the kit says should be sent, and gives the status of the answer.
pub fn deliver(delivery: &Delivery) -> io::Result<u16> {
    let address = delivery.url.trim_start_matches("http://").trim_end_matches('/');
    let mut stream = TcpStream::connect(address)?;
    let mut head = format!("POST / HTTP/1.1\r\nHost: {address}\r\nContent-Length: {}\r\n", delivery.body.len());
    for (name, value) in &delivery.headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    stream.write_all((head + "\r\n").as_bytes())?;
    stream.write_all(&delivery.body)?;
    let first = line(&mut BufReader::new(stream))?;
    first.split(' ').nth(1).and_then(|status| status.parse().ok()).ok_or(io::ErrorKind::InvalidData.into())
}

/// Runs a future of the kit to its end.
pub fn run<T>(future: impl Future<Output = T>) -> T {
    block_on(future)
}
