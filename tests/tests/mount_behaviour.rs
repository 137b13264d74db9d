//! A mount behaves as administrators and programs expect of one: ready when the command returns, visible, honest about permissions, easy
//! to end, and easy to clear when it died.
#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

use std::{
    io::Read,
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use clip_tests::{
    clip::{Clip, binary, is_mounted, text},
    images::{debian, sample},
    machine::{Need, lacks},
    process::{Running, run, run_ok, shell, wait_until},
    served::Served,
};
use rustix::process::{Signal, kill_process};
use sha2::{Digest, Sha256};

const NEEDS: &[Need] = &[Need::Root, Need::Fuse];
const SOON: Duration = Duration::from_secs(10);

fn mount_line(dir: &Path) -> String {
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
    mounts.lines().rev().find(|line| line.split(' ').nth(1) == dir.to_str()).unwrap_or_default().to_owned()
}

/// The command returns when the mount answers, serves from the background, and the process leaves after the umount.
#[test]
fn mount_returns_ready_and_leaves_nothing_behind() {
    if lacks(NEEDS) {
        return;
    }
    let served = Served::new().unwrap();
    let mount = served.clip.mount(&served.file, &[]).unwrap();
    assert_eq!(std::fs::read(mount.path(sample::SHORT)).unwrap(), served.sample.contents(sample::SHORT));
    served.owner().unwrap();
    mount.umount().unwrap();
    served.clip.wait_for_servers().unwrap();
}

/// The owner's log says that nothing limits the cache, and how much room there is.
#[test]
fn the_log_says_that_the_cache_has_no_limit() {
    if lacks(NEEDS) {
        return;
    }
    let served = Served::new().unwrap();
    let _mount = served.clip.mount(&served.file, &[]).unwrap();
    let log = served.clip.log();
    let line = log.lines().find(|line| line.contains("no size limit")).unwrap_or_else(|| panic!("not said:\n{log}"));
    let free = line.split_whitespace().rev().skip_while(|word| !["KiB", "MiB", "GiB", "TiB"].contains(word)).nth(1);
    let free: f64 = free.unwrap_or_else(|| panic!("no free space: {line}")).parse().unwrap();
    assert!(line.contains("free") && line.contains(text(&served.clip.cache_dir()).unwrap()) && free > 0.0, "{line}");
}

/// A second mount of a cache directory is served by the first one's process, which leaves after the last umount only; the same image
/// can be mounted twice.
#[test]
fn later_mounts_join_the_owner() {
    if lacks(NEEDS) {
        return;
    }
    let served = Served::new().unwrap();
    let first = served.clip.mount(&served.file, &[]).unwrap();
    let owner = served.owner().unwrap();
    let second = served.clip.mount(&served.file, &[]).unwrap();
    assert_eq!(served.owner().unwrap(), owner);
    first.umount().unwrap();
    assert_eq!(std::fs::read(second.path("etc/table")).unwrap(), served.sample.contents("etc/table"));
    second.umount().unwrap();
    served.clip.wait_for_servers().unwrap();
}

/// Engine options that differ from the owner's are refused by name; options of the mount itself may differ.
#[test]
fn options_that_differ_from_the_owner_are_refused() {
    if lacks(NEEDS) {
        return;
    }
    let served = Served::new().unwrap();
    let _first = served.clip.mount(&served.file, &["--read-timeout", "7s"]).unwrap();
    let dir = served.new_dir("second").unwrap();
    let (file, dir) = (text(&served.file).unwrap(), text(&dir).unwrap());
    let message = served.clip.fails(&["mount", file, dir, "--read-timeout", "9s"]).unwrap();
    assert!(message.contains("read-timeout"), "{message}");
    served.clip.ok(&["mount", file, dir, "--read-timeout", "7s", "-o", "nosuid"]).unwrap();
    served.clip.umount(Path::new(dir)).unwrap();
}

/// mount, findmnt and df show the `.clip` as the source, the type fuse.clip, and the size of the image.
#[test]
fn system_tools_show_the_mount() {
    if lacks(NEEDS) {
        return;
    }
    let served = Served::new().unwrap();
    let mount = served.clip.mount(&served.file, &[]).unwrap();
    let listed = run_ok(&mut Command::new("mount")).unwrap().text();
    let line = listed.lines().find(|line| line.contains(text(mount.dir()).unwrap())).unwrap();
    assert!(line.starts_with(text(&served.file).unwrap()) && line.contains("type fuse.clip") && line.contains("ro"), "{line}");
    let found = run_ok(Command::new("findmnt").args(["-n", "-o", "FSTYPE,SOURCE"]).arg(mount.dir())).unwrap().text();
    assert!(found.contains("fuse.clip") && found.contains(text(&served.file).unwrap()), "{found}");
    let df = run_ok(Command::new("df").args(["-B1", "--output=size,used,avail"]).arg(mount.dir())).unwrap().text();
    let numbers: Vec<u64> = df.lines().last().unwrap().split_whitespace().map(|word| word.parse().unwrap()).collect();
    let total: u64 = served.sample.files.iter().map(|(_, bytes)| bytes.len() as u64).sum();
    assert!((total..total + (1 << 20)).contains(&numbers[0]), "{numbers:?} for {total} bytes");
    assert_eq!(numbers[2], 0, "nothing can be written");
}

/// `-o` takes mount(8)'s options and the mount has them; what cannot be is refused.
#[test]
fn mount_options_take_effect() {
    if lacks(NEEDS) {
        return;
    }
    let served = Served::new().unwrap();
    let plain = served.clip.mount(&served.file, &[]).unwrap();
    let line = mount_line(plain.dir());
    assert!(
        !line.contains("nosuid") && !line.contains("nodev") && line.contains("allow_other") && line.contains("default_permissions"),
        "{line}"
    );
    let mount = served.clip.mount(&served.file, &["-o", "nosuid,nodev,noexec", "-o", "fsname=my-image"]).unwrap();
    let line = mount_line(mount.dir());
    assert!(line.starts_with("my-image "), "{line}");
    assert!(["nosuid", "nodev", "noexec", "ro"].iter().all(|option| line.contains(option)), "{line}");
    let dir = served.new_dir("refused").unwrap();
    for bad in ["rw", "no-such-option"] {
        let message = served.clip.fails(&["mount", text(&served.file).unwrap(), text(&dir).unwrap(), "-o", bad]).unwrap();
        assert!(message.contains(bad), "{message}");
        assert!(!is_mounted(&dir));
    }
}

/// A busy mount is not unmounted; the message names who uses it. `--lazy` detaches, and what is open can still be read.
#[test]
fn umount_of_a_busy_mount_names_its_users() {
    if lacks(NEEDS) {
        return;
    }
    let served = Served::new().unwrap();
    let mount = served.clip.mount(&served.file, &[]).unwrap();
    let mut user = Running::start(Command::new("sleep").arg("60").current_dir(mount.path("lib")).stdin(Stdio::null())).unwrap();
    let mut open = std::fs::File::open(mount.path(sample::PROSE)).unwrap();
    let message = served.clip.fails(&["umount", text(mount.dir()).unwrap()]).unwrap();
    assert!(message.contains(&user.0.id().to_string()) && message.contains("sleep"), "{message}");
    assert!(is_mounted(mount.dir()));
    served.clip.ok(&["umount", "--lazy", text(mount.dir()).unwrap()]).unwrap();
    assert!(!is_mounted(mount.dir()));
    let mut contents = Vec::new();
    open.read_to_end(&mut contents).unwrap();
    assert!(contents == served.sample.contents(sample::PROSE), "an open file is served after a lazy umount");
    drop(open);
    user.0.kill().unwrap();
    user.wait(SOON).unwrap();
    served.clip.wait_for_servers().unwrap();
}

/// The first SIGTERM detaches the mount and serves open files until they are closed; then the process leaves.
#[test]
fn sigterm_serves_until_idle() {
    if lacks(NEEDS) {
        return;
    }
    let served = Served::new().unwrap();
    let mount = served.clip.mount(&served.file, &[]).unwrap();
    let mut open = std::fs::File::open(mount.path(sample::PROSE)).unwrap();
    let owner = served.owner().unwrap();
    kill_process(owner, Signal::TERM).unwrap();
    wait_until("SIGTERM detaches", SOON, || !is_mounted(mount.dir())).unwrap();
    let mut contents = Vec::new();
    open.read_to_end(&mut contents).unwrap();
    assert!(contents == served.sample.contents(sample::PROSE));
    drop(open);
    served.clip.wait_for_servers().unwrap();
}

/// `--stop-timeout` bounds that wait, and a second SIGTERM ends it at once: open files get an error, not a hang.
#[test]
fn stop_timeout_and_a_second_sigterm_end_the_wait() {
    if lacks(NEEDS) {
        return;
    }
    for second_signal in [false, true] {
        let served = Served::new().unwrap();
        let stop_timeout = if second_signal { "60s" } else { "1s" };
        let mount = served.clip.mount(&served.file, &["--stop-timeout", stop_timeout]).unwrap();
        let mut open = std::fs::File::open(mount.path(sample::PROSE)).unwrap();
        let owner = served.owner().unwrap();
        let started = Instant::now();
        kill_process(owner, Signal::TERM).unwrap();
        wait_until("SIGTERM detaches", SOON, || !is_mounted(mount.dir())).unwrap();
        if second_signal {
            kill_process(owner, Signal::TERM).unwrap();
        }
        served.clip.wait_for_servers().unwrap();
        assert!(started.elapsed() < SOON, "{:?}", started.elapsed());
        assert!(open.read_to_end(&mut Vec::new()).is_err());
    }
}

/// When its process was killed, the dead mount is cleared by the next `clip mount` there, or by `clip umount`.
#[test]
fn a_dead_mount_is_cleared() {
    if lacks(NEEDS) {
        return;
    }
    let served = Served::new().unwrap();
    let mount = served.clip.mount(&served.file, &[]).unwrap();
    for again in [true, false] {
        kill_process(served.owner().unwrap(), Signal::KILL).unwrap();
        served.clip.wait_for_servers().unwrap();
        // A name that nobody has looked up: the kernel answers for those that it knows.
        assert!(is_mounted(mount.dir()) && std::fs::metadata(mount.path("bin/tool")).is_err(), "the mount is dead");
        if again {
            served.clip.ok(&["mount", text(&served.file).unwrap(), text(mount.dir()).unwrap()]).unwrap();
            assert_eq!(std::fs::read(mount.path(sample::SHORT)).unwrap(), served.sample.contents(sample::SHORT));
        } else {
            served.clip.ok(&["umount", text(mount.dir()).unwrap()]).unwrap();
            assert!(!is_mounted(mount.dir()));
        }
    }
}

/// `--foreground` serves from the command itself and ends with the umount.
#[test]
fn foreground_serves_until_the_umount() {
    if lacks(NEEDS) {
        return;
    }
    let served = Served::new().unwrap();
    let dir = served.new_dir("foreground").unwrap();
    let arguments = ["mount", "--foreground", text(&served.file).unwrap(), text(&dir).unwrap()];
    let mut running = Running::start(served.clip.command(&arguments).stdin(Stdio::null()).stderr(Stdio::null())).unwrap();
    wait_until("the mount answers", SOON, || std::fs::read(dir.join(sample::SHORT)).is_ok()).unwrap();
    assert!(running.is_alive());
    served.clip.umount(&dir).unwrap();
    assert!(running.wait(SOON).unwrap().success());
}

/// `--stats` holds what the registry saw: requests, and bytes fetched.
#[test]
fn stats_tell_what_was_fetched() {
    if lacks(NEEDS) {
        return;
    }
    let served = Served::new().unwrap();
    served.server.forget();
    let stats = served.clip.path("stats.json");
    let mount = served.clip.mount(&served.file, &["--stats", text(&stats).unwrap()]).unwrap();
    std::fs::read(mount.path(sample::PROSE)).unwrap();
    std::fs::read(mount.path(sample::SHORT)).unwrap();
    kill_process(served.owner().unwrap(), Signal::USR1).unwrap();
    wait_until("SIGUSR1 writes the statistics", SOON, || stats.exists()).unwrap();
    mount.umount().unwrap();
    served.clip.wait_for_servers().unwrap();
    let written = std::fs::read_to_string(&stats).unwrap();
    let found: serde_json::Value = serde_json::from_str(&written).unwrap();
    let number = |name: &str| find(&found, name).unwrap_or_else(|| panic!("no {name} in {written}"));
    let blobs: Vec<_> = served.server.seen().into_iter().filter(clip_tests::faults::Seen::is_blob).collect();
    let bytes: u64 = blobs.iter().map(|seen| seen.served).sum();
    assert_eq!(number("requests"), served.server.seen().len() as u64);
    assert!(number("bytes_fetched").abs_diff(bytes) <= 4096, "{} and {bytes}", number("bytes_fetched"));
    assert!(number("bytes_read") >= served.sample.contents(sample::PROSE).len() as u64);
    assert!(number("spans_fetched") > 0 && number("slowest_read_us") > 0);
}

/// A number by its name, at any depth.
fn find(value: &serde_json::Value, name: &str) -> Option<u64> {
    match value {
        serde_json::Value::Object(fields) => {
            fields.get(name).and_then(serde_json::Value::as_u64).or_else(|| fields.values().find_map(|inner| find(inner, name)))
        }
        serde_json::Value::Array(items) => items.iter().find_map(|inner| find(inner, name)),
        _ => None,
    }
}

/// `mount -t clip` finds `mount.clip`, which is the same program under another name; fstab's own options are taken.
#[test]
fn mount_type_clip_works() {
    if lacks(NEEDS) || lacks(&[Need::FileSystem("overlay"), Need::Tool("unshare")]) {
        return;
    }
    let served = Served::new().unwrap();
    let dir = served.new_dir("fstab").unwrap();
    // Only this mount namespace sees the helper: a test installs nothing.
    let script = r#"
        helpers=$(realpath /sbin)
        mount -t tmpfs none "$4" && mkdir "$4/upper" "$4/work"
        mount -t overlay -o "lowerdir=$helpers,upperdir=$4/upper,workdir=$4/work" none "$helpers"
        ln -s "$1" "$helpers/mount.clip"
        mount -t clip "$2" "$3" -o "_netdev,nofail,nosuid,read-timeout=20s,cache-dir=$5"
        cat "$3/etc/motd"
        findmnt -n -o OPTIONS "$3"
        umount "$3""#;
    let scratch = served.new_dir("scratch").unwrap();
    let mut command = Command::new("unshare");
    command.args(["-m", "bash", "-euc", script, "test"]).arg(binary()).arg(&served.file).arg(&dir).arg(scratch);
    command.arg(served.clip.cache_dir()).env("CLIP_CACHE_DIR", served.clip.cache_dir());
    let said = run_ok(&mut command).unwrap().text();
    assert!(said.starts_with("welcome to the sample\n") && said.contains("nosuid"), "{said}");
    served.clip.wait_for_servers().unwrap();
}

/// A set-user-id program works in a chroot of the mount, and does not with `-o nosuid`.
#[test]
fn a_setuid_program_works_in_a_chroot() {
    if lacks(NEEDS) || lacks(debian::NEEDS) {
        return;
    }
    let clip = Clip::new();
    let file = clip.index(&debian::layout().unwrap().reference(debian::CHANGED), "debian", &[]).unwrap();
    for (options, effective) in [(&[][..], "0\n"), (&["-o", "nosuid"], "1000\n")] {
        let mount = clip.mount(&file, options).unwrap();
        let mut command = Command::new("chroot");
        command.arg("--userspec=1000:1000").arg(mount.dir()).args(["/usr/local/bin/suid-id", "-u"]);
        assert_eq!(run_ok(&mut command).unwrap().text(), effective, "{options:?}");
    }
}

/// User 1000 may read what everyone may, and may not read a 0600 file of root or enter a 0700 directory.
#[test]
fn other_users_have_only_their_permissions() {
    if lacks(NEEDS) || lacks(debian::NEEDS) || lacks(&[Need::Tool("setpriv")]) {
        return;
    }
    let clip = Clip::new();
    let file = clip.index(&debian::layout().unwrap().reference(debian::CHANGED), "debian", &[]).unwrap();
    let mount = clip.mount(&file, &[]).unwrap();
    let as_user = |program: &str, path: &str| {
        let mut command = Command::new("setpriv");
        command.args(["--reuid=1000", "--regid=1000", "--clear-groups", program]).arg(mount.path(path));
        run(&mut command).unwrap()
    };
    assert!(as_user("cat", "etc/passwd").status.success());
    assert!(as_user("cat", "home/app/hello").status.success(), "its own file in its own 0750 directory");
    for (program, path) in [("cat", "etc/shadow"), ("ls", "root"), ("cat", "root/secret")] {
        let finished = as_user(program, path);
        assert!(!finished.status.success() && finished.stderr.contains("Permission denied"), "{path}: {}", finished.stderr);
    }
    assert!(std::fs::read(mount.path("etc/shadow")).is_ok(), "root reads it");
}

/// What cannot be mounted is said in one message with the reason, and no process stays behind.
#[test]
fn a_failed_mount_says_what_to_check() {
    if lacks(NEEDS) {
        return;
    }
    let served = Served::new().unwrap();
    let file = text(&served.file).unwrap();
    let missing = served.clip.path("no-such-directory");
    let message = served.clip.fails(&["mount", file, text(&missing).unwrap()]).unwrap();
    assert!(message.contains("no-such-directory"), "{message}");
    let dir = served.new_dir("target").unwrap();
    let not_a_clip = served.clip.path("text.clip");
    std::fs::write(&not_a_clip, "hello").unwrap();
    let message = served.clip.fails(&["mount", text(&not_a_clip).unwrap(), text(&dir).unwrap()]).unwrap();
    assert!(message.contains("text.clip"), "{message}");
    served.clip.wait_for_servers().unwrap();
}

/// Where io_uring is barred the cache is written by a pool of threads: both ways read right and keep what was read.
#[test]
fn both_ways_of_writing_the_cache_work() {
    if lacks(NEEDS) {
        return;
    }
    for disk_io in ["pool", "auto"] {
        let served = Served::new().unwrap();
        let mount = served.clip.mount(&served.file, &["--disk-io", disk_io]).unwrap();
        for (path, contents) in &served.sample.files {
            assert!(std::fs::read(mount.path(path)).unwrap() == *contents, "{disk_io}: {path}");
        }
        mount.umount().unwrap();
        served.clip.wait_for_servers().unwrap();
        served.server.forget();
        let mount = served.clip.mount(&served.file, &["--disk-io", disk_io]).unwrap();
        for (path, contents) in &served.sample.files {
            assert!(std::fs::read(mount.path(path)).unwrap() == *contents, "{disk_io}: {path}, from the cache");
        }
        assert_eq!(served.server.seen(), [], "{disk_io}: nothing is fetched twice");
    }
}

/// Many readers of one cold file cost one fetch of each span.
#[test]
fn many_readers_fetch_once() {
    if lacks(NEEDS) {
        return;
    }
    let served = Served::new().unwrap();
    let mount = served.clip.mount(&served.file, &[]).unwrap();
    served.server.forget();
    let path = mount.path(sample::NOISE);
    let script = r#"for i in 1 2 3 4 5 6 7 8; do (cmp "$1" "$2") & pids="$pids $!"; done; for pid in $pids; do wait "$pid"; done"#;
    let expected = served.clip.path("expected");
    std::fs::write(&expected, served.sample.contents(sample::NOISE)).unwrap();
    shell(&format!("pids=; {script}"), &[path.as_os_str(), expected.as_os_str()]).unwrap();
    let bytes: u64 = served.server.seen().iter().filter(|seen| seen.is_blob()).map(|seen| seen.served).sum();
    let blob = std::fs::metadata(served.sample.layout.blob_path(&served.sample.layout.layer_digests(sample::TAG).unwrap()[0]).unwrap());
    let limit = blob.unwrap().len() + (64 << 10);
    assert!(bytes <= limit, "{bytes} bytes were fetched of a blob of {limit}");
}

/// A user mounts, reads and unmounts through fusermount3 with nothing of root's: a cache directory and an owner of their own; and nobody
/// else may look into the mount.
#[test]
fn a_user_mounts_through_fusermount3() {
    if lacks(NEEDS) || lacks(&[Need::Tool("fusermount3"), Need::Tool("setpriv"), Need::Tool("unshare")]) {
        return;
    }
    let served = Served::new().unwrap();
    let home = served.new_dir("home").unwrap();
    std::fs::copy(binary(), home.join("clip")).unwrap();
    std::fs::copy(&served.file, home.join("sample.clip")).unwrap();
    // In a mount namespace of its own a device that users may open stands in for /dev/fuse, which is root's alone on some machines.
    let script = r#"
        cd "$1"; mkdir m; mkdir "$2/device"
        mount -t tmpfs -o dev none "$2/device"
        mknod "$2/device/fuse" c 10 229 && chmod 666 "$2/device/fuse" && mount --bind "$2/device/fuse" /dev/fuse
        chown -R 1000:1000 .
        as() { setpriv --reuid="$1" --regid="$1" --clear-groups env -i PATH=/usr/bin:/bin HOME="$PWD" CLIP_CACHE_DIR="$PWD/cache" "${@:2}"; }
        as 1000 true < /dev/fuse || { echo barred; exit 0; }
        as 1000 ./clip mount sample.clip m || { cat cache/owner.log; exit 1; }
        as 1000 cat m/etc/motd
        as 1000 sh -c 'sha256sum m/lib/prose | cut -c1-64'
        ! as 1001 cat m/etc/motd 2>/dev/null
        ! cat m/etc/motd 2>/dev/null
        grep " $PWD/m " /proc/self/mounts
        stat -c '%u %a' cache
        as 1000 ./clip umount m
        ! grep " $PWD/m " /proc/self/mounts
        for i in $(seq 100); do [ -e cache/owner.sock ] || break; sleep 0.1; done
        [ ! -e cache/owner.sock ] && echo left"#;
    let mut command = Command::new("unshare");
    command.args(["-m", "bash", "-euc", script, "test"]).arg(&home).arg(served.new_dir("scratch").unwrap());
    let said = run_ok(&mut command).unwrap().text();
    if said == "barred\n" {
        eprintln!("skipped: users may not open /dev/fuse here");
        return;
    }
    let digest = hex::encode(Sha256::digest(served.sample.contents(sample::PROSE)));
    let lines: Vec<&str> = said.lines().collect();
    assert_eq!(lines[..2], ["welcome to the sample", &digest], "{said}");
    assert!(lines[2].contains("fuse.clip") && lines[2].contains("nosuid,nodev") && lines[2].contains("user_id=1000"), "{said}");
    assert_eq!(lines[3..], ["1000 700", "left"], "{said}");
}
