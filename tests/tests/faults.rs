//! Damage on the disk, and of a `.clip`, is an error in words or the right bytes, never a wrong byte. What a registry does wrong is in
//! `fault_table`.
#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

use std::{
    fs::OpenOptions,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use clip_format::{clip_file::ClipFile, erofs::check::check};
use clip_tests::{
    clip::{Clip, text},
    images::{Layout, Member, sample},
    machine::{Need, lacks},
    served::Served,
    spans::Parts,
};
use serde_json::json;

const NEEDS: &[Need] = &[Need::Root, Need::Fuse];
/// One failed read of a dead registry is one line in the log when nothing reads ahead.
#[test]
fn one_failed_read_is_one_line() {
    if lacks(NEEDS) {
        return;
    }
    let mut served = Served::new().unwrap();
    let options = ["--read-timeout", "2s", "--read-ahead", "0", "--kernel-read-ahead", "0"];
    let mount = served.clip.mount(&served.file, &options).unwrap();
    served.server.die();
    let file = std::fs::File::open(mount.path(sample::NOISE)).unwrap();
    let error = file.read_exact_at(&mut [0; 4096], 0).expect_err("a dead registry");
    assert_eq!(error.raw_os_error(), Some(libc::EIO));
    let log = served.clip.log();
    let lines: Vec<&str> = log.lines().filter(|line| line.contains("ERROR") || line.contains("WARN")).collect();
    assert_eq!(lines.len(), 1, "{log}");
    assert!(lines[0].contains("sha256:") && lines[0].contains("127.0.0.1"), "{}", lines[0]);
}

/// The stream files of the cache.
fn stream_files(clip: &Clip) -> Vec<PathBuf> {
    let listed = clip_tests::process::shell("find \"$1\" -name stream", &[clip.cache_dir().as_os_str()]).unwrap();
    listed.lines().map(PathBuf::from).collect()
}

/// Bytes that went bad in the cache while nobody served it are found and fetched again.
#[test]
fn a_corrupted_cache_is_repaired() {
    if lacks(NEEDS) {
        return;
    }
    let served = Served::new().unwrap();
    let mount = served.clip.mount(&served.file, &[]).unwrap();
    served.assert_all_right(mount.dir());
    mount.umount().unwrap();
    served.clip.wait_for_servers().unwrap();
    let streams = stream_files(&served.clip);
    assert_eq!(streams.len(), 2, "one a layer: {streams:?}");
    for stream in streams {
        let file = OpenOptions::new().read(true).write(true).open(&stream).unwrap();
        let mut at = 1500;
        while at < file.metadata().unwrap().len() {
            let mut byte = [0];
            file.read_exact_at(&mut byte, at).unwrap();
            file.write_all_at(&[byte[0] ^ 0x10], at).unwrap();
            at += 1_300_000;
        }
    }
    let stats = served.clip.path("stats.json");
    let mount = served.clip.mount(&served.file, &["--stats", text(&stats).unwrap()]).unwrap();
    served.assert_all_right(mount.dir());
    mount.umount().unwrap();
    served.clip.wait_for_servers().unwrap();
    let written = std::fs::read_to_string(stats).unwrap();
    assert!(written.contains("spans_repaired") && !written.contains("\"spans_repaired\": 0,"), "{written}");
}

/// A cache file that is cut to nothing under a reader is no SIGBUS and no wrong byte: an error at worst, the process lives, and the same
/// owner serves every file again.
#[test]
fn a_truncated_cache_file_under_load_kills_nobody() {
    if lacks(NEEDS) {
        return;
    }
    let served = Served::new().unwrap();
    let mount = served.clip.mount(&served.file, &[]).unwrap();
    served.assert_all_right(mount.dir());
    let owners = served.clip.servers();
    for stream in stream_files(&served.clip) {
        let len = stream.metadata().unwrap().len();
        let file = OpenOptions::new().write(true).open(&stream).unwrap();
        file.set_len(0).unwrap();
        std::fs::write("/proc/sys/vm/drop_caches", "1").unwrap();
        for (path, contents) in &served.sample.files {
            if let Ok(found) = std::fs::read(mount.path(path)) {
                assert!(found == *contents, "{path}: a wrong byte");
            }
        }
        // Grown again it holds zeros where bytes were: those must not be served either, once a new owner has looked.
        file.set_len(len).unwrap();
    }
    // A failed read has the same answer for half a second; then each is tried again.
    std::thread::sleep(std::time::Duration::from_secs(1));
    std::fs::write("/proc/sys/vm/drop_caches", "1").unwrap();
    served.assert_all_right(mount.dir());
    assert_eq!(served.clip.servers(), owners, "the owner lives");
    mount.umount().unwrap();
    served.clip.wait_for_servers().unwrap();
    let mount = served.clip.mount(&served.file, &[]).unwrap();
    served.assert_all_right(mount.dir());
}

/// A cache on a full disk: reads are right and pass through; nothing dies, and the statistics say how much was not kept.
#[test]
fn a_full_disk_passes_through() {
    if lacks(NEEDS) {
        return;
    }
    let served = Served::new().unwrap();
    let cache = served.clip.cache_dir();
    std::fs::create_dir(&cache).unwrap();
    // 4 MiB for 10 MB of layers; the temporary directory's guard takes it down with the mounts below it.
    let options = c"size=4m,mode=0700";
    rustix::mount::mount("none", &cache, "tmpfs", rustix::mount::MountFlags::empty(), Some(options)).unwrap();
    let stats = served.clip.path("stats.json");
    let mount = served.clip.mount(&served.file, &["--stats", text(&stats).unwrap()]).unwrap();
    let owners = served.clip.servers();
    served.assert_all_right(mount.dir());
    std::fs::write("/proc/sys/vm/drop_caches", "1").unwrap();
    served.assert_all_right(mount.dir());
    assert_eq!(served.clip.servers(), owners, "the owner lives");
    mount.umount().unwrap();
    served.clip.wait_for_servers().unwrap();
    let written = std::fs::read_to_string(stats).unwrap();
    assert!(!written.contains("\"spans_not_cached\": 0,"), "{written}");
}

/// A `.clip` of a few hundred bytes of tree.
fn tiny_clip(clip: &Clip) -> Vec<u8> {
    let layout = Layout::scratch().unwrap();
    let members = [Member::dir("d"), Member::file("d/f", "contents"), Member::symlink("l", "d/f"), Member::hard_link("h", "d/f")];
    let layer = layout.gzip(&members).unwrap();
    layout.image("tiny", &[layer], json!({})).unwrap();
    std::fs::read(clip.index(&layout.reference("tiny"), "tiny", &[]).unwrap()).unwrap()
}

/// What a `.clip` says: its sections, expanded.
#[derive(PartialEq, Eq)]
struct Meaning {
    index: Vec<u8>,
    storage_info: Vec<u8>,
    checkpoints: Vec<u8>,
    windows: Vec<u8>,
}

/// Reads all of a `.clip` as the library does; `Ok` only when everything is consistent.
fn meaning(bytes: &[u8], path: &Path) -> anyhow::Result<Meaning> {
    let clip = ClipFile::parse(bytes)?;
    std::fs::write(path, bytes)?;
    let parts = Parts::read(path)?;
    check(&parts.tree()?)?;
    Ok(Meaning {
        index: parts.index.clone(),
        storage_info: parts.storage_info.to_bytes()?,
        checkpoints: clip.checkpoints()?,
        windows: parts.windows,
    })
}

/// Each byte of a small `.clip` inverted, each bit of its header, and the file cut at each length: it is noticed, or the file still means
/// exactly the same (a bit of zstd's framing that its decoder does not look at). None is a panic.
#[test]
fn every_flipped_byte_of_a_clip_is_noticed() {
    let clip = Clip::new();
    let good = tiny_clip(&clip);
    let path = clip.path("flipped.clip");
    let expected = meaning(&good, &path).unwrap();
    let mut unnoticed = 0;
    for at in 0..good.len() {
        let masks: &[u8] = if at < 512 { &[0xff, 1, 2, 4, 8, 16, 32, 64, 128] } else { &[0xff, 1] };
        for mask in masks {
            let mut bytes = good.clone();
            bytes[at] ^= mask;
            if let Ok(found) = meaning(&bytes, &path) {
                assert!(at >= 512, "byte {at} ^ {mask:#04x} of the header is not noticed");
                assert!(found == expected, "byte {at} ^ {mask:#04x} changes the meaning and is not noticed");
                unnoticed += 1;
            }
        }
    }
    assert!(unnoticed <= 8, "{unnoticed} changed bytes have no effect at all");
    for len in 0..good.len() {
        assert!(meaning(&good[..len], &path).is_err(), "cut to {len} bytes is not noticed");
    }
}

/// The binary says the same, with an exit status and a message, at places all over the file.
#[test]
fn the_binary_reports_flipped_bytes() {
    let clip = Clip::new();
    let good = tiny_clip(&clip);
    let path = clip.path("flipped.clip");
    for at in (0..good.len()).step_by(good.len().div_ceil(40)).chain([0, 9, 10, 18, 42, 511, good.len() - 1]) {
        let mut bytes = good.clone();
        bytes[at] ^= 0xff;
        let noticed = meaning(&bytes, &path).is_err();
        std::fs::write(&path, &bytes).unwrap();
        if noticed {
            let finished = clip.run(&["verify", text(&path).unwrap()]).unwrap();
            assert_eq!(finished.status.code(), Some(1), "byte {at}: {}{}", finished.text(), finished.stderr);
            assert!(!finished.stderr.trim().is_empty() || !finished.stdout.is_empty(), "byte {at}: no message");
        }
    }
    std::fs::write(&path, &good).unwrap();
    clip.ok(&["verify", text(&path).unwrap()]).unwrap();
}
