//! Memory stays bounded whatever a layer holds: a deflate block of 1 GiB cannot be entered, only streamed through; a zstd frame may refer
//! to 128 MiB of history.
#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

use std::{
    io::Write,
    os::unix::fs::FileExt,
    process::Stdio,
    time::{Duration, Instant},
};

use clip_tests::{
    clip::{Clip, text},
    faults::Server,
    images::{Compression, Layout, Member, TarWriter, deflate::one_block_gzip},
    machine::{Need, lacks},
    process::{Running, peak_kib},
};
use serde_json::json;
use sha2::{Digest, Sha256};

/// Zeros in the block: the giant file and the tar's end marker.
const ZEROS: u64 = 1 << 30;
/// What indexing or reading it may take. Source: the engine's default of 256 MiB in flight, and room for code, stacks and tables.
const PEAK_KIB_MAX: u64 = 448 << 10;

/// The head of a tar whose one member is `size` zeros.
fn giant_head(size: u64) -> Vec<u8> {
    let mut writer = TarWriter::default();
    let digits = format!("{size:011o}");
    writer.member(&Member::file("giant", Vec::new()), clip_tests::images::Headers::Pax);
    let mut head = writer.finish();
    head.truncate(512);
    head[124..135].copy_from_slice(digits.as_bytes());
    head[148..156].fill(b' ');
    let sum: u32 = head.iter().map(|byte| u32::from(*byte)).sum();
    head[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    head
}

fn stream_digest(head: &[u8], zeros: u64) -> String {
    let mut hasher = Sha256::new();
    hasher.update(head);
    let chunk = vec![0; 1 << 20];
    let mut left = zeros;
    while left > 0 {
        let len = left.min(chunk.len() as u64);
        hasher.update(&chunk[..usize::try_from(len).unwrap()]);
        left -= len;
    }
    format!("sha256:{}", hex::encode(hasher.finalize()))
}

/// Runs `clip` with `arguments`, which make it index; returns the most memory that it took, which is bounded.
fn index(clip: &Clip, arguments: &[&str]) -> u64 {
    let mut command = clip.command(arguments);
    let mut running = Running::start(command.stdin(Stdio::null())).unwrap();
    let (started, mut peak) = (Instant::now(), 0);
    while running.is_alive() {
        peak = peak.max(peak_kib(running.0.id()).unwrap_or(0));
        assert!(started.elapsed() < Duration::from_secs(120), "indexing takes for ever");
        std::thread::sleep(Duration::from_millis(10));
    }
    assert!(running.wait(Duration::from_secs(1)).unwrap().success());
    assert!(peak < PEAK_KIB_MAX, "indexing took {peak} KiB");
    peak
}

/// Zeros of a frame with the largest window, which they fill: 128 MiB and some.
const FRAME_ZEROS: u64 = 144 << 20;

/// `head` and `zeros` zeros in one frame that says nothing of its length, with a window of 128 MiB.
fn one_frame_zstd(head: &[u8], zeros: u64) -> Vec<u8> {
    let mut encoder = zstd::stream::Encoder::new(Vec::new(), 1).unwrap();
    encoder.window_log(27).unwrap();
    encoder.write_all(head).unwrap();
    std::io::copy(&mut std::io::Read::take(std::io::repeat(0), zeros), &mut encoder).unwrap();
    encoder.finish().unwrap()
}

/// Four layers with windows of 128 MiB each, indexed side by side, take bounded memory together: less than four windows, no less than one.
#[test]
fn layers_with_large_windows_share_memory() {
    let layout = Layout::scratch().unwrap();
    let layer = |number: u64| {
        let head = giant_head(FRAME_ZEROS - 1024 - 512 * number);
        let mut layer = layout.layer(b"", &Compression::Ready(one_frame_zstd(&head, FRAME_ZEROS))).unwrap();
        layer.media_type = "application/vnd.oci.image.layer.v1.tar+zstd";
        layer.diff_id = stream_digest(&head, FRAME_ZEROS);
        layer
    };
    layout.image("windows", &[0, 1, 2, 3].map(layer), json!({})).unwrap();
    let clip = Clip::new();
    let file = clip.path("windows.clip");
    let peak = index(&clip, &["index", &layout.reference("windows"), "-o", text(&file).unwrap(), "--quiet", "--jobs", "4"]);
    assert!(peak > 128 << 10, "{peak} KiB hold no window");
    println!("four layers with windows of 128 MiB: {} MiB at most", peak >> 10);
}

/// Indexing and reading a layer that is one deflate block of 1 GiB take bounded memory and give the right bytes.
#[test]
fn a_block_of_one_gib_is_streamed_through() {
    let layout = Layout::scratch().unwrap();
    let size = ZEROS - 1024;
    let head = giant_head(size);
    let mut layer = layout.layer(b"", &Compression::Ready(one_block_gzip(&head, ZEROS))).unwrap();
    layer.diff_id = stream_digest(&head, ZEROS);
    layout.image("giant", &[layer], json!({})).unwrap();
    let server = Server::start(&layout).unwrap();
    let clip = Clip::new();
    let file = clip.path("giant.clip");

    index(&clip, &["index", &server.reference("giant", "giant"), "-o", text(&file).unwrap(), "--quiet"]);
    assert!(file.metadata().unwrap().len() < 300_000, "the index of one file has {} bytes", file.metadata().unwrap().len());

    if lacks(&[Need::Root, Need::Fuse]) {
        return;
    }
    let mount = clip.mount(&file, &[]).unwrap();
    let giant = std::fs::File::open(mount.path("giant")).unwrap();
    assert_eq!(giant.metadata().unwrap().len(), size);
    for offset in [size - 4096, size / 2, 0] {
        let mut bytes = vec![1; 4096];
        giant.read_exact_at(&mut bytes, offset).unwrap();
        assert!(bytes.iter().all(|byte| *byte == 0), "at {offset}");
    }
    for pid in clip.servers() {
        let peak = peak_kib(pid).unwrap_or(0);
        assert!(peak < PEAK_KIB_MAX, "reading took {peak} KiB");
    }
}
