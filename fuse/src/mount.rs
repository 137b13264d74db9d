//! Mounting, unmounting, and the settings that are made from outside the file system.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use clip_engine::Image;

use crate::error::MountError;

/// How an image is mounted. Built from `-o` lists by [`MountOptions::apply`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountOptions {
    /// First column of /proc/self/mounts. Default: the path of the `.clip`.
    pub fsname: String,
    /// Honour set-user-id bits. Default: true for root.
    pub suid: bool,
    /// Device files work. Default: true for root.
    pub dev: bool,
    /// Programs can be run. Default: true.
    pub exec: bool,
    /// Others than the mounting user may enter. Default: true for root.
    pub allow_other: bool,
    /// SELinux `context=`, `fscontext=`, `defcontext=`, `rootcontext=` options, passed to the kernel as given.
    pub contexts: Vec<String>,
    /// Threads that read requests. Default min(cores, 4).
    pub session_threads: usize,
    /// The device's read-ahead. Default: see docs of the constant in this module; only root can set it.
    pub read_ahead_kb: u32,
}

impl MountOptions {
    /// The defaults for this user.
    #[must_use]
    pub fn new(fsname: String) -> Self {
        let _ = fsname;
        todo!()
    }

    /// Applies one comma-separated `-o` list as mount(8) would: ro, suid, nosuid, dev, nodev, exec, noexec, defaults, fsname=, allow_other,
    /// context= ..., the options that only fstab and systemd read (auto, noauto, _netdev, nofail, user, x-*), noatime and its kin.
    /// Returns options that are not mount(8)'s but may be the caller's (`cache-dir=...`), for the caller to use or refuse.
    ///
    /// # Errors
    /// `Option` for `rw` and for bad values.
    pub fn apply(&mut self, list: &str) -> Result<Vec<String>, MountError> {
        let _ = list;
        todo!()
    }
}

/// A live mount. Dropping it detaches the mount lazily.
pub struct Mounted {}

impl Mounted {
    /// Where.
    #[must_use]
    pub fn mountpoint(&self) -> &Path {
        todo!()
    }

    /// Blocks until the kernel has let go of the file system: after an umount by anyone, when the last user is gone.
    pub fn wait(&self) {
        todo!()
    }

    /// Whether `wait` would return at once.
    #[must_use]
    pub fn is_ended(&self) -> bool {
        todo!()
    }

    /// Calls `ended` from a thread of its own once, when `wait` would return.
    pub fn on_end(&self, ended: Box<dyn FnOnce() + Send>) {
        let _ = ended;
        todo!()
    }

    /// Detaches the mount from the tree now; open files keep being served.
    ///
    /// # Errors
    /// `System`.
    pub fn detach(&self) -> Result<(), MountError> {
        todo!()
    }

    /// Ends the connection: every waiting and later request fails with ENOTCONN.
    ///
    /// # Errors
    /// `System`.
    pub fn abort(&self) -> Result<(), MountError> {
        todo!()
    }
}

/// Mounts `image` at `mountpoint` and serves it. Returns when the mount answers. A dead mount of ours at the same place is cleared first.
///
/// # Errors
/// See [`MountError`].
pub fn mount(image: Arc<Image>, mountpoint: &Path, options: &MountOptions) -> Result<Mounted, MountError> {
    let _ = (image, mountpoint, options);
    todo!()
}

/// How `umount` treats a mount in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Detach {
    /// Fail with the users' pids.
    IfIdle,
    /// Detach now, serve until the last user is gone.
    Lazily,
}

/// Unmounts a clip mount at `mountpoint`, live or dead, root or through fusermount3.
///
/// # Errors
/// `Busy` naming the processes; `Mountpoint` when it is no clip mount.
pub fn umount(mountpoint: &Path, detach: Detach) -> Result<(), MountError> {
    let _ = (mountpoint, detach);
    todo!()
}

/// A clip mount of this mount namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountEntry {
    /// Where.
    pub mountpoint: PathBuf,
    /// First column.
    pub fsname: String,
    /// The connection is dead (ENOTCONN).
    pub dead: bool,
}

/// Every clip mount of this mount namespace, from /proc/self/mountinfo (type `fuse.clip`).
///
/// # Errors
/// `System`.
pub fn mounts() -> Result<Vec<MountEntry>, MountError> {
    todo!()
}
