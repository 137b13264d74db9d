//! The owner process as a user meets it: mounts in the background, joins, refusals, signals, the end. Needs /dev/fuse and root; where
//! either is missing each test says so and passes.
#![allow(clippy::unwrap_used)]

mod image;

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    os::unix::{
        fs::MetadataExt as _,
        net::{UnixListener, UnixStream},
    },
    path::Path,
    process::{Child, Command, Stdio},
    sync::mpsc,
    time::{Duration, Instant},
};

use image::{clip, failure, indexed, ok};

fn can_mount() -> bool {
    let device = std::fs::OpenOptions::new().read(true).write(true).open("/dev/fuse").is_ok();
    let can = device && rustix::process::geteuid().is_root();
    if !can {
        eprintln!("skipped: needs root and /dev/fuse");
    }
    can
}

/// An indexed image with directories `m1` and `m2`; whatever is still mounted when it goes is detached.
struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        let dir = indexed();
        for name in ["m1", "m2"] {
            std::fs::create_dir(dir.path().join(name)).unwrap();
        }
        Self(dir)
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    /// The owner's pid, from the cache directory's `owner.lock`.
    fn owner(&self) -> Option<i32> {
        let text = std::fs::read_to_string(self.path().join("cache/owner.lock")).ok()?;
        text.trim().parse().ok()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        for name in ["m1", "m2"] {
            let _ = clip(self.path(), &["umount", "--lazy", name]);
        }
    }
}

fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let by = Instant::now() + Duration::from_secs(10);
    while !holds() {
        assert!(Instant::now() < by, "{what}: not within 10 s");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn socket_is_gone(place: &Place) -> bool {
    !place.path().join("cache/owner.sock").exists()
}

fn signal(pid: i32, signal: rustix::process::Signal) {
    rustix::process::kill_process(rustix::process::Pid::from_raw(pid).unwrap(), signal).unwrap();
}

fn foreground(place: &Place, dir: &str) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_clip"));
    command.current_dir(place.path()).args(["mount", "--foreground", "a.clip", dir]).env("CLIP_CACHE_DIR", place.path().join("cache"));
    let child = command.stderr(Stdio::null()).spawn().unwrap();
    eventually("foreground mount", || place.path().join(dir).join("run").exists());
    child
}

/// What `clip mount a.clip DIR` asks the owner for.
fn request(place: &Place, dir: &str) -> serde_json::Value {
    let namespace = std::fs::metadata("/proc/self/ns/mnt").unwrap().ino();
    serde_json::json!({
        "request": "mount", "protocol": 4, "clip": place.path().join("a.clip"), "mountpoint": place.path().join(dir),
        "mount_namespace": namespace, "wish": { "plain_http": false, "ca": null },
        "source": null, "store_ref": null, "stats": null, "wait": false,
        "options": { "fsname": "a", "suid": true, "dev": true, "exec": true, "allow_other": true, "contexts": [],
            "session_threads": 1, "read_ahead_kb": 512 },
    })
}

/// The second mount joins the first's owner, an option that differs is refused by name, and the owner leaves after the last umount.
#[test]
fn mounts_share_one_owner_that_leaves() {
    if !can_mount() {
        return;
    }
    let place = Place::new();
    ok(place.path(), &["mount", "--shards", "1", "--stats", "stats.json", "a.clip", "m1"]);
    let owner = place.owner();
    assert_eq!(std::fs::read(place.path().join("m1/run")).unwrap(), b"#!/x");
    ok(place.path(), &["mount", "a.clip", "m2"]);
    assert_eq!(place.owner(), owner);
    let text = failure(place.path(), &["mount", "--shards", "2", "a.clip", "m2"], 1);
    assert!(text.contains("--shards is 1 there, 2 was asked for"), "{text}");
    assert!(failure(place.path(), &["mount", "a.clip", "m2"], 1).contains("m2"));
    ok(place.path(), &["umount", "m1"]);
    let stats = place.path().join("stats.json");
    eventually("stats at the end of the mount", || stats.exists());
    let stats: serde_json::Value = serde_json::from_slice(&std::fs::read(stats).unwrap()).unwrap();
    assert!(stats["engine"]["bytes_read"].as_u64().unwrap() >= 4, "{stats}");
    assert!(place.path().join("m2/run").exists());
    ok(place.path(), &["umount", "m2"]);
    eventually("the owner leaves", || socket_is_gone(&place));
}

/// What the first mount sets for the whole owner reaches it, and a later mount that wants another value is refused by name.
#[test]
fn settings_of_the_owner_are_kept_or_refused() {
    if !can_mount() {
        return;
    }
    let place = Place::new();
    ok(place.path(), &["mount", "--log-level", "debug", "--log-file", "x.log", "--stop-timeout", "5s", "a.clip", "m1"]);
    let log = std::fs::read_to_string(place.path().join("x.log")).unwrap();
    assert!(log.contains("DEBUG"), "{log}");
    for (option, value, text) in [
        ("--stop-timeout", "7s", "--stop-timeout is 5s there, 7s was asked for"),
        ("--log-file", "y.log", "x.log there, "),
        ("--log-level", "warn", "--log-level is debug there, warn was asked for"),
    ] {
        let found = failure(place.path(), &["mount", option, value, "a.clip", "m2"], 1);
        assert!(found.contains(text), "{found}");
    }
    ok(place.path(), &["mount", "-o", "log-level=debug,stop-timeout=5000ms", "--log-file", "./x.log", "a.clip", "m2"]);
    ok(place.path(), &["umount", "m1", "m2"]);
    eventually("the owner leaves", || socket_is_gone(&place));
    let text = failure(place.path(), &["mount", "--foreground", "--log-file", "x.log", "a.clip", "m1"], 2);
    assert!(text.contains("standard error"), "{text}");
}

/// Whoever asked for a mount and went away before the answer leaves no mount behind.
#[test]
fn interrupted_mount_leaves_none() {
    if !can_mount() {
        return;
    }
    let place = Place::new();
    ok(place.path(), &["mount", "a.clip", "m2"]);
    let request = request(&place, "m1");
    let owner = place.owner().unwrap();
    let mut socket = UnixStream::connect(place.path().join("cache/owner.sock")).unwrap();
    // Else it may answer before the socket is closed, and all is well.
    signal(owner, rustix::process::Signal::STOP);
    socket.write_all(format!("{request}\n").as_bytes()).unwrap();
    drop(socket);
    signal(owner, rustix::process::Signal::CONT);
    let log = || std::fs::read_to_string(place.path().join("cache/owner.log")).unwrap();
    eventually("the owner notices", || log().contains("whoever asked for this mount is gone"));
    eventually("the mount is gone", || !place.path().join("m1/run").exists());
    ok(place.path(), &["umount", "m2"]);
    eventually("the owner leaves", || socket_is_gone(&place));
}

/// Many mounts and umounts that come while an owner starts or leaves all succeed.
#[test]
fn racing_mounts_all_succeed() {
    if !can_mount() {
        return;
    }
    let place = Place::new();
    std::thread::scope(|scope| {
        for number in 0..6 {
            let dir = format!("r{number}");
            std::fs::create_dir(place.path().join(&dir)).unwrap();
            let place = &place;
            scope.spawn(move || {
                for _ in 0..3 {
                    ok(place.path(), &["mount", "a.clip", &dir]);
                    assert_eq!(std::fs::read(place.path().join(&dir).join("run")).unwrap(), b"#!/x");
                    ok(place.path(), &["umount", &dir]);
                }
            });
        }
    });
    eventually("the owner leaves", || socket_is_gone(&place));
}

/// Claim: of many mounts of one directory at the same time one succeeds, and there is one mount, whichever owners they are of.
#[test]
fn one_directory_has_one_mount() {
    if !can_mount() {
        return;
    }
    let place = Place::new();
    let dir = place.path().join("m1");
    for _ in 0..5 {
        let mounted = std::thread::scope(|scope| {
            let racers = (0..8).map(|number| {
                let (place, cache) = (&place, format!("cache-{}", number % 2));
                scope.spawn(move || clip(place.path(), &["mount", "--cache-dir", &cache, "a.clip", "m1"]).status.success())
            });
            racers.collect::<Vec<_>>().into_iter().map(|racer| racer.join().unwrap()).filter(|mounted| *mounted).count()
        });
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert_eq!((mounted, mounts.matches(dir.to_str().unwrap()).count()), (1, 1), "{mounts}");
        ok(place.path(), &["umount", "m1"]);
    }
}

/// The first SIGTERM detaches and serves open files, the second ends them.
#[test]
fn first_signal_drains_second_aborts() {
    if !can_mount() {
        return;
    }
    use std::io::Read as _;
    let place = Place::new();
    ok(place.path(), &["mount", "a.clip", "m1"]);
    let owner = place.owner().unwrap();
    let mut open = std::fs::File::open(place.path().join("m1/etc/passwd")).unwrap();
    signal(owner, rustix::process::Signal::TERM);
    eventually("detached", || !place.path().join("m1/run").exists());
    let mut text = String::new();
    open.read_to_string(&mut text).unwrap();
    assert!(text.starts_with("root:"));
    assert!(!socket_is_gone(&place));
    signal(owner, rustix::process::Signal::TERM);
    eventually("the owner leaves", || socket_is_gone(&place));
}

/// A foreground mount is the owner, or waits for the owner; a signal to either detaches its mount and is no failure.
#[test]
fn foreground_owns_or_waits() {
    if !can_mount() {
        return;
    }
    let place = Place::new();
    let mut owner = foreground(&place, "m1");
    let mut waiting = foreground(&place, "m2");
    signal(i32::try_from(waiting.id()).unwrap(), rustix::process::Signal::TERM);
    assert!(waiting.wait().unwrap().success());
    eventually("the waiter's mount is detached", || !place.path().join("m2/run").exists());
    assert!(place.path().join("m1/run").exists());
    ok(place.path(), &["umount", "m1"]);
    assert!(owner.wait().unwrap().success());
    assert!(socket_is_gone(&place));
}

/// Claim: a foreground mount that another process serves waits for its open files after a first signal, as that process does; a second ends
/// it.
#[test]
fn a_waiting_foreground_mount_drains() {
    if !can_mount() {
        return;
    }
    let place = Place::new();
    ok(place.path(), &["mount", "a.clip", "m1"]);
    let mut waiting = foreground(&place, "m2");
    let pid = i32::try_from(waiting.id()).unwrap();
    let open = std::fs::File::open(place.path().join("m2/etc/passwd")).unwrap();
    signal(pid, rustix::process::Signal::TERM);
    eventually("detached", || !place.path().join("m2/run").exists());
    std::thread::sleep(Duration::from_millis(100));
    assert!(waiting.try_wait().unwrap().is_none());
    signal(pid, rustix::process::Signal::TERM);
    assert!(waiting.wait().unwrap().success());
    drop(open);
    ok(place.path(), &["umount", "m1"]);
}

/// A mount whose owner was killed is cleared by the next mount, and by umount.
#[test]
fn dead_mounts_are_cleared() {
    if !can_mount() {
        return;
    }
    let place = Place::new();
    for after in [&["mount", "a.clip", "m1"][..], &["umount", "m1"]] {
        ok(place.path(), &["mount", "a.clip", "m1"]);
        signal(place.owner().unwrap(), rustix::process::Signal::KILL);
        eventually("the mount is dead", || std::fs::read_dir(place.path().join("m1")).is_err());
        ok(place.path(), after);
        if after[0] == "mount" {
            assert!(place.path().join("m1/run").exists());
            ok(place.path(), &["umount", "m1"]);
        }
    }
}

/// Claim: a log that cannot be written costs its lines and nothing else: mounts are served, SIGUSR1 and further mounts are answered, and an
/// owner that cannot start says why to whoever starts it.
#[test]
fn a_full_disk_under_the_log_costs_lines_only() {
    if !can_mount() {
        return;
    }
    let place = Place::new();
    ok(place.path(), &["mount", "--log-file", "/dev/full", "--stats", "stats.json", "a.clip", "m1"]);
    let owner = place.owner().unwrap();
    signal(owner, rustix::process::Signal::USR1);
    eventually("stats", || place.path().join("stats.json").exists());
    ok(place.path(), &["mount", "a.clip", "m2"]);
    assert!(failure(place.path(), &["mount", "a.clip", "m2"], 1).contains("live clip mount"));
    assert_eq!(place.owner(), Some(owner));
    for dir in ["m1", "m2"] {
        assert_eq!(std::fs::read(place.path().join(dir).join("run")).unwrap(), b"#!/x");
    }
    ok(place.path(), &["umount", "m1", "m2"]);
    eventually("the owner leaves", || socket_is_gone(&place));
    std::fs::create_dir_all(place.path().join("other/owner.lock")).unwrap();
    let text = failure(place.path(), &["mount", "--cache-dir", "other", "--log-file", "/dev/full", "a.clip", "m1"], 1);
    assert!(text.contains("owner.lock") && text.contains("directory"), "{text}");
}

/// A listening socket of another user's process at `path`; who connects is sent to `seen` with what they say.
fn stranger_listens(path: &Path, seen: mpsc::Sender<String>) {
    use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None).unwrap();
    rustix::net::bind(&socket, &SocketAddrUnix::new(path).unwrap()).unwrap();
    let (ready, is_ready) = mpsc::channel();
    std::thread::spawn(move || {
        let stranger = rustix::process::Uid::from_raw(1234);
        // Of this thread alone; the peer's credentials are those at listen(2).
        rustix::thread::set_thread_res_uid(stranger, stranger, stranger).unwrap();
        rustix::net::listen(&socket, 8).unwrap();
        ready.send(()).unwrap();
        for mut client in UnixListener::from(socket).incoming().map(Result::unwrap) {
            let mut said = String::new();
            let _ = client.read_to_string(&mut said);
            seen.send(said).unwrap();
        }
    });
    is_ready.recv().unwrap();
}

/// Claim: a socket that another user listens on is sent nothing, and one in a directory of another user is not even connected to.
#[test]
fn strangers_are_not_asked() {
    if !can_mount() {
        return;
    }
    let place = Place::new();
    let cache = place.path().join("theirs");
    std::fs::create_dir(&cache).unwrap();
    let (seen, sees) = mpsc::channel();
    stranger_listens(&cache.join("owner.sock"), seen);
    let mount = ["mount", "--cache-dir", "theirs", "--no-creds", "a.clip", "m1"];
    let text = failure(place.path(), &mount, 1);
    assert!(text.contains("is of process") && text.contains("of user 1234"), "{text}");
    assert_eq!(sees.recv_timeout(Duration::from_secs(10)).unwrap(), "");
    std::os::unix::fs::chown(&cache, Some(1234), None).unwrap();
    let text = failure(place.path(), &mount, 1);
    assert!(text.contains("theirs") && text.contains("owner 1234"), "{text}");
    let doctor = String::from_utf8(clip(place.path(), &["doctor", "--cache-dir", "theirs"]).stdout).unwrap();
    assert!(!doctor.contains("cache owner") && doctor.contains("owner 1234"), "{doctor}");
    assert!(sees.recv_timeout(Duration::from_millis(200)).is_err());
    assert!(!cache.join("owner.log").exists());
}

/// Claim: mounts that are waited for take no places of requests: with more of them than requests are handled at once, others are answered,
/// and each that waits is told of its end.
#[test]
fn waiting_mounts_do_not_end_the_service() {
    const WAITING: usize = 258;
    if !can_mount() {
        return;
    }
    let place = Place::new();
    // Each mount takes a few descriptors of the owner, which has the limits of who starts it.
    let before = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    if before.maximum.is_some_and(|most| most < 8192) {
        eprintln!("skipped: needs 8192 descriptors");
        return;
    }
    let raised = rustix::process::Rlimit { current: Some(8192), maximum: before.maximum };
    rustix::process::setrlimit(rustix::process::Resource::Nofile, raised).unwrap();
    ok(place.path(), &["mount", "a.clip", "m1"]);
    let ask = |number: usize| {
        let dir = format!("w{number}");
        std::fs::create_dir(place.path().join(&dir)).unwrap();
        let mut request = request(&place, &dir);
        request["wait"] = true.into();
        let mut socket = UnixStream::connect(place.path().join("cache/owner.sock")).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        socket.write_all(format!("{request}\n").as_bytes()).unwrap();
        let mut from = BufReader::new(socket);
        let mut answer = String::new();
        from.read_line(&mut answer).unwrap();
        assert!(answer.contains("mounted"), "{number}: {answer}");
        (from, dir)
    };
    let waiting: Vec<_> = (0..WAITING).map(ask).collect();
    ok(place.path(), &["mount", "a.clip", "m2"]);
    let dirs: Vec<&str> = waiting.iter().map(|(_, dir)| dir.as_str()).collect();
    ok(place.path(), &[&["umount", "m1", "m2"], &dirs[..]].concat());
    for (mut from, dir) in waiting {
        let mut ended = String::new();
        from.read_to_string(&mut ended).unwrap();
        assert!(ended.contains("ended"), "{dir}: {ended}");
    }
    eventually("the owner leaves", || socket_is_gone(&place));
}
