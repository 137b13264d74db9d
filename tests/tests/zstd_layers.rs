//! zstd layers, whoever wrote them: the mounted tree is that of the same image in gzip, read from anywhere or streamed once.
#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    process::Command,
};

use clip_format::storage_info::Codec;
use clip_tests::{
    clip::{Clip, text},
    faults::Server,
    images::{
        Compression, Headers, Layout, Member, TarWriter,
        debian::{self, umoci_tree},
        nasty,
    },
    machine::{Need, lacks},
    oracle::{Exclusions, compare, parents_not_named},
    process::run,
    registry::Registry,
    spans::Parts,
};
use serde_json::{Value, json};
use tempfile::TempDir;

const MOUNT_AND_UMOCI: &[Need] = &[Need::Root, Need::Fuse, Need::Tool("umoci")];
const REGISTRY: &[Need] = &[Need::Tool("docker-registry"), Need::Tool("skopeo")];

/// What `clip inspect --json` says of the layers of `file`.
fn layers(clip: &Clip, file: &Path) -> Vec<Value> {
    let said: Value = serde_json::from_str(&clip.ok(&["inspect", "--json", text(file).unwrap()]).unwrap().text()).unwrap();
    said["layers"].as_array().unwrap().clone()
}

/// How each layer of `file` is read.
fn accesses(clip: &Clip, file: &Path) -> Vec<String> {
    layers(clip, file).iter().map(|layer| layer["access"].as_str().unwrap().to_owned()).collect()
}

/// Indexes `reference`, twice with the same bytes, mounts it, and compares with `expected`. Every layer must be zstd.
fn check(claim: &str, reference: &str, expected: &Path, exclusions: &Exclusions) -> Vec<String> {
    check_with(&[], claim, reference, expected, exclusions)
}

/// As `check`, with more options for `clip index`.
fn check_with(more: &[&str], claim: &str, reference: &str, expected: &Path, exclusions: &Exclusions) -> Vec<String> {
    let clip = Clip::new();
    let file = clip.index(reference, "one", more).unwrap();
    let again = clip.index(reference, "two", &[more, &["-j", "1"]].concat()).unwrap();
    assert!(std::fs::read(&file).unwrap() == std::fs::read(again).unwrap(), "{claim}: two runs, two files");
    let parts = Parts::read(&file).unwrap();
    assert!(parts.storage_info.layers.iter().all(|layer| layer.codec == Codec::Zstd), "{claim}: {:?}", parts.storage_info.layers);
    let mount = clip.mount(&file, &[]).unwrap();
    compare(expected, mount.dir(), exclusions).unwrap().assert_same(claim);
    mount.umount().unwrap();
    clip.ok(&["verify", "--remote", text(&file).unwrap()]).unwrap();
    accesses(&clip, &file)
}

/// Layered trees of every kind of entry, compressed by the zstd command at its extremes, by pzstd, in frames of ours and in the seekable
/// format, through docker-registry: what umoci unpacks of their gzip twin.
#[test]
fn every_writer_of_zstd_gives_the_tree_of_gzip() {
    if lacks(MOUNT_AND_UMOCI) || lacks(REGISTRY) {
        return;
    }
    let layout = Layout::scratch().unwrap();
    let filler = [Member::file("filler/noise", nasty::noise(5, 3 << 20)), Member::file("filler/prose", nasty::prose(6, 9 << 20))];
    let members = [nasty::lower(), nasty::upper(), filler.to_vec(), nasty::top()];
    let named: BTreeSet<PathBuf> = members.iter().flatten().map(Member::path).collect();
    let exclusions = Exclusions { unnamed_parents: parents_not_named(&named), ..Exclusions::default() };
    let image = |tag: &str, compression: &Compression| {
        let layer = |members: &Vec<Member>| layout.layer(&TarWriter::stream(members, Headers::Pax), compression).unwrap();
        layout.image(tag, &members.iter().map(layer).collect::<Vec<_>>(), json!({})).unwrap();
    };
    image("gzip", &Compression::ZlibRs(6));
    let expected = umoci_tree(&layout, "gzip", &layout.beside("bundle")).unwrap();
    let mut cases = vec![
        ("frames", Compression::Frames(150_000), "random"),
        ("large-frames", Compression::Frames(5 << 20), "partial"),
        ("seekable", Compression::Seekable(256 << 10), "random"),
    ];
    for (name, program, access) in [
        ("zstd-1", &["zstd", "-q", "-1"][..], "streamed"),
        ("zstd-long", &["zstd", "-q", "--ultra", "-20", "--long=27", "--no-check"], "streamed"),
        ("pzstd", &["pzstd", "-q", "-p", "4"], "partial"),
    ] {
        if !lacks(&[Need::Tool(program[0])]) {
            cases.push((name, Compression::ZstdProgram(program), access));
        }
    }
    cases.iter().for_each(|(name, compression, _)| image(name, compression));
    let (registry, server) = (Registry::start().unwrap(), Server::start(&layout).unwrap());
    for (name, _, access) in cases {
        // skopeo takes a blob that begins with a skippable frame for one that is not compressed, and compresses it.
        let reference = match name {
            "pzstd" => server.reference("team/zstd", name),
            _ => registry.push(layout.dir(), name, "team/zstd").unwrap(),
        };
        let found = check(name, &reference, &expected, &exclusions);
        assert_eq!((found.len(), found[2].as_str()), (4, access), "{name}: {found:?}");
    }
}

/// Copies `layout`'s image with skopeo into the registry as `format`; `false`, after saying so, where this skopeo knows no such format.
fn skopeo_converts(layout: &Layout, tag: &str, format: &str, reference: &str) -> bool {
    let mut skopeo = Command::new("skopeo");
    skopeo.args(["copy", "--quiet", "--dest-tls-verify=false", "--insecure-policy", "--dest-compress-format", format]);
    let finished = run(skopeo.arg(layout.reference(tag)).arg(format!("docker://{reference}"))).unwrap();
    if !finished.status.success() {
        eprintln!("skipped: skopeo does not write {format}: {}", finished.stderr);
    }
    finished.status.success()
}

/// A Debian image of three layers that skopeo compressed again as zstd and as zstd:chunked: the tree that umoci unpacks of the original.
/// The first is streamed; the second is entered at the frames of its files.
#[test]
fn what_skopeo_compresses_is_the_debian_image() {
    if lacks(MOUNT_AND_UMOCI) || lacks(debian::NEEDS) || lacks(REGISTRY) {
        return;
    }
    let layout = debian::layout().unwrap();
    let scratch = TempDir::new().unwrap();
    let expected = umoci_tree(layout, debian::APP, &scratch.path().join("bundle")).unwrap();
    let registry = Registry::start().unwrap();
    for (format, name) in [("zstd", "team/plain-zstd"), ("zstd:chunked", "team/chunked")] {
        let reference = registry.reference(name, "v1");
        if skopeo_converts(layout, debian::APP, format, &reference) {
            // Some versions of skopeo cut off the zeros at the end of a zstd:chunked tar, so that it is not what its diff_id says.
            let more: &[&str] = if format == "zstd:chunked" { &["--skip-diff-id-check"] } else { &[] };
            let found = check_with(more, format, &reference, &expected, &Exclusions::default());
            // A large file of zstd:chunked is one frame, so that not every span is an entry.
            assert!(found.len() == 3 && (found[0] == "streamed") == (format == "zstd"), "{format}: {found:?}");
        }
    }
}

/// An image that buildah pushed as zstd is the one that it committed.
#[test]
fn what_buildah_pushes_as_zstd_is_its_image() {
    if lacks(MOUNT_AND_UMOCI) || lacks(debian::NEEDS) || lacks(&[Need::Tool("buildah"), Need::Tool("docker-registry")]) {
        return;
    }
    let Some(layout) = debian::built().unwrap() else { return };
    let scratch = TempDir::new().unwrap();
    let expected = umoci_tree(&layout, debian::BUILT, &scratch.path().join("bundle")).unwrap();
    let registry = Registry::start().unwrap();
    let reference = registry.reference("team/built", "v1");
    let script = r#"
cd "$1"
tool() { buildah --root "$PWD/storage" --runroot "$PWD/run" --storage-driver vfs --log-level error "$@"; }
image=$(tool pull --quiet "$2")
tool push --quiet --tls-verify=false --compression-format zstd --format oci "$image" "docker://$3"
"#;
    let arguments = [scratch.path().as_os_str(), layout.reference(debian::BUILT).as_ref(), reference.as_ref()].map(ToOwned::to_owned);
    let arguments: Vec<&std::ffi::OsStr> = arguments.iter().map(AsRef::as_ref).collect();
    if let Err(error) = clip_tests::process::shell(script, &arguments) {
        eprintln!("skipped: buildah does not push zstd here: {error:#}");
        return;
    }
    check("buildah", &reference, &expected, &Exclusions::default());
}

/// An image of one layer, `stream` compressed as told, whose media type is replaced by `media_type` where there is one.
fn one_layer(layout: &Layout, tag: &str, stream: &[u8], compression: &Compression, media_type: Option<&'static str>) {
    let mut layer = layout.layer(stream, compression).unwrap();
    layer.media_type = media_type.unwrap_or(layer.media_type);
    layout.image(tag, &[layer], json!({})).unwrap();
}

/// A layer of one frame is fetched once however it is read, from its end to its start and twice; index and inspect say what it is.
#[test]
fn one_frame_is_fetched_once() {
    if lacks(&[Need::Root, Need::Fuse]) {
        return;
    }
    let layout = Layout::scratch().unwrap();
    let files: Vec<Member> = (0..10).map(|number| Member::file(format!("file{number}"), nasty::prose(number, 5 << 20))).collect();
    let stream = TarWriter::stream(&files, Headers::Pax);
    one_layer(&layout, "one", &stream, &Compression::Frames(usize::MAX), None);
    let server = Server::start(&layout).unwrap();
    let clip = Clip::new();
    let output = clip.path("one.clip");
    let said = clip.ok(&["index", &server.reference("image", "one"), "-o", text(&output).unwrap()]).unwrap();
    assert!(
        said.stderr.contains("it is one zstd frame") || said.text().contains("it is one zstd frame"),
        "{} {}",
        said.text(),
        said.stderr
    );
    let inspected = clip.ok(&["inspect", text(&output).unwrap()]).unwrap().text();
    assert!(inspected.contains("zstd") && inspected.contains("from its start"), "{inspected}");
    let mount = clip.mount(&output, &[]).unwrap();
    for number in [9, 0, 4, 9, 5] {
        let found = std::fs::read(mount.path(format!("file{number}"))).unwrap();
        assert!(found == nasty::prose(number, 5 << 20), "file{number}");
    }
    mount.umount().unwrap();
    clip.wait_for_servers().unwrap();
    let log = clip.log();
    let counted = |name: &str| -> u64 {
        let stats = log.lines().find(|line| line.contains(" stats ")).unwrap();
        stats.split_once(&format!(" {name}=")).unwrap().1.split(' ').next().unwrap().parse().unwrap()
    };
    let blob = Parts::read(&output).unwrap().storage_info.layers[0].compressed_size;
    assert!(counted("bytes_fetched") <= blob + blob / 20, "{} of {blob}", counted("bytes_fetched"));
    assert!(counted("bytes_decoded") <= stream.len() as u64, "{}", counted("bytes_decoded"));
}

/// Whatever a media type says, the blob's own magic number decides: each warns once, and each is read as it is.
#[test]
fn media_types_that_lie_are_warned_of() {
    let scratch = TempDir::new().unwrap();
    let layout = Layout::create(scratch.path()).unwrap();
    let stream = TarWriter::stream(&[Member::file("file", nasty::prose(1, 300_000))], Headers::Pax);
    let kinds = [
        ("not compressed", Compression::Plain, "application/vnd.oci.image.layer.v1.tar"),
        ("gzip", Compression::ZlibRs(6), "application/vnd.oci.image.layer.v1.tar+gzip"),
        ("zstd", Compression::Frames(100_000), "application/vnd.oci.image.layer.v1.tar+zstd"),
    ];
    let clip = Clip::new();
    for (is, compression, own) in &kinds {
        for (_, _, said) in &kinds {
            one_layer(&layout, "lie", &stream, compression, Some(said));
            // A layout keeps the first image of a tag: each gets a fresh one.
            let output = clip.path("lie.clip");
            let finished = clip.ok(&["index", &layout.reference("lie"), "-o", text(&output).unwrap()]).unwrap();
            let warned = format!("the media type says {said}, but the blob is {is}");
            assert_eq!(finished.stderr.contains(&warned), said != own, "{is} as {said}: {}", finished.stderr);
            assert!(clip.ok(&["cat", text(&output).unwrap(), "file"]).unwrap().stdout == nasty::prose(1, 300_000));
            std::fs::remove_dir_all(scratch.path()).unwrap();
            Layout::create(scratch.path()).unwrap();
        }
    }
}

/// What cannot be read is told with layer, place, expected and found, and leaves no output.
#[test]
fn bad_zstd_layers_are_told() {
    let layout = Layout::scratch().unwrap();
    let stream = TarWriter::stream(&[Member::file("file", nasty::prose(1, 300_000))], Headers::Pax);
    let good = clip_tests::images::layout::compress(&stream, &Compression::Frames(100_000)).unwrap();
    let mut flipped = good.clone();
    // In the first frame, which has a checksum.
    flipped[good.len() / 6] ^= 0x10;
    let large = [&[0x28, 0xb5, 0x2f, 0xfd, 0, 18 << 3][..], &[1, 0, 0]].concat();
    let dictionary = [&[0x28, 0xb5, 0x2f, 0xfd, 1, 0, 42][..], &[1, 0, 0]].concat();
    let cases = [
        ("truncated", good[..good.len() - 3].to_vec(), "expected the rest of "),
        ("flipped", flipped, "expected valid zstd data"),
        ("trailed", [&good[..], b"garbage"].concat(), "expected another zstd frame"),
        ("large-window", large, "at most 134217728 bytes"),
        ("dictionary", dictionary, "dictionary 42 is not supported"),
    ];
    let clip = Clip::new();
    for (tag, blob, expected) in cases {
        one_layer(&layout, tag, &stream, &Compression::Ready(blob), Some("application/vnd.oci.image.layer.v1.tar+zstd"));
        let output = clip.path(&format!("{tag}.clip"));
        let message = clip.fails(&["index", &layout.reference(tag), "-o", text(&output).unwrap(), "--quiet"]).unwrap();
        assert!(message.contains(expected) && message.contains("layer sha256:") && message.contains("offset"), "{tag}: {message}");
        assert!(!output.exists(), "{tag}");
    }
}
