//! What the registry client logs, at every level: no password, no token, no signature of an address. One test alone in its process, since
//! it listens to all of the log.
#![allow(clippy::unwrap_used)]

mod registry_script;

use std::sync::Mutex;

use clip_engine::registry::{Client, ClientConfig, Login, Secret, Typed};
use registry_script::*;

static LINES: Mutex<Vec<String>> = Mutex::new(Vec::new());

struct Listener;

impl tracing::Subscriber for Listener {
    fn enabled(&self, _: &tracing::Metadata<'_>) -> bool {
        true
    }

    fn event(&self, event: &tracing::Event<'_>) {
        struct Text(String);
        impl tracing::field::Visit for Text {
            fn record_debug(&mut self, field: &tracing::field::Field, value: &dyn std::fmt::Debug) {
                self.0.push_str(&format!("{field}={value:?} "));
            }
        }
        let mut text = Text(String::new());
        event.record(&mut text);
        LINES.lock().unwrap().push(text.0);
    }

    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }
    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}
    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}
    fn enter(&self, _: &tracing::span::Id) {}
    fn exit(&self, _: &tracing::span::Id) {}
}

/// Claim: tokens, passwords and signed addresses, in use, renewed, redirected, cut off, refused and broken, are in no line of the log and no
/// error.
#[tokio::test]
async fn nothing_secret_is_logged() {
    tracing::subscriber::set_global_default(Listener).unwrap();
    let blob = pattern(100_000);
    let own = blob.clone();
    let store = Server::start(move |seen| match seen.number % 4 {
        0 => serve_blob(seen, &own).promising(60_000).then(Then::Close),
        1 => reply(503, "sig-s3cret"),
        2 => reply(403, "sig-s3cret").header("content-type", "application/xml"),
        _ => serve_blob(seen, &own).then(Then::Close),
    })
    .await;
    let target = store.clone();
    let registry = Server::start(move |seen| match (seen.path.as_str(), seen.header("authorization")) {
        ("/token", _) if seen.number % 3 == 1 => reply(503, ""),
        ("/token", Some(_)) => reply(200, r#"{"token":"token-s3cret","expires_in":0}"#),
        ("/token", None) => reply(401, ""),
        (_, Some("Bearer token-s3cret")) => {
            reply(307, "").header("location", target.url(&format!("/data?X-Signature=sig-s3cret{}", seen.number)))
        }
        _ => {
            let realm = format!("http://{}/token?key=realm-s3cret", seen.header("host").unwrap());
            reply(401, "").header("www-authenticate", format!("Bearer realm=\"{realm}\",service=\"s\""))
        }
    })
    .await;
    let typed =
        Typed::Password { registry: format!("localhost:{}", registry.port), user: "u".into(), password: Secret::new("password-s3cret") };
    let login = Login { typed, ..Login::anonymous() };
    let client = Client::new(ClientConfig { login, ..config("/nonexistent".as_ref()) }).unwrap();
    let mut errors = Vec::new();
    for start in (0..40_000).step_by(10_000) {
        let read = read(&client, &registry, &blob, start..start + 50_000).await;
        errors.extend(read.err().map(|error| format!("{error} {error:?}")));
    }
    for broken in ["http://127.0.0.1:1/x?sig-s3cret", "http://u:s3cret@[bad?s3cret", "ftp://u:s3cret@h/"] {
        let server = Server::start(move |_| reply(302, "").header("location", broken)).await;
        let error = read(&client, &server, &blob, 0..10).await.unwrap_err();
        errors.push(format!("{error} {error:?}"));
    }
    errors.push(format!("{client:?}"));
    let lines = LINES.lock().unwrap();
    assert!(lines.iter().any(|line| line.contains("/token") && line.contains("503")) && lines.iter().any(|line| line.contains("/data")));
    for line in lines.iter().chain(&errors) {
        assert!(!line.contains("s3cret"), "{line}");
    }
    println!("{} lines, {} errors", lines.len(), errors.len());
}
