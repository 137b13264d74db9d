//! The merged tree is the tree that `umoci unpack` makes of the same image: every entry, every attribute, every byte.
#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

use std::{
    collections::BTreeSet,
    ffi::OsStr,
    path::{Path, PathBuf},
};

use clip_tests::{
    clip::Clip,
    faults::Server,
    images::{
        Compression, Headers, Layout, Member, TarWriter,
        debian::{self, umoci_tree},
        nasty,
    },
    machine::{Need, lacks},
    oracle::{Exclusions, compare, parents_not_named},
    process::shell,
    registry::Registry,
};
use serde_json::json;
use tempfile::TempDir;

const MOUNT_AND_UMOCI: &[Need] = &[Need::Root, Need::Fuse, Need::Tool("umoci")];

/// An image of layers of members.
fn image(layout: &Layout, tag: &str, layers: &[(&[Member], Headers)]) {
    let blobs: Vec<_> = layers
        .iter()
        .map(|(members, headers)| layout.layer(&TarWriter::stream(*members, *headers), &Compression::ZlibRs(6)).unwrap())
        .collect();
    layout.image(tag, &blobs, json!({})).unwrap();
}

/// The directories that no member names: their mtime is the unpacker's own.
fn unnamed(layers: &[&[Member]]) -> Exclusions {
    let named: BTreeSet<PathBuf> = layers.iter().flat_map(|members| members.iter().map(Member::path)).collect();
    Exclusions { unnamed_parents: parents_not_named(&named), ..Exclusions::default() }
}

/// Mounts `tag` from a registry and compares with `expected`.
fn assert_mount_equals(claim: &str, layout: &Layout, tag: &str, expected: &Path, exclusions: &Exclusions) {
    let clip = Clip::new();
    let server = Server::start(layout).unwrap();
    let file = clip.index(&server.reference("image", tag), tag, &[]).unwrap();
    let mount = clip.mount(&file, &[]).unwrap();
    compare(expected, mount.dir(), exclusions).unwrap().assert_same(claim);
    mount.umount().unwrap();
}

/// A Debian image that mmdebstrap and umoci wrote, through docker-registry: files changed, deleted, replaced by other kinds and added
/// again in three layers are what umoci unpacks, and the secret that the second layer had is nowhere.
#[test]
fn debian_image_is_what_umoci_unpacks() {
    if lacks(MOUNT_AND_UMOCI) || lacks(debian::NEEDS) || lacks(&[Need::Tool("docker-registry"), Need::Tool("skopeo")]) {
        return;
    }
    let layout = debian::layout().unwrap();
    let registry = Registry::start().unwrap();
    let clip = Clip::new();
    let scratch = TempDir::new().unwrap();
    let expected = umoci_tree(layout, debian::APP, &scratch.path().join("bundle")).unwrap();

    let reference = registry.push(layout.dir(), debian::APP, "team/debian").unwrap();
    let file = clip.index(&reference, "debian", &[]).unwrap();
    let mount = clip.mount(&file, &[]).unwrap();
    let comparison = compare(&expected, mount.dir(), &Exclusions::default()).unwrap();
    comparison.assert_same("debian image");
    assert!(comparison.bytes > 50 << 20, "only {} bytes were compared", comparison.bytes);
    for gone in ["root/secret", "etc/secrets.d", "usr/bin/perl"] {
        assert!(mount.path(gone).symlink_metadata().is_err(), "{gone} was deleted");
    }
    let found = shell("grep -rlaF \"$2\" \"$1\"/root \"$1\"/etc || true", &[mount.dir().as_os_str(), OsStr::new(debian::SECRET)]).unwrap();
    assert_eq!(found, "", "a deleted secret can be read");
}

/// An image whose layers buildah wrote: a program ran in a container of it, deleted, replaced and linked, and the tars and the gzip are
/// buildah's own.
#[test]
fn buildah_image_is_what_umoci_unpacks() {
    if lacks(MOUNT_AND_UMOCI) || lacks(debian::NEEDS) || lacks(&[Need::Tool("buildah")]) {
        return;
    }
    let Some(layout) = debian::built().unwrap() else { return };
    let server = Server::start(&layout).unwrap();
    let clip = Clip::new();
    let scratch = TempDir::new().unwrap();
    let expected = umoci_tree(&layout, debian::BUILT, &scratch.path().join("bundle")).unwrap();
    let file = clip.index(&server.reference("debian", debian::BUILT), "built", &[]).unwrap();
    let mount = clip.mount(&file, &[]).unwrap();
    compare(&expected, mount.dir(), &Exclusions::default()).unwrap().assert_same("image by buildah");
    assert_eq!(std::fs::read(mount.path("opt/by-buildah")).unwrap(), b"built\n");
    assert!(mount.path("usr/bin/env").symlink_metadata().is_err(), "deleted in the container");
}

/// Every kind of entry, name and attribute that a tar can hold, in PAX headers; and a directory of ten thousand names above it.
#[test]
fn every_kind_of_entry_is_what_umoci_unpacks() {
    if lacks(MOUNT_AND_UMOCI) {
        return;
    }
    let layout = Layout::scratch().unwrap();
    let (kinds, many) = (nasty::every_kind(), nasty::large_directory());
    image(&layout, "kinds", &[(&kinds, Headers::Pax), (&many, Headers::Pax)]);
    let expected = umoci_tree(&layout, "kinds", &layout.beside("bundle")).unwrap();
    assert_mount_equals("every kind, PAX", &layout, "kinds", &expected, &unnamed(&[&kinds, &many]));
}

/// The same in GNU headers (long names, base-256 numbers; they have no nanoseconds and no xattrs).
#[test]
fn gnu_headers_are_what_umoci_unpacks() {
    if lacks(MOUNT_AND_UMOCI) {
        return;
    }
    let layout = Layout::scratch().unwrap();
    let members = nasty::every_kind();
    image(&layout, "gnu", &[(&members, Headers::Gnu)]);
    let expected = umoci_tree(&layout, "gnu", &layout.beside("bundle")).unwrap();
    assert_mount_equals("every kind, GNU", &layout, "gnu", &expected, &unnamed(&[&members]));
}

/// Whiteouts and opaque markers act on lower layers only, wherever in their layer's tar they stand; so do links to later entries and
/// children before their parents. The expected tree is what umoci makes of the order that it handles.
#[test]
fn order_within_a_layer_changes_nothing() {
    if lacks(MOUNT_AND_UMOCI) {
        return;
    }
    let layout = Layout::scratch().unwrap();
    let (lower, upper, top) = (nasty::lower(), nasty::upper(), nasty::top());
    image(&layout, "canonical", &[(&lower, Headers::Pax), (&upper, Headers::Pax), (&top, Headers::Pax)]);
    let expected = umoci_tree(&layout, "canonical", &layout.beside("bundle")).unwrap();
    let exclusions = unnamed(&[&lower, &upper, &top]);
    for (order, members) in nasty::orders(&upper) {
        let tag = order.replace(' ', "-");
        image(&layout, &tag, &[(&lower, Headers::Pax), (&members, Headers::Pax), (&top, Headers::Pax)]);
        assert_mount_equals(order, &layout, &tag, &expected, &exclusions);
    }
}

/// Nothing of lower layers survives an opaque marker at the root, and no marker is ever visible.
#[test]
fn opaque_root_empties_the_image() {
    if lacks(&[Need::Root, Need::Fuse]) {
        return;
    }
    let layout = Layout::scratch().unwrap();
    let (lower, upper) = (nasty::lower(), nasty::opaque_root());
    let mut last = upper.clone();
    last.rotate_left(1);
    for (tag, members) in [("first", &upper), ("last", &last)] {
        image(&layout, tag, &[(&lower, Headers::Pax), (members, Headers::Pax)]);
        let clip = Clip::new();
        let server = Server::start(&layout).unwrap();
        let file = clip.index(&server.reference("opaque", tag), tag, &[]).unwrap();
        let listed = clip.ok(&["ls", "-R0", file.to_str().unwrap(), "/"]).unwrap().text();
        let names: BTreeSet<&str> = listed.split('\0').map(|name| name.trim_matches('/')).filter(|name| !name.is_empty()).collect();
        assert_eq!(names, BTreeSet::from(["fresh", "fresh/file"]), "marker {tag}");
    }
}

/// GNU tar's sparse formats (old GNU, PAX 0.0, 0.1 and 1.0) read as GNU tar extracts them: holes are zeros, also beyond 4 GiB.
#[test]
fn sparse_files_are_what_gnu_tar_extracts() {
    if lacks(&[Need::Root, Need::Fuse, Need::Tool("tar")]) {
        return;
    }
    let scratch = TempDir::new().unwrap();
    let make = r#"
        cd "$1" && mkdir in && cd in
        truncate -s 5G huge
        for i in 3 20000 33000 40959; do head -c 131072 /dev/urandom | dd of=huge bs=131072 seek=$i conv=notrunc iflag=fullblock status=none; done
        truncate -s 1000000 hole-only
        for i in 0 3 6 9 12 15 18 21 24 27; do printf "segment $i" | dd of=many bs=65536 seek=$i conv=notrunc status=none; done
        truncate -s 3000000 many
        head -c 100000 /dev/urandom > dense
        cd .. && tar -C in --sparse --format=gnu -cf gnu.tar .
        for version in 0.0 0.1 1.0; do tar -C in --sparse --format=posix --sparse-version=$version -cf pax-$version.tar .; done"#;
    shell(make, &[scratch.path().as_os_str()]).unwrap();
    let layout = Layout::create(&scratch.path().join("layout")).unwrap();
    for format in ["gnu", "pax-0.0", "pax-0.1", "pax-1.0"] {
        let stream = std::fs::read(scratch.path().join(format!("{format}.tar"))).unwrap();
        let layer = layout.layer(&stream, &Compression::ZlibRs(1)).unwrap();
        layout.image(format, &[layer], json!({})).unwrap();
        let expected = scratch.path().join(format!("out-{format}"));
        shell(
            "mkdir \"$2\" && tar --sparse -xpf \"$1/$3.tar\" -C \"$2\"",
            &[scratch.path().as_os_str(), expected.as_os_str(), OsStr::new(format)],
        )
        .unwrap();
        assert_mount_equals(format, &layout, format, &expected, &Exclusions::default());
    }
}

/// A sparse file of more pieces than an index takes is refused with its path, the limit and the count.
#[test]
fn too_many_pieces_of_a_sparse_file_are_refused_by_name() {
    if lacks(&[Need::Tool("tar")]) {
        return;
    }
    let scratch = TempDir::new().unwrap();
    let make = r#"cd "$1" && mkdir in && truncate -s 3G in/scattered && printf x | dd of=in/scattered bs=4096 seek=500001 conv=notrunc status=none
        tar -C in --sparse --format=posix -cf scattered.tar ."#;
    shell(make, &[scratch.path().as_os_str()]).unwrap();
    let layout = Layout::create(&scratch.path().join("layout")).unwrap();
    let layer = layout.layer(&std::fs::read(scratch.path().join("scattered.tar")).unwrap(), &Compression::Plain).unwrap();
    layout.image("scattered", &[layer], json!({})).unwrap();
    let clip = Clip::new();
    let message = clip.fails(&["index", &layout.reference("scattered"), "-o", clip.path("out.clip").to_str().unwrap(), "--quiet"]).unwrap();
    assert!(message.contains("scattered") && message.contains("65536"), "{message}");
}

/// The uppermost layer's version wins in ls and cat too, and an index of an image holds its layers in manifest order.
#[test]
fn uppermost_version_wins_without_a_mount() {
    let layout = Layout::scratch().unwrap();
    let (lower, upper, top) = (nasty::lower(), nasty::upper(), nasty::top());
    image(&layout, "merged", &[(&lower, Headers::Pax), (&upper, Headers::Pax), (&top, Headers::Pax)]);
    let clip = Clip::new();
    let file = clip.index(&layout.reference("merged"), "merged", &[]).unwrap();
    let file = file.to_str().unwrap();
    for (path, contents) in
        [("a/replaced", "new, and longer"), ("a/deleted", "back from the dead"), ("hard/from-above", "a name below, a name above")]
    {
        assert_eq!(clip.ok(&["cat", file, path]).unwrap().text(), contents, "{path}");
    }
    for path in ["a/deleted-and-back", "a/dir-deleted", "first", ".wh.first"] {
        clip.fails(&["cat", file, path]).unwrap();
    }
}

/// Layers that cannot be indexed say which layer, where and why, and leave no file behind, not even a temporary one.
#[test]
fn bad_layers_are_named_and_leave_nothing() {
    let layout = Layout::scratch().unwrap();
    let good = TarWriter::stream(&nasty::lower(), Headers::Pax);
    let gzip = clip_tests::images::layout::compress(&good, &Compression::ZlibRs(6)).unwrap();
    let mut damaged = gzip.clone();
    damaged[gzip.len() / 2] ^= 0x55;
    let mut bad_header = good.clone();
    bad_header[148] ^= 1;
    let cut = gzip[..gzip.len() - 200].to_vec();
    let ready = |tag: &str, blob: Vec<u8>| {
        let layer = layout.layer(&good, &Compression::Ready(blob)).unwrap();
        layout.image(tag, std::slice::from_ref(&layer), json!({})).unwrap();
        layer.blob.digest
    };
    let gzipped_bad_header = clip_tests::images::layout::compress(&bad_header, &Compression::ZlibRs(6)).unwrap();
    let cases = [("truncated", cut), ("damaged", damaged), ("bad-tar", gzipped_bad_header), ("neither", nasty::noise(1, 5000))];
    for (tag, blob) in cases {
        let digest = ready(tag, blob);
        let clip = Clip::new();
        let output = clip.path("out.clip");
        let message = clip.fails(&["index", &layout.reference(tag), "-o", output.to_str().unwrap(), "--quiet"]).unwrap();
        assert!(message.contains(&digest), "{tag}: the layer is not named: {message}");
        let left: Vec<_> = std::fs::read_dir(output.parent().unwrap()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert!(!left.iter().any(|name| name.to_string_lossy().contains("clip")), "{tag} left {left:?}");
    }
}
