//! Credentials, tokens, redirects, manifests and TLS: who gets to see what, and what is believed.
#![allow(clippy::unwrap_used)]

mod registry_script;

use std::{
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};

use clip_engine::{
    EngineError, ErrorKind,
    registry::{Client, ClientConfig, PlainHttp, Reference},
};
use clip_format::digest::Digest;
use registry_script::*;
use sha2::Digest as _;

const MANIFEST: &str = r#"{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","layers":[]}"#;

fn manifest_reply() -> Reply {
    reply(200, MANIFEST).header("content-type", "application/vnd.oci.image.manifest.v1+json; charset=utf-8")
}

fn docker_config(text: &str) -> (tempfile::TempDir, Client) {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("config.json"), text).unwrap();
    let client = Client::new(config(dir.path())).unwrap();
    (dir, client)
}

/// A registry that wants a token, and gives them itself under /token: `t0`, `t1` ...; only the newest is accepted.
struct TokenRegistry {
    server: Server,
    issued: Arc<AtomicUsize>,
}

impl TokenRegistry {
    async fn start(expires_in: u64, content: impl Fn(&Seen) -> Reply + Send + Sync + 'static) -> Self {
        let issued = Arc::new(AtomicUsize::new(0));
        let port = Arc::new(Mutex::new(0));
        let (count, own_port) = (Arc::clone(&issued), Arc::clone(&port));
        let server = Server::start(move |seen| {
            if seen.path == "/token" {
                let number = count.fetch_add(1, SeqCst) + 1;
                let name = if number % 2 == 0 { "token" } else { "access_token" };
                return reply(200, format!(r#"{{"{name}":"t{number}","expires_in":{expires_in}}}"#));
            }
            let newest = format!("Bearer t{}", count.load(SeqCst));
            if count.load(SeqCst) == 0 || seen.header("authorization") != Some(&newest) {
                let realm = format!("http://127.0.0.1:{}/token", own_port.lock().unwrap());
                let challenge = format!(r#"Bearer realm="{realm}",service="s v",scope="repository:a/b:pull""#);
                return reply(401, "{}").header("www-authenticate", challenge);
            }
            content(seen)
        })
        .await;
        *port.lock().unwrap() = server.port;
        Self { server, issued }
    }
}

#[tokio::test]
async fn a_token_is_fetched_once_and_used_for_every_request() {
    let registry = TokenRegistry::start(300, |_| manifest_reply()).await;
    let client = anonymous();
    for _ in 0..3 {
        client.manifest(&registry.server.reference()).await.unwrap();
    }
    let reference = registry.server.reference();
    let all = tokio::join!(client.manifest(&reference), client.manifest(&reference));
    assert!(all.0.is_ok() && all.1.is_ok());
    assert_eq!(registry.issued.load(SeqCst), 1);
    let seen = registry.server.seen();
    assert_eq!(seen.len(), 7);
    assert_eq!((seen[1].path.as_str(), seen[1].query.as_str()), ("/token", "scope=repository%3Aa%2Fb%3Apull&service=s%20v"));
    assert_eq!(seen[1].header("authorization"), None);
    client.ping(&registry.server.reference()).await.unwrap();
}

#[tokio::test]
async fn a_refused_token_is_renewed_once_midway_and_an_expired_one_before_it_is_sent() {
    let blob = pattern(1000);
    let own = blob.clone();
    let registry = TokenRegistry::start(300, move |seen| serve_blob(seen, &own)).await;
    let client = anonymous();
    read(&client, &registry.server, &blob, 0..10).await.unwrap();
    registry.issued.fetch_add(1, SeqCst);
    assert_eq!(read(&client, &registry.server, &blob, 10..20).await.unwrap(), blob[10..20]);
    assert_eq!(registry.issued.load(SeqCst), 3);

    let registry = TokenRegistry::start(0, |_| manifest_reply()).await;
    for _ in 0..2 {
        client.manifest(&registry.server.reference()).await.unwrap();
    }
    assert_eq!(registry.server.seen().iter().map(|seen| seen.path.as_str()).filter(|path| *path != "/token").count(), 3, "one 401 only");
}

#[tokio::test]
async fn a_registry_that_refuses_its_own_token_is_asked_twice_and_the_error_says_what_to_do() {
    let port = Arc::new(Mutex::new(0));
    let own = Arc::clone(&port);
    let server = Server::start(move |seen| match seen.path.as_str() {
        "/token" => reply(200, r#"{"token":"s3cret"}"#),
        _ => reply(401, "").header("www-authenticate", format!("Bearer realm=\"http://localhost:{}/token\"", own.lock().unwrap())),
    })
    .await;
    *port.lock().unwrap() = server.port;
    let error = anonymous().manifest(&server.reference()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Denied);
    let text = format!("{error} {error:?}");
    assert!(text.contains("docker login") && !text.contains("s3cret"), "{text}");
    assert_eq!(server.seen().len(), 3);
}

#[tokio::test]
async fn a_dead_token_server_fails_all_who_wait_at_once_and_later_requests_try_again() {
    let dead = Arc::new(AtomicUsize::new(1));
    let own = Arc::clone(&dead);
    let server = Server::start(move |seen| match seen.path.as_str() {
        "/token" if own.load(SeqCst) == 1 => reply(200, "").then(Then::Silence),
        "/token" => reply(200, r#"{"token":"t"}"#),
        _ if seen.header("authorization").is_some() => manifest_reply(),
        _ => reply(401, "").header("www-authenticate", format!("Bearer realm=\"http://{}/token\"", seen.header("host").unwrap())),
    })
    .await;
    let first_byte_timeout = Duration::from_millis(500);
    let client = Client::new(ClientConfig { tries_max: 1, first_byte_timeout, ..config(Path::new("/nonexistent")) }).unwrap();
    let begun = Instant::now();
    let waiting: Vec<_> = (0..8)
        .map(|_| {
            let (client, reference) = (client.clone(), server.reference());
            tokio::spawn(async move { client.manifest(&reference).await })
        })
        .collect();
    for one in waiting {
        assert!(matches!(one.await.unwrap().unwrap_err(), EngineError::Deadline { .. }));
    }
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
    dead.store(0, SeqCst);
    client.manifest(&server.reference()).await.unwrap();
}

#[tokio::test]
async fn basic_credentials_of_dockers_config_are_sent_when_asked_for() {
    let server = Server::start(|seen| match seen.header("authorization") {
        // u:p
        Some("Basic dTpw") => manifest_reply(),
        _ => reply(401, "").header("www-authenticate", "Basic realm=\"r\""),
    })
    .await;
    let (_dir, client) = docker_config(&format!(r#"{{"auths":{{"localhost:{}":{{"auth":"dTpw"}}}}}}"#, server.port));
    for _ in 0..2 {
        client.manifest(&server.reference()).await.unwrap();
    }
    let sent: Vec<_> = server.seen().iter().map(|seen| seen.header("authorization").is_some()).collect();
    assert_eq!(sent, [false, true, true]);

    let (_dir, wrong) = docker_config(&format!(r#"{{"auths":{{"localhost:{}":{{"auth":"dTpx"}}}}}}"#, server.port));
    assert_eq!(wrong.manifest(&server.reference()).await.unwrap_err().kind(), ErrorKind::Denied);
    assert_eq!(anonymous().manifest(&server.reference()).await.unwrap_err().kind(), ErrorKind::Denied);
    let (dir, broken) = docker_config("{");
    let error = broken.manifest(&server.reference()).await.unwrap_err().to_string();
    assert!(error.contains(dir.path().to_str().unwrap()), "{error}");
}

#[tokio::test]
async fn a_redirect_to_another_port_arrives_without_authorization_and_is_remembered() {
    let blob = pattern(1000);
    let own = blob.clone();
    let store = Server::start(move |seen| serve_blob(seen, &own)).await;
    let target = store.url("/data?sig=s3cret");
    let registry = TokenRegistry::start(300, move |_| reply(307, "").header("location", &target)).await;
    let client = anonymous();
    for range in [0..10, 10..20, 20..30] {
        assert_eq!(read(&client, &registry.server, &blob, range.clone()).await.unwrap(), blob[range.start as usize..range.end as usize]);
    }
    for seen in store.seen() {
        assert_eq!((seen.header("authorization"), seen.query.as_str()), (None, "sig=s3cret"));
    }
    assert_eq!(store.seen().len(), 3);
    assert_eq!(registry.server.seen().len(), 3, "401, token, redirect");
}

#[tokio::test]
async fn a_redirect_within_the_registry_keeps_authorization() {
    let blob = pattern(1000);
    let own = blob.clone();
    let registry = TokenRegistry::start(300, move |seen| match seen.path.as_str() {
        "/elsewhere" => serve_blob(seen, &own),
        _ => reply(308, "").header("location", "/elsewhere?x=1"),
    })
    .await;
    assert_eq!(read(&anonymous(), &registry.server, &blob, 0..10).await.unwrap(), blob[..10]);
}

#[tokio::test]
async fn a_token_server_that_falters_is_tried_again_and_one_that_talks_nonsense_is_named() {
    let server = Server::start(|seen| match (seen.path.as_str(), seen.number) {
        ("/token", 1) => reply(503, ""),
        ("/token", _) => reply(200, r#"{"token":"t"}"#),
        _ if seen.header("authorization").is_some() => manifest_reply(),
        _ => reply(401, "").header("www-authenticate", format!("Bearer realm=\"http://{}/token\"", seen.header("host").unwrap())),
    })
    .await;
    anonymous().manifest(&server.reference()).await.unwrap();

    for (body, realm) in [("s3cret", "/token"), (r#"{"token":"s3\ncret"}"#, "/token"), ("{}", "/token"), ("", "://")] {
        let server = Server::start(move |seen| match seen.path.as_str() {
            "/token" => reply(200, body),
            _ => reply(401, "").header("www-authenticate", format!("Bearer realm=\"http://{}{realm}\"", seen.header("host").unwrap())),
        })
        .await;
        let error = anonymous().manifest(&server.reference()).await.unwrap_err().to_string();
        assert!(error.contains("expected") && !error.contains("s3"), "{error}");
    }
    // Credentials are never sent to a token server without TLS that is not on this machine.
    let server = Server::start(|_| reply(401, "").header("www-authenticate", "Bearer realm=\"http://192.0.2.1/token\"")).await;
    let error = anonymous().manifest(&server.reference()).await.unwrap_err().to_string();
    assert!(error.contains("https"), "{error}");
}

#[tokio::test]
async fn a_target_that_has_run_out_makes_us_ask_the_registry_again() {
    let blob = pattern(1000);
    let own = blob.clone();
    // Each signature works twice.
    let store = Server::start(move |seen| match seen.header("range") {
        Some("bytes=20-29") if seen.query == "sig=0" => reply(403, "expired"),
        _ => serve_blob(seen, &own),
    })
    .await;
    let own_store = store.clone();
    let registry = Server::start(move |seen| reply(302, "").header("location", own_store.url(&format!("/data?sig={}", seen.number)))).await;
    let client = anonymous();
    for range in [0..10, 10..20, 20..30] {
        assert_eq!(read(&client, &registry, &blob, range.clone()).await.unwrap(), blob[range.start as usize..range.end as usize]);
    }
    assert_eq!(registry.seen().len(), 2);

    let store = Server::start(|_| reply(403, "<Error>secret</Error>")).await;
    let own_store = store.clone();
    let registry = Server::start(move |_| reply(302, "").header("location", own_store.url("/data?sig=s3cret"))).await;
    let error = read(&client, &registry, &blob, 0..10).await.unwrap_err();
    assert!(matches!(error, EngineError::Status { status: 403, .. }) && !error.to_string().contains("s3cret"), "{error}");
    assert_eq!((registry.seen().len(), store.seen().len()), (2, 2));
}

#[tokio::test]
async fn redirects_end_and_never_leave_tls_silently() {
    let server = Server::start(|seen| reply(302, "").header("location", format!("/loop{}", seen.number))).await;
    let error = read(&anonymous(), &server, b"x", 0..1).await.unwrap_err();
    assert!(error.to_string().contains("at most 5 redirects"), "{error}");
    assert_eq!(server.seen().len(), 6);

    for location in ["http://192.0.2.1/x?sig=s3cret", "ftp://h/x", "http://[", ""] {
        let server = Server::start(move |_| reply(302, "").header("location", location)).await;
        let error = read(&anonymous(), &server, b"x", 0..1).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{location}: {error}");
        assert!(!error.to_string().contains("s3cret"), "{error}");
    }
}

#[tokio::test]
async fn manifests_are_checked_against_their_digest_type_and_limit() {
    let server = Server::start(|seen| match seen.path.rsplit('/').next().unwrap() {
        "plain" => reply(200, MANIFEST).header("content-type", "application/json"),
        "untyped" => reply(200, "{}"),
        "two-faced" => reply(200, MANIFEST).header("content-type", "application/vnd.oci.image.index.v1+json"),
        "long" => reply(200, vec![b' '; (4 << 20) + 1]),
        "html" => reply(200, "<html>"),
        _ => manifest_reply(),
    })
    .await;
    let client = anonymous();
    let named = |name: &str| format!("localhost:{}/a/b{name}", server.port).parse::<Reference>().unwrap();
    let manifest = client.manifest(&named(":t")).await.unwrap();
    assert_eq!((manifest.bytes.as_ref(), manifest.digest), (MANIFEST.as_bytes(), sha256(MANIFEST.as_bytes())));
    assert_eq!(manifest.media_type, "application/vnd.oci.image.manifest.v1+json");
    let accept = server.seen()[0].header("accept").unwrap().to_owned();
    assert_eq!(accept.matches("application/vnd.").count(), 4, "{accept}");
    assert_eq!(client.manifest(&named(":plain")).await.unwrap().media_type, manifest.media_type);
    let sha512 = Digest::Sha512(sha2::Sha512::digest(MANIFEST).into());
    for digest in [manifest.digest, sha512] {
        assert_eq!(client.manifest(&named(&format!(":t@{digest}"))).await.unwrap().digest, digest);
    }
    let other = sha256(b"other");
    for name in [":untyped", ":two-faced", ":long", ":html", &format!("@{other}")] {
        let error = client.manifest(&named(name)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{name}: {error}");
    }
    assert_eq!(client.blob_bytes(&named(":t"), &manifest.digest, 1000).await.unwrap(), MANIFEST);
    assert!(client.blob_bytes(&named(":t"), &manifest.digest, 10).await.is_err());
    assert!(client.blob_bytes(&named(":t"), &other, 1000).await.is_err());
}

#[tokio::test]
async fn tls_is_spoken_with_a_private_ca_and_refused_without() {
    let Some(certificates) = Certificates::make() else { return };
    let server = Server::start_tls(&certificates, |seen| match seen.path.as_str() {
        "/v2/a/b/manifests/plain" => reply(302, "").header("location", "http://localhost:1/x"),
        _ => manifest_reply(),
    })
    .await;
    let base = config(Path::new("/nonexistent"));
    let trusting = ClientConfig { plain_http: PlainHttp::Never, ca_file: Some(certificates.ca()), ..base.clone() };
    let client = Client::new(trusting.clone()).unwrap();
    for _ in 0..2 {
        client.manifest(&server.reference()).await.unwrap();
    }
    assert_eq!(client.traffic().connections, 1);
    let down = format!("localhost:{}/a/b:plain", server.port).parse().unwrap();
    assert_eq!(client.manifest(&down).await.unwrap_err().kind(), ErrorKind::Corrupt);

    let strict = Client::new(ClientConfig { ca_file: None, ..trusting.clone() }).unwrap();
    let error = strict.manifest(&server.reference()).await.unwrap_err();
    assert!(error.to_string().contains("CA") || error.to_string().contains("root certificates"), "{error}");

    // The redirect's own scheme counts: a plain registry on loopback may send us to TLS.
    let port = server.port;
    let plain = Server::start(move |_| reply(307, "").header("location", format!("https://127.0.0.1:{port}/x"))).await;
    let mixed = Client::new(ClientConfig { plain_http: PlainHttp::Loopback, ..trusting }).unwrap();
    mixed.manifest(&plain.reference()).await.unwrap();

    // What Go's server says to a TLS hello.
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        use tokio::io::AsyncWriteExt as _;
        let (mut stream, _) = listener.accept().await.unwrap();
        stream.write_all(b"HTTP/1.0 400 Bad Request\r\n\r\nClient sent something else").await.unwrap();
        tokio::time::sleep(std::time::Duration::from_secs(5)).await;
    });
    let error = client.manifest(&format!("localhost:{port}/a/b").parse().unwrap()).await.unwrap_err().to_string();
    assert!(error.contains("TLS") && error.contains("--plain-http"), "{error}");
    let not_pem = ClientConfig { ca_file: Some("/etc/passwd".into()), ..base };
    assert_eq!(Client::new(not_pem).unwrap_err().kind(), ErrorKind::Corrupt);
}
