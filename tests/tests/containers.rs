//! A mount is a good root for containers: overlayfs over it works, and `runc` starts the image's own program from a cold cache.
#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

use std::{
    path::Path,
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
};

use clip_tests::{
    clip::{Clip, text},
    faults::Server,
    images::debian::{self, umoci_tree},
    machine::{Need, lacks},
    process::{Finished, run, run_ok},
};
use rustix::mount::{UnmountFlags, unmount};
use tempfile::TempDir;

const NEEDS: &[Need] = &[Need::Root, Need::Fuse, Need::FileSystem("overlay"), Need::Tool("runc")];

/// Runs the bundle and returns how it went; its state lies in the bundle too.
fn runc(bundle: &Path) -> Finished {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let id = format!("clip-test-{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::SeqCst));
    let mut command = Command::new("runc");
    command.arg("--root").arg(bundle.join("state")).args(["run", "--bundle"]).arg(bundle).arg(&id);
    let finished = run(&mut command).unwrap();
    let _ = run(Command::new("runc").arg("--root").arg(bundle.join("state")).args(["delete", "--force", &id]));
    finished
}

/// True, after saying why, when this machine cannot run containers even from a plain directory.
fn machine_cannot_run(clip: &Clip, file: &Path) -> bool {
    let bundle = TempDir::new().unwrap();
    umoci_tree(debian::layout().unwrap(), debian::APP, &bundle.path().join("image")).unwrap();
    let spec = clip.ok(&["runtime-spec", text(file).unwrap(), "--rootfs", "image/rootfs", "--", "/bin/true"]).unwrap();
    std::fs::write(bundle.path().join("config.json"), spec.stdout).unwrap();
    let finished = runc(bundle.path());
    if !finished.status.success() {
        eprintln!("skipped: runc cannot run a container from a plain directory on this machine: {}", finished.stderr);
    }
    !finished.status.success()
}

/// An overlay that is taken down when dropped.
struct Overlay<'a>(&'a Path);

impl Drop for Overlay<'_> {
    fn drop(&mut self) {
        let _ = unmount(self.0, UnmountFlags::DETACH);
    }
}

/// The image's own entrypoint (a Python) runs as the image's user in the image's directory from a cold cache; another command, another
/// user and writes work too, and what is written lands in the upper directory.
#[test]
fn runc_starts_the_image_from_a_cold_cache() {
    if lacks(NEEDS) || lacks(debian::NEEDS) {
        return;
    }
    let layout = debian::layout().unwrap();
    let server = Server::start(layout).unwrap();
    let clip = Clip::new();
    let file = clip.index(&server.reference("debian", debian::APP), "debian", &[]).unwrap();
    let name = text(&file).unwrap();
    if machine_cannot_run(&Clip::new(), &file) {
        return;
    }
    let mount = clip.mount(&file, &[]).unwrap();
    let bundle = TempDir::new().unwrap();
    for dir in ["upper", "work", "rootfs"] {
        std::fs::create_dir(bundle.path().join(dir)).unwrap();
    }
    let place = ["--bundle", text(bundle.path()).unwrap(), "--mountpoint", text(mount.dir()).unwrap()];
    let line = clip.ok(&[&["runtime-spec", name, "--print-mount"], &place[..]].concat()).unwrap().text();
    run_ok(Command::new("sh").args(["-euc", &line])).unwrap();
    let rootfs = bundle.path().join("rootfs");
    let _overlay = Overlay(&rootfs);

    let run_with = |arguments: &[&str]| {
        let spec = clip.ok(&[&["runtime-spec", name], arguments].concat()).unwrap();
        std::fs::write(bundle.path().join("config.json"), spec.stdout).unwrap();
        let finished = runc(bundle.path());
        assert!(finished.status.success(), "{arguments:?}: {}{}", finished.text(), finished.stderr);
        finished.text()
    };
    assert_eq!(run_with(&[]), "42\n", "the image's own command");
    let said = run_with(&["--", "/bin/sh", "-c", "id -un; pwd; echo $GREETING"]);
    assert_eq!(said, "app\n/opt\nhi\n");
    run_with(&["--user", "root", "--", "/bin/sh", "-c", "echo written > /etc/new; rm /etc/hostname; mv /usr/bin/cat /usr/bin/dog"]);
    assert_eq!(std::fs::read_to_string(bundle.path().join("upper/etc/new")).unwrap(), "written\n");
    assert!(mount.path("etc/hostname").exists() && mount.path("usr/bin/cat").exists(), "the lower layer is as it was");
    let fetched: u64 = server.seen().iter().filter(|seen| seen.is_blob()).map(|seen| seen.served).sum();
    assert!(fetched > 0);
}
