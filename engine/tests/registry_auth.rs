//! Tokens as real registries and token servers give, end and refuse them, and whose credentials are tried in which order.
#![allow(clippy::unwrap_used)]

mod registry_script;

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use clip_engine::registry::{Client, ClientConfig, Environment, Login, Secret, Typed};
use registry_script::*;

const MANIFEST: &str = r#"{"mediaType":"application/vnd.oci.image.manifest.v1+json"}"#;

fn challenged(seen: &Seen, rest: &str) -> Reply {
    let realm = format!("http://{}/token", seen.header("host").unwrap());
    reply(401, "").header("www-authenticate", format!("Bearer realm=\"{realm}\",service=\"s\"{rest}"))
}

fn client(login: Login) -> Client {
    Client::new(ClientConfig { login, tries_max: 1, ..config("/nonexistent".as_ref()) }).unwrap()
}

fn with_password(server: &Server, user: &str) -> Login {
    let typed = Typed::Password { registry: format!("localhost:{}", server.port), user: user.into(), password: Secret::new("s3cret") };
    Login { typed, ..Login::anonymous() }
}

fn with_file(dir: &tempfile::TempDir, server: &Server, entry: &str) -> Login {
    let file = dir.path().join("config.json");
    std::fs::write(&file, format!(r#"{{"auths":{{"localhost:{}":{entry}}}}}"#, server.port)).unwrap();
    Login { typed: Typed::AuthFile(file), ..Login::anonymous() }
}

fn paths(server: &Server) -> Vec<String> {
    server.seen().into_iter().map(|seen| format!("{} {}", seen.method, seen.path.rsplit('/').next().unwrap())).collect()
}

/// `Basic USER:s3cret`
fn basic(user: &str) -> String {
    use base64::{Engine as _, engine::general_purpose::STANDARD};
    format!("Basic {}", STANDARD.encode(format!("{user}:s3cret")))
}

/// Claim: requests that are refused at the same time get one token together.
#[tokio::test]
async fn parallel_refusals_ask_for_one_token() {
    let server = Server::start(|seen| match (seen.path.as_str(), seen.header("authorization")) {
        ("/token", _) => reply(200, r#"{"token":"t","expires_in":300}"#),
        (_, Some("Bearer t")) => reply(200, MANIFEST),
        _ => challenged(seen, ""),
    })
    .await;
    let client = client(Login::anonymous());
    let asked: Vec<_> = (0..12)
        .map(|_| {
            let (client, reference) = (client.with_own_pool(), server.reference());
            tokio::spawn(async move { client.manifest(&reference).await })
        })
        .collect();
    for one in asked {
        one.await.unwrap().unwrap();
    }
    assert_eq!(paths(&server).iter().filter(|path| *path == "GET token").count(), 1);
}

/// Claim: a token is used until a quarter of its life is left and then replaced before it is refused; where that fails it is used to its end.
#[tokio::test]
async fn a_token_is_replaced_before_its_end_or_used_to_it() {
    let issued = Arc::new(AtomicUsize::new(0));
    let own = Arc::clone(&issued);
    let server = Server::start(move |seen| match (seen.path.as_str(), seen.header("authorization")) {
        ("/token", _) => match own.fetch_add(1, SeqCst) {
            0 => reply(200, r#"{"token":"t0","expires_in":2}"#),
            1 => reply(503, ""),
            _ => reply(200, r#"{"token":"t2","expires_in":300}"#),
        },
        (_, Some("Bearer t0" | "Bearer t2")) => reply(200, MANIFEST),
        _ => challenged(seen, ""),
    })
    .await;
    let client = client(Login::anonymous());
    let ask = async || client.manifest(&server.reference()).await.unwrap();
    ask().await;
    ask().await;
    assert_eq!(issued.load(SeqCst), 1);
    tokio::time::sleep(Duration::from_millis(1600)).await;
    ask().await;
    assert_eq!(issued.load(SeqCst), 2, "the token server was asked and failed");
    tokio::time::sleep(Duration::from_millis(500)).await;
    ask().await;
    assert_eq!(issued.load(SeqCst), 3);
    let last = server.seen().pop().unwrap();
    assert_eq!(last.header("authorization"), Some("Bearer t2"));
    let refused = server.seen().iter().filter(|seen| seen.path != "/token" && seen.header("authorization").is_none()).count();
    assert_eq!(refused, 1, "no request but the first went without a token");
}

/// Claim: a 403 or 401 that asks for a wider scope gets a token of that scope; one that does not is final.
#[tokio::test]
async fn a_wider_scope_is_asked_for_when_the_registry_names_it() {
    for status in [401, 403] {
        let server = Server::start(move |seen| match (seen.path.as_str(), seen.header("authorization")) {
            ("/token", _) if seen.query.contains("delete") => reply(200, r#"{"token":"wide"}"#),
            ("/token", _) => reply(200, r#"{"token":"narrow"}"#),
            (_, Some("Bearer wide")) => reply(200, MANIFEST),
            (_, Some(_)) => Reply { status, ..challenged(seen, r#",scope="repository:a/b:pull,delete",error="insufficient_scope""#) },
            _ => challenged(seen, r#",scope="repository:a/b:pull""#),
        })
        .await;
        let client = client(Login::anonymous());
        for _ in 0..2 {
            client.manifest(&server.reference()).await.unwrap();
        }
        assert_eq!(paths(&server), ["GET t", "GET token", "GET t", "GET token", "GET t", "GET t"], "{status}");
    }
    let server = Server::start(|seen| match (seen.path.as_str(), seen.header("authorization")) {
        ("/token", _) => reply(200, format!(r#"{{"token":"t{}"}}"#, seen.number)),
        (_, Some(_)) => Reply { status: 403, ..challenged(seen, r#",error="insufficient_scope""#) },
        _ => challenged(seen, ""),
    })
    .await;
    let error = client(Login::anonymous()).manifest(&server.reference()).await.unwrap_err().to_string();
    assert!(error.contains("status 403") && error.contains("may not read"), "{error}");
    assert!(server.seen().len() <= 5, "{:?}", paths(&server));
}

/// Claim: an identity token goes by POST; a server that takes none of these gets it by GET as containerd sends it; refused by both, the
/// error is the first, without the token even where the server repeats it.
#[tokio::test]
async fn identity_tokens_fall_back_to_get() {
    for status in [400, 401, 404, 405] {
        let server = Server::start(move |seen| match (seen.path.as_str(), seen.header("authorization")) {
            ("/token", _) if seen.method == "POST" => reply(status, ""),
            // `:id` in base64
            ("/token", Some("Basic OmlkLXMzY3JldA==")) => reply(200, r#"{"token":"t"}"#),
            (_, Some("Bearer t")) => reply(200, MANIFEST),
            _ => challenged(seen, ""),
        })
        .await;
        let dir = tempfile::tempdir().unwrap();
        client(with_file(&dir, &server, r#"{"identitytoken":"id-s3cret"}"#)).manifest(&server.reference()).await.unwrap();
        assert_eq!(paths(&server), ["GET t", "POST token", "GET token", "GET t"]);
    }
    let server = Server::start(|seen| match seen.path.as_str() {
        "/token" => reply(401, r#"{"details":"no such token: id-s3cret"}"#),
        _ => challenged(seen, ""),
    })
    .await;
    let dir = tempfile::tempdir().unwrap();
    let error = client(with_file(&dir, &server, r#"{"identitytoken":"id-s3cret"}"#)).manifest(&server.reference()).await.unwrap_err();
    let text = format!("{error} {error:?}");
    assert!(text.contains("POST") && text.contains("log in again") && !text.contains("s3cret"), "{text}");
}

/// Claim: a registry token of the file is sent as it is, to Bearer and Basic registries, and no token server is asked.
#[tokio::test]
async fn a_registry_token_is_sent_as_it_is() {
    let server = Server::start(|seen| match seen.header("authorization") {
        Some("Bearer reg") => reply(200, MANIFEST),
        _ => challenged(seen, ""),
    })
    .await;
    let dir = tempfile::tempdir().unwrap();
    let client = client(with_file(&dir, &server, r#"{"registrytoken":"reg"}"#));
    for _ in 0..2 {
        client.manifest(&server.reference()).await.unwrap();
    }
    assert_eq!(paths(&server), ["GET t", "GET t", "GET t"]);
}

/// Claim: a token server may send us on; the password goes only to the server that the registry named.
#[tokio::test]
async fn a_redirected_token_request_takes_the_password_no_further() {
    let other = Server::start(|_| reply(200, r#"{"token":"t"}"#)).await;
    let target = other.url("/elsewhere?x=1");
    let server = Server::start(move |seen| match (seen.path.as_str(), seen.header("authorization")) {
        ("/token", Some(_)) => reply(302, "").header("location", "/token/v2"),
        ("/token/v2", Some(_)) => reply(307, "").header("location", &target),
        (_, Some("Bearer t")) => reply(200, MANIFEST),
        _ => challenged(seen, ""),
    })
    .await;
    client(with_password(&server, "u")).manifest(&server.reference()).await.unwrap();
    assert_eq!(other.seen().len(), 1);
    assert_eq!(other.seen()[0].header("authorization"), None);
}

/// Claim: of several logins the newest that works is used, at a Basic registry and at a token server, and again after a token has ended;
/// who is refused everywhere gets one error after a bounded number of requests.
#[tokio::test]
async fn logins_are_tried_from_the_newest_on() {
    for bearer in [false, true] {
        let server = Server::start(move |seen| {
            let known = seen.header("authorization") == Some(&basic("good"));
            match (seen.path.as_str(), bearer) {
                ("/token", true) if known => reply(200, r#"{"token":"t","expires_in":0}"#),
                ("/token", true) => reply(401, ""),
                (_, true) if seen.header("authorization") == Some("Bearer t") => reply(200, MANIFEST),
                (_, true) => challenged(seen, ""),
                (_, false) if known => reply(200, MANIFEST),
                (_, false) => reply(401, "").header("www-authenticate", "Basic realm=\"r\""),
            }
        })
        .await;
        let client = client(Login::anonymous());
        let reference = server.reference();
        let good = client.log_in(&reference, with_password(&server, "good"));
        let _bad = client.log_in(&reference, with_password(&server, "bad"));
        let _plain = client.log_in(&reference, Login { typed: Typed::Nothing, environment: Environment::default(), ..Login::anonymous() });
        for _ in 0..3 {
            client.manifest(&reference).await.unwrap();
        }
        let tried_bad = server.seen().iter().filter(|seen| seen.header("authorization") == Some(&basic("bad"))).count();
        assert_eq!(tried_bad, 1, "bearer {bearer}: {:?}", paths(&server));
        drop(good);
        let before = server.seen().len();
        let error = client.manifest(&reference).await.unwrap_err();
        assert!(error.to_string().contains("status 401"), "{error}");
        assert!(server.seen().len() <= before + 3, "{:?}", &paths(&server)[before..]);
    }
}

/// Claim: what somebody else logged in is used where it is needed and forgotten when that login goes.
#[tokio::test]
async fn a_dropped_login_takes_its_token_with_it() {
    let server = Server::start(|seen| match (seen.path.as_str(), seen.header("authorization")) {
        ("/token", Some(_)) => reply(200, r#"{"token":"t","expires_in":300}"#),
        ("/token", None) => reply(401, ""),
        (_, Some("Bearer t")) => reply(200, MANIFEST),
        _ => challenged(seen, ""),
    })
    .await;
    let client = client(Login::anonymous());
    let login = client.log_in(&server.reference(), with_password(&server, "u"));
    client.manifest(&server.reference()).await.unwrap();
    drop(login);
    client.manifest(&server.reference()).await.unwrap_err();
}

/// Claim: a registry that shows anybody a part, and names its challenge under `/v2/` only, is asked there by who has credentials; an answer
/// that was true stays, and who has none asks once.
#[tokio::test]
async fn what_is_hidden_from_anybody_is_found_with_credentials() {
    for status in [403, 404] {
        let server = Server::start(move |seen| match (seen.path.as_str(), seen.header("authorization")) {
            ("/v2/", None) => reply(401, "").header("www-authenticate", "Basic realm=\"r\""),
            ("/v2/a/b/manifests/t", Some(sent)) if sent == basic("u") => reply(200, MANIFEST),
            _ => reply(status, ""),
        })
        .await;
        let client = client(with_password(&server, "u"));
        for _ in 0..2 {
            client.manifest(&server.reference()).await.unwrap();
        }
        assert_eq!(paths(&server), ["GET t", "GET ", "GET t", "GET t"]);
        let gone = format!("localhost:{}/a/b:gone", server.port).parse().unwrap();
        assert!(client.manifest(&gone).await.unwrap_err().to_string().contains(&format!("status {status}")));
        assert_eq!(server.seen().len(), 5);
    }
    let open = Server::start(|_| reply(404, "")).await;
    client(Login::anonymous()).manifest(&open.reference()).await.unwrap_err();
    client(with_password(&open, "u")).manifest(&open.reference()).await.unwrap_err();
    assert_eq!(paths(&open), ["GET t", "GET t", "GET "]);
}

/// Claim: a 401 that does not say what it wants is answered by what `/v2/` wants; where that says nothing either, the error says so.
#[tokio::test]
async fn a_challenge_that_is_missing_is_asked_for() {
    for root in ["Basic realm=\"r\"", ""] {
        let server = Server::start(move |seen| match (seen.path.as_str(), seen.header("authorization")) {
            ("/v2/", None) => reply(401, "").header("www-authenticate", root),
            (_, Some(sent)) if sent == basic("u") => reply(200, MANIFEST),
            _ => reply(401, ""),
        })
        .await;
        let client = client(with_password(&server, "u"));
        let asked = client.manifest(&server.reference()).await;
        match root {
            "" => assert!(asked.unwrap_err().to_string().contains("a 401 with a Bearer or Basic challenge")),
            _ => {
                client.manifest(&server.reference()).await.unwrap();
                assert_eq!(paths(&server), ["GET t", "GET ", "GET t", "GET t"]);
            }
        }
    }
}

/// Claim: what `/v2/` wants a token for is not what a repository does: its scope is not asked for.
#[tokio::test]
async fn the_scope_of_the_root_is_not_that_of_a_repository() {
    let server = Server::start(|seen| match (seen.path.as_str(), seen.header("authorization")) {
        ("/token", _) => reply(200, r#"{"token":"t"}"#),
        (_, Some("Bearer t")) => reply(200, MANIFEST),
        ("/v2/", _) => {
            let host = seen.header("host").unwrap();
            reply(401, "").header("www-authenticate", format!("Bearer realm=\"http://{host}/token\",scope=\"registry:catalog:*\""))
        }
        _ => reply(401, ""),
    })
    .await;
    client(Login::anonymous()).manifest(&server.reference()).await.unwrap();
    let asked = server.seen().into_iter().find(|seen| seen.path.starts_with("/token")).unwrap().query;
    assert!(asked.contains("pull") && !asked.contains("catalog"), "{asked}");
}

/// Claim: challenges may come in several headers or in one; Bearer is answered before Basic.
#[tokio::test]
async fn several_challenges_in_one_header_or_many() {
    for together in [true, false] {
        let server = Server::start(move |seen| match (seen.path.as_str(), seen.header("authorization")) {
            ("/token", Some(_)) => reply(200, r#"{"token":"t"}"#),
            (_, Some("Bearer t")) => reply(200, MANIFEST),
            _ => {
                let bearer = format!("Bearer realm=\"http://{}/token\"", seen.header("host").unwrap());
                let basic = "Negotiate, Basic realm=\"a, b\"";
                match together {
                    true => reply(401, "").header("www-authenticate", format!("{basic}, {bearer}")),
                    false => reply(401, "").header("www-authenticate", basic).header("www-authenticate", bearer),
                }
            }
        })
        .await;
        client(with_password(&server, "u")).manifest(&server.reference()).await.unwrap();
        assert_eq!(paths(&server), ["GET t", "GET token", "GET t"]);
    }
}
