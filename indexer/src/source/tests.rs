#![allow(clippy::unwrap_used)]
use super::{
    manifest::{Parsed, parse},
    platform::{normalised, rank},
    *,
};

fn platform(text: &str) -> Platform {
    let mut parts = text.split('/').map(str::to_owned);
    Platform { os: parts.next().unwrap(), architecture: parts.next().unwrap(), variant: parts.next() }
}

/// Older variants run on newer processors, 386 on amd64, never the reverse; spellings are one.
#[test]
fn platforms_match_as_containerd_matches() {
    let better = |wanted: &str, found: &str| rank(&normalised(platform(wanted)), &platform(found));
    assert_eq!(better("linux/amd64", "linux/x86_64"), Some(0));
    assert_eq!(better("linux/arm64/v8", "linux/aarch64"), Some(0));
    assert!(better("linux/arm/v7", "linux/arm/v6") < better("linux/arm/v7", "linux/arm/v5"));
    assert!(better("linux/amd64", "linux/386").is_some());
    assert!(better("linux/amd64/v3", "linux/amd64/v2") < better("linux/amd64/v3", "linux/amd64"));
    for (wanted, found) in [
        ("linux/386", "linux/amd64"),
        ("linux/arm/v6", "linux/arm/v7"),
        ("linux/amd64", "windows/amd64"),
        ("linux/amd64", "unknown/unknown"),
        ("linux/amd64", "linux/amd64/v2"),
    ] {
        assert_eq!(better(wanted, found), None, "{found} on {wanted}");
    }
}

fn document(json: &str) -> Document {
    let bytes = Bytes::from(json.to_owned());
    Document { digest: sha256(&bytes), media_type: String::new(), bytes }
}

/// Schema 1, artifacts and documents that are two things at once are refused by name.
#[test]
fn odd_manifests_are_refused() {
    let refuse = |json: &str| parse(&document(json)).err().unwrap().to_string();
    assert!(refuse(r#"{"schemaVersion":1,"fsLayers":[]}"#).contains("schema 1"));
    let digest = "sha256:0000000000000000000000000000000000000000000000000000000000000000";
    let config = format!(r#"{{"digest":"{digest}","size":1,"mediaType":"application/vnd.cncf.helm.config.v1+json"}}"#);
    assert!(refuse(&format!(r#"{{"schemaVersion":2,"config":{config},"layers":[]}}"#)).contains("helm"));
    assert!(refuse(r#"{"schemaVersion":2,"manifests":[],"layers":[]}"#).contains("both"));
    assert!(refuse("[]").contains("JSON"));
    assert!(refuse(r#"{"schemaVersion":2}"#).contains("without manifests or config"));
    assert!(matches!(parse(&document(r#"{"schemaVersion":2,"manifests":[]}"#)).unwrap(), Parsed::Index(list) if list.is_empty()));
}

/// Media types that cannot be indexed are named together with their layer.
#[test]
fn unknown_layer_types_are_named() {
    let layer =
        |media_type: &str| Descriptor { digest: sha256(b""), size: 0, media_type: media_type.to_owned(), platform: None, ref_name: None };
    assert_eq!(codec_of(&layer("application/vnd.oci.image.layer.v1.tar+gzip")).unwrap(), Codec::Gzip);
    assert_eq!(codec_of(&layer("application/vnd.docker.image.rootfs.diff.tar")).unwrap(), Codec::Plain);
    assert_eq!(codec_of(&layer("application/vnd.oci.image.layer.v1.tar+zstd")).unwrap(), Codec::Zstd);
    for other in ["application/vnd.oci.image.layer.v1.tar+lz4", "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"] {
        let error = codec_of(&layer(other)).unwrap_err();
        assert!(error.to_string().contains(other) && error.to_string().contains("layer sha256:"), "{error}");
    }
}

/// Null and missing fields of a config are empty; a word where a list should be is a list of one.
#[test]
fn configs_may_be_sparse() {
    let config =
        config::ConfigFile::parse(br#"{"config":{"Env":null,"Cmd":"sh","Labels":{"b":"2","a":null}},"history":null}"#, &sha256(b""))
            .unwrap();
    assert_eq!(config.image.cmd, ["sh"]);
    assert_eq!(config.image.labels, [("a".to_owned(), String::new()), ("b".to_owned(), "2".to_owned())]);
    assert!(config.diff_ids.is_empty() && config.image.env.is_empty());
    assert!(config::ConfigFile::parse(b"{", &sha256(b"")).is_err());
}
