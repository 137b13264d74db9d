//! Where tests mount.
#![allow(clippy::new_without_default, reason = "a test's own")]

use std::{
    fs::{self, File},
    path::PathBuf,
    sync::atomic::{AtomicU32, Ordering},
};

use clip_fuse::mount::{Detach, mounts, umount};

/// A directory of its own, emptied of mounts and removed at the end.
pub struct Place(pub PathBuf);

impl Place {
    pub fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let dir = std::env::temp_dir().join(format!("clip-fuse-{}-{number}", std::process::id()));
        fs::create_dir_all(dir.join("m")).unwrap();
        Self(dir)
    }

    pub fn m(&self) -> PathBuf {
        self.0.join("m")
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        for entry in mounts().unwrap() {
            if entry.mountpoint.starts_with(&self.0) {
                let _ = umount(&entry.mountpoint, Detach::Lazily);
            }
        }
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// False, with a line that says so, where nothing can be mounted.
pub fn can_mount() -> bool {
    let can = rustix::process::geteuid().is_root() && File::options().read(true).write(true).open("/dev/fuse").is_ok();
    if !can {
        eprintln!("skipped: needs root and /dev/fuse");
    }
    can
}
