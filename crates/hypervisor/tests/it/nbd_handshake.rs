//! Handshakes with a server played by hand: what is refused, and how it is said.

use understudy_hypervisor::nbd::{ALLOCATION_CONTEXT, NbdError, Options};
use understudy_model::ErrorKind;

use crate::nbd_peer::{Peer, block_sizes, client, context, export_info, handshake};

fn options() -> Options {
    Options::new("disk")
}

/// Greets, agrees to extended headers, and answers GO with `infos`.
async fn go(mut peer: Peer, infos: &[Vec<u8>]) {
    peer.greet().await;
    peer.option().await;
    peer.option_reply(11, 1, &[]).await;
    peer.option().await;
    for info in infos {
        peer.option_reply(7, 3, info).await;
    }
    peer.option_reply(7, 1, &[]).await;
    peer.until_hung_up().await;
}

/// Greets, agrees to extended headers, and answers the wish for contexts with `contexts`.
async fn contexts(mut peer: Peer, contexts: &[Vec<u8>]) {
    peer.greet().await;
    peer.option().await;
    peer.option_reply(11, 1, &[]).await;
    peer.option().await;
    for context in contexts {
        peer.option_reply(10, 4, context).await;
    }
    peer.option_reply(10, 1, &[]).await;
    peer.until_hung_up().await;
}

fn protocol_error<T: std::fmt::Debug>(outcome: Result<T, NbdError>) -> &'static str {
    match outcome {
        Err(NbdError::Protocol(what)) => what,
        other => panic!("no protocol error: {other:?}"),
    }
}

#[tokio::test]
async fn extended_headers_are_used_where_the_server_has_them() {
    for extended in [true, false] {
        let (client, _server) = client(options(), extended, Peer::until_hung_up).await;
        assert_eq!(client.has_extended_headers(), extended);
        assert_eq!(client.export().size, 1 << 30);
        assert!(client.export().can_trim && !client.export().read_only && !client.export().multi_conn);
    }
}

#[tokio::test]
async fn something_that_is_no_nbd_server_is_recognised() {
    let outcome = handshake(options(), |mut peer| async move {
        peer.send(b"SSH-2.0-OpenSSH_9.2p1 Debian-2+deb12u3\r\n").await;
        peer.until_hung_up().await
    });
    assert_eq!(protocol_error(outcome.await), "no NBD server greeted us");
}

#[tokio::test]
async fn an_oldstyle_server_is_refused() {
    let outcome = handshake(options(), |mut peer| async move {
        peer.send(b"NBDMAGIC").await;
        peer.send(&[&0x0000_4202_8186_1253u64.to_be_bytes()[..], &[0; 136]].concat()).await;
        peer.until_hung_up().await
    });
    assert!(matches!(outcome.await, Err(NbdError::Unsupported("the newstyle handshake"))));
}

#[tokio::test]
async fn a_server_without_structured_replies_is_refused() {
    let outcome = handshake(options(), |mut peer| async move {
        peer.greet().await;
        for option in [11, 8] {
            peer.option().await;
            peer.option_reply(option, 0x8000_0001, &[]).await;
        }
        peer.until_hung_up().await
    });
    assert!(matches!(outcome.await, Err(NbdError::Unsupported("structured replies"))));
}

#[tokio::test]
async fn an_unknown_export_is_named() {
    let outcome = handshake(options(), |mut peer| async move {
        peer.greet().await;
        peer.option().await;
        peer.option_reply(11, 1, &[]).await;
        peer.option().await;
        peer.option_reply(7, 0x8000_0006, b"export 'disk' not present").await;
        peer.until_hung_up().await
    });
    let err = outcome.await.unwrap_err();
    assert_eq!(err.to_string(), "the NBD server refused the export for export \"disk\": no such export");
    assert_eq!(err.kind(), ErrorKind::Retry);
}

#[tokio::test]
async fn a_server_that_wants_tls_is_told_apart_from_one_that_is_too_old() {
    let outcome = handshake(options(), |mut peer| async move {
        peer.greet().await;
        for option in [11, 8] {
            peer.option().await;
            peer.option_reply(option, 0x8000_0005, &[]).await;
        }
        peer.until_hung_up().await
    });
    let err = outcome.await.unwrap_err();
    assert!(err.to_string().ends_with("TLS required"), "{err}");
    assert_eq!(err.kind(), ErrorKind::Refused);
}

#[tokio::test]
async fn a_bitmap_that_is_not_there_is_named() {
    let options = options().context(ALLOCATION_CONTEXT).bitmap("understudy-x");
    let outcome = handshake(options, |peer| async move { contexts(peer, &[context(1, ALLOCATION_CONTEXT)]).await });
    let err = outcome.await.unwrap_err();
    assert_eq!(err.to_string(), "NBD export \"disk\" has no meta context \"qemu:dirty-bitmap:understudy-x\"");
    assert_eq!(err.kind(), ErrorKind::Resync);
}

#[tokio::test]
async fn contexts_that_were_not_asked_for_or_come_twice_end_the_handshake() {
    let wrong = [
        vec![context(1, "qemu:dirty-bitmap:other")],
        vec![context(1, "qemu:dirty-bitmap:b"), context(2, "qemu:dirty-bitmap:b")],
        vec![context(1, "qemu:dirty-bitmap:b"), context(1, ALLOCATION_CONTEXT)],
        vec![vec![0; 3]],
        vec![vec![0; 5000]],
        vec![context(1, "qemu:dirty-bitmap:b").into_iter().chain([0xff]).collect()],
    ];
    for sent in wrong {
        let options = options().context(ALLOCATION_CONTEXT).bitmap("b");
        protocol_error(handshake(options, |peer| async move { contexts(peer, &sent).await }).await);
    }
}

#[tokio::test]
async fn impossible_exports_are_refused() {
    let sound = export_info(1 << 30, 1);
    let wrong = [
        vec![],
        vec![block_sizes(512, 4096, 1 << 20)],
        vec![export_info(1 << 30, 0)],
        vec![sound.clone(), block_sizes(3, 4096, 1 << 20)],
        vec![sound.clone(), block_sizes(0, 4096, 1 << 20)],
        vec![sound.clone(), block_sizes(512, 4096, 511)],
        vec![sound.clone(), block_sizes(1 << 17, 1 << 17, 1 << 20)],
        vec![sound[..11].to_vec()],
        vec![vec![0]],
    ];
    for infos in wrong {
        protocol_error(handshake(options(), |peer| async move { go(peer, &infos).await }).await);
    }
    let huge = vec![export_info((64 << 40) + 512, 1)];
    let outcome = handshake(options(), |peer| async move { go(peer, &huge).await }).await;
    assert!(matches!(outcome, Err(NbdError::Unsupported("exports of this size"))));
}

#[tokio::test]
async fn endless_information_ends_the_handshake() {
    let infos = vec![export_info(1 << 30, 1); 100];
    let outcome = handshake(options(), |peer| async move { go(peer, &infos).await }).await;
    assert_eq!(protocol_error(outcome), "endless information about an export");
}

#[tokio::test]
async fn an_answer_that_claims_to_be_huge_is_not_waited_for() {
    // Error texts, information and acknowledgements alike: none may be this long, and nothing follows.
    for kind in [0x8000_0001u32, 3, 1] {
        let outcome = handshake(options(), move |mut peer| async move {
            peer.greet().await;
            peer.option().await;
            peer.option_head(11, kind, u32::MAX).await;
            peer.until_hung_up().await
        });
        protocol_error(outcome.await);
    }
}

#[tokio::test]
async fn an_answer_to_another_option_ends_the_handshake() {
    let outcome = handshake(options(), |mut peer| async move {
        peer.greet().await;
        peer.option().await;
        peer.option_reply(8, 1, &[]).await;
        peer.until_hung_up().await
    });
    assert_eq!(protocol_error(outcome.await), "an answer to an option that was not asked");
}

#[tokio::test]
async fn a_server_that_hangs_up_or_falls_silent_is_told_apart() {
    let gone = handshake(options(), |mut peer| async move { peer.greet().await }).await;
    assert!(matches!(gone, Err(NbdError::Closed)), "{gone:?}");
    let patience = std::time::Duration::from_millis(30);
    let hasty = Options { handshake_timeout: patience, ..options() };
    let silent = handshake(hasty, |mut peer| async move {
        peer.greet().await;
        peer.until_hung_up().await
    });
    assert!(matches!(silent.await, Err(NbdError::Stalled(limit)) if limit == patience));
}

#[tokio::test]
async fn nothing_is_sent_for_wishes_that_the_protocol_cannot_carry() {
    let many = (0..40).fold(options(), |options, n| options.bitmap(&n.to_string()));
    let twice = options().bitmap("b").bitmap("b");
    for wish in [many, twice, Options::new("x".repeat(5000))] {
        let outcome = handshake(wish, Peer::until_hung_up).await;
        assert!(matches!(outcome, Err(NbdError::Misuse(_))), "{outcome:?}");
    }
}
