//! Images as registries have them: OCI and Docker manifests, image indexes with several platforms, tags and digests.
#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

use std::process::Command;

use clip_tests::{
    clip::{Clip, text},
    faults::Server,
    images::{
        Layout, Member,
        layout::architecture,
        sample::{self, Sample},
    },
    machine::{Need, lacks},
    process::run_ok,
    registry::Registry,
    spans::Parts,
};
use serde_json::{Value, json};

/// An image that skopeo pushed with a Docker schema 2 manifest is indexed and read like its OCI twin, by tag and by digest.
#[test]
fn docker_manifests_are_read_like_oci_ones() {
    if lacks(&[Need::Tool("docker-registry"), Need::Tool("skopeo")]) {
        return;
    }
    let sample = Sample::new().unwrap();
    let registry = Registry::start().unwrap();
    let clip = Clip::new();
    let reference = registry.reference("team/docker", "v2");
    let mut skopeo = Command::new("skopeo");
    skopeo.args(["copy", "--quiet", "--format", "v2s2", "--dest-tls-verify=false", "--insecure-policy"]);
    run_ok(skopeo.arg(sample.layout.reference(sample::TAG)).arg(format!("docker://{reference}"))).unwrap();
    let raw = run_ok(Command::new("skopeo").args(["inspect", "--raw", "--tls-verify=false", &format!("docker://{reference}")])).unwrap();
    let manifest: Value = serde_json::from_slice(&raw.stdout).unwrap();
    assert_eq!(manifest["mediaType"], "application/vnd.docker.distribution.manifest.v2+json");

    let by_tag = clip.index(&reference, "tag", &[]).unwrap();
    let parts = Parts::read(&by_tag).unwrap();
    let layers: Vec<String> = parts.storage_info.layers.iter().map(|layer| layer.digest.to_string()).collect();
    assert_eq!(layers, sample.layout.layer_digests(sample::TAG).unwrap());
    let (name, _) = reference.rsplit_once(':').unwrap();
    let by_digest = clip.index(&format!("{name}@{}", parts.storage_info.manifest_digest), "digest", &[]).unwrap();
    for file in [by_tag, by_digest] {
        let found = clip.ok(&["cat", text(&file).unwrap(), sample::PROSE]).unwrap().stdout;
        assert!(found == sample.contents(sample::PROSE));
    }
}

/// Tags an image index over two one-file images, for this machine's architecture and another.
fn two_platforms(layout: &Layout, other: &str) {
    let mut manifests = Vec::new();
    for platform in [&*architecture(), other] {
        let layer = layout.gzip(&[Member::file("platform", platform)]).unwrap();
        let manifest = layout.image_for(platform, platform, &[layer], json!({})).unwrap();
        manifests.push(json!({
            "mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": manifest.digest, "size": manifest.size,
            "platform": {"os": "linux", "architecture": platform},
        }));
    }
    let index = json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": manifests});
    let blob = layout.blob(&serde_json::to_vec(&index).unwrap()).unwrap();
    let mut top = layout.index().unwrap();
    top["manifests"].as_array_mut().unwrap().push(json!({
        "mediaType": "application/vnd.oci.image.index.v1+json", "digest": blob.digest, "size": blob.size,
        "annotations": {"org.opencontainers.image.ref.name": "multi"},
    }));
    std::fs::write(layout.dir().join("index.json"), serde_json::to_vec(&top).unwrap()).unwrap();
}

/// Of a multi-platform image this machine's is taken, another with `--platform`; one that is not there is an error that lists those that are.
#[test]
fn the_platform_decides_the_manifest() {
    let layout = Layout::scratch().unwrap();
    let other = if architecture() == "arm64" { "amd64" } else { "arm64" };
    two_platforms(&layout, other);
    let server = Server::start(&layout).unwrap();
    let clip = Clip::new();
    for reference in [server.reference("multi", "multi"), layout.reference("multi")] {
        let own = clip.index(&reference, "own", &[]).unwrap();
        assert_eq!(clip.ok(&["cat", text(&own).unwrap(), "platform"]).unwrap().text(), architecture());
        let theirs = clip.index(&reference, "theirs", &["--platform", &format!("linux/{other}")]).unwrap();
        assert_eq!(clip.ok(&["cat", text(&theirs).unwrap(), "platform"]).unwrap().text(), other);
        let output = clip.path("none.clip");
        let message = clip.fails(&["index", &reference, "-o", text(&output).unwrap(), "--platform", "linux/s390x"]).unwrap();
        assert!(message.contains("s390x") && message.contains(other), "{message}");
    }
}

/// A reference that does not exist says so, with the status of the registry.
#[test]
fn a_missing_image_is_named() {
    let sample = Sample::new().unwrap();
    let server = Server::start(&sample.layout).unwrap();
    let clip = Clip::new();
    let reference = server.reference("sample", "no-such-tag");
    let output = clip.path("out.clip");
    let message = clip.fails(&["index", &reference, "-o", text(&output).unwrap(), "--quiet"]).unwrap();
    assert!(message.contains("no-such-tag") && message.contains("404"), "{message}");
    assert!(!output.exists());
}
