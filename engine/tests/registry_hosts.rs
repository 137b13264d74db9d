//! Mirrors and settings of containerd's `hosts.toml`: who is asked, in which order, with what, and what happens when one fails.
#![allow(clippy::unwrap_used)]

mod registry_script;

use std::{
    path::Path,
    time::{Duration, Instant},
};

use clip_engine::{
    EngineError, ErrorKind,
    registry::{Client, ClientConfig, Login, PlainHttp},
};
use clip_format::digest::Digest;
use registry_script::{mirrors::*, *};

/// Claim: behind a mirror that refuses connections the next host serves manifests and blobs, is told for whom it is asked, and the dead one
/// is not asked again.
#[tokio::test]
async fn the_next_host_serves_behind_a_dead_mirror() {
    let blob = pattern(5000);
    let (second, origin_server) = (registry(&blob).await, registry(&blob).await);
    let dead = format!("[host.\"http://127.0.0.1:{}\"]\n", dead_port());
    let settings = Settings::new("h.x", &format!("{}{dead}{}", origin(&origin_server), mirror(&second)));
    let client = settings.client();
    let reference = image("h.x/a/b:t");
    let manifest = client.manifest(&reference).await.unwrap();
    client.manifest(&reference.at_digest(manifest.digest)).await.unwrap();
    client.ping(&reference).await.unwrap();
    for start in [0, 100, 200] {
        assert_eq!(read_of(&client, &reference, &blob, start..start + 10).await.unwrap(), blob[start as usize..start as usize + 10]);
    }
    let seen = second.seen();
    assert_eq!(seen.len(), 6);
    assert!(seen.iter().all(|seen| seen.query == "ns=h.x"), "{seen:?}");
    assert_eq!((seen[0].path.as_str(), seen[2].path.as_str()), ("/v2/a/b/manifests/t", "/v2/"));
    assert!(origin_server.seen().is_empty());
    assert_eq!(client.hosts(&reference).unwrap().len(), 3);
}

/// Claim: a mirror that takes connections and never answers costs its wait once, half of the first-byte deadline, and requests that come
/// meanwhile do not queue behind it. The figures are the source of `DEAD_MIN`.
#[tokio::test]
async fn a_mirror_that_hangs_costs_one_wait() {
    let blob = pattern(5000);
    let hung = Server::start(|_| reply(200, "").then(Then::Silence)).await;
    let origin_server = registry(&blob).await;
    let settings = Settings::new("h.x", &format!("{}{}", origin(&origin_server), mirror(&hung)));
    let client = Client::new(ClientConfig { first_byte_timeout: Duration::from_millis(800), ..settings.config() }).unwrap();
    let reference = image("h.x/a/b");
    let begun = Instant::now();
    read_of(&client, &reference, &blob, 0..10).await.unwrap();
    let first = begun.elapsed();
    assert!(first >= Duration::from_millis(400) && first < Duration::from_millis(750), "{first:?}");
    let begun = Instant::now();
    for _ in 0..20 {
        read_of(&client, &reference, &blob, 10..20).await.unwrap();
    }
    let later = begun.elapsed() / 20;
    println!("first request {first:?}, each later one {later:?}");
    assert!(later < Duration::from_millis(20), "{later:?}");
    assert_eq!(hung.seen().len(), 1);
}

/// Claim: a host without the blob, one that refuses, one that is broken and one that lies about the range are passed over, for this blob
/// only; whoever has it is asked at once the next time.
#[tokio::test]
async fn a_host_that_lacks_a_blob_is_passed_over_for_it() {
    let blob = pattern(5000);
    let missing = sha256(&blob).to_string();
    let own = blob.clone();
    for status in [404, 401, 403, 416, 501, 206] {
        let (own, missing) = (own.clone(), missing.clone());
        let poor = Server::start(move |seen| match (seen.path.ends_with(&missing), status) {
            (true, 206) => reply(206, "0123456789").header("content-range", "bytes 5-14/5000"),
            (true, _) => reply(status, "").header("www-authenticate", "Basic realm=x"),
            (false, _) => answer(seen, &own),
        })
        .await;
        let rich = registry(&blob).await;
        let settings = Settings::new("h.x", &format!("{}{}", origin(&rich), mirror(&poor)));
        let client = settings.client();
        let reference = image("h.x/a/b:t");
        client.manifest(&reference).await.unwrap();
        for _ in 0..3 {
            assert_eq!(read_of(&client, &reference, &blob, 20..30).await.unwrap(), blob[20..30], "{status}");
        }
        let blobs = |server: &Server| server.seen().iter().filter(|seen| seen.path.contains("/blobs/")).count();
        assert_eq!((blobs(&poor), blobs(&rich)), (1, 3), "{status}");
        assert_eq!(poor.seen().len(), 2, "{status}: it still serves manifests");
    }
}

/// Claim: statuses that may pass send a request on at once, without a wait and without holding them against the host.
#[tokio::test]
async fn a_busy_host_is_asked_again_the_next_time() {
    let blob = pattern(5000);
    for status in [429, 500, 503] {
        let busy = Server::start(move |_| reply(status, "").header("retry-after", "20")).await;
        let rich = registry(&blob).await;
        let settings = Settings::new("h.x", &format!("{}{}", origin(&rich), mirror(&busy)));
        let (client, begun) = (settings.client(), Instant::now());
        for _ in 0..2 {
            read_of(&client, &image("h.x/a/b"), &blob, 20..30).await.unwrap();
        }
        assert!(begun.elapsed() < Duration::from_secs(2), "{status}");
        assert_eq!((busy.seen().len(), rich.seen().len()), (2, 2), "{status}");
    }
}

/// Claim: what a mirror serves under a digest is believed only when it hashes to it; otherwise the next host is asked.
#[tokio::test]
async fn wrong_bytes_of_a_mirror_are_never_given() {
    let liar = Server::start(|seen| {
        let body = if seen.path.contains("/blobs/") { "other" } else { r#"{"mediaType":"application/vnd.oci.image.manifest.v1+json"}"# };
        reply(200, body).header("content-type", "application/vnd.oci.image.manifest.v1+json")
    })
    .await;
    let honest = registry(b"right").await;
    let settings = Settings::new("h.x", &format!("{}{}", origin(&honest), mirror(&liar)));
    let client = settings.client();
    let reference = image("h.x/a/b:t");
    for _ in 0..2 {
        let manifest = client.manifest(&reference.at_digest(sha256(MANIFEST.as_bytes()))).await.unwrap();
        assert_eq!(manifest.bytes, MANIFEST);
        assert_eq!(client.blob_bytes(&reference, &sha256(b"right"), 100).await.unwrap(), "right".as_bytes());
    }
    assert_eq!((liar.seen().len(), honest.seen().len()), (2, 4));
    let error = client.blob_bytes(&reference, &sha256(b"neither"), 100).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    assert!(matches!(error, EngineError::EveryHost { .. }), "{error}");
}

/// Claim: a host that may only pull is not asked what a tag names, but for everything that has a digest.
#[tokio::test]
async fn tags_are_resolved_by_hosts_that_may() {
    let blob = pattern(100);
    let (puller, origin_server) = (registry(&blob).await, registry(&blob).await);
    let text = format!("{}{}capabilities = [\"pull\"]\n", origin(&origin_server), mirror(&puller));
    let settings = Settings::new("h.x", &text);
    let client = settings.client();
    let manifest = client.manifest(&image("h.x/a/b:t")).await.unwrap();
    client.manifest(&image("h.x/a/b:t").at_digest(manifest.digest)).await.unwrap();
    read_of(&client, &image("h.x/a/b"), &blob, 0..100).await.unwrap();
    assert_eq!((puller.seen().len(), origin_server.seen().len()), (2, 1));
    let only = Settings::new("h.x", &format!("server = \"{}\"\ncapabilities = [\"pull\"]\n", puller.url("")));
    let error = only.client().manifest(&image("h.x/a/b:t")).await.unwrap_err().to_string();
    assert!(error.contains("hosts of h.x") && error.contains("resolve") && error.contains("digest"), "{error}");
}

/// Claim: when nobody has it the error says what each host said, and is of the registry's own kind.
#[tokio::test]
async fn an_error_names_every_host() {
    let (mirror_server, origin_server) = (Server::start(|_| reply(404, "")).await, Server::start(|_| reply(403, "")).await);
    let dead = dead_port();
    let text = format!("{}{}[host.\"http://127.0.0.1:{dead}\"]", origin(&origin_server), mirror(&mirror_server));
    let settings = Settings::new("h.x", &text);
    let error = settings.client().manifest(&image("h.x/a/b:t")).await.unwrap_err();
    let text = error.to_string();
    let parts = [format!(":{}/v2/a/b/manifests/t: status 403", origin_server.port), format!(":{}", mirror_server.port), format!(":{dead}")];
    assert!(parts.iter().all(|part| text.contains(part)), "{text}");
    assert_eq!(error.kind(), ErrorKind::Denied);
}

/// Claim: each host gets its own credentials and headers, and what it redirects to gets neither, nor the namespace.
#[tokio::test]
async fn credentials_and_headers_stay_with_their_host() {
    let blob = pattern(1000);
    let own = blob.clone();
    let store = Server::start(move |seen| serve_blob(seen, &own)).await;
    let target = format!("http://localhost:{}/store?signature=s3cret", store.port);
    let wants = |target: Option<String>| {
        move |seen: &Seen| match (seen.header("authorization"), &target) {
            (None, _) => reply(401, "").header("www-authenticate", "Basic realm=x"),
            (Some(_), Some(target)) => reply(307, "").header("location", target),
            (Some(_), None) => reply(503, ""),
        }
    };
    let (first, second) = (Server::start(wants(None)).await, Server::start(wants(Some(target))).await);
    let docker = tempfile::tempdir().unwrap();
    // u:first, u:second and u:hub in base64.
    let auths = format!(
        r#"{{"auths":{{"127.0.0.1:{}":{{"auth":"dTpmaXJzdA=="}},"127.0.0.1:{}":{{"auth":"dTpzZWNvbmQ="}},"h.x":{{"auth":"dTpodWI="}}}}}}"#,
        first.port, second.port
    );
    std::fs::write(docker.path().join("config.json"), auths).unwrap();
    let header = |server: &Server| format!("{}[host.\"{}\".header]\nx-own = \"of {}\"\n", mirror(server), server.url(""), server.port);
    let settings = Settings::new("h.x", &format!("{}{}", header(&first), header(&second)));
    let client = Client::new(ClientConfig { login: config(docker.path()).login, ..settings.config() }).unwrap();
    assert_eq!(read_of(&client, &image("h.x/a/b"), &blob, 5..25).await.unwrap(), blob[5..25]);
    for (server, credentials) in [(&first, "Basic dTpmaXJzdA=="), (&second, "Basic dTpzZWNvbmQ=")] {
        let seen = server.seen();
        assert_eq!(seen.iter().map(|seen| seen.header("authorization")).collect::<Vec<_>>(), [None, Some(credentials)]);
        assert!(seen.iter().all(|seen| seen.header("x-own") == Some(&format!("of {}", server.port))));
    }
    let seen = store.seen();
    assert_eq!((seen.len(), seen[0].query.as_str()), (1, "signature=s3cret"));
    assert_eq!((seen[0].header("authorization"), seen[0].header("x-own")), (None, None));
}

/// Claim: at a mirror the logins of an image are those of its own mounts: another registry's image that has the same name there gets neither
/// their credentials nor what these were granted.
#[tokio::test]
async fn logins_are_of_the_image_not_of_its_name_at_a_mirror() {
    let server = Server::start(|seen| match seen.header("authorization") {
        None => reply(401, "").header("www-authenticate", "Basic realm=x"),
        Some(_) => answer(seen, b""),
    })
    .await;
    let docker = tempfile::tempdir().unwrap();
    let auths = format!(r#"{{"auths":{{"127.0.0.1:{}":{{"auth":"dTpmaXJzdA=="}}}}}}"#, server.port);
    std::fs::write(docker.path().join("config.json"), auths).unwrap();
    let prefixed = format!("server = \"{}\"\noverride_path = true\n", server.url("/v2/team"));
    let settings = Settings::new("h.x", &prefixed).and("g.x", &origin(&server));
    let client = Client::new(ClientConfig { login: Login::anonymous(), ..settings.config() }).unwrap();
    let mount = client.log_in(&image("h.x/app:t"), login(docker.path()));
    client.manifest(&image("h.x/app:t")).await.unwrap();
    assert_eq!(client.manifest(&image("g.x/team/app:t")).await.unwrap_err().kind(), ErrorKind::Denied);
    let paths: Vec<_> =
        server.seen().into_iter().map(|seen| (seen.path, seen.headers.iter().any(|(name, _)| name == "authorization"))).collect();
    let path = "/v2/team/app/manifests/t".to_owned();
    assert_eq!(paths, [(path.clone(), false), (path.clone(), true), (path, false)]);
    drop(mount);
    assert_eq!(client.manifest(&image("h.x/app:t")).await.unwrap_err().kind(), ErrorKind::Denied);
}

/// Claim: a path in a host's URL comes before `/v2`, or stands alone with override_path.
#[tokio::test]
async fn the_api_is_where_the_url_says() {
    let server = registry(b"x").await;
    for (settings, expected) in [
        (format!("[host.\"{}\"]\n", server.url("/base")), "/base/v2/a/b/manifests/t"),
        (format!("[host.\"{}\"]\n", server.url("/base/v2/")), "/base/v2/a/b/manifests/t"),
        (format!("[host.\"{}\"]\noverride_path = true\n", server.url("/v2/proxy")), "/v2/proxy/a/b/manifests/t"),
        (format!("[host.\"{}\"]\noverride_path = true\n", server.url("")), "/a/b/manifests/t"),
    ] {
        Settings::new("h.x", &settings).client().manifest(&image("h.x/a/b:t")).await.unwrap();
        assert_eq!(server.seen().last().unwrap().path, expected);
    }
}

/// Claim: a body that a mirror breaks off is resumed, at the next host when the mirror brings nothing more.
#[tokio::test]
async fn a_body_that_breaks_off_is_resumed_elsewhere() {
    let blob = pattern(300_000);
    let own = blob.clone();
    let flaky = Server::start(move |seen| {
        let mut reply = serve_blob(seen, &own);
        reply.promised = Some(reply.body.len());
        reply.body.truncate(if seen.number == 0 { 100_000 } else { 0 });
        reply.then(Then::Close)
    })
    .await;
    let good = registry(&blob).await;
    let settings = Settings::new("h.x", &format!("{}{}", origin(&good), mirror(&flaky)));
    let client = Client::new(ClientConfig { tries_max: 4, ..settings.config() }).unwrap();
    assert!(read_of(&client, &image("h.x/a/b"), &blob, 0..300_000).await.unwrap() == blob);
    assert_eq!((flaky.seen().len(), good.seen().len()), (2, 1));
    assert_eq!(good.seen()[0].header("range"), Some("bytes=100000-299999"));
}

/// Claim: `ca` and `skip_verify` are of their host: without them its certificate is refused, and what an unverified host redirects to is
/// verified.
#[tokio::test]
async fn trust_is_of_one_host() {
    let Some(certificates) = Certificates::make() else { return };
    let blob = pattern(100);
    let own = blob.clone();
    let target = Server::start_tls(&certificates, move |seen| serve_blob(seen, &own)).await;
    let elsewhere = format!("https://127.0.0.1:{}/x", target.port);
    let server = Server::start_tls(&certificates, move |seen| match seen.path.contains("/blobs/") {
        true => reply(302, "").header("location", &elsewhere),
        false => answer(seen, b""),
    })
    .await;
    let ca = certificates.ca();
    let at = format!("server = \"https://localhost:{}\"\n", server.port);
    let reference = image("h.x/a/b:t");
    let plain = Settings::new("h.x", &at).client().manifest(&reference).await.unwrap_err().to_string();
    assert!(plain.contains("certificate") && plain.contains("ca in its hosts.toml"), "{plain}");
    let lenient = Settings::new("h.x", &format!("{at}skip_verify = true\n"));
    let client = lenient.client();
    client.manifest(&reference).await.unwrap();
    let error = read_of(&client, &reference, &blob, 0..10).await.unwrap_err().to_string();
    assert!(error.contains("127.0.0.1") && error.contains("certificate"), "{error}");
    let trusting = Settings::new("h.x", &format!("{at}ca = {ca:?}\n"));
    assert_eq!(read_of(&trusting.client(), &reference, &blob, 0..10).await.unwrap(), blob[..10]);
    let other = image(&format!("localhost:{}/a/b:t", server.port));
    let strict = Client::new(ClientConfig { plain_http: PlainHttp::Never, ..trusting.config() }).unwrap();
    strict.manifest(&reference).await.unwrap();
    strict.manifest(&other).await.unwrap_err();
}

/// Claim: without a hosts.toml docker's layout names the authority of the registry itself.
#[tokio::test]
async fn dockers_certificates_are_trusted() {
    let Some(certificates) = Certificates::make() else { return };
    let server = Server::start_tls(&certificates, |seen| answer(seen, b"")).await;
    let reference = server.reference();
    let dir = tempfile::tempdir().unwrap();
    let own = dir.path().join(&reference.registry);
    std::fs::create_dir(&own).unwrap();
    std::fs::copy(certificates.ca(), own.join("ca.crt")).unwrap();
    let base = ClientConfig { plain_http: PlainHttp::Never, tries_max: 1, ..config(Path::new("/nonexistent")) };
    let with = ClientConfig { hosts_dir: Some(dir.path().to_owned()), ..base.clone() };
    Client::new(with).unwrap().manifest(&reference).await.unwrap();
    Client::new(base).unwrap().manifest(&reference).await.unwrap_err();
}

/// Claim: a registry on this machine is spoken to in TLS where an authority is named for it in any way, if it speaks TLS, which is found out
/// once; else in plain HTTP. Without an authority it is asked in plain HTTP, and the error says what to do where that is wrong.
#[tokio::test]
async fn tls_settings_of_a_registry_on_loopback_mean_tls() {
    let Some(certificates) = Certificates::make() else { return };
    let blob = pattern(100);
    let (own, ca) = (blob.clone(), certificates.ca());
    let tls = Server::start_tls(&certificates, move |seen| answer(seen, &own)).await;
    let plain = registry(&blob).await;
    let base = ClientConfig { patience: PATIENCE, ..config(Path::new("/nonexistent")) };
    for server in [&tls, &plain] {
        let registry = server.reference().registry;
        let by_option = ClientConfig { ca_file: Some(ca.clone()), ..base.clone() };
        let texts = [&format!("ca = {ca:?}\n"), "skip_verify = true\n", ""];
        let settings = texts.map(|text| Settings::new(&registry, text));
        std::fs::copy(&ca, settings[2].of(&registry).join("ca.crt")).unwrap();
        let configs = settings.iter().map(Settings::config).chain([by_option]);
        for (number, config) in configs.enumerate() {
            let client = Client::new(config).unwrap();
            client.manifest(&server.reference()).await.unwrap_or_else(|error| panic!("{number}: {error}"));
            assert_eq!(read_of(&client, &server.reference(), &blob, 0..10).await.unwrap(), blob[..10]);
            assert_eq!(client.traffic().connections, 1, "{number}: the handshake that finds out is not counted");
            let shown = client.hosts(&server.reference()).unwrap().remove(0);
            let scheme = if server.port == tls.port { "https" } else { "http" };
            assert_eq!(shown, format!("{scheme}://{registry}/v2"), "{number}");
        }
    }
    let error = Client::new(base.clone()).unwrap().manifest(&tls.reference()).await.unwrap_err().to_string();
    assert!(error.contains("speak TLS") && error.contains("--ca FILE"), "{error}");
    for words in ["Client sent an HTTP request to an HTTPS server.", "<center>The plain HTTP request was sent to HTTPS port</center>"] {
        let go = Server::start(move |_| reply(400, words)).await;
        let error = Client::new(base.clone()).unwrap().manifest(&go.reference()).await.unwrap_err().to_string();
        assert!(error.contains("--ca FILE"), "{error}");
    }
    let dead = format!("localhost:{}/a/b:t", dead_port()).parse().unwrap();
    let error = Client::new(ClientConfig { ca_file: Some(ca), ..base }).unwrap().manifest(&dead).await.unwrap_err().to_string();
    assert!(error.contains("cannot connect"), "{error}");
}

/// Claim: settings that cannot be used end each request to their registry with file and line, and no other's.
#[tokio::test]
async fn settings_that_cannot_be_used_are_an_error_with_their_line() {
    let settings = Settings::new("h.x", "server = \"https://h.x\"\ncapabilities = 5\n");
    let error = settings.client().manifest(&image("h.x/a/b:t")).await.unwrap_err();
    let text = error.to_string();
    assert!(text.contains("h.x/hosts.toml line 2") && text.contains("integer"), "{text}");
    let server = registry(b"").await;
    settings.client().manifest(&server.reference()).await.unwrap();
}

/// Claim: of two hosts the wrong bytes of a layer are told on once, and the blob is then asked for at the other.
#[tokio::test]
async fn a_sender_of_wrong_bytes_is_asked_last() {
    let blob = pattern(1000);
    let (first, second) = (registry(&[0; 1000]).await, registry(&blob).await);
    let settings = Settings::new("h.x", &format!("{}{}", origin(&second), mirror(&first)));
    let client = settings.client();
    let (reference, digest): (_, Digest) = (image("h.x/a/b"), sha256(&blob));
    let mut reader = client.blob(&reference, &digest, 1000, 0..10).await.unwrap();
    assert_eq!(reader.chunk().await.unwrap().unwrap(), [0; 10].as_slice());
    let sender = reader.sender().unwrap();
    assert_eq!(*sender.blob(), digest);
    sender.distrust();
    assert_eq!(read_of(&client, &reference, &blob, 0..10).await.unwrap(), blob[..10]);
    let alone = client.blob(&second.reference(), &digest, 1000, 0..10).await.unwrap();
    assert!(alone.sender().is_none(), "there is nobody else to ask");
}
