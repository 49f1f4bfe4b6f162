//! Requests and their answers with a server played by hand: right ones in any shape, and every kind of wrong one.

use std::time::Duration;

use futures::future::{join, join_all};
use understudy_hypervisor::driver::Content;
use understudy_hypervisor::nbd::{ALLOCATION_CONTEXT, Client, DirtyBounds, NbdError, Options, errno};
use understudy_model::{ErrorKind, Extent};

use crate::nbd_peer::*;

const ASKED: Extent = Extent::new(65536, 4096);
const BOUNDS: DirtyBounds = DirtyBounds { extents_max: 1000, granule_max: 65536 };

fn options() -> Options {
    Options::new("disk")
}

/// What a client makes of a server that answers its first request with `answer`, with either kind of headers. The
/// connection must be over afterwards, for whoever else uses it as well.
async fn killed_by<F>(answer: impl Fn(Peer, Asked) -> F + Send + Clone + 'static) -> Vec<NbdError>
where
    F: Future<Output = Peer> + Send + 'static,
{
    let mut errors = Vec::new();
    for extended in [true, false] {
        let answer = answer.clone();
        let (client, server) = client(options(), extended, move |mut peer| async move {
            let first = peer.request().await;
            peer.request().await;
            answer(peer, first).await.until_hung_up().await;
        })
        .await;
        let (one, other) = join(client.read(ASKED), client.read(Extent::new(0, 512))).await;
        let one = one.expect_err("no data comes of a broken answer");
        assert_eq!(one.to_string(), other.unwrap_err().to_string());
        assert_eq!(client.read(ASKED).await.unwrap_err().to_string(), one.to_string());
        server.await.unwrap();
        errors.push(one);
    }
    errors
}

fn all_protocol(errors: Vec<NbdError>) -> &'static str {
    match errors[..] {
        [NbdError::Protocol(a), NbdError::Protocol(b)] if a == b => a,
        _ => panic!("no protocol error: {errors:?}"),
    }
}

#[tokio::test]
async fn a_read_answered_in_pieces_out_of_order_is_whole() {
    for extended in [true, false] {
        let (client, _server) = client(options(), extended, |mut peer| async move {
            let asked = peer.request().await;
            let at = asked.offset;
            peer.chunk(&asked, 0, DATA, &data(at + 3000, &pattern(at + 3000, 1096))).await;
            peer.chunk(&asked, 0, HOLE, &hole(at + 1000, 1000)).await;
            peer.chunk(&asked, 0, DATA, &data(at, &pattern(at, 1000))).await;
            peer.chunk(&asked, 0, DATA, &data(at + 2000, &pattern(at + 2000, 1000))).await;
            peer.chunk(&asked, DONE, NONE, &[]).await;
            peer.until_hung_up().await
        })
        .await;
        let mut want = pattern(ASKED.offset, ASKED.len);
        want[1000..2000].fill(0);
        assert_eq!(client.read(ASKED).await.unwrap(), want);
    }
}

#[tokio::test]
async fn a_read_that_is_one_hole_is_zeros() {
    let (client, _server) = client(options(), true, |mut peer| async move {
        let asked = peer.request().await;
        peer.chunk(&asked, DONE, HOLE, &hole(asked.offset, asked.len as u32)).await;
        peer.until_hung_up().await
    })
    .await;
    assert_eq!(client.read(ASKED).await.unwrap(), vec![0; 4096]);
}

#[tokio::test]
async fn answers_in_any_order_reach_those_who_asked() {
    let (client, _server) = client(options(), true, |mut peer| async move {
        let mut all = Vec::new();
        for _ in 0..20 {
            all.push(peer.request().await);
        }
        all.sort_by_key(|asked| asked.cookie.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        // Halves interleaved, as the protocol allows.
        for asked in &all {
            peer.chunk(asked, 0, DATA, &data(asked.offset, &pattern(asked.offset, 100))).await;
        }
        for asked in all.iter().rev() {
            let at = asked.offset + 100;
            peer.chunk(asked, DONE, DATA, &data(at, &pattern(at, asked.len - 100))).await;
        }
        peer.until_hung_up().await
    })
    .await;
    let reads = (0..20).map(|n| client.read(Extent::new(n * 5000, 1000 + n)));
    for (n, read) in join_all(reads).await.into_iter().enumerate() {
        assert_eq!(read.unwrap(), pattern(n as u64 * 5000, 1000 + n as u64));
    }
}

#[tokio::test]
async fn an_answer_that_leaves_part_out_kills_the_connection() {
    let why = killed_by(|mut peer, asked| async move {
        peer.chunk(&asked, DONE, DATA, &data(asked.offset, &pattern(asked.offset, 4095))).await;
        peer
    });
    assert_eq!(all_protocol(why.await), "an answer that leaves out part of a read");
    let why = killed_by(|mut peer, asked| async move {
        peer.chunk(&asked, DONE, NONE, &[]).await;
        peer
    });
    assert_eq!(all_protocol(why.await), "an answer that leaves out part of a read");
}

#[tokio::test]
async fn the_same_byte_twice_kills_the_connection() {
    let why = killed_by(|mut peer, asked| async move {
        peer.chunk(&asked, 0, DATA, &data(asked.offset, &pattern(asked.offset, 4000))).await;
        peer.chunk(&asked, DONE, HOLE, &hole(asked.offset + 3999, 97)).await;
        peer
    });
    assert_eq!(all_protocol(why.await), "the same byte twice in one answer");
}

#[tokio::test]
async fn data_outside_the_read_kills_the_connection() {
    for (offset, len) in [(ASKED.offset - 1, 10), (ASKED.end() - 5, 6), (0, 10), (u64::MAX - 3, 10)] {
        let why = killed_by(move |mut peer, asked| async move {
            peer.chunk(&asked, DONE, DATA, &data(offset, &vec![1; len])).await;
            peer
        });
        assert_eq!(all_protocol(why.await), "data outside the read it answers");
    }
}

#[tokio::test]
async fn a_length_beyond_the_request_kills_the_connection_before_its_data_comes() {
    for len in [4096 + 9, u64::from(u32::MAX)] {
        let why = killed_by(move |mut peer, asked| async move {
            peer.head(&asked, DONE, DATA, len).await;
            peer.send(&asked.offset.to_be_bytes()).await;
            peer
        });
        assert_eq!(all_protocol(why.await), "data outside the read it answers");
    }
}

#[tokio::test]
async fn malformed_chunks_kill_the_connection() {
    let at = ASKED.offset;
    let malformed: Vec<(u16, u16, Vec<u8>)> = vec![
        (DONE, DATA, vec![0; 7]),
        (DONE, DATA, data(at, &[])),
        (DONE, HOLE, hole(at, 0)),
        (DONE, HOLE, vec![0; 11]),
        (DONE, NONE, vec![0]),
        (0, NONE, vec![]),
        (DONE, STATUS, status(1, &[(4096, 0)])),
        (DONE, STATUS_EXT, status_ext(1, 1, &[(4096, 0)])),
        (DONE, 77, vec![]),
        (DONE | 2, DATA, data(at, &[1; 4096])),
        (DONE, ERROR, vec![0; 5]),
        (DONE, ERROR, error(0, b"no error")),
        (DONE, ERROR, [5u32.to_be_bytes().to_vec(), vec![0, 9], b"short".to_vec()].concat()),
        (DONE, ERROR, error(5, &[b'x'; 5000])),
    ];
    for (flags, kind, payload) in malformed {
        let why = killed_by(move |mut peer, asked| {
            let payload = payload.clone();
            async move {
                peer.chunk(&asked, flags, kind, &payload).await;
                peer
            }
        });
        all_protocol(why.await);
    }
}

#[tokio::test]
async fn an_answer_to_a_request_that_is_not_in_flight_kills_the_connection() {
    let why = killed_by(|mut peer, asked| async move {
        let other = Asked { cookie: asked.cookie + 1000, ..asked };
        peer.answer_read(&other).await;
        peer
    });
    assert_eq!(all_protocol(why.await), "an answer to a request that is not in flight");
}

#[tokio::test]
async fn a_second_answer_to_one_request_kills_the_connection() {
    let (client, server) = client(options(), true, |mut peer| async move {
        let asked = peer.request().await;
        peer.answer_read(&asked).await;
        peer.request().await;
        peer.answer_read(&asked).await;
        peer.until_hung_up().await
    })
    .await;
    assert!(client.read(ASKED).await.is_ok());
    assert!(matches!(client.read(ASKED).await, Err(NbdError::Protocol(_))));
    server.await.unwrap();
}

#[tokio::test]
async fn a_wrong_magic_number_kills_the_connection() {
    let why = killed_by(|mut peer, asked| async move {
        peer.extended = !peer.extended;
        peer.answer_read(&asked).await;
        peer
    });
    assert_eq!(all_protocol(why.await), "a reply without its magic number");
    let why = killed_by(|mut peer, asked| async move {
        let simple = [&0x6744_6698u32.to_be_bytes()[..], &[0; 4], &asked.cookie.to_be_bytes()].concat();
        peer.send(&simple).await;
        peer
    });
    assert!(why.await.iter().all(|err| matches!(err, NbdError::Protocol(_))));
}

#[tokio::test]
async fn an_answer_for_another_offset_kills_the_connection() {
    let (client, server) = client(options(), true, |mut peer| async move {
        let asked = peer.request().await;
        let shifted = Asked { offset: asked.offset + 4096, ..asked };
        peer.chunk(&shifted, DONE, DATA, &data(asked.offset, &pattern(asked.offset, asked.len))).await;
        peer.until_hung_up().await
    })
    .await;
    let err = client.read(ASKED).await.unwrap_err();
    assert!(matches!(err, NbdError::Protocol("an answer for another offset than was asked")));
    assert_eq!(err.kind(), ErrorKind::Operator);
    server.await.unwrap();
}

#[tokio::test]
async fn an_answer_cut_short_gives_no_data() {
    let why = killed_by(|mut peer, asked| async move {
        peer.head(&asked, DONE, DATA, 8 + asked.len).await;
        peer.send(&data(asked.offset, &pattern(asked.offset, 2000))).await;
        let (_client_end, theirs) = tokio::net::UnixStream::pair().unwrap();
        peer.stream = theirs;
        peer
    });
    for err in why.await {
        assert!(matches!(err, NbdError::Closed), "{err:?}");
        assert_eq!(err.kind(), ErrorKind::Retry);
    }
}

#[tokio::test]
async fn an_answer_in_endless_pieces_kills_the_connection() {
    let why = killed_by(|mut peer, asked| async move {
        for at in asked.offset..asked.offset + 100 {
            peer.chunk(&asked, 0, HOLE, &hole(at, 1)).await;
        }
        peer
    });
    assert_eq!(all_protocol(why.await), "an answer in too many pieces");
}

#[tokio::test]
async fn an_error_fails_its_request_alone() {
    for extended in [true, false] {
        let (client, _server) = client(options(), extended, |mut peer| async move {
            let asked = peer.request().await;
            // Half the data, then the error, then an empty end.
            peer.chunk(&asked, 0, DATA, &data(asked.offset, &pattern(asked.offset, 2048))).await;
            let text = error(errno::EIO, b"bad\nsector");
            let offset = (asked.offset + 2048).to_be_bytes();
            peer.chunk(&asked, 0, ERROR_OFFSET, &[&text[..], &offset].concat()).await;
            peer.chunk(&asked, DONE, NONE, &[]).await;
            let asked = peer.request().await;
            peer.chunk(&asked, DONE, 0x8123, &[error(errno::EINVAL, b""), vec![9; 30]].concat()).await;
            let asked = peer.request().await;
            peer.answer_read(&asked).await;
            peer.until_hung_up().await
        })
        .await;
        let err = client.read(ASKED).await.unwrap_err();
        assert_eq!(err.to_string(), "the NBD server could not read 65536+4096: EIO at byte 67584 (bad sector)");
        assert_eq!(err.kind(), ErrorKind::Operator);
        assert!(err.leaves_connection_usable());
        let err = client.read(ASKED).await.unwrap_err();
        assert!(matches!(&err, NbdError::Request { error, .. } if error.errno == errno::EINVAL));
        assert_eq!(client.read(ASKED).await.unwrap(), pattern(ASKED.offset, ASKED.len));
    }
}

#[tokio::test]
async fn a_call_that_was_dropped_disturbs_nobody() {
    let (asked_twice, both_asked) = tokio::sync::oneshot::channel();
    let (client, _server) = client(options(), true, |mut peer| async move {
        let (first, second) = (peer.request().await, peer.request().await);
        asked_twice.send(()).unwrap();
        let third = peer.request().await;
        for asked in [second, third, first] {
            peer.answer_read(&asked).await;
        }
        peer.until_hung_up().await
    })
    .await;
    let kept = client.read(Extent::new(512, 512));
    {
        let dropped = client.read(ASKED);
        tokio::pin!(dropped, kept);
        let both = join(&mut dropped, &mut kept);
        tokio::select! {
            _ = both => panic!("nothing was answered yet"),
            asked = both_asked => asked.unwrap(),
        }
    }
    let later = client.read(Extent::new(8192, 4096)).await.unwrap();
    assert_eq!(later, pattern(8192, 4096));
}

#[tokio::test]
async fn a_dropped_call_keeps_its_place_until_it_is_answered() {
    let narrow = Options { in_flight: 1, ..options() };
    let (asked_once, first_asked) = tokio::sync::oneshot::channel();
    let (answer_now, answer) = tokio::sync::oneshot::channel::<()>();
    let (client, _server) = client(narrow, true, |mut peer| async move {
        let first = peer.request().await;
        asked_once.send(()).unwrap();
        answer.await.unwrap();
        peer.answer_read(&first).await;
        let second = peer.request().await;
        peer.answer_read(&second).await;
        peer.until_hung_up().await
    })
    .await;
    tokio::select! {
        _ = client.read(ASKED) => panic!("nothing was answered yet"),
        asked = first_asked => asked.unwrap(),
    }
    let mut waiting = Box::pin(client.read(Extent::new(0, 512)));
    assert!(futures::poll!(&mut waiting).is_pending());
    answer_now.send(()).unwrap();
    assert_eq!(waiting.await.unwrap(), pattern(0, 512));
}

#[tokio::test]
async fn a_server_that_falls_silent_is_given_up() {
    let hasty = Options { reply_timeout: Duration::from_millis(30), ..options() };
    let (client, server) = client(hasty, true, |mut peer| async move {
        peer.request().await;
        peer.until_hung_up().await
    })
    .await;
    let err = client.read(ASKED).await.unwrap_err();
    assert!(matches!(err, NbdError::Stalled(_)));
    assert!(matches!(client.failure(), Some(NbdError::Stalled(_))));
    server.await.unwrap();
}

#[tokio::test]
async fn dropping_a_client_closes_its_connection() {
    let (client, server) = client(options(), true, Peer::until_hung_up).await;
    drop(client);
    server.await.unwrap();
}

#[tokio::test]
async fn a_goodbye_is_said() {
    let (client, server) = client(options(), false, |mut peer| async move { peer.request().await.command }).await;
    client.disconnect().await;
    assert_eq!(server.await.unwrap(), 2);
}

#[tokio::test]
async fn requests_that_the_export_does_not_allow_are_not_sent() {
    let (client, server) = client(options(), true, Peer::until_hung_up).await;
    let wrong = [
        Extent::new(SIZE - 512, 513),
        Extent::new(SIZE, 1),
        Extent::new(u64::MAX, 2),
        Extent::new(0, 0),
        Extent::new(0, Client::READ_LEN_MAX + 1),
    ];
    for extent in wrong {
        let err = client.read(extent).await.unwrap_err();
        assert_eq!(err.kind(), ErrorKind::Bug, "{err}");
    }
    assert!(matches!(client.allocation(ASKED).await, Err(NbdError::Misuse(_))));
    drop(client);
    server.await.unwrap();
}

#[tokio::test]
async fn block_status_is_asked_for_until_all_of_it_is_known() {
    let options = options().context(ALLOCATION_CONTEXT).bitmap("b");
    let (client, _server) = client(options, false, |mut peer| async move {
        // The bitmap's answer is the shorter one, the other's last piece reaches beyond what was asked.
        let asked = peer.request().await;
        assert_eq!((asked.command, asked.offset, asked.len), (BLOCK_STATUS, 0, SIZE));
        peer.chunk(&asked, 0, STATUS, &status(2, &[(4096, 1), (4096, 0)])).await;
        peer.chunk(&asked, DONE, STATUS, &status(1, &[(4096, 0), (u32::MAX, 3)])).await;
        let asked = peer.request().await;
        assert_eq!((asked.offset, asked.len), (8192, SIZE - 8192));
        peer.chunk(&asked, 0, STATUS, &status(1, &[(u32::MAX, 3)])).await;
        peer.chunk(&asked, DONE, STATUS, &status(2, &[(8192, 1), (u32::MAX, 0)])).await;

        let asked = peer.request().await;
        assert_eq!((asked.offset, asked.len), (0, 65536));
        peer.chunk(&asked, 0, STATUS, &status(1, &[(4096, 0), (4096, 0), (4096, 3)])).await;
        peer.chunk(&asked, DONE, STATUS, &status(2, &[(512, 0)])).await;
        let asked = peer.request().await;
        assert_eq!((asked.offset, asked.len), (12288, 65536 - 12288));
        peer.chunk(&asked, 0, STATUS, &status(1, &[(4096, 2), (u32::MAX, 0)])).await;
        peer.chunk(&asked, DONE, STATUS, &status(2, &[(512, 0)])).await;
        peer.until_hung_up().await
    })
    .await;
    let dirty = client.dirty(BOUNDS).await.unwrap();
    assert_eq!(dirty.iter().collect::<Vec<_>>(), [Extent::new(0, 4096), Extent::new(8192, 8192)]);
    let pieces = client.allocation(Extent::new(0, 65536)).await.unwrap();
    assert_eq!(
        pieces,
        [
            (Extent::new(0, 8192), Content::Data),
            (Extent::new(8192, 8192), Content::Zero),
            (Extent::new(16384, 49152), Content::Data),
        ]
    );
}

#[tokio::test]
async fn malformed_block_status_kills_the_connection() {
    let compact: Vec<Vec<Vec<u8>>> = vec![
        vec![status(1, &[])],
        vec![status(1, &[(0, 1)])],
        vec![status(3, &[(4096, 0)])],
        vec![status(1, &[(4096, 0)]), status(1, &[(4096, 0)])],
        vec![status(1, &[(4096, 0)])],
        vec![status(1, &[(u32::MAX, 0), (512, 1)]), status(2, &[(4096, 0)])],
        vec![status(1, &[(4096, 0)])[..11].to_vec()],
        vec![data(0, &[0; 8])],
    ];
    let extended: Vec<Vec<Vec<u8>>> = vec![
        vec![status_ext(1, 0, &[])],
        vec![status_ext(1, 2, &[(4096, 0)])],
        vec![status_ext(1, 1, &[(0, 0)])],
        vec![status_ext(1, 2, &[(u64::MAX, 0), (u64::MAX, 0)]), status_ext(2, 1, &[(4096, 0)])],
        vec![status(1, &[(4096, 0)])],
    ];
    for (chunks, is_extended) in compact.into_iter().map(|c| (c, false)).chain(extended.into_iter().map(|c| (c, true)))
    {
        let options = options().context(ALLOCATION_CONTEXT).bitmap("b");
        let shown = format!("{chunks:?}");
        let (client, server) = client(options, is_extended, move |mut peer| async move {
            let asked = peer.request().await;
            for (n, chunk) in chunks.iter().enumerate() {
                let flags = if n + 1 == chunks.len() { DONE } else { 0 };
                peer.chunk(&asked, flags, if is_extended { STATUS_EXT } else { STATUS }, chunk).await;
            }
            peer.until_hung_up().await
        })
        .await;
        let outcome = client.dirty(BOUNDS).await;
        assert!(matches!(outcome, Err(NbdError::Protocol(_))), "{shown}: {outcome:?}");
        server.await.unwrap();
    }
}

#[tokio::test]
async fn a_trim_is_split_to_the_width_of_the_headers() {
    let (client, server) = client(options(), false, |mut peer| async move {
        let asked = peer.request().await;
        // Without extended headers what has no data may be answered simply.
        let simple = [&0x6744_6698u32.to_be_bytes()[..], &[0; 4], &asked.cookie.to_be_bytes()].concat();
        peer.send(&simple).await;
        let refused = peer.request().await;
        let simple = [&0x6744_6698u32.to_be_bytes()[..], &[0, 0, 0, 1], &refused.cookie.to_be_bytes()].concat();
        peer.send(&simple).await;
        asked
    })
    .await;
    client.trim(ASKED).await.unwrap();
    let err = client.trim(Extent::new(0, 512)).await.unwrap_err();
    assert_eq!(err.to_string(), "the NBD server could not trim 0+512: EPERM");
    assert_eq!(err.kind(), ErrorKind::Refused);
    let asked = server.await.unwrap();
    assert_eq!((asked.command, asked.offset, asked.len), (TRIM, ASKED.offset, ASKED.len));
}
