//! The link proxy between a client and a server that compare what they sent and got.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use anyhow::Result;
use understudy_testkit::link::{BOTH, Direction, LinkProxy};
use understudy_testkit::wait::wait_until;

const BOUND: Duration = Duration::from_secs(20);

/// A proxy, its client's end and its server's end.
fn linked() -> Result<(LinkProxy, TcpStream, TcpStream)> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let proxy = LinkProxy::start(listener.local_addr()?)?;
    let client = TcpStream::connect(proxy.address())?;
    let (server, _) = listener.accept()?;
    for stream in [&client, &server] {
        stream.set_read_timeout(Some(BOUND))?;
    }
    Ok((proxy, client, server))
}

fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|n| (n * 7 + n / 251) as u8).collect()
}

fn read_to_end(mut stream: TcpStream) -> (Vec<u8>, Option<std::io::ErrorKind>) {
    let mut bytes = Vec::new();
    let end = stream.read_to_end(&mut bytes);
    (bytes, end.err().map(|err| err.kind()))
}

#[test]
fn what_goes_in_comes_out_both_ways() -> Result<()> {
    let (proxy, mut client, mut server) = linked()?;
    let sent = pattern(3 << 20);
    let writer = {
        let (sent, mut client) = (sent.clone(), client.try_clone()?);
        std::thread::spawn(move || {
            client.write_all(&sent).unwrap();
            client.shutdown(std::net::Shutdown::Write).unwrap();
        })
    };
    let mut got = Vec::new();
    server.read_to_end(&mut got)?;
    writer.join().unwrap();
    assert!(got == sent);
    server.write_all(b"thanks")?;
    drop(server);
    let mut answer = String::new();
    client.read_to_string(&mut answer)?;
    assert_eq!(answer, "thanks");
    assert_eq!(BOTH.map(|direction| proxy.passed(direction)), [3 << 20, 6]);
    Ok(())
}

#[test]
fn a_cut_after_n_bytes_delivers_exactly_n() -> Result<()> {
    for n in [0u64, 1, 16_383, 16_384, 16_385, 100_000] {
        let (proxy, mut client, server) = linked()?;
        proxy.cut_after(Direction::Forward, n);
        let sent = pattern(200_000);
        let writer = std::thread::spawn(move || client.write_all(&pattern(200_000)));
        let (got, _) = read_to_end(server);
        assert_eq!(got.len() as u64, n);
        assert!(got == sent[..n as usize]);
        let _ = writer.join().unwrap(); // the sender may or may not have been done when the reset came
        assert_eq!(proxy.passed(Direction::Forward), n);
        assert!(!proxy.cut_is_due(Direction::Forward));
        wait_until("the connection to be gone", BOUND, || proxy.connections() == 0);
    }
    Ok(())
}

#[test]
fn a_cut_is_a_reset_for_both_ends_and_new_connections_work() -> Result<()> {
    let (proxy, client, server) = linked()?;
    proxy.cut();
    let reset = Some(std::io::ErrorKind::ConnectionReset);
    assert_eq!(read_to_end(client).1, reset);
    assert_eq!(read_to_end(server).1, reset);
    let listener = TcpListener::bind("127.0.0.1:0")?;
    proxy.retarget(listener.local_addr()?);
    let mut client = TcpStream::connect(proxy.address())?;
    client.write_all(b"again")?;
    drop(client);
    assert_eq!(read_to_end(listener.accept()?.0).0, b"again");
    proxy.refuse(true);
    let (bytes, _) = read_to_end(TcpStream::connect(proxy.address())?);
    assert!(bytes.is_empty());
    Ok(())
}

#[test]
fn a_held_direction_delivers_everything_once_released() -> Result<()> {
    let (proxy, mut client, mut server) = linked()?;
    proxy.hold(Direction::Forward);
    client.write_all(b"question")?;
    server.write_all(b"answer")?; // the other direction is not held
    let mut answer = [0u8; 6];
    client.read_exact(&mut answer)?;
    assert_eq!(&answer, b"answer");
    assert_eq!(proxy.passed(Direction::Forward), 0);
    proxy.release(Direction::Forward);
    let mut question = [0u8; 8];
    server.read_exact(&mut question)?;
    assert_eq!(&question, b"question");
    Ok(())
}

#[test]
fn a_delayed_byte_is_not_early() -> Result<()> {
    let (proxy, mut client, mut server) = linked()?;
    let delay = Duration::from_millis(150);
    proxy.delay(Direction::Forward, delay);
    let sent = Instant::now();
    client.write_all(b"x")?;
    server.read_exact(&mut [0u8; 1])?;
    assert!(sent.elapsed() >= delay, "{:?}", sent.elapsed());
    Ok(())
}

#[test]
fn no_more_passes_than_the_rate_allows() -> Result<()> {
    let (proxy, mut client, server) = linked()?;
    proxy.rate(Direction::Forward, Some(1 << 20));
    let sent = Instant::now();
    let writer = std::thread::spawn(move || client.write_all(&pattern(512 << 10)));
    let (got, _) = read_to_end(server);
    writer.join().unwrap()?;
    assert_eq!(got.len(), 512 << 10);
    // Half a second's worth, but for the first piece, which nothing went before.
    assert!(sent.elapsed() >= Duration::from_millis(450), "{:?}", sent.elapsed());
    Ok(())
}
