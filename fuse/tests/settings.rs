//! The settings of a mount are in force, as the kernel itself says or shows.
#![allow(missing_docs, clippy::unwrap_used)]

mod place;
mod sample;

use std::{
    fs::{self, File},
    os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt},
    path::Path,
    sync::{Mutex, PoisonError},
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

/// What fuser says of the connection: a line for each request before it is answered, one for each flag of INIT.
struct Said(Mutex<Vec<String>>);

static SAID: Said = Said(Mutex::new(Vec::new()));

impl Said {
    /// All of it since the last call.
    fn take(&self) -> Vec<String> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl log::Log for Said {
    fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
        metadata.target().starts_with("fuser")
    }

    fn log(&self, record: &log::Record<'_>) {
        if self.enabled(record.metadata()) {
            self.0.lock().unwrap_or_else(PoisonError::into_inner).push(record.args().to_string());
        }
    }

    fn flush(&self) {}
}

/// The request that `line` tells of: `FUSE(  7) ino 0x0000000000000001 LOOKUP name "file" thread=fuser-0` from LOOKUP on.
fn request(line: &str) -> Option<&str> {
    let (_, node) = line.strip_prefix("FUSE(")?.split_once(" ino ")?;
    node.split_once(' ').map(|(_, request)| request)
}

/// How many requests among `said` begin with `operation`.
fn requests(said: &[String], operation: &str) -> usize {
    said.iter().filter_map(|line| request(line)).filter(|request| request.starts_with(operation)).count()
}

/// What the mount asks the kernel for in INIT, and what it must not ask for.
const WANTED: [&str; 10] = [
    "FUSE_ASYNC_READ",
    "FUSE_ASYNC_DIO",
    "FUSE_PARALLEL_DIROPS",
    "FUSE_DO_READDIRPLUS",
    "FUSE_READDIRPLUS_AUTO",
    "FUSE_CACHE_SYMLINKS",
    "FUSE_EXPLICIT_INVAL_DATA",
    "FUSE_MAX_PAGES",
    "FUSE_ALLOW_IDMAP",
    // The sample has an ACL.
    "FUSE_POSIX_ACL",
];
const UNWANTED: [&str; 3] = ["FUSE_AUTO_INVAL_DATA", "FUSE_EXPORT_SUPPORT", "FUSE_WRITEBACK_CACHE"];

/// Every flag that was wanted and that the kernel has is agreed on: all but the newest on any kernel since 5.2.
fn assert_flags_agreed(said: &[String]) {
    let is_said = |flag: &str, what: &str| said.iter().any(|line| *line == format!("capability {flag} {what}"));
    for flag in WANTED {
        // Linux 6.12.
        let is_old_kernel = flag == "FUSE_ALLOW_IDMAP" && is_said(flag, "not supported by kernel");
        assert!(is_said(flag, "enabled") || is_old_kernel, "{flag}: {said:#?}");
    }
    for flag in UNWANTED {
        assert!(!is_said(flag, "enabled"), "{flag}: {said:#?}");
    }
}

/// The kernel's own lists have the options, the limits on background requests and the read-ahead that were asked for; the flags of INIT are
/// agreed on; each session thread has a descriptor of its own; a request brings 1 MiB; names, those that are not there, attributes and link
/// targets are asked for once, and opens once a mount.
#[test]
fn what_was_asked_for_is_in_force() {
    if !can_mount() {
        return;
    }
    log::set_logger(&SAID).unwrap();
    log::set_max_level(log::LevelFilter::Debug);
    let (place, source) = (Place::new(), sample::source(true));
    let options = MountOptions { session_threads: 3, read_ahead_kb: 768, ..MountOptions::new("/images/sample.clip".into()) };
    let mounted = mount_source(source.clone(), &place.m(), &options).unwrap();
    assert_flags_agreed(&SAID.take());
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
    // A read is noted after its answer.
    let longest = || source.0.notes.lock().unwrap().iter().map(|(_, range, _)| range.end - range.start).max();
    while longest().is_none() {
        assert!(Instant::now() < deadline, "no read was noted");
        std::thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(longest(), Some(1 << 20));

    // Only the first open of the mount came, which says that there need be no more.
    let opened = SAID.take();
    assert_eq!((requests(&opened, "LOOKUP name \"file\""), requests(&opened, "OPEN flags")), (1, 1), "{opened:#?}");
    for _ in 0..3 {
        assert_eq!(fs::metadata(place.m().join("slow")).unwrap().len(), sample::SLOW_LEN as u64);
        assert_eq!(fs::metadata(place.m().join("none")).unwrap_err().kind(), std::io::ErrorKind::NotFound);
        fs::read_link(place.m().join("link")).unwrap();
        for name in ["slow", "file"] {
            let mut first = [0; 1];
            File::open(place.m().join(name)).unwrap().read_at(&mut first, 0).unwrap();
        }
        assert_eq!(fs::metadata(place.m().join("file")).unwrap().ino(), file.metadata().unwrap().ino());
    }
    let said = SAID.take();
    for once in ["LOOKUP name \"slow\"", "LOOKUP name \"none\"", "LOOKUP name \"link\"", "READLINK"] {
        assert_eq!(requests(&said, once), 1, "{once}: {said:#?}");
    }
    for never in ["LOOKUP name \"file\"", "GETATTR", "OPEN flags"] {
        assert_eq!(requests(&said, never), 0, "{never}: {said:#?}");
    }
}
