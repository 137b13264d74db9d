//! The floor of a FUSE file system: the same tree and the same mapped bytes as a clip mount, and nothing else.
//!
//! Mount options, time to live, connection flags, threads and device copies are those of clip (`fuse/src/adapter.rs`,
//! `fuse/src/mount`), so what differs is what clip does between a request and its answer: looking into the index, looking whether a
//! span is present and verified. Here an answer is a look into a hash map, or a slice of a map of the cache file.

mod filesystem;
mod map;
mod tree;

use std::{
    fs,
    os::fd::{AsRawFd as _, OwnedFd},
    path::{Path, PathBuf},
    thread::JoinHandle,
};

use anyhow::{Context, Result};
use clip_fuse::MountOptions;
use fuser::{Config, Session, SessionACL};
use rustix::{
    fs::{Mode, OFlags},
    mount::{MountFlags, UnmountFlags},
};

use filesystem::Trivial;
pub use tree::{NoBytes, TrivialTree};

/// What is mounted, as /proc/self/mountinfo shows it.
const FS_TYPE: &str = "fuse.trivial";
const DEV_FUSE: &str = "/dev/fuse";

/// A trivial file system that is mounted. Dropping it takes it away.
pub struct TrivialMount {
    mountpoint: PathBuf,
    serving: Option<JoinHandle<()>>,
}

impl TrivialMount {
    /// Serves `tree` at `mountpoint`, as root, with the threads and the read-ahead of `options`.
    ///
    /// # Errors
    /// The system's.
    pub fn new(tree: std::sync::Arc<TrivialTree>, mountpoint: &Path, options: &MountOptions) -> Result<Self> {
        let connection = connect(mountpoint).with_context(|| format!("mount the trivial file system at {}", mountpoint.display()))?;
        let mut mount = Self { mountpoint: mountpoint.to_owned(), serving: None };
        let mut config = Config::default();
        config.n_threads = Some(options.session_threads.max(1));
        config.clone_fd = options.session_threads > 1;
        config.acl = SessionACL::All;
        let session = Session::from_fd(Trivial::new(tree), connection, SessionACL::All, config).context("start the trivial file system")?;
        let serve = move || {
            // It ends when the mount goes away; a failure before that shows as failing reads.
            let _ = session.run();
        };
        mount.serving = Some(std::thread::Builder::new().name("trivial-fuse".to_owned()).spawn(serve)?);
        let root = rustix::fs::stat(mountpoint).context("read the root of the trivial file system")?;
        let device = format!("{}:{}", rustix::fs::major(root.st_dev), rustix::fs::minor(root.st_dev));
        fs::write(format!("/sys/class/bdi/{device}/read_ahead_kb"), options.read_ahead_kb.to_string()).context("set the read-ahead")?;
        Ok(mount)
    }
}

impl Drop for TrivialMount {
    fn drop(&mut self) {
        // Nothing more can be done about a mount that does not go.
        let _ = rustix::mount::unmount(&self.mountpoint, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW);
        if let Some(serving) = self.serving.take() {
            let _ = serving.join();
        }
    }
}

/// As clip mounts for root: read-only, with set-user-id bits and devices.
fn connect(mountpoint: &Path) -> Result<OwnedFd> {
    let device = rustix::fs::open(DEV_FUSE, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
    let data = format!("fd={},rootmode=40000,user_id=0,group_id=0,default_permissions,allow_other", device.as_raw_fd());
    let data = std::ffi::CString::new(data)?;
    rustix::mount::mount("trivial", mountpoint, FS_TYPE, MountFlags::RDONLY, data.as_c_str())?;
    Ok(device)
}
