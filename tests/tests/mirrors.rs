//! Mirrors, certificates and proxies, through `clip index`, `clip mount` and `clip cat`: with containerd's `hosts.toml` and with the
//! variables that name proxies.
#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

use std::path::{Path, PathBuf};

use clip_tests::{
    clip::{Clip, text},
    faults::{Fault, Server},
    images::sample::{self, Sample},
    machine::{Need, lacks},
    proxy::Proxy,
    registry::{Demands, Registry, free_port},
    tls::{HOST, Leaf, Scheme, TlsFront, USER, certificates},
};

const REAL: &[Need] = &[Need::Fuse, Need::Tool("docker-registry"), Need::Tool("skopeo")];
/// A registry that nobody can reach: its name has no address.
const NOWHERE: &str = "registry.invalid";

/// A hosts directory below `clip`'s, in which `registry` has `settings`.
fn hosts_dir(clip: &Clip, registry: &str, settings: &str) -> PathBuf {
    let dir = clip.path("certs.d");
    std::fs::create_dir_all(dir.join(registry)).unwrap();
    std::fs::write(dir.join(registry).join("hosts.toml"), settings).unwrap();
    dir
}

fn host(port: u16) -> String {
    format!("[host.\"http://127.0.0.1:{port}\"]\n")
}

fn assert_files(sample: &Sample, dir: &Path, clip: &Clip) {
    for (path, contents) in &sample.files {
        let found = std::fs::read(dir.join(path)).unwrap_or_else(|error| panic!("{path}: {error}\n{}", clip.log()));
        assert!(found == *contents, "{path}: a wrong byte");
    }
}

/// Indexes `reference`, mounts it with nothing in the cache, and finds every file right.
fn index_and_mount(clip: &Clip, sample: &Sample, reference: &str, more: &[&str]) {
    let file = clip.index(reference, "sample", more).unwrap();
    let mount = clip.mount(&file, more).unwrap();
    assert_files(sample, mount.dir(), clip);
    mount.umount().unwrap();
    clip.wait_for_servers().unwrap();
}

/// Claim: of a mirror pair the first of which is dead, and of a registry that is down itself, an image is indexed and read; the dead mirror
/// is said once and not for each read; doctor names who is asked.
#[test]
fn a_mirror_pair_with_a_dead_first() {
    if lacks(REAL) {
        return;
    }
    let (sample, registry, clip) = (Sample::new().unwrap(), Registry::start().unwrap(), Clip::new());
    registry.push(sample.layout.dir(), sample::TAG, "team/sample").unwrap();
    let settings = format!("{}{}", host(free_port().unwrap()), host(registry.port()));
    let dir = hosts_dir(&clip, NOWHERE, &settings);
    let reference = format!("{NOWHERE}/team/sample:{}", sample::TAG);
    index_and_mount(&clip, &sample, &reference, &["--hosts-dir", text(&dir).unwrap()]);
    let log = clip.log();
    assert_eq!(log.matches("does not answer; the others are asked meanwhile").count(), 1, "{log}");

    let inside = format!("hosts-dir={}", dir.display());
    let mount = clip.mount(&clip.path("sample.clip"), &["-o", &inside]).unwrap();
    assert_files(&sample, mount.dir(), &clip);
    let other = clip.path("other");
    std::fs::create_dir(&other).unwrap();
    let refused = clip.mount(&clip.path("sample.clip"), &["--hosts-dir", text(&other).unwrap()]).err().unwrap().to_string();
    assert!(refused.contains("--hosts-dir is") && refused.contains(text(&dir).unwrap()), "{refused}");
    mount.umount().unwrap();
    let said =
        clip.ok(&["doctor", "--hosts-dir", text(&dir).unwrap(), &reference]).map_or_else(|error| error.to_string(), |done| done.text());
    let expected = format!("{NOWHERE} is asked at http://127.0.0.1:");
    assert!(said.contains(&expected) && said.contains(&format!("then https://{NOWHERE}/v2")), "{said}");
}

/// Claim: a mirror that has the image's manifest but not its blobs sends the reads on to the one that has them, and without either the
/// error names both.
#[test]
fn the_first_mirror_lacks_the_blobs() {
    if lacks(&[Need::Fuse]) {
        return;
    }
    let (sample, clip) = (Sample::new().unwrap(), Clip::new());
    let (poor, mut rich) = (Server::start(&sample.layout).unwrap(), Server::start(&sample.layout).unwrap());
    poor.fault(Fault::Status(404));
    let dir = hosts_dir(&clip, NOWHERE, &format!("server = \"http://127.0.0.1:{}\"\n{}", rich.port(), host(poor.port())));
    let more = ["--hosts-dir", text(&dir).unwrap()];
    let reference = format!("{NOWHERE}/test/sample:{}", sample::TAG);
    index_and_mount(&clip, &sample, &reference, &more);
    let blobs = |server: &Server| server.seen().iter().filter(|seen| seen.is_blob()).count();
    assert!(blobs(&poor) <= 5 && blobs(&rich) >= 5, "{} {}", blobs(&poor), blobs(&rich));
    rich.die();
    let said = clip.fails(&["index", &reference, "-o", text(&clip.path("no.clip")).unwrap(), "--hosts-dir", text(&dir).unwrap()]).unwrap();
    assert!(said.contains(&format!(":{}/", poor.port())) && said.contains(&format!(":{}/", rich.port())), "{said}");
}

/// Claim: a mirror that serves wrong bytes is found out by the index and by reads, before anybody sees one; the next host is asked, and no
/// read fails.
#[test]
fn wrong_bytes_of_a_mirror_reach_nobody() {
    if lacks(&[Need::Fuse]) {
        return;
    }
    let (sample, clip) = (Sample::new().unwrap(), Clip::new());
    let (liar, honest) = (Server::start(&sample.layout).unwrap(), Server::start(&sample.layout).unwrap());
    liar.fault(Fault::WrongBytes);
    let dir = hosts_dir(&clip, NOWHERE, &format!("server = \"http://127.0.0.1:{}\"\n{}", honest.port(), host(liar.port())));
    let reference = format!("{NOWHERE}/test/sample:{}", sample::TAG);
    index_and_mount(&clip, &sample, &reference, &["--hosts-dir", text(&dir).unwrap()]);
    let log = clip.log();
    assert!(log.contains("a host sent wrong bytes of a layer"), "{log}");
    assert!(liar.seen().iter().filter(|seen| seen.is_blob()).count() >= 3, "the liar was asked");
}

/// Claim: plain HTTP goes through HTTP_PROXY in absolute form, with its user, in the index and in the owner, which has the environment of
/// the mount that started it.
#[test]
fn plain_http_through_a_proxy() {
    if lacks(REAL) {
        return;
    }
    let (sample, registry) = (Sample::new().unwrap(), Registry::start().unwrap());
    registry.push(sample.layout.dir(), sample::TAG, "team/sample").unwrap();
    let proxy = Proxy::start(registry.port()).unwrap();
    let clip = Clip::new().with_variable("HTTP_PROXY", proxy.url().replace("//", "//user:s3cret@"));
    index_and_mount(&clip, &sample, &format!("{NOWHERE}/team/sample:{}", sample::TAG), &["--plain-http"]);
    let seen = proxy.seen();
    let expected = format!("GET http://{NOWHERE}/v2/team/sample/");
    assert!(seen.len() >= 5 && seen.iter().all(|line| line.starts_with(&expected)), "{seen:?}");
    assert!(seen.iter().all(|line| line.ends_with("Basic dXNlcjpzM2NyZXQ=")), "{seen:?}");
    assert!(!clip.log().contains("s3cret"), "{}", clip.log());
}

/// Claim: TLS goes through HTTPS_PROXY in tunnels, credentials go to the registry only, and NO_PROXY is heeded.
#[test]
fn tls_through_a_proxy() {
    if lacks(&[Need::Fuse, Need::Tool("openssl")]) {
        return;
    }
    let sample = Sample::new().unwrap();
    let server = Server::start(&sample.layout).unwrap();
    let front = TlsFront::start(&server, Scheme::Basic).unwrap();
    let port = front.authority().rsplit(':').next().unwrap().parse().unwrap();
    let proxy = Proxy::start(port).unwrap();
    let clip = Clip::new().with_variable("https_proxy", proxy.url());
    let auths =
        format!(r#"{{"auths": {{"{}": {{"username": "{USER}", "password": "{}"}}}}}}"#, front.authority(), clip_tests::tls::PASSWORD);
    std::fs::write(clip.path("config.json"), &auths).unwrap();
    let reference = front.reference("sample", sample::TAG);
    let ca = text(front.ca()).unwrap();
    index_and_mount(&clip, &sample, &reference, &["--ca", ca]);
    let seen = proxy.seen();
    let expected = format!("CONNECT {HOST}:{port} HTTP/1.1 ");
    assert!(!seen.is_empty() && seen.iter().all(|line| *line == expected), "{seen:?}");
    assert!(front.authorizations().iter().any(|line| line.contains("/blobs/") && line.contains(" Basic ")));

    let direct = Clip::new().with_variable("HTTPS_PROXY", proxy.url()).with_variable("NO_PROXY", "clip.test");
    let said = direct.fails(&["index", &reference, "-o", text(&direct.path("no.clip")).unwrap(), "--ca", ca]).unwrap();
    assert!(said.contains(HOST) && !said.contains("proxy"), "{said}");
    assert_eq!(proxy.seen().len(), seen.len());
}

/// Claim: docker-registry with TLS, a private authority and client certificates serves an image to whom hosts.toml gives these, by path or
/// with skip_verify; each thing that is missing is said.
#[test]
fn client_certificates_and_unverified_hosts() {
    if lacks(&[REAL, &[Need::Tool("openssl")]].concat()) {
        return;
    }
    let (sample, registry, clip) = (Sample::new().unwrap(), Registry::start().unwrap(), Clip::new());
    registry.push(sample.layout.dir(), sample::TAG, "team/sample").unwrap();
    let keys = certificates(&[Leaf::Server("localhost"), Leaf::Client("node7")]).unwrap();
    let at = |name: &str| keys.path().join(name).display().to_string();
    let demands = Demands { tls: Some(keys.path().to_owned()), client_authority: Some(keys.path().join("ca.pem")), ..Demands::default() };
    let closed = registry.start_beside(&demands).unwrap();
    let reference = format!("{NOWHERE}/team/sample:{}", sample::TAG);
    let server = format!("server = \"https://localhost:{}\"\n", closed.port());
    let (ca, client) =
        (format!("ca = \"{}\"\n", at("ca.pem")), format!("client = [[\"{}\", \"{}\"]]\n", at("client.pem"), at("client.key")));
    let output = clip.path("no.clip");
    let fails = |settings: &[&str]| {
        let dir = hosts_dir(&clip, NOWHERE, &settings.concat());
        clip.fails(&["index", &reference, "-o", text(&output).unwrap(), "--hosts-dir", text(&dir).unwrap()]).unwrap()
    };
    let said = fails(&[&server, &client]);
    assert!(said.contains("certificate") && said.contains("ca in its hosts.toml"), "{said}");
    let said = fails(&[&server, &ca]);
    assert!(said.contains("wants a client certificate that it knows"), "{said}");
    let said = fails(&[&server, "frobnicate = 1\nclient = 5\n"]);
    assert!(said.contains("hosts.toml line 3: expected a path"), "{said}");
    for trust in [&ca[..], "skip_verify = true\n"] {
        let dir = hosts_dir(&clip, NOWHERE, &[&server, trust, &client].concat());
        index_and_mount(&clip, &sample, &reference, &["--hosts-dir", text(&dir).unwrap()]);
        std::fs::remove_dir_all(clip.cache_dir()).unwrap();
    }
    let said = clip.fails(&["index", &reference, "-o", text(&output).unwrap(), "--hosts-dir", "/nonexistent/dir"]).unwrap();
    assert!(said.contains("--hosts-dir /nonexistent/dir: expected a directory"), "{said}");
}

/// Claim: Docker Hub's names are one registry: `clip inspect` shows docker.io and library/, and its settings are found under docker.io.
#[test]
fn docker_hub_under_all_its_names() {
    let (sample, clip) = (Sample::new().unwrap(), Clip::new());
    let server = Server::start(&sample.layout).unwrap();
    let dir = hosts_dir(&clip, "docker.io", &host(server.port()));
    for name in ["sample", "docker.io/sample", "index.docker.io/library/sample", "registry-1.docker.io/sample"] {
        let file = clip.index(&format!("{name}:{}", sample::TAG), "hub", &["--hosts-dir", text(&dir).unwrap()]).unwrap();
        let shown = clip.ok(&["inspect", "--json", text(&file).unwrap()]).unwrap().text();
        assert!(shown.contains("docker.io") && shown.contains("library/sample") && !shown.contains("registry-1"), "{name}: {shown}");
    }
    assert!(server.seen().iter().all(|seen| seen.path.contains("/v2/library/sample/")), "{:?}", server.seen());
}
