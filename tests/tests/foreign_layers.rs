//! Layers that their registry does not have are read from the URLs of the manifest: by `clip index` and through a mount, in the order that
//! the manifest gives, without credentials; where there is none, the error says which layer and what was tried.
#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use clip_tests::{
    clip::{Clip, text},
    faults::{Fault, Server},
    images::{
        Layout, Member,
        debian::umoci_tree,
        layout::LayerBlob,
        nasty::{noise, prose},
    },
    machine::{Need, lacks},
    oracle::{Exclusions, compare},
    registry::Registry,
    spans::Parts,
    web::{Answer, Head, Web},
};
use serde_json::json;

/// The blob of a foreign layer, and an image that has it below an ordinary layer.
struct Foreign {
    layout: Layout,
    layer: LayerBlob,
    blob: Arc<Vec<u8>>,
}

const GZIP: &str = "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip";
const WINDOWS: &str = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip";

impl Foreign {
    fn new(media_type: &'static str) -> Self {
        let layout = Layout::scratch().unwrap();
        // The root is named: the mount's is compared with umoci's.
        let members = [
            Member::dir("./"),
            // As Windows layers have them; no Linux file system has a place for these.
            Member::dir("Files").record("MSWINDOWS.fileattr", "16").record("MSWINDOWS.rawsd", "AQAEgA=="),
            Member::file("Files/large", prose(5, 3 << 20)),
            Member::file("Files/noise", noise(6, 700_000)),
        ];
        let mut layer = layout.gzip(&members).unwrap();
        layer.media_type = media_type;
        let blob = Arc::new(std::fs::read(layout.blob_path(&layer.blob.digest).unwrap()).unwrap());
        Self { layout, layer, blob }
    }

    /// Tags the image with these URLs, and takes the blob out of the layout.
    fn tag(&self, urls: &[String]) {
        let own = self.layout.gzip(&[Member::file("Files/own", "own")]).unwrap();
        let foreign = LayerBlob { urls: urls.to_vec(), ..self.layer.clone() };
        self.layout.image("foreign", &[foreign, own], json!({})).unwrap();
        let _ = std::fs::remove_file(self.layout.blob_path(&self.layer.blob.digest).unwrap());
    }

    /// A web server that has the blob as `/blob`.
    fn web(&self) -> Web {
        let blob = self.blob.clone();
        Web::start(move |head: &Head| match head.target().split('?').next() {
            Some("/blob") => Answer::Bytes(blob.clone()),
            Some("/moved") => Answer::Redirect("/blob?sig=s3cret".to_owned()),
            Some("/shorter") => Answer::Bytes(Arc::new(blob[..100].to_vec())),
            _ => Answer::Status(404, ""),
        })
        .unwrap()
    }
}

/// Claim: the base of a Windows image and of an OCI one, absent from the registry, is read from its URL, redirects followed: by index,
/// and in parts through the mount; what the mount shows is what umoci unpacks of the same image with the layer in it.
#[test]
fn a_layer_is_read_from_its_url() {
    if lacks(&[Need::Root, Need::Fuse, Need::Tool("umoci")]) {
        return;
    }
    for media_type in [GZIP, WINDOWS] {
        let foreign = Foreign::new(media_type);
        let web = foreign.web();
        foreign.tag(&[format!("http://{}/gone", web.authority()), format!("http://{}/moved?k=s3cret", web.authority())]);
        let server = Server::start(&foreign.layout).unwrap();
        let clip = Clip::new();
        let file = clip.index(&server.reference("windows", "foreign"), "foreign", &[]).unwrap();
        let digest = &foreign.layer.blob.digest;
        assert_eq!(server.seen_of(digest).len(), 1, "the registry is asked first, and once");
        let targets: Vec<String> = web.heads().iter().map(|head| head.target().to_owned()).collect();
        assert_eq!(targets, ["/gone", "/moved?k=s3cret", "/blob?sig=s3cret"]);
        let info = Parts::read(&file).unwrap().storage_info;
        assert_eq!((info.urls_of(0).len(), info.urls_of(1).len()), (2, 0));

        web.forget();
        let mount = clip.mount(&file, &[]).unwrap();
        let large = std::fs::File::open(mount.path("Files/large")).unwrap();
        let mut page = [0; 4096];
        std::os::unix::fs::FileExt::read_exact_at(&large, &mut page, 2 << 20).unwrap();
        assert!(web.heads().iter().any(|head| head.header("range").is_some()), "a part is asked for: {:?}", web.heads());
        // umoci takes no foreign layers: the same bytes under an ordinary type.
        std::fs::write(foreign.layout.blob_path(digest).unwrap(), &*foreign.blob).unwrap();
        let plain = LayerBlob { media_type: "application/vnd.oci.image.layer.v1.tar+gzip", ..foreign.layer.clone() };
        let own = foreign.layout.gzip(&[Member::file("Files/own", "own")]).unwrap();
        foreign.layout.image("whole", &[plain, own], json!({})).unwrap();
        let expected = umoci_tree(&foreign.layout, "whole", &foreign.layout.beside("bundle")).unwrap();
        // The upper layer does not name Files: umoci leaves the time of its last change there.
        compare(&expected, mount.dir(), &Exclusions::default().unnamed(["Files"])).unwrap().assert_same(media_type);
        assert!(!clip.log().contains("s3cret"), "{}", clip.log());
    }
}

/// Claim: skopeo pushes such an image to docker-registry without the layer; it is indexed and mounted from there, and doctor finds it well.
#[test]
fn skopeo_leaves_the_layer_out_and_clip_reads_it() {
    if lacks(&[Need::Root, Need::Fuse, Need::Tool("docker-registry"), Need::Tool("skopeo")]) {
        return;
    }
    let foreign = Foreign::new(GZIP);
    let web = foreign.web();
    foreign.tag(&[format!("http://{}/blob", web.authority())]);
    let registry = Registry::start().unwrap();
    let reference = registry.push(foreign.layout.dir(), "foreign", "team/foreign").unwrap();
    assert_eq!(web.heads(), [], "skopeo does not copy it");
    let clip = Clip::new();
    let file = clip.index(&reference, "foreign", &[]).unwrap();
    let doctor = clip.run(&["doctor", "--json", file.to_str().unwrap()]).unwrap();
    let findings: serde_json::Value = serde_json::from_slice(&doctor.stdout).unwrap();
    let ranged = findings.as_array().unwrap().iter().find(|finding| finding["name"] == "ranged reads").unwrap();
    assert_eq!(ranged["health"], "ok", "doctor asks the registry for a layer that it has: {ranged}");
    let mount = clip.mount(&file, &[]).unwrap();
    assert!(std::fs::read(mount.path("Files/large")).unwrap() == prose(5, 3 << 20));
    assert_eq!(std::fs::read(mount.path("Files/own")).unwrap(), b"own");
    mount.umount().unwrap();
}

/// Claim: a registry that has the layer is read, and its URLs are not; the `.clip` records them all the same.
#[test]
fn a_registry_that_has_it_comes_first() {
    let foreign = Foreign::new(GZIP);
    let web = foreign.web();
    foreign.tag(&[format!("http://{}/blob", web.authority())]);
    std::fs::write(foreign.layout.blob_path(&foreign.layer.blob.digest).unwrap(), &*foreign.blob).unwrap();
    let server = Server::start(&foreign.layout).unwrap();
    let clip = Clip::new();
    let file = clip.index(&server.reference("windows", "foreign"), "foreign", &[]).unwrap();
    assert_eq!(web.heads(), []);
    assert_eq!(Parts::read(&file).unwrap().storage_info.urls_of(0).len(), 1);
    let shown = clip.ok(&["inspect", text(&file).unwrap()]).unwrap().text();
    assert!(shown.contains(&format!("layer 0, where its registry has it not: http://{}/blob", web.authority())), "{shown}");
    // The URL serves once the registry has lost it, and never for a registry that fails.
    let digest = foreign.layer.blob.digest.clone();
    server.script(move |_, seen| if seen.path.ends_with(&digest) { Fault::Status(403) } else { Fault::None });
    let denied = clip.fails(&["cat", text(&file).unwrap(), "Files/noise"]).unwrap();
    assert!(denied.contains("403") && web.heads().is_empty(), "{denied}");
    server.script(|_, seen| if seen.is_blob() { Fault::Status(404) } else { Fault::None });
    let found = clip.ok(&["cat", text(&file).unwrap(), "Files/noise"]).unwrap().stdout;
    assert!(found == noise(6, 700_000) && !web.heads().is_empty());
}

/// Claim: no credentials of the registry are sent to a URL, not even where the URL is the registry's own host, nor after its redirect.
#[test]
fn urls_get_no_credentials() {
    let foreign = Foreign::new(GZIP);
    let (layout, blob) = (foreign.layout.clone(), foreign.blob.clone());
    let registry = Web::start(move |head: &Head| {
        if head.target() == "/outside" {
            return Answer::Bytes(blob.clone());
        }
        if head.header("authorization").is_none() {
            return Answer::Status(401, "WWW-Authenticate: Basic realm=\"clip test\"\r\n");
        }
        let name = head.target().rsplit('/').next().unwrap_or_default();
        let digest = if name.contains(':') { name.to_owned() } else { layout.manifest("foreign").unwrap().0 };
        match std::fs::read(layout.blob_path(&digest).unwrap()) {
            Ok(bytes) => Answer::Bytes(Arc::new(bytes)),
            Err(_) => Answer::Status(404, ""),
        }
    })
    .unwrap();
    foreign.tag(&[format!("http://{}/outside", registry.authority())]);
    let clip = Clip::new();
    // user:pass-word
    let auth = json!({"auths": {registry.authority(): {"auth": "dXNlcjpwYXNzLXdvcmQ="}}});
    std::fs::write(clip.path("config.json"), auth.to_string()).unwrap();
    let file = clip.index(&format!("{}/team/foreign:foreign", registry.authority()), "foreign", &[]).unwrap();
    let found = clip.ok(&["cat", text(&file).unwrap(), "Files/noise"]).unwrap().stdout;
    assert!(found == noise(6, 700_000));
    let (outside, inside): (Vec<Head>, Vec<Head>) = registry.heads().into_iter().partition(|head| head.target() == "/outside");
    assert!(!outside.is_empty() && inside.iter().any(|head| head.header("authorization").is_some()));
    for head in outside {
        assert!(head.header("authorization").is_none() && head.header("cookie").is_none(), "{head:?}");
    }
}

/// Claim: the same from a layout that lacks the layer, as skopeo leaves it; and the mount of such a `.clip`.
#[test]
fn a_layout_without_the_layer_has_its_url() {
    let foreign = Foreign::new(GZIP);
    let web = foreign.web();
    foreign.tag(&[format!("http://{}/blob", web.authority())]);
    let clip = Clip::new();
    let file = clip.index(&foreign.layout.reference("foreign"), "foreign", &[]).unwrap();
    let found = clip.ok(&["cat", text(&file).unwrap(), "Files/large"]).unwrap().stdout;
    assert!(found == prose(5, 3 << 20));
}

/// Claim: a body of a URL that breaks off is gone on with where it stopped, and a server without ranges serves a mount, too.
#[test]
fn broken_bodies_and_servers_without_ranges() {
    let foreign = Foreign::new(GZIP);
    let blob = foreign.blob.clone();
    let web = Web::start(move |head: &Head| match (head.target(), head.header("range")) {
        ("/rangeless", _) => Answer::Whole(blob.clone()),
        (_, None) => Answer::Cut(blob.clone(), 100_000),
        (_, Some(range)) if range.starts_with("bytes=100000-") => Answer::Cut(blob.clone(), 50_000),
        _ => Answer::Bytes(blob.clone()),
    })
    .unwrap();
    let server = Server::start(&foreign.layout).unwrap();
    let clip = Clip::new();
    foreign.tag(&[format!("http://{}/cut", web.authority())]);
    let file = clip.index(&server.reference("windows", "foreign"), "cut", &[]).unwrap();
    let ranges: Vec<_> = web.heads().iter().map(|head| head.header("range").map(str::to_owned)).collect();
    let last = foreign.blob.len() - 1;
    assert_eq!(ranges, [None, Some(format!("bytes=100000-{last}")), Some(format!("bytes=150000-{last}"))]);
    assert!(clip.ok(&["cat", text(&file).unwrap(), "Files/noise"]).unwrap().stdout == noise(6, 700_000));

    std::fs::write(foreign.layout.dir().join("index.json"), r#"{"schemaVersion":2,"manifests":[]}"#).unwrap();
    foreign.tag(&[format!("http://{}/rangeless", web.authority())]);
    let file = clip.index(&server.reference("windows", "foreign"), "rangeless", &[]).unwrap();
    let clip = Clip::new();
    assert!(clip.ok(&["cat", text(&file).unwrap(), "Files/noise"]).unwrap().stdout == noise(6, 700_000));
}

/// What every test of bad URLs waits for a place: a third of the reader's 6 s.
const IMPATIENT: [&str; 2] = ["--read-timeout", "6s"];

/// Claim: a URL that trickles, or breaks off again and again with hardly a byte, is given up after its patience: the next URL brings the rest
/// from where it stopped, to index and to a reader; where there is no other, the error says what the URL did.
#[test]
fn a_url_that_trickles_is_left_for_the_next() {
    let foreign = Foreign::new(GZIP);
    let blob = foreign.blob.clone();
    let web = Web::start(move |head: &Head| match head.target() {
        "/trickle" => Answer::Trickle(blob.clone(), if head.header("range").is_none() { 100_000 } else { 0 }),
        "/crumbs" => Answer::Cut(blob.clone(), 10),
        _ => Answer::Bytes(blob.clone()),
    })
    .unwrap();
    let at = |path: &str| format!("http://{}{path}", web.authority());
    let server = Server::start(&foreign.layout).unwrap();
    // The deadline of a body that stands still and the URL's patience end at about the same time.
    for (bad, words) in [("/trickle", ["stalls", "no progress"]), ("/crumbs", ["body ended", "body ended"])] {
        let clip = Clip::new();
        let index = |urls: &[String], out: &str| {
            std::fs::write(foreign.layout.dir().join("index.json"), r#"{"schemaVersion":2,"manifests":[]}"#).unwrap();
            foreign.tag(urls);
            let begun = Instant::now();
            let (reference, out) = (server.reference("windows", "foreign"), clip.path(out));
            let finished = clip.run(&[&["index", &reference, "-o", text(&out).unwrap()][..], &IMPATIENT].concat()).unwrap();
            assert!(begun.elapsed() < Duration::from_secs(15), "{bad} took {:?}", begun.elapsed());
            (finished.status.success(), finished.stderr)
        };
        let (indexed, said) = index(&[at(bad)], "none.clip");
        assert!(!indexed && words.iter().any(|word| said.contains(word)) && said.contains(bad), "{bad}: {said}");
        let (indexed, said) = index(&[at(bad), at("/blob")], "a.clip");
        assert!(indexed, "{bad}: {said}");
        let from = |head: &Head| head.target() == "/blob" && head.header("range").is_some_and(|range| !range.starts_with("bytes=0-"));
        assert!(web.heads().iter().any(from), "the next URL is asked for the rest: {:?}", web.heads());
        let file = clip.path("a.clip");
        let mount = clip.mount(&file, &IMPATIENT).unwrap();
        assert!(std::fs::read(mount.path("Files/noise")).unwrap() == noise(6, 700_000), "{bad}");
        mount.umount().unwrap();
    }
}

/// Claim: when a URL dies in the middle of a body, the next place brings the rest within the same read, and is asked first from then on.
#[test]
fn a_url_that_dies_is_left_for_the_next() {
    let foreign = Foreign::new(GZIP);
    let (blob, asked) = (foreign.blob.clone(), Arc::new(AtomicUsize::new(0)));
    let web = {
        let asked = asked.clone();
        Web::start(move |head: &Head| match (head.target(), asked.fetch_add(usize::from(head.target() == "/dies"), Ordering::SeqCst)) {
            ("/dies", 0) => Answer::Cut(blob.clone(), 20_000),
            ("/dies", _) => Answer::Status(503, ""),
            _ => Answer::Bytes(blob.clone()),
        })
        .unwrap()
    };
    foreign.tag(&["/dies", "/blob"].map(|path| format!("http://{}{path}", web.authority())));
    let server = Server::start(&foreign.layout).unwrap();
    let clip = Clip::new();
    let file = clip.index(&server.reference("windows", "foreign"), "foreign", &IMPATIENT).unwrap();
    let rest = format!("bytes=20000-{}", foreign.blob.len() - 1);
    assert!(web.heads().iter().any(|head| head.target() == "/blob" && head.header("range") == Some(&rest)), "{:?}", web.heads());
    asked.store(0, Ordering::SeqCst);
    web.forget();
    let mount = clip.mount(&file, &[&IMPATIENT[..], &["--read-ahead", "0"]].concat()).unwrap();
    assert!(std::fs::read(mount.path("Files/noise")).unwrap() == noise(6, 700_000));
    assert!(asked.load(Ordering::SeqCst) > 1, "it died in the middle: {:?}", web.heads());
    asked.store(0, Ordering::SeqCst);
    assert!(std::fs::read(mount.path("Files/large")).unwrap() == prose(5, 3 << 20));
    assert_eq!(asked.load(Ordering::SeqCst), 0, "what worked last is asked first");
    mount.umount().unwrap();
}

/// Claim: where a URL sends wrong bytes and a later one the right ones, index gives the image and every reader its bytes, many at once, too.
#[test]
fn wrong_bytes_of_a_url_are_fetched_from_the_next() {
    let foreign = Foreign::new(GZIP);
    let (right, wrong) = (foreign.blob.clone(), {
        let mut bytes = (*foreign.blob).clone();
        for at in (1000..bytes.len()).step_by(50_000) {
            bytes[at] ^= 0x10;
        }
        Arc::new(bytes)
    });
    let web = Web::start(move |head: &Head| Answer::Bytes(if head.target().starts_with("/wrong") { wrong.clone() } else { right.clone() }))
        .unwrap();
    foreign.tag(&["/wrong1", "/wrong2", "/blob"].map(|path| format!("http://{}{path}", web.authority())));
    let server = Server::start(&foreign.layout).unwrap();
    let clip = Clip::new();
    let file = clip.index(&server.reference("windows", "foreign"), "foreign", &[]).unwrap();
    web.forget();
    let mount = clip.mount(&file, &["--read-ahead", "0"]).unwrap();
    std::thread::scope(|scope| {
        for part in 0..8 {
            let path = mount.path("Files/large");
            scope.spawn(move || {
                let (mut page, at) = ([0; 4096], part * (3 << 20) / 8);
                std::os::unix::fs::FileExt::read_exact_at(&std::fs::File::open(path).unwrap(), &mut page, at as u64).unwrap();
                assert!(page[..] == prose(5, 3 << 20)[at..at + 4096], "{part}");
            });
        }
    });
    assert!(std::fs::read(mount.path("Files/noise")).unwrap() == noise(6, 700_000));
    assert!(web.heads().iter().any(|head| head.target() == "/wrong1"), "the next process asks in order: {:?}", web.heads());
    mount.umount().unwrap();
}

/// Claim: without a URL, with none that helps, and with URLs that are not gone to, the error names the layer and what was tried; it shows
/// no password. What a URL serves is checked like any layer.
#[test]
fn a_layer_that_is_nowhere_is_named() {
    let foreign = Foreign::new(GZIP);
    let web = foreign.web();
    let digest = foreign.layer.blob.digest.clone();
    let at = |path: &str| format!("http://{}{path}", web.authority());
    let server = Server::start(&foreign.layout).unwrap();
    let clip = Clip::new();
    let index = |urls: &[String]| {
        // The last image of a tag would not be the first that is found.
        std::fs::write(foreign.layout.dir().join("index.json"), r#"{"schemaVersion":2,"manifests":[]}"#).unwrap();
        foreign.tag(urls);
        clip.fails(&[
            "index",
            &server.reference("windows", "foreign"),
            "-o",
            text(&clip.path("out.clip")).unwrap(),
            "--quiet",
            "--read-timeout",
            "3s",
        ])
        .unwrap()
    };
    let none = index(&[]);
    assert!(none.contains(&digest) && none.contains("gives no URL") && none.contains("push or copy the image again"), "{none}");
    let gone = index(&[at("/gone?k=s3cret"), at("/shorter"), "http://127.0.0.1:1/blob".to_owned()]);
    assert!(gone.contains(&digest) && gone.contains("/gone: status 404") && gone.contains("cannot connect"), "{gone}");
    assert!(gone.contains("Content-Length") && !gone.contains("check the name"), "{gone}");
    assert!(!gone.contains("s3cret"), "{gone}");
    let refused = index(&["http://user:s3cret@127.0.0.1:1/blob".to_owned(), "file:///etc/passwd".to_owned()]);
    assert!(refused.contains("gives no URL") && !refused.contains("s3cret"), "{refused}");

    let wrong = Web::start({
        let mut bytes = (*foreign.blob).clone();
        *bytes.last_mut().unwrap() ^= 1;
        let bytes = Arc::new(bytes);
        move |_: &Head| Answer::Bytes(bytes.clone())
    })
    .unwrap();
    let flipped = index(&[format!("http://{}/blob", wrong.authority())]);
    assert!(flipped.contains(&digest), "{flipped}");
    assert!(!clip.path("out.clip").exists());
}
