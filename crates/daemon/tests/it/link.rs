//! Who gets in, who does not, and what a connection does when trust ends.

use std::io;
use std::sync::Arc;

use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use understudy_daemon::config::{self, Span};
use understudy_daemon::link::{DialError, Identity, tls};
use understudy_model::{Millis, ReturnCode};
use understudy_wire::message::{Hello, Message};

use crate::support::host::{Host, ping, soon};

/// The other end of a bare TLS connection: whatever it may be, it ends.
async fn ends(stream: &mut (impl tokio::io::AsyncRead + Unpin)) {
    let mut sink = Vec::new();
    let read = soon("the connection's end", stream.read_to_end(&mut sink)).await;
    assert!(read.is_err() || sink.is_empty(), "{} bytes came before the end", sink.len());
}

async fn paired() -> (Host, Host) {
    let (replica, primary) = (Host::start("replica").await, Host::start("primary").await);
    replica.trust(&primary);
    primary.trust(&replica);
    (replica, primary)
}

#[tokio::test]
async fn trusted_hosts_reach_each_other_and_know_who_it_is() {
    let (mut replica, primary) = paired().await;
    let mut connection = primary.dialler.connect(replica.id()).await.unwrap();
    ping(&mut connection).await.unwrap();
    assert_eq!(replica.served.recv().await, Some(primary.id()));
    assert_eq!(connection.host, "replica");
    assert_eq!(replica.trust.peers()[0].1, 1, "the connection is counted");
    drop(connection);
    soon("the end of the connection", replica.ended.recv()).await;
}

#[tokio::test]
async fn a_stranger_is_refused_in_the_handshake_and_reaches_no_handler() {
    let (replica, stranger) = (Host::start("replica").await, Host::start("stranger").await);
    stranger.trust(&replica);
    let refused = stranger.dialler.connect(replica.id()).await.err().unwrap();
    assert!(matches!(refused, DialError::NotAdmitted { .. }), "{refused:?}");
    assert_eq!(refused.refusal().code, ReturnCode::AccessDenied);
    assert!(replica.served.is_empty());
}

#[tokio::test]
async fn while_an_invitation_is_open_a_stranger_may_present_it_and_nothing_else() {
    let (mut replica, stranger) = (Host::start("replica").await, Host::start("stranger").await);
    replica.pairing.invite().await.unwrap();
    stranger.trust(&replica);
    let mut connection = stranger.dialler.connect(replica.id()).await.unwrap();
    let refused = ping(&mut connection).await.err().unwrap();
    assert_eq!(refused.refusal().code, ReturnCode::AccessDenied, "{refused:?}");
    assert!(replica.served.try_recv().is_err());
}

#[tokio::test]
async fn an_invitation_makes_trust_once() {
    let (mut replica, primary) = (Host::start("replica").await, Host::start("primary").await);
    let token = replica.pairing.invite().await.unwrap();
    let joined = primary.join(&token).await.unwrap();
    assert_eq!(joined.name, "replica");
    let known = replica.catalogue.peers().await.unwrap();
    assert_eq!((known[0].id, known[0].name.as_str()), (primary.id(), "primary"));
    assert!(known[0].authorization.may_replicate_here);

    primary.trust(&replica);
    let mut connection = primary.dialler.connect(replica.id()).await.unwrap();
    ping(&mut connection).await.unwrap();
    assert_eq!(replica.served.recv().await, Some(primary.id()));

    let other = Host::start("other").await;
    let again = other.join(&token).await.err().unwrap().refusal();
    assert_eq!(again.code, ReturnCode::AccessDenied);
    assert!(again.reason.contains("used before"), "{again}");
    assert!(!replica.trust.is_trusted(other.id()));
    let audit = replica.audit_text();
    assert!(audit.contains("\"outcome\":\"done\"") && audit.contains("used before"), "{audit}");
    let secret = understudy_daemon::link::pairing::write_secret(&token.secret);
    assert!(!audit.contains(&secret) && !audit.contains(&token.to_text()));
}

#[tokio::test]
async fn of_two_hosts_with_the_same_token_one_is_trusted() {
    let replica = Host::start("replica").await;
    let (one, two) = (Host::start("one").await, Host::start("two").await);
    let token = replica.pairing.invite().await.unwrap();
    let (first, second) = tokio::join!(one.join(&token), two.join(&token));
    assert!(first.is_ok() ^ second.is_ok());
    assert_eq!(replica.catalogue.peers().await.unwrap().len(), 1);
}

#[tokio::test]
async fn an_expired_invitation_is_refused_even_on_an_open_door() {
    let (replica, late) = (Host::start("replica").await, Host::start("late").await);
    let token = replica.pairing.invite().await.unwrap();
    replica.clock.advance(Millis::from_secs(3600));
    let refused = late.join(&token).await.err().unwrap();
    assert!(matches!(refused, DialError::NotAdmitted { .. }), "no invitation is open: {refused:?}");
    replica.pairing.invite().await.unwrap();
    let refused = late.join(&token).await.err().unwrap().refusal();
    // The expired one was dropped when the new one was made.
    assert_eq!(refused.code, ReturnCode::AccessDenied, "{refused:?}");
    assert!(!replica.trust.is_trusted(late.id()));
}

#[tokio::test]
async fn wrong_secrets_are_refused_and_soon_all_attempts_are() {
    let invite = config::Invite { attempts_per_minute: 3, ..config::Invite::default() };
    let replica = Host::with("replica", config::Link::default(), invite).await;
    let guesser = Host::start("guesser").await;
    let token = replica.pairing.invite().await.unwrap();
    for n in 0..3u8 {
        let mut wrong = token.clone();
        wrong.secret[0] ^= n + 1;
        let refused = guesser.join(&wrong).await.err().unwrap().refusal();
        assert_eq!(refused.code, ReturnCode::AccessDenied);
    }
    assert_eq!(guesser.join(&token).await.err().unwrap().refusal().code, ReturnCode::SystemInUse);
    replica.clock.advance(Millis::from_secs(60));
    guesser.join(&token).await.unwrap();
}

#[tokio::test]
async fn a_host_with_another_key_at_the_invited_address_is_not_told_the_secret() {
    let (replica, imposter) = (Host::start("replica").await, Host::start("imposter").await);
    let primary = Host::start("primary").await;
    let mut token = replica.pairing.invite().await.unwrap();
    token.addresses = vec![imposter.address.to_string()];
    imposter.pairing.invite().await.unwrap();
    let refused = primary.join(&token).await.err().unwrap();
    assert!(matches!(refused, DialError::WrongHost { .. }), "{refused:?}");
    token.addresses.push(replica.address.to_string());
    primary.join(&token).await.unwrap();
}

#[tokio::test]
async fn a_removed_peers_connections_end_at_once_and_it_does_not_come_back() {
    let (mut replica, primary) = paired().await;
    let mut open = Vec::new();
    for _ in 0..3 {
        let mut connection = primary.dialler.connect(replica.id()).await.unwrap();
        ping(&mut connection).await.unwrap();
        open.push(connection);
    }
    replica.trust.remove(primary.id());
    for _ in 0..3 {
        soon("the end of a connection", replica.ended.recv()).await;
    }
    for connection in &mut open {
        let next = soon("the end of the stream", connection.reader.next()).await;
        assert!(!matches!(next, Ok(Some(_))), "{next:?}");
    }
    let refused = primary.dialler.connect(replica.id()).await.err().unwrap();
    assert!(matches!(refused, DialError::NotAdmitted { .. }), "{refused:?}");
}

#[tokio::test]
async fn a_dialler_ends_its_connections_when_it_no_longer_trusts_the_other_side() {
    let (replica, primary) = paired().await;
    let mut connection = primary.dialler.connect(replica.id()).await.unwrap();
    ping(&mut connection).await.unwrap();
    primary.trust.remove(replica.id());
    assert!(soon("the end of the stream", connection.reader.next()).await.is_err());
    assert!(matches!(primary.dialler.connect(replica.id()).await, Err(DialError::NotTrusted(_))));
}

#[tokio::test]
async fn a_peer_holds_no_more_connections_than_it_may() {
    let link = config::Link { connections_per_peer_max: 4, ..config::Link::default() };
    let replica = Host::with("replica", link, config::Invite::default()).await;
    let primary = Host::start("primary").await;
    replica.trust(&primary);
    primary.trust(&replica);
    let mut open = Vec::new();
    for _ in 0..4 {
        let mut connection = primary.dialler.connect(replica.id()).await.unwrap();
        ping(&mut connection).await.unwrap();
        open.push(connection);
    }
    assert!(primary.dialler.connect(replica.id()).await.is_err());
}

fn tls_to(identity: &Identity, host: &Host, change: impl FnOnce(&mut rustls::ClientConfig)) -> TlsConnector {
    let mut config = (*tls::client_config(identity, host.id()).unwrap()).clone();
    change(&mut config);
    TlsConnector::from(Arc::new(config))
}

async fn handshake(connector: TlsConnector, host: &Host) -> io::Result<tokio_rustls::client::TlsStream<TcpStream>> {
    let tcp = TcpStream::connect(host.address).await?;
    connector.connect(ServerName::try_from("understudy.invalid").unwrap(), tcp).await
}

#[tokio::test]
async fn another_protocol_or_none_is_refused() {
    let (replica, primary) = paired().await;
    let https = tls_to(&primary.identity, &replica, |c| c.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()]);
    assert!(handshake(https, &replica).await.is_err());
    let bare = tls_to(&primary.identity, &replica, |c| c.alpn_protocols.clear());
    let mut stream = handshake(bare, &replica).await.unwrap();
    let _ = stream.write_all(b"GET / HTTP/1.1\r\n\r\n").await;
    ends(&mut stream).await;
    assert!(replica.served.is_empty());
}

#[tokio::test]
async fn a_client_without_a_certificate_is_refused() {
    let (replica, primary) = paired().await;
    let none = tls_to(&primary.identity, &replica, |c| {
        c.client_auth_cert_resolver = Arc::new(Nothing);
    });
    if let Ok(mut stream) = handshake(none, &replica).await {
        ends(&mut stream).await;
    }
    assert!(replica.served.is_empty());
}

/// Shows no certificate.
#[derive(Debug)]
struct Nothing;

impl rustls::client::ResolvesClientCert for Nothing {
    fn resolve(&self, _: &[&[u8]], _: &[rustls::SignatureScheme]) -> Option<Arc<rustls::sign::CertifiedKey>> {
        None
    }

    fn has_certs(&self) -> bool {
        false
    }
}

/// Shows a trusted peer's certificate without holding its key.
#[derive(Debug)]
struct Stolen {
    certificate: rustls::pki_types::CertificateDer<'static>,
    own: Arc<dyn rustls::sign::SigningKey>,
}

impl rustls::client::ResolvesClientCert for Stolen {
    fn resolve(&self, _: &[&[u8]], _: &[rustls::SignatureScheme]) -> Option<Arc<rustls::sign::CertifiedKey>> {
        Some(Arc::new(rustls::sign::CertifiedKey::new(vec![self.certificate.clone()], self.own.clone())))
    }

    fn has_certs(&self) -> bool {
        true
    }
}

#[tokio::test]
async fn a_certificate_without_its_key_opens_nothing() {
    let (replica, primary) = paired().await;
    let thief = Identity::ephemeral().unwrap();
    let own = rustls::crypto::aws_lc_rs::sign::any_supported_type(&thief.key()).unwrap();
    let certificate = primary.identity.certificate();
    let stolen = tls_to(&thief, &replica, |c| c.client_auth_cert_resolver = Arc::new(Stolen { certificate, own }));
    if let Ok(mut stream) = handshake(stolen, &replica).await {
        let hello = Message::Hello(understudy_wire::target::hello("t", "h")).to_frame(0, 0);
        let _ = stream.write_all(&hello.to_bytes()).await;
        ends(&mut stream).await;
    }
    assert!(replica.served.is_empty());
}

#[tokio::test]
async fn a_server_that_shows_a_certificate_without_its_key_is_not_believed() {
    let (replica, primary) = paired().await;
    let thief = Identity::ephemeral().unwrap();
    let own = rustls::crypto::aws_lc_rs::sign::any_supported_type(&thief.key()).unwrap();
    let certified = rustls::sign::CertifiedKey::new(vec![replica.identity.certificate()], own);
    let mut config = rustls::ServerConfig::builder()
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(rustls::sign::SingleCertAndKey::from(certified)));
    config.alpn_protocols = vec![understudy_wire::ALPN.to_vec()];
    let tcp = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = tcp.local_addr().unwrap();
    let serving = tokio::spawn(async move {
        let (stream, _) = tcp.accept().await.unwrap();
        tokio_rustls::TlsAcceptor::from(Arc::new(config)).accept(stream).await.is_err()
    });
    let refused = primary.dialler.connect_invited(replica.id(), &[address.to_string()]).await;
    assert!(refused.is_err());
    assert!(serving.await.unwrap(), "the handshake must not end well for the thief");
}

#[tokio::test]
async fn older_tls_is_refused() {
    let replica = Host::start("replica").await;
    let mut tcp = TcpStream::connect(replica.address).await.unwrap();
    // A client hello of TLS 1.2: record, handshake header, version, random, no session, one suite, no compression.
    let mut hello = vec![0x16, 3, 1, 0, 45, 1, 0, 0, 41, 3, 3];
    hello.extend_from_slice(&[7; 32]);
    hello.extend_from_slice(&[0, 0, 2, 0xc0, 0x2f, 1, 0]);
    tcp.write_all(&hello).await.unwrap();
    let mut answer = Vec::new();
    soon("the refusal", tcp.read_to_end(&mut answer)).await.unwrap();
    assert_eq!((answer[0], answer[5]), (0x15, 2), "a fatal alert and nothing else: {answer:?}");
}

#[tokio::test]
async fn a_silent_connection_ends_at_its_time_limit() {
    let link = config::Link { handshake_time_limit: Span(Millis(200)), ..config::Link::default() };
    let replica = Host::with("replica", link, config::Invite::default()).await;
    let mut tcp = TcpStream::connect(replica.address).await.unwrap();
    ends(&mut tcp).await;
    let primary = Host::start("primary").await;
    replica.trust(&primary);
    let quiet = tls_to(&primary.identity, &replica, |_| {});
    let mut stream = handshake(quiet, &replica).await.unwrap();
    ends(&mut stream).await;
    assert_eq!(replica.stats.refused.get(), 2);
}

#[tokio::test]
async fn a_flood_of_silent_connections_keeps_nobody_out() {
    let link = config::Link { handshakes_max: 16, ..config::Link::default() };
    let replica = Host::with("replica", link, config::Invite::default()).await;
    let primary = Host::start("primary").await;
    replica.trust(&primary);
    primary.trust(&replica);
    let mut flood = Vec::new();
    for _ in 0..200 {
        flood.push(TcpStream::connect(replica.address).await.unwrap());
    }
    let mut connection = soon("a connection", primary.dialler.connect(replica.id())).await.unwrap();
    ping(&mut connection).await.unwrap();
    ends(&mut flood[0]).await;
    assert!(replica.stats.evicted.get() >= 184);
}

#[tokio::test]
async fn hosts_without_a_common_version_say_both_and_part() {
    let (replica, primary) = paired().await;
    let mut stream = handshake(tls_to(&primary.identity, &replica, |_| {}), &replica).await.unwrap();
    let old = Hello { version_min: 7, version_max: 9, ..understudy_wire::target::hello("t", "h") };
    stream.write_all(&Message::Hello(old).to_frame(0, 0).to_bytes()).await.unwrap();
    let mut reader = understudy_daemon::link::frames::FrameReader::new(stream);
    let Message::Refused(refused) = reader.message().await.unwrap() else { panic!("not refused") };
    assert_eq!(refused.code, ReturnCode::NotSupported.value());
    assert!(refused.reason.contains("7 to 9") && refused.reason.contains("1 to 1"), "{}", refused.reason);
    assert!(reader.next().await.unwrap().is_none());
}

#[tokio::test]
async fn frames_out_of_order_close_the_connection_before_any_handler_runs() {
    let (replica, primary) = paired().await;
    let mut stream = handshake(tls_to(&primary.identity, &replica, |_| {}), &replica).await.unwrap();
    stream.write_all(&Message::Test.to_frame(1, 0).to_bytes()).await.unwrap();
    ends(&mut stream).await;
    assert!(replica.served.is_empty());
}

#[tokio::test]
async fn a_listener_that_stops_ends_its_connections() {
    let (mut replica, primary) = paired().await;
    let mut connection = primary.dialler.connect(replica.id()).await.unwrap();
    ping(&mut connection).await.unwrap();
    replica.stop().await;
    let next = soon("the end of the stream", connection.reader.next()).await;
    assert!(!matches!(next, Ok(Some(_))), "{next:?}");
    let refused = primary.dialler.connect(replica.id()).await.err().unwrap();
    assert!(matches!(refused, DialError::Unreachable { .. }), "{refused:?}");
    assert_eq!(refused.refusal().code, ReturnCode::NotAvailable);
}

#[tokio::test]
async fn a_host_is_tried_at_each_of_its_addresses() {
    let (replica, primary) = paired().await;
    let mut record = primary.trust.peer(replica.id()).unwrap();
    record.addresses = vec!["127.0.0.1:1".into(), "nowhere.invalid:7".into(), replica.address.to_string()];
    primary.trust.put(record.clone());
    let mut connection = primary.dialler.connect(replica.id()).await.unwrap();
    ping(&mut connection).await.unwrap();
    assert_eq!(connection.remote, replica.address);
    record.addresses.clear();
    primary.trust.put(record);
    assert!(matches!(primary.dialler.connect(replica.id()).await, Err(DialError::NoAddress)));
}
