//! What the error of a refusal says: who refused, what was sent to whom, and what to do about it.
#![allow(clippy::unwrap_used)]

mod registry_script;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use clip_engine::registry::{Client, ClientConfig, ForeignBlob, Login, Secret, Typed};
use clip_format::blob_url::BlobUrl;
use registry_script::{mirrors::*, *};

fn with_password(registry: &str) -> Login {
    let typed = Typed::Password { registry: registry.to_owned(), user: "u".into(), password: Secret::new("s3cret") };
    Login { typed, ..Login::anonymous() }
}

fn client(login: Login) -> Client {
    Client::new(ClientConfig { login, tries_max: 1, ..config("/nonexistent".as_ref()) }).unwrap()
}

async fn refusal(client: &Client, server: &Server) -> String {
    let error = client.manifest(&server.reference()).await.unwrap_err().to_string();
    assert!(!error.contains("s3cret"), "{error}");
    error
}

/// Claim: a 403 of the storage that a registry redirects to is told as the storage's, to which no credentials went; one of the registry says
/// whether it had any.
#[tokio::test]
async fn a_refusal_of_the_storage_is_not_the_registrys() {
    let blob = pattern(100);
    for status in [403, 404] {
        let storage = Server::start(move |_| reply(status, "")).await;
        let target = format!("http://127.0.0.1:{}/x?signature=s", storage.port);
        let server = Server::start(move |_| reply(307, "").header("location", &target)).await;
        let error = read(&client(Login::anonymous()), &server, &blob, 0..10).await.unwrap_err().to_string();
        assert!(error.contains("the storage that the registry redirects to") && !error.contains("these credentials"), "{error}");
        assert!(error.contains(&storage.port.to_string()) && !error.contains("signature=s"), "{error}");
    }
    let server = Server::start(|seen| match (seen.path.as_str(), seen.header("authorization")) {
        (_, Some(_)) | ("/v2/", _) => reply(403, ""),
        _ => reply(401, "").header("www-authenticate", "Basic realm=x"),
    })
    .await;
    let error = refusal(&client(with_password(&server.reference().registry)), &server).await;
    assert!(error.contains("these credentials may not read"), "{error}");
    let closed = Server::start(|_| reply(403, "")).await;
    let error = refusal(&client(Login::anonymous()), &closed).await;
    assert!(error.contains("nothing is given without credentials"), "{error}");
}

/// Claim: whatever a token server does wrong is said to be its fault: a status, no answer, an address that is none.
#[tokio::test]
async fn failures_of_a_token_server_name_it() {
    let dead = format!("http://127.0.0.1:{}/token", dead_port());
    let cases: [(&str, &[&str]); 5] = [
        ("http://HOST/404", &["/404: status 404", "the token server that the registry names"]),
        ("http://HOST/500", &["/500: status 500", "the token server that the registry names"]),
        ("http://HOST/403", &["/403: status 403", "the token server gives nothing without credentials"]),
        (&dead, &["token server: cannot connect", "is it running"]),
        ("foo", &["realm of the registry's WWW-Authenticate", "\"foo\""]),
    ];
    for (realm, words) in cases {
        let realm = realm.to_owned();
        let server = Server::start(move |seen| match seen.path.strip_prefix('/').and_then(|path| path.parse().ok()) {
            Some(status) => reply(status, ""),
            None => reply(401, "")
                .header("www-authenticate", format!("Bearer realm=\"{}\"", realm.replace("HOST", seen.header("host").unwrap()))),
        })
        .await;
        let error = refusal(&client(Login::anonymous()), &server).await;
        assert!(words.iter().all(|word| error.contains(word)), "{words:?}: {error}");
        assert!(!error.contains("check the name, tag or digest"), "{error}");
    }
}

/// Claim: a password typed for the registry of the image does not go to the server that its hosts.toml names, and the refusal says so.
#[tokio::test]
async fn a_password_that_was_not_sent_is_told() {
    let server = Server::start(|_| reply(401, "").header("www-authenticate", "Basic realm=x")).await;
    let settings = Settings::new("h.x", &origin(&server));
    let reference = image("h.x/a/b:t");
    let client = |login| Client::new(ClientConfig { login, ..settings.config() }).unwrap();
    let error = client(with_password("h.x")).manifest(&reference).await.unwrap_err().to_string();
    let said = format!("--creds are of h.x and were not sent to 127.0.0.1:{}", server.port);
    assert!(error.contains("status 401") && error.contains(&said), "{error}");
    assert!(server.seen().iter().all(|seen| seen.header("authorization").is_none()));
    for other in [Login::anonymous(), with_password("o.x")] {
        let error = client(other).manifest(&reference).await.unwrap_err().to_string();
        assert!(!error.contains("--creds"), "{error}");
    }
    let named = refusal(&client(with_password(&server.reference().registry)), &server).await;
    assert!(!named.contains("--creds"), "{named}");
}

/// Claim: URLs that all refuse take as long together as a reader waits for one blob, and the error shows the first and counts the others.
#[tokio::test]
async fn urls_that_all_refuse_take_one_patience() {
    let patience = Duration::from_secs(2);
    let client = Client::new(ClientConfig { patience, ..config("/nonexistent".as_ref()) }).unwrap();
    let urls = (0..16).map(|number| BlobUrl::parse(&format!("http://127.0.0.1:{}/{number}", dead_port())).unwrap()).collect();
    let blob = Arc::new(ForeignBlob::new(None, sha256(b""), 100, urls));
    let begun = Instant::now();
    let error = client.foreign_blob(&blob, 0..100).await.err().unwrap().to_string();
    assert!(begun.elapsed() < patience + Duration::from_millis(500), "{:?}", begun.elapsed());
    assert!(error.contains("cannot connect") && error.contains("/0: ") && error.contains("; and 15 more"), "{error}");
    assert!(!error.contains("/1: "), "{error}");
}
