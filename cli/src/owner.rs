//! The one process of a cache directory: it holds the engine and serves every mount.
//!
//! The first `clip mount` starts it (`client`), as a fresh program with a readiness pipe, never as a fork after threads. It listens on
//! `owner.sock` in the cache directory (`server`); every mount, the first one too, is a request there (`protocol`). It leaves after
//! the last umount; a mount that comes while it leaves becomes the next owner.

pub mod background;
pub mod client;
mod login_wire;
mod peer;
pub mod protocol;
pub mod report;
pub mod server;
pub mod settings;

use std::{
    os::fd::{AsRawFd as _, OwnedFd},
    path::{Path, PathBuf},
};

use rustix::fs::{Mode, OFlags};

/// The socket's name in the cache directory.
pub const SOCKET_NAME: &str = "owner.sock";

/// A path to the cache directory's socket that fits `sockaddr_un` however long the directory's own path is.
pub struct SocketPath {
    _directory: OwnedFd,
    path: PathBuf,
}

impl SocketPath {
    /// # Errors
    /// When the directory cannot be opened.
    pub fn in_dir(cache_dir: &Path) -> std::io::Result<Self> {
        let directory = rustix::fs::open(cache_dir, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        let path = PathBuf::from(format!("/proc/self/fd/{}/{SOCKET_NAME}", directory.as_raw_fd()));
        Ok(Self { _directory: directory, path })
    }

    /// Valid while `self` lives.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// The mount namespace of this process, as an inode number; 0 where /proc does not say.
pub fn mount_namespace() -> u64 {
    use std::os::unix::fs::MetadataExt as _;
    std::fs::metadata("/proc/self/ns/mnt").map_or(0, |metadata| metadata.ino())
}
