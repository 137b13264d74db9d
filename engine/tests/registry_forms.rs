//! The forms in which servers answer: HTTP/1.0 and bodies without a length, chunked bodies, and every kind of redirect.
#![allow(clippy::unwrap_used)]

mod registry_script;

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering::SeqCst},
};

use clip_engine::{
    EngineError,
    registry::{Client, ClientConfig, Reference},
};
use registry_script::*;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
};

/// A server that answers each request on a connection with what `answer` gives for its range and its number there, byte for byte; `None`
/// ends the connection.
struct Raw {
    reference: Reference,
    connections: Arc<AtomicUsize>,
}

impl Raw {
    async fn start(answer: impl Fn(Option<(usize, usize)>, usize) -> (Vec<u8>, bool) + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let reference = format!("localhost:{}/a/b:t", listener.local_addr().unwrap().port()).parse().unwrap();
        let (connections, answer) = (Arc::new(AtomicUsize::new(0)), Arc::new(answer));
        let count = Arc::clone(&connections);
        tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                stream.set_nodelay(true).unwrap();
                count.fetch_add(1, SeqCst);
                let answer = Arc::clone(&answer);
                tokio::spawn(async move {
                    for turn in 0.. {
                        let mut head = Vec::new();
                        while !head.ends_with(b"\r\n\r\n") {
                            match stream.read_u8().await {
                                Ok(byte) => head.push(byte),
                                Err(_) => return,
                            }
                        }
                        let (bytes, goes_on) = answer(range_of(&head), turn);
                        if stream.write_all(&bytes).await.is_err() || !goes_on {
                            return;
                        }
                    }
                });
            }
        });
        Self { reference, connections }
    }

    async fn read(&self, client: &Client, blob: &[u8], range: std::ops::Range<u64>) -> Result<Vec<u8>, EngineError> {
        let mut reader = client.blob(&self.reference, &sha256(blob), blob.len() as u64, range).await?;
        let mut all = Vec::new();
        while let Some(bytes) = reader.chunk().await? {
            all.extend_from_slice(&bytes);
        }
        Ok(all)
    }
}

fn range_of(head: &[u8]) -> Option<(usize, usize)> {
    let text = String::from_utf8_lossy(head).to_ascii_lowercase();
    let range = text.lines().find_map(|line| line.strip_prefix("range: bytes="))?;
    let (first, last) = range.split_once('-').unwrap();
    Some((first.parse().unwrap(), last.parse().unwrap()))
}

/// The body for `range` of `blob`, with the lines that say which part it is.
fn part(blob: &[u8], range: Option<(usize, usize)>) -> (&'static str, String, Vec<u8>) {
    match range {
        Some((first, last)) => {
            ("206 Partial Content", format!("Content-Range: bytes {first}-{last}/{}\r\n", blob.len()), blob[first..=last].to_vec())
        }
        None => ("200 OK", String::new(), blob.to_vec()),
    }
}

fn client() -> Client {
    Client::new(ClientConfig { tries_max: 2, ..config(std::path::Path::new("/nonexistent")) }).unwrap()
}

/// Claim: HTTP/1.0 with a length, and with a body that ends with the connection, gives the right bytes over a connection each.
#[tokio::test]
async fn http_1_0_serves_a_connection_for_each_request() {
    let blob = pattern(100_000);
    for has_length in [true, false] {
        let own = blob.clone();
        let server = Raw::start(move |range, _| {
            let (status, lines, body) = part(&own, range);
            let length = if has_length { format!("Content-Length: {}\r\n", body.len()) } else { String::new() };
            ([format!("HTTP/1.0 {status}\r\n{lines}{length}\r\n").into_bytes(), body].concat(), false)
        })
        .await;
        let client = client();
        for range in [0..100_000, 10..50_000, 99_999..100_000] {
            let expected = &blob[range.start as usize..range.end as usize];
            assert!(server.read(&client, &blob, range.clone()).await.unwrap() == expected, "{range:?}");
        }
        assert_eq!(server.connections.load(SeqCst), 3);
    }
}

/// Claim: a body that ends with the connection, too early, is resumed where it stopped.
#[tokio::test]
async fn a_short_body_without_a_length_is_resumed() {
    let blob = pattern(100_000);
    let own = blob.clone();
    let server = Raw::start(move |range, _| {
        let (status, lines, mut body) = part(&own, range);
        body.truncate(40_000);
        ([format!("HTTP/1.0 {status}\r\n{lines}\r\n").into_bytes(), body].concat(), false)
    })
    .await;
    assert!(server.read(&client(), &blob, 0..100_000).await.unwrap() == blob);
    assert_eq!(server.connections.load(SeqCst), 3);
}

/// Claim: chunked bodies, with odd chunks, extensions and trailers, give the right bytes and leave the connection to the next request; more
/// bytes than the range has are not given out.
#[tokio::test]
async fn chunked_bodies_are_read_to_their_end() {
    let blob = pattern(30_000);
    for surplus in [0, 777] {
        let own = blob.clone();
        let server = Raw::start(move |range, _| {
            let (status, lines, mut body) = part(&own, range);
            body.extend(vec![0; surplus]);
            let mut bytes = format!("HTTP/1.1 {status}\r\n{lines}Transfer-Encoding: chunked\r\n\r\n").into_bytes();
            for chunk in body.chunks(997) {
                bytes.extend(format!("{:x};name=value\r\n", chunk.len()).bytes());
                bytes.extend_from_slice(chunk);
                bytes.extend(b"\r\n");
            }
            bytes.extend(b"0\r\nX-Trailer: 1\r\n\r\n");
            (bytes, true)
        })
        .await;
        let client = client();
        for range in [0..30_000, 10..20_000, 5..6] {
            let expected = &blob[range.start as usize..range.end as usize];
            assert!(server.read(&client, &blob, range.clone()).await.unwrap() == expected, "{range:?}");
        }
        assert_eq!(server.connections.load(SeqCst), 1);
    }
}

/// Claim: every kind of redirect, with an absolute, a relative or a host-less address, leads to the blob, with the range and a GET.
#[tokio::test]
async fn every_kind_of_redirect_is_followed() {
    let blob = pattern(1000);
    for status in [301, 302, 303, 307, 308] {
        for form in ["absolute", "path", "relative", "query", "scheme-less"] {
            let own = blob.clone();
            let server = Server::start(move |seen| {
                if seen.path.contains("store") || seen.query == "store" {
                    return serve_blob(seen, &own);
                }
                let host = seen.header("host").unwrap();
                let location = match form {
                    "absolute" => format!("http://{host}/store/x?sig=1"),
                    "path" => "/store/x?sig=1".to_owned(),
                    "relative" => "store".to_owned(),
                    "query" => "?store".to_owned(),
                    _ => format!("//{host}/store"),
                };
                reply(status, "moved").header("location", location)
            })
            .await;
            assert_eq!(read(&anonymous(), &server, &blob, 10..20).await.unwrap(), blob[10..20], "{status} {form}");
            let seen = server.seen();
            assert_eq!((seen.len(), seen[1].method.as_str(), seen[1].header("range")), (2, "GET", Some("bytes=10-19")), "{status} {form}");
            assert_eq!(seen[1].connection, 0, "the redirect's own body was read");
        }
    }
    for status in [300, 304, 305] {
        let server = Server::start(move |_| reply(status, "").header("location", "/store")).await;
        let error = read(&anonymous(), &server, &blob, 10..20).await.unwrap_err().to_string();
        assert!(error.contains("expected status 200 or 206"), "{status}: {error}");
    }
}

/// Claim: a remembered target that answers anything but the blob (an expired signature is 400 at some stores, a moved object 404) is asked
/// for anew at the registry, once, and the new one is used.
#[tokio::test]
async fn whatever_an_old_target_answers_a_fresh_one_is_asked_for() {
    let blob = pattern(1000);
    for status in [400, 401, 403, 404, 410, 500, 302] {
        let own = blob.clone();
        let generation = Arc::new(AtomicUsize::new(0));
        let valid = Arc::clone(&generation);
        let store = Server::start(move |seen| match seen.query == format!("sig={}", valid.load(SeqCst)) {
            true => serve_blob(seen, &own),
            false => reply(status, "expired").header("location", "/login"),
        })
        .await;
        let (url, newest) = (format!("http://localhost:{}/x", store.port), Arc::clone(&generation));
        let registry = Server::start(move |_| reply(307, "").header("location", format!("{url}?sig={}", newest.load(SeqCst)))).await;
        let client = anonymous();
        for step in 0..4 {
            generation.store(step / 2, SeqCst);
            assert_eq!(read(&client, &registry, &blob, 10..20).await.unwrap(), blob[10..20], "{status}");
        }
        assert_eq!((registry.seen().len(), store.seen().len()), (2, 5), "{status}");
    }
}
