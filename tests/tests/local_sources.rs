//! Images in files: `oci:`, `oci-archive:` and `docker-archive:` are indexed and read where they lie, moved, or from a registry instead.
#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

use std::{path::Path, process::Command};

use clip_format::header::Header;
use clip_tests::{
    clip::{Clip, text},
    faults::Server,
    images::{
        Layout, Member,
        layout::LayerBlob,
        nasty::{noise, prose},
        sample::{self, Sample},
    },
    machine::{Need, lacks},
    process::run_ok,
};

fn skopeo_copy(from: &str, to: &str) {
    run_ok(Command::new("skopeo").args(["copy", "--quiet", "--insecure-policy", from, to])).unwrap();
}

fn assert_reads(clip: &Clip, file: &Path, sample: &Sample, more: &[&str]) {
    for (path, contents) in &sample.files {
        let found = clip.ok(&[&["cat", text(file).unwrap(), path], more].concat()).unwrap().stdout;
        assert!(found == *contents, "{path}: {} bytes of {}", found.len(), contents.len());
    }
}

/// Each layout is indexed, with and without naming the tag, and read by cat and through a mount.
#[test]
fn every_layout_is_indexed_and_read() {
    if lacks(&[Need::Tool("skopeo")]) {
        return;
    }
    let sample = Sample::new().unwrap();
    let clip = Clip::new();
    let source = sample.layout.reference(sample::TAG);
    let (oci_archive, docker_archive) = (clip.path("image.oci.tar"), clip.path("image.docker.tar"));
    skopeo_copy(&source, &format!("oci-archive:{}:{}", oci_archive.display(), sample::TAG));
    skopeo_copy(&source, &format!("docker-archive:{}:example/sample:1", docker_archive.display()));
    let references = [
        source.clone(),
        format!("oci:{}", sample.layout.dir().display()),
        format!("oci-archive:{}:{}", oci_archive.display(), sample::TAG),
        format!("oci-archive:{}", oci_archive.display()),
        format!("docker-archive:{}:example/sample:1", docker_archive.display()),
        format!("docker-archive:{}", docker_archive.display()),
    ];
    for (number, reference) in references.iter().enumerate() {
        let file = clip.index(reference, &format!("local-{number}"), &[]).unwrap();
        assert_reads(&clip, &file, &sample, &[]);
        if !lacks(&[Need::Root, Need::Fuse]) {
            let mount = clip.mount(&file, &[]).unwrap();
            for (path, contents) in &sample.files {
                assert!(std::fs::read(mount.path(path)).unwrap() == *contents, "{reference}: {path}");
            }
        }
        clip.ok(&["verify", "--remote", text(&file).unwrap()]).unwrap();
    }
    let message = clip.fails(&["index", &format!("{}-not", source), "-o", text(&clip.path("x.clip")).unwrap()]).unwrap();
    assert!(message.contains("sample-not"), "{message}");
}

/// A layout that was moved is an error that names the place; `--source` says where it is now.
#[test]
fn source_says_where_a_moved_layout_is() {
    let sample = Sample::new().unwrap();
    let clip = Clip::new();
    let before = clip.path("before");
    run_ok(Command::new("cp").arg("-r").arg(sample.layout.dir()).arg(&before)).unwrap();
    let file = clip.index(&format!("oci:{}:{}", before.display(), sample::TAG), "moved", &[]).unwrap();
    let after = clip.path("after");
    std::fs::rename(&before, &after).unwrap();
    let message = clip.fails(&["cat", text(&file).unwrap(), sample::SHORT]).unwrap();
    assert!(message.contains(text(&before).unwrap()), "{message}");
    assert_reads(&clip, &file, &sample, &["--source", text(&after).unwrap()]);
    if !lacks(&[Need::Root, Need::Fuse]) {
        let mount = clip.mount(&file, &["--source", text(&after).unwrap()]).unwrap();
        assert_eq!(std::fs::read(mount.path(sample::SHORT)).unwrap(), sample.contents(sample::SHORT));
    }
}

/// `--store-ref`: indexed from files, served by a registry, which must hold every layer; one that does not is refused, and the message
/// names the layer.
#[test]
fn store_ref_reads_from_the_registry_that_has_every_layer() {
    let sample = Sample::new().unwrap();
    let server = Server::start(&sample.layout).unwrap();
    let clip = Clip::new();
    let store = server.reference("stored", sample::TAG);
    let file = clip.index(&sample.layout.reference(sample::TAG), "stored", &["--store-ref", &store]).unwrap();
    server.forget();
    assert_reads(&clip, &file, &sample, &[]);
    assert!(server.seen().iter().any(|seen| seen.is_blob() && seen.path.starts_with("/v2/test/stored/")));

    let other = Sample::compressed(&clip_tests::images::Compression::ZlibRs(1)).unwrap();
    let output = clip.path("refused.clip");
    let reference = other.layout.reference(sample::TAG);
    let message = clip.fails(&["index", &reference, "--store-ref", &store, "-o", text(&output).unwrap(), "--quiet"]).unwrap();
    assert!(other.layout.layer_digests(sample::TAG).unwrap().iter().any(|digest| message.contains(digest.as_str())), "{message}");
    assert!(!output.exists());
}

/// Claim: a config whose diff_id is not its layer's is refused with both digests named; with `--skip-diff-id-check` it is taken as it is, and
/// every section but the storage info is that of the right image.
#[test]
fn a_wrong_diff_id_is_refused_unless_the_check_is_left_out() {
    let clip = Clip::new();
    let layout = Layout::create(&clip.path("layout")).unwrap();
    let files = [Member::dir("etc"), Member::file("etc/prose", prose(5, 5 << 20)), Member::file("etc/noise", noise(6, 1 << 20))];
    let right = layout.gzip(&files).unwrap();
    let wrong = LayerBlob { diff_id: format!("sha256:{}", "7".repeat(64)), ..right.clone() };
    layout.image("right", std::slice::from_ref(&right), serde_json::json!({})).unwrap();
    layout.image("wrong", std::slice::from_ref(&wrong), serde_json::json!({})).unwrap();
    let message = clip.fails(&["index", &layout.reference("wrong"), "-o", text(&clip.path("wrong.clip")).unwrap()]).unwrap();
    assert!(message.contains("diff_id") && message.contains(&right.diff_id) && message.contains(&wrong.diff_id), "{message}");
    assert!(!clip.path("wrong.clip").exists());
    let sections = [("right", [].as_slice()), ("wrong", &["--skip-diff-id-check"])].map(|(tag, more)| {
        let bytes = std::fs::read(clip.index(&layout.reference(tag), tag, more).unwrap()).unwrap();
        let header = Header::from_bytes(&bytes).unwrap();
        [header.index.blake3, header.checkpoints.blake3, header.windows.blake3]
    });
    assert_eq!(sections[0], sections[1]);
    let shown = clip.ok(&["inspect", "--json", text(&clip.path("wrong.clip")).unwrap()]).unwrap().text();
    assert!(shown.contains(&wrong.diff_id), "{shown}");
    let trusted = clip.index(&layout.reference("right"), "trusted", &["--skip-diff-id-check"]).unwrap();
    assert!(std::fs::read(trusted).unwrap() == std::fs::read(clip.path("right.clip")).unwrap(), "the check decides no byte");
}

/// Claim: when an image's name has gone to another, the name gives the new one, never the one that lost it; under one name for both, or
/// under none, neither is taken and both are listed, to be named by digest.
#[test]
fn an_entry_of_another_name_is_never_taken() {
    let clip = Clip::new();
    let layout = Layout::scratch().unwrap();
    let image = |tag: &str, name: &str| {
        let layer = layout.gzip(&[Member::file(name, b"x")]).unwrap();
        layout.image(tag, &[layer], serde_json::json!({})).unwrap()
    };
    let (first, second, third) = (image("other", "first"), image("latest", "second"), image("latest", "third"));
    let listed = |reference: &str, name: &str| {
        let file = clip.index(reference, name, &[]).unwrap();
        String::from_utf8(clip.ok(&["ls", text(&file).unwrap()]).unwrap().stdout).unwrap()
    };
    assert!(listed(&layout.reference("other"), "a").contains("first"));
    assert!(listed(&layout.reference(&third.digest), "b").contains("third"));
    let refused = clip.index(&layout.reference("latest"), "c", &[]).unwrap_err().to_string();
    assert!(refused.contains(&second.digest) && refused.contains(&third.digest) && !refused.contains(&first.digest), "{refused}");
}
