#![allow(clippy::unwrap_used)]
use clip_format::storage_info::Codec;

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
    let empty = format!(r#"{{"digest":"{digest}","size":2,"mediaType":"application/vnd.oci.empty.v1+json"}}"#);
    let artifact = r#""artifactType":"application/vnd.dev.sigstore.bundle.v0.3+json""#;
    let found = refuse(&format!(r#"{{"schemaVersion":2,{artifact},"config":{empty},"layers":[]}}"#));
    assert!(
        found.contains("an artifact of type") && found.contains("a sigstore bundle") && found.contains("only container images"),
        "{found}"
    );
    assert!(refuse(r#"{"schemaVersion":2,"manifests":[],"layers":[]}"#).contains("both"));
    assert!(refuse("[]").contains("JSON"));
    assert!(refuse(r#"{"schemaVersion":2}"#).contains("without manifests or config"));
    assert!(matches!(parse(&document(r#"{"schemaVersion":2,"manifests":[]}"#)).unwrap(), Parsed::Index(list) if list.is_empty()));
}

/// Claim: plain, gzip and zstd layers are told apart, and from those that a registry may not have; any other media type is named together
/// with its layer and with what it is or what to do.
#[test]
fn layer_types_are_read_or_named() {
    let layer = |media_type: &str| Descriptor {
        digest: sha256(b""),
        size: 0,
        media_type: media_type.to_owned(),
        platform: None,
        ref_name: None,
        urls: Vec::new(),
    };
    let read = |media_type: &str| layer_type(&layer(media_type)).map(|read| (read.codec, read.is_foreign)).unwrap();
    assert_eq!(read("application/vnd.oci.image.layer.v1.tar+gzip"), (Codec::Gzip, false));
    assert_eq!(read("application/vnd.docker.image.rootfs.diff.tar"), (Codec::Plain, false));
    assert_eq!(read("application/vnd.oci.image.layer.v1.tar+zstd"), (Codec::Zstd, false));
    assert_eq!(read("application/vnd.oci.image.layer.nondistributable.v1.tar+zstd"), (Codec::Zstd, true));
    assert_eq!(read("application/vnd.oci.image.layer.nondistributable.v1.tar"), (Codec::Plain, true));
    assert_eq!(read("application/vnd.oci.image.layer.nondistributable.v1.tar+gzip"), (Codec::Gzip, true));
    assert_eq!(read("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"), (Codec::Gzip, true));
    for (other, told) in [
        ("application/vnd.oci.image.layer.v1.tar+gzip+encrypted", "skopeo copy --decryption-key"),
        ("application/vnd.oci.image.layer.v1.tar+zstd+encrypted", "encrypted"),
        ("application/vnd.oci.image.layer.v1.tar+xz", "compress it again"),
        ("application/vnd.oci.image.layer.v1.tarball", "compress it again"),
        ("application/vnd.dev.cosign.simplesigning.v1+json", "a cosign signature"),
        ("application/vnd.in-toto+json", "an attestation"),
        ("application/vnd.cncf.helm.chart.content.v1.tar+gzip", "a Helm chart"),
        ("application/x-tar", "only the layers of container images"),
        ("", "media type \"\""),
    ] {
        let error = layer_type(&layer(other)).unwrap_err().to_string();
        assert!(error.contains(other) && error.contains("layer sha256:") && error.contains(told), "{error}");
    }
}

/// Claim: of a layer's URLs those that clip goes to are kept, in order and at most 16; the others are one warning that shows no secret.
#[test]
fn urls_are_checked() {
    let descriptor = |urls: &[&str]| {
        let urls = urls.iter().map(|url| (*url).to_owned()).collect();
        Descriptor { digest: sha256(b""), size: 0, media_type: String::new(), platform: None, ref_name: None, urls }
    };
    let mut warnings = Vec::new();
    let mixed = descriptor(&["http://a/1", "http://u:s3cret@b/?k=s3cret", "ftp://c/", "https://d/2"]);
    let Elsewhere::At(urls) = elsewhere(&mixed, false, &mut warnings) else { panic!("there are URLs") };
    assert_eq!(urls.iter().map(BlobUrl::as_str).collect::<Vec<_>>(), ["http://a/1", "https://d/2"]);
    assert!(warnings.len() == 1 && warnings[0].contains("2 of its URLs") && !warnings[0].contains("s3cret"), "{warnings:?}");
    let Elsewhere::At(urls) = elsewhere(&descriptor(&["http://a/"; 20]), true, &mut warnings) else { panic!("there are URLs") };
    assert!(urls.len() == 16 && warnings[1].contains("20 URLs"), "{warnings:?}");
    assert!(matches!(elsewhere(&descriptor(&[]), false, &mut warnings), Elsewhere::Nowhere));
    assert!(matches!(elsewhere(&descriptor(&[]), true, &mut warnings), Elsewhere::At(urls) if urls.is_empty()));
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

/// A layout in memory: documents and configs by digest.
#[derive(Default)]
struct Shelf(std::collections::BTreeMap<String, Bytes>);

impl Shelf {
    fn put(&mut self, json: serde_json::Value) -> Descriptor {
        let bytes = Bytes::from(json.to_string());
        let (digest, size) = (sha256(&bytes), bytes.len() as u64);
        self.0.insert(digest.to_string(), bytes);
        Descriptor { digest, size, media_type: String::new(), platform: None, ref_name: None, urls: Vec::new() }
    }

    /// An image for `architecture` that differs from others by `number`.
    fn image(&mut self, architecture: &str, number: u32) -> Descriptor {
        let config = self.put(serde_json::json!({ "architecture": architecture, "os": "linux", "author": number.to_string() }));
        self.put(serde_json::json!({ "schemaVersion": 2, "config": entry(&config), "layers": [] }))
    }

    /// An index of `manifests`.
    fn index(&mut self, manifests: &[&Descriptor]) -> Descriptor {
        let manifests: Vec<_> = manifests.iter().map(|manifest| entry(manifest)).collect();
        self.put(serde_json::json!({ "schemaVersion": 2, "manifests": manifests }))
    }

    /// As a layout reads: missing and damaged blobs are `Image` errors.
    fn read(&self, descriptor: &Descriptor) -> Result<Bytes, IndexError> {
        let missing = || IndexError::Image {
            what: "shelf".to_owned(),
            expected: format!("blob {} of {} bytes", descriptor.digest, descriptor.size),
            found: "none such".to_owned(),
        };
        let bytes = self.0.get(&descriptor.digest.to_string()).ok_or_else(missing)?;
        checked("blob in shelf", bytes.clone(), &descriptor.digest)
    }

    fn config_of(&self, image: &Descriptor) -> Digest {
        match parse(&self.document(image).unwrap()).unwrap() {
            Parsed::Image(manifest) => manifest.config.digest,
            Parsed::Index(_) => panic!("{} is an index", image.digest),
        }
    }

    fn lose(&mut self, digest: &Digest) {
        self.0.remove(&digest.to_string());
    }

    fn damage(&mut self, digest: &Digest) {
        self.0.insert(digest.to_string(), Bytes::from_static(b"{}"));
    }

    fn choose(&self, candidates: &[&Descriptor], text: &str) -> Result<Chosen, IndexError> {
        manifest::choose_alone(self, candidates, "index.json", &Wanted::new(Some(platform(text))))
    }

    /// The message of a choice that fails.
    fn refusal(&self, candidates: &[&Descriptor], text: &str) -> String {
        self.choose(candidates, text).err().unwrap().to_string()
    }
}

fn entry(descriptor: &Descriptor) -> serde_json::Value {
    let platform = descriptor.platform.as_ref().map(|is| serde_json::json!({ "os": is.os, "architecture": is.architecture }));
    serde_json::json!({ "digest": descriptor.digest.to_string(), "size": descriptor.size, "platform": platform })
}

fn named(text: &str, descriptor: &Descriptor) -> Descriptor {
    Descriptor { platform: Some(platform(text)), ..descriptor.clone() }
}

impl ImageStore for Shelf {
    fn document(&self, descriptor: &Descriptor) -> Result<Document, IndexError> {
        Ok(Document { digest: descriptor.digest, media_type: String::new(), bytes: self.read(descriptor)? })
    }

    fn config(&self, descriptor: &Descriptor) -> Result<Bytes, IndexError> {
        self.read(descriptor)
    }

    fn layer(&self, _: &Descriptor, _: &Elsewhere) -> Result<BlobSource, IndexError> {
        unreachable!("no layer is asked for")
    }
}

/// Claim: of several entries under one name the one for the platform is taken, by its descriptor, its config or the index that it is; where
/// several would do, none is, and all are listed.
#[test]
fn one_name_is_one_image_a_platform() {
    let mut shelf = Shelf::default();
    let (arm, amd, other) = (shelf.image("arm64", 1), shelf.image("amd64", 2), shelf.image("amd64", 3));
    let described = named("linux/arm64", &shelf.image("amd64", 4));
    let index = shelf.index(&[&named("linux/arm64", &arm)]);
    let choose = |candidates: &[&Descriptor], text: &str| shelf.choose(candidates, text);
    for (candidates, text, expected) in [
        (&[&arm, &amd][..], "linux/arm64", &arm),
        (&[&arm, &amd], "linux/amd64", &amd),
        (&[&amd, &described], "linux/arm64", &described),
        (&[&amd, &index], "linux/arm64", &arm),
        (&[&amd, &index, &amd], "linux/amd64", &amd),
    ] {
        assert_eq!(choose(candidates, text).unwrap().digest, expected.digest, "{text}");
    }
    let error = choose(&[&arm, &amd, &other], "linux/amd64").err().unwrap().to_string();
    assert!(error.contains("found 2: ") && error.contains(&other.digest.to_string()) && error.contains("sha256:..."), "{error}");
    assert!(!error.contains(&arm.digest.to_string()), "{error}");
    let error = choose(&[&amd, &index], "linux/s390x").err().unwrap().to_string();
    assert!(error.ends_with("only linux/amd64, linux/arm64"), "{error}");
}

/// Claim: an entry without a platform that could be the image is never passed over because a blob of it is damaged or missing: the error
/// names the blob, whether it is the entry's own, a manifest under it or a config.
#[test]
fn a_damaged_entry_does_not_make_way_for_another() {
    let mut whole = Shelf::default();
    let (ours, other) = (whole.image("amd64", 1), whole.image("amd64", 2));
    let (config, unnamed) = (whole.config_of(&ours), whole.index(&[&ours]));
    let index = whole.index(&[&named("linux/amd64", &ours), &named("linux/arm64", &other)]);
    for (entry, blob) in [
        (&unnamed, ours.digest),
        (&index, index.digest),
        (&index, ours.digest),
        (&unnamed, config),
        (&ours, ours.digest),
        (&ours, config),
        (&unnamed, unnamed.digest),
    ] {
        for harm in [Shelf::lose, Shelf::damage] {
            let mut shelf = Shelf(whole.0.clone());
            harm(&mut shelf, &blob);
            for candidates in [[entry, &other], [&other, entry]] {
                let error = shelf.refusal(&candidates, "linux/amd64");
                assert!(error.contains(&blob.to_string()), "{error}, not {blob}");
            }
        }
    }
}

/// Claim: an index that has nothing for the platform, an artifact and a blob that is no manifest by its media type make way; the platforms
/// of the index are listed where nothing else will do.
#[test]
fn entries_that_cannot_be_meant_make_way() {
    let mut shelf = Shelf::default();
    let (ours, theirs) = (shelf.image("amd64", 1), shelf.image("s390x", 2));
    let index = shelf.index(&[&named("linux/arm64", &theirs), &theirs, &named("unknown/unknown", &theirs)]);
    let config =
        serde_json::json!({ "digest": ours.digest.to_string(), "size": 1, "mediaType": "application/vnd.cncf.helm.config.v1+json" });
    let chart = shelf.put(serde_json::json!({ "schemaVersion": 2, "config": config, "layers": [] }));
    let xml = Descriptor { media_type: "application/xml".to_owned(), ..shelf.put(serde_json::json!("<a/>")) };
    let absent = Descriptor { digest: sha256(b"absent"), ..xml.clone() };
    assert_eq!(shelf.choose(&[&index, &chart, &xml, &absent, &ours], "linux/amd64").unwrap().digest, ours.digest);
    let error = shelf.refusal(&[&index, &chart, &xml], "linux/amd64");
    assert!(error.contains("index.json: ") && error.ends_with("only linux/arm64, linux/s390x"), "{error}");
    assert!(shelf.refusal(&[&chart, &xml], "linux/amd64").ends_with("no platform at all"));
}

/// Claim: where a descriptor names a platform that will do, entries without one are not opened: they may be lost, damaged or too many.
#[test]
fn a_named_platform_needs_no_unnamed_entry() {
    let mut shelf = Shelf::default();
    let ours = named("linux/amd64", &shelf.image("amd64", 1));
    let older = named("linux/386", &shelf.image("386", 2));
    let (lost, damaged) = (shelf.image("amd64", 3), shelf.image("amd64", 4));
    shelf.lose(&lost.digest);
    shelf.damage(&damaged.digest);
    for candidates in [&[&lost, &damaged, &ours, &older][..], &[&older, &ours, &lost], &[&lost, &ours]] {
        assert_eq!(shelf.choose(candidates, "linux/amd64").unwrap().digest, ours.digest);
    }
    assert_eq!(shelf.choose(&[&lost, &older], "linux/amd64").unwrap().digest, older.digest);
    let many: Vec<Descriptor> = (5..).take(manifest::UNNAMED_PLATFORMS_MAX + 1).map(|number| shelf.image("amd64", number)).collect();
    let candidates: Vec<&Descriptor> = many.iter().chain([&ours]).collect();
    assert_eq!(shelf.choose(&candidates, "linux/amd64").unwrap().digest, ours.digest);
    assert!(shelf.refusal(&[&lost, &ours], "linux/s390x").contains(&lost.digest.to_string()));
}

/// Claim: 16 entries without a platform are opened; 17 are an error that says so, in index.json before any is read and in an index under it
/// when none of the first 16 will do. One that is listed again does not count.
#[test]
fn entries_without_a_platform_are_few() {
    let mut shelf = Shelf::default();
    let mut images: Vec<Descriptor> = (1..).take(manifest::UNNAMED_PLATFORMS_MAX - 1).map(|number| shelf.image("arm64", number)).collect();
    let ours = shelf.image("amd64", 0);
    images.push(ours.clone());
    let twice: Vec<&Descriptor> = images.iter().chain(&images).collect();
    assert_eq!(shelf.choose(&twice, "linux/amd64").unwrap().digest, ours.digest);
    images.insert(0, shelf.image("arm64", 99));
    let candidates: Vec<&Descriptor> = images.iter().collect();
    let index = shelf.index(&candidates);
    let error = shelf.refusal(&[&index, &ours], "linux/amd64");
    assert!(error.contains(&format!("index {}: expected at most 16 images", index.digest)) && error.ends_with("found 17"), "{error}");
    let error = Shelf::default().refusal(&candidates, "linux/amd64");
    assert!(error.contains("index.json: expected at most 16 images") && error.ends_with("found 17"), "{error}");
}

/// Claim: of many thousand entries of which each would do, listed twice, 16 are named and the others counted; so are platforms.
#[test]
fn long_lists_are_cut() {
    let mut shelf = Shelf::default();
    let image = shelf.image("amd64", 0);
    let at = |number: u32| Descriptor { digest: sha256(&number.to_le_bytes()), ..named("linux/amd64", &image) };
    let many: Vec<Descriptor> = (0..20_000).map(at).collect();
    let candidates: Vec<&Descriptor> = many.iter().chain(&many).collect();
    let error = shelf.refusal(&candidates, "linux/amd64");
    assert!(error.contains("found 20000: ") && error.ends_with(" and 19984 more"), "{}", error.len());
    assert_eq!(error.matches("(no name)").count(), manifest::LISTED_MAX);
    let odd: Vec<Descriptor> = (0..100).map(|number| named(&format!("linux/odd{number}"), &image)).collect();
    let error = shelf.refusal(&odd.iter().collect::<Vec<_>>(), "linux/amd64");
    assert!(error.contains("only linux/odd0, ") && error.ends_with(" and 84 more"), "{error}");
}

/// Claim: an image that is not the asked variant's own is taken with a warning, the asked one and this machine's choice without.
#[test]
fn another_variant_is_a_warning() {
    let config = config::ConfigFile::parse(br#"{"architecture":"arm64"}"#, &sha256(b"")).unwrap();
    let warnings = |text: Option<&str>, named: &str| {
        let mut warnings = Vec::new();
        config.platform_as(Some(&platform(named)), &Wanted::new(text.map(platform)), &mut warnings);
        warnings
    };
    let found = warnings(Some("linux/arm64/v7"), "linux/arm64/v8");
    assert!(found.len() == 1 && found[0].contains("asks for linux/arm64/v7") && found[0].contains("linux/arm64/v8"), "{found:?}");
    assert_eq!(warnings(Some("linux/arm64"), "linux/arm64/v8"), [""; 0]);
}
