//! Ranges, faults and connections: the bytes that arrive are the bytes asked for, or an error says why not.
#![allow(clippy::unwrap_used)]

mod registry_script;

use std::{
    path::Path,
    sync::atomic::Ordering::SeqCst,
    time::{Duration, Instant},
};

use clip_engine::{
    EngineError, ErrorKind,
    registry::{Client, ClientConfig},
};
use registry_script::*;

type Answer = fn() -> Reply;

fn one_try() -> Client {
    Client::new(ClientConfig { tries_max: 1, ..config(Path::new("/nonexistent")) }).unwrap()
}

#[tokio::test]
async fn a_range_is_asked_for_alone_and_the_whole_blob_without_range() {
    let blob = pattern(100_000);
    let own = blob.clone();
    let server = Server::start(move |seen| serve_blob(seen, &own)).await;
    let client = anonymous();
    assert_eq!(read(&client, &server, &blob, 10..20).await.unwrap(), blob[10..20]);
    assert_eq!(read(&client, &server, &blob, 0..100_000).await.unwrap(), blob);
    assert!(read(&client, &server, &blob, 5..5).await.unwrap().is_empty());
    let seen = server.seen();
    assert_eq!(seen.iter().map(|seen| seen.header("range")).collect::<Vec<_>>(), [Some("bytes=10-19"), None]);
    assert_eq!(seen[0].path, format!("/v2/a/b/blobs/{}", sha256(&blob)));
    assert_eq!(seen[0].header("user-agent"), Some(concat!("clip/", env!("CARGO_PKG_VERSION"))));
    assert_eq!(seen[1].connection, 0, "a connection whose body was read to the end serves again");
    let traffic = client.traffic();
    assert_eq!((traffic.requests, traffic.bytes, traffic.connections), (2, 100_010, 1));
    assert_eq!(read(&client, &server, &blob, 5..100_001).await.unwrap_err().kind(), ErrorKind::Corrupt);
}

#[tokio::test]
async fn a_truncated_body_is_resumed_where_it_stopped() {
    let blob = pattern(300_000);
    let own = blob.clone();
    let server = Server::start(move |seen| {
        let mut reply = serve_blob(seen, &own);
        if reply.body.len() > 60_000 {
            reply.promised = Some(reply.body.len());
            reply.body.truncate(50_000);
            reply.then = Then::Close;
        }
        reply
    })
    .await;
    assert!(read(&anonymous(), &server, &blob, 0..300_000).await.unwrap() == blob);
    let ranges: Vec<_> = server.seen().iter().map(|seen| seen.header("range").map(str::to_owned)).collect();
    assert_eq!(ranges[..3], [None, Some("bytes=50000-299999".to_owned()), Some("bytes=100000-299999".to_owned())]);
}

#[tokio::test]
async fn a_body_that_never_moves_on_fails_after_its_tries() {
    let blob = pattern(1000);
    let server = Server::start(|_| reply(206, "").header("content-range", "bytes 1-999/1000").promising(999).then(Then::Close)).await;
    let client = Client::new(ClientConfig { tries_max: 3, ..config(Path::new("/nonexistent")) }).unwrap();
    let error = read(&client, &server, &blob, 1..1000).await.unwrap_err();
    assert!(matches!(error, EngineError::GivenUp { tries: 3, .. }) && error.kind() == ErrorKind::Unavailable, "{error}");
    assert_eq!(server.seen().len(), 3);
}

#[tokio::test]
async fn a_registry_without_range_costs_bytes_but_gives_the_right_ones() {
    let blob = pattern(200_000);
    let own = blob.clone();
    let server = Server::start(move |_| reply(200, own.clone())).await;
    assert!(read(&anonymous(), &server, &blob, 150_000..150_100).await.unwrap() == blob[150_000..150_100]);
}

#[tokio::test]
async fn an_answer_that_contradicts_the_request_is_an_error_soon() {
    let blob = pattern(1000);
    let cases: [(&str, Answer); 8] = [
        ("another range", || reply(206, vec![0; 10]).header("content-range", "bytes 11-20/1000")),
        ("another size", || reply(206, vec![0; 10]).header("content-range", "bytes 10-19/999")),
        ("no Content-Range", || reply(206, vec![0; 10])),
        ("a longer body", || reply(206, vec![0; 11]).header("content-range", "bytes 10-19/1000")),
        ("416", || reply(416, "").header("content-range", "bytes */5")),
        ("the whole of another blob", || reply(200, vec![0; 999])),
        ("204", || reply(204, "")),
        ("encoded", || reply(206, vec![0; 10]).header("content-range", "bytes 10-19/1000").header("content-encoding", "gzip")),
    ];
    for (name, answer) in cases {
        let server = Server::start(move |_| answer()).await;
        let error = read(&anonymous(), &server, &blob, 10..20).await.unwrap_err();
        assert!(matches!(error, EngineError::Protocol { .. }), "{name}: {error}");
        // One more may be another server's.
        assert_eq!(server.seen().len(), if matches!(name, "416" | "204") { 1 } else { 2 }, "{name}");
    }
    let server = Server::start(|_| reply(206, vec![0; 1000]).header("content-range", "bytes 0-999/1000")).await;
    assert_eq!(read(&anonymous(), &server, &blob, 0..1000).await.unwrap_err().kind(), ErrorKind::Corrupt);
}

/// Claim: an answer that ends before the range does is used, and the rest is asked for.
#[tokio::test]
async fn a_range_that_ends_early_is_used_and_continued() {
    let blob = pattern(1000);
    let own = blob.clone();
    let server = Server::start(move |seen| {
        let first: usize = seen.header("range").unwrap()["bytes=".len()..].split_once('-').unwrap().0.parse().unwrap();
        let last = (first + 39).min(109);
        reply(206, &own[first..=last]).header("content-range", format!("bytes {first}-{last}/1000"))
    })
    .await;
    assert_eq!(read(&anonymous(), &server, &blob, 10..110).await.unwrap(), blob[10..110]);
    let asked: Vec<_> = server.seen().iter().map(|seen| seen.header("range").unwrap().to_owned()).collect();
    assert_eq!(asked, ["bytes=10-109", "bytes=50-109", "bytes=90-109"]);
}

#[tokio::test]
async fn too_many_requests_waits_as_told_and_a_missing_blob_fails_at_once() {
    let blob = pattern(1000);
    let own = blob.clone();
    let server = Server::start(move |seen| match seen.number {
        0 => reply(429, "").header("retry-after", 1),
        1 => reply(503, ""),
        _ => serve_blob(seen, &own),
    })
    .await;
    let begun = Instant::now();
    assert_eq!(read(&anonymous(), &server, &blob, 0..10).await.unwrap(), blob[..10]);
    assert!(begun.elapsed() >= Duration::from_secs(1));

    let body = r#"{"errors":[{"code":"BLOB_UNKNOWN","message":"no such\n blob"}]}"#;
    let server = Server::start(move |_| reply(404, body)).await;
    let error = read(&anonymous(), &server, &blob, 0..10).await.unwrap_err().to_string();
    assert!(error.contains("status 404: BLOB_UNKNOWN: no such blob; check"), "{error}");
    assert_eq!(server.seen().len(), 1);
}

#[tokio::test]
async fn a_dead_port_is_tried_for_a_while_and_the_error_says_what_to_check() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    drop(listener);
    let begun = Instant::now();
    let mut patient = config(Path::new("/nonexistent"));
    patient.set_patience(Duration::from_secs(1));
    let error = Client::new(patient).unwrap().ping(&format!("127.0.0.1:{port}/x").parse().unwrap()).await.unwrap_err();
    assert!(matches!(error, EngineError::GivenUp { tries: 4.., .. }), "{error}");
    assert!((Duration::from_millis(800)..Duration::from_secs(3)).contains(&begun.elapsed()), "{:?}", begun.elapsed());
    let text = error.to_string();
    assert!(text.contains("cannot connect") && text.contains("refused") && text.contains(&port.to_string()), "{text}");
    assert_eq!(error.kind(), ErrorKind::Unavailable);
}

#[tokio::test]
async fn a_stalled_body_and_a_silent_server_end_within_their_deadlines() {
    let blob = pattern(1000);
    let short = Duration::from_millis(300);
    let config = ClientConfig { tries_max: 1, progress_timeout: short, first_byte_timeout: short, ..config(Path::new("/nonexistent")) };
    for then in [Then::Stall, Then::Silence] {
        let server = Server::start(move |_| reply(200, vec![0; 10]).promising(1000).then(then)).await;
        let client = Client::new(config.clone()).unwrap();
        let mut reader = match client.blob(&server.reference(), &sha256(&blob), 1000, 0..1000).await {
            Ok(reader) => reader,
            Err(error) => {
                assert!(then == Then::Silence && matches!(error, EngineError::Deadline { .. }), "{error}");
                continue;
            }
        };
        assert_eq!(reader.chunk().await.unwrap().unwrap().len(), 10);
        let begun = Instant::now();
        // The resumed body is 200 and so skips what was given: no progress.
        let error = reader.chunk().await.unwrap_err();
        assert!(matches!(error, EngineError::Deadline { .. }), "{error}");
        assert!(begun.elapsed() < Duration::from_secs(3));
    }
}

/// Claim: however much has arrived, a chunk of a body is 256 KiB at most, which is what waits for a decoder counts on.
#[tokio::test]
async fn a_chunk_is_never_over_its_limit() {
    let blob = pattern(8 << 20);
    let own = blob.clone();
    let server = Server::start(move |seen| serve_blob(seen, &own)).await;
    let size = blob.len() as u64;
    let mut reader = one_try().blob(&server.reference(), &sha256(&blob), size, 0..size).await.unwrap();
    let (mut read, mut longest) = (0, 0);
    while let Some(chunk) = reader.chunk().await.unwrap() {
        (read, longest) = (read + chunk.len(), longest.max(chunk.len()));
    }
    assert_eq!(read, blob.len());
    assert!((16 << 10..=256 << 10).contains(&longest), "{longest}");
}

#[tokio::test]
async fn a_stale_idle_connection_is_replaced_at_once_and_is_no_try() {
    let blob = pattern(1000);
    let own = blob.clone();
    let server = Server::start(move |seen| {
        let answer = serve_blob(seen, &own);
        if seen.turn == 1 { answer.then(Then::Hangup) } else { answer }
    })
    .await;
    let client = one_try();
    for _ in 0..3 {
        assert_eq!(read(&client, &server, &blob, 0..10).await.unwrap(), blob[..10]);
    }
    let seen = server.seen();
    assert_eq!(seen.iter().map(|seen| (seen.connection, seen.turn)).collect::<Vec<_>>(), [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0)]);

    let own = blob.clone();
    let server = Server::start(move |seen| serve_blob(seen, &own).then(Then::Close)).await;
    for _ in 0..3 {
        assert_eq!(read(&client, &server, &blob, 0..10).await.unwrap(), blob[..10]);
    }
}

/// Claim: a network that has silently dropped every idle connection costs one deadline, not one for each of them.
#[tokio::test]
async fn idle_connections_that_went_silent_cost_one_deadline() {
    let blob = pattern(1000);
    let own = blob.clone();
    let server = Server::start(move |seen| {
        let answer = serve_blob(seen, &own);
        if seen.turn > 0 { answer.then(Then::Silence) } else { answer }
    })
    .await;
    let mut patient = config(Path::new("/nonexistent"));
    patient.set_patience(Duration::from_secs(2));
    let client = Client::new(patient).unwrap();
    let mut together = Vec::new();
    for _ in 0..4 {
        let (client, server, blob) = (client.clone(), server.clone(), blob.clone());
        together.push(tokio::spawn(async move { read(&client, &server, &blob, 0..10).await.unwrap() }));
    }
    for one in together {
        one.await.unwrap();
    }
    assert!(client.traffic().connections >= 3, "{:?}", client.traffic());
    let begun = Instant::now();
    assert_eq!(read(&client, &server, &blob, 0..10).await.unwrap(), blob[..10]);
    assert!(begun.elapsed() < Duration::from_millis(1600), "{:?}", begun.elapsed());
}

/// The port of a server that answers one request with `header`, and then a piece of the body each 100 ms.
async fn drips(header: &'static str, pieces: Vec<Vec<u8>>) -> u16 {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let _ = stream.read(&mut [0; 4096]).await.unwrap();
        stream.write_all(format!("HTTP/1.1 200 OK\r\n{header}\r\n\r\n").as_bytes()).await.unwrap();
        for piece in pieces {
            tokio::time::sleep(Duration::from_millis(100)).await;
            stream.write_all(&piece).await.unwrap();
        }
        let _ = stream.read(&mut [0]).await;
    });
    port
}

/// Claim: a link of 2 KiB/s is waited for however long it takes, though a read has but a second without progress.
#[tokio::test]
async fn a_slow_but_honest_link_is_waited_for() {
    let blob = pattern(6000);
    let port = drips("content-length: 6000", blob.chunks(200).map(<[u8]>::to_vec).collect()).await;
    let mut patient = config(Path::new("/nonexistent"));
    patient.set_patience(Duration::from_secs(1));
    let client = Client::new(patient).unwrap();
    let reference = format!("127.0.0.1:{port}/a/b").parse().unwrap();
    let mut reader = client.blob(&reference, &sha256(&blob), 6000, 0..6000).await.unwrap();
    let mut all = Vec::new();
    while let Some(bytes) = reader.chunk().await.unwrap() {
        all.extend_from_slice(&bytes);
    }
    assert!(all == blob && client.traffic().requests == 1);
}

#[tokio::test]
async fn dropping_a_reader_midway_closes_its_connection() {
    let blob = pattern(1000);
    let server = Server::start(|_| reply(200, vec![7; 10]).promising(1000).then(Then::Stall)).await;
    let client = one_try();
    let mut reader = client.blob(&server.reference(), &sha256(&blob), 1000, 0..1000).await.unwrap();
    assert_eq!(reader.chunk().await.unwrap().unwrap().len(), 10);
    assert_eq!(server.closed.load(SeqCst), 0);
    drop(reader);
    for _ in 0..100 {
        if server.closed.load(SeqCst) == 1 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("the connection is still open");
}

#[tokio::test]
async fn pools_are_apart_and_counters_are_shared() {
    let blob = pattern(1000);
    let own = blob.clone();
    let server = Server::start(move |seen| serve_blob(seen, &own)).await;
    let client = anonymous();
    let other = client.with_own_pool();
    for client in [&client, &other, &client, &other] {
        read(client, &server, &blob, 0..10).await.unwrap();
    }
    assert_eq!(client.traffic(), other.traffic());
    assert_eq!((client.traffic().requests, client.traffic().connections), (4, 2));
}

#[test]
fn a_client_works_on_a_tokio_uring_runtime_and_its_futures_are_send() {
    fn is_send<T: Send>(value: T) -> T {
        value
    }
    fn shared<T: Send + Sync + Clone>(_: &T) {}
    let client = anonymous();
    shared(&client);
    let work = is_send(async move {
        let blob = pattern(100_000);
        let own = blob.clone();
        let server = Server::start(move |seen| serve_blob(seen, &own)).await;
        assert!(read(&client, &server, &blob, 1..99_999).await.unwrap() == blob[1..99_999]);
    });
    match tokio_uring::Runtime::new(&tokio_uring::builder()) {
        Ok(runtime) => runtime.block_on(work),
        Err(error) => {
            // To the terminal even when the harness captures output: a skipped test must not look like a passed one.
            use std::io::Write as _;
            let _ = writeln!(std::io::stderr(), "skipped: a_client_works_on_a_tokio_uring_runtime: io_uring is barred here ({error})");
        }
    }
}

#[tokio::test]
async fn with_no_least_rate_a_trickling_body_is_progress() {
    let blob = pattern(8);
    let mut chunks: Vec<_> = blob.iter().map(|byte| [b"1\r\n", &[*byte][..], b"\r\n"].concat()).collect();
    chunks.last_mut().unwrap().extend_from_slice(b"0\r\n\r\n");
    let port = drips("transfer-encoding: chunked", chunks).await;
    let config =
        ClientConfig { tries_max: 1, progress_timeout: Duration::from_millis(400), rate_min: 0, ..config(Path::new("/nonexistent")) };
    let client = Client::new(config).unwrap();
    let reference = format!("127.0.0.1:{port}/a/b").parse().unwrap();
    assert_eq!(client.blob_bytes(&reference, &sha256(&blob), 8).await.unwrap(), blob);
}

/// Claim: a body of a byte a second is given up for another connection, and what such a server sends is no progress: an error ends it in time.
#[tokio::test]
async fn a_slow_loris_is_no_progress() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let blob = pattern(8000);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                let _ = stream.read(&mut [0; 4096]).await;
                let _ = stream.write_all(b"HTTP/1.1 206 X\r\ncontent-length: 7000\r\ncontent-range: bytes 1000-7999/8000\r\n\r\n").await;
                while stream.write_all(&[7]).await.is_ok() {
                    tokio::time::sleep(Duration::from_millis(200)).await;
                }
            });
        }
    });
    let mut patient = config(Path::new("/nonexistent"));
    patient.set_patience(Duration::from_millis(2400));
    let client = Client::new(patient).unwrap();
    let reference = format!("127.0.0.1:{port}/a/b").parse().unwrap();
    let begun = Instant::now();
    let error = match client.blob(&reference, &sha256(&blob), 8000, 1000..8000).await {
        Err(error) => error,
        Ok(mut reader) => loop {
            if let Err(error) = reader.chunk().await {
                break error;
            }
        },
    };
    assert!(begun.elapsed() < Duration::from_secs(4), "{:?}", begun.elapsed());
    assert_eq!(error.kind(), ErrorKind::Corrupt, "the resumed range is another one: {error}");
}

#[tokio::test]
async fn a_server_that_does_not_speak_http_is_named_at_once() {
    use tokio::io::AsyncWriteExt as _;
    for greeting in ["SSH-2.0-OpenSSH_10\r\n", "\x15\x03\x01\x00\x02\x02\x0a", "HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n"] {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                stream.write_all(greeting.as_bytes()).await.unwrap();
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        });
        let begun = Instant::now();
        let error = anonymous().ping(&format!("127.0.0.1:{port}/x").parse().unwrap()).await.unwrap_err();
        assert!(matches!(error, EngineError::Transport { .. }), "{greeting:?}: {error}");
        assert!(begun.elapsed() < Duration::from_secs(4), "{greeting:?}: {error}");
        eprintln!("{error}");
    }
}
