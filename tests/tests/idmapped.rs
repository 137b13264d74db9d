//! A mount can be given to a user namespace: an idmapped mount of it shows the image's owners as that namespace's own, and an overlay
//! inside the namespace makes it writable there, as rootless containers do it.
#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

use std::{
    fs::File,
    io,
    os::fd::{AsRawFd, OwnedFd},
    os::unix::fs::{MetadataExt, chown},
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use clip_tests::{
    clip::text,
    images::sample,
    machine::{Need, lacks},
    process::{Running, run_ok, wait_until},
    served::Served,
};
use rustix::{
    fs::CWD,
    mount::{MoveMountFlags, OpenTreeFlags, UnmountFlags, move_mount, open_tree, unmount},
};
use sha2::{Digest, Sha256};

const NEEDS: &[Need] = &[Need::Root, Need::Fuse, Need::FileSystem("overlay"), Need::Tool("unshare"), Need::Tool("nsenter")];
/// User 0 of the namespace is this user of ours.
const FIRST: u32 = 100_000;
const COUNT: u32 = 65_536;

/// A process in a user namespace of its own that maps [`COUNT`] users from [`FIRST`] on.
fn user_namespace() -> (Running, u32) {
    let child = Running::start(Command::new("unshare").args(["--user", "sleep", "1000"]).stdout(Stdio::null())).unwrap();
    let pid = child.0.id();
    let ours = std::fs::read_link("/proc/self/ns/user").unwrap();
    let entered = || std::fs::read_link(format!("/proc/{pid}/ns/user")).is_ok_and(|theirs| theirs != ours);
    wait_until("a user namespace", Duration::from_secs(10), entered).unwrap();
    for map in ["uid_map", "gid_map"] {
        std::fs::write(format!("/proc/{pid}/{map}"), format!("0 {FIRST} {COUNT}")).unwrap();
    }
    (child, pid)
}

/// A copy of the mount at `from`, whose owners are mapped as in `namespace`; not yet anywhere in the tree.
fn idmapped(from: &Path, namespace: &File) -> io::Result<OwnedFd> {
    let tree = open_tree(CWD, from, OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC)?;
    let attributes =
        libc::mount_attr { attr_set: libc::MOUNT_ATTR_IDMAP, attr_clr: 0, propagation: 0, userns_fd: namespace.as_raw_fd() as u64 };
    // SAFETY: mount_setattr(2) reads an empty path and the attributes, of the size given; both outlive the call.
    let done = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            &raw const attributes,
            size_of::<libc::mount_attr>(),
        )
    };
    if done == 0 { Ok(tree) } else { Err(io::Error::last_os_error()) }
}

/// Takes a mount away when dropped.
struct Mounted<'a>(&'a Path);

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        let _ = unmount(self.0, UnmountFlags::DETACH);
    }
}

/// Root's files belong to the namespace's first user, outside and inside; the bytes are right through the idmapped mount; in an
/// overlay over it that the namespace mounts itself, its root writes, and what was copied up belongs to it too.
#[test]
fn a_user_namespace_gets_the_image_as_its_own() {
    if lacks(NEEDS) {
        return;
    }
    let served = Served::new().unwrap();
    let mount = served.clip.mount(&served.file, &[]).unwrap();
    let (_child, pid) = user_namespace();
    let namespace = File::open(format!("/proc/{pid}/ns/user")).unwrap();
    let tree = match idmapped(mount.dir(), &namespace) {
        Ok(tree) => tree,
        // FUSE_ALLOW_IDMAP is there since Linux 6.12.
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
            eprintln!("skipped: this kernel has no idmapped mounts of FUSE (Linux 6.12 has): {error}");
            return;
        }
        Err(error) => panic!("{error}"),
    };
    let [mapped, writable, merged] = ["mapped", "writable", "merged"].map(|name| served.new_dir(name).unwrap());
    move_mount(&tree, "", CWD, &mapped, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH).unwrap();
    let _mapped = Mounted(&mapped);

    let (plain, shifted) = (std::fs::metadata(mount.path(sample::SHORT)).unwrap(), std::fs::metadata(mapped.join(sample::SHORT)).unwrap());
    assert_eq!((plain.uid(), plain.gid()), (0, 0));
    assert_eq!((shifted.uid(), shifted.gid()), (FIRST, FIRST));
    served.assert_all_right(&mapped);

    for dir in [&writable, &writable.join("upper"), &writable.join("work")] {
        std::fs::create_dir_all(dir).unwrap();
        chown(dir, Some(FIRST), Some(FIRST)).unwrap();
    }
    // What is above must let the namespace's user through.
    open_the_way(&mapped);
    let script = r#"set -e
        mount -t overlay overlay -o "lowerdir=$1,upperdir=$2/upper,workdir=$2/work,userxattr" "$3"
        stat -c '%u %g' "$3/$4"
        echo more >> "$3/$4"
        echo new > "$3/new"
        stat -c '%u %g' "$3/$4" "$3/new"
        sha256sum "$3/$5" | cut -c1-64"#;
    let mut command = Command::new("nsenter");
    command.args([
        "--target",
        &pid.to_string(),
        "--user",
        "--setuid",
        "0",
        "--setgid",
        "0",
        "--",
        "unshare",
        "--mount",
        "sh",
        "-c",
        script,
        "sh",
    ]);
    command.args([text(&mapped).unwrap(), text(&writable).unwrap(), text(&merged).unwrap(), sample::SHORT, sample::PROSE]);
    let said = run_ok(&mut command).unwrap().text();
    let digest = hex::encode(Sha256::digest(served.sample.contents(sample::PROSE)));
    assert_eq!(said.lines().collect::<Vec<_>>(), ["0 0", "0 0", "0 0", digest.as_str()]);

    let written = writable.join("upper").join(sample::SHORT);
    assert!(std::fs::read(&written).unwrap().ends_with(b"more\n"));
    let owner = std::fs::metadata(&written).unwrap();
    assert_eq!((owner.uid(), owner.gid()), (FIRST, FIRST));
}

/// Everybody may pass through the directories above `dir` that this test has made.
fn open_the_way(dir: &Path) {
    use std::os::unix::fs::PermissionsExt;
    let temporary = std::env::temp_dir();
    for above in dir.ancestors().skip(1).take_while(|above| above.starts_with(&temporary) && **above != temporary) {
        let mode = std::fs::metadata(above).unwrap().permissions().mode();
        std::fs::set_permissions(above, std::fs::Permissions::from_mode(mode | 0o011)).unwrap();
    }
}
