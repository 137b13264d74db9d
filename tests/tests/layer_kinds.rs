//! Every kind of layer that registries have: eStargz and other many-member gzip, plain tar, layers of nothing, images of no layers, of 127,
//! and of the same one twice; and those that are refused, by name.
#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

use std::{collections::BTreeSet, os::unix::fs::FileExt, path::PathBuf, process::Command};

use clip_format::{checkpoints::SpanStart, units::SpanIndex};
use clip_tests::{
    clip::{Clip, text},
    containerd::Containerd,
    faults::Server,
    images::{
        Compression, Headers, Layout, Member, TarWriter,
        debian::umoci_tree,
        estargz::{self, estargz},
        layout::LayerBlob,
        nasty::{self, noise, prose},
        sample::{self, Sample},
    },
    machine::{Need, lacks},
    oracle::{Exclusions, compare, parents_not_named},
    process::run_ok,
    registry::Registry,
    spans::Parts,
};
use serde_json::{Value, json};

const MOUNT_AND_UMOCI: &[Need] = &[Need::Root, Need::Fuse, Need::Tool("umoci")];
const DOCKER_REGISTRY: &[Need] = &[Need::Tool("docker-registry"), Need::Tool("skopeo")];

/// A layer that is made elsewhere.
fn ready(layout: &Layout, stream: &[u8], blob: Vec<u8>) -> LayerBlob {
    layout.layer(stream, &Compression::Ready(blob)).unwrap()
}

/// A layer whose files are small and large, compressible and not, with the landmark behind the first two.
fn estargz_members() -> Vec<Member> {
    let mut members = vec![
        Member::dir("./"),
        Member::dir("bin"),
        Member::file("bin/first", prose(1, 200_000)),
        Member::file("bin/next", noise(2, 90_000)),
    ];
    members.push(estargz::landmark(estargz::LANDMARK));
    members.push(Member::dir("lib"));
    members.extend((0..400).map(|number| Member::file(format!("lib/small-{number:03}"), prose(number, 3_000 + 50 * number as usize))));
    members.push(Member::file("lib/large", prose(9, 9 << 20)));
    members.push(Member::file("lib/noise", noise(10, 5 << 20)));
    members.push(Member::symlink("lib/link", "large"));
    members.push(Member::hard_link("lib/hard", "lib/noise"));
    members.push(Member::file("lib/empty", ""));
    members
}

/// Claim: an eStargz layer is entered at its gzip members as they are, small ones joined, and needs no window; its table of contents and its
/// landmark are ordinary files of the image, as umoci and containerd unpack them; and a read in the middle fetches from its member on.
#[test]
fn estargz_is_entered_at_its_members() {
    if lacks(MOUNT_AND_UMOCI) || lacks(DOCKER_REGISTRY) {
        return;
    }
    let layout = Layout::scratch().unwrap();
    let members = estargz_members();
    let made = estargz(&members, 512 << 10);
    let upper = [Member::file("lib/over", "above"), Member::file(".no.prefetch.landmark", [0xf]), Member::whiteout("lib", "small-000")];
    layout.image("estargz", &[ready(&layout, &made.stream, made.blob.clone()), layout.gzip(&upper).unwrap()], json!({})).unwrap();
    let registry = Registry::start().unwrap();
    let clip = Clip::new();
    let file = clip.index(&registry.push(layout.dir(), "estargz", "team/estargz").unwrap(), "estargz", &[]).unwrap();

    let parts = Parts::read(&file).unwrap();
    let table = &parts.checkpoints.layers()[0];
    let places: BTreeSet<(u64, u64)> = made.members.iter().copied().collect();
    for span in (0..table.len()).map(SpanIndex) {
        let found = table.span(span);
        assert_eq!(found.start, SpanStart::Member, "span {} at stream offset {}", span.get(), found.stream.get());
        assert!(places.contains(&(found.compressed.get(), found.stream.get())), "span {} begins at no member", span.get());
        let range = table.stream_range(span);
        assert!(range.end - range.start < 2 << 20);
    }
    assert!(table.len() * 10 < u32::try_from(places.len()).unwrap(), "small members are joined: {} spans of {}", table.len(), places.len());
    assert_eq!(parts.windows.len(), 0);

    let mount = clip.mount(&file, &[]).unwrap();
    let expected = umoci_tree(&layout, "estargz", &layout.beside("bundle")).unwrap();
    let exclusions = Exclusions::default().unnamed(["", "lib"]);
    compare(&expected, mount.dir(), &exclusions).unwrap().assert_same("eStargz, by umoci");
    for name in [estargz::TOC, estargz::LANDMARK, estargz::NO_LANDMARK] {
        assert!(mount.path(name).metadata().unwrap().is_file(), "{name}");
    }
    if let Some(containerd) = Containerd::start().unwrap() {
        let expected = containerd.unpack(&layout, "estargz").unwrap();
        compare(&expected, mount.dir(), &exclusions).unwrap().assert_same("eStargz, by containerd");
    }
    mount.umount().unwrap();

    assert_random_access(&layout, "estargz", "lib/large", 5 << 20, made.blob.len() as u64 / 2);
}

/// A page in the middle of `path` costs less than `bytes_max` of the first layer's blob.
fn assert_random_access(layout: &Layout, tag: &str, path: &str, offset: u64, bytes_max: u64) {
    let server = Server::start(layout).unwrap();
    let clip = Clip::new();
    let file = clip.index(&server.reference(tag, tag), tag, &[]).unwrap();
    server.forget();
    let mount = clip.mount(&file, &[]).unwrap();
    let mut page = [0; 4096];
    std::fs::File::open(mount.path(path)).unwrap().read_exact_at(&mut page, offset).unwrap();
    mount.umount().unwrap();
    let served: u64 = server.seen_of(&layout.layer_digests(tag).unwrap()[0]).iter().map(|seen| seen.served).sum();
    assert!(served > 0 && served < bytes_max, "{served} bytes for one page");
}

/// Claim: eStargz as its tools make it by default, with chunks of 4 MiB, is entered at its members too; inside those that are over the span size, at
/// deflate blocks as in any gzip layer.
#[test]
fn large_estargz_chunks_are_entered_inside() {
    let layout = Layout::scratch().unwrap();
    let made = estargz(&estargz_members(), 4 << 20);
    layout.image("chunks", &[ready(&layout, &made.stream, made.blob.clone())], json!({})).unwrap();
    let clip = Clip::new();
    let file = clip.index(&layout.reference("chunks"), "chunks", &[]).unwrap();
    let parts = Parts::read(&file).unwrap();
    let table = &parts.checkpoints.layers()[0];
    let starts: Vec<SpanStart> = (0..table.len()).map(|span| table.span(SpanIndex(span)).start).collect();
    assert!(starts.iter().all(|start| *start != SpanStart::Chained), "{starts:?}");
    let members = starts.iter().filter(|start| **start == SpanStart::Member).count();
    assert!(members > 5 && members < starts.len(), "{members} of {}", starts.len());
    let found = clip.ok(&["cat", text(&file).unwrap(), "lib/large"]).unwrap().stdout;
    assert!(found == prose(9, 9 << 20));
}

/// Claim: gzip of thousands of tiny members (bgzip, `cat a.gz b.gz`) has spans of many members each, no windows, and reads right.
#[test]
fn tiny_members_are_joined() {
    let sample = Sample::compressed(&Compression::Members(4_000)).unwrap();
    let clip = Clip::new();
    let file = clip.index(&sample.layout.reference(sample::TAG), "members", &[]).unwrap();
    let parts = Parts::read(&file).unwrap();
    let table = &parts.checkpoints.layers()[0];
    assert!((5..=10).contains(&table.len()), "{} spans of 9 MiB in 2,300 members", table.len());
    assert!((0..table.len()).all(|span| table.span(SpanIndex(span)).start == SpanStart::Member));
    assert_eq!(parts.windows.len(), 0);
    for (path, contents) in &sample.files {
        assert!(clip.ok(&["cat", text(&file).unwrap(), path]).unwrap().stdout == *contents, "{path}");
    }
}

/// Claim: a plain tar layer in docker-registry is indexed and mounted as umoci unpacks it, and a page costs its spans, not the layer.
#[test]
fn plain_layers_are_what_umoci_unpacks() {
    if lacks(MOUNT_AND_UMOCI) || lacks(DOCKER_REGISTRY) {
        return;
    }
    let layout = Layout::scratch().unwrap();
    let (lower, upper) = (nasty::every_kind(), nasty::large_directory());
    let plain = |members: &[Member]| layout.layer(&TarWriter::stream(members, Headers::Pax), &Compression::Plain).unwrap();
    let extra = [Member::file("names/wide", noise(77, 12 << 20))];
    layout.image("plain", &[plain(&lower), plain(&upper), plain(&extra)], json!({})).unwrap();
    let registry = Registry::start().unwrap();
    let reference = registry.reference("team/plain", "plain");
    // skopeo would compress the layers.
    let mut skopeo = Command::new("skopeo");
    skopeo.args(["copy", "--quiet", "--preserve-digests", "--dest-tls-verify=false", "--insecure-policy"]);
    run_ok(skopeo.arg(layout.reference("plain")).arg(format!("docker://{reference}"))).unwrap();
    let clip = Clip::new();
    let file = clip.index(&reference, "plain", &[]).unwrap();
    let parts = Parts::read(&file).unwrap();
    assert!(parts.storage_info.layers.iter().all(|layer| layer.compressed_size == layer.stream_size));
    let expected = umoci_tree(&layout, "plain", &layout.beside("bundle")).unwrap();
    let named: BTreeSet<PathBuf> = [&lower[..], &upper, &extra].iter().flat_map(|members| members.iter().map(Member::path)).collect();
    let exclusions = Exclusions { unnamed_parents: parents_not_named(&named), ..Exclusions::default() }.unnamed(["names"]);
    let mount = clip.mount(&file, &[]).unwrap();
    compare(&expected, mount.dir(), &exclusions).unwrap().assert_same("plain layers");
    mount.umount().unwrap();

    layout.image("wide", &[plain(&extra)], json!({})).unwrap();
    assert_random_access(&layout, "wide", "names/wide", 6 << 20, 6 << 20);
}

/// docker's empty layer: gzip of two zero blocks, as it stands in most older images.
const DOCKER_EMPTY: [u8; 32] =
    [31, 139, 8, 0, 0, 9, 110, 136, 0, 255, 98, 24, 5, 163, 96, 20, 140, 88, 0, 8, 0, 0, 255, 255, 46, 175, 181, 239, 0, 4, 0, 0];

/// Claim: layers of nothing, in every form that nothing has, change nothing: blobs of no bytes, two zero blocks, gzip of no bytes, and docker's own.
#[test]
fn empty_layers_change_nothing() {
    if lacks(MOUNT_AND_UMOCI) {
        return;
    }
    let layout = Layout::scratch().unwrap();
    let (lower, upper) = (nasty::lower(), nasty::upper());
    let (base, top) = (layout.gzip(&lower).unwrap(), layout.gzip(&upper).unwrap());
    let zeros = [0; 1024];
    let plain = |stream: &[u8]| layout.layer(stream, &Compression::Plain).unwrap();
    let docker = ready(&layout, &zeros, DOCKER_EMPTY.to_vec());
    assert!(docker.blob.digest.starts_with("sha256:a3ed95caeb02"), "{}", docker.blob.digest);
    let empties = [
        docker.clone(),
        ready(&layout, b"", Vec::new()),
        plain(b""),
        plain(&zeros),
        docker.clone(),
        layout.layer(b"", &Compression::ZlibRs(6)).unwrap(),
        layout.layer(&zeros, &Compression::ZlibRs(9)).unwrap(),
        plain(&[0; 10_240]),
        docker.clone(),
    ];
    let mut layers = vec![docker, base.clone()];
    layers.extend(empties.iter().cloned());
    layers.push(top.clone());
    layout.image("with", &layers, json!({})).unwrap();
    layout.image("without", &[base, top], json!({})).unwrap();
    let expected = umoci_tree(&layout, "without", &layout.beside("bundle")).unwrap();
    let named: BTreeSet<PathBuf> = lower.iter().chain(&upper).map(Member::path).collect();
    let exclusions = Exclusions { unnamed_parents: parents_not_named(&named), ..Exclusions::default() };
    let server = Server::start(&layout).unwrap();
    let clip = Clip::new();
    let file = clip.index(&server.reference("empty", "with"), "with", &[]).unwrap();
    let mount = clip.mount(&file, &[]).unwrap();
    compare(&expected, mount.dir(), &exclusions).unwrap().assert_same("empty layers");
    assert_eq!(server.seen_of(&layers[0].blob.digest).len(), 1, "the same layer is fetched once");
    mount.umount().unwrap();

    layout.image("nothing-else", &empties, json!({})).unwrap();
    let file = clip.index(&server.reference("empty", "nothing-else"), "nothing-else", &[]).unwrap();
    let mount = clip.mount(&file, &[]).unwrap();
    assert_eq!(std::fs::read_dir(mount.dir()).unwrap().count(), 0);
    mount.umount().unwrap();
}

/// Claim: an image without layers is an empty root.
#[test]
fn an_image_without_layers_is_an_empty_root() {
    let layout = Layout::scratch().unwrap();
    layout.image("none", &[], json!({"Cmd": ["/none"]})).unwrap();
    let server = Server::start(&layout).unwrap();
    let clip = Clip::new();
    let file = clip.index(&server.reference("none", "none"), "none", &[]).unwrap();
    assert_eq!(clip.ok(&["ls", text(&file).unwrap(), "/"]).unwrap().text(), "");
    clip.ok(&["verify", text(&file).unwrap()]).unwrap();
    if lacks(&[Need::Root, Need::Fuse]) {
        return;
    }
    let mount = clip.mount(&file, &[]).unwrap();
    assert_eq!(std::fs::read_dir(mount.dir()).unwrap().count(), 0);
    mount.umount().unwrap();
}

/// Layers that each add a file, write over a common one and remove the one of the layer two below.
fn stacked(layout: &Layout, count: usize) -> Vec<LayerBlob> {
    let layer = |number: usize| {
        let mut members = vec![
            Member::dir("./"),
            Member::dir("own"),
            Member::file(format!("own/{number:03}"), prose(number as u64, 3_000)),
            Member::file("common", format!("layer {number}")),
        ];
        if number >= 2 {
            members.push(Member::whiteout("own", &format!("{:03}", number - 2)));
        }
        layout.gzip(&members).unwrap()
    };
    (0..count).map(layer).collect()
}

/// Claim: an image of 127 layers, docker's most, in docker-registry is what umoci unpacks.
#[test]
fn images_of_127_layers_are_what_umoci_unpacks() {
    if lacks(MOUNT_AND_UMOCI) || lacks(DOCKER_REGISTRY) {
        return;
    }
    let layout = Layout::scratch().unwrap();
    layout.image("many", &stacked(&layout, 127), json!({})).unwrap();
    let registry = Registry::start().unwrap();
    let clip = Clip::new();
    let file = clip.index(&registry.push(layout.dir(), "many", "team/many").unwrap(), "many", &[]).unwrap();
    assert_eq!(Parts::read(&file).unwrap().storage_info.layers.len(), 127);
    let expected = umoci_tree(&layout, "many", &layout.beside("bundle")).unwrap();
    let mount = clip.mount(&file, &[]).unwrap();
    compare(&expected, mount.dir(), &Exclusions::default()).unwrap().assert_same("127 layers");
    assert_eq!(std::fs::read_dir(mount.path("own")).unwrap().count(), 2);
    assert_eq!(std::fs::read(mount.path("common")).unwrap(), b"layer 126");
    mount.umount().unwrap();
}

/// Claim: a layer that stands in the manifest twice is fetched once by index and once by reads, has a device for each of its places, one table
/// of windows and one directory in the cache; and its upper copy brings back what the layer between had changed, as umoci unpacks it.
#[test]
fn a_layer_used_twice_is_fetched_once() {
    if lacks(MOUNT_AND_UMOCI) {
        return;
    }
    let layout = Layout::scratch().unwrap();
    let twice = [
        Member::dir("./"),
        Member::dir("dir"),
        Member::file("dir/changed", prose(1, 4 << 20)),
        Member::file("dir/removed", prose(2, 300_000)),
    ];
    let between = [Member::file("dir/changed", "changed"), Member::whiteout("dir", "removed"), Member::file("dir/new", "new")];
    let (twice, between) = (layout.gzip(&twice).unwrap(), layout.gzip(&between).unwrap());
    layout.image("twice", &[twice.clone(), between.clone(), twice.clone()], json!({})).unwrap();
    layout.image("once", &[twice.clone(), between], json!({})).unwrap();
    let server = Server::start(&layout).unwrap();
    let clip = Clip::new();
    let file = clip.index(&server.reference("twice", "twice"), "twice", &[]).unwrap();
    assert_eq!(server.seen_of(&twice.blob.digest).len(), 1);
    let once = Parts::read(&clip.index(&layout.reference("once"), "once", &[]).unwrap()).unwrap();
    let parts = Parts::read(&file).unwrap();
    assert_eq!(parts.storage_info.layers.len(), 3);
    assert_eq!(parts.storage_info.layers[0], parts.storage_info.layers[2]);
    assert!(parts.windows == once.windows && !parts.windows.is_empty(), "windows are stored once");
    let devices = |image: &[u8]| u16::from_le_bytes([image[1024 + 86], image[1024 + 87]]);
    assert_eq!((devices(&parts.index), devices(&once.index)), (3, 2));

    server.forget();
    let expected = umoci_tree(&layout, "twice", &layout.beside("bundle")).unwrap();
    let mount = clip.mount(&file, &[]).unwrap();
    compare(&expected, mount.dir(), &Exclusions::default().unnamed(["dir"])).unwrap().assert_same("a layer used twice");
    let size = twice.blob.size;
    let served: u64 = server.seen_of(&twice.blob.digest).iter().map(|seen| seen.served).sum();
    assert!(served <= size + size / 4, "{served} bytes of a blob of {size}");
    let hex = twice.blob.digest.strip_prefix("sha256:").unwrap();
    assert_eq!(std::fs::read_dir(clip.cache_dir().join("layers/sha256").join(hex)).unwrap().count(), 1);
    mount.umount().unwrap();
}

/// Claim: the same digest with another diff_id is no repetition: the wrong diff_id is told.
#[test]
fn a_repeated_layer_with_another_diff_id_is_refused() {
    let layout = Layout::scratch().unwrap();
    let layer = layout.gzip(&nasty::lower()).unwrap();
    let wrong = LayerBlob { diff_id: format!("sha256:{}", "7".repeat(64)), ..layer.clone() };
    layout.image("wrong", &[layer, wrong], json!({})).unwrap();
    let message = failure(&layout.reference("wrong"));
    assert!(message.contains("diff_id") && message.contains("77777777"), "{message}");
}

fn failure(reference: &str) -> String {
    let clip = Clip::new();
    let output = clip.path("out.clip");
    let message = clip.fails(&["index", reference, "-o", text(&output).unwrap(), "--quiet"]).unwrap();
    assert!(!output.exists());
    message
}

/// Claim: encrypted layers and unknown media types are refused before any layer is fetched, with the layer, the media type and what to do.
#[test]
fn layers_that_cannot_be_indexed_are_named() {
    let layout = Layout::scratch().unwrap();
    let stream = TarWriter::stream(&nasty::lower(), Headers::Pax);
    let server = Server::start(&layout).unwrap();
    for (tag, media_type, told) in [
        ("encrypted", "application/vnd.oci.image.layer.v1.tar+gzip+encrypted", "skopeo copy --decryption-key"),
        ("xz", "application/vnd.oci.image.layer.v1.tar+xz", "compress it again"),
        ("cosign", "application/vnd.dev.cosign.simplesigning.v1+json", "a cosign signature"),
        ("tar", "application/x-tar", "only the layers of container images"),
    ] {
        let layer = LayerBlob { media_type, ..layout.layer(&stream, &Compression::ZlibRs(6)).unwrap() };
        layout.image(tag, std::slice::from_ref(&layer), json!({})).unwrap();
        let message = failure(&server.reference("refused", tag));
        assert!(message.contains(&layer.blob.digest) && message.contains(media_type) && message.contains(told), "{tag}: {message}");
        assert_eq!(server.seen_of(&layer.blob.digest), [], "{tag}");
    }
}

/// Puts a manifest in the layout under `tag`.
fn tag_manifest(layout: &Layout, tag: &str, manifest: &Value) {
    let blob = layout.blob(manifest.to_string().as_bytes()).unwrap();
    let mut index = layout.index().unwrap();
    index["manifests"].as_array_mut().unwrap().push(json!({
        "mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": blob.digest, "size": blob.size,
        "annotations": {"org.opencontainers.image.ref.name": tag},
    }));
    std::fs::write(layout.dir().join("index.json"), index.to_string()).unwrap();
}

/// Claim: Helm charts, signatures and other artifacts are told as what they are.
#[test]
fn artifacts_are_named() {
    let layout = Layout::scratch().unwrap();
    let blob = layout.blob(b"{}").unwrap();
    let descriptor = |media_type: &str| json!({"mediaType": media_type, "digest": blob.digest, "size": 2});
    let manifest = |config: &str, artifact: Value| {
        json!({
            "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json", "artifactType": artifact,
            "config": descriptor(config), "layers": [descriptor("application/octet-stream")],
        })
    };
    tag_manifest(&layout, "helm", &manifest("application/vnd.cncf.helm.config.v1+json", Value::Null));
    tag_manifest(
        &layout,
        "sigstore",
        &manifest("application/vnd.oci.empty.v1+json", json!("application/vnd.dev.sigstore.bundle.v0.3+json")),
    );
    tag_manifest(&layout, "other", &manifest("application/vnd.oci.empty.v1+json", json!("application/x-thing")));
    for (tag, told) in
        [("helm", "a Helm chart"), ("sigstore", "a sigstore bundle"), ("other", "an artifact of type \"application/x-thing\"")]
    {
        let message = failure(&layout.reference(tag));
        assert!(message.contains(told) && message.contains("only container images"), "{tag}: {message}");
    }
}
