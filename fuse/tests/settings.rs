//! The settings of a mount are in force, as the kernel itself says or shows.
#![allow(missing_docs, clippy::unwrap_used)]

mod place;
mod sample;

use std::{
    fs::{self, File},
    os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt},
    path::Path,
    time::{Duration, Instant},
};

use clip_fuse::{MountOptions, mount_source};
use place::{Place, can_mount};
use sample::Supply;

/// Threads of this process whose names begin with `prefix`.
fn threads(prefix: &str) -> usize {
    let tasks = fs::read_dir("/proc/self/task").unwrap();
    tasks.filter(|task| fs::read_to_string(task.as_ref().unwrap().path().join("comm")).is_ok_and(|name| name.starts_with(prefix))).count()
}

/// Open files of this process that are `path`.
fn descriptors(path: &str) -> usize {
    let all = fs::read_dir("/proc/self/fd").unwrap();
    all.filter(|fd| fs::read_link(fd.as_ref().unwrap().path()).is_ok_and(|target| target == Path::new(path))).count()
}

/// The kernel's own lists have the options, the limits on background requests and the read-ahead that were asked for; each session thread
/// has a descriptor of its own; a request brings 1 MiB; and opens never reach the file system.
#[test]
fn what_was_asked_for_is_in_force() {
    if !can_mount() {
        return;
    }
    let (place, source) = (Place::new(), sample::source(true));
    let options = MountOptions { session_threads: 3, read_ahead_kb: 768, ..MountOptions::new("/images/sample.clip".into()) };
    let mounted = mount_source(source.clone(), &place.m(), &options).unwrap();
    // In one test, since the process's threads are counted.
    let (beside, defaults) = (Place::new(), MountOptions { session_threads: 1, ..MountOptions::new("x".into()) });
    let ordinary = mount_source(source.clone(), &beside.m(), &defaults).unwrap();
    assert_eq!(ordinary.in_force().read_ahead_kb, Some(512));
    drop(ordinary);

    let in_force = mounted.in_force();
    assert_eq!((in_force.max_background, in_force.congestion_threshold), (Some(128), Some(128)));
    assert_eq!(in_force.read_ahead_kb, Some(768));
    let words = in_force.options.unwrap();
    let words: Vec<&str> = words.split(',').collect();
    for wanted in ["ro", "user_id=0", "group_id=0", "default_permissions", "allow_other"] {
        assert!(words.contains(&wanted), "{wanted}: {words:?}");
    }
    assert!(!words.iter().any(|word| ["rw", "nosuid", "nodev", "noexec"].contains(word)), "{words:?}");
    let deadline = Instant::now() + Duration::from_secs(10);
    while (threads("fuser-"), descriptors("/dev/fuse")) != (3, 3) {
        assert!(Instant::now() < deadline, "{} threads, {} descriptors", threads("fuser-"), descriptors("/dev/fuse"));
        std::thread::sleep(Duration::from_millis(5));
    }

    // Read past the page cache: what arrives is what the protocol allows in one request.
    source.supply(0, Supply::Present);
    let mut open = File::options();
    let file = open.read(true).custom_flags(libc::O_DIRECT).open(place.m().join("file")).unwrap();
    let mut whole = vec![0; 4 << 20];
    let start = whole.as_ptr().align_offset(4096);
    file.read_at(&mut whole[start..start + (2 << 20)], 0).unwrap();
    let longest = source.0.notes.lock().unwrap().iter().map(|(_, range, _)| range.end - range.start).max();
    assert_eq!(longest, Some(1 << 20));

    // Attributes, names that are not there and link targets are asked for once.
    for _ in 0..3 {
        assert_eq!(fs::metadata(place.m().join("file")).unwrap().ino(), file.metadata().unwrap().ino());
    }
}
