//! Layers past 2^32 bytes, sparse files past 2^35 and images of very many files take bounded memory, and their far ends are read right.
//!
//! The layer of 20 GB and the image of a million files are the same tests at their full size: `cargo test --test large_layers -- --ignored`.
#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

use std::{
    fs::File,
    os::unix::fs::{FileExt, MetadataExt},
    path::Path,
    process::Stdio,
    time::{Duration, Instant},
};

use clip_tests::{
    clip::{Clip, text},
    faults::Server,
    images::{Layout, Member, huge::HugeLayer, nasty::noise},
    machine::{Need, lacks},
    process::{Running, peak_kib, shell},
};
use serde_json::json;
use tempfile::TempDir;

/// What indexing or reading a layer of few files may take, whatever its length. Source: as in `bounded_memory.rs`.
const PEAK_KIB_MAX: u64 = 448 << 10;

/// Indexes `reference` into `output`; peak memory in KiB, and seconds.
fn index_watched(clip: &Clip, reference: &str, output: &Path) -> (u64, f64) {
    let mut command = clip.command(&["index", reference, "-o", text(output).unwrap(), "--quiet"]);
    let (mut running, started) = (Running::start(command.stdin(Stdio::null())).unwrap(), Instant::now());
    let mut peak = 0;
    while running.is_alive() {
        peak = peak.max(peak_kib(running.0.id()).unwrap_or(0));
        assert!(started.elapsed() < Duration::from_secs(600), "indexing takes for ever");
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(running.wait(Duration::from_secs(1)).unwrap().success());
    (peak, started.elapsed().as_secs_f64())
}

/// Segments of the sparse files, of as much noise each; the last is far out.
const SEGMENTS: [u64; 3] = [0, 3 << 30, (39 << 30) + SEGMENT_BYTES];
/// Bytes of a segment, and what all of them are aligned to: a file has at most 65,536 such pieces, with its holes.
const SEGMENT_BYTES: u64 = 1 << 20;
/// Length of the sparse files, which end in a hole.
const SPARSE_BYTES: u64 = 40 << 30;

/// GNU tar's own members of a sparse file `name`, without the end marker.
fn sparse_members(dir: &Path, name: &str, format: &str) -> Vec<u8> {
    let file = File::create(dir.join(name)).unwrap();
    file.set_len(SPARSE_BYTES).unwrap();
    for at in SEGMENTS {
        file.write_all_at(&noise(at + 1, SEGMENT_BYTES as usize), at).unwrap();
    }
    let make = "cd \"$1\" && tar --sparse --format=\"$3\" -cf \"$2.tar\" \"$2\"";
    shell(make, &[dir.as_os_str(), name.as_ref(), format.as_ref()]).unwrap();
    let mut tar = std::fs::read(dir.join(format!("{name}.tar"))).unwrap();
    // The last segment is noise, so that no zero block before the end marker is data.
    while tar.ends_with(&[0; 512]) {
        tar.truncate(tar.len() - 512);
    }
    tar
}

/// Indexes and mounts a layer with `zeros` zeros, then two sparse files, then a file at the far end.
fn assert_long_layer(zeros: u64) {
    if lacks(&[Need::Root, Need::Fuse, Need::Tool("tar")]) {
        return;
    }
    let scratch = TempDir::new().unwrap();
    let layout = Layout::create(&scratch.path().join("layout")).unwrap();
    let mut layer = HugeLayer::new(&layout).unwrap();
    layer.member(&Member::file("near", noise(1, 300_000))).unwrap();
    layer.zeros("zeros", zeros).unwrap();
    layer.raw(&sparse_members(scratch.path(), "gnu", "gnu")).unwrap();
    layer.raw(&sparse_members(scratch.path(), "pax", "posix")).unwrap();
    layer.member(&Member::file("far", noise(2, 1 << 20))).unwrap();
    let layer = layer.finish().unwrap();
    let (digest, size) = (layer.blob.digest.clone(), layer.blob.size);
    layout.image("long", &[layer], json!({})).unwrap();

    let server = Server::start(&layout).unwrap();
    let clip = Clip::new();
    let output = clip.path("long.clip");
    let (peak, seconds) = index_watched(&clip, &server.reference("long", "long"), &output);
    let clip_bytes = output.metadata().unwrap().len();
    eprintln!("{zeros} zeros: blob {size}, .clip {clip_bytes}, index {seconds:.1} s, peak {} MiB", peak >> 10);
    assert!(peak < PEAK_KIB_MAX, "indexing took {peak} KiB");

    server.forget();
    let mount = clip.mount(&output, &[]).unwrap();
    let mut page = vec![1; 4096];
    let file = File::open(mount.path("zeros")).unwrap();
    let started = Instant::now();
    file.read_exact_at(&mut page, zeros - 4096).unwrap();
    eprintln!("a page at the far end: {:.1} ms", started.elapsed().as_secs_f64() * 1e3);
    assert!(page.iter().all(|byte| *byte == 0) && file.metadata().unwrap().len() == zeros);
    file.read_exact_at(&mut page, zeros / 2 + 4096).unwrap();
    assert!(page.iter().all(|byte| *byte == 0));
    for name in ["gnu", "pax"] {
        let sparse = File::open(mount.path(name)).unwrap();
        assert_eq!(sparse.metadata().unwrap().len(), SPARSE_BYTES, "{name}");
        assert!(sparse.metadata().unwrap().blocks() * 512 < 4 << 20, "{name}: holes are not counted");
        for at in SEGMENTS {
            let len = SEGMENT_BYTES as usize;
            let mut segment = vec![1; len + 4096];
            sparse.read_exact_at(&mut segment, at).unwrap();
            assert!(segment[..len] == noise(at + 1, len) && segment[len..].iter().all(|byte| *byte == 0), "{name} at {at}");
        }
        sparse.read_exact_at(&mut page, SPARSE_BYTES - 4096).unwrap();
        assert!(page.iter().all(|byte| *byte == 0));
    }
    assert!(std::fs::read(mount.path("far")).unwrap() == noise(2, 1 << 20));
    let served: u64 = server.seen_of(&digest).iter().map(|seen| seen.served).sum();
    assert!(served < 12 << 20, "{served} bytes were fetched for a few pages and 7 MiB of noise");
    drop(file);
    for pid in clip.servers() {
        let peak = peak_kib(pid).unwrap_or(0);
        assert!(peak < PEAK_KIB_MAX, "reading took {peak} KiB");
    }
    mount.umount().unwrap();
}

/// Claim: a layer whose stream goes past 2^32 bytes, and sparse files in it of 40 GiB, are indexed and read in bounded memory.
#[test]
fn a_layer_past_4_gib_is_indexed_and_read() {
    assert_long_layer((4 << 30) + (1 << 20));
}

/// Claim: as above for 20 GB.
#[test]
#[ignore = "takes minutes"]
fn a_layer_of_20_gb_is_indexed_and_read() {
    assert_long_layer(20_000_000_000);
}

/// Indexes and mounts an image of `count` small files, a thousand in a directory.
fn assert_many_files(count: usize, peak_kib_max: u64) {
    let layout = Layout::scratch().unwrap();
    let mut layer = HugeLayer::new(&layout).unwrap();
    let path = |number: usize| format!("data/{:04}/file-{number:07}.json", number / 1000);
    for number in 0..count {
        if number % 1000 == 0 {
            layer.member(&Member::dir(format!("data/{:04}", number / 1000))).unwrap();
        }
        layer.member(&Member::file(path(number), number.to_string())).unwrap();
    }
    let layer = layer.finish().unwrap();
    layout.image("files", &[layer], json!({})).unwrap();
    let clip = Clip::new();
    let output = clip.path("files.clip");
    let (peak, seconds) = index_watched(&clip, &layout.reference("files"), &output);
    eprintln!("{count} files: .clip {}, index {seconds:.1} s, peak {} MiB", output.metadata().unwrap().len(), peak >> 10);
    assert!(peak < peak_kib_max, "indexing took {peak} KiB");
    if lacks(&[Need::Root, Need::Fuse]) {
        return;
    }
    let mount = clip.mount(&output, &["--source", text(layout.dir()).unwrap()]).unwrap();
    for number in [0, 1, count / 2, count - 1] {
        assert_eq!(std::fs::read(mount.path(path(number))).unwrap(), number.to_string().into_bytes());
    }
    assert_eq!(std::fs::read_dir(mount.path("data")).unwrap().count(), count.div_ceil(1000));
    assert_eq!(std::fs::read_dir(mount.path("data/0000")).unwrap().count(), 1000);
    mount.umount().unwrap();
}

/// Claim: what a file costs in memory while it is indexed is bounded. Source of both limits: 540 bytes a file were measured.
#[test]
fn a_hundred_thousand_files_are_indexed_and_read() {
    assert_many_files(100_000, 192 << 10);
}

/// Claim: as above for a million.
#[test]
#[ignore = "takes minutes"]
fn a_million_files_are_indexed_and_read() {
    assert_many_files(1_000_000, 1 << 20);
}

/// Claim: a file longer than an index takes, though it be all hole, is refused with its path and the limit.
#[test]
fn files_past_a_tebibyte_are_refused_by_name() {
    if lacks(&[Need::Tool("tar")]) {
        return;
    }
    let scratch = TempDir::new().unwrap();
    let make = r#"cd "$1" && mkdir in && truncate -s 2T in/endless && tar -C in --sparse --format=posix -cf endless.tar ."#;
    shell(make, &[scratch.path().as_os_str()]).unwrap();
    let layout = Layout::create(&scratch.path().join("layout")).unwrap();
    let mut layer = HugeLayer::new(&layout).unwrap();
    layer.raw(&std::fs::read(scratch.path().join("endless.tar")).unwrap()).unwrap();
    layout.image("endless", &[layer.finish().unwrap()], json!({})).unwrap();
    let clip = Clip::new();
    let message = clip.fails(&["index", &layout.reference("endless"), "-o", text(&clip.path("out.clip")).unwrap(), "--quiet"]).unwrap();
    assert!(message.contains("endless") && message.contains(&(1u64 << 40).to_string()), "{message}");
}
