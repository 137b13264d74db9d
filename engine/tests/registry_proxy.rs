//! Proxies: which requests go through them, in which form, and what their refusals become.
#![allow(clippy::unwrap_used)]

mod registry_script;

use std::{
    path::Path,
    sync::{Arc, Mutex},
};

use clip_engine::{
    ErrorKind,
    registry::{Client, ClientConfig, PlainHttp, ProxyVariables},
};
use registry_script::*;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

const MANIFEST: &str = r#"{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","layers":[]}"#;

fn manifest(_: &Seen) -> Reply {
    reply(200, MANIFEST).header("content-type", "application/vnd.oci.image.manifest.v1+json")
}

/// A proxy that answers each CONNECT with `answer`, and opens the tunnel to `behind` if that is a 200. It remembers what it was asked.
struct Proxy {
    port: u16,
    heads: Arc<Mutex<Vec<String>>>,
}

impl Proxy {
    async fn start(answer: &'static str, behind: u16, tls: Option<&Certificates>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (port, heads) = (listener.local_addr().unwrap().port(), Arc::<Mutex<Vec<String>>>::default());
        let (seen, tls) = (Arc::clone(&heads), tls.map(Certificates::acceptor));
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (seen, tls) = (Arc::clone(&seen), tls.clone());
                tokio::spawn(async move {
                    match tls {
                        None => tunnel(stream, answer, behind, &seen).await,
                        Some(tls) => {
                            if let Ok(stream) = tls.accept(stream).await {
                                tunnel(stream, answer, behind, &seen).await;
                            }
                        }
                    }
                });
            }
        });
        Self { port, heads }
    }

    fn heads(&self) -> Vec<String> {
        self.heads.lock().unwrap().clone()
    }
}

async fn tunnel(mut stream: impl AsyncRead + AsyncWrite + Unpin, answer: &str, behind: u16, seen: &Mutex<Vec<String>>) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read_u8().await {
            Ok(byte) => head.push(byte),
            Err(_) => return,
        }
    }
    seen.lock().unwrap().push(String::from_utf8(head).unwrap());
    stream.write_all(answer.as_bytes()).await.unwrap();
    if answer.contains(" 200") {
        let mut behind = TcpStream::connect(("127.0.0.1", behind)).await.unwrap();
        let _ = tokio::io::copy_bidirectional(&mut stream, &mut behind).await;
    }
}

const OPEN: &str = "HTTP/1.1 200 Connection established\r\nVia: test\r\n\r\n";

/// For a registry whose name nobody can resolve but the proxy; its certificate is not verified, since no test has one for it.
fn client(variables: ProxyVariables, hosts_toml: Option<&str>) -> (tempfile::TempDir, Client) {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("h.invalid")).unwrap();
    std::fs::write(dir.path().join("h.invalid/hosts.toml"), hosts_toml.unwrap_or("skip_verify = true\n")).unwrap();
    let base = config(Path::new("/nonexistent"));
    let config = ClientConfig { hosts_dir: Some(dir.path().to_owned()), proxies: variables, tries_max: 1, ..base };
    (dir, Client::new(config).unwrap())
}

fn https_proxy(url: String) -> ProxyVariables {
    ProxyVariables { https: Some(url), ..ProxyVariables::default() }
}

/// Claim: TLS goes through a tunnel that the proxy is asked for with its user and password, once for several requests; the registry sees
/// neither.
#[tokio::test]
async fn tls_goes_through_a_tunnel() {
    let Some(certificates) = Certificates::make() else { return };
    let server = Server::start_tls(&certificates, manifest).await;
    let proxy = Proxy::start(OPEN, server.port, None).await;
    let (_dir, client) = client(https_proxy(format!("http://u:p%40ss@127.0.0.1:{}", proxy.port)), None);
    for _ in 0..3 {
        client.manifest(&"h.invalid/a/b:t".parse().unwrap()).await.unwrap();
    }
    let heads = proxy.heads();
    assert_eq!(heads.len(), 1);
    let expected = ["CONNECT h.invalid:443 HTTP/1.1\r\n", "Host: h.invalid:443\r\n", "Proxy-Authorization: Basic dTpwQHNz\r\n"];
    assert!(expected.iter().all(|line| heads[0].contains(line)), "{heads:?}");
    let seen = server.seen();
    assert_eq!(seen.len(), 3);
    assert_eq!((seen[0].path.as_str(), seen[0].header("proxy-authorization")), ("/v2/a/b/manifests/t", None));
}

/// Claim: a proxy may itself speak TLS, verified by the same roots.
#[tokio::test]
async fn a_proxy_may_speak_tls() {
    let Some(certificates) = Certificates::make() else { return };
    let server = Server::start_tls(&certificates, manifest).await;
    let proxy = Proxy::start(OPEN, server.port, Some(&certificates)).await;
    let variables = https_proxy(format!("https://localhost:{}", proxy.port));
    let toml = format!("skip_verify = true\nca = {:?}\n", certificates.ca());
    let (_dir, trusting) = client(variables.clone(), Some(&toml));
    trusting.manifest(&"h.invalid/a/b:t".parse().unwrap()).await.unwrap();
    let (_dir, strict) = client(variables, None);
    let error = strict.manifest(&"h.invalid/a/b:t".parse().unwrap()).await.unwrap_err().to_string();
    assert!(error.contains("proxy https://localhost") && error.contains("certificate"), "{error}");
}

/// Claim: plain requests go to the proxy in absolute form, with its user and password; what NO_PROXY and loopback exempt does not.
#[tokio::test]
async fn plain_requests_go_in_absolute_form() {
    let proxy = Server::start(manifest).await;
    let variables = ProxyVariables {
        http: Some(format!("u:s3cret@127.0.0.1:{}", proxy.port)),
        none_for: Some("*.direct.invalid".to_owned()),
        ..ProxyVariables::default()
    };
    let base = config(Path::new("/nonexistent"));
    let config = ClientConfig { proxies: variables.clone(), plain_http: PlainHttp::Always, tries_max: 1, ..base };
    let client = Client::new(config.clone()).unwrap();
    for _ in 0..2 {
        client.manifest(&"h.invalid:8080/a/b:t".parse().unwrap()).await.unwrap();
    }
    let seen = proxy.seen();
    assert_eq!(seen.iter().map(|seen| seen.connection).collect::<Vec<_>>(), [0, 0]);
    assert_eq!((seen[0].path.as_str(), seen[0].header("host")), ("http://h.invalid:8080/v2/a/b/manifests/t", Some("h.invalid:8080")));
    assert_eq!(seen[0].header("proxy-authorization"), Some("Basic dTpzM2NyZXQ="));
    let error = client.manifest(&"x.direct.invalid/a/b:t".parse().unwrap()).await.unwrap_err().to_string();
    assert!(!error.contains("proxy") && !error.contains("s3cret"), "{error}");
    let direct = Server::start(manifest).await;
    client.manifest(&direct.reference()).await.unwrap();
    assert_eq!((proxy.seen().len(), direct.seen()[0].path.as_str()), (2, "/v2/a/b/manifests/t"));
    assert_eq!(direct.seen()[0].header("proxy-authorization"), None);
}

/// Claim: what a proxy refuses names the proxy, what it said and what to do, and never its password.
#[tokio::test]
async fn a_proxy_that_refuses_is_named() {
    for (answer, expected) in [
        ("HTTP/1.1 407 Proxy Authentication Required\r\n\r\n", "status 407 (Proxy Authentication Required); give its user"),
        ("HTTP/1.0 403 Forbidden\r\n\r\n", "status 403"),
        ("HTTP/1.1 502 Bad Gateway\r\n\r\n", "status 502 (Bad Gateway); it cannot reach the host"),
        ("SSH-2.0-OpenSSH_9.2\r\n\r\n", "does not answer as an HTTP proxy"),
        ("", "opened no tunnel"),
    ] {
        let proxy = Proxy::start(answer, 0, None).await;
        let (_dir, client) = client(https_proxy(format!("http://u:s3cret@127.0.0.1:{}", proxy.port)), None);
        let error = client.manifest(&"h.invalid/a/b:t".parse().unwrap()).await.unwrap_err();
        let text = error.to_string();
        let named = format!("https://h.invalid/v2/a/b/manifests/t: proxy http://127.0.0.1:{}", proxy.port);
        assert!(text.contains(&named) && text.contains(expected) && !text.contains("s3cret"), "{text}");
        assert_eq!(error.kind(), ErrorKind::Unavailable);
    }
    let dead = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let (_dir, client) = client(https_proxy(format!("127.0.0.1:{dead}")), None);
    let error = client.manifest(&"h.invalid/a/b:t".parse().unwrap()).await.unwrap_err().to_string();
    assert!(error.contains("cannot connect to proxy") && error.contains("is it running?"), "{error}");
}

/// Claim: a variable that names no proxy fails the requests that need it, and says which variable.
#[tokio::test]
async fn a_variable_that_names_no_proxy_is_said() {
    let (_dir, client) = client(https_proxy("socks5://u:s3cret@127.0.0.1:1".to_owned()), None);
    let error = client.manifest(&"h.invalid/a/b:t".parse().unwrap()).await.unwrap_err().to_string();
    assert!(error.contains("HTTPS_PROXY: expected http://") && error.contains("socks5") && !error.contains("s3cret"), "{error}");
    let server = Server::start(manifest).await;
    client.manifest(&server.reference()).await.unwrap();
}

/// Claim: a proxy in hosts.toml is used for its host whatever the environment says, on loopback too; behind a dead one the next host serves.
#[tokio::test]
async fn a_hosts_own_proxy() {
    let Some(certificates) = Certificates::make() else { return };
    let (server, other) = (Server::start_tls(&certificates, manifest).await, Server::start(manifest).await);
    let proxy = Proxy::start(OPEN, server.port, None).await;
    let ca = certificates.ca();
    let with = |port: u16| {
        format!(
            "server = \"{}\"\n[host.\"https://localhost:{}\"]\nca = {ca:?}\nproxy = \"http://127.0.0.1:{port}\"\n",
            other.url(""),
            server.port
        )
    };
    let (_dir, through) = client(ProxyVariables { none_for: Some("*".to_owned()), ..ProxyVariables::default() }, Some(&with(proxy.port)));
    through.manifest(&"h.invalid/a/b:t".parse().unwrap()).await.unwrap();
    assert!(proxy.heads()[0].starts_with(&format!("CONNECT localhost:{} ", server.port)));
    assert_eq!((server.seen().len(), server.seen()[0].query.as_str()), (1, "ns=h.invalid"));
    let dead = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let (_dir, behind) = client(ProxyVariables::default(), Some(&with(dead)));
    behind.manifest(&"h.invalid/a/b:t".parse().unwrap()).await.unwrap();
    assert_eq!((server.seen().len(), other.seen().len()), (1, 1));
}
