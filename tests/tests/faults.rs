//! A registry that lies, stalls or dies gives its readers an error in bounded time or the right bytes, never a wrong byte, and later reads
//! work again. So does damage on the disk.
#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

use std::{
    fs::OpenOptions,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use clip_format::{clip_file::ClipFile, erofs::check::check};
use clip_tests::{
    clip::{Clip, text},
    faults::{Fault, Server},
    images::{
        Compression, Headers, Layout, Member, TarWriter,
        sample::{self, Sample},
    },
    machine::{Need, lacks},
    served::Served,
    spans::Parts,
};
use serde_json::json;
use tempfile::TempDir;

const NEEDS: &[Need] = &[Need::Root, Need::Fuse];
/// What the mounts of this file are given, and what a read may take beyond it before the test calls it a hang.
const READ_TIMEOUT: &str = "2s";
const READ_MAX: Duration = Duration::from_secs(9);

/// How long a failed read answers the kernel's second question for the same pages (fuse/src/tree/failures.rs), and a little more.
const FAILURE_REMEMBERED: Duration = Duration::from_millis(700);

/// A cold read of `path` fails with EIO within bounded time.
fn assert_fails_in_time(claim: &str, path: &Path) {
    let started = Instant::now();
    let error = std::fs::read(path).expect_err(claim);
    assert_eq!(error.raw_os_error(), Some(libc::EIO), "{claim}: {error}");
    assert!(started.elapsed() < READ_MAX, "{claim}: {:?}", started.elapsed());
}

/// Faults that no retry mends: the reader gets EIO in bounded time, the log says what failed, and when the registry is well again the
/// same read succeeds.
#[test]
fn a_bad_registry_is_an_error_in_bounded_time_and_no_longer_than_it_is_bad() {
    if lacks(NEEDS) {
        return;
    }
    let cases = [
        ("wrong bytes", Fault::WrongBytes),
        ("no bytes", Fault::CutAfter(0)),
        ("not found", Fault::Status(404)),
        ("server error", Fault::Status(500)),
        ("silent at once", Fault::SilentAfter(0)),
        ("silent in the middle", Fault::SilentAfter(10_000)),
    ];
    for (claim, fault) in cases {
        let served = Served::new().unwrap();
        let mount = served.clip.mount(&served.file, &["--read-timeout", READ_TIMEOUT]).unwrap();
        served.server.fault(fault);
        assert_fails_in_time(claim, &mount.path(sample::SHORT));
        let log = served.clip.log();
        let lines: Vec<&str> = log.lines().filter(|line| line.contains("ERROR") || line.contains("WARN")).collect();
        let about: Vec<&&str> = lines.iter().filter(|line| line.contains("sha256:") || line.contains("127.0.0.1")).collect();
        assert!(!about.is_empty(), "{claim}: the log does not say what failed:\n{log}");
        // The kernel repeats a read that failed as read-ahead; each gets its line, and no more.
        assert!(about.len() <= 4, "{claim}: {} lines for one read:\n{log}", about.len());
        served.server.fault(Fault::None);
        std::thread::sleep(FAILURE_REMEMBERED);
        served.assert_all_right(mount.dir());
    }
}

/// A registry whose port is closed is such a fault too; after it listens again, reads work without a new mount.
#[test]
fn a_dead_registry_comes_back() {
    if lacks(NEEDS) {
        return;
    }
    let mut served = Served::new().unwrap();
    let mount = served.clip.mount(&served.file, &["--read-timeout", READ_TIMEOUT]).unwrap();
    let short = mount.path(sample::SHORT);
    std::fs::read(&short).unwrap();
    served.server.die();
    assert_eq!(std::fs::read(&short).unwrap(), served.sample.contents(sample::SHORT), "what is cached is read without a registry");
    assert_fails_in_time("dead registry", &mount.path(sample::NOISE));
    served.server.revive().unwrap();
    std::thread::sleep(FAILURE_REMEMBERED);
    served.assert_all_right(mount.dir());
}

/// One failed read of a dead registry is one line in the log when nothing reads ahead.
#[test]
fn one_failed_read_is_one_line() {
    if lacks(NEEDS) {
        return;
    }
    let mut served = Served::new().unwrap();
    let options = ["--read-timeout", READ_TIMEOUT, "--read-ahead", "0", "--kernel-read-ahead", "0"];
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

/// Faults that retries mend cost the reader nothing but time: every third answer a 503, bodies cut short after some progress, ranges
/// ignored, answers late.
#[test]
fn a_flaky_registry_is_read_right() {
    if lacks(NEEDS) {
        return;
    }
    for claim in ["every third is a 503", "cut after 100 KB", "whole blobs", "404 once in the middle", "late"] {
        let served = Served::new().unwrap();
        let mount = served.clip.mount(&served.file, &["--read-timeout", "10s"]).unwrap();
        served.server.forget();
        served.server.script(move |number, seen| match claim {
            _ if !seen.is_blob() => Fault::None,
            "every third is a 503" if number % 3 == 0 => Fault::Status(503),
            "cut after 100 KB" => Fault::CutAfter(100_000),
            "whole blobs" => Fault::WholeBlob,
            "late" => Fault::Late(Duration::from_millis(50)),
            _ => Fault::None,
        });
        if claim.starts_with("404") {
            served.server.script(|number, seen| if seen.is_blob() && number == 1 { Fault::Status(404) } else { Fault::None });
            // One read may fail; what is read is right, and the next read is not refused.
            for (path, contents) in &served.sample.files {
                let found = std::fs::read(mount.path(path)).or_else(|_| {
                    std::thread::sleep(FAILURE_REMEMBERED);
                    std::fs::read(mount.path(path))
                });
                assert!(found.unwrap() == *contents, "{path}");
            }
            continue;
        }
        served.assert_all_right(mount.dir());
    }
}

/// Indexing from a registry that cuts every body after 100,000 bytes resumes each and gives the bytes that a well registry gives.
#[test]
fn indexing_resumes_cut_bodies() {
    let sample = Sample::new().unwrap();
    let server = Server::start(&sample.layout).unwrap();
    let clip = Clip::new();
    let reference = server.reference("sample", sample::TAG);
    let expected = clip.index(&reference, "well", &[]).unwrap();
    server.forget();
    server.fault(Fault::CutAfter(100_000));
    let found = clip.index(&reference, "cut", &[]).unwrap();
    assert!(std::fs::read(expected).unwrap() == std::fs::read(found).unwrap(), "the fault shows in the .clip");
    let resumed = server.seen().iter().filter(|seen| seen.range.is_some_and(|(first, _)| first > 0)).count();
    assert!(resumed > 10, "{resumed} requests in the middle of a blob");
}

/// Indexing what no retry mends fails with a message that names the layer, and leaves no output, no temporary file and an older output
/// as it was.
#[test]
fn indexing_from_a_bad_registry_names_the_layer_and_leaves_nothing() {
    let cases = [
        ("wrong bytes", Fault::WrongBytes),
        ("no bytes", Fault::CutAfter(0)),
        ("not found", Fault::Status(404)),
        ("server error", Fault::Status(500)),
        ("silent", Fault::SilentAfter(0)),
    ];
    std::thread::scope(|scope| {
        for (claim, fault) in cases {
            scope.spawn(move || assert_indexing_fails(claim, fault));
        }
    });
}

fn assert_indexing_fails(claim: &str, fault: Fault) {
    let sample = Sample::new().unwrap();
    let server = Server::start(&sample.layout).unwrap();
    let (work, scratch) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let clip = Clip::new().with_variable("TMPDIR", scratch.path());
    let digest = sample.layout.layer_digests(sample::TAG).unwrap().remove(0);
    let bad = digest.clone();
    server.script(move |_, seen| if seen.path.ends_with(&bad) { fault } else { Fault::None });
    let reference = server.reference("sample", sample::TAG);
    let (old, new) = (work.path().join("old.clip"), work.path().join("new.clip"));
    std::fs::write(&old, "old").unwrap();
    for output in [&old, &new] {
        // What is silent is given up three times.
        let message = clip.fails(&["index", &reference, "-o", text(output).unwrap(), "--quiet", "--read-timeout", "2s"]).unwrap();
        assert!(message.contains(&digest), "{claim}: the layer {digest} is not named: {message}");
    }
    assert_eq!(std::fs::read(&old).unwrap(), b"old", "{claim}");
    let left = |dir: &Path| -> Vec<_> { std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name()).collect() };
    assert_eq!(left(work.path()), ["old.clip"], "{claim}");
    assert_eq!(left(scratch.path()), [""; 0], "{claim}");
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

/// A cache file that is cut to nothing under a reader is no SIGBUS and no wrong byte: an error at worst, and the process lives.
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
    let scratch = TempDir::new().unwrap();
    let layout = Layout::create(scratch.path()).unwrap();
    let members = [Member::dir("d"), Member::file("d/f", "contents"), Member::symlink("l", "d/f"), Member::hard_link("h", "d/f")];
    let layer = layout.layer(&TarWriter::stream(&members, Headers::Pax), &Compression::ZlibRs(6)).unwrap();
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
